"""How well a pre-trained model finds query patches: the measure of pre-training without labels."""

import itertools
import json
import logging
import os
from collections import OrderedDict

import numpy as np
from detectron2.evaluation import DatasetEvaluator
from detectron2.structures import Boxes, Instances, pairwise_iou
from detectron2.utils import comm
from detectron2.utils.events import get_event_storage, has_event_storage

from updetr_d2.visualization.boxes import draw_query_patch_sample, save_picture

logger = logging.getLogger(__name__)

IOU_THRESHOLDS = np.linspace(0.5, 0.95, 10)
RECALL_POINTS = np.linspace(0, 1, 101)


class QueryPatchEvaluator(DatasetEvaluator):
    """Patch AP, AP50, AP75 (COCO's definition), mean IoU and recall at IoU 0.5.

    Every query patch is a problem of its own with one true box and one prediction, the best query of the
    patch's group; the predictions of all patches are ranked by score for the AP.

    ``mIoU_others`` is the mean IoU of each prediction with the true boxes of the *other* patches of its image:
    what a model reaches that has learned where patches usually are, but does not look at its patch. Only the
    distance of mIoU from it tells that patches are found.

    Args:
        output_folder: for ``query_patch_results.json`` and the pictures; None writes nothing.
        num_pictures: number of images that are drawn.
        input_format: "RGB" or "BGR", of the images.
    """

    def __init__(
        self, *, output_folder: str | None = None, num_pictures: int = 0, input_format: str = "RGB"
    ) -> None:
        self.output_folder = output_folder
        self.num_pictures = num_pictures
        self.input_format = input_format
        self.reset()

    def reset(self) -> None:
        self._ious: list[np.ndarray] = []
        self._scores: list[np.ndarray] = []
        self._ious_with_others: list[np.ndarray] = []
        self._num_drawn = 0

    def process(self, inputs: list[dict], outputs: list[dict]) -> None:
        """
        Args:
            inputs: samples with ``patches`` [m, 3, h, w] and ``instances.gt_boxes`` in the pixels of ``image``.
            outputs: ``{"instances": Instances}`` in original pixels, the best query of each patch first.
        """
        for sample, output in zip(inputs, outputs):
            num_patches = len(sample["patches"])
            best = output["instances"][:num_patches].to("cpu")
            true_boxes = sample["instances"].gt_boxes.tensor.clone()
            height, width = sample["instances"].image_size
            true_boxes[:, 0::2] *= best.image_size[1] / width
            true_boxes[:, 1::2] *= best.image_size[0] / height
            ious = pairwise_iou(best.pred_boxes, Boxes(true_boxes)).numpy()
            own = np.eye(num_patches, dtype=bool)
            self._ious.append(ious[own])
            self._ious_with_others.append(ious[~own])
            self._scores.append(best.scores.numpy())
            if comm.is_main_process() and self._num_drawn < self.num_pictures:
                self._draw(sample, output["instances"])

    def _draw(self, sample: dict, instances: Instances) -> None:
        picture = draw_query_patch_sample(sample, instances, self.input_format)
        if self.output_folder:
            save_picture(picture, os.path.join(self.output_folder, "pictures", f"{self._num_drawn}.png"))
        if has_event_storage():
            get_event_storage().put_image(
                f"evaluation_query_patches/{self._num_drawn}", picture.transpose(2, 0, 1)
            )
        self._num_drawn += 1

    def evaluate(self) -> dict | None:
        """
        Returns:
            on the main process ``{"query_patch": {"AP", "AP50", "AP75", "mIoU", "recall50", "mIoU_others"}}``,
            all in percent, the last one only if some image has several patches; None on the others.

        Raises:
            ValueError: if no image could be evaluated.
        """
        gathered = comm.gather((self._ious, self._scores, self._ious_with_others))
        if not comm.is_main_process():
            return None
        parts = [list(itertools.chain.from_iterable(part)) for part in zip(*gathered)]
        if not parts[0]:
            raise ValueError("No image of the test set could be used: see the warnings about skipped files.")
        ious, scores, ious_with_others = map(np.concatenate, parts)
        ap = [average_precision(ious >= threshold, scores) for threshold in IOU_THRESHOLDS]
        results = {
            "AP": 100 * float(np.mean(ap)),
            "AP50": 100 * ap[0],
            "AP75": 100 * ap[5],
            "mIoU": 100 * float(ious.mean()),
            "recall50": 100 * float((ious >= 0.5).mean()),
        }
        if len(ious_with_others):
            results["mIoU_others"] = 100 * float(ious_with_others.mean())
        logger.info("Query patch detection on %d patches of %d images", len(ious), len(parts[0]))
        if self.output_folder:
            os.makedirs(self.output_folder, exist_ok=True)
            with open(os.path.join(self.output_folder, "query_patch_results.json"), "w") as file:
                json.dump({**results, "num_patches": len(ious)}, file, indent=1)
        return OrderedDict(query_patch=results)


def average_precision(correct: np.ndarray, scores: np.ndarray) -> float:
    """COCO's 101-point interpolated AP of problems with one true box and one prediction each.

    Args:
        correct: bool ``[P]``, whether the prediction overlaps its true box enough.
        scores: ``[P]`` confidence of the predictions.

    Returns:
        AP in [0, 1].
    """
    correct = correct[np.argsort(-scores, kind="stable")]
    true_positives = np.cumsum(correct)
    precision = true_positives / np.arange(1, len(correct) + 1)
    recall = true_positives / len(correct)
    # The best precision at this recall or a higher one.
    envelope = np.maximum.accumulate(precision[::-1])[::-1]
    at_least = np.searchsorted(recall, RECALL_POINTS, side="left")
    return float(np.append(envelope, 0.0)[at_least].mean())
