"""Which task an architecture has, and what those get that name none."""

import logging

import pytest
from detectron2.data import DatasetMapper
from detectron2.modeling import META_ARCH_REGISTRY, GeneralizedRCNN, PanopticFPN
from helpers import tiny_cfg
from torch import nn

from updetr_d2.modeling.meta_arch import DETR, UPDETR, OneShotDETR, PanopticDETR
from updetr_d2.tasks import TASKS, Task, build_mapper, check_config, task_of
from updetr_d2.tasks.base import task_of_architecture


@pytest.mark.parametrize(
    ("base", "name"),
    [(DETR, "detection"), (UPDETR, "pretraining"), (PanopticDETR, "panoptic"), (OneShotDETR, "oneshot")],
)
def test_subclasses_inherit_the_task(base, name):
    subclass = type("Sub", (base,), {})
    assert task_of_architecture(subclass) is TASKS.get(name)
    assert task_of(tiny_cfg(base.__name__)) is TASKS.get(name)
    assert TASKS.get(name).name == name


def test_a_task_that_is_not_registered_is_named():
    subclass = type("Sub", (DETR,), {"task": "tracking"})
    with pytest.raises(ValueError, match=r"Sub\.task is 'tracking', .*use one of detection, oneshot"):
        task_of_architecture(subclass)


def test_an_architecture_that_does_not_exist_is_named():
    with pytest.raises(ValueError, match=r"MODEL\.META_ARCHITECTURE is 'DERT'; use one of"):
        task_of(tiny_cfg("DERT"))


@pytest.mark.parametrize("name", ["GeneralizedRCNN", "RetinaNet", "PanopticFPN"])
def test_detectron2_s_models_get_detectron2_s_parts_without_a_warning(name, caplog):
    cfg = tiny_cfg(name)
    with caplog.at_level(logging.WARNING, "updetr_d2"):
        assert type(task_of(cfg)) is Task
        assert type(build_mapper(cfg, is_train=True)) is DatasetMapper
    assert not caplog.records


def test_an_unknown_architecture_gets_detectron2_s_parts_and_one_warning(caplog):
    stranger = type("Stranger", (nn.Module,), {})
    with caplog.at_level(logging.WARNING, "updetr_d2"):
        assert type(task_of_architecture(stranger)) is Task
        task_of_architecture(stranger)
    (record,) = caplog.records
    assert "Stranger names no task" in record.message


def test_only_r_cnns_count_the_classes_for_their_box_head(monkeypatch):
    key = "MODEL.ROI_HEADS.NUM_CLASSES"
    subclass = type("SubRCNN", (GeneralizedRCNN,), {})
    assert PanopticFPN.__base__ is GeneralizedRCNN  # things and stuff have numbers of their own
    for architecture, expected in (("GeneralizedRCNN", key), ("PanopticFPN", None), ("RetinaNet", None)):
        cfg = tiny_cfg(architecture)
        assert task_of(cfg).num_classes_key(cfg) == expected
    monkeypatch.setattr(META_ARCH_REGISTRY, "get", lambda name: subclass)
    cfg = tiny_cfg("GeneralizedRCNN")
    assert task_of(cfg).num_classes_key(cfg) == key


def test_checks_of_a_task_are_asked_after_the_common_ones():
    """Pre-training does not read DETR_CROP, and detection does not read the patches."""
    wrong = ("INPUT.QUERY_PATCH.HUE", 2.0)
    check_config(tiny_cfg("DETR", *wrong))
    with pytest.raises(ValueError, match="HUE"):
        check_config(tiny_cfg("UPDETR", *wrong))
    with pytest.raises(ValueError, match="IMS_PER_BATCH"):
        check_config(tiny_cfg("GeneralizedRCNN", "SOLVER.IMS_PER_BATCH", 0))
