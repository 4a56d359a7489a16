"""What each task decides: query patches of prediction, class counting, hooks, tabs of the demo page."""

import pytest
from helpers import tiny_cfg

from updetr_d2.tasks import TASKS, QueryPatches, task_of
from updetr_d2.tasks.pretraining import QueryPatchPictures


def test_only_tasks_with_query_patches_say_how_they_are_cut():
    margin = ("DATASETS.ONESHOT.CONTEXT_MARGIN", 0.25, "INPUT.QUERY_PATCH.SIZE", 96)
    wanted = {name: task_of(cfg).query_patches(cfg) for name, cfg in configs(*margin).items()}
    assert wanted == {
        "DETR": None,
        "PanopticDETR": None,
        "UPDETR": QueryPatches(size=96, limit=5, limit_key="MODEL.UPDETR.NUM_PATCHES"),
        "OneShotDETR": QueryPatches(size=96, margin=0.25),
    }


def test_only_detectors_of_the_data_s_classes_count_them():
    keys = {name: task_of(cfg).num_classes_key(cfg) for name, cfg in configs().items()}
    assert keys == {
        "DETR": "MODEL.DETR.NUM_CLASSES",
        "PanopticDETR": "MODEL.DETR.NUM_CLASSES",
        "UPDETR": None,
        "OneShotDETR": None,
    }


@pytest.mark.parametrize(("period", "count"), [(0, 0), (10, 1)])
def test_only_pretraining_draws_while_it_trains(period, count):
    for name, cfg in configs("VIS_PERIOD", period).items():
        hooks = task_of(cfg).training_hooks(cfg)
        assert len(hooks) == (count if name == "UPDETR" else 0)
        assert all(isinstance(hook, QueryPatchPictures) for hook in hooks)


def test_tabs_of_the_demo_page():
    assert {name: task.tabs for name, task in TASKS} == {
        "detection": ("detection",),
        "panoptic": ("detection", "panoptic"),
        "pretraining": ("patches",),
        "oneshot": ("one_shot",),
        "semi_supervised_detection": ("detection",),
    }


def test_names_of_what_query_patches_find():
    cfg = tiny_cfg("UPDETR")
    classes = task_of(cfg).predicted_classes(cfg, 2)
    assert classes.categories(0) == [{"id": 1, "name": "patch 1"}, {"id": 2, "name": "patch 2"}]
    cfg = tiny_cfg("OneShotDETR")
    assert task_of(cfg).predicted_classes(cfg, 3).categories(0) == [{"id": 1, "name": "query"}]


def configs(*options):
    return {name: tiny_cfg(name, *options) for name in ("DETR", "PanopticDETR", "UPDETR", "OneShotDETR")}
