"""Warnings about runs that would end well and be worth nothing: each one sentence, once, with what to change."""

import hashlib
import logging
import os
from collections import defaultdict
from collections.abc import Iterable, Sequence

from detectron2.config import CfgNode
from detectron2.engine import HookBase
from detectron2.utils import comm

from updetr_d2.data.datasets.names import DatasetDicts
from updetr_d2.utils.files import file_size, printable

logger = logging.getLogger(__name__)

# Of a test set so many images are looked for in the training set by their content, ...
_NUM_COMPARED = 200
# ... among all training images up to this number of them, else among those of the same file name, ...
_MOST_SIZES = 5000
# ... and so many files of the same size are opened at most.
_MOST_OPENED = 2000
_BLOCK_SIZE = 2**14

# SOLVER.ADVISED_ITERS of the recipes for little data.
_ADVISED_FOR_FEW_LABELS = 300
# Percent: below it hardly a box is right.
_LOW_AP50 = 5.0


def advise_schedule(cfg: CfgNode, num_images: int) -> None:
    """Warn of runs too short to learn, or to use their unlabeled images, and of batches larger than the data.

    Args:
        cfg: with the schedule in iterations.
        num_images: of the training set.
    """
    solver = cfg.SOLVER
    if solver.MAX_ITER < solver.ADVISED_ITERS:
        other = ", or take a recipe for little data (configs/custom/few_label_lite0.yaml)"
        logger.warning(
            "The run has %d iterations, fewer than the %d (SOLVER.ADVISED_ITERS) that such a model needs: raise "
            "SOLVER.%s%s.",
            *(solver.MAX_ITER, solver.ADVISED_ITERS, "EPOCHS" if solver.EPOCHS else "MAX_ITER"),
            other if solver.ADVISED_ITERS > _ADVISED_FOR_FEW_LABELS else "",
        )
    if solver.WARMUP_ITERS and solver.WARMUP_FACTOR == 1.0:
        logger.warning(
            "SOLVER.WARMUP_ITERS is %d, but the learning rate starts at SOLVER.WARMUP_FACTOR 1.0 of itself: set "
            "that to 0.01 for a warm-up, or WARMUP_ITERS to 0.",
            solver.WARMUP_ITERS,
        )
    burn_in = solver.MEAN_TEACHER.BURN_IN_ITERS
    if cfg.DATASETS.UNLABELED and burn_in >= solver.MAX_ITER:
        logger.warning(
            "SOLVER.MEAN_TEACHER.BURN_IN_ITERS is %d and the run has %d iterations, so that the images of "
            "DATASETS.UNLABELED are never used: make it about a third of the iterations.",
            *(burn_in, solver.MAX_ITER),
        )
    if num_images < solver.IMS_PER_BATCH:
        logger.warning(
            "SOLVER.IMS_PER_BATCH is %d, but DATASETS.TRAIN has only %d images, which come more than once in each "
            "batch: lower it, and SOLVER.BASE_LR with it.",
            *(solver.IMS_PER_BATCH, num_images),
        )


def advise_held_out(dataset_name: str, test: DatasetDicts, train: DatasetDicts) -> None:
    """Warn of a test set with images that are trained on.

    Args:
        dataset_name: of the test set.
        test: its images.
        train: those of the training set.
    """
    shared = shared_images(train, test)
    if shared:
        logger.warning(
            "At least %d of the %d images of '%s' in DATASETS.TEST are in DATASETS.TRAIN as well, such as %s: the "
            "results will not tell how good the model is on other images; name held-out ones there (updetr split "
            "--held-out divides labels).",
            *(len(shared), len(test), dataset_name, printable(shared[0])),
        )


def shared_images(train: DatasetDicts, test: DatasetDicts) -> list[str]:
    """Images of a test set that are in a training set: all with the same path, and of a sample copies as well.

    Args:
        train, test: dataset dicts; only ``file_name`` is read.

    Returns:
        file names of test images.
    """
    train_names = {each["file_name"] for each in train}
    test_names = [each["file_name"] for each in test]
    shared = [name for name in test_names if name in train_names]
    others = [name for name in test_names if name not in train_names]
    sample = others[:: max(1, len(others) // _NUM_COMPARED)][:_NUM_COMPARED]
    return shared + _copies(sample, train_names)


def _copies(sample: Sequence[str], train_names: Iterable[str]) -> list[str]:
    """The files of a sample that have the content of a training image."""
    candidates = sorted(train_names)
    if len(candidates) > _MOST_SIZES:
        base_names = set(map(os.path.basename, sample))
        candidates = [name for name in candidates if os.path.basename(name) in base_names][:_MOST_SIZES]
    of_size = defaultdict(list)
    for name in candidates:
        of_size[file_size(name)].append(name)
    num_opened = 0
    digests: dict[int, set[bytes | None]] = {}
    copies = []
    for name in sample:
        size = file_size(name)
        if size is None or size not in of_size:
            continue
        if size not in digests:
            if num_opened + len(of_size[size]) > _MOST_OPENED:
                continue
            num_opened += len(of_size[size])
            digests[size] = {_digest(each, size) for each in of_size[size]}
        digest = _digest(name, size)
        if digest is not None and digest in digests[size]:
            copies.append(name)
    return copies


def _digest(name: str, size: int) -> bytes | None:
    """Of the begin, the middle and the end of a file."""
    digest = hashlib.sha256()
    try:
        with open(name, "rb") as file:
            for start in (0, max(0, (size - _BLOCK_SIZE) // 2), max(0, size - _BLOCK_SIZE)):
                file.seek(start)
                digest.update(file.read(_BLOCK_SIZE))
    except OSError:
        return None
    return digest.digest()


class LowResultAdvice(HookBase):
    """At the end of training, after the evaluation, warn if the last AP50 says that nothing was learned."""

    def after_train(self) -> None:
        if not comm.is_main_process() or self.trainer.iter + 1 < self.trainer.max_iter:
            return
        values = {
            name: value
            for name, (value, _) in self.trainer.storage.latest().items()
            if name.split("/")[-2:] == ["bbox", "AP50"]
        }
        if values and max(values.values()) < _LOW_AP50:
            name = max(values, key=values.__getitem__)
            logger.warning(
                "The last AP50 (%s) is %.1f %%, so hardly a box is right: look at the labels and at what the "
                "model finds (updetr demo), check that MODEL.WEIGHTS is what you meant, and train for "
                "longer or with another SOLVER.BASE_LR.",
                *(name, values[name]),
            )
