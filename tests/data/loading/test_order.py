"""A pass over shards sees every image once, from few shards at a time, in an order of its own."""

from collections import Counter

import numpy as np
import pytest

from updetr_d2.data.loading.order import PassOrder

SIZES = [5, 0, 7, 3, 4, 1, 6]
SHARDS = np.repeat(range(7), SIZES)


def whole(**options) -> list[int]:
    order = PassOrder(SIZES, **{"seed": 0, "epoch": 0} | options)
    return [order[place] for place in range(sum(SIZES))]


@pytest.mark.parametrize("mixed_blocks", [0, 1, 2, 3, 7, 100])
def test_every_image_once_in_an_order_of_seed_and_pass(mixed_blocks):
    first = whole(mixed_blocks=mixed_blocks)
    assert sorted(first) == list(range(26))
    assert first == whole(mixed_blocks=mixed_blocks)
    assert first != whole(mixed_blocks=mixed_blocks, epoch=1)
    assert first != whole(mixed_blocks=mixed_blocks, seed=1)


def test_any_place_can_be_asked_for():
    expected = whole(mixed_blocks=2)
    order = PassOrder(SIZES, seed=0, epoch=0, mixed_blocks=2)
    for place in np.random.default_rng(0).integers(26, size=200):
        assert order[int(place)] == expected[place]


@pytest.mark.parametrize("mixed_blocks", [1, 2, 3])
def test_only_a_few_shards_are_being_read_at_any_time(mixed_blocks):
    shards = SHARDS[whole(mixed_blocks=mixed_blocks)]
    begins = {shard: np.flatnonzero(shards == shard)[0] for shard in set(SHARDS)}
    ends = {shard: np.flatnonzero(shards == shard)[-1] for shard in set(SHARDS)}
    being_read = [sum(begins[each] <= place <= ends[each] for each in begins) for place in range(26)]
    assert max(being_read) == mixed_blocks
    assert begins != {shard: np.flatnonzero(shard == SHARDS)[0] for shard in set(SHARDS)}


def test_without_blocks_it_is_one_permutation():
    """The order that checkpoints of earlier runs go on with."""
    order = PassOrder([11], seed=7, epoch=2, mixed_blocks=64)
    assert [order[i] for i in range(11)] == np.random.default_rng([7, 2]).permutation(11).tolist()


def test_images_of_mixed_shards_come_in_any_order():
    """Each of the 26 images is first in about one of 26 passes."""
    first = Counter(PassOrder(SIZES, seed=0, epoch=epoch)[0] for epoch in range(2600))
    assert len(first) == 26
    assert max(first.values()) < 160
