"""Parts of a batch, one after the other, make the update of the whole batch."""

import pytest
import torch
from detectron2.utils import comm
from detectron2.utils.events import EventStorage
from helpers import DINO, random_sample, tiny_model
from processes import run_processes
from torch import nn

from updetr_d2.engine.accumulation import split_batch
from updetr_d2.engine.train_loop import TrainLoop
from updetr_d2.engine.trainer import distribute

BATCH = 32


class Batches:
    """Global batches with very different numbers of objects, and images of one size (parts pad by themselves)."""

    seed = 3

    def __init__(self, num_patches):
        self.num_patches = num_patches

    def __iter__(self):
        step = 0
        while True:
            torch.manual_seed(step)
            batch = [
                random_sample(32, 64, num_targets=(0, 1, 9)[i % 3], num_patches=self.num_patches)
                for i in range(BATCH)
            ]
            size = BATCH // comm.get_world_size()
            yield batch[comm.get_rank() * size :][:size]
            step += 1


def train(num_parts, model, num_patches=None, steps=5):
    """Five steps; returns the weights and the total losses."""
    torch.manual_seed(0)
    model = distribute(tiny_model(*model, "MODEL.UPDETR.MASK_RATIO", 0.0))
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    loop = TrainLoop(model, Batches(num_patches), optimizer, num_parts=num_parts, max_grad_norm=0.5)
    losses = []
    with EventStorage() as storage:
        for loop.iter in range(steps):
            storage.iter = loop.iter
            loop.run_step()
            loop.settle()
            if comm.is_main_process():
                losses.append(storage.latest()["total_loss"][0])
    return torch.cat([p.detach().flatten() for p in optimizer.param_groups[0]["params"]]), losses


MODELS = {"DETR": (("DETR",), None), "UPDETR": (("UPDETR",), 5)}


@pytest.mark.parametrize("name", MODELS)
def test_four_parts_of_8_make_the_update_of_32(name):
    weights, losses = train(1, *MODELS[name])
    parts, parts_losses = train(4, *MODELS[name])
    start, _ = train(1, *MODELS[name], steps=0)
    assert (weights - start).norm() > 1e-3 * start.norm()  # it trains
    assert (parts - weights).norm() <= 1e-6 * weights.norm()
    assert (parts - weights).norm() <= 1e-3 * (weights - start).norm()
    assert parts_losses == pytest.approx(losses, rel=1e-5)


def test_two_processes_with_four_parts_each_make_the_same_update():
    (parts, parts_losses), (others, _) = run_processes(2, train, 4, *MODELS["DETR"])
    assert torch.equal(parts, others)
    whole = run_processes(2, train, 1, *MODELS["DETR"])[0]
    assert (parts - whole[0]).norm() <= 1e-6 * whole[0].norm()
    assert parts_losses == pytest.approx(whole[1], rel=1e-5)


def test_focal_losses_and_denoising_add_up_over_the_boxes_of_the_whole_batch():
    torch.manual_seed(0)
    model = tiny_model("DETR", *DINO, "MODEL.DENOISING.NUM_QUERIES", 0)
    batch = [random_sample(64, 64, num_targets=n) for n in (1, 0, 7, 2)]
    whole = model(batch)
    parts = [model(part) for part in split_batch(batch, 4, losses_add_up=True)]
    for name, value in whole.items():
        torch.testing.assert_close(sum(part[name] for part in parts), value, rtol=1e-4, atol=1e-5)


class MeanOfPixels(nn.Module):
    """A model of others, whose loss is the mean over its images."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(()))

    def forward(self, batch):
        assert "update_counts" not in batch[0]
        return {"loss": torch.stack([self.weight * x["image"].float().mean() for x in batch]).mean()}


def test_losses_of_models_that_know_nothing_of_parts_are_averaged():
    gradients = []
    for num_parts in (1, 4):
        model = MeanOfPixels()
        loop = TrainLoop(model, Batches(None), torch.optim.SGD(model.parameters(), lr=0), num_parts=num_parts)
        loop.iter = 0
        with EventStorage() as storage:
            loop.run_step()
        gradients.append((float(model.weight.grad), storage.latest()["total_loss"][0]))
    assert gradients[0] == pytest.approx(gradients[1], rel=1e-5)


def test_parts_have_nearly_the_same_size():
    sizes = [len(part) for part in split_batch([{}] * 10, 4, losses_add_up=False)]
    assert sizes == [2, 3, 2, 3]
    assert len(split_batch([{}] * 2, 4, losses_add_up=False)) == 2
