"""How well a pre-trained model finds what was cut out of held-out pictures, and whether its score tells.

Every object of a picture is cut out and shown to the model, which has never seen it, nor a label. Beside it stands
what can be had without looking: the best single box for all patches, and the same model, shown other things.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from detectron2.structures import Boxes, pairwise_iou
from PIL import Image

from updetr_d2.data.datasets.label_splits import Labels
from updetr_d2.inference.predictor import Predictor, cut_query_patch
from updetr_d2.visualization.boxes import draw_query_patches

RIGHT_IOU = 0.5
# Score from which the page of the demo calls a patch found.
FOUND_SCORE = 0.5


@dataclass(frozen=True)
class Picture:
    """A labeled picture.

    Attributes:
        image: RGB uint8 ``[H, W, 3]``.
        boxes: int64 ``[N, 4]``, XYXY in px.
    """

    image: np.ndarray
    boxes: np.ndarray


@dataclass(frozen=True)
class PatchResults:
    """What a model finds.

    Attributes:
        ious: ``[P]`` of the box that is found with the one that the patch was cut from.
        scores: ``[P]`` of these boxes, in [0, 1].
        ious_unseen: ``[P]`` of the box that is found for something else with that same box.
        scores_absent: ``[A]`` for what is not in the picture.
        iou_fixed: mean IoU of the best single box for all patches.
    """

    ious: np.ndarray
    scores: np.ndarray
    ious_unseen: np.ndarray
    scores_absent: np.ndarray
    iou_fixed: float

    def to_json(self) -> dict[str, float]:
        """Percent, but for the number of patches."""
        right = self.ious >= RIGHT_IOU
        found = {
            "right": self.scores[right],
            "wrong": self.scores[~right],
            "absent": self.scores_absent,
        }
        return {
            "patches": len(self.ious),
            "mIoU": percent(self.ious),
            "recall50": percent(right),
            "mIoU_shown_other_things": percent(self.ious_unseen),
            "mIoU_best_fixed_box": 100 * self.iou_fixed,
            **{f"found_{name}": percent(scores >= FOUND_SCORE) for name, scores in found.items()},
            **{f"median_score_{name}": percent(np.median(each)) for name, each in found.items() if len(each)},
        }


def percent(values: np.ndarray | np.floating) -> float:
    """The mean, in percent; 0 of nothing."""
    return 100 * float(np.mean(values)) if np.size(values) else 0.0


def read_pictures(location: str) -> list[Picture]:
    """Pictures with objects of ``JSON@FOLDER``, in its order."""
    labels = Labels.read(location, option="the quickstart's pictures")
    boxes: dict[int, list] = {image["id"]: [] for image in labels.images}
    for each in labels.objects:
        x, y, width, height = each["bbox"]
        boxes[each["image_id"]].append((x, y, x + width, y + height))
    return [
        Picture(
            np.array(Image.open(Path(labels.image_folder) / image["file_name"]).convert("RGB")),
            np.array(boxes[image["id"]], dtype=np.int64),
        )
        for image in labels.images
        if boxes[image["id"]]
    ]


def cut_patches(picture: Picture, predictor: Predictor) -> np.ndarray:
    """What the boxes of a picture show, as the model takes it: uint8 ``[N, h, w, 3]``."""
    return np.stack([cut_query_patch(picture.image, box, predictor.cfg) for box in picture.boxes.tolist()])


def evaluate(predictor: Predictor, pictures: list[Picture], others: list[Picture]) -> PatchResults:
    """Look for every object of the pictures.

    Args:
        predictor: of a ``UPDETR`` that takes as many patches as a picture has objects.
        pictures: to search.
        others: whose objects are in none of ``pictures``.
    """
    absent = np.concatenate([cut_patches(each, predictor) for each in others])
    rng = np.random.default_rng(0)
    ious, scores, unseen, scores_absent = [], [], [], []
    for picture in pictures:
        count = len(picture.boxes)
        truth = Boxes(torch.from_numpy(picture.boxes).float())
        found = predictor(picture.image, cut_patches(picture, predictor)).instances
        ious.append(pairwise_iou(found.pred_boxes[:count], truth).numpy().diagonal())
        scores.append(found.scores[:count].numpy())
        shown = absent[rng.choice(len(absent), count, replace=len(absent) < count)]
        found = predictor(picture.image, shown).instances
        unseen.append(pairwise_iou(found.pred_boxes[:count], truth).numpy().mean(axis=0))
        scores_absent.append(found.scores[:count].numpy())
    return PatchResults(
        ious=np.concatenate(ious),
        scores=np.concatenate(scores),
        ious_unseen=np.concatenate(unseen),
        scores_absent=np.concatenate(scores_absent),
        iou_fixed=best_fixed_iou(pictures),
    )


def best_fixed_iou(pictures: list[Picture]) -> float:
    """The highest mean IoU with all boxes that one box, the same in every picture, has.

    Tried are those whose sides are among the deciles of the sides of all boxes.
    """
    boxes = np.concatenate([each.boxes for each in pictures])
    deciles = np.quantile(boxes, np.linspace(0, 1, 11), axis=0)
    tried: np.ndarray = np.stack(np.meshgrid(*deciles.T), axis=-1).reshape(-1, 4)
    tried = tried[(tried[:, 2:] > tried[:, :2]).all(axis=1)]
    ious = pairwise_iou(*(Boxes(torch.from_numpy(each).float()) for each in (tried, boxes)))
    return float(ious.mean(dim=1).max())


def draw(predictor: Predictor, picture: Picture) -> np.ndarray:
    """A picture with what was cut out of it (dashed) and found (solid), RGB uint8."""
    patches = cut_patches(picture, predictor)
    found = predictor(picture.image, patches).instances[: len(patches)]
    return draw_query_patches(
        picture.image, patches, picture.boxes, found.pred_boxes.tensor.numpy(), found.scores.numpy()
    )
