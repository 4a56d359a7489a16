"""Pictures of what a teacher says and what its student is given."""

import logging
import os

import numpy as np
from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from detectron2.engine import HookBase
from detectron2.utils.visualizer import ColorMode, Visualizer

from updetr_d2.data.dataset_mappers.two_views import WEAK_IMAGE
from updetr_d2.visualization.boxes import save_picture, to_rgb

logger = logging.getLogger(__name__)

_SHORT_SIDE = 300  # px of a picture
_UNCERTAIN_COLOR = (1.0, 1.0, 1.0)


class PseudoLabelPictures(HookBase):
    """Every ``VIS_PERIOD`` iterations, draw some unlabeled images of the last batch, and log how the teacher is.

    Left the weak view, as the teacher has seen it, right the strong view with what the student learns: labels in
    color with their scores, uncertain boxes in white. The files are in ``pseudo_labels/iteration_*/`` of
    ``OUTPUT_DIR``, the images ``pseudo_labels/*`` in TensorBoard.

    Args:
        cfg: ``VIS_PERIOD``, ``TEST.VIS_IMAGES``, ``INPUT.FORMAT``, ``DATASETS.TRAIN`` and ``OUTPUT_DIR`` are read.
    """

    def __init__(self, cfg: CfgNode) -> None:
        self.cfg = cfg

    def after_step(self) -> None:
        done = self.trainer.iter + 1
        if done % self.cfg.VIS_PERIOD:
            return
        latest = self.trainer.storage.latest_with_smoothing_hint(20)
        scalars = {name: value for name, (value, _) in latest.items() if name.startswith("pseudo_")}
        if scalars:
            text = ", ".join(f"{name} {value:.3g}" for name, value in scalars.items())
            logger.info("The teacher in iteration %d: %s", self.trainer.iter, text)
        samples = [each for each in self.trainer.training_step.last_samples if "instances" in each]
        names = MetadataCatalog.get(self.cfg.DATASETS.TRAIN[0]).get("thing_classes", [])
        folder = os.path.join(self.cfg.OUTPUT_DIR, "pseudo_labels", f"iteration_{done:07d}")
        for i, sample in enumerate(samples[: self.cfg.TEST.VIS_IMAGES]):
            picture = draw_pseudo_labels(sample, names, self.cfg.INPUT.FORMAT)
            save_picture(picture, os.path.join(folder, f"{i}.png"))
            self.trainer.storage.put_image(f"pseudo_labels/{i}", picture.transpose(2, 0, 1))


def draw_pseudo_labels(sample: dict, class_names: list[str], image_format: str) -> np.ndarray:
    """The weak view beside the strong view with its labels.

    Args:
        sample: unlabeled, after ``MeanTeacherStep`` has labeled it.
        class_names: of the classes.
        image_format: of the sample, "RGB" or "BGR".

    Returns:
        RGB uint8 ``[H, W, 3]``.
    """
    image = to_rgb(sample["image"], image_format)
    scale = _SHORT_SIDE / min(image.shape[:2])
    visualizer = Visualizer(np.ascontiguousarray(image), scale=scale, instance_mode=ColorMode.IMAGE)
    learned = sample["instances"]
    visualizer.overlay_instances(
        boxes=sample["uncertain_boxes"].tensor.numpy(),
        assigned_colors=[_UNCERTAIN_COLOR] * len(sample["uncertain_boxes"]),
    )
    labels = [
        f"{class_names[label]} {score:.2f}"
        for label, score in zip(learned.gt_classes.tolist(), learned.scores.tolist())
    ]
    strong = visualizer.overlay_instances(boxes=learned.gt_boxes.tensor.numpy(), labels=labels).get_image()
    weak = Visualizer(
        np.ascontiguousarray(to_rgb(sample[WEAK_IMAGE], image_format)),
        scale=_SHORT_SIDE / min(sample[WEAK_IMAGE].shape[-2:]),
    ).get_output()
    return beside(weak.get_image(), strong)


def beside(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Two RGB uint8 pictures in one, filled up with black below."""
    height = max(len(left), len(right))
    return np.concatenate(
        [np.pad(each, ((0, height - len(each)), (0, 0), (0, 0))) for each in (left, right)], axis=1
    )
