"""Runs go on when files vanish, cannot be read for a while or for ever, are empty, bombs or something else."""

import errno
import itertools
import os

import numpy as np
import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from helpers import tiny_cfg
from PIL import Image

from updetr_d2.data.loading import samples
from updetr_d2.data.loading.build import build_test_loader, build_train_loader
from updetr_d2.data.transforms import image_io
from updetr_d2.tasks import build_mapper
from updetr_d2.utils.cache import CACHE_VARIABLE

NUM_IMAGES = 8


@pytest.fixture(name="folder")
def folder_of_images(tmp_path, monkeypatch):
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "cache"))
    rng = np.random.default_rng(0)
    (tmp_path / "images").mkdir()
    for i in range(NUM_IMAGES):
        pixels = rng.integers(0, 256, (24, 20, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / "images" / f"{i}.png")
    name = f"folder:{tmp_path / 'images'}"
    yield tmp_path / "images"
    if name in DatasetCatalog:
        DatasetCatalog.remove(name)
        MetadataCatalog.pop(name, None)


def fault_cfg(folder, *options):
    return tiny_cfg(
        "UPDETR",
        *("DATASETS.TRAIN", (f"folder:{folder}",), "DATALOADER.NUM_WORKERS", 0),
        *("SOLVER.IMS_PER_BATCH", 2, "SEED", 1, "INPUT.MIN_SIZE_TRAIN", (16,), "INPUT.QUERY_PATCH.SIZE", 8),
        *options,
    )


def train_loader(folder, *options):
    cfg = fault_cfg(folder, *options)
    return build_train_loader(cfg, mapper=build_mapper(cfg, is_train=True))


def take(loader, num_batches: int) -> list[str]:
    batches = itertools.islice(loader, num_batches)
    return [os.path.basename(sample["file_name"]) for batch in batches for sample in batch]


def reasons(loader) -> dict[str, str]:
    return {os.path.basename(name): reason for name, reason in loader.skipped_files.reasons.items()}


@pytest.mark.parametrize("num_workers", [0, 2])
def test_files_that_vanish_during_the_run(folder, num_workers):
    loader = train_loader(folder, "DATALOADER.NUM_WORKERS", num_workers)
    batches = iter(loader)
    assert len(take(batches, 2)) == 4
    for i in range(5):
        (folder / f"{i}.png").unlink()
    # What the workers have read before still comes.
    later = take(batches, 60)[80:]
    assert set(later) == {"5.png", "6.png", "7.png"}
    assert set(reasons(loader)) == {f"{i}.png" for i in range(5)}
    assert all("No such file" in reason for reason in reasons(loader).values())


def test_the_whole_folder_vanishes(folder):
    batches = iter(train_loader(folder))
    take(batches, 2)
    folder.rename(folder.parent / "moved")
    with pytest.raises(RuntimeError, match=r"^8 different images in a row.*No such file.*DATASETS\.TRAIN"):
        take(batches, 1)


def break_files(folder) -> dict[str, str]:
    """Faulty files beside the good ones, with what their reasons say."""
    (folder / "empty.jpg").touch()
    (folder / "text.jpg").write_text("not an image")
    (folder / "tiny.png").write_bytes(_png(Image.new("RGB", (16, 300)), folder))
    (folder / "folder.jpg").mkdir()  # not an image by its kind: the list of files leaves it out
    Image.new("1", (14000, 14000)).save(folder / "bomb.png")
    (folder / "cut.png").write_bytes((folder / "0.png").read_bytes()[:500])
    return {
        "empty.jpg": "is empty",
        "text.jpg": "not an image",
        "tiny.png": "16x300 px",
        "bomb.png": "DecompressionBombError",
        "cut.png": "cannot be decoded",
    }


def _png(image: Image.Image, folder) -> bytes:
    path = folder.parent / "x.png"
    image.save(path)
    return path.read_bytes()


@pytest.mark.parametrize("num_workers", [0, 2])
def test_faulty_files_are_replaced_in_training_and_counted(folder, num_workers):
    expected = break_files(folder)
    loader = train_loader(folder, "DATALOADER.NUM_WORKERS", num_workers)
    seen = take(loader, 40)
    assert set(seen) == {f"{i}.png" for i in range(NUM_IMAGES)}
    assert len(seen) == 80
    assert set(reasons(loader)) == set(expected)
    for name, text in expected.items():
        assert text in reasons(loader)[name]


def test_faulty_files_are_left_out_of_evaluation_and_counted(folder):
    expected = break_files(folder)
    cfg = fault_cfg(folder)
    loader = build_test_loader(cfg, f"folder:{folder}", mapper=build_mapper(cfg, is_train=False))
    assert take(loader, 100) == [f"{i}.png" for i in range(NUM_IMAGES)]
    assert set(reasons(loader)) == set(expected)


def test_wrong_extensions_do_not_matter(folder):
    (folder / "0.png").rename(folder / "0.jpg")
    Image.new("RGB", (20, 20)).save(folder / "8.webp", format="JPEG")
    loader = train_loader(folder)
    assert {"0.jpg", "8.webp"} <= set(take(loader, 5 * NUM_IMAGES))
    assert not reasons(loader)


class FlakyFiles:
    """Files whose names are given cannot be opened the first times.

    Args:
        failures: number of failures by file name.
        number: of the error.
    """

    def __init__(self, failures: dict[str, int], number: int) -> None:
        self.failures = dict(failures)
        self.number = number
        self.attempts: list[str] = []
        self._open = image_io.PathManager.open

    def open(self, path: str, mode: str = "r"):
        name = os.path.basename(path)
        self.attempts.append(name)
        if self.failures.get(name, 0):
            self.failures[name] -= 1
            raise OSError(self.number, os.strerror(self.number), path)
        return self._open(path, mode)


@pytest.fixture(name="naps")
def recorded_sleep(monkeypatch):
    naps: list[float] = []
    monkeypatch.setattr(samples.time, "sleep", naps.append)
    return naps


def test_a_file_system_that_is_away_for_a_while_costs_nothing_but_time(folder, monkeypatch, naps):
    expected = [
        sample["patches"].tolist() for batch in itertools.islice(train_loader(folder), 8) for sample in batch
    ]
    flaky = FlakyFiles({"3.png": 4, "5.png": 1}, errno.EIO)
    monkeypatch.setattr(image_io.PathManager, "open", flaky.open)
    loader = train_loader(folder)
    samples = [sample["patches"].tolist() for batch in itertools.islice(loader, 8) for sample in batch]
    assert samples == expected
    assert not reasons(loader)
    assert sorted(naps) == [0.5, 0.5, 1, 2, 4]


def test_a_file_that_cannot_be_read_for_long_counts_as_skipped(folder, monkeypatch, naps):
    flaky = FlakyFiles({"3.png": 10**6}, errno.ESTALE)
    monkeypatch.setattr(image_io.PathManager, "open", flaky.open)
    loader = train_loader(folder, "DATALOADER.READ_RETRIES", 2, "DATALOADER.READ_RETRY_DELAY", 0.25)
    assert "3.png" not in take(loader, NUM_IMAGES)
    assert "Stale" in reasons(loader)["3.png"]
    assert reasons(loader)["3.png"].endswith("tried 3 times")
    assert naps[:2] == [0.25, 0.5]


@pytest.mark.parametrize("number", [errno.EACCES, errno.ENOENT])
def test_nobody_waits_for_permissions_and_missing_files(folder, monkeypatch, naps, number):
    flaky = FlakyFiles({"3.png": 10**6}, number)
    monkeypatch.setattr(image_io.PathManager, "open", flaky.open)
    loader = train_loader(folder)
    assert "3.png" not in take(loader, NUM_IMAGES)
    assert os.strerror(number) in reasons(loader)["3.png"]
    assert not naps


def test_evaluation_waits_as_well(folder, monkeypatch, naps):
    flaky = FlakyFiles({"3.png": 2}, errno.ETIMEDOUT)
    monkeypatch.setattr(image_io.PathManager, "open", flaky.open)
    cfg = fault_cfg(folder)
    loader = build_test_loader(cfg, f"folder:{folder}", mapper=build_mapper(cfg, is_train=False))
    assert len(take(loader, 100)) == NUM_IMAGES
    assert naps == [0.5, 1]
