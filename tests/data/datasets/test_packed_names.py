"""Many file names in one array: the same names come out, in little memory."""

import os
import pickle

import pytest

from updetr_d2.data.datasets.packed_names import PackedNames


def test_names_come_out_as_they_went_in():
    names = ["a.jpg", "", "ümläut.jpg", os.fsdecode(b"latin\xe9.jpg"), "x/y z.png"]
    packed = PackedNames(names)
    assert len(packed) == 5
    assert [packed[i] for i in range(5)] == names
    assert packed[-1] == "x/y z.png"
    for index in (5, -6):
        with pytest.raises(IndexError):
            packed[index]


def test_memory_is_that_of_the_bytes():
    names = [f"n{i:08d}.JPEG" for i in range(10_000)]
    assert len(pickle.dumps(PackedNames(names))) < 10_000 * (len(names[0]) + 8) + 1000
