"""Tasks: what a model is trained and evaluated for, and everything that follows from it."""

from updetr_d2.tasks import (  # noqa: F401  (registration)
    detection,
    oneshot,
    panoptic,
    pretraining,
    semi_supervised,
)
from updetr_d2.tasks.base import TASKS, QueryPatches, Task, task_of, task_of_architecture
from updetr_d2.tasks.build import build_evaluator, build_mapper, build_test_loader, check_config

__all__ = [
    "TASKS",
    "QueryPatches",
    "Task",
    "build_evaluator",
    "build_mapper",
    "build_test_loader",
    "check_config",
    "task_of",
    "task_of_architecture",
]
