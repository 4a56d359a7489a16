"""Detectron2's COCO evaluator, restricted to the images that were evaluated; and what goes wrong in them."""

import functools
import json
import logging
import os
from typing import Any

from detectron2.data import MetadataCatalog
from detectron2.evaluation import COCOEvaluator
from detectron2.utils import comm

from updetr_d2.evaluation.error_report import ErrorReport, results_of_file
from updetr_d2.utils.files import write_text

logger = logging.getLogger(__name__)


class EvaluatedImagesCOCOEvaluator(COCOEvaluator):
    """Objects of images that could not be read are not missed: AP is that of the images which were evaluated.

    A line in the log says how many images were left out. The metrics go into ``*_results.json`` of ``output_dir``.

    Args:
        dataset_name: registered data set.
        *args, **kwargs: of the parent.
        error_report: writes kinds of errors and pictures; None for nothing.

    Raises:
        ValueError: if the ground truth has no images or no categories, naming the file.
    """

    def __init__(
        self, dataset_name: str, *args: Any, error_report: ErrorReport | None = None, **kwargs: Any
    ) -> None:
        super().__init__(dataset_name, *args, **kwargs)
        self.dataset_name = dataset_name
        self.error_report = error_report
        if not self._coco_api.imgs or not self._coco_api.cats:
            json_file = MetadataCatalog.get(dataset_name).get("json_file")
            raise ValueError(f"the annotations {json_file} list no images, or no categories")

    def reset(self) -> None:
        super().reset()
        self._files: dict[int | str, str] = {}

    def process(self, inputs: list[dict], outputs: list[dict]) -> None:
        """As in the parent, without images that the ground truth does not have."""
        known = [pair for pair in zip(inputs, outputs) if pair[0]["image_id"] in self._coco_api.imgs]
        self._files.update((sample["image_id"], sample.get("file_name", "")) for sample, _ in known)
        super().process([sample for sample, _ in known], [output for _, output in known])

    def evaluate(self, img_ids: list | None = None) -> dict:
        """As in the parent.

        Args:
            img_ids: images to restrict the measure to; None for all that were evaluated.
        """
        files = {image_id: file for part in comm.all_gather(self._files) for image_id, file in part.items()}
        files = {image_id: files[image_id] for image_id in sorted(files)}
        left_out = len(self._coco_api.imgs) - len(files)
        if left_out and comm.is_main_process():
            logger.warning(
                "%d of %d images were not evaluated (see the skipped files) and are not counted.",
                *(left_out, len(self._coco_api.imgs)),
            )
        results = super().evaluate(img_ids=list(files) if img_ids is None else img_ids)
        if comm.is_main_process() and self._output_dir:
            self._write_results(results, files)
        return results

    def _write_results(self, results: dict, files: dict[int | str, str]) -> None:
        for task, metrics in results.items():
            write_text(os.path.join(self._output_dir, f"{task}_results.json"), json.dumps(metrics, indent=1))
        if (
            self.error_report is not None and results
        ):  # without boxes there is no file, or that of another time
            predictions = os.path.join(self._output_dir, "coco_instances_results.json")
            content = self._coco_api.dataset
            self.error_report.write(
                functools.partial(results_of_file, content, predictions),
                files,
                {category["id"]: str(category["name"]) for category in content["categories"]},
                name=self.dataset_name,
            )
