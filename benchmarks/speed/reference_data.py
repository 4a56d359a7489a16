"""A sample of pre-training made the straightforward way, with Pillow and torchvision's transforms of its images.

Follows the official code's steps: decode with Pillow, crop each patch, resize, color jitter, grayscale and blur,
resize the image. Like ours it ends with uint8 tensors; normalization is left to the model.
"""

import random
from pathlib import Path

import torch
from detectron2.config import CfgNode
from PIL import Image, ImageFilter
from torchvision import transforms as T


class RandomBlur:
    """Pillow's Gaussian blur with a random radius, as in SimCLR's and MoCo's code."""

    def __init__(self, sigma: tuple[float, float]) -> None:
        self.sigma = sigma

    def __call__(self, image: Image.Image) -> Image.Image:
        return image.filter(ImageFilter.GaussianBlur(random.uniform(*self.sigma)))


class ReferenceMapper:
    """The sample of one image: resized image, boxes of the patches in it, augmented patches.

    Args:
        cfg: ``INPUT`` and ``MODEL.UPDETR.NUM_PATCHES`` are read.
    """

    def __init__(self, cfg: CfgNode) -> None:
        patch = cfg.INPUT.QUERY_PATCH
        self.num_patches = cfg.MODEL.UPDETR.NUM_PATCHES
        self.min_size = patch.MIN_SIZE
        self.short_sides = tuple(cfg.INPUT.MIN_SIZE_TRAIN)
        self.max_size = cfg.INPUT.MAX_SIZE_TRAIN
        self.resize_patch = T.Resize((patch.SIZE, patch.SIZE))
        jitter = T.ColorJitter(patch.BRIGHTNESS, patch.CONTRAST, patch.SATURATION, patch.HUE)
        self.augment = T.Compose(
            [
                T.RandomApply([jitter], p=patch.COLOR_JITTER_PROB),
                T.RandomGrayscale(p=patch.GRAYSCALE_PROB),
                T.RandomApply([RandomBlur(tuple(patch.BLUR_SIGMA))], p=patch.BLUR_PROB),
            ]
        )
        self.to_tensor = T.PILToTensor()

    def __call__(self, file_name: str | Path) -> dict:
        """Make the sample.

        Returns:
            dict of ``image`` uint8 3×H×W, ``boxes`` M×4 XYXY in px of it, ``original_boxes`` in px of the file's
            image, and ``patches`` uint8 M×3×128×128.
        """
        image = self.decode(file_name)
        boxes = [self.draw_box(*image.size) for _ in range(self.num_patches)]
        patches = [self.to_tensor(self.augment(self.cut(image, box))) for box in boxes]
        resized = self.resize(image)
        scale = [new / old for new, old in zip(resized.size, image.size)] * 2
        return {
            "image": self.to_tensor(resized),
            "boxes": torch.tensor(boxes) * torch.tensor(scale),
            "original_boxes": torch.tensor(boxes),
            "patches": torch.stack(patches),
        }

    @staticmethod
    def decode(file_name: str | Path) -> Image.Image:
        with Image.open(file_name) as image:
            return image.convert("RGB")

    def draw_box(self, width: int, height: int) -> tuple[int, int, int, int]:
        """XYXY of a random patch: the size first, then the place."""
        patch_width = random.randint(self.min_size, width - self.min_size)
        patch_height = random.randint(self.min_size, height - self.min_size)
        x, y = random.randrange(width - patch_width), random.randrange(height - patch_height)
        return x, y, x + patch_width, y + patch_height

    def cut(self, image: Image.Image, box: tuple[int, int, int, int]) -> Image.Image:
        return self.resize_patch(image.crop(box))

    def resize(self, image: Image.Image) -> Image.Image:
        """Resize the short side to a random length, less where the long side would exceed its limit."""
        short, long = min(image.size), max(image.size)
        side = random.choice(self.short_sides)
        if long / short * side > self.max_size:
            side = round(self.max_size * short / long)
        return T.functional.resize(image, side)
