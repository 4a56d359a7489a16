"""Geometry of random query patches (UP-DETR, Section 3.1): pure functions on numbers."""

import numpy as np


def random_patch_boxes(
    rng: np.random.Generator, *, width: int, height: int, num_patches: int, min_size: int
) -> np.ndarray:
    """Draw boxes of query patches in an image, independently of each other; they may overlap and nest.

    With p = ``min_size``, a patch is sw px wide, sw uniform over the integers p … W − p inclusive, and
    begins at x uniform over the integers 0 … W − sw − 1; height and y likewise.

    Args:
        rng: source of the random numbers.
        width, height: size (px) of the image, both at least 2·``min_size``.
        num_patches: number M of boxes.
        min_size: shortest side (px) of a patch, at least 1.

    Returns:
        int64 M×4, XYXY in px, ``0 <= x0 < x1 <= width`` and ``0 <= y0 < y1 <= height``.

    Raises:
        ValueError: if the image is too small for patches of ``min_size``.
    """
    if min_size < 1 or min(width, height) < 2 * min_size:
        raise ValueError(
            f"An image of {width}x{height} px has no patches of INPUT.QUERY_PATCH.MIN_SIZE = {min_size} px: "
            "the size must be positive and at most half of the image's short side."
        )
    image_size = np.array([width, height])
    patch_sizes = rng.integers(min_size, image_size - min_size, size=(num_patches, 2), endpoint=True)
    corners = rng.integers(0, image_size - patch_sizes)
    return np.concatenate([corners, corners + patch_sizes], axis=1)
