"""Make one sample of random query patch detection (UP-DETR, Section 3.1) from one image."""

import os
import zlib

import numpy as np
import torch
from detectron2.config import CfgNode, configurable
from detectron2.data import transforms as T
from detectron2.structures import Boxes, Instances

from updetr_d2.data.transforms.image_io import read_image_rgb, stack_to_tensor, to_tensor
from updetr_d2.data.transforms.patch_augmentation import PatchAugmentation
from updetr_d2.data.transforms.patch_boxes import random_patch_boxes
from updetr_d2.data.transforms.read_options import ReadOptions
from updetr_d2.data.transforms.resize import DETRResize, resize_uint8
from updetr_d2.modeling.device_patches import PLAN

# Larger images are more bytes than their patches by far, and the workers cut these.
_MOST_PIXELS = 2**20


class QueryPatchDatasetMapper:
    """Crop random query patches from an image; detecting where they come from is the pretext task.

    The random numbers come from NumPy's global generator, as in Detectron2's mappers. For evaluation
    the patches depend on ``eval_seed`` and the identity of the image alone and are not augmented.

    Args:
        is_train: whether patches are random and augmented.
        resize: resizing of the image; the patches are cut from the image before it.
        num_patches: number M of patches of an image.
        min_patch_size: shortest side (px, in the original image) of a patch.
        patch_size: side (px) of the square that each patch is resized to.
        patch_augmentation: augmentation of the patches in training.
        patch_class: class index of every patch.
        image_format: channel order of image and patches, "RGB" or "BGR".
        min_image_side: images with a shorter side (px) are refused.
        eval_seed: seed of the patches for evaluation.
        read_options: how image files are read.
        on_device: in training, leave cutting and augmenting the patches to the model's device, unless the image is
            too large to be handed over.
    """

    @configurable
    def __init__(
        self,
        *,
        is_train: bool,
        resize: T.Augmentation,
        num_patches: int,
        min_patch_size: int,
        patch_size: int,
        patch_augmentation: PatchAugmentation,
        patch_class: int,
        image_format: str,
        min_image_side: int,
        eval_seed: int,
        read_options: ReadOptions | None = None,
        on_device: bool = False,
    ) -> None:
        if image_format not in ("RGB", "BGR"):
            raise ValueError(f"INPUT.FORMAT is {image_format!r}: pre-training needs RGB or BGR.")
        if num_patches < 1 or patch_size < 1:
            raise ValueError(
                f"MODEL.UPDETR.NUM_PATCHES = {num_patches} and INPUT.QUERY_PATCH.SIZE = {patch_size} must be "
                "positive."
            )
        if min_patch_size < 1 or min_image_side < 2 * min_patch_size:
            raise ValueError(
                f"INPUT.MIN_IMAGE_SIDE = {min_image_side} leaves no room for patches: it must be at least twice "
                f"INPUT.QUERY_PATCH.MIN_SIZE = {min_patch_size}, which must be positive."
            )
        self.is_train = is_train
        self.resize = resize
        self.num_patches = num_patches
        self.min_patch_size = min_patch_size
        self.patch_size = patch_size
        self.patch_augmentation = patch_augmentation
        self.patch_class = patch_class
        self.image_format = image_format
        self.min_image_side = min_image_side
        self.eval_seed = eval_seed
        self.read_options = read_options or ReadOptions()
        self.on_device = on_device and is_train

    @classmethod
    def from_config(cls, cfg: CfgNode, is_train: bool = True) -> dict:
        num_classes = cfg.MODEL.DETR.NUM_CLASSES
        if num_classes not in (1, 2) and not cfg.INPUT.PROPOSALS.CLUSTERS:
            raise ValueError(
                f"MODEL.DETR.NUM_CLASSES = {num_classes} does not fit pre-training: use 2 (as in official "
                "checkpoints, patches have label 1) or 1."
            )
        return {
            "is_train": is_train,
            "resize": DETRResize.from_config(cfg, is_train=is_train),
            "num_patches": cfg.MODEL.UPDETR.NUM_PATCHES,
            "min_patch_size": cfg.INPUT.QUERY_PATCH.MIN_SIZE,
            "patch_size": cfg.INPUT.QUERY_PATCH.SIZE,
            "patch_augmentation": PatchAugmentation(cfg),
            "patch_class": num_classes - 1,
            "image_format": cfg.INPUT.FORMAT,
            "min_image_side": cfg.INPUT.MIN_IMAGE_SIDE,
            "eval_seed": cfg.INPUT.QUERY_PATCH.EVAL_SEED,
            "read_options": ReadOptions.from_config(cfg),
            "on_device": cfg.INPUT.QUERY_PATCH.ON_DEVICE,
        }

    def __call__(self, dataset_dict: dict) -> dict:
        """Make the sample of one image; labels in ``dataset_dict`` are ignored.

        Args:
            dataset_dict: Detectron2's format; only ``file_name`` and ``image_id`` (optional) are used.

        Returns:
            dict with ``file_name`` and ``image_id`` as given; ``height`` and ``width``, px of the original;
            ``image``, uint8 3×H×W, resized; ``instances`` with ``gt_boxes`` (M boxes, XYXY, px of the resized
            image) and ``gt_classes`` (M times ``patch_class``); ``patches``, uint8
            M×3×``patch_size``×``patch_size``, or the plan to make them (:mod:`updetr_d2.modeling.device_patches`).

        Raises:
            UnusableImageError: if the image cannot be used.
        """
        image = read_image_rgb(
            dataset_dict["file_name"], min_side=self.min_image_side, options=self.read_options
        )
        rng = self._make_rng(dataset_dict)
        height, width = image.shape[:2]
        patch_boxes = random_patch_boxes(
            rng, width=width, height=height, num_patches=self.num_patches, min_size=self.min_patch_size
        )
        patches = self._patches_or_plan(image, patch_boxes, rng)

        aug_input = T.AugInput(image)
        transform = self.resize(aug_input)
        image_size = aug_input.image.shape[:2]
        instances = Instances(image_size)
        instances.gt_boxes = Boxes(torch.from_numpy(transform.apply_box(patch_boxes)).float())
        instances.gt_classes = torch.full((self.num_patches,), self.patch_class, dtype=torch.int64)

        sample = {key: dataset_dict[key] for key in ("file_name", "image_id") if key in dataset_dict}
        return sample | {
            "height": height,
            "width": width,
            "image": to_tensor(aug_input.image, self.image_format),
            "instances": instances,
            **patches,
        }

    def _patches_or_plan(self, image: np.ndarray, boxes: np.ndarray, rng: np.random.Generator) -> dict:
        if not self.on_device or image.shape[0] * image.shape[1] > _MOST_PIXELS:
            patches = [self._cut_patch(image, box, rng) for box in boxes]
            return {"patches": stack_to_tensor(patches, self.image_format)}
        changes = [self.patch_augmentation.draw(rng).as_row() for _ in boxes]
        plan = {
            "source": to_tensor(image, "RGB"),
            "boxes": torch.from_numpy(boxes),
            "changes": torch.tensor(changes),
            "size": self.patch_size,
            "format": self.image_format,
        }
        return {PLAN: plan}

    def _make_rng(self, dataset_dict: dict) -> np.random.Generator:
        if self.is_train:
            return np.random.default_rng(np.random.randint(2**32, size=4, dtype=np.uint32))
        identity = dataset_dict.get("image_id", os.path.basename(dataset_dict["file_name"]))
        return np.random.default_rng(
            [self.eval_seed, zlib.crc32(str(identity).encode(errors="surrogatepass"))]
        )

    def _cut_patch(self, image: np.ndarray, box: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        x0, y0, x1, y1 = box
        patch = resize_uint8(image[y0:y1, x0:x1], height=self.patch_size, width=self.patch_size)
        return self.patch_augmentation(patch, rng) if self.is_train else patch
