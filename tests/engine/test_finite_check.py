"""All processes stop, or leave a step out, together; what is needed to find the cause is kept."""

import logging

import pytest
import torch
from torch import nn

from updetr_d2.engine.bad_batches import load_bad_batch
from updetr_d2.engine.finite_check import FiniteCheck, StepReport

NAN, INF = float("nan"), float("inf")
BATCH = [{"image": torch.ones(3, 4, 4)}]


def report(loss_ce=1.0, loss_bbox=2.0, grad_norm=3.0, error="", names=("a.jpg",)):
    losses = {} if error else {"loss_ce": loss_ce, "loss_bbox": loss_bbox}
    return StepReport(losses, {"grad_norm": grad_norm}, error, 0, names)


def passes(check, *reports):
    return check.passes(list(reports), BATCH, nn.Linear(1, 1), iteration=7, seed=5)


def test_finite_numbers_pass():
    check = FiniteCheck(max_skipped=1)
    assert passes(check, report(), report())
    assert check.num_skipped == 0


@pytest.mark.parametrize(
    ("bad", "words"),
    [
        (report(loss_bbox=NAN), "loss_bbox = nan, of a.jpg"),
        (report(loss_ce=-INF), "loss_ce = -inf"),
        (report(grad_norm=INF), "grad_norm = inf"),
        (report(error="The matching cost is not finite"), "process 0: The matching cost is not finite"),
    ],
)
def test_any_number_that_is_not_finite_stops(bad, words):
    with pytest.raises(FloatingPointError, match="Iteration 7 is not finite") as error:
        passes(FiniteCheck(), bad)
    assert words in str(error.value)


def test_files_of_the_guilty_process_alone_are_named():
    with pytest.raises(FloatingPointError) as error:
        passes(
            FiniteCheck(), report(names=("good.jpg",)), report(loss_ce=NAN, grad_norm=NAN, names=("bad.jpg",))
        )
    assert "process 1: loss_ce = nan, of bad.jpg" in str(error.value)
    assert "good.jpg" not in str(error.value)


def test_a_limited_number_of_steps_is_left_out(caplog):
    check = FiniteCheck(max_skipped=2)
    with caplog.at_level(logging.WARNING):
        assert not passes(check, report(loss_ce=NAN))
        assert passes(check, report())
        assert not passes(check, report(grad_norm=NAN))
    assert "as 2 of at most 2 (SOLVER.SKIP_NONFINITE_STEPS)" in caplog.text
    with pytest.raises(FloatingPointError, match="2 such steps may be left out"):
        passes(check, report(loss_ce=NAN))


def test_batch_and_weights_are_saved_when_the_run_stops(tmp_path):
    check = FiniteCheck(output_dir=str(tmp_path), max_skipped=1)
    passes(check, report(loss_ce=NAN))
    assert [path.name for path in tmp_path.glob("bad_batches/*")] == ["iteration_0000007_rank_0.pth"]
    with pytest.raises(FloatingPointError, match=r"saved in .*/bad_batches"):
        passes(check, report(loss_ce=NAN))
    assert (tmp_path / "bad_batches/iteration_0000007_weights.pth").exists()
    assert torch.equal(
        load_bad_batch(tmp_path / "bad_batches/iteration_0000007_rank_0.pth")["batch"][0]["image"],
        BATCH[0]["image"],
    )


def test_a_full_disk_does_not_hide_the_error(tmp_path, caplog):
    (tmp_path / "bad_batches").write_text("in the way")
    with pytest.raises(FloatingPointError, match="loss_ce = nan"):
        passes(FiniteCheck(output_dir=str(tmp_path)), report(loss_ce=NAN))
