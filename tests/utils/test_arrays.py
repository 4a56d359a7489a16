"""Files of arrays: what was written is mapped, anything else is refused before a value is used."""

import numpy as np
import pytest

from updetr_d2.utils.arrays import map_arrays, write_arrays


def arrays():
    return {
        "numbers": np.arange(12, dtype=np.uint16).reshape(3, 4),
        "none": np.empty((0, 4), np.float32),
        "one": np.array(7, np.int64),
        "text": np.array("straße"),
    }


def test_arrays_come_back_as_they_were(tmp_path):
    write_arrays(tmp_path / "file.npz", arrays())
    found = map_arrays(tmp_path / "file.npz")
    assert set(found) == set(arrays())
    for name, array in arrays().items():
        assert found[name].dtype == array.dtype
        np.testing.assert_array_equal(found[name], array)


def test_values_stay_in_the_file(tmp_path):
    write_arrays(tmp_path / "file.npz", arrays())
    assert isinstance(map_arrays(tmp_path / "file.npz")["numbers"], np.memmap)


def test_a_file_that_is_replaced_leaves_what_was_mapped(tmp_path):
    write_arrays(tmp_path / "file.npz", arrays())
    numbers = map_arrays(tmp_path / "file.npz")["numbers"]
    write_arrays(tmp_path / "file.npz", {"numbers": np.zeros(5)})
    np.testing.assert_array_equal(numbers, arrays()["numbers"])


def test_every_flipped_bit_of_the_values_is_noticed(tmp_path):
    values = np.arange(200, dtype=np.uint8)
    write_arrays(tmp_path / "file.npz", {"values": values})
    content = (tmp_path / "file.npz").read_bytes()
    begin = content.index(values.tobytes())
    for place in range(begin, begin + len(values), 23):
        damaged = bytearray(content)
        damaged[place] ^= 4
        (tmp_path / "file.npz").write_bytes(damaged)
        with pytest.raises(ValueError, match="damaged"):
            map_arrays(tmp_path / "file.npz")


@pytest.mark.parametrize("length", [0, 10, 300])
def test_a_file_cut_off_is_refused(tmp_path, length):
    write_arrays(tmp_path / "file.npz", arrays())
    (tmp_path / "file.npz").write_bytes((tmp_path / "file.npz").read_bytes()[:length])
    with pytest.raises(ValueError, match="damaged"):
        map_arrays(tmp_path / "file.npz")


def test_python_objects_are_neither_written_nor_read(tmp_path):
    objects = np.array([{"a": 1}], dtype=object)
    with pytest.raises(ValueError, match="Python objects"):
        write_arrays(tmp_path / "file.npz", {"objects": objects})
    np.savez(tmp_path / "pickled.npz", objects=objects)
    with pytest.raises(ValueError, match="no plain array"):
        map_arrays(tmp_path / "pickled.npz")


def test_compressed_arrays_are_refused(tmp_path):
    np.savez_compressed(tmp_path / "file.npz", numbers=np.arange(10))
    with pytest.raises(ValueError, match="no uncompressed array"):
        map_arrays(tmp_path / "file.npz")
