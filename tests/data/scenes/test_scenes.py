"""The embedded data set is reproducible, exactly labelled, varied, and consumable like COCO."""

import itertools
import os
import subprocess
import sys

import cv2
import numpy as np
import pycocotools.mask as mask_util
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.evaluation import COCOEvaluator, COCOPanopticEvaluator
from detectron2.structures import Boxes, BoxMode, Instances
from PIL import Image

from updetr_d2.data.scenes.classes import STUFF_CLASSES, THING_CLASSES
from updetr_d2.data.scenes.drawing import render_scene
from updetr_d2.data.scenes.register import SPLITS, Split, register_scenes

NUM_SCENES = 40


@pytest.fixture(scope="module")
def scenes():
    return [render_scene(seed=3, index=index) for index in range(NUM_SCENES)]


@pytest.fixture
def registered(tmp_path):
    """Small splits below a temporary folder; removed from the catalogs afterwards."""
    splits = {
        "unlabeled": Split(first_index=0, count=3, labeled=False),
        "val": Split(first_index=10, count=8, labeled=True),
    }
    register_scenes(tmp_path, prefix="tiny", splits=splits)
    yield tmp_path
    for name in ("tiny_unlabeled", "tiny_val", "tiny_val_panoptic"):
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)


def read_segment_map(path):
    rgb = np.asarray(Image.open(path)).astype(np.int64)
    return rgb[..., 0] + 256 * rgb[..., 1] + 256**2 * rgb[..., 2]


class TestRendering:
    def test_depends_on_seed_and_index_alone(self):
        image, annotation = render_scene(seed=1, index=5)
        np.random.seed(0)
        render_scene(seed=9, index=9)
        again, annotation_again = render_scene(seed=1, index=5)
        np.testing.assert_array_equal(image, again)
        np.testing.assert_array_equal(annotation["panoptic_seg"], annotation_again["panoptic_seg"])
        assert annotation["segments_info"] == annotation_again["segments_info"]
        for seed, index in ((1, 6), (2, 5), (5, 1)):
            assert np.abs(render_scene(seed, index)[0].astype(int) - image).mean() > 10

    @pytest.mark.parametrize("size", [64, 128, 200])
    def test_shapes_and_types(self, size):
        image, annotation = render_scene(seed=0, index=0, size=size)
        assert image.shape == (size, size, 3) and image.dtype == np.uint8
        assert annotation["panoptic_seg"].shape == (size, size)
        assert annotation["panoptic_seg"].dtype == np.int32

    def test_boxes_and_areas_are_those_of_the_visible_masks(self, scenes):
        for _, annotation in scenes:
            for segment in annotation["segments_info"]:
                rows, columns = np.nonzero(annotation["panoptic_seg"] == segment["id"])
                assert segment["area"] == len(rows) > 0
                tight = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
                assert segment["bbox"] == tight

    def test_segments_partition_the_image(self, scenes):
        for image, annotation in scenes:
            ids = [segment["id"] for segment in annotation["segments_info"]]
            assert ids == list(range(1, len(ids) + 1))
            assert set(np.unique(annotation["panoptic_seg"])) == set(ids)
            assert sum(s["area"] for s in annotation["segments_info"]) == image.shape[0] * image.shape[1]
            stuff = [s["category_id"] for s in annotation["segments_info"] if not s["isthing"]]
            assert len(set(stuff)) == len(stuff)  # one segment a stuff class

    def test_a_label_lies_on_what_was_painted(self):
        # The outline of a thing is where colours change: across it they differ more than inside it.
        across, inside = [], []
        for index in range(20):
            image, annotation = render_scene(seed=4, index=index)
            labels, grey = annotation["panoptic_seg"], image.astype(float).mean(axis=2)
            change = np.abs(grey[:, 2:] - grey[:, :-2])
            border = labels[:, 2:] != labels[:, :-2]
            across.append(change[border].mean())
            inside.append(change[~border].mean())
        assert np.mean(across) > 1.5 * np.mean(inside)

    def test_every_class_occurs(self, scenes):
        seen = {s["category_id"] for _, annotation in scenes for s in annotation["segments_info"]}
        assert seen == set(range(len(THING_CLASSES) + len(STUFF_CLASSES)))

    def test_things_are_several_overlapping_and_of_many_sizes(self, scenes):
        counts, areas, overlapping = [], [], 0
        for _, annotation in scenes:
            things = [s for s in annotation["segments_info"] if s["isthing"]]
            counts.append(len(things))
            areas += [s["area"] for s in things]
            for a, b in itertools.combinations([s["bbox"] for s in things], 2):
                overlapping += min(a[2], b[2]) > max(a[0], b[0]) and min(a[3], b[3]) > max(a[1], b[1])
        assert min(counts) >= 1 and np.mean(counts) > 3
        assert min(areas) >= 50 and max(areas) > 10 * min(areas)
        assert overlapping > NUM_SCENES

    def test_no_region_is_plain(self, scenes):
        # A query patch of a flat region could be anywhere: every 32 px block must show some structure.
        for image, _ in scenes:
            grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY).astype(float)
            blocks = grey.reshape(4, 32, 4, 32).std(axis=(1, 3))
            assert blocks.min() > 1
            assert np.median(blocks) > 8


class TestSplits:
    def test_share_no_scene(self):
        ranges = [range(s.first_index, s.first_index + s.count) for s in SPLITS.values()]
        for a, b in itertools.combinations(ranges, 2):
            assert not set(a) & set(b)

    def test_metadata_maps_the_ids_as_coco_panoptic_does(self):
        # Detectron2's own COCO panoptic data: contiguous ids over things, then stuff, names of both in both.
        for name in ("coco_2017_val_panoptic", "scenes_val_panoptic"):
            metadata = MetadataCatalog.get(name)
            things = set(metadata.thing_dataset_id_to_contiguous_id.values())
            stuff = set(metadata.stuff_dataset_id_to_contiguous_id.values())
            assert things == set(range(len(things)))
            assert things | stuff == set(range(len(metadata.thing_classes)))
            assert metadata.thing_classes == metadata.stuff_classes
            assert len(metadata.thing_colors) == len(metadata.stuff_colors) == len(metadata.thing_classes)
        assert (
            MetadataCatalog.get("scenes_val").thing_dataset_id_to_contiguous_id
            == metadata.thing_dataset_id_to_contiguous_id
        )

    @pytest.mark.parametrize(
        "name, evaluator_type",
        [
            ("scenes_unlabeled", "query_patch"),
            ("scenes_unlabeled_val", "query_patch"),
            ("scenes_train", "coco"),
            ("scenes_val", "coco"),
            ("scenes_train_panoptic", "coco_panoptic_seg"),
            ("scenes_val_panoptic", "coco_panoptic_seg"),
        ],
    )
    def test_are_registered_on_import(self, name, evaluator_type):
        assert name in DatasetCatalog.list()
        assert MetadataCatalog.get(name).evaluator_type == evaluator_type


class TestLoading:
    def test_registering_writes_nothing(self, registered):
        assert list(registered.iterdir()) == []

    def test_unlabeled_images_are_the_rendered_ones(self, registered):
        dataset_dicts = DatasetCatalog.get("tiny_unlabeled")
        assert [d["image_id"] for d in dataset_dicts] == [0, 1, 2]
        for d in dataset_dicts:
            assert "annotations" not in d
            image = np.asarray(Image.open(d["file_name"]))
            assert image.shape == (d["height"], d["width"], 3)
            rendered, _ = render_scene(seed=0, index=d["image_id"])
            assert np.abs(image.astype(int) - rendered).mean() < 4  # JPEG

    def test_instances_and_panoptic_agree_with_the_generator(self, registered):
        instances = DatasetCatalog.get("tiny_val")
        panoptic = DatasetCatalog.get("tiny_val_panoptic")
        assert len(instances) == len(panoptic) == 8
        names = MetadataCatalog.get("tiny_val").thing_classes
        assert names == list(THING_CLASSES)
        assert MetadataCatalog.get("tiny_val_panoptic").stuff_classes == [*THING_CLASSES, *STUFF_CLASSES]
        for instance_dict, panoptic_dict in zip(instances, panoptic):
            for key in ("file_name", "image_id", "height", "width"):
                assert instance_dict[key] == panoptic_dict[key]
            _, truth = render_scene(seed=0, index=instance_dict["image_id"])
            segment_map = read_segment_map(panoptic_dict["pan_seg_file_name"])
            np.testing.assert_array_equal(segment_map, truth["panoptic_seg"])
            for loaded, segment in zip(panoptic_dict["segments_info"], truth["segments_info"], strict=True):
                for key in ("id", "category_id", "isthing", "area"):
                    assert loaded[key] == segment[key]
            things = [s for s in truth["segments_info"] if s["isthing"]]
            for annotation, segment in zip(instance_dict["annotations"], things, strict=True):
                assert annotation["category_id"] == segment["category_id"]
                box = BoxMode.convert(annotation["bbox"], annotation["bbox_mode"], BoxMode.XYXY_ABS)
                assert box == segment["bbox"]
                mask = mask_util.decode(annotation["segmentation"])
                np.testing.assert_array_equal(mask, segment_map == segment["id"])

    def test_ground_truth_scores_100_with_detectron2_evaluators(self, registered):
        instances, panoptic = DatasetCatalog.get("tiny_val"), DatasetCatalog.get("tiny_val_panoptic")
        evaluator = COCOEvaluator("tiny_val", tasks=("bbox", "segm"), distributed=False, use_fast_impl=False)
        panoptic_evaluator = COCOPanopticEvaluator("tiny_val_panoptic")
        evaluator.reset()
        panoptic_evaluator.reset()
        for instance_dict, panoptic_dict in zip(instances, panoptic):
            annotations = instance_dict["annotations"]
            output = Instances((instance_dict["height"], instance_dict["width"]))
            boxes = torch.tensor([a["bbox"] for a in annotations], dtype=torch.float)
            output.pred_boxes = Boxes(BoxMode.convert(boxes, BoxMode.XYWH_ABS, BoxMode.XYXY_ABS))
            output.scores = torch.ones(len(annotations))
            output.pred_classes = torch.tensor([a["category_id"] for a in annotations])
            masks = [mask_util.decode(a["segmentation"]) for a in annotations]
            output.pred_masks = torch.as_tensor(np.stack(masks)).bool()
            evaluator.process([instance_dict], [{"instances": output}])
            segment_map = torch.as_tensor(read_segment_map(panoptic_dict["pan_seg_file_name"]))
            segments = [
                {key: segment[key] for key in ("id", "category_id", "isthing")}
                for segment in panoptic_dict["segments_info"]
            ]
            panoptic_evaluator.process([panoptic_dict], [{"panoptic_seg": (segment_map, segments)}])
        results = evaluator.evaluate()
        assert results["bbox"]["AP"] == pytest.approx(100)
        assert results["segm"]["AP"] == pytest.approx(100)
        results = panoptic_evaluator.evaluate()["panoptic_seg"]
        for metric in ("PQ", "PQ_th", "PQ_st"):
            assert results[metric] == pytest.approx(100)


class TestCache:
    def test_is_written_once(self, registered):
        first = DatasetCatalog.get("tiny_unlabeled")[0]["file_name"]
        written = os.stat(first).st_mtime_ns
        assert DatasetCatalog.get("tiny_unlabeled")[0]["file_name"] == first
        assert os.stat(first).st_mtime_ns == written

    def test_a_killed_run_leaves_nothing_that_is_used(self, registered):
        complete = DatasetCatalog.get("tiny_unlabeled")
        folder = next(path for path in registered.iterdir() if path.is_dir())
        unfinished = folder.with_name(folder.name + ".unfinished")
        folder.rename(unfinished)
        for file in list((unfinished / "images").iterdir())[1:]:
            file.write_bytes(b"half an image")
        assert DatasetCatalog.get("tiny_unlabeled") == complete
        for d in complete:
            Image.open(d["file_name"]).load()
        assert not unfinished.exists()

    def test_other_scenes_do_not_reuse_the_folder(self, registered):
        DatasetCatalog.get("tiny_unlabeled")
        splits = {"unlabeled": Split(first_index=0, count=4, labeled=False)}
        DatasetCatalog.remove("tiny_unlabeled")
        MetadataCatalog.remove("tiny_unlabeled")
        register_scenes(registered, prefix="tiny", splits=splits)
        assert len(DatasetCatalog.get("tiny_unlabeled")) == 4
        assert os.path.isfile(DatasetCatalog.get("tiny_unlabeled")[3]["file_name"])

    def test_unusable_folder_is_one_clear_error(self, tmp_path):
        (tmp_path / "file").write_text("not a folder")
        splits = {"blocked": Split(first_index=0, count=1, labeled=False)}
        register_scenes(tmp_path / "file", prefix="tiny", splits=splits)
        try:
            with pytest.raises(RuntimeError, match="UPDETR_D2_CACHE"):
                DatasetCatalog.get("tiny_blocked")
        finally:
            DatasetCatalog.remove("tiny_blocked")
            MetadataCatalog.remove("tiny_blocked")

    @pytest.mark.slow
    def test_two_processes_at_once_see_the_same_complete_set(self, tmp_path):
        code = (
            "import hashlib; from pathlib import Path; from PIL import Image\n"
            "from detectron2.data import DatasetCatalog; from updetr_d2.data.scenes import register\n"
            "register.register_scenes(register.cache_root(), prefix='pair',"
            " splits={'val': register.Split(first_index=0, count=40, labeled=True)})\n"
            "dicts = DatasetCatalog.get('pair_val')\n"
            "digest = hashlib.sha256()\n"
            "for d in dicts: Image.open(d['file_name']).load();"
            " digest.update(Path(d['file_name']).read_bytes())\n"
            "print(len(dicts), digest.hexdigest())\n"
        )
        environment = {**os.environ, "UPDETR_D2_CACHE": str(tmp_path / "cache"), "OMP_NUM_THREADS": "1"}
        command = [sys.executable, "-c", code]
        processes = [
            subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) for _ in range(2)
        ]
        outputs = [process.communicate(timeout=120)[0].split() for process in processes]
        assert [process.returncode for process in processes] == [0, 0]
        assert outputs[0] == outputs[1] and outputs[0][0] == "40"
        folders = [path.name for path in (tmp_path / "cache").iterdir() if path.is_dir()]
        assert len(folders) == 1 and not folders[0].endswith(".unfinished")
