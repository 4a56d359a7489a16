"""Which annotations of a COCO file need no repair, found for many at once.

Most files hold hardly anything else, and asking each field of a million annotations by itself takes longer than
reading them. Whatever is not plain at a glance is left to :mod:`.annotation_repair`: nothing here decides what is
wrong.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from itertools import chain
from typing import Any

import numpy as np

from updetr_d2.data.datasets.annotation_repair import CLIP_TOLERANCE, MAX_ID, id_key, usable_mask

_BLOCK = 256  # one annotation that is not plain sends so many to the slow path
_NUMBERS = {int, float}


def plain_places(annotations: Sequence[dict], images: Sequence[dict | None]) -> set[int]:
    """Places of annotations that :func:`.annotation_repair.repair_fields` would return as they are.

    Args:
        annotations: as in the file.
        images: the repaired image of each annotation, None if it has none.

    Returns:
        Not all such places, but no other.
    """
    places = [place for place, image in enumerate(images) if image is not None]
    plain: set[int] = set()
    for begin in range(0, len(places), _BLOCK):
        block = places[begin : begin + _BLOCK]
        block_images = [image for place in block if (image := images[place]) is not None]
        if _are_plain([annotations[place] for place in block], block_images):
            plain.update(block)
    return plain


def have_plain_ids(
    annotations: Sequence[dict], images: Mapping[str, dict], categories: Mapping[str, dict]
) -> bool:
    """Whether all annotations have ids of their own, and name images and categories as these lists do.

    Args:
        annotations: as in the file.
        images, categories: repaired, by the :func:`.annotation_repair.id_key` of the id in the file.
    """
    ids: list[Any] = [annotation.get("id") for annotation in annotations]
    image_ids = [annotation.get("image_id") for annotation in annotations]
    category_ids = [annotation.get("category_id") for annotation in annotations]
    return (
        _types(ids) <= {int}
        and len(set(ids)) == len(ids)
        and (not ids or (min(ids) > 0 and max(ids) < MAX_ID))
        and _types(image_ids) <= {int, str}
        and set(image_ids) <= _unchanged_ids(images)
        and _types(category_ids) <= {int}
        and set(category_ids) <= _unchanged_ids(categories)
    )


def _unchanged_ids(entries: Mapping[str, dict]) -> set:
    return {entry["id"] for key, entry in entries.items() if id_key(entry["id"]) == key}


def _are_plain(annotations: Sequence[dict], images: Sequence[dict]) -> bool:
    """Whether all of the annotations are plain."""
    if any("ignore" in annotation for annotation in annotations):
        return False
    try:
        boxes, areas, flags = ([each[key] for each in annotations] for key in ("bbox", "area", "iscrowd"))
    except KeyError:
        return False
    masks = [
        (each["segmentation"], image) for each, image in zip(annotations, images) if "segmentation" in each
    ]
    points = [each["keypoints"] for each in annotations if each.get("keypoints") is not None]
    return (
        _types(flags) == {int}
        and set(flags) <= {0, 1}
        and _hold_numbers([areas])
        and min(areas) >= 0
        and _are_boxes_inside(boxes, images)
        and _are_polygons([mask for mask, _ in masks if type(mask) is list])
        and all(_is_good_mask(mask, image) for mask, image in masks if type(mask) is not list)
        and _hold_numbers(points)
    )


def _are_boxes_inside(boxes: list, images: Sequence[dict]) -> bool:
    """Whether all are boxes (XYWH) with something of them inside, and hardly anything outside, of their images."""
    if not _hold_numbers(boxes) or set(map(len, boxes)) != {4}:
        return False
    x, y, width, height = np.array(boxes, np.float64).T
    image_width, image_height = np.array(
        [(image["width"], image["height"]) for image in images], np.float64
    ).T
    with np.errstate(over="ignore"):  # sums of huge numbers are outside
        inside = (width > 0) & (height > 0)
        inside &= np.minimum(x + width, image_width) > np.maximum(x, 0)
        inside &= np.minimum(y + height, image_height) > np.maximum(y, 0)
        stands_out = np.max([-x, -y, x + width - image_width, y + height - image_height], axis=0)
    return bool((inside & (stands_out <= CLIP_TOLERANCE)).all())


def _are_polygons(masks: list[list]) -> bool:
    """Whether all are lists of one or more polygons of three or more points."""
    polygons = list(chain.from_iterable(masks))
    return (
        all(masks)
        and _hold_numbers(polygons)
        and all(size >= 6 and size % 2 == 0 for size in set(map(len, polygons)))
    )


def _is_good_mask(mask: object, image: dict) -> bool:
    return mask is not None and usable_mask(mask, image) is mask


def _hold_numbers(lists: list) -> bool:
    """Whether all are lists of finite numbers."""
    if not _types(lists) <= {list} or not _types(chain.from_iterable(lists)) <= _NUMBERS:
        return False
    try:
        return all(map(math.isfinite, chain.from_iterable(lists)))
    except OverflowError:  # an integer that is no float
        return False


def _types(values: Iterable) -> set[type]:
    return set(map(type, values))
