"""Loaders: a stream that seed and position alone decide, exact resume, and files that cannot be used."""

import errno
import itertools
import logging
import os
import random
from collections import Counter

import numpy as np
import pytest
import torch
from detectron2.config import get_cfg
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data import transforms as T
from detectron2.utils import comm
from PIL import Image

from updetr_d2 import add_updetr_config
from updetr_d2.data.loading import workers
from updetr_d2.data.loading.build import build_test_loader, build_train_loader
from updetr_d2.data.loading.samples import SkippedFiles, StreamSampler, seeded_generators
from updetr_d2.data.transforms.image_io import UnusableImageError
from updetr_d2.data.transforms.resize import DETRResize


def small_cfg(*options):
    cfg = get_cfg()
    add_updetr_config(cfg)
    cfg.SEED = 7
    cfg.SOLVER.IMS_PER_BATCH = 4
    cfg.DATALOADER.NUM_WORKERS = 0
    cfg.merge_from_list(list(options))
    return cfg


class ToyMapper:
    """A sample that shows its image and one number of each global generator.

    Args:
        bad: indices of the images that cannot be used.
        error: raised for them; None returns None.
    """

    def __init__(self, bad=(), error: Exception | None = None) -> None:
        self.bad = set(bad)
        self.error = error

    def __call__(self, dataset_dict: dict) -> dict | None:
        index = dataset_dict["image_id"]
        if index in self.bad:
            if self.error is None:
                return None
            raise self.error
        # Every third image is wide, the others are tall.
        height, width = (8, 12) if index % 3 == 0 else (12, 8)
        return {
            "image": torch.zeros(3, height, width, dtype=torch.uint8),
            "image_id": index,
            "numbers": (random.random(), np.random.rand(), torch.rand(()).item()),
        }


def toy_dicts(num_images: int) -> list[dict]:
    return [{"file_name": f"{i}.jpg", "image_id": i} for i in range(num_images)]


def toy_loader(*options, num_images: int = 11, mapper=None):
    return build_train_loader(
        small_cfg(*options), mapper=mapper or ToyMapper(), dataset_dicts=toy_dicts(num_images)
    )


def content(batches) -> list[list[tuple]]:
    return [[(sample["image_id"], sample["numbers"]) for sample in batch] for batch in batches]


def take(loader, count: int) -> list[list[tuple]]:
    return content(itertools.islice(loader, count))


def ids(batches) -> list[int]:
    return [index for batch in batches for index, _ in batch]


class FakeProcesses:
    """Let the loader believe that it runs in one of several processes."""

    def __init__(self, monkeypatch) -> None:
        self.monkeypatch = monkeypatch

    def become(self, rank: int, world_size: int) -> None:
        self.monkeypatch.setattr(comm, "get_rank", lambda: rank)
        self.monkeypatch.setattr(comm, "get_world_size", lambda: world_size)


@pytest.fixture(name="processes")
def fake_processes(monkeypatch):
    return FakeProcesses(monkeypatch)


class TestStream:
    def test_every_pass_has_each_image_once_in_a_new_order(self):
        sampler = StreamSampler(11, seed=0, world_size=1, start=0)
        stream = [index for _, index in itertools.islice(sampler, 33)]
        passes = [stream[:11], stream[11:22], stream[22:]]
        assert all(sorted(each) == list(range(11)) for each in passes)
        assert passes[0] != passes[1] != passes[2]

    def test_any_start_gives_the_rest_of_the_same_stream(self):
        whole = list(itertools.islice(StreamSampler(11, seed=3, world_size=1, start=0), 50))
        for start in (1, 10, 11, 37):
            rest = StreamSampler(11, seed=3, world_size=1, start=start)
            assert list(itertools.islice(rest, 50 - start)) == whole[start:]

    def test_processes_share_the_stream_without_overlap(self):
        whole = list(itertools.islice(StreamSampler(11, seed=3, world_size=1, start=0), 30))
        shares = [
            list(itertools.islice(StreamSampler(11, seed=3, world_size=3, start=rank), 10))
            for rank in range(3)
        ]
        assert sorted(itertools.chain(*shares)) == whole

    def test_seeding_leaves_the_generators_as_they_were(self):
        def draw():
            return random.random(), np.random.rand(), torch.rand(()).item()

        with seeded_generators(1, 2):
            first = draw()
        states = random.getstate(), np.random.get_state()[1].copy(), torch.get_rng_state()
        with pytest.raises(KeyError), seeded_generators(1, 2):
            assert draw() == first
            raise KeyError
        assert random.getstate() == states[0]
        np.testing.assert_array_equal(np.random.get_state()[1], states[1])
        assert torch.equal(torch.get_rng_state(), states[2])
        with seeded_generators(2, 1):
            assert not set(draw()) & set(first)


class TestTrainLoader:
    def test_samples_depend_on_the_seed_alone(self):
        batches = take(toy_loader(), 8)
        assert take(toy_loader("DATALOADER.NUM_WORKERS", 2), 8) == batches
        assert take(toy_loader("DATALOADER.NUM_WORKERS", 1), 8) == batches
        assert take(toy_loader("SEED", 8), 8) != batches

    def test_no_two_samples_draw_the_same_numbers(self):
        numbers = [
            sample[1] for batch in take(toy_loader("DATALOADER.NUM_WORKERS", 2), 20) for sample in batch
        ]
        assert all(len(set(each)) == len(numbers) for each in zip(*numbers))

    def test_processes_draw_different_images_and_numbers(self, processes):
        shares = []
        for rank in range(2):
            processes.become(rank, 2)
            shares.append(take(toy_loader(num_images=16), 4))
        assert all(len(batch) == 2 for share in shares for batch in share)
        assert not set(ids(shares[0])) & set(ids(shares[1]))
        numbers = [numbers for share in shares for batch in share for _, numbers in batch]
        assert len(set(numbers)) == len(numbers) == 16

    def test_the_global_batch_is_the_same_for_any_number_of_processes(self, processes):
        option = ("DATALOADER.ASPECT_RATIO_GROUPING", False)
        alone = take(toy_loader(*option), 5)
        shares = []
        for rank in range(2):
            processes.become(rank, 2)
            shares.append(take(toy_loader(*option), 5))
        for i, batch in enumerate(alone):
            assert sorted(batch) == sorted(shares[0][i] + shares[1][i])

    def test_loading_leaves_the_models_random_numbers_alone(self):
        for num_workers in (0, 2):
            torch.manual_seed(5)
            expected = torch.rand(3)
            torch.manual_seed(5)
            take(toy_loader("DATALOADER.NUM_WORKERS", num_workers), 2)
            assert torch.equal(torch.rand(3), expected)

    def test_batches_are_all_wide_or_all_tall(self):
        for batch in take(toy_loader(), 30):
            assert len({index % 3 == 0 for index, _ in batch}) == 1
        mixed = take(toy_loader("DATALOADER.ASPECT_RATIO_GROUPING", False), 5)
        assert any(len({index % 3 == 0 for index, _ in batch}) == 2 for batch in mixed)

    def test_without_grouping_each_pass_sees_each_image_once(self):
        batches = take(toy_loader("DATALOADER.ASPECT_RATIO_GROUPING", False, num_images=12), 6)
        assert Counter(ids(batches)) == dict.fromkeys(range(12), 2)

    def test_a_random_seed_is_drawn_if_none_is_set(self):
        torch.manual_seed(0)
        np.random.seed(0)
        loaders = [toy_loader("SEED", -1) for _ in range(2)]
        assert loaders[0].seed != loaders[1].seed

    def test_batches_that_cannot_be_shared_out_are_an_error(self, processes):
        processes.become(0, 3)
        with pytest.raises(ValueError, match=r"SOLVER\.IMS_PER_BATCH \(4\)"):
            toy_loader()

    def test_no_data_set_is_an_error(self):
        with pytest.raises(ValueError, match=r"DATASETS\.TRAIN"):
            build_train_loader(small_cfg(), mapper=ToyMapper())

    def test_workers_without_sockets_are_refused_before_the_first_batch(self, monkeypatch):
        def no_room(**_kwargs):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "/tmp/pymp")

        monkeypatch.setattr(workers, "Listener", no_room)
        with pytest.raises(OSError, match=r"temporary folder.*\(.*No space left on device.*set TMPDIR"):
            toy_loader("DATALOADER.NUM_WORKERS", 1)
        toy_loader("DATALOADER.NUM_WORKERS", 0)


class TestResume:
    @pytest.mark.parametrize("num_workers", [0, 2])
    @pytest.mark.parametrize("grouping", [True, False])
    @pytest.mark.parametrize("stop", [1, 2, 7])
    def test_the_batches_go_on_as_if_nothing_had_happened(self, num_workers, grouping, stop):
        options = (
            *("DATALOADER.NUM_WORKERS", num_workers),
            *("DATALOADER.ASPECT_RATIO_GROUPING", grouping),
        )
        whole = take(toy_loader(*options), 12)
        interrupted = toy_loader(*options)
        assert take(interrupted, stop) == whole[:stop]
        resumed = toy_loader(*options, "SEED", -1)  # a drawn seed is part of the state
        resumed.load_state_dict(interrupted.state_dict())
        assert resumed.state_dict() == interrupted.state_dict()
        assert take(resumed, 12 - stop) == whole[stop:]

    def test_two_interruptions_and_another_number_of_workers(self):
        whole = take(toy_loader(), 12)
        state, batches = toy_loader().state_dict(), []
        for num_workers in (0, 2, 1):
            loader = toy_loader("DATALOADER.NUM_WORKERS", num_workers)
            loader.load_state_dict(state)
            batches += take(loader, 4)
            state = loader.state_dict()
        assert batches == whole

    def test_a_second_iterator_goes_on(self):
        loader = toy_loader()
        assert take(loader, 3) + take(loader, 3) == take(toy_loader(), 6)

    def test_the_state_is_that_of_the_batches_given_out(self):
        """Two positions of six wait in the wide bucket, however far the workers have run ahead."""
        loader = toy_loader("DATALOADER.NUM_WORKERS", 2)
        batches = take(loader, 1)
        state = loader.state_dict()
        assert state["next_position"] == 4 + len(state["pending"])
        sampler = StreamSampler(11, seed=7, world_size=1, start=0)
        waiting = [sampler.image_at(position) for position in state["pending"]]
        assert sorted(ids(batches) + waiting) == sorted(sampler.image_at(p) for p in range(len(waiting) + 4))

    def test_more_processes_share_what_is_left(self, processes):
        loader = toy_loader("DATALOADER.ASPECT_RATIO_GROUPING", False, num_images=16)
        seen = ids(take(loader, 2))
        state = loader.state_dict() | {"pending": []}
        for rank in range(2):
            processes.become(rank, 2)
            share = toy_loader("DATALOADER.ASPECT_RATIO_GROUPING", False, num_images=16)
            share.load_state_dict(state)
            seen += ids(take(share, 2))
        assert sorted(seen) == list(range(16))

    def test_a_changed_data_set_is_reported(self, caplog):
        loader = toy_loader(num_images=12)
        loader.load_state_dict(toy_loader(num_images=11).state_dict())
        assert "has 12 images and had 11" in caplog.text


ERRORS = [
    UnusableImageError("broken.jpg", "is empty"),
    OSError("input/output error"),
    SyntaxError("broken PNG file"),
    Image.DecompressionBombError("too large"),
    None,
]


class TestUnusableFiles:
    @pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
    @pytest.mark.parametrize("num_workers", [0, 2])
    def test_another_image_takes_the_place(self, error, num_workers, caplog):
        loader = toy_loader("DATALOADER.NUM_WORKERS", num_workers, mapper=ToyMapper({2, 5}, error))
        seen = ids(take(loader, 12))
        assert len(seen) == 48
        assert set(seen) == set(range(11)) - {2, 5}
        assert loader.skipped_files.num_skips >= 8
        named = {error.file_name} if isinstance(error, UnusableImageError) else {"2.jpg", "5.jpg"}
        assert set(loader.skipped_files.reasons) == named
        for name in named:  # once each, however often they come up
            assert sum(f"Skipping {name}" in record.getMessage() for record in caplog.records) == 1

    def test_replacements_are_reproducible_and_do_not_disturb_the_others(self):
        whole = take(toy_loader("DATALOADER.ASPECT_RATIO_GROUPING", False), 10)
        options = ("DATALOADER.ASPECT_RATIO_GROUPING", False)
        first, second = (
            take(toy_loader(*options, "DATALOADER.NUM_WORKERS", n, mapper=ToyMapper({2, 5})), 10)
            for n in (0, 2)
        )
        assert first == second
        for batch, expected in zip(first, whole):
            for sample, untouched in zip(batch, expected):
                assert sample == untouched or untouched[0] in {2, 5}

    @pytest.mark.parametrize("num_workers", [0, 2])
    def test_only_bad_images_end_the_run_with_one_sentence(self, num_workers):
        bad = ToyMapper(range(11), OSError("gone"))
        with pytest.raises(RuntimeError, match=r"^11 different images .*\.jpg .*gone.*DATASETS\.TRAIN"):
            take(toy_loader("DATALOADER.NUM_WORKERS", num_workers, mapper=bad), 1)

    def test_the_number_of_tries_is_limited(self):
        bad = ToyMapper(range(11))
        with pytest.raises(RuntimeError, match=r"^3 different images"):
            take(toy_loader("DATALOADER.MAX_CONSECUTIVE_FAILURES", 3, mapper=bad), 1)

    def test_one_good_image_is_enough(self):
        assert ids(take(toy_loader(mapper=ToyMapper(set(range(11)) - {4})), 3)) == [4] * 12

    def test_errors_of_the_program_are_not_swallowed(self):
        with pytest.raises(ZeroDivisionError):
            take(toy_loader(mapper=ToyMapper({0, 1, 2}, ZeroDivisionError())), 5)

    def test_the_report_names_files_and_reasons(self):
        skipped = SkippedFiles()
        assert skipped.summary() == "none"
        for name in ("a.jpg", "b.jpg", "a.jpg", "c.jpg"):
            skipped.add(name, "is empty")
        assert skipped.summary(max_names=2) == (
            "3 files, 4 times\n  a.jpg: is empty\n  b.jpg: is empty\n  ... and 1 more"
        )


class TestPinnedMemory:
    @pytest.mark.gpu
    @pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
    @pytest.mark.parametrize("num_workers", [0, 2])
    def test_samples_for_a_gpu_can_be_copied_without_waiting(self, num_workers):
        options = ("MODEL.DEVICE", "cuda", "DATALOADER.NUM_WORKERS", num_workers)
        (batch,) = itertools.islice(toy_loader(*options), 1)
        assert all(sample["image"].is_pinned() for sample in batch)

    def test_samples_for_the_cpu_are_left_alone(self, monkeypatch):
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        assert not toy_loader("MODEL.DEVICE", "cpu").pin_memory
        assert toy_loader("MODEL.DEVICE", "cuda:1").pin_memory


class TestTestLoader:
    @pytest.fixture(autouse=True)
    def toy_data_set(self):
        DatasetCatalog.register("toy_images", lambda: toy_dicts(7))
        yield
        DatasetCatalog.remove("toy_images")
        MetadataCatalog.pop("toy_images", None)

    @pytest.mark.parametrize("num_workers", [0, 2])
    def test_every_image_once_in_order(self, num_workers):
        cfg = small_cfg("DATALOADER.NUM_WORKERS", num_workers)
        loader = build_test_loader(cfg, "toy_images", mapper=ToyMapper())
        for _ in range(2):
            assert [[index for index, _ in batch] for batch in content(loader)] == [[i] for i in range(7)]
        assert len(loader) == 7

    @pytest.mark.parametrize("bad", [set(), {0, 6}, {2, 3}, set(range(7))])
    def test_unusable_images_are_left_out_and_counted(self, bad, caplog):
        loader = build_test_loader(
            small_cfg(), "toy_images", mapper=ToyMapper(bad, OSError("gone")), batch_size=2
        )
        with caplog.at_level(logging.WARNING):
            assert ids(content(loader)) == [i for i in range(7) if i not in bad]
        # Whatever evaluator follows, of patches and of queries as well.
        assert (f"{len(bad)} of 7 samples of this evaluation" in caplog.text) == bool(bad)
        assert set(loader.skipped_files.reasons) == {f"{i}.jpg" for i in bad}
        assert len(loader) == 4

    def test_processes_share_the_images(self, processes):
        shares = []
        for rank in range(3):
            processes.become(rank, 3)
            shares.append(ids(content(build_test_loader(small_cfg(), "toy_images", mapper=ToyMapper()))))
        assert shares == [[0, 1, 2], [3, 4], [5, 6]]
        everything = build_test_loader(small_cfg(), "toy_images", mapper=ToyMapper(), split=False)
        assert ids(content(everything)) == list(range(7))

    def test_random_numbers_of_evaluation_are_fixed(self):
        loaders = [build_test_loader(small_cfg(), "toy_images", mapper=ToyMapper()) for _ in range(2)]
        assert content(loaders[0]) == content(loaders[1])

    def test_an_unknown_data_set_is_an_error(self):
        with pytest.raises(ValueError, match="folder:DIR"):
            build_test_loader(small_cfg(), "nothing", mapper=ToyMapper())


class ResizingMapper:
    """A sample that is resized as those of our tasks are."""

    def __init__(self):
        self.resize = DETRResize(range(20, 40), 100, can_share=True)

    def __call__(self, dataset_dict):
        # Every fourth image is tall.
        shape = (120, 90, 3) if dataset_dict["image_id"] % 4 == 0 else (90, 120, 3)
        aug_input = T.AugInput(np.zeros(shape, np.uint8))
        self.resize(aug_input)
        return {
            "image": torch.from_numpy(aug_input.image).permute(2, 0, 1),
            "image_id": dataset_dict["image_id"],
        }


def scales_of(num_batches, *options):
    """The short sides in each batch."""
    loader = build_train_loader(small_cfg(*options), mapper=ResizingMapper(), dataset_dicts=toy_dicts(40))
    batches = itertools.islice(loader, num_batches)
    return [{min(sample["image"].shape[-2:]) for sample in batch} for batch in batches]


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_in_a_row_have_one_scale(workers):
    options = ["INPUT.BATCHES_PER_SCALE", 5, "DATALOADER.NUM_WORKERS", workers]
    own = scales_of(30, "DATALOADER.ASPECT_RATIO_GROUPING", False, *options)
    for start in range(0, 30, 5):
        assert len(own[start]) == 1
        assert all(scales == own[start] for scales in own[start : start + 5])
    assert len(set(map(frozenset, own))) > 3
    # Wide and tall images fill their batches at different times, so some have images of two scales.
    grouped = scales_of(30, *options)
    assert sum(len(scales) for scales in grouped) < 1.5 * 30
    assert sum(len(scales) for scales in scales_of(30)) > 3 * 30


def test_all_processes_have_the_same_scale_at_the_same_time(monkeypatch):
    def of_rank(rank):
        monkeypatch.setattr(comm, "get_world_size", lambda: 2)
        monkeypatch.setattr(comm, "get_rank", lambda: rank)
        return scales_of(12, "DATALOADER.ASPECT_RATIO_GROUPING", False, "INPUT.BATCHES_PER_SCALE", 3)

    assert of_rank(0) == of_rank(1)
    assert [len(scales) for scales in of_rank(0)] == [1] * 12
