"""Detectron2's COCO evaluator, restricted to the images that were evaluated."""

import logging
from typing import Any

from detectron2.data import MetadataCatalog
from detectron2.evaluation import COCOEvaluator
from detectron2.utils import comm

logger = logging.getLogger(__name__)


class EvaluatedImagesCOCOEvaluator(COCOEvaluator):
    """Objects of images that could not be read are not missed: AP is that of the images which were evaluated.

    Takes the arguments of the parent. A line in the log says how many images were left out.

    Raises:
        ValueError: if the ground truth has no images or no categories, naming the file.
    """

    def __init__(self, dataset_name: str, *args: Any, **kwargs: Any) -> None:
        super().__init__(dataset_name, *args, **kwargs)
        if not self._coco_api.imgs or not self._coco_api.cats:
            json_file = MetadataCatalog.get(dataset_name).get("json_file")
            raise ValueError(f"the annotations {json_file} list no images, or no categories")

    def reset(self) -> None:
        super().reset()
        self._seen: set[int | str] = set()

    def process(self, inputs: list[dict], outputs: list[dict]) -> None:
        """As in the parent, without images that the ground truth does not have."""
        known = [pair for pair in zip(inputs, outputs) if pair[0]["image_id"] in self._coco_api.imgs]
        self._seen.update(sample["image_id"] for sample, _ in known)
        super().process([sample for sample, _ in known], [output for _, output in known])

    def evaluate(self, img_ids: list | None = None) -> dict:
        """As in the parent.

        Args:
            img_ids: images to restrict the measure to; None for all that were evaluated.
        """
        seen = set().union(*comm.all_gather(self._seen))
        left_out = len(self._coco_api.imgs) - len(seen)
        if left_out and comm.is_main_process():
            logger.warning(
                "%d of %d images were not evaluated (see the skipped files) and are not counted.",
                *(left_out, len(self._coco_api.imgs)),
            )
        return super().evaluate(img_ids=sorted(seen) if img_ids is None else img_ids)
