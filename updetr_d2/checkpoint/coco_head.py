"""Rows of a COCO class head: the official code keeps COCO's category ids, we use contiguous ones.

Official DETR has a row for each id up to the largest (91 + "no object" for boxes, 250 + "no object" for
panoptic), most of them for ids that no category has. Ours has one for each category, in the order of
Detectron2's metadata: 80 things, then 53 stuff classes for panoptic, then "no object".
"""

import torch
from detectron2.data.datasets.builtin_meta import COCO_CATEGORIES

# Logit offset of a row that no category uses: its probability is 0 in fp32.
_UNUSED_BIAS = -100.0

_THING_IDS = [category["id"] for category in COCO_CATEGORIES if category["isthing"]]
_STUFF_IDS = [category["id"] for category in COCO_CATEGORIES if not category["isthing"]]
# Rows of the official head -> the rows that we keep, in our order.
_KEPT_ROWS = {
    92: [*_THING_IDS, 91],
    251: [*_THING_IDS, *_STUFF_IDS, 250],
}
_OFFICIAL_ROWS = {len(kept): official for official, kept in _KEPT_ROWS.items()}

Rows = dict[str, torch.Tensor]


def _unused(official_rows: int) -> list[int]:
    return sorted(set(range(official_rows)) - set(_KEPT_ROWS[official_rows]))


def to_contiguous(head: Rows) -> tuple[Rows, Rows | None]:
    """Keep the rows of COCO's categories, in contiguous order.

    Args:
        head: ``weight`` [rows, C] and ``bias`` [rows] of ``class_embed``.

    Returns:
        The head with 80 + 1 rows (from 91 + 1) or 133 + 1 rows (from 250 + 1) and the rows left out, in
        ascending order of id; for any other number of rows the head as it is and None.
    """
    rows = len(head["bias"])
    if rows not in _KEPT_ROWS:
        return head, None
    kept = {name: tensor[_KEPT_ROWS[rows]] for name, tensor in head.items()}
    unused = {name: tensor[_unused(rows)] for name, tensor in head.items()}
    return kept, unused


def to_official(head: Rows, unused: Rows | None) -> Rows:
    """Undo :func:`to_contiguous`.

    Args:
        head: ``weight`` [rows, C] and ``bias`` [rows] of ``class_embed``.
        unused: the rows that :func:`to_contiguous` left out; None if they were never there, in which case
            they get zero weights and so low a bias that their probability is 0.

    Returns:
        The head with 91 + 1 or 250 + 1 rows; for any other number of rows the head as it is.
    """
    official_rows = _OFFICIAL_ROWS.get(len(head["bias"]))
    if official_rows is None:
        return head
    official = {}
    for name, tensor in head.items():
        full = tensor.new_full((official_rows, *tensor.shape[1:]), _UNUSED_BIAS if name == "bias" else 0.0)
        full[_KEPT_ROWS[official_rows]] = tensor
        if unused is not None:
            full[_unused(official_rows)] = unused[name]
        official[name] = full
    return official
