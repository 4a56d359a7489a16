"""Shards are a data set: every image once an epoch in any split, bad members are replaced by name."""

import io
import itertools
import tarfile
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from helpers import tiny_cfg
from PIL import Image
from processes import run_processes

from updetr_d2.data.datasets.names import load_dataset_dicts
from updetr_d2.data.datasets.shards import expand_pattern
from updetr_d2.data.loading.build import build_test_loader, build_train_loader, load_training_set
from updetr_d2.tasks import build_mapper
from updetr_d2.utils.cache import CACHE_VARIABLE


def image_bytes(number: int, extension: str = "png") -> bytes:
    """24×20 px whose colour tells the number."""
    buffer = io.BytesIO()
    Image.new("RGB", (24, 20), (number, 255 - number, 0)).save(buffer, format=extension)
    return buffer.getvalue()


def write_shards(folder: Path, sizes: list[int], bad: tuple[int, ...] = ()) -> str:
    """Shards 0.tar … of these numbers of images, numbered through; returns their pattern."""
    folder.mkdir(parents=True, exist_ok=True)
    numbers = itertools.count()
    for i, size in enumerate(sizes):
        with tarfile.open(folder / f"{i:02d}.tar", "w") as tar:
            for number in itertools.islice(numbers, size):
                content = image_bytes(number)
                if number in bad:
                    content = content[: len(content) // 2]
                info = tarfile.TarInfo(f"{number:03d}.png")
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
    return f"{folder}/{{00..{len(sizes) - 1:02d}}}.tar"


@pytest.fixture(name="folder")
def _folder(tmp_path, monkeypatch):
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "cache"))
    before = set(DatasetCatalog)
    yield tmp_path / "shards"
    for name in set(DatasetCatalog) - before:
        DatasetCatalog.remove(name)
        MetadataCatalog.pop(name, None)


def shard_cfg(*patterns: str, num_workers: int = 0, options: tuple = ()):
    cfg = tiny_cfg(
        "UPDETR",
        *("DATASETS.TRAIN", tuple(f"shards:{pattern}" for pattern in patterns)),
        *("DATALOADER.NUM_WORKERS", num_workers, "SOLVER.IMS_PER_BATCH", 4, "SEED", 3),
        *("INPUT.MIN_SIZE_TRAIN", (16,), "INPUT.QUERY_PATCH.SIZE", 8),
        *options,
    )
    cfg.freeze()
    return cfg


class NumberMapper:
    """Keeps the name and a random number."""

    def __call__(self, dataset_dict: dict) -> dict:
        return {
            "name": dataset_dict["image_id"],
            "number": np.random.rand(),
            "image": torch.zeros(3, 4, 4),
        }


def names(batches) -> list[str]:
    return [sample["name"] for batch in batches for sample in batch]


def all_names(sizes: list[int]) -> list[str]:
    shards = np.repeat(range(len(sizes)), sizes)
    return [f"{shard:02d}.tar::{number:03d}.png" for number, shard in enumerate(shards)]


class TestDataSet:
    def test_images_are_listed_in_order_and_readable(self, folder):
        pattern = write_shards(folder, [3, 0, 2])
        dataset = load_dataset_dicts([f"shards:{pattern}"], filter_empty=False)
        assert len(dataset) == 5
        assert [each["image_id"] for each in dataset] == all_names([3, 0, 2])
        cfg = shard_cfg(pattern)
        sample = build_mapper(cfg, is_train=True)(dataset[4])
        assert sample["image"][:, 0, 0].tolist() == [4, 251, 0]
        assert sample["file_name"].startswith(f"shard://{folder}/02.tar::004.png")

    def test_with_folders_and_other_shards_side_by_side(self, folder, tmp_path):
        first, second = write_shards(folder, [3, 2]), write_shards(tmp_path / "more", [4])
        Image.new("RGB", (20, 20)).save(tmp_path / "more" / "x.png")
        dataset = load_dataset_dicts(
            [f"shards:{first}", f"shards:{second}", f"folder:{tmp_path / 'more'}"], filter_empty=True
        )
        assert len(dataset) == 10

    def test_epochs_are_those_of_the_images(self, folder):
        assert len(load_training_set(shard_cfg(write_shards(folder, [3, 2])))) == 5

    @pytest.mark.parametrize(
        ("pattern", "expected"),
        [
            ("/d/{000..002}.tar", ["/d/000.tar", "/d/001.tar", "/d/002.tar"]),
            ("/d/{a,b}/{1..2}.tar", ["/d/a/1.tar", "/d/a/2.tar", "/d/b/1.tar", "/d/b/2.tar"]),
            ("/d/x.tar::/e/y.tar::/d/x.tar", ["/d/x.tar", "/e/y.tar"]),
            ("~/x.tar", ["/home/me/x.tar"]),
        ],
    )
    def test_patterns(self, pattern, expected, monkeypatch):
        monkeypatch.setenv("HOME", "/home/me")
        assert expand_pattern(pattern) == expected

    def test_wildcards_are_sorted(self, folder):
        write_shards(folder, [1] * 3)
        assert expand_pattern(f"{folder}/*.tar") == [f"{folder}/{i:02d}.tar" for i in range(3)]

    @pytest.mark.parametrize(
        ("pattern", "message"),
        [
            ("FOLDER/{00..05}.tar", r"4 of the 6 shards .* do not exist, the first one is .*/02\.tar"),
            ("FOLDER/nothing*.tar", r"No file fits .*nothing\*\.tar"),
            ("FOLDER/{00..01.tar", "braces"),
            ("", "names no file"),
            ("FOLDER", "do not exist"),
            ("FOLDER/none.tar", "hold no images"),
            ("FOLDER/text.tar", r"text\.tar is no tar archive"),
        ],
    )
    def test_wrong_names_are_one_sentence(self, folder, pattern, message):
        write_shards(folder, [1, 1])
        write_shards(folder / "none", [0])
        (folder / "none" / "00.tar").rename(folder / "none.tar")
        (folder / "text.tar").write_text("text")
        with pytest.raises(ValueError, match=message):
            load_dataset_dicts([f"shards:{pattern.replace('FOLDER', str(folder))}"], filter_empty=False)

    def test_a_cut_off_shard_is_used_up_to_there_with_a_warning(self, folder, caplog):
        pattern = write_shards(folder, [3, 3])
        with open(folder / "01.tar", "r+b") as file:
            file.truncate(1100)  # the second image of it begins at byte 1024
        dataset = load_dataset_dicts([f"shards:{pattern}"], filter_empty=False)
        assert [each["image_id"] for each in dataset] == all_names([3, 3])[:4]
        assert "01.tar is damaged at byte 1024" in caplog.text or "01.tar ends" in caplog.text
        assert "the 1 images before that are used" in caplog.text


class TestTraining:
    def test_a_pass_has_each_image_once_for_fewer_shards_than_workers(self, folder):
        pattern = write_shards(folder, [8])
        for num_workers in (0, 2):
            cfg = shard_cfg(pattern, num_workers=num_workers)
            batches = itertools.islice(build_train_loader(cfg, mapper=NumberMapper()), 4)
            seen = names(batches)
            assert sorted(seen[:8]) == sorted(seen[8:]) == all_names([8])
            assert seen[:8] != seen[8:]

    def test_few_shards_are_read_at_a_time(self, folder):
        pattern = write_shards(folder, [8] * 6)
        cfg = shard_cfg(pattern, options=("DATALOADER.MIXED_SHARDS", 2))
        seen = names(itertools.islice(build_train_loader(cfg, mapper=NumberMapper()), 12))
        assert sorted(seen) == all_names([8] * 6)
        for begin in range(0, 48, 16):
            assert len({name[:2] for name in seen[begin : begin + 16]}) == 2

    @pytest.mark.parametrize("num_workers", [0, 2])
    def test_a_run_goes_on_where_it_was(self, folder, num_workers):
        cfg = shard_cfg(write_shards(folder, [5, 4, 6]), options=("DATALOADER.MIXED_SHARDS", 2))
        whole = list(itertools.islice(build_train_loader(cfg, mapper=NumberMapper()), 10))
        first = build_train_loader(cfg, mapper=NumberMapper())
        batches = list(itertools.islice(first, 5))
        cfg = shard_cfg(*_patterns(cfg), num_workers=num_workers, options=("DATALOADER.MIXED_SHARDS", 2))
        second = build_train_loader(cfg, mapper=NumberMapper())
        second.load_state_dict(first.state_dict())
        batches += itertools.islice(second, 5)
        for batch, expected in zip(batches, whole, strict=True):
            assert [(each["name"], each["number"]) for each in batch] == [
                (each["name"], each["number"]) for each in expected
            ]

    def test_bad_members_are_replaced_and_named(self, folder):
        pattern = write_shards(folder, [5, 3], bad=(2, 6))
        cfg = shard_cfg(pattern)
        loader = build_train_loader(cfg, mapper=build_mapper(cfg, is_train=True))
        samples = list(itertools.chain(*itertools.islice(loader, 8)))
        assert len(samples) == 32
        reasons = loader.skipped_files.reasons
        assert {name.rpartition("#")[0] for name in reasons} == {
            f"shard://{folder}/00.tar::002.png",
            f"shard://{folder}/01.tar::006.png",
        }
        assert all("cannot be decoded" in reason for reason in reasons.values())

    def test_a_shard_that_vanishes_during_the_run_is_reported_not_fatal(self, folder):
        cfg = shard_cfg(write_shards(folder, [6, 6]))
        loader = build_train_loader(cfg, mapper=build_mapper(cfg, is_train=True))
        (folder / "01.tar").unlink()
        assert len(list(itertools.islice(loader, 6))) == 6
        assert loader.skipped_files.reasons
        assert all("01.tar::" in name for name in loader.skipped_files.reasons)

    def test_evaluation_sees_each_image_once_with_fixed_patches(self, folder):
        pattern = write_shards(folder, [5, 3], bad=(6,))
        cfg = shard_cfg(pattern, num_workers=2)
        loader = build_test_loader(cfg, f"shards:{pattern}", mapper=build_mapper(cfg, is_train=False))
        first, second = ([batch[0] for batch in loader] for _ in range(2))
        assert [each["image_id"] for each in first] == [n for n in all_names([5, 3]) if "006" not in n]
        for sample, again in zip(first, second):
            assert torch.equal(sample["patches"], again["patches"])
        assert len(loader.skipped_files.reasons) == 1


def _patterns(cfg) -> list[str]:
    return [name.removeprefix("shards:") for name in cfg.DATASETS.TRAIN]


def shares_of_two_epochs(cfgs: list) -> list[list[str]]:
    """Run in each process: the names of its images in two passes over 24."""
    return [names(itertools.islice(build_train_loader(cfg, mapper=NumberMapper()), 12)) for cfg in cfgs]


def test_two_processes_with_two_workers_see_every_image_once_an_epoch(folder):
    """Also when there are fewer shards than workers, or than processes."""
    sizes = [[7, 5, 3, 9], [24]]
    cfgs = [
        shard_cfg(write_shards(folder / str(i), each), num_workers=2, options=("DATALOADER.MIXED_SHARDS", 2))
        for i, each in enumerate(sizes)
    ]
    for each, *shares in zip(sizes, *run_processes(2, shares_of_two_epochs, cfgs)):
        for begin in (0, 12):
            epoch = [name for share in shares for name in share[begin : begin + 12]]
            assert Counter(epoch) == Counter(all_names(each))
