"""The tasks of pre-training on proposals: classes of a file, images of another, patches for queries."""

import os

import numpy as np
import pytest
from detectron2.data import DatasetCatalog
from helpers import tiny_cfg, write_photos
from tiny_coco import forget_runs

from updetr_d2.cli import proposals
from updetr_d2.config.access import changed
from updetr_d2.data.datasets.names import load_dataset_dicts
from updetr_d2.data.proposals import Proposals
from updetr_d2.tasks import check_config, task_of


@pytest.fixture
def cfg(tmp_path, monkeypatch):
    """A config for photos whose file of proposals has 12 random boxes each, in 7 clusters."""
    monkeypatch.setenv("UPDETR_D2_CACHE", str(tmp_path / "cache"))
    registered = set(DatasetCatalog)
    (tmp_path / "photos").mkdir()
    write_photos(tmp_path / "photos", 4)
    options = ["--source", "random", "--output", str(tmp_path / "boxes.npz"), "--boxes", "12"]
    assert proposals.main([str(tmp_path / "photos"), *options]) == 0
    made = Proposals.load(tmp_path / "boxes.npz")
    made.num_clusters, made.clusters = 7, np.arange(len(made.boxes), dtype=np.int32) % 7
    made.save(tmp_path / "boxes.npz")
    cfg = tiny_cfg(
        "ObjectDETR", "INPUT.PROPOSALS.FILE", str(tmp_path / "boxes.npz"), "MODEL.DETR.NUM_CLASSES", 1
    )
    cfg.INPUT.MIN_SIZE_TRAIN, cfg.INPUT.DETR_CROP.PROB = (64,), 0.0
    cfg.DATASETS.TRAIN = (f"folder:{tmp_path / 'photos'}",)
    yield cfg
    forget_runs(registered)


def sample_of(cfg):
    dataset_dicts = load_dataset_dicts(cfg.DATASETS.TRAIN, filter_empty=False)
    return task_of(cfg).build_mapper(cfg, is_train=True)(dataset_dicts[0])


def test_one_class_or_as_many_as_the_file_has_clusters(cfg):
    check_config(cfg)
    assert task_of(cfg).derive_num_classes(cfg, ()).MODEL.DETR.NUM_CLASSES == 1
    assert set(sample_of(cfg)["instances"].gt_classes.tolist()) == {0}
    for number in (0, 7):
        clusters = changed(cfg, ["INPUT.PROPOSALS.CLUSTERS", True, "MODEL.DETR.NUM_CLASSES", number])
        check_config(clusters)
        assert task_of(clusters).derive_num_classes(clusters, ()).MODEL.DETR.NUM_CLASSES == 7
    assert set(sample_of(clusters)["instances"].gt_classes.tolist()) == set(range(7))
    wrong = changed(clusters, ["MODEL.DETR.NUM_CLASSES", 5])
    with pytest.raises(ValueError, match=r"NUM_CLASSES is 5, but .* has 7 clusters"):
        task_of(wrong).derive_num_classes(wrong, ())


def test_a_file_without_clusters_cannot_give_classes(cfg):
    made = Proposals.load(cfg.INPUT.PROPOSALS.FILE)
    made.num_clusters, made.clusters = 0, np.empty(0, np.int32)
    made.save(cfg.INPUT.PROPOSALS.FILE)
    clusters = changed(cfg, ["INPUT.PROPOSALS.CLUSTERS", True, "MODEL.DETR.NUM_CLASSES", 0])
    with pytest.raises(ValueError, match=r"boxes.npz has none: make it with .*--cluster K"):
        task_of(clusters).derive_num_classes(clusters, ())


def test_without_clusters_more_classes_than_one_are_refused(cfg):
    with pytest.raises(ValueError, match=r"NUM_CLASSES is 4; boxes without clusters have one class"):
        check_config(changed(cfg, ["MODEL.DETR.NUM_CLASSES", 4]))


def test_proposals_of_other_images_are_refused_at_the_start(cfg, tmp_path):
    dataset_dicts = load_dataset_dicts(cfg.DATASETS.TRAIN, filter_empty=False)
    task_of(cfg).check_training_set(cfg, dataset_dicts)
    others = [{**each, "image_id": f"other/{each['image_id']}"} for each in dataset_dicts]
    with pytest.raises(ValueError, match=r"knows none of the images of DATASETS\.TRAIN"):
        task_of(cfg).check_training_set(cfg, others)


def test_proposals_of_other_files_with_the_same_names_are_told_at_the_start(cfg, caplog):
    dataset_dicts = load_dataset_dicts(cfg.DATASETS.TRAIN, filter_empty=False)
    task_of(cfg).check_training_set(cfg, dataset_dicts)
    assert "other files" not in caplog.text
    for each in dataset_dicts:
        with open(each["file_name"], "ab") as file:
            file.write(b"other")
    task_of(cfg).check_training_set(cfg, dataset_dicts)
    assert "but other files: 4 of 4" in caplog.text
    assert os.path.basename(dataset_dicts[0]["file_name"]) in caplog.text


def test_a_detector_says_that_it_uses_no_proposals(cfg, caplog):
    detector = changed(cfg, ["MODEL.META_ARCHITECTURE", "DETR", "MODEL.DETR.NUM_CLASSES", 1])
    labeled = [{"file_name": "a.png", "annotations": [{"category_id": 0}]}]
    task_of(detector).check_training_set(detector, labeled)
    assert "INPUT.PROPOSALS.FILE" in caplog.text and "is not used" in caplog.text


def test_queries_of_updetr_get_patches_of_some_of_the_boxes(cfg):
    updetr = changed(cfg, ["MODEL.META_ARCHITECTURE", "UPDETR", "MODEL.DETR.NUM_CLASSES", 2])
    check_config(updetr)
    np.random.seed(0)
    sample = sample_of(updetr)
    assert sample["patches"].shape == (5, 3, 128, 128)
    assert sample["instances"].gt_classes.tolist() == [1] * 5
    every = sample_of(cfg)["instances"].gt_boxes.tensor
    assert len(every) == 12
