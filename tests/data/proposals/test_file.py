"""The file of proposals: boxes to a hundredth of a pixel, found by image id; nothing odd is read."""

import dataclasses

import numpy as np
import pytest

from updetr_d2.data.proposals import Proposals
from updetr_d2.data.proposals.file import image_key, to_units
from updetr_d2.utils.arrays import write_arrays

BOXES = {
    "a/1.jpg": [[0, 0, 640, 480], [10.5, 20.25, 30, 41]],
    7: [[1, 2, 3, 4]],
    "empty.png": [],
}


def proposals(clusters=0):
    keys = np.array([image_key(name) for name in BOXES], np.uint64)
    order = np.argsort(keys)
    boxes = [np.array(each, float).reshape(-1, 4) for each in BOXES.values()]
    units = [to_units(boxes[i], width=640, height=480) for i in order]
    return Proposals(
        source="test",
        keys=keys[order],
        sizes=np.tile(np.array([640, 480], np.int32), (3, 1)),
        file_sizes=np.array([100, 0, 200], np.int64),
        ends=np.cumsum([len(each) for each in units]),
        boxes=np.concatenate(units),
        scores=np.arange(3, dtype=np.float32),
        num_clusters=clusters,
        clusters=np.arange(3, dtype=np.int32) if clusters else np.empty(0, np.int32),
    )


@pytest.mark.parametrize("clusters", [0, 3])
def test_boxes_are_found_by_the_image_id(tmp_path, clusters):
    proposals(clusters).save(tmp_path / "boxes.npz")
    loaded = Proposals.load(tmp_path / "boxes.npz")
    assert (len(loaded), loaded.source, loaded.num_clusters) == (3, "test", clusters)
    for name, boxes in BOXES.items():
        found = loaded.find(name)
        np.testing.assert_allclose(found.boxes, np.reshape(boxes, (-1, 4)), atol=0.01)
        assert found.size == (640, 480)
        assert found.file_size == loaded.file_sizes[list(loaded.keys).index(image_key(name))]
        assert (found.clusters is None) == (clusters == 0)
    assert loaded.find("7").boxes.shape == (1, 4)  # an id is what it reads as
    assert loaded.find("other") is None


def test_a_box_is_never_without_area():
    units = to_units(np.array([[3.0, 3, 3, 3], [10, 0, 10, 5]]), width=10, height=10)
    assert (units[:, 2:] > units[:, :2]).all()


WRONG = {
    "keys": lambda x: x[::-1],
    "sizes": lambda x: x * 0,
    "file_sizes": lambda x: x[1:],
    "ends": lambda x: x + 1,
    "boxes": lambda x: x[:, [2, 3, 0, 1]],
    "scores": lambda x: x * np.nan,
    "clusters": lambda x: x + 1,
}


@pytest.mark.parametrize("part", WRONG)
def test_numbers_that_do_not_fit_are_refused(tmp_path, part):
    whole = proposals(clusters=3)
    dataclasses.replace(whole, **{part: WRONG[part](getattr(whole, part))}).save(tmp_path / "boxes.npz")
    with pytest.raises(ValueError, match=f"boxes.npz is no file of .*'{part}'.*make it again"):
        Proposals.load(tmp_path / "boxes.npz")


def test_files_of_another_kind_are_refused(tmp_path):
    write_arrays(tmp_path / "other.npz", {"a": np.zeros(3)})
    with pytest.raises(ValueError, match="no file of `updetr proposals`"):
        Proposals.load(tmp_path / "other.npz")
    (tmp_path / "text.npz").write_text("boxes")
    with pytest.raises(ValueError, match="no file of `updetr proposals`"):
        Proposals.load(tmp_path / "text.npz")
    with pytest.raises(ValueError, match=r"cannot be read .*INPUT.PROPOSALS.FILE"):
        Proposals.load(tmp_path / "missing.npz")
