"""Make one sample of object detection, with the augmentation of DETR (Carion et al., ECCV 2020, Appendix A.4)."""

import copy
from typing import Any

import numpy as np
import pycocotools.mask as mask_util
import torch
from detectron2.config import CfgNode, configurable
from detectron2.data import detection_utils as utils
from detectron2.data import transforms as T
from detectron2.structures import BitMasks, Instances
from PIL import Image

from updetr_d2.data.transforms.image_io import UnusableImageError, read_reduced_rgb, to_tensor
from updetr_d2.data.transforms.read_options import ReadOptions
from updetr_d2.data.transforms.resize import AntialiasResizeTransform, DETRResize

# Long by short side, from which on images are no photographs.
_MAX_ASPECT_RATIO = 20


class DETRDatasetMapper:
    """Read, augment and label an image; no normalization and no padding, which the model does.

    The random numbers come from NumPy's global generator, as in Detectron2's mappers.

    Args:
        is_train: whether the sample has labels.
        augmentations: applied in this order to image, boxes and masks.
        image_format: channel order of the image, "RGB" or "BGR".
        mask_on: whether the instances have masks (``gt_masks``, ``BitMasks``).
        read_options: how image files are read.
        draft_side: JPEGs are decoded at a part of their size if its short side (px) is still as long; None for
            the full size.
    """

    @configurable
    def __init__(
        self,
        *,
        is_train: bool,
        augmentations: list[T.Augmentation],
        image_format: str = "RGB",
        mask_on: bool = False,
        read_options: ReadOptions | None = None,
        draft_side: int | None = None,
    ) -> None:
        if image_format not in ("RGB", "BGR"):
            raise ValueError(f"INPUT.FORMAT is {image_format!r}; use RGB or BGR.")
        self.is_train = is_train
        self.augmentations = T.AugmentationList(augmentations)
        self.image_format = image_format
        self.mask_on = mask_on
        self.read_options = read_options or ReadOptions()
        self.draft_side = draft_side

    @classmethod
    def from_config(cls, cfg: CfgNode, is_train: bool = True) -> dict[str, Any]:
        return {
            "is_train": is_train,
            "augmentations": build_detr_augmentations(cfg, is_train),
            "image_format": cfg.INPUT.FORMAT,
            "mask_on": cfg.MODEL.MASK_ON,
            "read_options": ReadOptions.from_config(cfg),
            "draft_side": _longest_short_side(cfg, is_train) if cfg.INPUT.JPEG_DRAFT else None,
        }

    def __call__(self, dataset_dict: dict) -> dict:
        """Make the sample of one image.

        Args:
            dataset_dict: Detectron2's format; ``annotations`` are read in training only, and crowds among
                them are left out. Their boxes refer to the upright image (EXIF orientation applied).

        Returns:
            dict with the keys given, without ``annotations``; ``height`` and ``width``, px of the original;
            ``image``, uint8 3×H×W, augmented; in training ``instances`` with ``gt_boxes`` (XYXY, px of
            ``image``), ``gt_classes`` and, if ``mask_on``, ``gt_masks``. Objects of which a crop leaves
            nothing are not among them.

        Raises:
            UnusableImageError: if the image cannot be used, or has another size than the data set says.
        """
        dataset_dict = copy.deepcopy(dataset_dict)
        labels = self._pop_labels(dataset_dict)
        image, (height, width) = self._read_image(dataset_dict)
        dataset_dict["height"], dataset_dict["width"] = height, width
        aug_input = T.AugInput(image)
        transforms = self.augmentations(aug_input)
        if image.shape[:2] != (height, width):  # labels go the way that the decoder has gone
            reduction = AntialiasResizeTransform(height, width, *image.shape[:2], Image.Resampling.BILINEAR)
            transforms = T.TransformList([reduction, *transforms.transforms])
        image = aug_input.image
        if self.is_train:
            dataset_dict["instances"] = self._make_instances(
                labels, transforms, (dataset_dict["height"], dataset_dict["width"]), image.shape[:2]
            )
        dataset_dict["image"] = to_tensor(image, self.image_format)
        return dataset_dict

    def _pop_labels(self, dataset_dict: dict) -> dict[str, Any]:
        """Take out of the dataset dict what :meth:`_make_instances` needs."""
        return {"annotations": dataset_dict.pop("annotations", [])}

    def _read_image(self, dataset_dict: dict) -> tuple[np.ndarray, tuple[int, int]]:
        """The image, perhaps reduced, and the height and width (px) that it has at full size."""
        image, size = read_reduced_rgb(
            dataset_dict["file_name"], options=self.read_options, draft_side=self.draft_side
        )
        found = size[::-1]
        expected = dataset_dict.get("width", found[0]), dataset_dict.get("height", found[1])
        if found != expected:
            raise UnusableImageError(
                dataset_dict["file_name"],
                f"has {found[0]}x{found[1]} px, but its annotations are for {expected[0]}x{expected[1]} px",
            )
        return image, size

    def _make_instances(
        self,
        labels: dict[str, Any],
        transforms: T.TransformList,
        original_size: tuple[int, int],
        image_size: tuple[int, int],
    ) -> Instances:
        kept = []
        for annotation in labels["annotations"]:
            if annotation.get("iscrowd", 0):
                continue
            annotation.pop("keypoints", None)
            if not self.mask_on:
                annotation.pop("segmentation", None)
            elif "segmentation" not in annotation:
                raise ValueError(
                    "MODEL.MASK_ON is True, but DATASETS.TRAIN has objects without masks ('segmentation'); set it "
                    "to False."
                )
            elif isinstance(annotation["segmentation"], list):
                # As pixels, polygons are cut by a crop without a geometry library.
                polygons = mask_util.frPyObjects(annotation["segmentation"], *original_size)
                annotation["segmentation"] = mask_util.merge(polygons)
            kept.append(utils.transform_instance_annotations(annotation, transforms, image_size))
        instances = utils.annotations_to_instances(kept, image_size, mask_format="bitmask")
        if self.mask_on and not instances.has("gt_masks"):
            instances.gt_masks = BitMasks(torch.zeros((0, *image_size), dtype=torch.bool))
        return utils.filter_empty_instances(instances)


def _longest_short_side(cfg: CfgNode, is_train: bool) -> int:
    """The longest short side (px) that images are resized to."""
    if not is_train:
        return cfg.INPUT.MIN_SIZE_TEST
    crop = cfg.INPUT.DETR_CROP
    return max([*cfg.INPUT.MIN_SIZE_TRAIN, *(crop.RESIZE_SIDES if crop.PROB > 0 else ())])


def build_detr_augmentations(cfg: CfgNode, is_train: bool) -> list[T.Augmentation]:
    """Flip, random scale and, in part of the cases, a crop of an enlarged or reduced image before the scale.

    Args:
        cfg: ``INPUT.{RANDOM_FLIP, MIN_SIZE_TRAIN, MAX_SIZE_TRAIN, DETR_CROP}`` are read for training,
            ``INPUT.{MIN_SIZE_TEST, MAX_SIZE_TEST}`` otherwise.
        is_train: False gives the resize of inference alone.

    Raises:
        ValueError: if a value cannot be used, naming the key.
    """
    if not is_train:
        return [DETRResize.from_config(cfg, is_train=False)]
    if cfg.INPUT.RANDOM_FLIP not in ("horizontal", "vertical", "none"):
        raise ValueError(
            f"INPUT.RANDOM_FLIP is {cfg.INPUT.RANDOM_FLIP!r}; use 'horizontal', 'vertical' or 'none'."
        )
    crop = cfg.INPUT.DETR_CROP
    sides = tuple(crop.CROP_SIDE_RANGE)
    if not 0 <= crop.PROB <= 1:
        raise ValueError(f"INPUT.DETR_CROP.PROB is {crop.PROB}; a probability is in [0, 1].")
    if len(sides) != 2 or not 1 <= sides[0] <= sides[1]:
        raise ValueError(
            f"INPUT.DETR_CROP.CROP_SIDE_RANGE is {sides}; it must be (low, high) in px with 1 <= low <= high."
        )
    augmentations = []
    if cfg.INPUT.RANDOM_FLIP != "none":
        horizontal = cfg.INPUT.RANDOM_FLIP == "horizontal"
        augmentations.append(T.RandomFlip(horizontal=horizontal, vertical=not horizontal))
    if crop.PROB > 0:
        # The resize before the crop has no limit of the long side in the official code, which makes gigabytes of
        # images of one pixel's width. Here those of more than this aspect ratio are enlarged less.
        max_size = _MAX_ASPECT_RATIO * max(crop.RESIZE_SIDES, default=1)
        enlarge_and_crop = [
            DETRResize(crop.RESIZE_SIDES, max_size, key="INPUT.DETR_CROP.RESIZE_SIDES"),
            T.RandomCrop("absolute_range", sides),
        ]
        augmentations.append(T.RandomApply(T.AugmentationList(enlarge_and_crop), crop.PROB))
    augmentations.append(DETRResize.from_config(cfg, is_train=True))
    return augmentations
