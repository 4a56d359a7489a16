"""Training with DATASETS.UNLABELED from the command line: which task, its checks, both streams, exact resume."""

import json
from pathlib import Path

import pytest
import torch
from detectron2.data import DatasetCatalog
from detectron2.utils import comm
from helpers import DINO, SMALL_DETR, run_train_net, tiny_cfg, write_photos
from processes import run_processes
from tiny_coco import forget_runs, write_tiny_coco

from updetr_d2.tasks import check_config, task_of

GROUP = "SOLVER.MEAN_TEACHER"
UNLABELED = ("DATASETS.UNLABELED", ("folder:/photos",), "SOLVER.EMA.ENABLED", True)


def test_unlabeled_images_choose_the_task():
    assert task_of(tiny_cfg("DETR")).name == "detection"
    assert task_of(tiny_cfg("DETR", *UNLABELED)).name == "semi_supervised_detection"
    for name in ("PanopticDETR", "UPDETR", "OneShotDETR", "GeneralizedRCNN"):
        with pytest.raises(ValueError, match=r"DATASETS\.UNLABELED is .* has no use for it"):
            task_of(tiny_cfg(name, *UNLABELED))


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("SOLVER.EMA.ENABLED", False),
        ("SOLVER.EMA.DECAY", 1.0),
        (f"{GROUP}.SCORE_THRESH", 1.5),
        (f"{GROUP}.UNCERTAIN_SCORE", 0.6),
        (f"{GROUP}.CLASS_QUANTILE", -0.1),
        (f"{GROUP}.UNLABELED_RATIO", 0),
        (f"{GROUP}.WEIGHT", -1.0),
        (f"{GROUP}.COLLAPSE_ITERS", 0),
        ("INPUT.STRONG_VIEW.SCALE_RANGE", (1.0,)),
    ],
)
def test_a_wrong_value_is_one_sentence_with_the_key(key, value):
    check_config(tiny_cfg("DETR", *UNLABELED))
    with pytest.raises(ValueError) as error:
        check_config(tiny_cfg("DETR", *UNLABELED, key, value))
    assert key in str(error.value)


@pytest.fixture
def data(tmp_path, monkeypatch):
    """Four labeled images, and seven without labels of which two are broken; gives the keys that name them."""
    monkeypatch.setenv("UPDETR_D2_CACHE", str(tmp_path / "cache"))
    before = set(DatasetCatalog)
    labeled = write_tiny_coco(tmp_path)
    (tmp_path / "photos").mkdir()
    write_photos(tmp_path / "photos", 7)
    for name in ("3.jpg", "4.jpg"):
        (tmp_path / "photos" / name).write_bytes(b"no image")
    yield (
        *("DATASETS.TRAIN", f'("{labeled}",)', "DATASETS.TEST", "()"),
        *("DATASETS.UNLABELED", f'("folder:{tmp_path}/photos",)', "SEED", 3),
    )
    forget_runs(before)


SMALL = (
    *(*SMALL_DETR, "MODEL.BACKBONE.NAME", "build_patchify_backbone", "MODEL.DETR.NUM_QUERIES", 20),
    *("MODEL.DETR.DEC_LAYERS", 1, "MODEL.DETR.DROPOUT", 0.1, "SOLVER.BASE_LR", 0.001),
    *(
        "SOLVER.EMA.ENABLED",
        True,
        "SOLVER.CHECKPOINT_PERIOD",
        3,
        "SOLVER.MAX_ITER",
        6,
        "SOLVER.STEPS",
        "(4,)",
    ),
    *(f"{GROUP}.BURN_IN_ITERS", 1, f"{GROUP}.RAMP_ITERS", 4, f"{GROUP}.UNLABELED_RATIO", 2),
    # The scores of a fresh model.
    *(f"{GROUP}.SCORE_THRESH", 0.2, f"{GROUP}.UNCERTAIN_SCORE", 0.05, f"{GROUP}.CLASS_QUANTILE", 0.5),
)
CONFIG = "custom/updetr_r50_finetune.yaml"


@pytest.mark.slow
def test_a_resumed_run_ends_with_the_student_and_the_teacher_of_an_uninterrupted_one(data, tmp_path):
    options = (*SMALL, *data, "DATALOADER.NUM_WORKERS", 2)
    metrics = run_train_net(CONFIG, tmp_path / "calm", *options, "VIS_PERIOD", 3)
    run_train_net(CONFIG, tmp_path / "broken", *options)
    broken = tmp_path / "broken"
    (broken / "model_final.pth").unlink()
    (broken / "model_0000005.pth").unlink()
    (broken / "last_checkpoint").write_text("model_0000002.pth")
    torch.rand(5)
    run_train_net(CONFIG, broken, *options, flags=["--resume"])
    assert_same_weights(tmp_path / "calm", broken)

    assert {"pseudo_boxes", "pseudo_uncertain_boxes", "pseudo_weight", "loss_ce_pseudo"} <= metrics.keys()
    assert metrics["pseudo_boxes"] > 0
    log = (tmp_path / "calm" / "log.txt").read_text()
    assert "7 images without labels beside 4 with; a batch has 4 and 2 of them" in log
    assert "2 files" in log
    assert "The teacher in iteration 5: pseudo_weight" in log
    pictures = sorted(path.parent.name for path in (tmp_path / "calm" / "pseudo_labels").glob("*/0.png"))
    assert pictures == ["iteration_0000003", "iteration_0000006"]


def assert_same_weights(one, other):
    one, other = (torch.load(each / "model_final.pth", weights_only=True) for each in (one, other))
    for kind in (lambda saved: saved["model"], lambda saved: saved["model_ema"]["model"]):
        assert kind(one).keys() == kind(other).keys()
        assert all(torch.equal(kind(one)[name], kind(other)[name]) for name in kind(one))
    assert one["model_ema"]["num_updates"] == other["model_ema"]["num_updates"]
    assert one["training_step"] == other["training_step"]
    assert any(one["training_step"]["thresholds"]["scores"])


def train_in_two_processes(output, options, flags):
    folder = Path(output)
    if comm.is_main_process():
        folder.mkdir(exist_ok=True)
    comm.synchronize()
    run_train_net(CONFIG, folder, *options, flags=flags)


@pytest.mark.slow
def test_two_processes_resume_exactly_and_have_one_teacher(data, tmp_path):
    options = (*SMALL, *data)
    run_processes(2, train_in_two_processes, str(tmp_path / "calm"), options, [])
    broken = tmp_path / "broken"
    run_processes(2, train_in_two_processes, str(broken), options, [])
    (broken / "model_final.pth").unlink()
    (broken / "model_0000005.pth").unlink()
    (broken / "last_checkpoint").write_text("model_0000002.pth")
    run_processes(2, train_in_two_processes, str(broken), options, ["--resume"])
    assert_same_weights(tmp_path / "calm", broken)


@pytest.mark.slow
def test_labels_of_the_unlabeled_images_are_measured_and_not_learned(data, tmp_path):
    name = data[1].replace("a.json", "b.json")
    content = json.loads((tmp_path / "a.json").read_text())
    for annotation in content["annotations"]:
        annotation["bbox"] = [30, 30, 4, 4]
    (tmp_path / "b.json").write_text(json.dumps(content))
    options = (*SMALL, *DINO, *data, "SOLVER.MAX_ITER", 3)
    measured = run_train_net(CONFIG, tmp_path / "b", *options, "DATASETS.UNLABELED", name)
    assert 0 <= measured["pseudo_recall"] <= 1
    (tmp_path / "c.json").write_text(json.dumps({**content, "annotations": content["annotations"][:1]}))
    bare = run_train_net(
        CONFIG, tmp_path / "c", *options, "DATASETS.UNLABELED", name.replace("b.json", "c.json")
    )
    assert bare["total_loss"] == measured["total_loss"]
