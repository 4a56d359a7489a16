"""A weak and a strong view of an unlabeled image, and how coordinates of the first are found in the second."""

from typing import Any

from detectron2.config import CfgNode, configurable
from detectron2.data import transforms as T

from updetr_d2.config.access import changed
from updetr_d2.data.dataset_mappers.detection import DETRDatasetMapper, build_detr_augmentations
from updetr_d2.data.transforms.image_io import read_image_rgb, to_tensor
from updetr_d2.data.transforms.strong_view import StrongAugmentation, build_rescale
from updetr_d2.data.transforms.views import map_between

# Key of a sample that only unlabeled images have.
WEAK_IMAGE = "weak_image"


class TwoViewDatasetMapper(DETRDatasetMapper):
    """The teacher sees the weak view, flipped and resized; the student the strong view.

    Args:
        weak: transforms of the weak view, all of which can be undone.
        strong: those of the strong view that move pixels.
        strong_pixels: what changes pixels in the strong view and moves none.
        image_format: channel order of the images, "RGB" or "BGR".
        min_image_side: images with a shorter side (px) are refused.
        with_labels: pass the labels of the image on, to measure the teacher with.
    """

    @configurable
    def __init__(
        self,
        *,
        weak: list[T.Augmentation],
        strong: list[T.Augmentation],
        strong_pixels: StrongAugmentation,
        image_format: str = "RGB",
        min_image_side: int = 1,
        with_labels: bool = False,
    ) -> None:
        super().__init__(is_train=True, augmentations=weak, image_format=image_format)
        self.strong = T.AugmentationList(strong)
        self.strong_pixels = strong_pixels
        self.min_image_side = min_image_side
        self.with_labels = with_labels

    @classmethod
    def from_config(cls, cfg: CfgNode, with_labels: bool = False) -> dict[str, Any]:
        no_crop = changed(cfg, ["INPUT.DETR_CROP.PROB", 0.0])
        return {
            "weak": build_detr_augmentations(no_crop, is_train=True),
            "strong": [*build_detr_augmentations(cfg, is_train=True), build_rescale(cfg)],
            "strong_pixels": StrongAugmentation(cfg),
            "image_format": cfg.INPUT.FORMAT,
            "min_image_side": cfg.INPUT.MIN_IMAGE_SIDE,
            "with_labels": with_labels,
        }

    def __call__(self, dataset_dict: dict) -> dict:
        """Make both views of one image.

        Args:
            dataset_dict: Detectron2's format; ``annotations`` are read only ``with_labels``.

        Returns:
            dict with ``file_name`` and ``image_id`` as given; ``height`` and ``width``, px of the original;
            ``image``, uint8 3×H×W, the strong view; ``weak_image``, uint8 3×h×w; ``strong_from_weak``, float64
            [2, 3], see :func:`.views.map_between`; ``erased``, int64 [r, 4], rectangles of the strong view; with
            labels ``true_instances`` (``gt_boxes``, ``gt_classes``) of the weak view.

        Raises:
            UnusableImageError: if the image cannot be used.
        """
        image = read_image_rgb(dataset_dict["file_name"], min_side=self.min_image_side)
        weak, strong = T.AugInput(image), T.AugInput(image)
        weak_transforms, strong_transforms = self.augmentations(weak), self.strong(strong)
        strong_image, erased = self.strong_pixels(strong.image)
        sample = {key: dataset_dict[key] for key in ("file_name", "image_id") if key in dataset_dict}
        height, width = image.shape[:2]
        sample |= {
            "height": height,
            "width": width,
            "image": to_tensor(strong_image, self.image_format),
            WEAK_IMAGE: to_tensor(weak.image, self.image_format),
            "strong_from_weak": map_between(weak_transforms, strong_transforms),
            "erased": erased,
        }
        if self.with_labels:
            labels = {"annotations": [{**each} for each in dataset_dict.get("annotations", ())]}
            weak_height, weak_width = weak.image.shape[:2]
            sample["true_instances"] = self._make_instances(
                labels, weak_transforms, (height, width), (weak_height, weak_width)
            )
        return sample


def is_unlabeled(sample: dict) -> bool:
    """Whether a sample of a batch is one of :class:`TwoViewDatasetMapper`."""
    return WEAK_IMAGE in sample
