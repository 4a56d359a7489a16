"""Pre-train, fine-tune or evaluate a model: Detectron2's command line, for all tasks of updetr_d2.

    updetr train --config-file pretrain/updetr_r50_imagenet_60ep.yaml --num-gpus 8 \\
        DATASETS.TRAIN '("folder:/data/photos",)' DATASETS.TEST '("folder:/data/others",)' OUTPUT_DIR output/photos

``--resume`` continues an interrupted run; SIGTERM and Ctrl-C save a checkpoint and exit with code 75.
``--eval-only`` evaluates MODEL.WEIGHTS (or, with ``--resume``, the last checkpoint).
``torchrun --nproc_per_node 8 --no-python updetr train ...`` works as well.
"""

import functools
import logging
import sys
import time
from argparse import Namespace
from collections.abc import Callable, Iterable, Sequence
from typing import NoReturn

from detectron2.config import CfgNode
from detectron2.engine import default_argument_parser, default_setup
from detectron2.evaluation import verify_results
from detectron2.utils import comm
from detectron2.utils.logger import setup_logger
from torch import nn

from updetr_d2.checkpoint.checkpointer import UPDETRCheckpointer
from updetr_d2.checkpoint.run_files import check_writable
from updetr_d2.config.files import find_config_file, read_config
from updetr_d2.data.datasets.classes import check_trained_classes, class_names
from updetr_d2.data.datasets.names import ensure_registered
from updetr_d2.engine.config_file import kept_config
from updetr_d2.engine.hooks import write_report
from updetr_d2.engine.launch import REFUSED_EXIT_CODE, LaunchError, launch
from updetr_d2.engine.run_lock import lock_output_dir
from updetr_d2.engine.trainer import UPDETRTrainer
from updetr_d2.tasks import check_config, task_of

logger = logging.getLogger("updetr_d2")

# Options without a value. Detectron2's parser takes all that stands behind the first KEY VALUE pair for pairs.
_FLAGS = ("--resume", "--eval-only")
_WAIT_FOR_MAIN = 3.0  # seconds


def setup(args: Namespace) -> CfgNode:
    """Read and check the config, start logging, register the data sets that it names."""
    # Detectron2's set-up opens the file as well, to log it.
    args = Namespace(**{**vars(args), "config_file": find_config_file(args.config_file)})
    cfg = read_config(args.config_file, args.opts)
    check_config(cfg)
    if comm.is_main_process():
        check_writable(cfg.OUTPUT_DIR)
        if not args.eval_only:
            lock_output_dir(cfg.OUTPUT_DIR)
    with kept_config(cfg.OUTPUT_DIR):
        default_setup(cfg, args)
    setup_logger(cfg.OUTPUT_DIR, distributed_rank=comm.get_rank(), name="updetr_d2")
    # After the logging has started, so that problems of the data sets are in the log.
    labeled = ("TEST",) if args.eval_only else ("TRAIN", "TEST")
    register_datasets(cfg, labeled if args.eval_only else (*labeled, "UNLABELED"))
    cfg = task_of(cfg).derive_num_classes(cfg, [name for key in labeled for name in cfg.DATASETS[key]])
    cfg.freeze()
    return cfg


def register_datasets(cfg: CfgNode, keys: Iterable[str]) -> None:
    """Make the data sets of a run known, and find the classes of those with labels.

    Args:
        cfg: of the run.
        keys: below ``DATASETS``.

    Raises:
        ValueError: naming the key, if one is not there or cannot be read.
    """
    learns_classes = task_of(cfg).num_classes_key(cfg) is not None
    for key in keys:
        for name in cfg.DATASETS[key]:
            try:
                ensure_registered([name])
                if learns_classes and key != "UNLABELED":
                    class_names(name)
            except (ValueError, OSError) as error:
                raise ValueError(f"DATASETS.{key}: {error}") from error


def configured_device(args: Namespace) -> str:
    """``MODEL.DEVICE``, which decides how the processes talk to each other; "cuda" if the config can't be read."""
    try:
        cfg = read_config(args.config_file, args.opts)
    except ValueError:  # told by setup(), with advice
        return "cuda"
    return cfg.MODEL.DEVICE


def load_for_evaluation(cfg: CfgNode, resume: bool) -> nn.Module:
    """The model of ``--eval-only``.

    Raises:
        ValueError: if the weights cannot be used, or are of other classes than the test set.
    """
    model = UPDETRTrainer.build_model(cfg)
    checkpointer = UPDETRCheckpointer(model, save_dir=cfg.OUTPUT_DIR)
    checkpointer.averaged = cfg.MODEL.EMA_WEIGHTS
    checkpointer.resume_or_load(cfg.MODEL.WEIGHTS, resume=resume)
    weights = checkpointer.resumed_from or cfg.MODEL.WEIGHTS
    if random := checkpointer.parameters_not_loaded():
        logger.warning(
            "%d parameters, such as %s, are not in MODEL.WEIGHTS '%s': their random values are evaluated.",
            len(random),
            random[0],
            weights,
        )
    if cfg.DATASETS.TEST and task_of(cfg).num_classes_key(cfg):
        check_trained_classes(checkpointer.trained_classes, cfg.DATASETS.TEST[0], weights=weights)
    return model


def evaluate(cfg: CfgNode, model: nn.Module) -> dict:
    results = UPDETRTrainer.test(cfg, model)
    write_report(cfg.OUTPUT_DIR)
    if comm.is_main_process():
        verify_results(cfg, results)
    return results


def start(args: Namespace) -> Callable[[], dict | None]:
    """Do all that can be refused, but no work yet.

    Returns:
        what trains, or evaluates.

    Raises:
        ValueError, OSError: with one sentence for the user.
    """
    cfg = setup(args)
    if args.eval_only:
        return functools.partial(evaluate, cfg, load_for_evaluation(cfg, args.resume))
    trainer = UPDETRTrainer(cfg)
    trainer.resume_or_load(resume=args.resume)
    return trainer.train


def main(args: Namespace) -> dict | None:
    """Train or evaluate in this process."""
    return start(args)()


def _main_of_command(args: Namespace) -> None:
    """As :func:`main`; what is refused ends the process with the sentence, and the log file has the traceback."""
    try:
        work = start(args)
    except (ValueError, OSError) as error:
        record = logger.makeRecord(logger.name, logging.ERROR, __file__, 0, "Refused", (), sys.exc_info())
        for handler in logger.handlers:
            if not isinstance(handler, logging.StreamHandler) or handler.stream is not sys.stdout:
                handler.handle(record)
        _refuse(error)
    work()


def _refuse(error: Exception) -> NoReturn:
    if not comm.is_main_process():  # the launcher ends the others with the first, mostly refused for the same
        time.sleep(_WAIT_FOR_MAIN)
    print(f"error: {error}", file=sys.stderr, flush=True)
    sys.exit(REFUSED_EXIT_CODE)


def parse_arguments(argv: Sequence[str]) -> Namespace:
    """Detectron2's command line; ``--resume`` and ``--eval-only`` may stand behind the KEY VALUE pairs, too.

    Raises:
        SystemExit: with a sentence about other options behind the pairs, or a key without a value.
    """
    flags = [argument for argument in argv if argument in _FLAGS]
    others = [argument for argument in argv if argument not in _FLAGS]
    arguments = default_argument_parser(__doc__).parse_args([*flags, *others])
    late = [argument for argument in arguments.opts if argument.startswith("--")]
    if late:
        sys.exit(
            f"Put {late[0]}, with its value, before the KEY VALUE pairs: all behind the first pair are pairs."
        )
    if len(arguments.opts) % 2:
        sys.exit(f"These are not pairs of a key and a value, one is alone: {' '.join(arguments.opts)}")
    return arguments


def run(argv: list[str] | None = None) -> None:
    """Run the command line, in as many processes as it asks for."""
    arguments = parse_arguments(sys.argv[1:] if argv is None else argv)
    if not arguments.config_file:
        sys.exit("Name a config with --config-file; configs/ holds one for each recipe.")
    try:
        launch(_main_of_command, arguments, device=configured_device(arguments))
    except LaunchError as error:
        _refuse(error)
