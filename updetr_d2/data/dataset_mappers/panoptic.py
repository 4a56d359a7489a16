"""Make one sample of panoptic or instance segmentation: things and stuff alike as instances with masks."""

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import pycocotools.mask as mask_util
import torch
from detectron2.config import CfgNode, configurable
from detectron2.data import MetadataCatalog
from detectron2.data import transforms as T
from detectron2.structures import BitMasks, Instances
from detectron2.utils.file_io import PathManager
from PIL import Image

from updetr_d2.data.dataset_mappers.detection import DETRDatasetMapper
from updetr_d2.data.datasets.panoptic_annotations import read_panoptic_png, rgb_to_ids
from updetr_d2.data.transforms.image_io import UnusableImageError

# Masks (H×W, bool or 0/1) of the transformed image with their classes.
Segments = Iterator[tuple[np.ndarray, int]]

_LABEL_KEYS = ("annotations", "pan_seg_file_name", "segments_info", "sem_seg_file_name")


class PanopticDETRDatasetMapper(DETRDatasetMapper):
    """:class:`DETRDatasetMapper` whose instances are the segments of an image, each with its mask.

    Labels may come as a panoptic PNG with ``segments_info`` (Detectron2's "standard" registration), as
    instance annotations with a semantic segmentation file ("separated"), or as instance annotations alone.

    Args:
        num_thing_classes: stuff classes are numbered from here; for separated labels only.
        ignore_label: value of pixels without class in semantic segmentation files.
        **detection_args: as for :class:`DETRDatasetMapper`.
    """

    @configurable
    def __init__(self, *, num_thing_classes: int = 0, ignore_label: int = 255, **detection_args: Any) -> None:
        super().__init__(**detection_args, mask_on=True)
        self.num_thing_classes = num_thing_classes
        self.ignore_label = ignore_label

    @classmethod
    def from_config(cls, cfg: CfgNode, is_train: bool = True) -> dict[str, Any]:
        args = super().from_config(cfg, is_train)
        del args["mask_on"]
        if is_train:
            metadata = MetadataCatalog.get(cfg.DATASETS.TRAIN[0])
            args["num_thing_classes"] = len(metadata.get("thing_dataset_id_to_contiguous_id", ()))
            args["ignore_label"] = metadata.get("ignore_label", 255)
        return args

    def _pop_labels(self, dataset_dict: dict) -> dict[str, Any]:
        return {key: dataset_dict.pop(key) for key in _LABEL_KEYS if key in dataset_dict}

    def _make_instances(
        self,
        labels: dict[str, Any],
        transforms: T.TransformList,
        original_size: tuple[int, int],
        image_size: tuple[int, int],
    ) -> Instances:
        """Every segment that is not a crowd and of which something is left after the transforms."""
        if "pan_seg_file_name" in labels:
            segments = list(_panoptic_segments(labels, transforms, original_size))
        else:
            segments = list(_annotated_instances(labels.get("annotations", ()), transforms, original_size))
            if "sem_seg_file_name" in labels:
                segments += self._stuff_segments(labels["sem_seg_file_name"], transforms, original_size)
        segments = [(mask, class_id) for mask, class_id in segments if mask.any()]
        masks = np.zeros((len(segments), *image_size), dtype=bool)
        for i, (mask, _) in enumerate(segments):
            masks[i] = mask
        gt_masks = BitMasks(torch.from_numpy(masks))
        return Instances(
            image_size,
            gt_masks=gt_masks,
            gt_boxes=gt_masks.get_bounding_boxes(),
            gt_classes=torch.tensor([class_id for _, class_id in segments], dtype=torch.int64),
        )

    def _stuff_segments(
        self, file_name: str, transforms: T.TransformList, original_size: tuple[int, int]
    ) -> Segments:
        """One segment for each stuff class; label 0 is all things together, as Detectron2 prepares the files."""
        labels = transforms.apply_segmentation(_read_label_image(file_name, original_size))
        for label in np.unique(labels).tolist():
            if label not in (0, self.ignore_label):
                yield labels == label, self.num_thing_classes + label - 1


def _panoptic_segments(
    labels: dict[str, Any], transforms: T.TransformList, original_size: tuple[int, int]
) -> Segments:
    file_name = labels["pan_seg_file_name"]
    encoded = _check_size(read_panoptic_png(file_name), original_size, file_name)
    # Transformed as the 8-bit colors that it is: Pillow's nearest neighbor keeps every id.
    ids = rgb_to_ids(transforms.apply_segmentation(encoded))
    for segment in labels["segments_info"]:
        if not segment.get("iscrowd", 0):
            yield ids == segment["id"], segment["category_id"]


def _annotated_instances(
    annotations: Iterable[dict], transforms: T.TransformList, original_size: tuple[int, int]
) -> Segments:
    for annotation in annotations:
        if not annotation.get("iscrowd", 0) and annotation.get("segmentation"):
            mask = _decode(annotation["segmentation"], original_size)
            yield transforms.apply_segmentation(mask), annotation["category_id"]


def _decode(segmentation: list | dict, size: tuple[int, int]) -> np.ndarray:
    """COCO's polygons or RLE -> uint8 mask."""
    if isinstance(segmentation, list):
        segmentation = mask_util.merge(mask_util.frPyObjects(segmentation, *size))
    elif isinstance(segmentation["counts"], list):
        segmentation = mask_util.frPyObjects(segmentation, *size)
    return mask_util.decode(segmentation)


def _read_label_image(file_name: str, expected_size: tuple[int, int]) -> np.ndarray:
    """Pixel values of a PNG, which must not be rotated or converted like a photograph.

    Raises:
        UnusableImageError: if it cannot be read or has another size than the image.
    """
    try:
        with PathManager.open(file_name, "rb") as file:
            label_image = np.array(Image.open(file))
    except OSError as error:
        raise UnusableImageError(file_name, f"cannot be read as a label image ({error})") from error
    return _check_size(label_image, expected_size, file_name)


def _check_size(label_image: np.ndarray, expected_size: tuple[int, int], file_name: str) -> np.ndarray:
    if label_image.shape[:2] != expected_size:
        height, width = label_image.shape[:2]
        raise UnusableImageError(
            file_name, f"has {width}x{height} px, but its image {expected_size[1]}x{expected_size[0]} px"
        )
    return label_image
