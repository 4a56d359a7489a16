"""Averaged weights: their formula, checkpoints, evaluation beside the raw ones, and who takes which."""

import copy
import json

import pytest
import torch
from detectron2.data import DatasetCatalog
from helpers import SMALL_DETR, run_train_net, save_tiny_model, tiny_model
from tiny_coco import forget_runs, write_tiny_coco
from torch import nn

from updetr_d2 import Predictor
from updetr_d2.checkpoint.checkpointer import UPDETRCheckpointer
from updetr_d2.checkpoint.safe_loading import CheckpointError
from updetr_d2.cli import convert
from updetr_d2.engine.ema import WeightAverage

PATCHIFY = ("MODEL.BACKBONE.NAME", "build_patchify_backbone", "MODEL.DETR.NUM_QUERIES", 20)


def walk(steps, **options):
    """Averages of a model whose weights walk at random, and the same by hand in double precision."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))
    average = WeightAverage(model, **options)
    average.start(model)
    expected = model[0].weight.detach().double()
    for t in range(1, steps + 1):
        with torch.no_grad():
            model[0].weight.add_(torch.randn(2, 3))
            model[1].running_mean.add_(1)
        average.update(model)
        decay = options["decay"]
        if options.get("warmup"):
            decay = min(decay, (1 + t) / (10 + t))
        expected = decay * expected + (1 - decay) * model[0].weight.detach().double()
    return model, average, expected


@pytest.mark.parametrize("warmup", [False, True])
def test_the_average_is_that_of_the_formula(warmup):
    model, average, expected = walk(30, decay=0.9, warmup=warmup)
    torch.testing.assert_close(average.model[0].weight.double(), expected, atol=1e-6, rtol=0)
    assert torch.equal(average.model[1].running_mean, model[1].running_mean)
    assert not torch.equal(average.model[0].weight, model[0].weight)


def test_the_average_is_a_model_of_its_own_for_evaluation():
    model = tiny_model("DETR")
    average = WeightAverage(model, decay=0.5)
    assert not average.model.training
    assert not any(p.requires_grad for p in average.model.parameters())
    assert model.training
    assert all(p.requires_grad for p in model.parameters())
    assert average.num_updates is None


def test_a_saved_average_goes_on_as_if_nothing_had_happened():
    model, average, _ = walk(7, decay=0.9, warmup=True)
    resumed = WeightAverage(copy.deepcopy(model), decay=0.9, warmup=True)
    resumed.load_state_dict(copy.deepcopy(average.state_dict()))
    assert resumed.num_updates == 7
    for each in (average, resumed):
        each.update(nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2)).requires_grad_(False).apply(fill))
    assert torch.equal(average.model[0].weight, resumed.model[0].weight)


def fill(module):
    for tensor in module.state_dict().values():
        tensor.fill_(2)


@pytest.fixture
def checkpoint(tmp_path):
    """A folder with a config and a checkpoint whose averaged weights are all 0.5, and the path of the latter."""
    model = save_tiny_model(tmp_path, "DETR")
    path = tmp_path / "model.pth"
    content = torch.load(path, weights_only=True)
    averaged = {name: torch.full_like(tensor, 0.5) for name, tensor in model.state_dict().items()}
    content["model_ema"] = {"model": averaged, "num_updates": 3}
    torch.save(content, path)
    return tmp_path, path


@pytest.mark.parametrize("averaged", [True, False])
def test_predictor_takes_the_averaged_weights_unless_told_otherwise(checkpoint, averaged):
    folder, path = checkpoint
    options = ["MODEL.EMA_WEIGHTS", averaged]
    predictor = Predictor.from_config(folder / "config.yaml", weights=path, options=options)
    is_averaged = bool((predictor.model.query_embed.weight == 0.5).all())
    assert is_averaged == averaged


def test_a_damaged_entry_is_one_clear_error(checkpoint):
    _, path = checkpoint
    torch.save({**torch.load(path, weights_only=True), "model_ema": 3}, path)
    checkpointer = UPDETRCheckpointer(tiny_model("DETR"))
    checkpointer.averaged = True
    with pytest.raises(CheckpointError, match="holds no averaged weights"):
        checkpointer.load(str(path))


def test_the_converter_writes_either(checkpoint):
    folder, path = checkpoint
    for flags, expected in (([], False), (["--ema"], True)):
        out = folder / "official.pth"
        assert convert.main(["--source", "detr", "--reverse", *flags, str(path), str(out)]) == 0
        weight = torch.load(out, weights_only=True)["model"]["query_embed.weight"]
        assert bool((weight == 0.5).all()) == expected


@pytest.fixture
def coco(tmp_path):
    before = set(DatasetCatalog)
    yield write_tiny_coco(tmp_path)
    forget_runs(before)


@pytest.mark.slow
def test_a_run_evaluates_both_and_saves_both(coco, tmp_path):
    data = ("DATASETS.TRAIN", f'("{coco}",)', "DATASETS.TEST", f'("{coco}",)', "SEED", 1)
    options = (
        *SMALL_DETR,
        *PATCHIFY,
        *data,
        "SOLVER.MAX_ITER",
        3,
        "SOLVER.EMA.ENABLED",
        True,
        "SOLVER.BASE_LR",
        0.01,
    )
    config = "custom/updetr_r50_finetune.yaml"
    results = run_train_net(config, tmp_path / "run", *options)
    assert {"bbox/AP", "ema/bbox/AP"} <= set(results)
    assert (tmp_path / "run" / "ema" / "inference").is_dir()
    saved = torch.load(tmp_path / "run" / "model_final.pth", weights_only=True)
    assert saved["model_ema"]["num_updates"] == 3
    assert saved["model"].keys() == saved["model_ema"]["model"].keys()
    assert not torch.equal(*(each["model"]["query_embed.weight"] for each in (saved, saved["model_ema"])))
    weights = ("MODEL.WEIGHTS", tmp_path / "run" / "model_final.pth")
    for averaged in (True, False):
        run_train_net(
            *(config, tmp_path / str(averaged), *options, *weights, "MODEL.EMA_WEIGHTS", averaged),
            flags=["--eval-only"],
        )
        found = predictions(tmp_path / str(averaged) / "inference")
        folder = tmp_path / "run" / ("ema/inference" if averaged else "inference")
        assert found == pytest.approx(predictions(folder), rel=1e-4)


def predictions(folder):
    (path,) = folder.glob("*/coco_instances_results.json")
    return [each["score"] for each in json.loads(path.read_text())]


@pytest.mark.slow
def test_a_run_that_had_no_average_begins_one(coco, tmp_path, caplog):
    data = ("DATASETS.TRAIN", f'("{coco}",)', "DATASETS.TEST", "()", "SEED", 1)
    options = (*SMALL_DETR, *PATCHIFY, *data, "SOLVER.CHECKPOINT_PERIOD", 2, "SOLVER.BASE_LR", 1e-30)
    config = "custom/updetr_r50_finetune.yaml"
    run_train_net(config, tmp_path / "run", *options, "SOLVER.MAX_ITER", 2)
    options = (*options, "SOLVER.MAX_ITER", 4, "SOLVER.EMA.ENABLED", True)
    run_train_net(config, tmp_path / "run", *options, flags=["--resume"])
    assert "holds no average of the weights" in (tmp_path / "run" / "log.txt").read_text()
    saved = torch.load(tmp_path / "run" / "model_final.pth", weights_only=True)
    assert saved["model_ema"]["num_updates"] == 2
    for name, tensor in saved["model"].items():
        torch.testing.assert_close(tensor, saved["model_ema"]["model"][name])
