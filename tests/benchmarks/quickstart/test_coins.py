"""The quickstart's pictures: exact labels, no coin twice, nothing of the test pictures in the others."""

import json

import numpy as np
import pytest
from PIL import Image

from benchmarks.quickstart import coins

pytest.importorskip("skimage", reason="the photographs come with scikit-image")


def test_coins_are_cut_out_of_what_is_darker():
    gray = np.full((100, 200), 40, dtype=np.uint8)
    rows, columns = np.mgrid[:100, :200]
    for x in (50, 140):
        gray[(rows - 50) ** 2 + (columns - x) ** 2 < 20**2] = 200
    gray[:10, :30] = 200  # at the border, not a whole coin
    found = coins.cut_out_coins(gray)
    assert len(found) == 2
    for coin in found:
        assert all(abs(side - 39) <= 1 for side in coin.shape[:2])
        assert coin[20, 20].tolist() == [200, 255] and coin[0, 0, 1] == 0


@pytest.mark.parametrize("family", ["train", "test"])
def test_a_box_holds_its_coin_tightly(family):
    composer = coins.Composer(family)
    for index in range(5):
        _, annotation = composer(index)
        segments = annotation["segments_info"]
        assert 1 <= len(segments) <= coins.COINS_PER_PICTURE[1]
        for each in segments:
            rows, columns = np.nonzero(annotation["panoptic_seg"] == each["id"])
            box = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
            assert each["bbox"] == box
            assert 0.6 < each["area"] / ((box[2] - box[0]) * (box[3] - box[1])) < 0.95  # round


def test_copper_is_redder_than_silver():
    composer = coins.Composer("train")
    tones = {0: [], 1: []}
    for index in range(10):
        image, annotation = composer(index)
        for each in annotation["segments_info"]:
            red, _, blue = image[annotation["panoptic_seg"] == each["id"]].mean(axis=0)
            tones[each["category_id"]].append(red / blue)
    assert min(tones[0]) > 1.5 > 1.15 > max(tones[1])


def test_test_pictures_show_other_coins_and_other_photographs():
    train, unlabeled, test = (coins.Composer(each) for each in ("train", "unlabeled", "test"))
    contents = [{coin.tobytes() for coin in each.coins} for each in (train, unlabeled, test)]
    assert contents[0] == contents[1] and not contents[0] & contents[2]
    assert not set(coins.PHOTOGRAPHS["train"]) & set(coins.PHOTOGRAPHS["test"])


def test_pictures_do_not_depend_on_their_number_and_are_written_once(tmp_path):
    coins.write_coins(tmp_path / "two", "train", 2)
    coins.write_coins(tmp_path / "three", "train", 3)
    first, second = (tmp_path / name / "images" / "000001.jpg" for name in ("two", "three"))
    assert first.read_bytes() == second.read_bytes()
    assert Image.open(first).size == (coins.WIDTH, coins.HEIGHT)
    content = json.loads((tmp_path / "three" / "instances.json").read_text())
    assert [each["name"] for each in content["categories"]] == list(coins.CLASSES)
    assert len(content["images"]) == 3
    first.write_bytes(b"kept")
    coins.write_coins(tmp_path / "two", "train", 2)
    assert first.read_bytes() == b"kept"


def test_without_labels_there_is_no_annotation_file(tmp_path):
    coins.write_coins(tmp_path / "unlabeled", "unlabeled", 1)
    assert sorted(path.name for path in (tmp_path / "unlabeled").iterdir()) == ["images"]
