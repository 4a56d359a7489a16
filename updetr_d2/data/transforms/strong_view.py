"""The strong view of an unlabeled image: colors, grayscale, blur and erased rectangles, and a further scale."""

from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode, configurable
from detectron2.data import transforms as T
from torchvision.transforms import RandomErasing

from updetr_d2.data.transforms.patch_augmentation import PatchAugmentation
from updetr_d2.data.transforms.resize import AntialiasResizeTransform

_RATIO = (0.3, 3.3)  # of the sides of erased rectangles, torchvision's default


class RandomRescale(T.Augmentation):
    """Resize by a random factor; coordinates follow.

    Args:
        scale_range: the factor is uniform in it.
    """

    def __init__(self, scale_range: tuple[float, float]) -> None:
        super().__init__()
        self.scale_range = scale_range

    def get_transform(self, image: np.ndarray) -> T.Transform:
        height, width = image.shape[:2]
        factor = np.random.uniform(*self.scale_range)
        new_h, new_w = (max(1, round(side * factor)) for side in (height, width))
        return AntialiasResizeTransform(height, width, new_h, new_w)


class StrongAugmentation:
    """What changes pixels and moves nothing: :class:`PatchAugmentation`, then erased rectangles.

    Args:
        colors: color jitter, grayscale and blur.
        erase_count: rectangles that may be erased.
        erase_prob: probability of each of them.
        erase_area: range of their areas as shares of the image.

    Raises:
        ValueError: naming the key of a value that cannot be used.
    """

    @configurable
    def __init__(
        self,
        *,
        colors: PatchAugmentation,
        erase_count: int,
        erase_prob: float,
        erase_area: tuple[float, float],
    ) -> None:
        if erase_count < 0:
            raise ValueError(f"INPUT.STRONG_VIEW.ERASE_COUNT is {erase_count}; it must not be negative.")
        if not 0 <= erase_prob <= 1:
            raise ValueError(f"INPUT.STRONG_VIEW.ERASE_PROB is {erase_prob}; a probability is in [0, 1].")
        if len(erase_area) != 2 or not 0 < erase_area[0] <= erase_area[1] < 1:
            raise ValueError(
                f"INPUT.STRONG_VIEW.ERASE_AREA is {erase_area}; it must be (low, high) with 0 < low <= high < 1."
            )
        self.colors = colors
        self.erase_count = erase_count
        self.erase_prob = erase_prob
        self.erase_area = erase_area

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        view = cfg.INPUT.STRONG_VIEW
        return {
            "colors": PatchAugmentation(cfg, key="INPUT.STRONG_VIEW"),
            "erase_count": view.ERASE_COUNT,
            "erase_prob": view.ERASE_PROB,
            "erase_area": tuple(view.ERASE_AREA),
        }

    def __call__(self, image: np.ndarray) -> tuple[np.ndarray, torch.Tensor]:
        """
        Args:
            image: uint8 RGB H×W×3; not changed.

        Returns:
            the image, and the erased rectangles, int64 ``[r, 4]`` (XYXY, px), filled with the mean color.
        """
        rng = np.random.default_rng(np.random.randint(2**32, size=4, dtype=np.uint32))
        image = self.colors(image, rng).copy()
        mean = image.mean(axis=(0, 1))
        size = torch.empty(1).expand(3, *image.shape[:2])  # only its shape is read
        erased = []
        for _ in range(self.erase_count):
            if rng.random() >= self.erase_prob:
                continue
            y, x, height, width, _ = RandomErasing.get_params(size, self.erase_area, _RATIO, [0.0])
            if (height, width) == image.shape[:2]:  # no rectangle of such an area fits
                continue
            image[y : y + height, x : x + width] = mean
            erased.append([x, y, x + width, y + height])
        return image, torch.tensor(erased, dtype=torch.int64).reshape(-1, 4)


def build_rescale(cfg: CfgNode) -> RandomRescale:
    """The further scale of ``INPUT.STRONG_VIEW.SCALE_RANGE``.

    Raises:
        ValueError: if it is no range.
    """
    scales = tuple(cfg.INPUT.STRONG_VIEW.SCALE_RANGE)
    if len(scales) != 2 or not 0 < scales[0] <= scales[1]:
        raise ValueError(
            f"INPUT.STRONG_VIEW.SCALE_RANGE is {scales}; it must be (low, high) with 0 < low <= high."
        )
    return RandomRescale(scales)
