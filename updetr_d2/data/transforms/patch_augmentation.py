"""SimCLR-style augmentation of query patches (UP-DETR, Section 3.1; Chen et al., arXiv 2002.05709).

The operations follow torchvision's definitions for 8-bit images, on small NumPy arrays with OpenCV, each in
one or few passes without Python's own arithmetic on pixels: several times as fast as Pillow, and no threads.
"""

from collections.abc import Callable
from typing import NamedTuple

import cv2
import numpy as np
from detectron2.config import CfgNode, configurable

from updetr_d2.config.access import get_value

# OpenCV rounds to the nearest integer; with this offset it rounds down, as torchvision does, but keeps integers.
_ROUND_DOWN = -0.499


def adjust_brightness(image: np.ndarray, factor: float) -> np.ndarray:
    """Multiply uint8 H×W×3 by ``factor`` (0 gives black, 1 the image), clipped."""
    return cv2.convertScaleAbs(image, alpha=factor, beta=_ROUND_DOWN)


def adjust_contrast(image: np.ndarray, factor: float) -> np.ndarray:
    """Blend uint8 RGB H×W×3 with its mean gray (0 gives the gray, 1 the image), clipped."""
    mean = np.ravel(cv2.mean(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)))[0].item()
    return cv2.addWeighted(image, factor, image, 0, mean * (1 - factor) + _ROUND_DOWN)


def adjust_saturation(image: np.ndarray, factor: float) -> np.ndarray:
    """Blend uint8 RGB H×W×3 with its grayscale version (0 gives grayscale, 1 the image), clipped."""
    return cv2.addWeighted(image, factor, to_grayscale(image), 1 - factor, _ROUND_DOWN)


def adjust_hue(image: np.ndarray, shift: float) -> np.ndarray:
    """Turn the hue of uint8 RGB H×W×3 by ``shift`` turns (-0.5 … 0.5)."""
    # In float: eight bits for the hue would move colors by several gray levels.
    pixels = image.astype(np.float32)
    cv2.cvtColor(pixels, cv2.COLOR_RGB2HSV, dst=pixels)
    # OpenCV takes hues of more than 360 degrees as they are meant, but no negative ones. Its own addition of a
    # scalar takes 17 times as long as all the rest since version 4.12.
    pixels[..., 0] += 360 * (shift % 1)
    cv2.cvtColor(pixels, cv2.COLOR_HSV2RGB, dst=pixels)
    return cv2.convertScaleAbs(pixels)


def to_grayscale(image: np.ndarray) -> np.ndarray:
    """Return the ITU-R 601 luma of uint8 RGB H×W×3 in all three channels."""
    return cv2.cvtColor(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB)


def gaussian_blur(image: np.ndarray, sigma: float) -> np.ndarray:
    """Blur uint8 H×W×3 with a Gaussian of standard deviation ``sigma`` px; the border pixels extend outwards."""
    # Twice as fast as cv2.GaussianBlur, which computes in 16-bit fixed-point numbers for 8-bit images.
    radius = max(1, round(3 * sigma))
    kernel = cv2.getGaussianKernel(2 * radius + 1, sigma, cv2.CV_32F)
    blurred = cv2.sepFilter2D(image, cv2.CV_32F, kernel, kernel, borderType=cv2.BORDER_REPLICATE)
    return cv2.convertScaleAbs(blurred)


class PatchChanges(NamedTuple):
    """What is done to a patch.

    Attributes:
        operations: numbers of the operations of the color jitter (brightness, contrast, saturation, hue) in their
            order; empty for none.
        factors: their factors or, for the hue, its shift.
        grayscale: whether the colors go.
        blur_sigma: standard deviation (px) of the blur, 0 for none.
    """

    operations: tuple[int, ...]
    factors: tuple[float, ...]
    grayscale: bool
    blur_sigma: float

    def as_row(self) -> list[float]:
        """The form of :func:`updetr_d2.modeling.device_patches.augment`."""
        operations, factors = self.operations or (-1,) * 4, self.factors or (1.0,) * 4
        return [*map(float, operations), *factors, float(self.grayscale), self.blur_sigma]


class PatchAugmentation:
    """Color jitter, grayscale and Gaussian blur, each with its probability, in this order.

    There is no flip: a patch must look like the part of the image that it was cut from.

    Args:
        jitter_prob: probability of the color jitter.
        brightness, contrast, saturation: each factor is uniform in ``[max(0, 1 - s), 1 + s]``.
        hue: the hue's shift is uniform in ``[-hue, hue]`` turns, at most 0.5.
        grayscale_prob: probability of grayscale.
        blur_prob: probability of the blur.
        blur_sigma: range (px) that the blur's standard deviation is drawn from uniformly.
        key: group of config keys that the values come from.
    """

    @configurable
    def __init__(
        self,
        *,
        jitter_prob: float,
        brightness: float,
        contrast: float,
        saturation: float,
        hue: float,
        grayscale_prob: float,
        blur_prob: float,
        blur_sigma: tuple[float, float],
        key: str = "INPUT.QUERY_PATCH",
    ) -> None:
        probabilities = {
            "COLOR_JITTER_PROB": jitter_prob,
            "GRAYSCALE_PROB": grayscale_prob,
            "BLUR_PROB": blur_prob,
        }
        for name, value in probabilities.items():
            if not 0 <= value <= 1:
                raise ValueError(f"{key}.{name} = {value} is no probability: use 0 ... 1.")
        strengths = {"BRIGHTNESS": brightness, "CONTRAST": contrast, "SATURATION": saturation, "HUE": hue}
        for name, value in strengths.items():
            if value < 0 or (name == "HUE" and value > 0.5):
                raise ValueError(f"{key}.{name} = {value} is out of range: use 0 or more, for HUE 0 ... 0.5.")
        if len(blur_sigma) != 2 or not 0 < blur_sigma[0] <= blur_sigma[1]:
            raise ValueError(
                f"{key}.BLUR_SIGMA = {blur_sigma} is no range: use (low, high) in px with 0 < low."
            )
        self.jitter_prob = jitter_prob
        self.grayscale_prob = grayscale_prob
        self.blur_prob = blur_prob
        self.blur_sigma = blur_sigma
        self._jitter: tuple[tuple[Callable, tuple[float, float]], ...] = (
            (adjust_brightness, (max(0.0, 1 - brightness), 1 + brightness)),
            (adjust_contrast, (max(0.0, 1 - contrast), 1 + contrast)),
            (adjust_saturation, (max(0.0, 1 - saturation), 1 + saturation)),
            (adjust_hue, (-hue, hue)),
        )

    @classmethod
    def from_config(cls, cfg: CfgNode, key: str = "INPUT.QUERY_PATCH") -> dict:
        patch = get_value(cfg, key)
        return {
            "key": key,
            "jitter_prob": patch.COLOR_JITTER_PROB,
            "brightness": patch.BRIGHTNESS,
            "contrast": patch.CONTRAST,
            "saturation": patch.SATURATION,
            "hue": patch.HUE,
            "grayscale_prob": patch.GRAYSCALE_PROB,
            "blur_prob": patch.BLUR_PROB,
            "blur_sigma": tuple(patch.BLUR_SIGMA),
        }

    def __call__(self, patch: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Augment one patch.

        Args:
            patch: uint8 H×W×3, RGB; not changed.
            rng: source of the random numbers.

        Returns:
            uint8 H×W×3, RGB.
        """
        changes = self.draw(rng)
        for operation, factor in zip(changes.operations, changes.factors):
            patch = self._jitter[operation][0](patch, factor)
        if changes.grayscale:
            patch = to_grayscale(patch)
        if changes.blur_sigma:
            patch = gaussian_blur(patch, changes.blur_sigma)
        return patch

    def draw(self, rng: np.random.Generator) -> PatchChanges:
        """Draw what is done to one patch."""
        operations: tuple[int, ...] = ()
        factors: tuple[float, ...] = ()
        if rng.random() < self.jitter_prob:
            operations = tuple(rng.permutation(len(self._jitter)).tolist())
            factors = tuple(rng.uniform(*self._jitter[i][1]) for i in operations)
        grayscale = bool(rng.random() < self.grayscale_prob)
        blur_sigma = rng.uniform(*self.blur_sigma) if rng.random() < self.blur_prob else 0.0
        return PatchChanges(operations, factors, grayscale, blur_sigma)
