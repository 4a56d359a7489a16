"""The training step: clipping of the whole model, bf16 on any device, logged scalars, repeatable randomness."""

import copy

import pytest
import torch
from detectron2.utils.events import EventStorage
from helpers import random_sample, tiny_model

from updetr_d2.engine.finite_check import FiniteCheck
from updetr_d2.engine.train_loop import TrainLoop


class OneBatch:
    """The same batch for ever."""

    seed = 5

    def __init__(self):
        torch.manual_seed(0)
        self.batch = [random_sample(num_patches=5), random_sample(num_patches=5)]

    def __iter__(self):
        while True:
            yield copy.deepcopy(self.batch)


def run_steps(model, steps=1, first=0, lr=0.0, **options):
    """Train some steps; returns the loop and the storage with what was logged."""
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=lr)
    loop = TrainLoop(model, OneBatch(), optimizer, **options)
    with EventStorage(first) as storage:
        for loop.iter in range(first, first + steps):
            storage.iter = loop.iter
            loop.run_step()
    return loop, storage


def gradient_norm(model):
    return torch.stack([p.grad.norm() for p in model.parameters() if p.grad is not None]).norm()


def test_the_gradient_of_the_whole_model_is_clipped():
    model = tiny_model("UPDETR")
    _, storage = run_steps(model)
    unclipped = gradient_norm(model)
    assert unclipped > 0.1
    assert storage.latest()["grad_norm"][0] == pytest.approx(float(unclipped), rel=1e-4)
    _, storage = run_steps(model, max_grad_norm=0.1)
    assert float(gradient_norm(model)) == pytest.approx(0.1, rel=1e-3)
    # What is logged is the norm before clipping.
    assert storage.latest()["grad_norm"][0] == pytest.approx(float(unclipped), rel=1e-4)


def test_losses_metrics_and_their_total_are_logged():
    _, storage = run_steps(tiny_model("UPDETR"))
    logged = {name: value for name, (value, _) in storage.latest().items()}
    losses = {name: value for name, value in logged.items() if name.startswith("loss_")}
    assert {"loss_ce", "loss_bbox", "loss_giou", "loss_feature", "loss_ce_0", "loss_feature_0"} <= set(losses)
    assert logged["total_loss"] == pytest.approx(sum(losses.values()), rel=1e-5)
    assert {"class_error", "cardinality_error", "data_time"} <= set(logged)


def test_bfloat16_step_on_the_cpu_is_close_to_float32():
    model = tiny_model("UPDETR")
    _, full = run_steps(model)
    _, half = run_steps(model, amp_dtype=torch.bfloat16)
    assert half.latest()["total_loss"][0] == pytest.approx(full.latest()["total_loss"][0], rel=0.05)
    assert half.latest()["total_loss"][0] != full.latest()["total_loss"][0]
    assert all(p.grad.dtype == torch.float32 for p in model.parameters() if p.grad is not None)


def test_random_numbers_of_a_step_depend_on_the_step_alone():
    torch.manual_seed(1)
    uninterrupted = tiny_model("UPDETR", "MODEL.DETR.DROPOUT", 0.3)
    resumed = copy.deepcopy(uninterrupted)
    run_steps(uninterrupted, steps=4, lr=0.01)
    run_steps(resumed, steps=2, lr=0.01)
    torch.rand(17)  # whatever happens between the two runs
    run_steps(resumed, steps=2, first=2, lr=0.01)
    for a, b in zip(uninterrupted.parameters(), resumed.parameters()):
        assert torch.equal(a, b)


def test_steps_differ_in_their_random_numbers():
    model = tiny_model("UPDETR", "MODEL.DETR.DROPOUT", 0.3)
    _, first = run_steps(model, first=0)
    _, second = run_steps(model, first=1)
    assert first.latest()["total_loss"][0] != second.latest()["total_loss"][0]


def state_of(model):
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


@pytest.mark.parametrize(
    "module", ["feature_align", "class_embed"]
)  # found in the loss, in the matching cost
def test_a_loss_that_is_not_finite_stops_the_run_before_any_weight_changes(module):
    model = tiny_model("UPDETR")
    with torch.no_grad():
        list(getattr(model, module).parameters())[-1].fill_(float("inf"))
    before = state_of(model)
    with pytest.raises(FloatingPointError, match="Iteration 0 is not finite"):
        run_steps(model, lr=0.1)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_a_step_that_is_left_out_is_counted_and_logged_as_nothing():
    model = tiny_model("UPDETR")
    with torch.no_grad():
        model.class_embed.bias.fill_(float("nan"))
    before = state_of(model)
    check = FiniteCheck(max_skipped=2)
    _, storage = run_steps(model, steps=2, lr=0.1, finite_check=check)
    assert check.num_skipped == 2
    assert "total_loss" not in storage.latest()
    after = model.state_dict()
    assert all(torch.equal(after[name], before[name]) for name in before if name != "class_embed.bias")


def test_overflowing_gradients_are_left_to_loss_scaling():
    model = tiny_model("UPDETR")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    loop = TrainLoop(model, OneBatch(), optimizer)
    loop.grad_scaler = torch.amp.GradScaler("cpu", init_scale=1e38)
    before = state_of(model)
    with EventStorage():
        loop.run_step()
    assert loop.finite_check.num_skipped == 0
    assert loop.grad_scaler.get_scale() == pytest.approx(5e37)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_loss_scale_and_number_of_steps_left_out_go_on_after_a_resume():
    def new_loop():
        model = tiny_model("UPDETR")
        loop = TrainLoop(model, OneBatch(), torch.optim.SGD(model.parameters(), lr=0.1))
        loop.grad_scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
        return loop

    interrupted, resumed = new_loop(), new_loop()
    interrupted.finite_check.num_skipped = 3
    interrupted.grad_scaler.load_state_dict({**interrupted.grad_scaler.state_dict(), "scale": 2.0})
    resumed.load_state_dict(interrupted.state_dict())
    assert resumed.finite_check.num_skipped == 3
    assert resumed.grad_scaler.get_scale() == 2.0


def test_a_run_without_loss_scaling_goes_on_with_it():
    model = tiny_model("UPDETR")
    loops = [TrainLoop(model, OneBatch(), torch.optim.SGD(model.parameters(), lr=0.1)) for _ in range(2)]
    loops[1].grad_scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    loops[1].load_state_dict(loops[0].state_dict())
    assert loops[1].grad_scaler.get_scale() == 8.0
