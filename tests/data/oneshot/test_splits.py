"""Class splits of one-shot detection: VOC's and COCO's are those of the papers, own lists are checked."""

import pytest
from detectron2.config import get_cfg
from detectron2.data import MetadataCatalog
from detectron2.data.datasets.pascal_voc import CLASS_NAMES as VOC_CLASSES

from updetr_d2 import add_updetr_config
from updetr_d2.data.oneshot.splits import UNSEEN_CLASSES, class_split

# CoAE's and the paper's list, in VOC's spelling.
VOC_SEEN = (
    *("pottedplant", "sofa", "tvmonitor", "car", "bottle", "boat", "chair", "person", "bus", "train"),
    *("horse", "bicycle", "dog", "bird", "motorbike", "diningtable"),
)
NAMES = ("a", "b", "c", "d")


def make_cfg(split="", *, seen=(), unseen=()):
    cfg = get_cfg()
    add_updetr_config(cfg)
    cfg.DATASETS.ONESHOT.SPLIT = split
    cfg.DATASETS.ONESHOT.SEEN_CLASSES = seen
    cfg.DATASETS.ONESHOT.UNSEEN_CLASSES = unseen
    return cfg


def test_voc_split_is_the_papers():
    split = class_split(make_cfg("voc"), VOC_CLASSES)
    assert {VOC_CLASSES[i] for i in split.seen} == set(VOC_SEEN)
    assert {VOC_CLASSES[i] for i in split.unseen} == {"cow", "sheep", "cat", "aeroplane"}


def test_coco_splits_hold_out_every_fourth_class():
    """CoAE numbers the 80 classes from 1 and holds out those with number mod 4 = split mod 4."""
    names = MetadataCatalog.get("coco_2017_train").thing_classes
    for i in range(1, 5):
        split = class_split(make_cfg(f"coco_split{i}"), names)
        assert [number + 1 for number in split.unseen] == [n for n in range(1, 81) if n % 4 == i % 4]
        assert sorted((*split.seen, *split.unseen)) == list(range(80))
    assert UNSEEN_CLASSES["coco_split1"][:3] == ("person", "airplane", "boat")


def test_lists_name_classes_and_all_others_are_seen():
    split = class_split(make_cfg(unseen=("d", "b")), NAMES)
    assert (split.seen, split.unseen) == ((0, 2), (1, 3))


def test_classes_may_be_neither_seen_nor_unseen():
    split = class_split(make_cfg(seen=("c",), unseen=("a",)), NAMES)
    assert (split.seen, split.unseen) == ((2,), (0,))


@pytest.mark.parametrize(
    ("cfg", "message"),
    [
        (make_cfg("vok"), "SPLIT is 'vok'; use one of voc, coco_split1"),
        (make_cfg("voc", unseen=("a",)), "leave SEEN_CLASSES and UNSEEN_CLASSES empty"),
        (make_cfg("voc"), "names the class 'cow', which the data set does not have"),
        (make_cfg(unseen=("x",)), "names the class 'x'.* its classes are a, b, c, d"),
        (make_cfg(seen=("a", "b"), unseen=("b",)), "has b as seen and unseen"),
        (make_cfg(unseen=NAMES), "has no class as seen"),
    ],
)
def test_splits_that_do_not_fit_are_errors(cfg, message):
    with pytest.raises(ValueError, match=message):
        class_split(cfg, NAMES)
