"""Several processes train as one does, and agree on when to stop or to leave a step out."""

import os
import signal
from collections import Counter
from contextlib import ExitStack
from types import SimpleNamespace
from unittest import mock

import pytest
import torch
from detectron2.structures import BitMasks
from detectron2.utils import comm
from detectron2.utils.events import EventStorage
from helpers import PANOPTIC_RESNET18, random_sample, tiny_model
from processes import run_processes
from torch import nn

from updetr_d2.engine.finite_check import FiniteCheck
from updetr_d2.engine.preemption import PreemptionHook, StopSignals
from updetr_d2.engine.train_loop import TrainLoop
from updetr_d2.engine.trainer import distribute

GLOBAL_BATCH = 6


class SharedBatches:
    """Global batches of six images, of which each process gets its share, as the training loader deals them."""

    seed = 5

    def __init__(self, make_sample):
        self.make_sample = make_sample

    def __iter__(self):
        step = 0
        while True:
            batch = []
            for i in range(GLOBAL_BATCH):
                batch.append({**self.make_sample(step, i), "file_name": f"step_{step}_{i}.jpg"})
            yield batch[comm.get_rank() :: comm.get_world_size()]
            step += 1


class Poisoned(nn.Module):
    """A model whose losses or gradients go wrong with samples that say so."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, batch):
        losses = self.model(batch)
        kinds = {sample.get("poison") for sample in batch}
        if "loss" in kinds:
            losses["loss_giou"] = losses["loss_giou"] * float("nan")
        if "gradient" in kinds:  # the root of 0 is 0, but its slope is infinite
            losses["loss_giou"] = losses["loss_giou"] + (0 * losses["loss_giou"]).sqrt()
        return losses


def train(make_sample, steps=3, model=("UPDETR",), check=None, stop=None, after_step=lambda i: None):
    """Train on the CPU; returns the total loss of each step (main process) and the weights."""
    torch.manual_seed(0)
    model = distribute(Poisoned(tiny_model(*model, "MODEL.UPDETR.MASK_RATIO", 0.0)))
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.02)
    loop = TrainLoop(model, SharedBatches(make_sample), optimizer, finite_check=check, stop_signals=stop)
    losses = []
    with EventStorage() as storage:
        for loop.iter in range(steps):
            storage.iter = loop.iter
            loop.run_step()
            loop.settle()
            if comm.is_main_process():
                losses.append(storage.latest()["total_loss"][0])
            after_step(loop.iter)
    weights = torch.cat([p.detach().flatten() for p in optimizer.param_groups[0]["params"]])
    return losses, weights


def patches_to_find(step, i):
    torch.manual_seed(step * GLOBAL_BATCH + i)
    return random_sample(64, 64 + 32 * (i % 2), num_patches=5)


def test_two_and_three_processes_have_the_losses_of_one_with_the_same_global_batch():
    losses, weights = train(patches_to_find)
    assert losses[0] != pytest.approx(losses[2], rel=1e-3)  # it trains
    for world_size in (2, 3):
        results = run_processes(world_size, train, patches_to_find)
        assert results[0][0] == pytest.approx(losses, abs=1e-5, rel=1e-6)
        for _, theirs in results:
            assert torch.equal(theirs, results[0][1])
            torch.testing.assert_close(theirs, weights, atol=1e-5, rtol=0)


def unequal(step, i):
    """Process 0 gets large images with many objects, process 1 none at all, and so on in turn."""
    if (step + i) % 2:
        return random_sample(64, 64, num_targets=0)
    return random_sample(128, 160, num_targets=9)


def unequal_masks(step, i):
    sample = unequal(step, i)
    height, width = sample["instances"].image_size
    masks = torch.rand(len(sample["instances"]), height, width) > 0.5
    sample["instances"].gt_masks = BitMasks(masks)
    return sample


@pytest.mark.parametrize(
    ("meta_architecture", "make_sample", "options"),
    [("DETR", unequal, ()), ("PanopticDETR", unequal_masks, PANOPTIC_RESNET18)],
    ids=["DETR", "PanopticDETR"],
)
def test_a_process_without_any_object_keeps_step_with_the_others(meta_architecture, make_sample, options):
    (_, one), (_, other) = run_processes(2, train, make_sample, 2, (meta_architecture, *options))
    assert torch.equal(one, other)


def bad(kind):
    """The image of number 3, which process 1 of 2 has, is bad in step 1."""

    def make(step, i):
        sample = patches_to_find(step, i)
        if (step, i) == (1, 3):
            if kind == "image":
                sample["image"] = sample["image"].float().fill_(float("nan"))
            sample["poison"] = kind
        return sample

    return make


def train_into_the_bad_batch(kind, folder):
    with pytest.raises(FloatingPointError) as error:
        train(bad(kind), check=FiniteCheck(output_dir=folder))
    return str(error.value)


@pytest.mark.parametrize("kind", ["loss", "image", "gradient"])
def test_all_processes_stop_at_the_bad_batch_of_one(kind, tmp_path):
    messages = run_processes(2, train_into_the_bad_batch, kind, str(tmp_path))
    assert messages[0] == messages[1]
    assert "Iteration 1 is not finite" in messages[0]
    assert "step_1_3.jpg" in messages[0]
    # A gradient is the sum of all processes', so all batches are suspect; a loss is one process's own.
    guilty = {"rank_0", "rank_1"} if kind == "gradient" else {"rank_1"}
    saved = {path.stem.removeprefix("iteration_0000001_") for path in tmp_path.glob("bad_batches/*")}
    assert saved == guilty | {"weights"}
    if kind != "gradient":
        assert "step_1_2.jpg" not in messages[0]


def train_over_the_bad_batch(kind):
    check = FiniteCheck(max_skipped=1)
    return *train(bad(kind), check=check), check.num_skipped


@pytest.mark.parametrize("kind", ["loss", "image", "gradient"])
def test_a_step_that_is_left_out_changes_nothing_in_any_process(kind):
    results = run_processes(2, train_over_the_bad_batch, kind)

    def skip_one(step, i):
        return patches_to_find(step if step == 0 else 2, i)

    _, expected = run_processes(2, train, skip_one, 2)[0]
    for _, weights, num_skipped in results:
        assert torch.equal(weights, expected)
        assert num_skipped == 1


def fail_together(function, *args):
    """With a model that says so, as ours do."""
    Poisoned.fails_together = True
    return function(*args)


def test_the_criterion_tells_all_processes_of_a_failure(tmp_path):
    one, other = run_processes(2, fail_together, train_into_the_bad_batch, "image", str(tmp_path))
    assert one == other
    assert "process 1: The matching cost is not finite" in one
    assert "process 0" not in one
    (_, weights, num_skipped), (_, others, _) = run_processes(
        2, fail_together, train_over_the_bad_batch, "image"
    )
    assert torch.equal(weights, others)
    assert num_skipped == 1
    assert torch.equal(weights, run_processes(2, train_over_the_bad_batch, "image")[0][1])


def count_collectives(num_steps):
    """Collective operations of some steps, beside DDP's exchange of gradients."""
    counts = Counter()

    def counting(name):
        operation = getattr(torch.distributed, name)

        def counted(*args, **kwargs):
            counts[name] += 1
            return operation(*args, **kwargs)

        return counted

    names = ("all_reduce", "all_gather", "all_gather_object", "gather_object", "barrier", "broadcast")
    torch.manual_seed(0)
    model = distribute(tiny_model("UPDETR"))
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.02)
    loop = TrainLoop(model, SharedBatches(patches_to_find), optimizer)
    with ExitStack() as stack, EventStorage():
        for name in names:
            stack.enter_context(mock.patch.object(torch.distributed, name, counting(name)))
        for loop.iter in range(num_steps):
            loop.run_step()
        loop.settle()
    return dict(counts)


def test_a_step_has_two_collective_operations_and_the_log_one_exchange():
    assert run_processes(2, count_collectives, 3) == [{"all_reduce": 6, "gather_object": 1}] * 2


def train_until_stopped(signalled_rank):
    saved = []
    with StopSignals() as stop:
        hook = PreemptionHook(stop, SimpleNamespace(save_now=lambda: saved.append(hook.trainer.iter)))

        def after_step(iteration):
            hook.trainer = SimpleNamespace(iter=iteration, max_iter=9)
            if iteration == 1 and comm.get_rank() == signalled_rank:
                os.kill(os.getpid(), signal.SIGTERM)
            hook.after_step()

        with pytest.raises(SystemExit) as exit_info:
            train(patches_to_find, steps=9, stop=stop, after_step=after_step)
    return exit_info.value.code, saved


@pytest.mark.parametrize("signalled_rank", [0, 2])
def test_a_signal_to_one_process_stops_all_at_the_same_iteration(signalled_rank):
    assert run_processes(3, train_until_stopped, signalled_rank) == [(75, [2])] * 3
