"""Schedules in epochs become iterations of the given data set and batch size; explicit iterations win."""

import pytest
import torch
from detectron2.config import get_cfg
from detectron2.solver import build_lr_scheduler

from updetr_d2 import add_updetr_config
from updetr_d2.config.schedule import derive_schedule


@pytest.fixture
def cfg():
    cfg = get_cfg()
    add_updetr_config(cfg)
    cfg.SOLVER.MAX_ITER, cfg.SOLVER.STEPS, cfg.SOLVER.CHECKPOINT_PERIOD = 0, (), 0
    cfg.SOLVER.IMS_PER_BATCH = 8
    return cfg


def test_epochs_become_iterations(cfg):
    cfg.SOLVER.EPOCHS, cfg.SOLVER.EPOCH_STEPS = 60, (40,)
    cfg.SOLVER.CHECKPOINT_EPOCHS, cfg.TEST.EVAL_EPOCHS = 1, 5
    # 100 images are 12 full batches of 8; the last 4 images of an epoch go into the next one.
    derived = derive_schedule(cfg, 100)
    assert derived.SOLVER.MAX_ITER == 720
    assert derived.SOLVER.STEPS == (480,)
    assert derived.SOLVER.CHECKPOINT_PERIOD == 12
    assert derived.TEST.EVAL_PERIOD == 60
    assert cfg.SOLVER.MAX_ITER == 0


def test_twice_the_batch_is_half_the_iterations(cfg):
    cfg.SOLVER.EPOCHS = 3
    small = derive_schedule(cfg, 1600).SOLVER.MAX_ITER
    cfg.SOLVER.IMS_PER_BATCH = 16
    assert small // 2 == derive_schedule(cfg, 1600).SOLVER.MAX_ITER


def test_explicit_iterations_win_and_steps_keep_their_share(cfg):
    cfg.SOLVER.EPOCHS, cfg.SOLVER.EPOCH_STEPS = 60, (40,)
    cfg.SOLVER.MAX_ITER, cfg.TEST.EVAL_PERIOD, cfg.SOLVER.CHECKPOINT_PERIOD = 30, 7, 9
    derived = derive_schedule(cfg, 100)
    assert derived.SOLVER.MAX_ITER == 30
    assert derived.SOLVER.STEPS == (20,)
    assert (derived.TEST.EVAL_PERIOD, derived.SOLVER.CHECKPOINT_PERIOD) == (7, 9)
    cfg.SOLVER.STEPS = (5,)
    assert derive_schedule(cfg, 100).SOLVER.STEPS == (5,)


def test_a_data_set_smaller_than_a_batch_has_epochs_of_one_iteration(cfg):
    cfg.SOLVER.EPOCHS = 4
    assert derive_schedule(cfg, 3).SOLVER.MAX_ITER == 4


def test_without_a_checkpoint_period_the_run_saves_at_its_end(cfg):
    cfg.SOLVER.EPOCHS = 4
    assert derive_schedule(cfg, 80).SOLVER.CHECKPOINT_PERIOD == 40


def test_a_frozen_config_stays_frozen(cfg):
    cfg.SOLVER.EPOCHS = 4
    cfg.freeze()
    assert derive_schedule(cfg, 80).is_frozen()


def test_no_schedule_is_an_error(cfg):
    with pytest.raises(ValueError, match=r"SOLVER\.EPOCHS"):
        derive_schedule(cfg, 100)


def test_a_step_after_the_end_is_an_error(cfg):
    cfg.SOLVER.EPOCHS, cfg.SOLVER.EPOCH_STEPS = 10, (40,)
    with pytest.raises(ValueError, match=r"SOLVER\.EPOCH_STEPS \(40,\) must be smaller"):
        derive_schedule(cfg, 100)


@pytest.mark.parametrize(
    ("steps", "max_iter", "inside"),
    [((40,), 1, ()), ((3, 5), 5, (3,)), ((5, 3), 9, (3, 5)), ((0, 2, 2), 3, (2,)), ((3, 5), 9, (3, 5))],
)
def test_steps_that_a_shortened_run_does_not_reach_are_left_out(cfg, steps, max_iter, inside):
    cfg.SOLVER.STEPS, cfg.SOLVER.MAX_ITER = steps, max_iter
    derived = derive_schedule(cfg, 100)
    assert inside == derived.SOLVER.STEPS
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=derived.SOLVER.BASE_LR)
    scheduler = build_lr_scheduler(derived, optimizer)
    for _ in range(max_iter):
        optimizer.step()
        scheduler.step()
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.001 * 0.1 ** len(inside))
