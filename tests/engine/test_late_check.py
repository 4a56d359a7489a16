"""Numbers that are looked at a step later: the same weights, stops and skips as when the host waits for them."""

import copy

import pytest
import torch
from detectron2.utils import comm
from detectron2.utils.events import EventStorage
from helpers import random_sample, tiny_model
from processes import run_processes
from torch import nn

from updetr_d2.engine.finite_check import FiniteCheck
from updetr_d2.engine.train_loop import TrainLoop
from updetr_d2.engine.trainer import distribute

STEPS = 5


class Batches:
    """Two images a process; those of step 2 have a pixel that is no number, in the last process."""

    seed = 4

    def __init__(self, kind):
        self.kind = kind

    def __iter__(self):
        step = 0
        while True:
            torch.manual_seed(10 * step + comm.get_rank())
            batch = [{**random_sample(), "file_name": f"step_{step}_{i}.jpg"} for i in range(2)]
            if step == 2 and comm.get_rank() == comm.get_world_size() - 1:
                batch[0]["poison"] = self.kind
            yield batch
            step += 1


class Poisoned(nn.Module):
    """Losses or gradients go wrong with samples that say so."""

    def __init__(self):
        super().__init__()
        self.model = tiny_model("DETR")

    def forward(self, batch):
        losses = self.model(batch)
        kind = batch[0].get("poison")
        if kind == "loss":  # without a gradient that tells of it
            losses["loss_giou"] = losses["loss_giou"] + float("inf")
        if kind == "gradient":  # the root of 0 is 0, but its slope is infinite
            losses["loss_giou"] = losses["loss_giou"] + (0 * losses["loss_giou"]).sqrt()
        return losses


def train(late_check, kind, max_skipped=1, output_dir="", fused=True):
    """Returns weights, optimizer steps of a parameter, logged losses, skips, and the message of a stop."""
    torch.manual_seed(0)
    model = distribute(Poisoned())
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, fused=fused)
    check = FiniteCheck(output_dir=output_dir, max_skipped=max_skipped)
    loop = TrainLoop(
        model, Batches(kind), optimizer, max_grad_norm=0.1, finite_check=check, late_check=late_check
    )
    message, unsettled, logged = "", [], {}
    with EventStorage() as storage:
        try:
            for loop.iter in range(STEPS):
                storage.iter = loop.iter
                loop.run_step()
                unsettled.append(storage.latest().get("grad_norm", (0, -1))[1] < loop.iter)
            loop.settle()
        except FloatingPointError as problem:
            message = str(problem)
        loop._write_log()
        if comm.is_main_process():
            logged = {iteration: value for value, iteration in storage.histories()["total_loss"].values()}
    assert all(unsettled) == (late_check and fused)
    weights = torch.cat([p.detach().flatten() for p in model.parameters()])
    steps = int(next(iter(optimizer.state.values()))["step"])
    return weights, steps, logged, check.num_skipped, message


@pytest.mark.parametrize("kind", ["none", "loss", "gradient"])
def test_weights_and_log_are_those_of_a_host_that_waits(kind):
    weights, steps, logged, skipped, _ = train(False, kind)
    late = train(True, kind)
    assert torch.equal(late[0], weights)
    assert late[1:4] == (steps, logged, skipped)
    assert steps == len(logged) == (STEPS if kind == "none" else STEPS - 1)
    assert skipped == (0 if kind == "none" else 1)


@pytest.mark.parametrize("kind", ["loss", "gradient"])
def test_two_processes_leave_out_what_is_bad_in_one(kind):
    waiting = run_processes(2, train, False, kind)
    for (weights, steps, logged, *rest), late in zip(waiting, run_processes(2, train, True, kind)):
        assert torch.equal(late[0], weights)
        assert torch.equal(late[0], waiting[0][0])
        assert late[1:] == (steps, logged, *rest)


def test_a_stop_leaves_the_weights_of_before_the_bad_step(tmp_path):
    weights, steps, logged, _, message = train(False, "loss", max_skipped=0)
    late_folder = tmp_path / "late"
    late = train(True, "loss", max_skipped=0, output_dir=str(late_folder))
    assert torch.equal(late[0], weights)
    assert late[1:3] == (steps, logged)
    assert "Iteration 2 is not finite" in message
    assert "step_2_0.jpg" in late[-1]
    saved = {path.name for path in late_folder.glob("bad_batches/*")}
    assert saved == {"iteration_0000002_rank_0.pth", "iteration_0000002_weights.pth"}


def test_an_optimizer_that_cannot_leave_out_a_step_has_the_host_wait():
    weights, *rest = train(False, "loss", fused=False)
    other, *other_rest = train(True, "loss", fused=False)
    assert torch.equal(weights, other)
    assert rest == other_rest


def test_settling_twice_changes_nothing():
    model = Poisoned()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, fused=True)
    loop = TrainLoop(model, Batches("none"), optimizer, late_check=True)
    loop.iter = 0
    with EventStorage() as storage:
        loop.run_step()
        loop.settle()
        before = copy.deepcopy(storage.latest())
        loop.settle()
        assert storage.latest() == before
