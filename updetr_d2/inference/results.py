"""What a trained model finds in one image, as instances and as pictures: for the demos."""

import logging
from dataclasses import dataclass

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from detectron2.data.catalog import Metadata
from detectron2.structures import Instances
from detectron2.utils.visualizer import Visualizer

from updetr_d2.data.datasets.classes import class_names
from updetr_d2.data.datasets.names import ensure_registered
from updetr_d2.data.datasets.panoptic_classes import PanopticClasses, is_panoptic
from updetr_d2.inference.predictor import Predictor
from updetr_d2.visualization.boxes import draw_query_patches

logger = logging.getLogger(__name__)


@dataclass
class Findings:
    """What is found in an image.

    Attributes:
        instances: ``pred_boxes`` in pixels, ``scores``, ``pred_classes`` (for query patches their index; 0 for
            one-shot detection), on the CPU; those with at least the score asked for.
        pictures: RGB uint8 by kind: "pictures" and, from a PanopticDETR, "panoptic".
        best_score: the highest score of all, also of what was left out.
    """

    instances: Instances
    pictures: dict[str, np.ndarray]
    best_score: float


class PredictedClasses:
    """Names, COCO category ids and drawing metadata of the classes that a detector predicts.

    Args:
        cfg: the config; the first of DATASETS.TEST is asked. Without it, classes have numbers only.
    """

    def __init__(self, cfg: CfgNode) -> None:
        self.metadata = Metadata()
        self.names: list[str] = []
        self.ids: list[int] = []
        self.panoptic: PanopticClasses | None = None
        if not cfg.DATASETS.TEST:
            return
        dataset = cfg.DATASETS.TEST[0]
        try:
            ensure_registered([dataset])
            self.names = class_names(dataset)
        except (ValueError, OSError) as error:
            logger.warning("Classes have numbers instead of names, as DATASETS.TEST is not there: %s", error)
            return
        self.metadata = MetadataCatalog.get(dataset)
        if is_panoptic(dataset):
            self.panoptic = PanopticClasses.from_metadata(self.metadata)
            self.ids = list(self.panoptic.dataset_ids)
            # Boxes may be of stuff, too, which "separated" metadata do not name among the things.
            self.metadata = Metadata(**{**self.metadata.as_dict(), "thing_classes": self.names})
        else:
            to_contiguous = self.metadata.get("thing_dataset_id_to_contiguous_id") or {
                i: i for i in range(len(self.names))
            }
            self.ids = sorted(to_contiguous, key=to_contiguous.__getitem__)

    def name(self, class_id: int) -> str:
        return self.names[class_id] if class_id < len(self.names) else f"class {class_id}"

    def category_id(self, class_id: int) -> int:
        return self.ids[class_id] if self.ids else class_id

    def categories(self, num_classes: int) -> list[dict]:
        count = len(self.names) or num_classes
        return [{"id": self.category_id(i), "name": self.name(i)} for i in range(count)]


def find_classes(
    predictor: Predictor,
    classes: PredictedClasses,
    image: np.ndarray,
    threshold: float,
    *,
    picture_scale: float = 1.0,
) -> Findings:
    """Run a detector or a PanopticDETR.

    Args:
        predictor: the model.
        classes: what it predicts.
        image: RGB uint8 ``[H, W, 3]``.
        threshold: lowest score of a detection, in [0, 1].
        picture_scale: size of the pictures relative to the image.
    """
    output = predictor(image)
    instances, best_score = _above(output["instances"], threshold)
    drawer = Visualizer(image, classes.metadata, scale=picture_scale)
    pictures = {"pictures": drawer.draw_instance_predictions(instances)}
    if "panoptic_seg" in output:
        segments, infos = output["panoptic_seg"]
        metadata = classes.metadata
        if classes.panoptic is not None:
            infos = [{**s, "category_id": classes.panoptic.metadata_id(s["category_id"])} for s in infos]
        else:  # Detectron2 draws no segments without names
            names = [classes.name(i) for i in range(1 + max((s["category_id"] for s in infos), default=0))]
            metadata = Metadata(thing_classes=names, stuff_classes=names)
        drawer = Visualizer(image, metadata, scale=picture_scale)
        pictures["panoptic"] = drawer.draw_panoptic_seg_predictions(segments.cpu(), infos)
    return Findings(instances, {kind: drawn.get_image() for kind, drawn in pictures.items()}, best_score)


def find_patches(predictor: Predictor, patches: np.ndarray, image: np.ndarray, threshold: float) -> Findings:
    """Run a UPDETR: the best box of each patch, drawn if it has at least the score.

    Args:
        predictor: the model.
        patches: RGB uint8 ``[m, h, w, 3]``.
        image: RGB uint8 ``[H, W, 3]``.
        threshold: lowest score, in [0, 1].
    """
    best = predictor(image, patches)["instances"][: len(patches)]
    best.pred_classes = best.pred_patches
    found, best_score = _above(best, threshold)
    boxes = best.pred_boxes.tensor.clone()
    boxes[best.scores < threshold] = torch.nan
    picture = draw_query_patches(image, patches, None, boxes.numpy(), best.scores.numpy())
    return Findings(found, {"pictures": picture}, best_score)


def find_objects(
    predictor: Predictor,
    patches: np.ndarray,
    image: np.ndarray,
    threshold: float,
    *,
    picture_scale: float = 1.0,
) -> Findings:
    """Run a OneShotDETR: the objects of the class that the patches show.

    Args:
        predictor: the model.
        patches: RGB uint8 ``[m, h, w, 3]``, views of one class.
        image, threshold, picture_scale: as for :func:`find_classes`.
    """
    instances, best_score = _above(predictor(image, patches)["instances"], threshold)
    labels = [f"{score:.0%}" for score in instances.scores]
    drawer = Visualizer(image, scale=picture_scale)
    drawn = drawer.overlay_instances(boxes=instances.pred_boxes, labels=labels)
    return Findings(instances, {"pictures": drawn.get_image()}, best_score)


def _above(instances: Instances, threshold: float) -> tuple[Instances, float]:
    best_score = instances.scores.max().item() if len(instances) else 0.0
    return instances[instances.scores >= threshold], best_score
