"""What a detector's heads give, in the one form that criterion, post-processing and evaluation read.

``L`` decoder layers, ``B`` images, ``N`` queries, ``K`` classes.
"""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

from torch import Tensor

from updetr_d2.modeling.matcher import Matches
from updetr_d2.modeling.targets import BatchTargets


class LazyTensor(Protocol):
    """Values that are computed where they are indexed, since training wants a few of them only."""

    def __getitem__(self, index: Any) -> Tensor:
        """What ``tensor[index]`` would be; ``tensor[:]`` computes everything."""


class LazyMasks(LazyTensor, Protocol):
    """Mask logits of a batch.

    Attributes:
        padded_size: (height, width) of the padded images, to which masks are upsampled.
    """

    padded_size: tuple[int, int]


@dataclass
class Outputs:
    """Raw outputs of all heads.

    Attributes:
        logits: float32 ``[L, B, N, K+1]`` (softmax, the last is "no object") or ``[L, B, N, K]`` (focal loss).
        boxes: float32 ``[L, B, N, 4]``, (cx, cy, w, h) as fractions of the image.
        features: reconstructed features ``[L, B, N, D]``, or None.
        masks: mask logits ``[B, N, h, w]`` of the last layer, or None.
        patch_features: CNN features ``[B, M, D]`` of the query patches, or None.
        auxiliary: predictions that are trained as well and not used at inference, by the suffix of their losses.
        extra: what a task of its own predicts beside them ``[L, B, N, *]``, by name.
    """

    logits: Tensor
    boxes: Tensor
    features: LazyTensor | None = None
    masks: LazyMasks | None = None
    patch_features: Tensor | None = None
    auxiliary: dict[str, "AuxiliaryOutputs"] = field(default_factory=dict)
    extra: dict[str, Tensor] = field(default_factory=dict)

    def last_layer(self) -> "Outputs":
        """The same with the logits, boxes and extra predictions of the last decoder layer only."""
        extra = {name: values[-1:] for name, values in self.extra.items()}
        return dataclasses.replace(self, logits=self.logits[-1:], boxes=self.boxes[-1:], extra=extra)

    def as_dict(self) -> dict[str, Tensor]:
        """All values, computed: ``pred_logits``, ``pred_boxes`` and, where there are any, ``pred_features``,
        ``patch_features``, ``pred_masks``, ``pred_NAME`` of everything extra."""
        values = {"pred_logits": self.logits, "pred_boxes": self.boxes}
        if self.features is not None:
            values["pred_features"] = self.features[:]
        if self.patch_features is not None:
            values["patch_features"] = self.patch_features
        if self.masks is not None:
            values["pred_masks"] = self.masks[:]
        values.update({f"pred_{name}": extra for name, extra in self.extra.items()})
        return values


@dataclass
class AuxiliaryOutputs:
    """Predictions with losses of their own.

    Attributes:
        outputs: the predictions.
        matches: their pairs with the targets; None to find them.
        assign: finds the pairs instead of the criterion's matcher.
        class_agnostic: whether all targets count as class 0.
        num_copies: how often each target occurs in ``matches``, which the losses are divided by.
    """

    outputs: Outputs
    matches: Matches | None = None
    assign: Callable[[BatchTargets], Matches] | None = None
    class_agnostic: bool = False
    num_copies: int = 1
