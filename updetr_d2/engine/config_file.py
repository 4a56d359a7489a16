"""``config.yaml`` of a run: that of the training, with its derived values."""

import contextlib
import os
from collections.abc import Iterator

from detectron2.config import CfgNode
from detectron2.utils import comm


@contextlib.contextmanager
def kept_config(output_dir: str) -> Iterator[None]:
    """Keep the ``config.yaml`` of a run that is there already: Detectron2's ``default_setup`` replaces it at once.

    A start that is refused, and an evaluation, leave it as it is; :class:`UPDETRTrainer` writes that of its run.
    """
    path = os.path.join(output_dir, "config.yaml")
    earlier = None
    if comm.is_main_process() and os.path.isfile(path):
        with open(path, "rb") as file:
            earlier = file.read()
    try:
        yield
    finally:
        if earlier is not None:
            with open(path, "wb") as file:
                file.write(earlier)


def save_config(cfg: CfgNode) -> None:
    """Write the config with its derived values over the one that Detectron2's ``default_setup`` wrote."""
    if comm.is_main_process() and cfg.OUTPUT_DIR:
        os.makedirs(cfg.OUTPUT_DIR, exist_ok=True)
        with open(os.path.join(cfg.OUTPUT_DIR, "config.yaml"), "w", encoding="utf-8") as file:
            file.write(cfg.dump())
