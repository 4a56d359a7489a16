"""Panoptic evaluation: ground truth gets PQ and AP 100, in one process or two, whatever groups a data set has."""

import json

import numpy as np
import pytest
from detectron2.config import get_cfg
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.utils import comm
from helpers import ids_to_rgb, true_panoptic_output
from PIL import Image
from processes import run_processes

from updetr_d2 import add_updetr_config
from updetr_d2.data.datasets.names import ensure_registered
from updetr_d2.data.datasets.panoptic_classes import PanopticClasses
from updetr_d2.tasks import build_evaluator

HEIGHT, WIDTH = 24, 32
CATEGORIES = [
    {"id": 3, "name": "wall", "isthing": 0},
    {"id": 5, "name": "cat", "isthing": 1},
    {"id": 9, "name": "dog", "isthing": 1},
    {"id": 200, "name": "floor", "isthing": 0},
]


def write_dataset(folder, categories=CATEGORIES, num_images=4, seed=0):
    """Images of noise cut into a segment of every category; returns the name of the data set."""
    rng = np.random.default_rng(seed)
    for name in ("png", "images"):
        (folder / name).mkdir()
    images, annotations = [], []
    for index in range(num_images):
        # Columns of random width; ids that need more than one byte of the PNG.
        edges = np.sort(rng.choice(np.arange(4, WIDTH - 3, 4), len(categories) - 1, replace=False))
        ids = np.zeros((HEIGHT, WIDTH), dtype=np.int64)
        segments = []
        for i, (part, category) in enumerate(zip(np.split(np.arange(WIDTH), edges), categories)):
            segment = {"id": 1000 * (i + 1) + index, "category_id": category["id"], "iscrowd": 0}
            ids[:20, part] = segment["id"]
            segments.append({**segment, "area": 20 * len(part)})
        Image.fromarray(ids_to_rgb(ids)).save(folder / "png" / f"label_{index}.png")
        noise = rng.integers(256, size=(HEIGHT, WIDTH, 3), dtype=np.uint8)
        Image.fromarray(noise).save(folder / "images" / f"image_{index}.png")
        images.append({"id": 7 + index, "file_name": f"image_{index}.png", "height": HEIGHT, "width": WIDTH})
        annotations.append(
            {"image_id": 7 + index, "file_name": f"label_{index}.png", "segments_info": segments}
        )
    content = {"images": images, "annotations": annotations, "categories": list(categories)}
    (folder / "panoptic.json").write_text(json.dumps(content))
    return f"coco_panoptic:{folder}/panoptic.json@{folder}/png@{folder}/images"


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("UPDETR_D2_CACHE", str(tmp_path / "cache"))


def panoptic_cfg(name):
    cfg = get_cfg()
    add_updetr_config(cfg)
    cfg.MODEL.META_ARCHITECTURE = "PanopticDETR"
    cfg.MODEL.MASK_ON = True
    cfg.INPUT.FORMAT = "RGB"
    cfg.DATASETS.TRAIN = (name,)
    return cfg


def evaluate_truth(name, output_folder, change=lambda output: output):
    """Feed the ground truth back; with several processes each takes its share."""
    ensure_registered([name])
    dataset_dicts = DatasetCatalog.get(name)  # which completes the metadata
    evaluator = build_evaluator(panoptic_cfg(name), name, str(output_folder))
    evaluator.reset()
    num_things = PanopticClasses.from_metadata(MetadataCatalog.get(name)).num_things
    for dataset_dict in dataset_dicts[comm.get_rank() :: comm.get_world_size()]:
        evaluator.process([dataset_dict], [change(true_panoptic_output(dataset_dict, num_things))])
    return evaluator.evaluate()


def test_ground_truth_is_perfect(tmp_path):
    results = evaluate_truth(write_dataset(tmp_path), tmp_path / "out")
    assert all(value == pytest.approx(100) for value in results["panoptic_seg"].values())
    assert len(results["panoptic_seg"]) == 9
    assert results["bbox"]["AP"] == pytest.approx(100)
    assert results["segm"]["AP"] == pytest.approx(100)
    # AP of things only, by name.
    assert {key for key in results["segm"] if key.startswith("AP-")} == {"AP-cat", "AP-dog"}


def test_wrong_classes_of_stuff_cost_only_stuff(tmp_path):
    def swap_stuff(output):
        for segment in output["panoptic_seg"][1]:
            segment["category_id"] = {2: 3, 3: 2}.get(segment["category_id"], segment["category_id"])
        return output

    results = evaluate_truth(write_dataset(tmp_path), tmp_path / "out", swap_stuff)["panoptic_seg"]
    assert results["PQ_th"] == pytest.approx(100)
    assert results["PQ_st"] == 0
    assert results["PQ"] == pytest.approx(50)


def test_void_prediction_gets_nothing(tmp_path):
    def nothing(output):
        segment_map, _ = output["panoptic_seg"]
        return {"instances": output["instances"][:0], "panoptic_seg": (0 * segment_map, [])}

    results = evaluate_truth(write_dataset(tmp_path), tmp_path / "out", nothing)
    assert results["panoptic_seg"]["PQ"] == 0


@pytest.mark.parametrize(("isthing", "missing"), [(1, "PQ_st"), (0, "PQ_th")])
def test_data_sets_of_things_or_stuff_alone(tmp_path, isthing, missing):
    categories = [category for category in CATEGORIES if category["isthing"] == isthing]
    results = evaluate_truth(write_dataset(tmp_path, categories), tmp_path / "out")
    assert results["panoptic_seg"]["PQ"] == pytest.approx(100)
    assert missing not in results["panoptic_seg"]
    assert ("segm" in results) == bool(isthing)


def test_evaluation_leaves_the_output_as_it_is(tmp_path):
    outputs = []

    def keep(output):
        outputs.append(output)
        return output

    evaluate_truth(write_dataset(tmp_path), tmp_path / "out", keep)
    assert all("isthing" in segment for output in outputs for segment in output["panoptic_seg"][1])


def test_predictions_are_written_with_ids_of_the_annotations(tmp_path):
    evaluate_truth(write_dataset(tmp_path), tmp_path / "out")
    content = json.loads((tmp_path / "out" / "predictions.json").read_text())
    assert [each["image_id"] for each in content["annotations"]] == [7, 8, 9, 10]
    assert content["annotations"][0]["file_name"] == "image_0.png"
    segments = content["annotations"][0]["segments_info"]
    assert sorted(segment["category_id"] for segment in segments) == [3, 5, 9, 200]
    assert content["categories"] == CATEGORIES


def test_images_of_one_name_in_several_folders_are_told_apart(tmp_path):
    name = write_dataset(tmp_path)
    content = json.loads((tmp_path / "panoptic.json").read_text())
    for folder, image, annotation in zip("abcd", content["images"], content["annotations"]):
        for parent, entry in (("images", image), ("png", annotation)):
            (tmp_path / parent / folder).mkdir()
            (tmp_path / parent / entry["file_name"]).rename(tmp_path / parent / folder / "1.png")
            entry["file_name"] = f"{folder}/1.png"
    (tmp_path / "panoptic.json").write_text(json.dumps(content))
    assert evaluate_truth(name, tmp_path / "out")["panoptic_seg"]["PQ"] == pytest.approx(100)
    predictions = json.loads((tmp_path / "out" / "predictions.json").read_text())["annotations"]
    assert [each["file_name"] for each in predictions] == [f"{folder}/1.png" for folder in "abcd"]


def test_two_processes_see_all_images(tmp_path):
    results, nothing = run_processes(
        2, evaluate_truth, write_dataset(tmp_path, num_images=5), tmp_path / "out"
    )
    assert not nothing
    assert results["panoptic_seg"]["PQ"] == pytest.approx(100)
    assert results["segm"]["AP"] == pytest.approx(100)
