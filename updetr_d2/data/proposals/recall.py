"""How many labeled objects are among the first boxes of each image: what proposals are judged by."""

from collections.abc import Iterable, Sequence

import torch
from detectron2.structures import BoxMode
from torch import Tensor
from torchvision.ops import box_iou

from updetr_d2.data.proposals.file import Proposals, image_id_of


def true_boxes(dataset_dict: dict) -> Tensor:
    """XYXY boxes ``[T, 4]`` (px) of the objects of an image that are no crowd."""
    boxes = [
        BoxMode.convert(annotation["bbox"], annotation["bbox_mode"], BoxMode.XYXY_ABS)
        for annotation in dataset_dict.get("annotations", ())
        if not annotation.get("iscrowd", 0)
    ]
    return torch.as_tensor(boxes, dtype=torch.float64).reshape(-1, 4)


def recall_of_first_boxes(
    proposals: Proposals,
    dataset_dicts: Iterable[dict],
    *,
    numbers: Sequence[int] = (10, 30, 100),
    iou_threshold: float = 0.5,
) -> dict[int, float]:
    """Share of the objects that one of the first boxes of their image overlaps enough.

    Args:
        proposals: of the images; an image without any finds nothing.
        dataset_dicts: with ``annotations``.
        numbers: of first boxes.
        iou_threshold: least IoU of an object that is found.

    Returns:
        number -> recall in [0, 1]; empty without objects.
    """
    found = dict.fromkeys(numbers, 0)
    num_objects = 0
    for dataset_dict in dataset_dicts:
        objects = true_boxes(dataset_dict)
        num_objects += len(objects)
        image = proposals.find(image_id_of(dataset_dict))
        if not len(objects) or image is None or not len(image.boxes):
            continue
        ious = box_iou(objects, torch.from_numpy(image.boxes))
        for number in numbers:
            found[number] += int((ious[:, :number].amax(dim=1) >= iou_threshold).sum())
    return {number: count / num_objects for number, count in found.items()} if num_objects else {}
