"""Cutouts: exact labels, nothing seen in two splits, the same scenes whatever their number."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from helpers import TOOLS
from PIL import Image

STAMPS_PER_CLASS = 10
SIZE = 64
# Hue of the stamps of each class, flat; photographs are grey.
COLORS = {"bird": (255, 0, 0), "fruit": (0, 255, 0), "fish": (0, 0, 255)}


@pytest.fixture(name="packages", scope="module")
def _packages(tmp_path_factory) -> Path:
    """The packages' folders with flat stamps and photographs, so that nothing is fetched."""
    from benchmarks.few_label.cutouts import catalog

    root = tmp_path_factory.mktemp("packages")
    for package in (catalog.STAMPS, *catalog.PHOTO_PACKAGES, *catalog.UNLABELED_PHOTO_PACKAGES):
        (root / package.name / package.folder).mkdir(parents=True)
    stamps = root / catalog.STAMPS.name / catalog.STAMPS.folder
    for label, color in COLORS.items():
        folder = stamps / catalog.CLASS_FOLDERS[label][0]
        (folder / "cartoon").mkdir(parents=True)
        for i in range(STAMPS_PER_CLASS):
            rgba = np.zeros((40 + i, 60, 4), dtype=np.uint8)
            rgba[5:-5, 5:-5] = (*color, 255)
            Image.fromarray(rgba).save(folder / f"{label}{i}.png")
        Image.new("RGBA", (30, 30), (255, 0, 255, 255)).save(folder / "cartoon" / "drawing.png")
    other = stamps / "household"
    other.mkdir()
    Image.new("RGBA", (30, 50), (255, 255, 0, 255)).save(other / "kettle.png")
    interiors = catalog.PHOTO_PACKAGES[3]
    for i in range(6):
        gray = Image.new("RGB", (300, 200), (100 + 10 * i,) * 3)
        gray.save(root / interiors.name / interiors.folder / f"pexels-{i}.jpg")
        gray.save(root / interiors.name / interiors.folder / f"pexels-7303{i}.jpg")
    unlabeled = catalog.UNLABELED_PHOTO_PACKAGES[1]
    for name in ("castle", "room1"):  # a photograph and a drawing
        Image.new("RGB", (300, 200), (90, 90, 90)).save(
            root / unlabeled.name / unlabeled.folder / f"{name}.jpg"
        )
    return root


def make_cutouts(output, packages, *options):
    command = [sys.executable, "-m", "benchmarks.few_label.cutouts.make_cutouts", "--size", SIZE]
    command += ["--output", output, "--assets", packages, *options]
    subprocess.run([str(part) for part in command], check=True, cwd=TOOLS.parent)


@pytest.fixture(name="data", scope="module")
def _data(packages, tmp_path_factory) -> Path:
    output = tmp_path_factory.mktemp("cutouts")
    make_cutouts(output, packages, "--pretrain", 30, "--train", 12, 20, "--val", 10)
    return output


def read_image(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path)).astype(int)


def test_no_asset_is_in_two_splits_and_none_is_lost(packages):
    from benchmarks.few_label.cutouts import assets

    for found in (assets.stamps(packages), assets.photographs(packages)):
        dealt = [asset.path for split in ("pretrain", "train", "val") for asset in assets.deal(found, split)]
        assert sorted(dealt) == sorted(asset.path for asset in found)
        assert len(set(dealt)) == len(dealt)


def test_every_split_has_every_class_and_only_pretraining_has_other_objects(packages):
    from benchmarks.few_label.cutouts import assets

    stamps = assets.stamps(packages)
    assert not any("cartoon" in asset.path.parts for asset in stamps)
    for split, others in (("pretrain", 1), ("train", 0), ("val", 0)):
        labels = [asset.label for asset in assets.deal(stamps, split)]
        assert set(labels) - {""} == set(COLORS)
        assert labels.count("") == others


def test_photographs_without_a_name_are_for_pretraining_only_and_drawings_for_nothing(packages):
    from benchmarks.few_label.cutouts import assets

    photographs = assets.photographs(packages)
    assert "room1" not in {asset.name for asset in photographs}
    for split, expected in (("pretrain", ["castle"]), ("train", []), ("val", [])):
        unnamed = [asset.name for asset in assets.deal(photographs, split) if not asset.label]
        assert unnamed == expected


def test_photographs_of_one_room_stay_together(packages):
    from benchmarks.few_label.cutouts import assets

    photographs = assets.photographs(packages)
    parts = [
        [asset.name for asset in assets.deal(photographs, split) if asset.name.startswith("pexels-7303")]
        for split in ("pretrain", "train", "val")
    ]
    assert sorted(map(len, parts)) == [0, 0, 6]


def test_boxes_and_masks_are_where_the_colour_of_their_class_is(data):
    """An independent look at the pixels: inside an instance its class's channel is much the strongest."""
    from benchmarks.few_label.cutouts import catalog

    content = json.loads((data / "val" / "instances.json").read_text())
    assert content["annotations"]
    for annotation in content["annotations"]:
        label = catalog.THING_CLASSES[annotation["category_id"] - 1]
        image = read_image(data / "val" / "images" / f"{annotation['image_id']:06d}.jpg")
        x, y, width, height = annotation["bbox"]
        inside = image[y : y + height, x : x + width]
        strongest = inside.argmax(-1) == np.argmax(COLORS[label])
        colourful = np.ptp(inside, axis=-1) > 40
        # Objects are turned rectangles, perhaps partly behind others.
        assert np.count_nonzero(strongest & colourful) >= 0.9 * annotation["area"]
        assert annotation["area"] >= 0.25 * width * height


def test_no_coloured_pixel_is_without_a_label(data):
    content = json.loads((data / "train_12" / "panoptic.json").read_text())
    things = {category["id"] for category in content["categories"] if category["isthing"]}
    for annotation in content["annotations"]:
        image = read_image(data / "train_12" / "images" / f"{annotation['image_id']:06d}.jpg")
        ids = read_image(data / "train_12" / "panoptic" / annotation["file_name"])[..., 0]
        thing_ids = [s["id"] for s in annotation["segments_info"] if s["category_id"] in things]
        colourful = np.ptp(image, axis=-1) > 150  # more than half covered
        assert np.mean(np.isin(ids, thing_ids)[colourful]) > 0.97
        assert (ids > 0).all()


def test_fewer_scenes_are_the_first_of_more(data):
    for index in range(12):
        few, many = (data / f"train_{n}" / "images" / f"{index:06d}.jpg" for n in (12, 20))
        assert few.read_bytes() == many.read_bytes()


def test_splits_are_different_scenes(data):
    first = {(data / name / "images" / "000000.jpg").read_bytes() for name in ("pretrain", "train_12", "val")}
    assert len(first) == 3


def test_a_package_that_cannot_be_fetched_is_named_with_the_way_out(tmp_path, monkeypatch):
    from benchmarks.few_label.cutouts import assets, catalog

    monkeypatch.setattr(assets.shutil, "which", lambda _: None)
    with pytest.raises(RuntimeError, match=r"tuxpaint-stamps-default cannot be fetched.*by hand"):
        assets.fetch(catalog.STAMPS, tmp_path)
    assert not list(tmp_path.iterdir())


def test_labels_of_scenes_for_pretraining_change_no_pixel_and_name_every_object(packages, data, tmp_path):
    make_cutouts(
        tmp_path / "labeled", packages, "--pretrain", 10, "--train", 1, "--val", 1, "--pretrain-labels"
    )
    labeled = tmp_path / "labeled" / "pretrain"
    assert not (data / "pretrain" / "instances.json").exists()
    for image in sorted((labeled / "images").iterdir()):
        assert image.read_bytes() == (data / "pretrain" / "images" / image.name).read_bytes()
    content = json.loads((labeled / "instances.json").read_text())
    names = {category["id"]: category["name"] for category in content["categories"]}
    found = {names[annotation["category_id"]] for annotation in content["annotations"]}
    assert "other" in found and found & set(COLORS)
