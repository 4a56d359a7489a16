"""What a model finds in one image."""

from typing import Any

from detectron2.structures import Instances
from torch import Tensor


class Prediction(dict):
    """Detectron2's output for an image (``prediction["instances"]``), whose parts are attributes, too.

    Args:
        output: of the model for one image.
        class_names: names of ``pred_classes`` (``pred_patches`` for a UPDETR), by index.
    """

    def __init__(self, output: dict[str, Any], *, class_names: list[str]) -> None:
        super().__init__(output, class_names=class_names)

    @property
    def instances(self) -> Instances:
        """``pred_boxes`` in pixels of the image, ``scores``, ``pred_classes``, ..., on the CPU."""
        return self["instances"]

    @property
    def panoptic_seg(self) -> tuple[Tensor, list[dict]] | None:
        """Map of segment ids and their descriptions; None where the model makes none."""
        return self.get("panoptic_seg")

    @property
    def class_names(self) -> list[str]:
        return self["class_names"]
