"""Which classes one-shot detection sees in training and which are held out: built-in splits and own lists."""

from collections.abc import Sequence
from dataclasses import dataclass

from detectron2.config import CfgNode
from detectron2.data.datasets.builtin_meta import COCO_CATEGORIES

VOC_UNSEEN = ("cow", "sheep", "cat", "aeroplane")
NUM_COCO_SPLITS = 4


def _coco_unseen(split: int) -> tuple[str, ...]:
    """CoAE's split 1 … 4: every fourth class of COCO's 80, beginning with the first … fourth one."""
    things = [category["name"] for category in COCO_CATEGORIES if category["isthing"]]
    return tuple(things[split - 1 :: NUM_COCO_SPLITS])


# Name of a split -> its unseen classes; all other classes are seen.
UNSEEN_CLASSES: dict[str, tuple[str, ...]] = {
    "voc": VOC_UNSEEN,
    **{f"coco_split{i}": _coco_unseen(i) for i in range(1, NUM_COCO_SPLITS + 1)},
}


@dataclass(frozen=True)
class ClassSplit:
    """Contiguous class ids of a data set, in ascending order.

    Attributes:
        seen: classes of training.
        unseen: classes held out.
    """

    seen: tuple[int, ...]
    unseen: tuple[int, ...]


def class_split(cfg: CfgNode, class_names: Sequence[str]) -> ClassSplit:
    """The split of ``DATASETS.ONESHOT`` for a data set's classes.

    Args:
        cfg: ``DATASETS.ONESHOT.{SPLIT, SEEN_CLASSES, UNSEEN_CLASSES}`` are read.
        class_names: of the data set, in the order of the contiguous ids.

    Raises:
        ValueError: if the split or one of its classes does not exist, a class is seen and unseen, or none is
            seen.
    """
    oneshot = cfg.DATASETS.ONESHOT
    seen, unseen = tuple(oneshot.SEEN_CLASSES), tuple(oneshot.UNSEEN_CLASSES)
    if oneshot.SPLIT:
        if oneshot.SPLIT not in UNSEEN_CLASSES:
            raise ValueError(
                f"DATASETS.ONESHOT.SPLIT is '{oneshot.SPLIT}'; use one of {', '.join(UNSEEN_CLASSES)}, or '' "
                "with lists of classes."
            )
        if seen or unseen:
            raise ValueError(
                f"DATASETS.ONESHOT.SPLIT '{oneshot.SPLIT}' names the classes; leave SEEN_CLASSES and "
                "UNSEEN_CLASSES empty, or set SPLIT to ''."
            )
        unseen = UNSEEN_CLASSES[oneshot.SPLIT]
    seen = seen or tuple(name for name in class_names if name not in unseen)
    for name in (*seen, *unseen):
        if name not in class_names:
            raise ValueError(
                f"DATASETS.ONESHOT names the class '{name}', which the data set does not have; its classes "
                f"are {', '.join(class_names)}."
            )
    both = sorted(set(seen) & set(unseen))
    if both or not seen:
        raise ValueError(
            f"DATASETS.ONESHOT has {', '.join(both) or 'no class'} as seen"
            f"{' and unseen' if both else ''}: every class must be one of the two, at least one seen."
        )
    return ClassSplit(*(tuple(sorted(class_names.index(name) for name in names)) for names in (seen, unseen)))
