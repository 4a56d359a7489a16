"""Map a function over millions of images in parts of some hundreds: an interrupted run goes on where it was."""

import json
import logging
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from tqdm import tqdm

from updetr_d2.data.datasets.names import DatasetDicts
from updetr_d2.data.loading.retry import RetryPolicy
from updetr_d2.data.loading.samples import SkippedFiles, TolerantDataset
from updetr_d2.data.loading.workers import SampleLoader
from updetr_d2.utils.arrays import map_arrays, write_arrays
from updetr_d2.utils.files import write_text

logger = logging.getLogger(__name__)

_DESCRIPTION = "run.json"
# As the defaults of DATALOADER.READ_RETRIES and DATALOADER.READ_RETRY_DELAY.
_RETRY = RetryPolicy(5, 0.5)


class Parts:
    """A folder of results that are not complete yet.

    Args:
        folder: made if it is missing.
        description: what the results depend on; plain values.

    Raises:
        ValueError: if the folder holds parts of another description.
    """

    def __init__(self, folder: Path, description: dict) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        text = json.dumps(description, indent=1, sort_keys=True)
        path = folder / _DESCRIPTION
        if path.exists() and path.read_text(encoding="utf-8", errors="replace") != text:
            raise ValueError(
                f"{folder} holds parts of a run with other images or options: delete it, or choose another "
                "--output."
            )
        write_text(path, text)

    def run(
        self,
        stage: str,
        dataset: DatasetDicts,
        mapper: Callable[[dict], dict[str, np.ndarray]],
        *,
        indices: Sequence[int] | None = None,
        num_workers: int,
        part_size: int,
    ) -> "Results":
        """Map images, all at once or the rest of them.

        Args:
            stage: a name for this pass over the images.
            dataset: dataset dicts.
            mapper: gives arrays by name, always the same names; the rows of each are put together.
            indices: of the images; None for all.
            num_workers: processes; 0 maps in this one.
            part_size: images of a part.

        Raises:
            RuntimeError: if a worker dies.
        """
        chosen: Sequence[int] = range(len(dataset)) if indices is None else indices
        blocks = [chosen[begin : begin + part_size] for begin in range(0, len(chosen), part_size)]
        files = [self.folder / f"{stage}-{number:07d}.npz" for number in range(len(blocks))]
        missing = [number for number, file in enumerate(files) if not _is_whole(file)]
        loader = SampleLoader(
            TolerantDataset(dataset, mapper, retry=_RETRY),
            [index for number in missing for index in blocks[number]],
            num_workers=num_workers,
            prefetch=4 * num_workers,
            pin_memory=False,
        )
        skipped = SkippedFiles()
        samples = iter(loader)
        num_done = len(chosen) - sum(len(blocks[number]) for number in missing)
        if num_done:
            logger.info("%d of %d images are done already (%s)", num_done, len(chosen), stage)
        with tqdm(total=len(chosen), initial=num_done, unit=" images", desc=stage, disable=None) as progress:
            for number in missing:
                mapped: list[tuple[int, dict[str, np.ndarray]]] = []
                unusable: list[str] = []
                for _ in blocks[number]:
                    index, sample, failed = next(samples)
                    progress.update()
                    if sample is not None:
                        mapped.append((index, sample))
                    for each in failed:
                        skipped.add(*each)
                        unusable.append(each.file_name)
                write_arrays(files[number], _join(mapped, unusable))
        return Results(files)

    def remove(self) -> None:
        """Delete the folder, which nothing needs any more."""
        shutil.rmtree(self.folder)


class Results:
    """What a pass over the images gave.

    Args:
        files: of the parts, in the order of the images.

    Attributes:
        num_skipped: images that could not be used.
    """

    def __init__(self, files: Sequence[Path]) -> None:
        self._parts = [map_arrays(file) for file in files]
        self.num_skipped = sum(len(part["skipped"]) for part in self._parts)

    def __getitem__(self, name: str) -> np.ndarray:
        """All rows of an array of the mapper, in the order of the images."""
        return np.concatenate([part[name] for part in self._parts if len(part["indices"])])

    @property
    def indices(self) -> np.ndarray:
        """int64, the images that could be used."""
        return np.concatenate([part["indices"] for part in self._parts])

    def counts(self, name: str) -> np.ndarray:
        """int64, rows that each of those has in an array."""
        return self[f"count_{name}"]


def _join(mapped: list[tuple[int, dict[str, np.ndarray]]], unusable: list[str]) -> dict[str, np.ndarray]:
    samples = [sample for _, sample in mapped]
    arrays = {
        "indices": np.array([index for index, _ in mapped], np.int64),
        "skipped": np.array([name.encode("utf-8", "surrogateescape") for name in unusable], np.bytes_),
    }
    for name in samples[0] if samples else ():
        arrays[name] = np.concatenate([sample[name] for sample in samples])
        arrays[f"count_{name}"] = np.array([len(sample[name]) for sample in samples], np.int64)
    return arrays


def _is_whole(file: Path) -> bool:
    try:
        map_arrays(file)
    except (OSError, ValueError):
        return False
    return True
