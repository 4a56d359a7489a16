"""Labeled and unlabeled images of a batch: their ratio, burn-in, exact resume, several processes, bad files."""

import itertools

import numpy as np
import pytest
import torch
from detectron2.config import get_cfg
from detectron2.utils import comm

from updetr_d2 import add_updetr_config
from updetr_d2.data.loading.build import build_train_loader
from updetr_d2.data.loading.paired import PairedLoader
from updetr_d2.data.loading.state import furthest_state
from updetr_d2.data.transforms.image_io import UnusableImageError


class NumberMapper:
    """A sample that shows which image it is, of which stream; some images cannot be used."""

    def __init__(self, kind, bad=()):
        self.kind, self.bad = kind, bad

    def __call__(self, dataset_dict):
        if dataset_dict["image_id"] in self.bad:
            raise UnusableImageError(dataset_dict["file_name"], "is empty")
        image = torch.zeros(3, 8, 12, dtype=torch.uint8)
        return {"image": image, "name": f"{self.kind}{dataset_dict['image_id']}", "number": np.random.rand()}


def paired(burn_in=0, workers=0, bad=()):
    cfg = get_cfg()
    add_updetr_config(cfg)
    cfg.SOLVER.IMS_PER_BATCH = 2
    cfg.DATALOADER.NUM_WORKERS = workers
    cfg.SEED = 7
    share = 2 // comm.get_world_size()

    def stream(kind, count, **options):
        dicts = [{"file_name": f"{kind}{i}.jpg", "image_id": i} for i in range(count)]
        return build_train_loader(cfg, mapper=NumberMapper(kind, bad), dataset_dicts=dicts, **options)

    labeled = stream("l", 5)
    unlabeled = stream("u", 11, batch_size=3 * share, seed=8, key="DATASETS.UNLABELED")
    return PairedLoader(labeled, unlabeled, burn_in=burn_in)


def content(batches):
    return [[(sample["name"], sample["number"]) for sample in batch] for batch in batches]


def take(loader, count):
    return content(itertools.islice(loader, count))


def kinds(batch):
    return "".join(name[0] for name, _ in batch)


def test_batches_have_the_ratio_and_the_burn_in_has_labels_alone():
    batches = take(paired(burn_in=2), 5)
    assert [kinds(batch) for batch in batches] == ["ll", "ll", "lluuuuuu", "lluuuuuu", "lluuuuuu"]
    seen = [name for batch in batches[2:] for name, _ in batch[2:]]
    assert len(set(seen[:11])) == 11  # each unlabeled image once in a pass, from the first on


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("stop", [1, 3, 6])
def test_both_streams_go_on_where_they_were(workers, stop):
    whole = take(paired(burn_in=2), 9)
    first = paired(burn_in=2, workers=workers)
    begun = take(first, stop)
    second = paired(burn_in=2, workers=workers)
    second.load_state_dict(first.state_dict())
    assert begun + take(second, 9 - stop) == whole


def test_a_run_on_labels_alone_goes_on_with_both_and_the_other_way_round():
    before = paired()
    alone = before.labeled
    take(alone, 2)
    after = paired()
    after.load_state_dict(alone.state_dict())
    state = after.state_dict()
    assert take(after, 1)[0][:2] == take(before.labeled, 1)[0]
    back = paired().labeled
    back.load_state_dict(state)
    assert take(back, 2) == take(alone_from(state["labeled"]), 2)


def alone_from(state):
    loader = paired().labeled
    loader.load_state_dict(state)
    return loader


def test_processes_share_both_streams(monkeypatch):
    whole = take(paired(), 4)
    shares = []
    for rank in range(2):
        monkeypatch.setattr(comm, "get_rank", lambda rank=rank: rank)
        monkeypatch.setattr(comm, "get_world_size", lambda: 2)
        loader = paired()
        shares.append(take(loader, 4))
        state = loader.state_dict()
    for step in range(4):
        assert sorted(shares[0][step] + shares[1][step]) == sorted(whole[step])
    states = [{**state, "labeled": {**state["labeled"], "next_position": n, "pending": [1]}} for n in (9, 12)]
    furthest = furthest_state(states)
    assert (furthest["labeled"]["next_position"], furthest["labeled"]["pending"]) == (12, [])
    assert furthest["num_batches"] == 4


def test_bad_images_of_both_streams_are_replaced_and_counted():
    loader = paired(bad=(1, 4))
    batches = take(loader, 6)
    assert {len(batch) for batch in batches} == {8}
    assert not {name[1:] for batch in batches for name, _ in batch} & {"1", "4"}
    assert {"l1.jpg", "u1.jpg", "l4.jpg", "u4.jpg"} == set(loader.skipped_files.reasons)


def test_unlabeled_images_of_which_none_can_be_used_name_their_key():
    loader = paired(bad=range(5, 11))
    loader.unlabeled.mapper.bad = range(11)
    with pytest.raises(RuntimeError, match=r"check DATASETS\.UNLABELED"):
        take(loader, 1)
