"""Rows of tensors that have one for each of COCO's classes: the official code keeps the ids, ours are contiguous.

Official models have a row for each id up to the largest, most of them for ids that no category has: 91 for boxes,
250 for panoptic, and "no object" after them where the class loss is a softmax. Ours have one for each category, in
the order of Detectron2's metadata: 80 things, then 53 stuff classes for panoptic, then "no object".
"""

import re
from collections.abc import Iterable, Mapping

from detectron2.data.datasets.builtin_meta import COCO_CATEGORIES
from torch import Tensor

# Logit of a class that no category has: its probability is 0 in float32.
_UNUSED_BIAS = -100.0

_THING_IDS = [category["id"] for category in COCO_CATEGORIES if category["isthing"]]
_STUFF_IDS = [category["id"] for category in COCO_CATEGORIES if not category["isthing"]]

# Number of official rows -> those that we keep, in our order.
RowOrders = Mapping[int, list[int]]
_WITH_NO_OBJECT: RowOrders = {92: [*_THING_IDS, 91], 251: [*_THING_IDS, *_STUFF_IDS, 250]}
_FOCAL: RowOrders = {91: _THING_IDS}
# The encoder of two-stage Deformable DETR ranks its proposals by row 0, which must stay where it is. Nothing
# reads its other rows; the 79 kept ones are those of the categories after the first.
_PROPOSALS: RowOrders = {91: [0, *_THING_IDS[1:]]}

_FOCAL_HEAD = re.compile(r"(transformer\.enc_out_)?class_embed\.((?P<number>\d+)\.)?(weight|bias)")


def class_rows(names: Iterable[str]) -> dict[str, RowOrders]:
    """The tensors that have a row for each class.

    Args:
        names: of all tensors of a model of ours.

    Returns:
        name of a tensor -> the orders that its rows may have.
    """
    names = set(names)
    if "transformer.level_embed" not in names:  # DETR
        return {name: _WITH_NO_OBJECT for name in ("class_embed.weight", "class_embed.bias") if name in names}
    heads = {name: match for name in sorted(names) if (match := _FOCAL_HEAD.fullmatch(name))}
    orders = dict.fromkeys(heads, _FOCAL)
    if "transformer.enc_output.weight" in names:
        numbers = {name: int(match["number"]) for name, match in heads.items() if match["number"]}
        encoder_head = max(numbers.values(), default=None)
        orders |= {name: _PROPOSALS for name, number in numbers.items() if number == encoder_head}
    if "label_enc.weight" in names:
        orders["label_enc.weight"] = _WITH_NO_OBJECT
    return orders


def to_contiguous(tensor: Tensor, orders: RowOrders) -> tuple[Tensor, Tensor | None]:
    """Keep the rows of COCO's categories, in contiguous order.

    Args:
        tensor: ``[rows, ...]``.
        orders: its entry of :func:`class_rows`.

    Returns:
        The kept rows (such as 80 of 91) and the others, in ascending order of id; for any other number of rows
        the tensor as it is and None.
    """
    order = orders.get(len(tensor))
    if order is None:
        return tensor, None
    return tensor[order], tensor[_unused(len(tensor), order)]


def to_official(tensor: Tensor, unused: Tensor | None, orders: RowOrders) -> Tensor:
    """Undo :func:`to_contiguous`.

    Args:
        tensor: ``[rows, ...]``.
        unused: the rows that :func:`to_contiguous` left out; None if they were never there, in which case weights
            get 0 and a bias so low that the probability is 0.
        orders: its entry of :func:`class_rows`.

    Returns:
        The tensor with all official rows; for any other number of rows the tensor as it is.
    """
    official = {len(order): (rows, order) for rows, order in orders.items()}
    if len(tensor) not in official:
        return tensor
    rows, order = official[len(tensor)]
    full = tensor.new_full((rows, *tensor.shape[1:]), _UNUSED_BIAS if tensor.dim() == 1 else 0.0)
    full[order] = tensor
    if unused is not None:
        full[_unused(rows, order)] = unused
    return full


def _unused(rows: int, order: list[int]) -> list[int]:
    return sorted(set(range(rows)) - set(order))
