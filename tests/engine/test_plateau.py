"""On a plateau of the result learning rates fall and held parameters learn; a resumed run does the same."""

import pytest
import torch
from detectron2.data import DatasetCatalog
from detectron2.utils.env import seed_all_rng
from helpers import tiny_cfg
from tiny_coco import forget_runs, write_tiny_coco

from updetr_d2.data.datasets.names import ensure_registered
from updetr_d2.engine.plateau import HeldParameters, count_plateaus
from updetr_d2.engine.trainer import UPDETRTrainer
from updetr_d2.tasks import check_config

BASE_LR = 1e-3
NAN = float("nan")


@pytest.mark.parametrize(
    ("results", "patience", "plateaus"),
    [
        ([], (2,), 0),
        ([1, 2, 3, 4], (2,), 0),
        ([3, 2, 3], (2,), 1),  # as good is no better
        ([3, 2, 3, 1, 2], (2,), 2),
        ([3, 2, 4, 3], (2,), 0),
        ([3, NAN, NAN, 4], (2,), 1),
        ([NAN, NAN, 1], (2,), 1),
        ([5, *[1] * 7], (2, 3), 2),  # the second waits for longer, the third as well
        ([5, *[1] * 8], (2, 3), 3),
    ],
)
def test_plateaus_are_counted(results, patience, plateaus):
    assert count_plateaus(results, patience) == plateaus


@pytest.fixture
def train(tmp_path, monkeypatch):
    """Trains with the results given, one for each iteration.

    Returns:
        the trainer, the share of the schedule's learning rate of each step, and the weights after each.
    """
    monkeypatch.setenv("UPDETR_D2_CACHE", str(tmp_path / "cache"))
    before = set(DatasetCatalog)
    name = write_tiny_coco(tmp_path)
    ensure_registered([name])

    def train(results, *options, max_iter=None, resume=False, folder="run", killed_at=None):
        size = ("INPUT.MIN_SIZE_TRAIN", (32,), "SOLVER.IMS_PER_BATCH", 2, "DATALOADER.NUM_WORKERS", 0)
        schedule = (
            "SOLVER.MAX_ITER",
            max_iter or len(results),
            "TEST.EVAL_PERIOD",
            1,
            "SOLVER.CHECKPOINT_PERIOD",
            1,
        )
        places = ("DATASETS.TRAIN", (name,), "DATASETS.TEST", (name,), "OUTPUT_DIR", str(tmp_path / folder))
        rates = ("SOLVER.BASE_LR", BASE_LR, "SOLVER.WARMUP_ITERS", 0, "SEED", 3, "MODEL.DETR.NUM_CLASSES", 2)
        plateau = ("SOLVER.BEST_METRIC", "bbox/AP", "SOLVER.PLATEAU.PATIENCE", (2,))
        cfg = tiny_cfg("DETR", *size, *schedule, *places, *rates, *plateau, *options)
        remaining = iter(results)
        seed_all_rng(3)
        trainer = UPDETRTrainer(cfg)

        def test(*_):
            if trainer.iter == killed_at:
                raise KeyboardInterrupt
            return {"bbox": {"AP": next(remaining)}}

        monkeypatch.setattr(UPDETRTrainer, "test", test)
        shares, weights = [], []
        run_step = trainer.run_step

        def recorded():
            shares.append(trainer.optimizer.param_groups[0]["lr"] / BASE_LR)
            run_step()
            weights.append({k: v.clone() for k, v in trainer.model.state_dict().items()})

        trainer.run_step = recorded
        trainer.resume_or_load(resume=resume)
        try:
            trainer.train()
        except KeyboardInterrupt:
            assert killed_at is not None
        return trainer, shares, weights

    yield train
    forget_runs(before)


def same(one, other):
    return all(torch.equal(one[name], tensor) for name, tensor in other.items())


def test_the_learning_rates_fall_on_each_plateau_to_a_least_one(train):
    _, shares, _ = train(
        [3.0, 1.0, 1.0, 1.0, 1.0, 9.0, 1.0, 1.0, 1.0], "SOLVER.PLATEAU.MIN_LR", 0.3 * BASE_LR
    )
    assert shares == pytest.approx([1, 1, 1, 0.5, 0.5, 0.3, 0.3, 0.3, 0.3])


def test_held_parameters_learn_from_the_first_plateau_on(train):
    held = ("SOLVER.HELD_PARAMETERS", ("backbone.", "transformer.encoder."))
    _, shares, weights = train([3.0, 1.0, 1.0, 1.0, 1.0, 1.0], *held)
    assert shares == pytest.approx([1, 1, 1, 1, 1, 0.5])
    for name in (
        "transformer.encoder.layers.0.linear1.weight",
        "transformer.decoder.layers.0.linear1.weight",
    ):
        moved = [not torch.equal(weights[0][name], each[name]) for each in weights]
        assert moved == ([False] * 3 + [True] * 3 if "encoder" in name else [False] + [True] * 5), name
    assert torch.equal(weights[0]["backbone.conv1.weight"], weights[2]["backbone.conv1.weight"])


def test_held_parameters_learn_from_an_iteration_on_and_count_in_no_norm_before(train):
    held = ("SOLVER.HELD_PARAMETERS", ("transformer.encoder.",), "SOLVER.HELD_ITERS", 2)
    trainer, _, weights = train([1.0, 2.0, 3.0, 4.0], *held)
    name = "transformer.encoder.layers.0.linear1.weight"
    assert torch.equal(weights[0][name], weights[1][name])
    assert not torch.equal(weights[1][name], weights[2][name])
    assert all(parameter.grad is not None for parameter in trainer.held.parameters)


HELD = ("SOLVER.HELD_PARAMETERS", ("transformer.encoder.",), "SOLVER.PLATEAU.PATIENCE", (2, 1))
RESULTS = [3.0, 1.0, 1.0, 1.0, 4.0, 1.0, 1.0, 1.0]


@pytest.mark.parametrize("killed_at", [1, 2, 3, 5])
def test_a_resumed_run_is_that_of_an_uninterrupted_one(train, killed_at):
    """It was killed in an evaluation, of which the checkpoint knows nothing."""
    _, shares, weights = train(RESULTS, *HELD, folder="whole")
    assert len(set(shares)) == 4
    train(RESULTS, *HELD, killed_at=killed_at)
    _, later_shares, later = train(RESULTS[killed_at:], *HELD, max_iter=len(RESULTS), resume=True)
    assert later_shares == shares[killed_at + 1 :]
    assert same(later[-1], weights[-1])


def test_a_new_run_in_the_same_folder_starts_anew(train):
    train([3.0, 1.0, 1.0, 1.0])
    _, shares, _ = train([2.0, 1.0, 3.0])
    assert shares == pytest.approx([1, 1, 1])


def test_a_damaged_file_of_results_is_told(train, tmp_path, caplog):
    train([3.0, 1.0, 1.0])
    (tmp_path / "run" / "plateau_results.json").write_text("{")
    _, shares, _ = train([1.0, 1.0, 1.0], max_iter=5, resume=True)
    assert "plateau_results.json cannot be read" in caplog.text and shares == pytest.approx([1, 1])


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("SOLVER.PLATEAU.PATIENCE", (3,)), "needs SOLVER.BEST_METRIC"),
        (("SOLVER.PLATEAU.PATIENCE", (0,), "SOLVER.BEST_METRIC", "bbox/AP"), "positive numbers"),
        (("SOLVER.PLATEAU.FACTOR", 1.0), "SOLVER.PLATEAU.FACTOR is 1.0"),
        (("SOLVER.HELD_PARAMETERS", ("backbone.",)), "nothing says when they learn"),
    ],
)
def test_settings_without_sense_are_refused(options, words):
    with pytest.raises(ValueError, match=words):
        check_config(tiny_cfg("DETR", *options))


def test_names_that_hold_nothing_or_all_and_runs_without_evaluation_are_refused(train):
    model = torch.nn.Sequential(torch.nn.Linear(2, 2))
    with pytest.raises(ValueError, match="'backbone', which is in no name"):
        HeldParameters(model, ("backbone",))
    with pytest.raises(ValueError, match="holds every parameter"):
        HeldParameters(model, ("0.",))
    with pytest.raises(ValueError, match="waits for results of evaluations"):
        train([1.0], "TEST.EVAL_PERIOD", 0)
