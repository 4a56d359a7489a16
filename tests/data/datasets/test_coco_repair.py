"""Bad annotation files: what can be repaired is repaired and counted, the rest stops with one sentence."""

import copy
import json

import pytest

from updetr_d2.data.datasets.coco_repair import AnnotationError, read_annotation_file, repair_annotations


def make_content():
    """Two images and three good annotations."""
    return {
        "images": [
            {"id": 1, "file_name": "a.jpg", "height": 50, "width": 100},
            {"id": 2, "file_name": "b.jpg", "height": 50, "width": 100},
        ],
        "annotations": [
            make_annotation(1, [10, 10, 20, 20]),
            make_annotation(2, [0, 0, 100, 50]),
            make_annotation(3, [5, 5, 5, 5], image_id=2),
        ],
        "categories": [{"id": 3, "name": "cat"}, {"id": 7, "name": "dog"}],
    }


def make_annotation(annotation_id, bbox, *, image_id=1, category_id=3):
    return {
        "id": annotation_id,
        "image_id": image_id,
        "category_id": category_id,
        "bbox": bbox,
        "area": bbox[2] * bbox[3],
        "iscrowd": 0,
    }


@pytest.fixture
def folder(tmp_path):
    for name in ("a.jpg", "b.jpg"):
        (tmp_path / name).touch()
    return tmp_path


def repair(content, folder):
    before = copy.deepcopy(content)
    repaired, report = repair_annotations(content, json_file="train.json", image_folder=str(folder))
    assert content == before, "the content given must not change"
    return repaired, report


def test_good_content_stays_as_it_is(folder):
    content = make_content()
    repaired, report = repair(content, folder)
    assert repaired is content
    assert not report.counts


@pytest.mark.parametrize(
    ("bbox", "expected", "problem"),
    [
        ([90, 40, 20, 20], [90, 40, 10, 10], "clipped"),
        ([-10, -10, 20, 20], [0, 0, 10, 10], "clipped"),
        ([90, 40, 11, 11], [90, 40, 11, 11], None),  # rounding, not an error
        ([10, 10, 0, 20], None, "no area"),
        ([10, 10, 20, -5], None, "no area"),
        ([200, 10, 20, 20], None, "outside of its image"),
        ([10, 10, 20], None, "not four finite numbers"),
        ([10, 10, float("nan"), 20], None, "not four finite numbers"),
        (None, None, "not four finite numbers"),
    ],
)
def test_boxes(folder, bbox, expected, problem):
    content = make_content()
    content["annotations"][0]["bbox"] = bbox
    repaired, report = repair_annotations(content, json_file="train.json", image_folder=str(folder))
    boxes = {annotation["id"]: annotation["bbox"] for annotation in repaired["annotations"]}
    assert boxes.get(1) == expected
    assert sum(report.counts.values()) == (problem is not None)
    assert problem is None or problem in report.table()


def test_missing_image_files_are_left_out_with_their_annotations(folder):
    (folder / "b.jpg").unlink()
    repaired, report = repair(make_content(), folder)
    assert [image["id"] for image in repaired["images"]] == [1]
    assert [annotation["id"] for annotation in repaired["annotations"]] == [1, 2]
    assert list(report.counts.values()) == [1]
    assert "b.jpg" in report.table()


def test_annotations_of_unknown_images_are_left_out(folder):
    content = make_content()
    content["annotations"].append(make_annotation(4, [1, 1, 2, 2], image_id=99))
    repaired, report = repair(content, folder)
    assert [annotation["id"] for annotation in repaired["annotations"]] == [1, 2, 3]
    assert "id 4 (99)" in report.table()


def test_the_first_image_of_an_id_is_kept(folder):
    content = make_content()
    content["images"].append({**content["images"][0], "file_name": "b.jpg"})
    repaired, _ = repair(content, folder)
    assert [image["file_name"] for image in repaired["images"]] == ["a.jpg", "b.jpg"]


def test_copies_of_annotations_are_dropped_and_others_get_new_ids(folder):
    content = make_content()
    content["annotations"].append(copy.deepcopy(content["annotations"][0]))
    content["annotations"].append(make_annotation(2, [30, 30, 4, 4]))
    content["annotations"].append(make_annotation(0, [40, 30, 4, 4]))
    del content["annotations"][-1]["id"]
    repaired, report = repair(content, folder)
    assert [annotation["id"] for annotation in repaired["annotations"]] == [1, 2, 3, 4, 5]
    assert [annotation["bbox"] for annotation in repaired["annotations"][3:]] == [
        [30, 30, 4, 4],
        [40, 30, 4, 4],
    ]
    assert list(report.counts.values()) == [1, 2]


def test_fields_that_evaluation_needs_are_filled_in(folder):
    content = make_content()
    for annotation in content["annotations"]:
        del annotation["iscrowd"], annotation["area"]
    content["annotations"][1]["ignore"] = 1
    repaired, _ = repair(content, folder)
    assert [annotation["iscrowd"] for annotation in repaired["annotations"]] == [0, 1, 0]
    assert [annotation["area"] for annotation in repaired["annotations"]] == [400, 5000, 25]
    assert not any("ignore" in annotation for annotation in repaired["annotations"])


def test_report_counts_and_shows_the_first_cases(folder):
    content = make_content()
    content["annotations"] = [make_annotation(i, [10, 10, 0, 0]) for i in range(1, 101)]
    _, report = repair(content, folder)
    assert list(report.counts.values()) == [100]
    assert "id 1, id 2, id 3 " in report.table()
    assert "id 4" not in report.table()


def test_unknown_category_ids_are_no_repair_but_an_error(folder):
    content = make_content()
    content["annotations"][1]["category_id"] = 4
    with pytest.raises(AnnotationError, match=r"1 annotations of train.json have category ids \(4\)"):
        repair(content, folder)


@pytest.mark.parametrize(
    "categories", [[], [{"id": 1}], [{"id": 1, "name": "a"}, {"id": 1, "name": "b"}]], ids=str
)
def test_unusable_categories_are_an_error(folder, categories):
    with pytest.raises(AnnotationError, match="categories"):
        repair({**make_content(), "categories": categories}, folder)


def test_no_usable_image_is_an_error_that_names_the_folder(tmp_path):
    with pytest.raises(AnnotationError, match=f"None of the 2 images .* is {tmp_path} the folder"):
        repair(make_content(), tmp_path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is empty"),
        ("{'images': ", "is not JSON"),
        ("[1, 2]", "not in COCO's format"),
        ('{"images": [], "annotations": []}', "not in COCO's format"),
        ('{"images": [3], "annotations": [], "categories": []}', "not in COCO's format"),
    ],
)
def test_files_that_are_none(tmp_path, text, message):
    path = tmp_path / "train.json"
    path.write_text(text)
    with pytest.raises(AnnotationError, match=message):
        read_annotation_file(str(path))


def test_missing_file(tmp_path):
    with pytest.raises(AnnotationError, match="cannot be read"):
        read_annotation_file(str(tmp_path / "none.json"))


def test_file_without_annotations_has_none(tmp_path):
    path = tmp_path / "images.json"
    path.write_text(json.dumps({"images": [], "categories": []}))
    assert read_annotation_file(str(path))["annotations"] == []
