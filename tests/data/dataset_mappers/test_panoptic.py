"""Samples of panoptic segmentation: masks follow the image through every transform, in all forms of labels."""

import copy
import json

import numpy as np
import pycocotools.mask as mask_util
import pytest
import torch
from detectron2.config import get_cfg
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data import transforms as T
from detectron2.structures import BoxMode
from helpers import ids_to_rgb
from PIL import Image

from updetr_d2 import add_updetr_config
from updetr_d2.data.dataset_mappers.panoptic import PanopticDETRDatasetMapper
from updetr_d2.data.datasets.coco_panoptic import register_coco_panoptic_files
from updetr_d2.data.datasets.panoptic_annotations import (
    AnnotationError,
    read_panoptic_file,
    usable_panoptic_file,
)
from updetr_d2.data.transforms.image_io import UnusableImageError
from updetr_d2.data.transforms.resize import DETRResize
from updetr_d2.tasks import build_mapper

HEIGHT, WIDTH = 30, 40
# Colour and segment id of each region; the ids need all three bytes of the PNG.
REGIONS = {
    "sky": ((10, 10, 250), 70_000, np.s_[:15, :]),
    "grass": ((10, 250, 10), 300, np.s_[15:, :]),
    "cat": ((250, 10, 10), 1, np.s_[5:20, 8:18]),
    "crowd": ((250, 250, 10), 5_000_000, np.s_[20:28, 22:38]),
}
CLASSES = {"cat": 0, "crowd": 0, "sky": 1, "grass": 2}  # one thing class, two of stuff
STUFF_LABELS = {"sky": 1, "grass": 2, "cat": 0, "crowd": 0}


@pytest.fixture(name="scene")
def _scene(tmp_path):
    """A picture of flat colours with panoptic labels: a dataset dict in Detectron2's standard form."""
    image = np.zeros((HEIGHT, WIDTH, 3), dtype=np.uint8)
    ids = np.zeros((HEIGHT, WIDTH), dtype=np.int64)
    for color, segment_id, region in REGIONS.values():
        image[region] = color
        ids[region] = segment_id
    ids[:, :2] = 0  # void
    Image.fromarray(image).save(tmp_path / "image.png")
    Image.fromarray(ids_to_rgb(ids)).save(tmp_path / "labels.png")
    return {
        "file_name": str(tmp_path / "image.png"),
        "image_id": 1,
        "pan_seg_file_name": str(tmp_path / "labels.png"),
        "segments_info": [
            {"id": i, "category_id": CLASSES[n], "iscrowd": int(n == "crowd"), "isthing": CLASSES[n] == 0}
            for n, (_, i, _) in REGIONS.items()
        ],
    }


def mapper(*augmentations):
    return PanopticDETRDatasetMapper(is_train=True, augmentations=list(augmentations), num_thing_classes=1)


def seen_colors(sample, index):
    """Colours of the image under a mask."""
    mask = sample["instances"].gt_masks.tensor[index]
    return {tuple(color) for color in sample["image"].permute(1, 2, 0)[mask].tolist()}


def test_things_and_stuff_are_instances_without_crowds(scene):
    instances = mapper()(scene)["instances"]
    assert instances.gt_classes.tolist() == [1, 2, 0]
    areas = instances.gt_masks.tensor.sum(dim=(1, 2)).tolist()
    assert areas == [15 * 38 - 10 * 10, 15 * 38 - 5 * 10 - 8 * 16, 15 * 10]
    assert instances.gt_boxes.tensor.tolist() == [[2, 0, 40, 15], [2, 15, 40, 30], [8, 5, 18, 20]]


@pytest.mark.parametrize(
    "augmentations",
    [
        (T.RandomFlip(prob=1.0),),
        (T.RandomFlip(prob=1.0, horizontal=False, vertical=True),),
        (T.Resize((60, 80)),),
        (T.Resize((60, 80)), T.RandomCrop("absolute", (33, 41)), T.RandomFlip(prob=1.0)),
        (T.RandomCrop("absolute", (20, 25)), T.RandomFlip(prob=0.5)),
    ],
)
def test_every_mask_stays_on_what_it_marks(scene, augmentations):
    """Enlarging by 2 with nearest neighbour keeps flat colours apart, so every colour has its own segment."""
    nearest = [
        T.Resize(a.shape, interp=Image.NEAREST) if isinstance(a, T.Resize) else a for a in augmentations
    ]
    colors = {CLASSES[name]: color for name, (color, _, _) in REGIONS.items() if name != "crowd"}
    for seed in range(5):
        np.random.seed(seed)
        sample = mapper(*nearest)(scene)
        instances = sample["instances"]
        assert len(instances) > 0
        for index, class_id in enumerate(instances.gt_classes.tolist()):
            assert seen_colors(sample, index) == {colors[class_id]}


def test_boxes_after_a_crop_are_those_of_what_is_left_of_the_masks(scene):
    np.random.seed(0)
    instances = mapper(T.RandomCrop("absolute", (12, 12)))(scene)["instances"]
    for mask, box in zip(instances.gt_masks, instances.gt_boxes.tensor.tolist()):
        rows, columns = torch.where(mask)
        assert box == [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]


def test_segments_outside_a_crop_are_removed(scene):
    class TopRight(T.Augmentation):
        def get_transform(self, image):
            return T.CropTransform(20, 0, 20, 10)

    sample = mapper(TopRight())(scene)
    assert sample["instances"].gt_classes.tolist() == [1]
    assert sample["instances"].gt_boxes.tensor.tolist() == [[0, 0, 20, 10]]
    assert (sample["height"], sample["width"]) == (HEIGHT, WIDTH)


def test_an_image_of_crowds_alone_has_no_instances(scene):
    for segment in scene["segments_info"]:
        segment["iscrowd"] = 1
    instances = mapper(DETRResize((60,), 100))(scene)["instances"]
    assert len(instances) == 0
    assert instances.gt_masks.tensor.shape == (0, 60, 80)
    assert instances.gt_boxes.tensor.shape == (0, 4)


@pytest.fixture(name="separated")
def _separated(scene, tmp_path):
    """The same labels in Detectron2's separated form: instances, and a semantic map of the stuff."""
    labels = np.full((HEIGHT, WIDTH), 255, dtype=np.uint8)
    for name, (_, _, region) in REGIONS.items():
        labels[region] = STUFF_LABELS[name]
    labels[:, :2] = 255
    Image.fromarray(labels).save(tmp_path / "stuff.png")
    cat = np.zeros((HEIGHT, WIDTH), dtype=np.uint8, order="F")
    cat[REGIONS["cat"][2]] = 1
    square = [22, 20, 38, 20, 38, 28, 22, 28]
    common = {"bbox_mode": BoxMode.XYXY_ABS, "category_id": 0}
    return {
        "file_name": scene["file_name"],
        "sem_seg_file_name": str(tmp_path / "stuff.png"),
        "annotations": [
            {**common, "bbox": [8, 5, 18, 20], "iscrowd": 0, "segmentation": mask_util.encode(cat)},
            {**common, "bbox": [22, 20, 38, 28], "iscrowd": 1, "segmentation": [square]},
        ],
    }


@pytest.mark.parametrize("seed", range(3))
def test_separated_labels_give_the_same_sample(scene, separated, seed):
    samples = []
    for dataset_dict in (scene, separated):
        np.random.seed(seed)
        instances = mapper(T.RandomFlip(), T.RandomCrop("absolute", (26, 30)))(dataset_dict)["instances"]
        samples.append({int(c): m for c, m in zip(instances.gt_classes, instances.gt_masks)})
    assert samples[0].keys() == samples[1].keys()
    assert all(torch.equal(samples[0][c], samples[1][c]) for c in samples[0])


def test_instance_annotations_alone_may_be_polygons(separated):
    del separated["sem_seg_file_name"]
    separated["annotations"][1]["iscrowd"] = 0
    instances = mapper()(separated)["instances"]
    assert instances.gt_classes.tolist() == [0, 0]
    assert instances.gt_boxes.tensor.tolist() == [[8, 5, 18, 20], [22, 20, 38, 28]]


def test_labels_of_another_size_are_refused(scene, tmp_path):
    Image.fromarray(np.zeros((10, 10, 3), dtype=np.uint8)).save(tmp_path / "labels.png")
    with pytest.raises(UnusableImageError, match=r"labels\.png.*10x10 px, but its image 40x30 px"):
        mapper()(scene)


def test_inference_needs_no_labels(scene):
    sample = PanopticDETRDatasetMapper(is_train=False, augmentations=[])(
        {key: scene[key] for key in ("file_name", "image_id")}
    )
    assert "instances" not in sample
    labeled = PanopticDETRDatasetMapper(is_train=False, augmentations=[])(scene)
    assert "instances" not in labeled
    assert labeled.keys() == sample.keys()


@pytest.mark.parametrize("meta_architecture", ["PanopticDETR", "DETR"])
def test_built_for_panoptic_models_and_for_boxes_of_panoptic_sets(scene, meta_architecture):
    cfg = get_cfg()
    add_updetr_config(cfg)
    cfg.MODEL.META_ARCHITECTURE = meta_architecture
    cfg.INPUT.FORMAT = "RGB"
    cfg.INPUT.DETR_CROP.PROB = 0.0
    cfg.INPUT.MIN_SIZE_TRAIN = (60,)
    cfg.DATASETS.TRAIN = ("scenes_train_panoptic",)
    built = build_mapper(cfg, is_train=True)
    assert isinstance(built, PanopticDETRDatasetMapper)
    assert built.num_thing_classes == 8
    sample = built(scene)
    assert sample["image"].shape == (3, 60, 80)
    assert len(sample["instances"]) == 3


class TestCommandLineSources:
    def write(self, scene, tmp_path, **changes):
        content = {
            "images": [{"id": 1, "file_name": "image.png", "height": HEIGHT, "width": WIDTH}],
            "annotations": [
                {
                    "image_id": 1,
                    "file_name": "labels.png",
                    # In the file: ids of categories, not of classes.
                    "segments_info": [
                        {**segment, "category_id": [7, 3, 5][segment["category_id"]], "area": 9}
                        for segment in scene["segments_info"]
                    ],
                }
            ],
            "categories": [
                {"id": 5, "name": "grass", "isthing": 0},
                {"id": 7, "name": "cat", "isthing": 1},
                {"id": 3, "name": "sky", "isthing": 0},
            ],
        }
        (tmp_path / "labels.json").write_text(json.dumps({**content, **changes}))
        return f"{tmp_path}/labels.json@{tmp_path}@{tmp_path}"

    def test_classes_are_contiguous_things_first(self, scene, tmp_path):
        name = f"coco_panoptic:{tmp_path}"
        register_coco_panoptic_files(name, self.write(scene, tmp_path))
        metadata = MetadataCatalog.get(name)
        assert metadata.thing_classes == metadata.stuff_classes == ["cat", "sky", "grass"]
        (dataset_dict,) = DatasetCatalog.get(name)
        assert dataset_dict["file_name"] == scene["file_name"]
        assert [s["category_id"] for s in dataset_dict["segments_info"]] == [1, 2, 0, 0]
        assert [s["isthing"] for s in dataset_dict["segments_info"]] == [False, False, True, True]
        assert mapper()(dataset_dict)["instances"].gt_classes.tolist() == [1, 2, 0]

    def test_numbers_and_flags_of_other_types_are_read_as_what_they_say(self, scene, tmp_path):
        location = self.write(scene, tmp_path)
        given = json.loads((tmp_path / "labels.json").read_text())
        odd = copy.deepcopy(given)
        odd["images"][0] |= {"id": 1.0, "height": str(HEIGHT), "width": float(WIDTH)}
        odd["annotations"][0]["image_id"] = "1"
        for segment in odd["annotations"][0]["segments_info"]:
            segment |= {"id": str(segment["id"]), "area": "9.0", "iscrowd": (None, "1")[segment["iscrowd"]]}
            segment["category_id"] = float(segment["category_id"])
        for category in odd["categories"]:
            category |= {"id": str(category["id"]), "isthing": str(category["isthing"])}
        (tmp_path / "labels.json").write_text(json.dumps(odd))
        path, content = usable_panoptic_file(location.split("@")[0])
        assert content == given
        assert read_panoptic_file(path) == given

    @pytest.mark.parametrize(
        ("section", "change", "message"),
        [
            ("categories", {"isthing": "maybe"}, "isthing"),
            ("categories", {"isthing": 2}, "isthing"),
            ("categories", {"id": "3"}, "'id'"),  # beside 3, so not the same
            ("categories", {"id": 3}, "more than once"),
            ("images", {"height": "4.5"}, "'height'"),
            ("images", {"width": None}, "'width'"),
            ("segments", {"area": None}, "'area'"),
            ("segments", {"id": "x"}, "'id'"),
            ("segments", {"iscrowd": "perhaps"}, "'iscrowd'"),
        ],
    )
    def test_what_would_have_to_be_guessed_is_refused(self, scene, tmp_path, section, change, message):
        location = self.write(scene, tmp_path)
        content = json.loads((tmp_path / "labels.json").read_text())
        annotation = content["annotations"][0]
        (annotation["segments_info"] if section == "segments" else content[section])[0].update(change)
        (tmp_path / "labels.json").write_text(json.dumps(content))
        with pytest.raises(AnnotationError, match=message):
            register_coco_panoptic_files("coco_panoptic:bad", location)

    def test_ids_of_images_become_of_one_type_or_are_refused(self, scene, tmp_path):
        location = self.write(scene, tmp_path)
        content = json.loads((tmp_path / "labels.json").read_text())
        image = content["images"][0]
        for other, expected in (("2", [1, 2]), (2.0, [1, 2]), ("b", None)):
            content["images"] = [image, {**image, "id": other}]
            (tmp_path / "labels.json").write_text(json.dumps(content))
            if expected is None:
                with pytest.raises(AnnotationError, match="texts and integers"):
                    usable_panoptic_file(location.split("@")[0])
            else:
                _, read = usable_panoptic_file(location.split("@")[0])
                assert [each["id"] for each in read["images"]] == expected

    @pytest.mark.parametrize("color", [None, "red", [1, 2], [1, 2, 3.5], [1, 2, 300]])
    def test_colors_that_are_none_are_left_out(self, color, scene, tmp_path):
        categories = [
            {"id": 5, "name": "grass", "isthing": 0, "color": [1, 2, 3]},
            {"id": 7, "name": "cat", "isthing": 1, "color": color},
            {"id": 3, "name": "sky", "isthing": 0, "color": [1, 2, 3]},
        ]
        name = f"coco_panoptic:{tmp_path}"
        register_coco_panoptic_files(name, self.write(scene, tmp_path, categories=categories))
        assert "thing_colors" not in MetadataCatalog.get(name).as_dict()

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"categories": [{"id": 3, "name": "sky"}]}, "isthing"),
            ({"categories": [{"id": 3, "name": "sky", "isthing": 0}]}, "category id"),
            ({"annotations": [{"image_id": 1, "bbox": [0, 0, 1, 1]}]}, "segments_info"),
            (
                {"annotations": [{"image_id": 1, "file_name": "x", "segments_info": [{"id": 1}]}]},
                r"lacks \['area', 'category_id', 'iscrowd'\]",
            ),
        ],
    )
    def test_unusable_annotations_are_refused_at_the_start(self, scene, tmp_path, changes, message):
        with pytest.raises(AnnotationError, match=message):
            register_coco_panoptic_files("coco_panoptic:bad", self.write(scene, tmp_path, **changes))

    @pytest.mark.parametrize("location", ["a.json", "a.json@b", "a.json@no_folder@no_folder"])
    def test_wrong_locations_are_refused(self, location):
        with pytest.raises(ValueError, match="coco_panoptic:x"):
            register_coco_panoptic_files("coco_panoptic:x", location)
