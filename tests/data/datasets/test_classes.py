"""The number of classes comes from the data set or agrees with it, before anything is built."""

import pytest
from detectron2.config import get_cfg
from detectron2.data import DatasetCatalog, MetadataCatalog

from updetr_d2 import add_updetr_config
from updetr_d2.data.datasets.classes import check_trained_classes
from updetr_d2.tasks import task_of


def make_cfg(meta_architecture="DETR", num_classes=0):
    cfg = get_cfg()
    add_updetr_config(cfg)
    cfg.MODEL.META_ARCHITECTURE = meta_architecture
    cfg.MODEL.DETR.NUM_CLASSES = num_classes
    cfg.MODEL.ROI_HEADS.NUM_CLASSES = num_classes
    return cfg


def derive_num_classes(cfg, dataset_names):
    return task_of(cfg).derive_num_classes(cfg, dataset_names)


def check_class_ids(cfg, dataset_dicts):
    task_of(cfg).check_training_set(cfg, dataset_dicts)


@pytest.fixture
def register():
    names = []

    def register(name, classes):
        DatasetCatalog.register(name, list)
        MetadataCatalog.get(name).set(**({"thing_classes": classes} if classes else {}))
        names.append(name)
        return name

    yield register
    for name in names:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)


def test_zero_takes_the_number_from_the_training_set(register):
    name = register("three_classes", ["a", "b", "c"])
    cfg = make_cfg()
    cfg.freeze()
    derived = derive_num_classes(cfg, (name,))
    assert derived.MODEL.DETR.NUM_CLASSES == 3
    assert derived.is_frozen()
    assert cfg.MODEL.DETR.NUM_CLASSES == 0


def test_right_number_is_accepted(register):
    assert (
        derive_num_classes(make_cfg(num_classes=2), (register("two", ["a", "b"]),)).MODEL.DETR.NUM_CLASSES
        == 2
    )


@pytest.mark.parametrize(
    ("meta_architecture", "key"),
    [("DETR", "MODEL.DETR.NUM_CLASSES"), ("GeneralizedRCNN", "MODEL.ROI_HEADS.NUM_CLASSES")],
)
def test_wrong_number_names_the_key(register, meta_architecture, key):
    name = register("two", ["cat", "dog"])
    with pytest.raises(ValueError, match=rf"{key} is 80, but 'two' has 2 classes \(cat, dog\)"):
        derive_num_classes(make_cfg(meta_architecture, 80), (name,))


@pytest.mark.parametrize("num_classes", [0, 3])
def test_panoptic_models_are_told_which_classes_are_things(register, num_classes):
    """In the config, and so in the run's config.yaml: later the training set may be somewhere else."""
    name = register("two_things_and_a_stuff", ["a", "b", "c"])
    MetadataCatalog.get(name).set(thing_dataset_id_to_contiguous_id={3: 0, 7: 1})
    derived = derive_num_classes(make_cfg("PanopticDETR", num_classes), (name,))
    assert (derived.MODEL.DETR.NUM_CLASSES, derived.MODEL.MASK_HEAD.NUM_THING_CLASSES) == (3, 2)
    assert derive_num_classes(derived, (name,)) is derived
    derived.MODEL.MASK_HEAD.NUM_THING_CLASSES = 1
    assert derive_num_classes(derived, (name,)) is derived  # the user's own


def test_faster_rcnn_takes_its_number_too(register):
    derived = derive_num_classes(make_cfg("GeneralizedRCNN"), (register("two", ["a", "b"]),))
    assert derived.MODEL.ROI_HEADS.NUM_CLASSES == 2


def test_training_and_test_sets_must_have_the_same_classes(register):
    names = register("train", ["cat", "dog"]), register("test", ["cat", "cow"])
    with pytest.raises(ValueError, match="'train' and 'test' have different classes"):
        derive_num_classes(make_cfg(), names)


def test_data_set_without_classes_is_refused(register):
    with pytest.raises(ValueError, match="'unlabelled' in DATASETS has no classes"):
        derive_num_classes(make_cfg(), (register("unlabelled", None),))


def test_pretraining_has_classes_of_its_own(register):
    cfg = make_cfg("UPDETR", 2)
    assert derive_num_classes(cfg, (register("unlabelled", None),)) is cfg


def labelled(*category_ids):
    return {"file_name": "a.jpg", "annotations": [{"category_id": i} for i in category_ids]}


def test_class_ids_must_be_below_the_number_of_classes():
    cfg = make_cfg(num_classes=2)
    check_class_ids(cfg, [labelled(0, 1), labelled()])
    with pytest.raises(ValueError, match=r"a.jpg has an object of class 2, but MODEL.DETR.NUM_CLASSES = 2"):
        check_class_ids(cfg, [labelled(0, 1), labelled(2)])
    with pytest.raises(ValueError, match="class -1"):
        check_class_ids(cfg, [labelled(-1)])


def test_images_without_any_object_are_no_training_set():
    with pytest.raises(ValueError, match="not a single object"):
        check_class_ids(make_cfg(num_classes=2), [labelled(), labelled()])
    check_class_ids(make_cfg("UPDETR", 2), [{"file_name": "a.jpg"}])


def test_the_same_classes_in_another_order_are_said_to_be_that(register):
    """Numbers of a COCO file follow the ids of its categories."""
    train, test = register("train", ["a", "b", "c"]), register("test", ["a", "c", "b"])
    with pytest.raises(
        ValueError, match=r"same classes in different orders \(class 1 is 'b' and 'c'\).*the ids of"
    ):
        derive_num_classes(make_cfg(), (train, test))


def test_weights_of_the_same_classes_in_another_order_are_refused(register):
    test = register("test", ["a", "b", "c"])
    check_trained_classes(["a", "b", "c"], test, weights="model.pth")
    check_trained_classes([], test, weights="official.pth")
    with pytest.raises(
        ValueError, match=r"MODEL\.WEIGHTS 'model\.pth' .*\(class 1 is 'c' and 'b'\).*in another order"
    ):
        check_trained_classes(["a", "c", "b"], test, weights="model.pth")


def test_other_names_for_as_many_classes_are_told_only(register, caplog):
    check_trained_classes(["a", "b"], register("test", ["a", "B"]), weights="model.pth")
    assert "class 1 is 'b' and 'B'" in caplog.text and "right if these are other names" in caplog.text
