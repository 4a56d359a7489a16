"""What a task is, the registry of tasks, and which one a config is for.

A meta-architecture names its task in the class attribute ``task``, which its subclasses inherit; everything that
differs between tasks is asked of the task. :class:`Task` itself answers as Detectron2 does, for architectures
that name none, such as ``GeneralizedRCNN``.
"""

import functools
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from detectron2.config import CfgNode
from detectron2.data import DatasetMapper
from detectron2.engine import HookBase
from detectron2.evaluation import DatasetEvaluator
from detectron2.modeling import META_ARCH_REGISTRY, GeneralizedRCNN, PanopticFPN
from detectron2.utils.registry import Registry
from torch import nn

from updetr_d2.config.checks import check_common_config, check_registered
from updetr_d2.data.datasets.classes import check_class_ids, derive_num_classes
from updetr_d2.data.datasets.names import DatasetDicts
from updetr_d2.data.loading.build import build_train_loader, load_test_set, load_training_set
from updetr_d2.data.loading.state import BatchLoader
from updetr_d2.evaluation.build import build_dataset_evaluator
from updetr_d2.tasks.findings import Findings, PredictedClasses, draw_classes

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class QueryPatches:
    """How the query patches that a model looks for are cut.

    Attributes:
        size: side (px) of the square that each patch is resized to.
        margin: context around the box of a patch on each side, as a fraction of the box's sides.
        limit: most patches of an image; None for any number.
        limit_key: config key of the limit.
    """

    size: int
    margin: float = 0.0
    limit: int | None = None
    limit_key: str = ""


class Task:
    """What a model is trained and evaluated for; each method may be overridden.

    The methods get the config of a run and keep no state. Register a task of your own with
    ``@TASKS.register()`` and name it in the ``task`` of a meta-architecture.

    Attributes:
        name: in ``TASKS`` and in ``task`` of meta-architectures.
        tabs: of the demo page that can show such a model.
        with_unlabeled: name of the task that trains with ``DATASETS.UNLABELED`` as well, "" if there is none.
    """

    name: str = ""
    with_unlabeled: str = ""
    tabs: tuple[str, ...] = ("detection",)

    # --- Config ---
    def check_config(self, cfg: CfgNode) -> None:
        """Refuse values that would fail late, or never and silently.

        Raises:
            ValueError: naming the key, its value and what it may be.
        """
        check_common_config(cfg)

    def num_classes_key(self, cfg: CfgNode) -> str | None:
        """Key that holds the number of classes of the data set; None for models that do not learn them."""
        bases = getattr(find_meta_architecture(cfg), "__mro__", ())
        # A PanopticFPN counts things and stuff apart.
        is_rcnn = GeneralizedRCNN in bases and PanopticFPN not in bases
        return "MODEL.ROI_HEADS.NUM_CLASSES" if is_rcnn else None

    def derive_num_classes(self, cfg: CfgNode, dataset_names: Sequence[str]) -> CfgNode:
        """Take the number of classes from the data sets where the config says 0, check it otherwise.

        Returns:
            ``cfg`` itself, or a changed copy that is frozen if ``cfg`` was.

        Raises:
            ValueError: if a data set has no classes, others than the first, or another number of them.
        """
        key = self.num_classes_key(cfg)
        return cfg if key is None else derive_num_classes(cfg, dataset_names, key=key)

    # --- Data ---
    def training_set(self, cfg: CfgNode) -> DatasetDicts:
        """The dataset dicts of ``DATASETS.TRAIN``, as far as training may see them."""
        return load_training_set(cfg, labeled=self.num_classes_key(cfg) is not None)

    def check_training_set(self, cfg: CfgNode, dataset_dicts: DatasetDicts) -> None:
        """Check the labels before the first iteration.

        Raises:
            ValueError: naming the file, or the data set, and what is wrong.
        """
        if (key := self.num_classes_key(cfg)) is not None:
            check_class_ids(cfg, dataset_dicts, key=key)
        if cfg.INPUT.PROPOSALS.FILE:
            logger.warning(
                "INPUT.PROPOSALS.FILE %s is not used: a %s learns from labels, and boxes without them are for "
                "pre-training (configs/custom/few_label_lite0_pretrain_clusters.yaml).",
                *(cfg.INPUT.PROPOSALS.FILE, cfg.MODEL.META_ARCHITECTURE),
            )

    def check_test_set(self, cfg: CfgNode, dataset_name: str, dataset_dicts: DatasetDicts) -> None:
        """Check before the first iteration what evaluation will need of the labels, beside its evaluator.

        Raises:
            ValueError: naming the data set, and what is wrong.
        """

    def test_set(self, cfg: CfgNode, dataset_name: str) -> DatasetDicts:
        """The dataset dicts that evaluation on one of ``DATASETS.TEST`` goes through."""
        return load_test_set(dataset_name)

    def build_mapper(
        self, cfg: CfgNode, *, is_train: bool, dataset_dicts: DatasetDicts | None = None
    ) -> Callable[[dict], dict]:
        """The function from a dataset dict to a sample.

        Args:
            cfg: of the run.
            is_train: whether the samples are for training.
            dataset_dicts: the training set, for mappers that mix images.
        """
        return DatasetMapper(cfg, is_train)

    def build_train_loader(self, cfg: CfgNode, dataset_dicts: DatasetDicts) -> BatchLoader:
        """The endless batches of this process.

        Args:
            cfg: of the run.
            dataset_dicts: as :meth:`training_set` gives them.
        """
        mapper = self.build_mapper(cfg, is_train=True, dataset_dicts=dataset_dicts)
        return build_train_loader(cfg, mapper=mapper, dataset_dicts=dataset_dicts)

    # --- Training and evaluation ---
    def build_training_step(self, cfg: CfgNode, average: nn.Module | None) -> Callable | None:
        """What gives the losses of a batch, see ``engine.train_loop``; None for the model itself.

        If it has a ``state_dict``, that is part of the checkpoints.

        Args:
            cfg: of the run.
            average: the model with the averaged weights, None without ``SOLVER.EMA``.
        """
        return None

    def training_hooks(self, cfg: CfgNode) -> list[HookBase]:
        """Hooks beside those of every training; they run after the checkpoint and the evaluation."""
        return []

    def build_evaluator(self, cfg: CfgNode, dataset_name: str, output_folder: str) -> DatasetEvaluator:
        """
        Args:
            cfg: of the run.
            dataset_name: one of ``DATASETS.TEST``.
            output_folder: where results and pictures go.

        Raises:
            ValueError: if there is no evaluator for the data set.
        """
        return build_dataset_evaluator(cfg, dataset_name, output_folder)

    # --- Prediction ---
    def query_patches(self, cfg: CfgNode) -> QueryPatches | None:
        """How query patches are cut; None for models that look for none."""
        return None

    def predicted_classes(self, cfg: CfgNode, num_patches: int = 0) -> PredictedClasses:
        """What ``pred_classes`` of :meth:`findings` means.

        Args:
            cfg: of the model.
            num_patches: query patches that are looked for.
        """
        return PredictedClasses.from_config(cfg)

    def findings(
        self,
        output: dict[str, Any],
        image: np.ndarray,
        *,
        classes: PredictedClasses,
        threshold: float,
        patches: np.ndarray | None = None,
        picture_scale: float = 1.0,
    ) -> Findings:
        """What of the model's output is shown to people, with pictures.

        Args:
            output: of the model for the image, ``instances`` on the CPU.
            image: RGB uint8 ``[H, W, 3]``.
            classes: as :meth:`predicted_classes` gives them.
            threshold: lowest score, in [0, 1].
            patches: RGB uint8 ``[m, h, w, 3]`` that were looked for.
            picture_scale: size of the pictures relative to the image.
        """
        return draw_classes(output, image, classes=classes, threshold=threshold, picture_scale=picture_scale)


class TaskRegistry(Registry):
    """Tasks by their ``name``; :meth:`get` returns the task itself, not its class."""

    def register(self, task: type[Task] | None = None) -> Any:
        """Use as ``@TASKS.register()`` on a subclass of :class:`Task`."""
        if task is None:
            return self.register
        self._do_register(task.name, task())
        return task


TASKS = TaskRegistry("TASKS")
TASKS.__doc__ = "Tasks by the name that meta-architectures give in their class attribute ``task``."

_DETECTRON2_TASK = Task()


def find_meta_architecture(cfg: CfgNode) -> Callable:
    """What is registered as ``MODEL.META_ARCHITECTURE``.

    Raises:
        ValueError: if nothing is.
    """
    name = cfg.MODEL.META_ARCHITECTURE
    check_registered("MODEL.META_ARCHITECTURE", name, META_ARCH_REGISTRY)
    return META_ARCH_REGISTRY.get(name)


def task_of(cfg: CfgNode) -> Task:
    """The task of ``MODEL.META_ARCHITECTURE``; one that answers as Detectron2 does if the class names none.

    Raises:
        ValueError: if there is no such meta-architecture, or no such task, or none for ``DATASETS.UNLABELED``.
    """
    task = task_of_architecture(find_meta_architecture(cfg))
    if not cfg.DATASETS.UNLABELED:
        return task
    if not task.with_unlabeled:
        raise ValueError(
            f"DATASETS.UNLABELED is {tuple(cfg.DATASETS.UNLABELED)}, but MODEL.META_ARCHITECTURE "
            f"{cfg.MODEL.META_ARCHITECTURE} has no use for it; use DETR, or set it to ()."
        )
    return TASKS.get(task.with_unlabeled)


def task_of_architecture(architecture: Callable) -> Task:
    """As :func:`task_of`, for a registered class (or function that builds a model)."""
    name = getattr(architecture, "task", None)
    if name is None:
        _warn_if_unknown(architecture)
        return _DETECTRON2_TASK
    if name not in TASKS:
        known = ", ".join(sorted(registered for registered, _ in TASKS))
        raise ValueError(
            f"{architecture.__name__}.task is '{name}', which is not registered; use one of {known}, or register "
            "a Task of that name in updetr_d2.tasks.TASKS."
        )
    return TASKS.get(name)


@functools.cache
def _warn_if_unknown(architecture: Callable) -> None:
    """Say once that an architecture that is neither ours nor Detectron2's names no task."""
    bases = getattr(architecture, "__mro__", (architecture,))
    if not any(base.__module__.startswith("detectron2.") for base in bases):
        logger.warning(
            "MODEL.META_ARCHITECTURE %s names no task: data, checks and evaluation are Detectron2's; a class "
            "attribute such as task = 'detection' chooses another of %s.",
            architecture.__name__,
            ", ".join(sorted(name for name, _ in TASKS)),
        )
