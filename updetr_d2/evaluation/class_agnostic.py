"""How well a pre-trained detector finds labeled objects of any class: a pretext judged without fine-tuning."""

import contextlib
import io
import json
import logging
import os
from collections import OrderedDict
from collections.abc import Iterable

import numpy as np
from detectron2.evaluation import DatasetEvaluator
from detectron2.structures import BoxMode
from detectron2.utils import comm
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from updetr_d2.data.proposals.file import image_id_of
from updetr_d2.evaluation.detection_matching import MAX_DETECTIONS, ImageResult
from updetr_d2.evaluation.error_report import ErrorReport

logger = logging.getLogger(__name__)

_OBJECT = 1  # the one category
# Boxes of an image that AR counts.
_MAX_DETECTIONS = [1, 10, 100]
# Places of AR@10 and AR@100, AP, AP50 and AP75 in COCOeval's statistics.
_STATISTICS = {"AR@10": 7, "AR@100": 8, "AP": 0, "AP50": 1, "AP75": 2}


class ClassAgnosticEvaluator(DatasetEvaluator):
    """COCO's AR of the first 10 and 100 boxes and AP, all objects and all predictions of one class.

    Args:
        dataset_dicts: with ``annotations``.
        output_folder: for ``class_agnostic_results.json``; None writes nothing.
        name: of the data set.
        error_report: kinds of errors and pictures; None for nothing.

    Raises:
        ValueError: if nothing is labeled.
    """

    def __init__(
        self,
        dataset_dicts: Iterable[dict],
        *,
        output_folder: str | None = None,
        name: str = "",
        error_report: ErrorReport | None = None,
    ) -> None:
        self.output_folder = output_folder
        self.name = name
        self.error_report = error_report
        self._files: dict[int | str, str] = {}
        self._objects: dict[str, list[dict]] = {}
        for dataset_dict in dataset_dicts:
            annotations = dataset_dict.get("annotations", ())
            self._files[str(image_id_of(dataset_dict))] = dataset_dict.get("file_name", "")
            self._objects[str(image_id_of(dataset_dict))] = [
                {
                    "bbox": BoxMode.convert(each["bbox"], each["bbox_mode"], BoxMode.XYWH_ABS),
                    "iscrowd": int(each.get("iscrowd", 0)),
                }
                for each in annotations
            ]
        if not any(self._objects.values()):
            raise ValueError("it has no labels, and this pre-training is evaluated on labeled objects")
        self.reset()

    def reset(self) -> None:
        self._predictions: dict[str, np.ndarray] = {}

    def process(self, inputs: list[dict], outputs: list[dict]) -> None:
        """
        Args:
            inputs: samples with ``image_id``.
            outputs: ``{"instances": Instances}`` with ``pred_boxes`` in original pixels and ``scores``.
        """
        for sample, output in zip(inputs, outputs):
            instances = output["instances"].to("cpu")
            boxes = BoxMode.convert(instances.pred_boxes.tensor, BoxMode.XYXY_ABS, BoxMode.XYWH_ABS)
            self._predictions[str(image_id_of(sample))] = np.column_stack([boxes, instances.scores])

    def evaluate(self) -> dict | None:
        """
        Returns:
            on the main process ``{"class_agnostic": {"AR@10", "AR@100", "AP", "AP50", "AP75"}}`` in percent, of
            the images that were evaluated; None on the others.
        """
        gathered = comm.gather(self._predictions)
        if not comm.is_main_process():
            return None
        predictions = {name: boxes for part in gathered for name, boxes in part.items()}
        if not predictions:
            raise ValueError("No image of the test set could be used: see the warnings about skipped files.")
        results = class_agnostic_metrics({name: self._objects[name] for name in predictions}, predictions)
        logger.info("Objects of any class in %d images: %s", len(predictions), results)
        if self.output_folder:
            os.makedirs(self.output_folder, exist_ok=True)
            path = os.path.join(self.output_folder, "class_agnostic_results.json")
            with open(path, "w", encoding="utf-8") as file:
                json.dump(results, file, indent=1)
        if self.error_report is not None:
            self.error_report.write(
                lambda names: [self._result(str(each), predictions[str(each)]) for each in names],
                {each: self._files[each] for each in predictions},
                {_OBJECT: "object"},
                name=self.name,
            )
        return OrderedDict(class_agnostic=results)

    def _result(self, name: str, found: np.ndarray) -> ImageResult:
        """What was found in an image, all of one class."""
        best = found[np.argsort(-found[:, 4], kind="stable")[:MAX_DETECTIONS]]
        objects = self._objects[name]
        return ImageResult(
            name,
            boxes=best[:, :4].astype(float),
            scores=best[:, 4].astype(float),
            classes=np.full(len(best), _OBJECT),
            true_boxes=np.array([each["bbox"] for each in objects], dtype=float).reshape(-1, 4),
            true_classes=np.full(len(objects), _OBJECT),
            crowd=np.array([bool(each["iscrowd"]) for each in objects], dtype=bool),
        )


def class_agnostic_metrics(
    objects: dict[str, list[dict]], predictions: dict[str, np.ndarray]
) -> dict[str, float]:
    """AR and AP in percent.

    Args:
        objects: by image, each with ``bbox`` (XYWH) and ``iscrowd``.
        predictions: by image, ``[N, 5]`` of XYWH and score.
    """
    if not any(len(boxes) for boxes in predictions.values()):
        return dict.fromkeys(_STATISTICS, 0.0)
    ids = {name: i for i, name in enumerate(objects, start=1)}
    annotations = [
        {**each, "image_id": ids[name], "category_id": 1, "area": each["bbox"][2] * each["bbox"][3]}
        for name, of_image in objects.items()
        for each in of_image
    ]
    truth = COCO()
    truth.dataset = {
        "images": [{"id": i} for i in ids.values()],
        "categories": [{"id": 1, "name": "object"}],
        "annotations": [{**each, "id": i} for i, each in enumerate(annotations, start=1)],
    }
    rows = [np.column_stack([np.full(len(boxes), ids[name]), boxes]) for name, boxes in predictions.items()]
    with contextlib.redirect_stdout(io.StringIO()):  # pycocotools prints
        truth.createIndex()
        found = truth.loadRes(np.insert(np.concatenate(rows), 6, 1, axis=1))
        evaluation = COCOeval(truth, found, "bbox")
        evaluation.params.maxDets = _MAX_DETECTIONS
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return {name: 100 * float(evaluation.stats[place]) for name, place in _STATISTICS.items()}
