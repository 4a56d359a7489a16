"""The classes of labelled data sets: how many there are, and that config, metadata and labels agree on it."""

import logging
from collections.abc import Iterable, Sequence

from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog

from updetr_d2.data.datasets.panoptic_classes import PanopticClasses, is_panoptic

logger = logging.getLogger(__name__)

# Where the meta-architectures that learn the classes of the data set keep their number.
NUM_CLASSES_KEYS = {
    "DETR": "MODEL.DETR.NUM_CLASSES",
    "PanopticDETR": "MODEL.DETR.NUM_CLASSES",
    "GeneralizedRCNN": "MODEL.ROI_HEADS.NUM_CLASSES",
}


def derive_num_classes(cfg: CfgNode, dataset_names: Sequence[str]) -> CfgNode:
    """Take the numbers of classes and things from the data sets where the config says 0; check them otherwise.

    Args:
        cfg: the config of a run; not changed. Meta-architectures that do not learn the data set's classes,
            such as UPDETR, are left alone.
        dataset_names: registered data sets of the run; the first decides, the others must have the same
            classes.

    Returns:
        a copy with the numbers, frozen if ``cfg`` was.

    Raises:
        ValueError: if a data set has no classes, other classes than the first one, or another number of them
            than the config says.
    """
    key = NUM_CLASSES_KEYS.get(cfg.MODEL.META_ARCHITECTURE)
    if key is None or not dataset_names:
        return cfg
    first, *others = dataset_names
    classes = class_names(first)
    for other in others:
        if class_names(other) != classes:
            raise ValueError(
                f"The data sets '{first}' and '{other}' have different classes ({_some(classes)} and "
                f"{_some(class_names(other))}); those in DATASETS.TRAIN and DATASETS.TEST must agree."
            )
    node, name = cfg.MODEL[key.split(".")[1]], key.split(".")[-1]
    if node[name] not in (0, len(classes)):
        raise ValueError(
            f"{key} is {node[name]}, but '{first}' has {len(classes)} classes ({_some(classes)}); set it to "
            f"{len(classes)}, or to 0 to take the number from the data set."
        )
    derived = []
    if node[name] == 0:
        logger.info("%s = %d, the classes of '%s': %s", key, len(classes), first, _some(classes, 100))
        derived += [key, len(classes)]
    if cfg.MODEL.META_ARCHITECTURE == "PanopticDETR" and cfg.MODEL.MASK_HEAD.NUM_THING_CLASSES == 0:
        things = MetadataCatalog.get(first).get("thing_dataset_id_to_contiguous_id", {})
        derived += ["MODEL.MASK_HEAD.NUM_THING_CLASSES", len(things)] if things else []
    if not derived:
        return cfg
    frozen = cfg.is_frozen()
    cfg = cfg.clone()
    cfg.defrost()
    cfg.merge_from_list(derived)
    if frozen:
        cfg.freeze()
    return cfg


def class_names(dataset_name: str) -> list[str]:
    """Names of the classes of a registered data set, in the order of their contiguous ids.

    Raises:
        ValueError: if its metadata have none.
    """
    metadata = MetadataCatalog.get(dataset_name)
    if not metadata.get("thing_classes"):
        DatasetCatalog.get(dataset_name)  # Detectron2's COCO loader finds the classes when it reads the file
    if is_panoptic(dataset_name):
        return list(PanopticClasses.from_metadata(metadata).names)
    classes = metadata.get("thing_classes")
    if not classes:
        raise ValueError(
            f"The data set '{dataset_name}' in DATASETS has no classes (thing_classes in its metadata); a "
            "detector needs labelled data, such as coco:ANNOTATIONS.json@IMAGE_DIR."
        )
    return list(classes)


def check_class_ids(cfg: CfgNode, dataset_dicts: Iterable[dict]) -> None:
    """Check the class of every object before the first iteration.

    Args:
        cfg: the config of a run, after :func:`derive_num_classes`.
        dataset_dicts: the training set in Detectron2's format.

    Raises:
        ValueError: if there is not a single object, or one whose class is not in [0, number of classes).
    """
    key = NUM_CLASSES_KEYS.get(cfg.MODEL.META_ARCHITECTURE)
    if key is None:
        return
    num_classes = cfg.MODEL[key.split(".")[1]].NUM_CLASSES
    num_objects = 0
    for dataset_dict in dataset_dicts:
        for labeled in (*dataset_dict.get("annotations", ()), *dataset_dict.get("segments_info", ())):
            num_objects += 1
            if not 0 <= labeled["category_id"] < num_classes:
                raise ValueError(
                    f"{dataset_dict['file_name']} has an object of class {labeled['category_id']}, but {key} = "
                    f"{num_classes} allows 0 to {num_classes - 1}; class ids must be contiguous from 0."
                )
    if not num_objects:
        raise ValueError(f"DATASETS.TRAIN {tuple(cfg.DATASETS.TRAIN)} has images but not a single object.")


def _some(names: list[str], limit: int = 5) -> str:
    return ", ".join(names[:limit]) + (", ..." if len(names) > limit else "")
