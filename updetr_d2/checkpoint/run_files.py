"""Checkpoint files on disk: written whole or not at all, checked before they are used, limited in number."""

import logging
import os
import re
import zipfile
from collections.abc import Callable, Iterator
from typing import IO

import torch

from updetr_d2.utils.files import TEMPORARY_SUFFIX, replacing

logger = logging.getLogger(__name__)

FINAL_NAME = "model_final"
BEST_NAME = "model_best"
LAST_CHECKPOINT = "last_checkpoint"
# Folders in OUTPUT_DIR, with a number behind it, of trainings that were there before.
EARLIER_RUN = "earlier_"
_NUMBERED = re.compile(r"model_(\d+)\.pth")


class SaveError(OSError):
    """A file that could not be written; the message is one sentence for the user."""


def numbered_name(iteration: int) -> str:
    """Name, without suffix, of the checkpoint after ``iteration`` (counted from 0), as in Detectron2."""
    return f"model_{iteration:07d}"


def write_atomically(path: str, write: Callable[[IO[bytes]], object]) -> None:
    """Write a file of a run by :func:`~updetr_d2.utils.files.replacing`.

    Args:
        path: of the file.
        write: gets the open file.

    Raises:
        SaveError: if the file could not be written; ``path`` and what it held are as before.
    """
    try:
        with replacing(path) as file:
            write(file)
    except BaseException as error:
        cause = next((each for each in _chain(error) if isinstance(each, OSError)), None)
        if cause is None:
            raise
        raise SaveError(
            f"{path} was not written ({cause.strerror or cause}): make room or give write permission in "
            "OUTPUT_DIR, or choose another OUTPUT_DIR; files written before are as they were."
        ) from error


def check_writable(folder: str) -> None:
    """Make ``OUTPUT_DIR`` and write to it, before anything is computed.

    Raises:
        SaveError: if that cannot be done.
    """
    try:
        os.makedirs(folder, exist_ok=True)
    except OSError as error:
        raise SaveError(
            f"OUTPUT_DIR '{folder}' cannot be made ({error.strerror}): choose another OUTPUT_DIR."
        ) from error
    probe = os.path.join(folder, ".writable")
    write_atomically(probe, lambda file: file.write(b"\0"))
    os.remove(probe)


def restore_folder(folder: str) -> None:
    """Make ``OUTPUT_DIR`` again if it has vanished, so that a run of days does not end without its weights.

    Args:
        folder: its parent must be there; a lost mount is not taken for a removed folder.

    Raises:
        SaveError: if it cannot be made.
    """
    if os.path.isdir(folder):
        return
    try:
        os.mkdir(folder)
    except OSError as error:
        raise SaveError(
            f"OUTPUT_DIR '{folder}' has vanished and cannot be made again ({error.strerror}): bring it back."
        ) from error
    logger.error(
        "OUTPUT_DIR '%s' had vanished, with its checkpoints and logs: it was made again for the next ones.",
        folder,
    )


def save_atomically(content: dict, path: str) -> None:
    """``torch.save`` by :func:`write_atomically`."""
    write_atomically(path, lambda file: torch.save(content, file))


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """An error and those it covers: ``torch.save`` hides a full disk behind an error of its own."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def remove_unfinished(folder: str) -> None:
    """Remove temporary files that a killed process left."""
    for name in os.listdir(folder):
        if name.endswith((f".pth{TEMPORARY_SUFFIX}", LAST_CHECKPOINT + TEMPORARY_SUFFIX)):
            os.remove(os.path.join(folder, name))


def find_damage(path: str) -> str | None:
    """Say what is wrong with a file of ``torch.save``, None if every byte is as it was written.

    ``torch.load`` notices a missing end but does not look at the checksums, so that flipped bits would become
    weights.
    """
    if not os.path.isfile(path):
        return "there is no such file"
    try:
        with zipfile.ZipFile(path) as archive:
            record = archive.testzip()
    except Exception as error:  # damaged archives raise errors of every kind
        return f"{type(error).__name__}: {error}"
    return None if record is None else f"wrong checksum of {record}"


def checkpoints_before(folder: str, name: str) -> list[str]:
    """Names of the checkpoints in ``folder`` to try if ``name`` is damaged, newest first.

    Args:
        folder: of a run.
        name: file name of a checkpoint; those of later iterations are left out.
    """
    iterations = _iterations(folder)
    damaged = _NUMBERED.fullmatch(name)
    names = sorted(iterations, key=iterations.__getitem__, reverse=True)
    if damaged:
        names = [each for each in names if iterations[each] < int(damaged[1])]
    final = f"{FINAL_NAME}.pth"  # of a shorter schedule, if it is not the damaged one
    return names + [final] * (name != final and os.path.isfile(os.path.join(folder, final)))


def remove_old_checkpoints(folder: str, newest: int, keep: int) -> None:
    """Remove the oldest numbered checkpoints; the final one is never touched, nor what is newer.

    Args:
        folder: of a run.
        newest: iteration of the checkpoint that has just been written.
        keep: numbered checkpoints to keep up to and with this one, at least 1.
    """
    iterations = {name: number for name, number in _iterations(folder).items() if number < newest}
    for name in sorted(iterations, key=iterations.__getitem__, reverse=True)[keep - 1 :]:
        try:
            os.remove(os.path.join(folder, name))
        except OSError as error:
            logger.warning("SOLVER.KEEP_CHECKPOINTS: %s was not removed (%s).", name, error)


def _iterations(folder: str) -> dict[str, int]:
    matches = map(_NUMBERED.fullmatch, os.listdir(folder))
    return {match[0]: int(match[1]) for match in matches if match}
