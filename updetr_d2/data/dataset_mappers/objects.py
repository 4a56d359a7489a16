"""Make one sample of pre-training on boxes without labels: proposals of a file, random boxes, or both."""

from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode, configurable
from detectron2.data import transforms as T
from detectron2.structures import Boxes, Instances

from updetr_d2.data.dataset_mappers.detection import build_detr_augmentations
from updetr_d2.data.proposals.clusters import outer_pixels
from updetr_d2.data.proposals.file import Proposals, image_id_of
from updetr_d2.data.transforms.image_io import (
    UnusableImageError,
    read_image_rgb,
    stack_to_tensor,
    to_tensor,
)
from updetr_d2.data.transforms.patch_augmentation import PatchAugmentation
from updetr_d2.data.transforms.patch_boxes import random_patch_boxes
from updetr_d2.data.transforms.resize import DETRResize, resize_uint8


class ObjectDatasetMapper:
    """Read and augment an image, carry its boxes along, cut out what they show.

    The random numbers come from NumPy's global generator, as in Detectron2's mappers.

    Args:
        proposals: None draws random boxes alone.
        augmentations: applied in this order to image and boxes.
        resize: alone, where the augmentations leave too few boxes.
        max_boxes: most boxes of an image, of the file the first; of random ones the number.
        chosen_boxes: of these, so many are drawn at random; None for all.
        min_boxes: images with fewer boxes are refused.
        random_share: share of the boxes that are replaced by random ones, in [0, 1].
        with_clusters: whether clusters are the classes.
        object_class: class of every box without clusters.
        min_visible: boxes of which the augmentations leave less of the area are dropped, in [0, 1].
        min_patch_size: shortest side (px, in the original image) of a random box.
        patch_size: side (px) of the square that what a box shows is resized to; None for no patches.
        patch_augmentation: of the patches; None leaves them as they are.
        image_format: channel order of image and patches, "RGB" or "BGR".
        min_image_side: images with a shorter side (px) are refused.

    Raises:
        ValueError: if clusters are asked for and the boxes have none.
    """

    @configurable
    def __init__(
        self,
        *,
        proposals: Proposals | None,
        augmentations: list[T.Augmentation],
        resize: T.Augmentation,
        max_boxes: int = 30,
        chosen_boxes: int | None = None,
        min_boxes: int = 1,
        random_share: float = 0.0,
        with_clusters: bool = False,
        object_class: int = 0,
        min_visible: float = 0.3,
        min_patch_size: int = 8,
        patch_size: int | None = 128,
        patch_augmentation: PatchAugmentation | None = None,
        image_format: str = "RGB",
        min_image_side: int = 17,
    ) -> None:
        if image_format not in ("RGB", "BGR"):
            raise ValueError(f"INPUT.FORMAT is {image_format!r}: pre-training needs RGB or BGR.")
        if with_clusters and (proposals is None or not proposals.num_clusters or random_share > 0):
            raise ValueError(
                "INPUT.PROPOSALS.CLUSTERS needs an INPUT.PROPOSALS.FILE that `updetr proposals --cluster K` has "
                "made, and INPUT.PROPOSALS.RANDOM_SHARE 0, as random boxes have no cluster."
            )
        self.proposals = proposals
        self.augmentations = T.AugmentationList(augmentations)
        self.resize = T.AugmentationList([resize])
        self.max_boxes = max_boxes
        self.chosen_boxes = chosen_boxes
        self.min_boxes = min_boxes
        self.random_share = random_share
        self.with_clusters = with_clusters
        self.object_class = object_class
        self.min_visible = min_visible
        self.min_patch_size = min_patch_size
        self.patch_size = patch_size
        self.patch_augmentation = patch_augmentation
        self.image_format = image_format
        self.min_image_side = min_image_side

    @classmethod
    def from_config(cls, cfg: CfgNode, *, patch_queries: bool) -> dict[str, Any]:
        """
        Args:
            cfg: of the run.
            patch_queries: whether queries get the patches, as many as MODEL.UPDETR.NUM_PATCHES and augmented.
        """
        keys = cfg.INPUT.PROPOSALS
        needs_patches = patch_queries or cfg.MODEL.UPDETR.FEATURE_RECON
        return {
            "proposals": Proposals.load(keys.FILE) if keys.FILE else None,
            "augmentations": build_detr_augmentations(cfg, True),
            "resize": DETRResize.from_config(cfg, is_train=True),
            "max_boxes": keys.MAX_BOXES,
            "chosen_boxes": cfg.MODEL.UPDETR.NUM_PATCHES if patch_queries else None,
            "min_boxes": keys.MIN_BOXES,
            "random_share": keys.RANDOM_SHARE,
            "with_clusters": keys.CLUSTERS,
            "object_class": cfg.MODEL.DETR.NUM_CLASSES - 1,
            "min_visible": keys.MIN_VISIBLE,
            "min_patch_size": cfg.INPUT.QUERY_PATCH.MIN_SIZE,
            "patch_size": cfg.INPUT.QUERY_PATCH.SIZE if needs_patches else None,
            "patch_augmentation": PatchAugmentation(cfg) if patch_queries else None,
            "image_format": cfg.INPUT.FORMAT,
            "min_image_side": cfg.INPUT.MIN_IMAGE_SIDE,
        }

    def __call__(self, dataset_dict: dict) -> dict:
        """Make the sample of one image; labels in ``dataset_dict`` are ignored.

        Args:
            dataset_dict: Detectron2's format; only ``file_name`` and ``image_id`` are used.

        Returns:
            dict with ``file_name`` and ``image_id`` as given; ``height`` and ``width``, px of the original;
            ``image``, uint8 3×H×W, augmented; ``instances`` with ``gt_boxes`` (XYXY, px of ``image``, inside it)
            and ``gt_classes``; with ``patch_size`` also ``patches``, uint8 N×3×``patch_size``×``patch_size``, what
            is left of each box in the augmented image.

        Raises:
            UnusableImageError: if the image cannot be used, or has too few boxes.
        """
        image = read_image_rgb(dataset_dict["file_name"], min_side=self.min_image_side)
        boxes, classes = self._draw_boxes(image, dataset_dict)
        augmented, moved, kept = self._augment(self.augmentations, image, boxes)
        if len(kept) < min(self.min_boxes, len(boxes)):
            augmented, moved, kept = self._augment(self.resize, image, boxes)
        instances = Instances(augmented.shape[:2])
        instances.gt_boxes = Boxes(torch.from_numpy(moved).float())
        instances.gt_classes = torch.from_numpy(classes[kept])
        sample = {key: dataset_dict[key] for key in ("file_name", "image_id") if key in dataset_dict}
        sample |= {
            "height": image.shape[0],
            "width": image.shape[1],
            "image": to_tensor(augmented, self.image_format),
            "instances": instances,
        }
        if self.patch_size is not None:
            patches = [self._cut_patch(augmented, box, self.patch_size) for box in moved]
            sample["patches"] = stack_to_tensor(patches, self.image_format)
        return sample

    def _draw_boxes(self, image: np.ndarray, dataset_dict: dict) -> tuple[np.ndarray, np.ndarray]:
        """Boxes XYXY ``[N, 4]`` in px of the original, and their classes int64 ``[N]``."""
        height, width = image.shape[:2]
        classes: np.ndarray
        if self.proposals is None:
            boxes = self._random_boxes(image, self.max_boxes)
            classes = np.full(len(boxes), self.object_class)
        else:
            found = self.proposals.find(image_id_of(dataset_dict))
            if found is None or len(found.boxes) < self.min_boxes:
                count = 0 if found is None else len(found.boxes)
                raise UnusableImageError(
                    dataset_dict["file_name"], f"has {count} boxes, fewer than INPUT.PROPOSALS.MIN_BOXES"
                )
            if found.size != (width, height):
                raise UnusableImageError(
                    dataset_dict["file_name"],
                    f"has {width}x{height} px, but its boxes are for {found.size[0]}x{found.size[1]} px",
                )
            boxes = found.boxes[: self.max_boxes]
            classes = np.full(len(boxes), self.object_class)
            if self.with_clusters and found.clusters is not None:
                classes = found.clusters[: self.max_boxes]
        if self.chosen_boxes is not None and len(boxes) > self.chosen_boxes:
            chosen = np.random.choice(len(boxes), self.chosen_boxes, replace=False)
            boxes, classes = boxes[chosen], classes[chosen]
        if self.proposals is not None and self.random_share > 0:
            replaced = np.random.random(len(boxes)) < self.random_share
            boxes[replaced] = self._random_boxes(image, int(replaced.sum()))
        return boxes, classes

    def _random_boxes(self, image: np.ndarray, count: int) -> np.ndarray:
        rng = np.random.default_rng(np.random.randint(2**32, size=4, dtype=np.uint32))
        height, width = image.shape[:2]
        boxes = random_patch_boxes(
            rng, width=width, height=height, num_patches=count, min_size=self.min_patch_size
        )
        return boxes.astype(np.float64)

    def _augment(
        self, augmentations: T.AugmentationList, image: np.ndarray, boxes: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The image, the boxes inside it of which enough is left, and which of all boxes these are."""
        aug_input = T.AugInput(image)
        transforms = augmentations(aug_input)
        height, width = aug_input.image.shape[:2]
        moved = transforms.apply_box(boxes)
        inside = np.clip(moved, 0, [width, height, width, height])
        areas, areas_inside = ((x[:, 2:] - x[:, :2]).clip(min=0).prod(axis=1) for x in (moved, inside))
        kept = np.flatnonzero((areas_inside > 0) & (areas_inside >= self.min_visible * areas))
        return aug_input.image, inside[kept], kept

    def _cut_patch(self, image: np.ndarray, box: np.ndarray, size: int) -> np.ndarray:
        x0, y0, x1, y1 = outer_pixels(box, width=image.shape[1], height=image.shape[0])
        patch = resize_uint8(image[y0:y1, x0:x1], height=size, width=size)
        if self.patch_augmentation is None:
            return patch
        return self.patch_augmentation(
            patch, np.random.default_rng(np.random.randint(2**32, size=4, dtype=np.uint32))
        )
