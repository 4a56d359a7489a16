"""--resume with another config or other data: sound changes go on and count, others are refused by name."""

import json
from argparse import Namespace
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog
from helpers import tiny_cfg
from tiny_coco import forget_runs, write_tiny_coco

from updetr_d2.checkpoint.resuming import check_norm_placement, optimizer_state
from updetr_d2.checkpoint.safe_loading import CheckpointError
from updetr_d2.cli import train
from updetr_d2.utils.cache import CACHE_VARIABLE

# Change -> the options that make it.
SOUND = {
    "learning rate": ("SOLVER.BASE_LR", "0.002"),
    "learning rate of the CNN": ("SOLVER.BACKBONE_MULTIPLIER", "0.1"),
    "weight decay": ("SOLVER.WEIGHT_DECAY", "0.001"),
    "batch": ("SOLVER.IMS_PER_BATCH", "1"),
    "longer": ("SOLVER.MAX_ITER", "5"),
    "steps": ("SOLVER.STEPS", "(1,)"),
    "clipping": ("SOLVER.CLIP_GRADIENTS.ENABLED", "True", "SOLVER.CLIP_GRADIENTS.CLIP_TYPE", "norm"),
    "dropout": ("MODEL.DETR.DROPOUT", "0.2"),
    "loss weights": ("MODEL.CRITERION.BBOX_WEIGHT", "2.0"),
    "larger images": ("INPUT.MIN_SIZE_TRAIN", "(48,)"),
    "workers": ("DATALOADER.NUM_WORKERS", "1"),
    "no grouping": ("DATALOADER.ASPECT_RATIO_GROUPING", "False"),
    "bfloat16": ("SOLVER.AMP.ENABLED", "True"),
    "more images": ("DATASETS.TRAIN", "('coco:ROOT/more.json@ROOT/images',)"),
}
# The first option is what the refusal must name.
UNSOUND = {
    "queries": ("MODEL.DETR.NUM_QUERIES", "15"),
    "width": ("MODEL.DETR.HIDDEN_DIM", "64"),
    "heads": ("MODEL.DETR.NHEADS", "2"),
    "feed-forward": ("MODEL.DETR.DIM_FEEDFORWARD", "64"),
    "encoder layers": ("MODEL.DETR.ENC_LAYERS", "0"),
    "decoder layers": ("MODEL.DETR.DEC_LAYERS", "3"),
    "norm": ("MODEL.DETR.PRE_NORM", "True"),
    "feature": ("MODEL.DETR.IN_FEATURE", "res4"),
    "optimizer": ("SOLVER.OPTIMIZER", "SGD"),
    "colours": ("INPUT.FORMAT", "BGR"),
    "mean": ("MODEL.PIXEL_MEAN", "[0.0, 0.0, 0.0]"),
    "a class more": ("DATASETS.TRAIN", "('coco:ROOT/three.json@ROOT/images',)"),
    "a class less": ("DATASETS.TRAIN", "('coco:ROOT/one.json@ROOT/images',)"),
    "other classes": ("DATASETS.TRAIN", "('coco:ROOT/birds.json@ROOT/images',)"),
}


def start(root: Path, output: Path, *options: str, resume: bool = True):
    """Train as the command line does; returns the trainer."""
    args = Namespace(
        config_file=str(root / "config.yaml"),
        opts=["OUTPUT_DIR", str(output), *(option.replace("ROOT", str(root)) for option in options)],
        eval_only=False,
        resume=resume,
    )
    trainer = train.UPDETRTrainer(train.setup(args))
    trainer.resume_or_load(resume=resume)
    trainer.train()
    return trainer


@pytest.fixture(name="root", scope="module")
def _root(tmp_path_factory):
    """A config, its data set and variants of this, and a run of two iterations in ``run``."""
    root = tmp_path_factory.mktemp("resume")
    name = write_tiny_coco(root)
    content = json.loads((root / "a.json").read_text())

    def write(variant: str, **changes) -> None:
        (root / f"{variant}.json").write_text(json.dumps({**content, **changes}))

    cat, dog = content["categories"]
    write("three", categories=[cat, dog, {"id": 3, "name": "bird"}])
    write("one", categories=[cat], annotations=[{**a, "category_id": 1} for a in content["annotations"]])
    write("birds", categories=[{"id": 1, "name": "bird"}, dog])
    images = [{**image, "id": image["id"] + 10} for image in content["images"]]
    annotations = [{**a, "id": a["id"] + 10, "image_id": a["image_id"] + 10} for a in content["annotations"]]
    write("more", images=content["images"] + images, annotations=content["annotations"] + annotations)
    cfg = tiny_cfg(
        "DETR",
        *("DATASETS.TRAIN", (name,), "MODEL.DETR.NUM_CLASSES", 0, "SOLVER.IMS_PER_BATCH", 2),
        *("SOLVER.MAX_ITER", 2, "SOLVER.BASE_LR", 0.001, "DATALOADER.NUM_WORKERS", 0, "SEED", 3),
        *("INPUT.MIN_SIZE_TRAIN", (32,), "INPUT.DETR_CROP.PROB", 0.0),
    )
    (root / "config.yaml").write_text(cfg.dump())
    with pytest.MonkeyPatch.context() as monkeypatch:
        prepare(root, monkeypatch)
        before = set(DatasetCatalog)
        start(root, root / "run", resume=False)
        forget_runs(before)
    return root


def prepare(root: Path, monkeypatch) -> None:
    monkeypatch.setenv(CACHE_VARIABLE, str(root / "cache"))
    monkeypatch.setattr(
        train, "default_setup", lambda *_: None
    )  # its report of the environment takes a second


@pytest.fixture(name="resumed")
def _resumed(root, tmp_path, monkeypatch):
    """A function that goes on with the run under other options."""
    prepare(root, monkeypatch)
    before = set(DatasetCatalog)
    for name in ("model_final.pth", "last_checkpoint"):
        (tmp_path / name).write_bytes((root / "run" / name).read_bytes())
    yield lambda *options: start(root, tmp_path, "SOLVER.MAX_ITER", "4", *options)
    forget_runs(before)


@pytest.mark.parametrize("change", SOUND)
def test_sound_changes_go_on(resumed, change):
    trainer = resumed(*SOUND[change])
    assert trainer.start_iter == 2
    assert all(torch.isfinite(parameter).all() for parameter in trainer.model.parameters())


@pytest.mark.parametrize("change", UNSOUND)
def test_what_the_weights_do_not_fit_is_refused_by_name(resumed, change):
    with pytest.raises(CheckpointError) as caught:
        resumed(*UNSOUND[change])
    message = str(caught.value)
    assert "--resume" in message
    assert UNSOUND[change][0] in message or UNSOUND[change][1] in message
    assert "\n" not in message


def compare(resumed, seed: int) -> None:
    """One to three random changes: refused with a key that has changed, or gone on to the end."""
    rng = np.random.default_rng(seed)
    changes = rng.choice([*SOUND, *UNSOUND], size=rng.integers(1, 4), replace=False)
    options = [option for change in changes for option in (SOUND | UNSOUND)[change]]
    # A later option replaces an earlier one of the same key.
    data = [option for key, option in zip(options[::2], options[1::2]) if key == "DATASETS.TRAIN"][-1:]
    unsound = [
        UNSOUND[change][0]
        for change in changes
        if change in UNSOUND and (UNSOUND[change][0] != "DATASETS.TRAIN" or UNSOUND[change][1] in data)
    ]
    if not unsound:
        assert resumed(*options).iter >= 4
        return
    with pytest.raises((CheckpointError, ValueError)) as caught:
        resumed(*options)
    assert any(key in str(caught.value) for key in unsound)


@pytest.mark.parametrize("seed", range(6))
def test_random_changes(resumed, seed):
    compare(resumed, seed)


@pytest.mark.long
@pytest.mark.parametrize("seed", range(6, 206))
def test_many_random_changes(resumed, seed):
    compare(resumed, seed)


def test_the_learning_rate_of_the_config_counts(resumed):
    trainer = resumed(
        "SOLVER.BASE_LR", "0.002", "SOLVER.BACKBONE_MULTIPLIER", "0.5", "SOLVER.WARMUP_ITERS", "0"
    )
    rates = {
        name: group["lr"]
        for group in trainer._trainer.optimizer.param_groups
        for name, parameter in trainer.model.named_parameters()
        if any(parameter is each for each in group["params"])
    }
    assert rates.pop("backbone.conv1.weight") == pytest.approx(0.001)
    assert rates["class_embed.weight"] == pytest.approx(0.002)


def test_moments_follow_their_parameters_into_other_groups():
    """Two parameters of the same shape whose groups change places."""
    first, second = torch.nn.Parameter(torch.zeros(2)), torch.nn.Parameter(torch.zeros(2))
    first.grad, second.grad = torch.ones(2), torch.full((2,), 5.0)
    before = torch.optim.AdamW([first, second], lr=0.1)
    before.step()
    after = torch.optim.AdamW([{"params": [second], "lr": 0.3}, {"params": [first], "lr": 0.2}])
    names = {"names": ["second", "first"], "saved_names": ["first", "second"]}
    after.load_state_dict(optimizer_state(after, before.state_dict(), **names))
    for parameter in (first, second):
        assert torch.equal(after.state[parameter]["exp_avg"], before.state[parameter]["exp_avg"])
    assert [group["lr"] for group in after.param_groups] == [0.3, 0.2]


def test_moments_of_another_shape_are_refused_whatever_the_checkpoint_tells():
    """Checkpoints of earlier versions do not name their parameters."""
    small, large = torch.nn.Parameter(torch.zeros(2)), torch.nn.Parameter(torch.zeros(3))
    small.grad = torch.ones(2)
    before, after = torch.optim.AdamW([small]), torch.optim.AdamW([large])
    before.step()
    with pytest.raises(CheckpointError, match="exp_avg of a is 2 there and 3 here"):
        optimizer_state(after, before.state_dict(), names=["a"], saved_names=None)
    with pytest.raises(CheckpointError, match="b is not optimized there"):
        optimizer_state(
            torch.optim.AdamW([small, large]), before.state_dict(), names=["a", "b"], saved_names=["a"]
        )


@pytest.mark.parametrize("theirs", [False, True])
def test_weights_of_the_other_norm_are_refused(theirs):
    post = ["transformer.encoder.layers.0.norm1.weight", "class_embed.weight"]
    pre = [*post, "transformer.encoder.norm.weight"]
    saved, ours = (pre, post) if theirs else (post, pre)
    with pytest.raises(
        CheckpointError, match=rf"x\.pth holds .*PRE_NORM {theirs}, but .* set it to {theirs}"
    ):
        check_norm_placement(saved, ours, path="x.pth")
    for names in (saved, ours):
        check_norm_placement(names, names, path="x.pth")
        check_norm_placement(["backbone.conv1.weight"], names, path="x.pth")  # of a CNN alone
