"""What an earlier training has left in ``OUTPUT_DIR`` is kept when another one starts there.

Detectron2 writes checkpoints over those of the earlier run and appends to its metrics, so that results of both
look like one run's.
"""

import itertools
import logging
import os
from pathlib import Path

from detectron2.utils import comm

from updetr_d2.checkpoint.run_files import EARLIER_RUN, LAST_CHECKPOINT, SaveError
from updetr_d2.engine.bad_batches import BAD_BATCHES
from updetr_d2.engine.ema import EMA_RESULTS
from updetr_d2.engine.plateau import RESULTS_NAME
from updetr_d2.engine.tracking import RUNS_FILE
from updetr_d2.report.run_page import PAGE

logger = logging.getLogger(__name__)

_METRICS = "metrics.json"
# All that a training writes, but for its log, which tells of all that ran in the folder, and the lock.
_FILES_OF_A_RUN = (
    *("model_*.pth", LAST_CHECKPOINT, _METRICS, "events.out.tfevents.*", "config.yaml", PAGE),
    *(RESULTS_NAME, RUNS_FILE, "inference", EMA_RESULTS, "pictures", "pseudo_labels", BAD_BATCHES),
)


def set_aside_earlier_run(output_dir: str) -> None:
    """Move the files of a training that has written something to ``earlier_1`` (2, ...) in its folder.

    Args:
        output_dir: of a run that starts, before it has written anything but its log.

    Raises:
        SaveError: if they cannot be moved.
    """
    folder = Path(output_dir)
    if not comm.is_main_process() or not any(
        (folder / name).is_file() and (folder / name).stat().st_size for name in (LAST_CHECKPOINT, _METRICS)
    ):
        return
    numbers = itertools.count(1)
    aside = next(path for n in numbers if not (path := folder / f"{EARLIER_RUN}{n}").exists())
    try:
        aside.mkdir()
        for pattern in _FILES_OF_A_RUN:
            for path in folder.glob(pattern):
                os.rename(path, aside / path.name)
    except OSError as error:
        raise SaveError(
            f"OUTPUT_DIR '{output_dir}' holds an earlier training, which cannot be moved to {aside} "
            f"({error.strerror}): choose another OUTPUT_DIR, or go on with it by --resume."
        ) from error
    logger.warning(
        "OUTPUT_DIR '%s' held an earlier training: its checkpoints, metrics and results are in %s now. --resume "
        "would have gone on with it.",
        *(output_dir, aside),
    )
