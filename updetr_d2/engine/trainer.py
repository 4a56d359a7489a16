"""The trainer of every task: Detectron2's ``DefaultTrainer`` on our loaders, optimizer, loop and evaluators."""

import hashlib
import logging
import os
import re
import weakref

import torch
from detectron2.config import CfgNode
from detectron2.engine import DefaultTrainer, TrainerBase, hooks
from detectron2.evaluation import DatasetEvaluator
from detectron2.utils import comm
from detectron2.utils.events import EventWriter
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from updetr_d2.checkpoint.checkpointer import EMA, UPDETRCheckpointer
from updetr_d2.checkpoint.resuming import describe_run
from updetr_d2.config.access import changed
from updetr_d2.config.build import arguments_as_keys
from updetr_d2.config.flat import flat_config
from updetr_d2.config.schedule import derive_schedule
from updetr_d2.data.datasets.classes import class_names
from updetr_d2.data.datasets.names import DatasetDicts, load_dataset_dicts
from updetr_d2.data.loading.build import TestLoader
from updetr_d2.data.transforms.image_io import UnusableImageError
from updetr_d2.engine.advice import LowResultAdvice, advise_held_out, advise_schedule
from updetr_d2.engine.best_checkpoint import BestCheckpointHook, TrainingIsDone
from updetr_d2.engine.compilation import compile_parts
from updetr_d2.engine.config_file import save_config
from updetr_d2.engine.earlier_run import set_aside_earlier_run
from updetr_d2.engine.ema import EMA_RESULTS, EMAHook, WeightAverage
from updetr_d2.engine.finite_check import FiniteCheck
from updetr_d2.engine.hooks import (
    CheckpointHook,
    DataTimeAdvice,
    MetricsWriter,
    ReportHook,
    SettleHook,
    SkippedFilesReport,
)
from updetr_d2.engine.optimizer import build_optimizer, full_model_clip_norm
from updetr_d2.engine.plateau import HeldParameters, PlateauHook
from updetr_d2.engine.preemption import PreemptionHook, StopSignals
from updetr_d2.engine.train_loop import TrainLoop
from updetr_d2.engine.writers import build_writers
from updetr_d2.modeling.fast.optimize import optimize_frozen
from updetr_d2.tasks import build_evaluator, build_test_loader, task_of
from updetr_d2.utils.cache import short_name

logger = logging.getLogger(__name__)

# Iterations between lines in the log and in metrics.json.
WRITE_PERIOD = 20
# Bytes; evaluators add to it, and names have an end at 255.
_LONGEST_FOLDER_NAME = 180


class UPDETRTrainer(DefaultTrainer):
    """Train and evaluate any meta-architecture, on CPU or GPU, in one or several processes.

    Differs from ``DefaultTrainer`` in that schedules may be given in epochs, bf16 autocast works on every
    device, unusable images are replaced and reported, and ``--resume`` continues the data stream where the
    checkpoint left it.

    Args:
        cfg: a config with the keys of ``add_updetr_config``.
    """

    def __init__(self, cfg: CfgNode) -> None:
        TrainerBase.__init__(self)  # DefaultTrainer's own __init__ cannot run DDP or autocast on a CPU
        cfg = self.auto_scale_workers(cfg, comm.get_world_size())
        task = task_of(cfg)
        dataset_dicts = task.training_set(cfg)
        task.check_training_set(cfg, dataset_dicts)
        check_test_sets(cfg, dataset_dicts)
        cfg = derive_schedule(cfg, len(dataset_dicts))
        if comm.is_main_process():
            advise_schedule(cfg, len(dataset_dicts))

        torch.set_float32_matmul_precision(cfg.SOLVER.MATMUL_PRECISION)
        model = self.build_model(cfg)
        self.average = build_average(cfg, model)
        if cfg.MODEL.COMPILE:
            compile_parts(model)
        optimizer = self.build_optimizer(cfg, model)
        self.held = None
        if cfg.SOLVER.HELD_PARAMETERS:
            self.held = HeldParameters(model, cfg.SOLVER.HELD_PARAMETERS, cfg.SOLVER.HELD_ITERS)
        data_loader = task.build_train_loader(cfg, dataset_dicts)
        self.training_step = task.build_training_step(cfg, self.average.model if self.average else None)
        model = distribute(model)
        self.stop_signals = StopSignals()
        self._trainer = TrainLoop(
            model,
            data_loader,
            optimizer,
            amp_dtype=amp_dtype(cfg),
            max_grad_norm=full_model_clip_norm(cfg),
            finite_check=FiniteCheck(output_dir=cfg.OUTPUT_DIR, max_skipped=cfg.SOLVER.SKIP_NONFINITE_STEPS),
            stop_signals=self.stop_signals,
            compute_losses=self.training_step,
            num_parts=cfg.SOLVER.ACCUMULATION_STEPS,
            late_check=checks_late(cfg),
        )
        self._trainer.register_hooks([self.held])
        self.scheduler = self.build_lr_scheduler(cfg, optimizer)
        self.checkpointer = UPDETRCheckpointer(model, cfg.OUTPUT_DIR, trainer=weakref.proxy(self))
        self.checkpointer.averaged = cfg.MODEL.EMA_WEIGHTS
        if self.average is not None:
            self.checkpointer.add_checkpointable(EMA, self.average)
        if hasattr(self.training_step, "state_dict"):
            self.checkpointer.add_checkpointable("training_step", self.training_step)
        classes = class_names(cfg.DATASETS.TRAIN[0]) if task.num_classes_key(cfg) else ()
        self.checkpointer.run = describe_run(flat_config(cfg), classes)
        self.start_iter = 0
        self.max_iter = cfg.SOLVER.MAX_ITER
        self.cfg = cfg
        self.register_hooks(self.build_hooks())

    @classmethod
    def build_model(cls, cfg: CfgNode) -> nn.Module:
        with arguments_as_keys():
            return optimize_frozen(super().build_model(cfg), fuse=cfg.MODEL.FUSE_FROZEN)

    @classmethod
    def build_optimizer(cls, cfg: CfgNode, model: nn.Module) -> torch.optim.Optimizer:
        return build_optimizer(cfg, model)

    @classmethod
    def build_test_loader(cls, cfg: CfgNode, dataset_name: str) -> TestLoader:
        return build_test_loader(cfg, dataset_name)

    @classmethod
    def build_evaluator(cls, cfg: CfgNode, dataset_name: str) -> DatasetEvaluator:
        folder = re.sub(r"[^\w.-]+", "_", dataset_name)  # a name such as folder:/data/photos is no path
        if len(os.fsencode(folder)) > _LONGEST_FOLDER_NAME:
            folder = short_name(folder, f"-{hashlib.sha256(os.fsencode(dataset_name)).hexdigest()[:16]}")
        return build_evaluator(cfg, dataset_name, os.path.join(cfg.OUTPUT_DIR, "inference", folder))

    def build_hooks(self) -> list[hooks.HookBase | None]:
        cfg = self.cfg

        def evaluate() -> dict:
            self._last_eval_results = self.test(cfg, self.model)
            if self.average is not None:
                self._last_eval_results[EMA_RESULTS] = self.test(averaged_config(cfg), self.average.model)
            return self._last_eval_results

        checkpoints = CheckpointHook(
            self.checkpointer, cfg.SOLVER.CHECKPOINT_PERIOD, keep=cfg.SOLVER.KEEP_CHECKPOINTS
        )
        best = None
        if cfg.SOLVER.BEST_METRIC and cfg.TEST.EVAL_PERIOD:
            best = BestCheckpointHook(
                self.checkpointer,
                checkpoints,
                metric=cfg.SOLVER.BEST_METRIC,
                period=cfg.TEST.EVAL_PERIOD,
                patience=cfg.SOLVER.PATIENCE,
            )
        plateau = None
        if cfg.SOLVER.PLATEAU.PATIENCE:
            if not (cfg.TEST.EVAL_PERIOD and cfg.DATASETS.TEST):
                raise ValueError(
                    "SOLVER.PLATEAU.PATIENCE waits for results of evaluations: name held-out labels in "
                    "DATASETS.TEST and set TEST.EVAL_PERIOD, or set it to ()."
                )
            plateau = PlateauHook(
                output_dir=cfg.OUTPUT_DIR,
                metric=cfg.SOLVER.BEST_METRIC,
                period=cfg.TEST.EVAL_PERIOD,
                patience=cfg.SOLVER.PLATEAU.PATIENCE,
                factor=cfg.SOLVER.PLATEAU.FACTOR,
                least=cfg.SOLVER.PLATEAU.MIN_LR / cfg.SOLVER.BASE_LR,
                held=self.held,
                evaluate=evaluate,
            )
        return [
            hooks.IterationTimer(),
            hooks.LRScheduler(),
            EMAHook(self.average) if self.average is not None else None,
            checkpoints,
            PreemptionHook(self.stop_signals, checkpoints),
            # After the checkpoint, so that a failing evaluation loses no training.
            hooks.EvalHook(cfg.TEST.EVAL_PERIOD, evaluate),
            best,
            plateau,
            *task_of(cfg).training_hooks(cfg),
            SkippedFilesReport(),
            LowResultAdvice(),
            SettleHook(WRITE_PERIOD),
            DataTimeAdvice(num_workers=cfg.DATALOADER.NUM_WORKERS),
            MetricsWriter(self.build_writers, period=WRITE_PERIOD) if comm.is_main_process() else None,
            # Without pictures the page has little to say before the end.
            ReportHook(
                cfg.OUTPUT_DIR,
                eval_period=cfg.TEST.EVAL_PERIOD if cfg.TEST.VIS_IMAGES else 0,
                period=WRITE_PERIOD,
            ),
        ]

    def build_writers(self) -> list[EventWriter]:
        own = build_writers(self.cfg, max_iter=self.max_iter, resumed=lambda: self.start_iter > 0)
        return [*super().build_writers(), *own]

    def train(self) -> dict | None:
        """Train to the end, until ``SOLVER.PATIENCE`` is over, or to a stop signal (:mod:`.engine.preemption`).

        Returns:
            the results of the last evaluation where ``TEST.EXPECTED_RESULTS`` asks for them.
        """
        with self.stop_signals:
            try:
                return super().train()
            except TrainingIsDone:
                return None

    def settle(self) -> None:
        """See :meth:`.TrainLoop.settle`."""
        self._trainer.settle()

    def load_state_dict(self, state_dict: dict) -> None:
        """Go on from a checkpoint at its place in the schedule, with the learning rates of the config."""
        super().load_state_dict(state_dict)
        groups = self._trainer.optimizer.param_groups
        self.scheduler.base_lrs = [group["initial_lr"] for group in groups]
        for group, learning_rate in zip(groups, self.scheduler.get_lr()):
            group["lr"] = learning_rate

    def resume_or_load(self, resume: bool = True) -> None:
        """Continue from the last checkpoint in ``OUTPUT_DIR`` if there is one, else load ``MODEL.WEIGHTS``.

        Args:
            resume: as Detectron2's ``--resume``.
        """
        extra = self.checkpointer.resume_or_load(self.cfg.MODEL.WEIGHTS, resume=resume)
        if self.checkpointer.resumed_from:
            self.start_iter = self.iter + 1
            if self.start_iter >= self.max_iter:
                logger.warning(
                    "SOLVER.MAX_ITER is %d and %d iterations are done: nothing is left to train; set it higher.",
                    *(self.max_iter, self.start_iter),
                )
            CheckpointHook.restore_data_loader(self.data_loader, extra)
        else:
            check_pretrained(self.cfg, self.checkpointer)
            if not resume:  # after the weights, which may be those of the earlier run
                set_aside_earlier_run(self.cfg.OUTPUT_DIR)
        if self.average is not None and self.average.num_updates is None:
            if self.checkpointer.resumed_from:
                logger.warning(
                    "SOLVER.EMA: %s holds no average of the weights; it starts with the weights.",
                    self.checkpointer.resumed_from,
                )
            self.average.start(self.checkpointer.model)
        save_config(self.cfg)


def build_average(cfg: CfgNode, model: nn.Module) -> WeightAverage | None:
    """The average of ``SOLVER.EMA``, None if it is off."""
    ema = cfg.SOLVER.EMA
    return WeightAverage(model, decay=ema.DECAY, warmup=ema.WARMUP) if ema.ENABLED else None


def averaged_config(cfg: CfgNode) -> CfgNode:
    """The config by which the averaged weights are evaluated: their files have a folder of their own."""
    return changed(cfg, ["OUTPUT_DIR", os.path.join(cfg.OUTPUT_DIR, EMA_RESULTS)])


def amp_dtype(cfg: CfgNode) -> torch.dtype | None:
    """The autocast type of ``SOLVER.AMP``, None if it is off.

    ``SOLVER.AMP.AUTO`` gives bfloat16 on GPUs that have it.

    Raises:
        ValueError: if ``SOLVER.AMP.DTYPE`` is unknown, or float16 is asked for without a GPU.
    """
    if not cfg.SOLVER.AMP.ENABLED:
        on_gpu = cfg.SOLVER.AMP.AUTO and cfg.MODEL.DEVICE.startswith("cuda")
        return torch.bfloat16 if on_gpu and torch.cuda.is_bf16_supported(including_emulation=False) else None
    types = {"bfloat16": torch.bfloat16, "float16": torch.float16}
    name = cfg.SOLVER.AMP.DTYPE
    if name not in types:
        raise ValueError(f"SOLVER.AMP.DTYPE is '{name}'; use bfloat16 or float16.")
    if name == "float16" and not cfg.MODEL.DEVICE.startswith("cuda"):
        raise ValueError("SOLVER.AMP.DTYPE float16 needs MODEL.DEVICE cuda; use bfloat16.")
    return types[name]


def checks_late(cfg: CfgNode) -> bool:
    """Whether ``SOLVER.LATE_CHECK`` has an effect: on a CPU there is nothing to wait for."""
    return cfg.SOLVER.LATE_CHECK and cfg.MODEL.DEVICE.startswith("cuda")


def distribute(model: nn.Module) -> nn.Module:
    """Wrap the model for several processes; Detectron2's ``create_ddp_model`` cannot do it on CPUs.

    With ``device_ids`` DDP would copy every tensor of the samples to the GPU by itself, waiting for each.
    """
    if comm.get_world_size() == 1:
        return model
    return DistributedDataParallel(model, broadcast_buffers=False)


def check_test_sets(cfg: CfgNode, training_set: DatasetDicts = ()) -> None:
    """List the data sets of ``DATASETS.TEST`` and build their evaluators once, as the first evaluation will.

    Args:
        cfg: of the run.
        training_set: none of whose images should be in a test set.

    Raises:
        ValueError: if one is not there, has no images, or its evaluator cannot read what it needs.
    """
    task = task_of(cfg)
    if not comm.is_main_process():
        return
    for name in cfg.DATASETS.TEST:
        try:
            dataset_dicts = load_dataset_dicts([name], filter_empty=False, key="DATASETS.TEST")
            task.check_test_set(cfg, name, dataset_dicts)
            advise_held_out(name, dataset_dicts, training_set)
            # In the run's own folder: Detectron2's COCO evaluator keeps annotations there for later.
            UPDETRTrainer.build_evaluator(cfg, name)
        except (OSError, ValueError, KeyError, TypeError, UnusableImageError) as error:
            raise ValueError(
                f"'{name}' in DATASETS.TEST cannot be used ({error}); name held-out data there, or '()' to train "
                "without evaluation."
            ) from error


def check_pretrained(cfg: CfgNode, checkpointer: UPDETRCheckpointer) -> None:
    """Refuse to fine-tune from weights that hold no transformer when the config asks for one.

    Raises:
        ValueError: naming ``MODEL.WEIGHTS``.
    """
    if cfg.MODEL.DETR.REQUIRE_PRETRAINED_TRANSFORMER and not any(
        key.startswith("transformer.") for key in checkpointer.loaded_keys
    ):
        raise ValueError(
            f"MODEL.WEIGHTS '{cfg.MODEL.WEIGHTS}' holds nothing of the transformer, or of one of another size; "
            "this config wants it pre-trained: give a UP-DETR checkpoint (official ones go through "
            "tools/convert_weights.py), or set MODEL.DETR.REQUIRE_PRETRAINED_TRANSFORMER False to train it from "
            "scratch."
        )
