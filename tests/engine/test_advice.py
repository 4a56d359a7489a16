"""Each warning about a run that would be worth nothing comes for such a run, and not for a sound one."""

import logging
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
from detectron2.data import DatasetCatalog
from detectron2.utils.events import EventStorage
from helpers import tiny_cfg
from PIL import Image
from tiny_coco import forget_runs, write_tiny_coco

from updetr_d2 import get_config
from updetr_d2.data.datasets.classes import advise_empty_images, advise_queries
from updetr_d2.data.datasets.names import ensure_registered
from updetr_d2.engine import advice
from updetr_d2.engine.trainer import UPDETRTrainer


@pytest.fixture(autouse=True)
def registered():
    before = set(DatasetCatalog)
    yield
    forget_runs(before)


@pytest.fixture
def warnings(caplog):
    """The warnings so far; each is asked for once."""
    caplog.set_level(logging.WARNING)

    def take():
        found = [record.getMessage() for record in caplog.records]
        caplog.clear()
        return found

    return take


def schedule(max_iter, *, batch=2, images=100, advised=1000):
    options = ("SOLVER.MAX_ITER", max_iter, "SOLVER.IMS_PER_BATCH", batch, "SOLVER.ADVISED_ITERS", advised)
    advice.advise_schedule(tiny_cfg("DETR", *options), images)


def test_runs_of_few_iterations(warnings):
    schedule(999)
    (warning,) = warnings()
    assert "999 iterations" in warning and "SOLVER.MAX_ITER" in warning
    schedule(1000)
    schedule(6, advised=0)
    assert not warnings()


@pytest.mark.parametrize(
    "recipe",
    ["custom/few_label_lite0.yaml", "custom/mean_teacher_lite0.yaml", "custom/faster_rcnn_lite0.yaml"],
)
def test_recipes_that_are_meant_to_be_short_are_silent_until_they_are_made_shorter(recipe, warnings):
    cfg = get_config(recipe)
    advice.advise_schedule(cfg, 60)
    assert not warnings()
    cfg.SOLVER.MAX_ITER = 6
    advice.advise_schedule(cfg, 60)
    assert "6 iterations" in warnings()[0]


@pytest.mark.parametrize(("unlabeled", "burn_in", "said"), [(True, 60, 1), (True, 59, 0), (False, 60, 0)])
def test_a_burn_in_that_leaves_nothing_for_unlabeled_images(unlabeled, burn_in, said, warnings):
    cfg = tiny_cfg("DETR", "SOLVER.MAX_ITER", 60, "SOLVER.MEAN_TEACHER.BURN_IN_ITERS", burn_in)
    cfg.SOLVER.ADVISED_ITERS = 0
    cfg.DATASETS.UNLABELED = ("folder:photos",) if unlabeled else ()
    advice.advise_schedule(cfg, 100)
    assert sum("BURN_IN_ITERS is 60 and the run has 60" in each for each in warnings()) == said


def test_a_batch_larger_than_the_data(warnings):
    schedule(1000, batch=16, images=15)
    (warning,) = warnings()
    assert "IMS_PER_BATCH is 16" in warning and "15 images" in warning
    schedule(1000, batch=16, images=16)
    assert not warnings()


def dicts(paths):
    return [{"file_name": str(path)} for path in paths]


def write_images(folder, seeds, *, suffix=".bmp"):
    """Bitmaps of one size have files of one size as well."""
    folder.mkdir()
    paths = []
    for seed in seeds:
        pixels = np.random.default_rng(seed).integers(0, 256, (100, 100, 3), dtype=np.uint8)
        paths.append(folder / f"{seed}{suffix}")
        Image.fromarray(pixels).save(paths[-1])
    return paths


def test_test_images_that_are_trained_on_are_found_by_path_and_by_content(tmp_path, warnings):
    train = write_images(tmp_path / "train", range(6))
    test = write_images(tmp_path / "test", range(10, 14))
    advice.advise_held_out("mine", dicts(test), dicts(train))
    assert not warnings()
    shutil.copy(train[2], test[0])
    assert advice.shared_images(dicts(train), dicts(test)) == [str(test[0])]
    advice.advise_held_out("mine", dicts([*test, train[3]]), dicts(train))
    (warning,) = warnings()
    assert "2 of the 5 images of 'mine'" in warning and str(train[3]) in warning


def test_files_that_differ_in_one_place_are_different_images(tmp_path):
    (train,) = write_images(tmp_path / "train", [0])
    test = tmp_path / "test.bmp"
    for place in (100, train.stat().st_size // 2, -1):
        content = bytearray(train.read_bytes())
        content[place] ^= 255
        test.write_bytes(content)
        assert not advice.shared_images(dicts([train]), dicts([test]))


def test_in_a_large_training_set_copies_are_found_by_their_name(tmp_path, monkeypatch):
    monkeypatch.setattr(advice, "_MOST_SIZES", 3)
    train = write_images(tmp_path / "train", range(6))
    (tmp_path / "test").mkdir()
    copies = [
        shutil.copy(train[4], tmp_path / "test" / "4.bmp"),
        shutil.copy(train[3], tmp_path / "test" / "else.bmp"),
    ]
    assert advice.shared_images(dicts(train), dicts(copies)) == [str(copies[0])]


def test_images_that_are_no_files_are_compared_by_name():
    train = dicts(["shard:///a.tar::0.jpg#512+9", "/nowhere/0.jpg"])
    assert advice.shared_images(train, train[:1]) == [train[0]["file_name"]]
    assert not advice.shared_images(train, dicts(["shard:///b.tar::0.jpg#512+9", "/nowhere/1.jpg"]))


def labels(counts):
    """Images with so many objects each, and a crowd."""
    crowd = {"iscrowd": 1}
    return [{"file_name": "a", "annotations": [crowd, *({"iscrowd": 0},) * count]} for count in counts]


@pytest.mark.parametrize(
    ("left_out", "what", "value"), [(True, "left out", "False"), (False, "background", "True")]
)
def test_many_images_without_annotations(left_out, what, value, warnings):
    advise_empty_images(labels([0] * 60 + [1] * 60), left_out=left_out)
    (warning,) = warnings()
    assert "60 of 120" in warning and what in warning
    assert f"FILTER_EMPTY_ANNOTATIONS {value}" in warning
    advise_empty_images(labels([0] * 10 + [1] * 60), left_out=left_out)
    assert not warnings()


def test_images_with_more_objects_than_queries(warnings):
    cfg = tiny_cfg("DETR", "MODEL.DETR.NUM_QUERIES", 20)
    advise_queries(cfg, labels([20, 3]))
    advise_queries(cfg, [{"file_name": "a", "segments_info": [{}] * 20}])
    assert not warnings()
    advise_queries(cfg, labels([21, 20, 25]))
    (warning,) = warnings()
    assert warning.startswith("2 images") and "(20), up to 25" in warning


def end_of_training(results, *, iteration=9):
    hook = advice.LowResultAdvice()
    with EventStorage(iteration) as storage:
        for name, values in results.items():
            for value in values:
                storage.put_scalar(name, value, smoothing_hint=False)
        hook.trainer = SimpleNamespace(iter=iteration, max_iter=10, storage=storage)
        hook.after_train()


def test_a_low_result(warnings):
    end_of_training({"bbox/AP50": [30.0, 1.2], "bbox/AP": [50.0]})
    (warning,) = warnings()
    assert "(bbox/AP50) is 1.2 %" in warning
    end_of_training({"bbox/AP50": [1.2, 5.0]})
    end_of_training({"bbox/AP50": [1.2], "ema/bbox/AP50": [30.0]})
    end_of_training({"query_patch/AP50": [1.2]})  # low on photographs of sky
    end_of_training({})
    end_of_training({"bbox/AP50": [1.2]}, iteration=5)  # the run was stopped
    assert not warnings()


def test_the_trainer_says_each_once(tmp_path, warnings, monkeypatch):
    monkeypatch.setenv("UPDETR_D2_CACHE", str(tmp_path / "cache"))
    name = write_tiny_coco(tmp_path)
    options = (
        "DATASETS.TRAIN",
        (name,),
        "DATASETS.TEST",
        (name,),
        "SOLVER.MAX_ITER",
        1,
        "MODEL.DETR.NUM_CLASSES",
        2,
    )
    sizes = ("INPUT.MIN_SIZE_TRAIN", (32,), "INPUT.MIN_SIZE_TEST", 32, "SOLVER.IMS_PER_BATCH", 8)
    cfg = tiny_cfg("DETR", *options, *sizes, "DATALOADER.NUM_WORKERS", 0, "OUTPUT_DIR", str(tmp_path / "run"))
    ensure_registered([name])
    UPDETRTrainer(cfg).train()
    text = "\n".join(warnings())
    for part in ("fewer than the 1000", "IMS_PER_BATCH is 8", "4 of the 4 images", "The last AP50"):
        assert text.count(part) == 1


@pytest.mark.parametrize(("iterations", "factor", "said"), [(20, 1.0, 1), (20, 0.01, 0), (0, 1.0, 0)])
def test_a_warmup_that_does_nothing(iterations, factor, said, warnings):
    cfg = tiny_cfg("DETR", "SOLVER.WARMUP_ITERS", iterations, "SOLVER.WARMUP_FACTOR", factor)
    cfg.SOLVER.ADVISED_ITERS = 0
    advice.advise_schedule(cfg, 100)
    assert sum("WARMUP_ITERS is 20" in each for each in warnings()) == said
