"""What people see of a model's output for one image: instances with a score, pictures, names of classes."""

from dataclasses import dataclass, field
from typing import Any

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
from updetr_d2.visualization.boxes import draw_query_patches


@dataclass
class Findings:
    """What is found in an image.

    Attributes:
        instances: ``pred_boxes`` in pixels, ``scores``, ``pred_classes`` (for query patches their index; 0 for
            one-shot detection), on the CPU; those with at least the score asked for.
        pictures: RGB uint8 by kind: "pictures" and, from a PanopticDETR, "panoptic".
        best_score: the highest score of all, also of what is not shown.
    """

    instances: Instances
    pictures: dict[str, np.ndarray]
    best_score: float


@dataclass
class PredictedClasses:
    """Names, category ids and drawing metadata of what a model predicts.

    Attributes:
        names: in the order of contiguous ids; empty if they are not known.
        ids: of the categories in the files of results, by contiguous id; empty where the two are the same.
        metadata: for Detectron2's ``Visualizer``.
        panoptic: classes of a panoptic data set.
    """

    names: list[str] = field(default_factory=list)
    ids: list[int] = field(default_factory=list)
    metadata: Metadata = field(default_factory=Metadata)
    panoptic: PanopticClasses | None = None

    @classmethod
    def from_config(cls, cfg: CfgNode) -> "PredictedClasses":
        """The classes of the first of ``DATASETS.TEST``; without it, classes have numbers only."""
        if not cfg.DATASETS.TEST:
            return cls()
        dataset = cfg.DATASETS.TEST[0]
        try:
            ensure_registered([dataset])
            names = class_names(dataset)
        except (ValueError, OSError):
            return cls()
        metadata = MetadataCatalog.get(dataset)
        if is_panoptic(dataset):
            panoptic = PanopticClasses.from_metadata(metadata)
            # Boxes may be of stuff, too, which "separated" metadata do not name among the things.
            metadata = Metadata(**{**metadata.as_dict(), "thing_classes": names})
            return cls(names, list(panoptic.dataset_ids), metadata, panoptic)
        to_contiguous: dict[int, int] = metadata.get("thing_dataset_id_to_contiguous_id") or {
            i: i for i in range(len(names))
        }
        return cls(names, sorted(to_contiguous, key=to_contiguous.__getitem__), metadata)

    def name(self, class_id: int) -> str:
        return self.names[class_id] if class_id < len(self.names) else f"class {class_id}"

    def category_id(self, class_id: int) -> int:
        return self.ids[class_id] if self.ids else class_id

    def categories(self, num_classes: int) -> list[dict]:
        """For files of results; ``num_classes`` counts where the names are not known."""
        count = len(self.names) or num_classes
        return [{"id": self.category_id(i), "name": self.name(i)} for i in range(count)]


def draw_classes(
    output: dict[str, Any],
    image: np.ndarray,
    *,
    classes: PredictedClasses,
    threshold: float,
    picture_scale: float = 1.0,
) -> Findings:
    """What a detector or a PanopticDETR finds.

    Args:
        output: of the model for the image, ``instances`` on the CPU.
        image: RGB uint8 ``[H, W, 3]``.
        classes: what the model predicts.
        threshold: lowest score of a detection, in [0, 1].
        picture_scale: size of the pictures relative to the image.
    """
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


def draw_patches(
    output: dict[str, Any], image: np.ndarray, patches: np.ndarray, *, threshold: float
) -> Findings:
    """What a UPDETR finds: the best box of each patch, drawn if it has at least the score.

    Args:
        output: of the model for the image, ``instances`` on the CPU.
        image: RGB uint8 ``[H, W, 3]``.
        patches: RGB uint8 ``[m, h, w, 3]``.
        threshold: lowest score, in [0, 1].
    """
    best = output["instances"][: len(patches)]
    best.pred_classes = best.pred_patches
    found, best_score = _above(best, threshold)
    boxes = best.pred_boxes.tensor.clone()
    boxes[best.scores < threshold] = torch.nan
    picture = draw_query_patches(image, patches, None, boxes.numpy(), best.scores.numpy())
    return Findings(found, {"pictures": picture}, best_score)


def draw_objects(
    output: dict[str, Any], image: np.ndarray, *, threshold: float, picture_scale: float = 1.0
) -> Findings:
    """What a OneShotDETR finds: the objects of the class that the patches show.

    Args:
        output, image, threshold, picture_scale: as for :func:`draw_classes`.
    """
    instances, best_score = _above(output["instances"], threshold)
    labels = [f"{score:.0%}" for score in instances.scores]
    drawer = Visualizer(image, scale=picture_scale)
    drawn = drawer.overlay_instances(boxes=instances.pred_boxes, labels=labels)
    return Findings(instances, {"pictures": drawn.get_image()}, best_score)


def _above(instances: Instances, threshold: float) -> tuple[Instances, float]:
    best_score = instances.scores.max().item() if len(instances) else 0.0
    return instances[instances.scores >= threshold], best_score
