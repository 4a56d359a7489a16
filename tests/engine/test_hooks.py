"""Checkpoints hold every process's place in the data stream."""

import logging

from updetr_d2.engine import hooks
from updetr_d2.engine.hooks import CheckpointHook


class Loader:
    state = None

    def load_state_dict(self, state):
        self.state = state


def state(position, pending=()):
    return {"seed": 1, "num_images": 9, "next_position": position, "pending": list(pending)}


def test_each_process_gets_its_own_state_back(monkeypatch):
    monkeypatch.setattr(hooks.comm, "get_world_size", lambda: 2)
    monkeypatch.setattr(hooks.comm, "get_rank", lambda: 1)
    loader = Loader()
    CheckpointHook.restore_data_loader(loader, {"data_loader": [state(8, [2]), state(9, [3])]})
    assert loader.state == state(9, [3])


def test_another_number_of_processes_starts_at_the_furthest_position_and_warns(caplog):
    loader = Loader()
    with caplog.at_level(logging.WARNING):
        CheckpointHook.restore_data_loader(loader, {"data_loader": [state(8, [2]), state(11, [3])]})
    assert loader.state == state(11)
    assert "written by 2 processes and 1 continue" in caplog.text


def test_a_checkpoint_of_something_else_leaves_the_loader_alone():
    loader = Loader()
    CheckpointHook.restore_data_loader(loader, {"iteration": 3})
    assert loader.state is None
