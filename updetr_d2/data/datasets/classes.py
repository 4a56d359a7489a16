"""The classes of labelled data sets: how many there are, and that config, metadata and labels agree on it."""

import logging
from collections.abc import Iterable, Sequence

from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog

from updetr_d2.config.access import changed, get_value
from updetr_d2.data.datasets.panoptic_classes import PanopticClasses, is_panoptic

logger = logging.getLogger(__name__)

MEND_CLASS_ORDER = (
    "Classes are numbered in the order of their ids in the file: give the categories of this one the ids of the "
    "other."
)
# Of the images of a training set; deliberate backgrounds are fewer.
MANY_EMPTY = 1 / 3


def derive_num_classes(cfg: CfgNode, dataset_names: Sequence[str], *, key: str) -> CfgNode:
    """Take the number of classes from the data sets where the config says 0; check it otherwise.

    Args:
        cfg: the config of a run; not changed.
        dataset_names: registered data sets of the run; the first decides, the others must have the same
            classes.
        key: that holds the number, such as "MODEL.DETR.NUM_CLASSES".

    Returns:
        a copy with the number, frozen if ``cfg`` was; ``cfg`` itself if there is nothing to change.

    Raises:
        ValueError: if a data set has no classes, other classes than the first one, or another number of them
            than the config says.
    """
    if not dataset_names:
        return cfg
    first, *others = dataset_names
    classes = class_names(first)
    for other in others:
        if class_names(other) == classes:
            continue
        both = f"({_differing(classes, class_names(other))})"
        if sorted(class_names(other)) == sorted(classes):
            raise ValueError(
                f"The data sets '{first}' and '{other}' in DATASETS have the same classes in different orders "
                f"{both}. {MEND_CLASS_ORDER}"
            )
        raise ValueError(
            f"The data sets '{first}' and '{other}' have different classes {both}; those in DATASETS.TRAIN and "
            "DATASETS.TEST must agree."
        )
    num_classes = get_value(cfg, key)
    if num_classes not in (0, len(classes)):
        raise ValueError(
            f"{key} is {num_classes}, but '{first}' has {len(classes)} classes ({_some(classes)}); set it to "
            f"{len(classes)}, or to 0 to take the number from the data set."
        )
    if num_classes:
        return cfg
    logger.info("%s = %d, the classes of '%s': %s", key, len(classes), first, _some(classes, 100))
    return changed(cfg, [key, len(classes)])


def derive_num_things(cfg: CfgNode, dataset_names: Sequence[str]) -> CfgNode:
    """Take ``MODEL.MASK_HEAD.NUM_THING_CLASSES`` from the first data set where the config says 0.

    Args:
        cfg, dataset_names: as for :func:`derive_num_classes`.

    Returns:
        as :func:`derive_num_classes`.
    """
    if not dataset_names or cfg.MODEL.MASK_HEAD.NUM_THING_CLASSES:
        return cfg
    things = MetadataCatalog.get(dataset_names[0]).get("thing_dataset_id_to_contiguous_id", {})
    return changed(cfg, ["MODEL.MASK_HEAD.NUM_THING_CLASSES", len(things)]) if things else cfg


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


def check_trained_classes(trained: Sequence[str], dataset_name: str, *, weights: str) -> None:
    """Compare the classes that a model was trained on with those of a data set, which it knows by their numbers.

    Other names are a warning: they may be other words for the same.

    Args:
        trained: names by contiguous id, of the checkpoint; empty, of one that does not tell, is not compared.
        dataset_name: a registered data set with as many classes.
        weights: path of the checkpoint.

    Raises:
        ValueError: if the names are the same in another order: a number would stand for another class.
    """
    classes = class_names(dataset_name)
    if not trained or list(trained) == classes:
        return
    both = f"on classes that are not those of '{dataset_name}' ({_differing(trained, classes)})"
    if sorted(trained) == sorted(classes):
        raise ValueError(
            f"MODEL.WEIGHTS '{weights}' was trained {both}: they are the same in another order. {MEND_CLASS_ORDER}"
        )
    logger.warning(
        "MODEL.WEIGHTS '%s' was trained %s: right if these are other names for the same, in the same order.",
        *(weights, both),
    )


def check_class_ids(cfg: CfgNode, dataset_dicts: Iterable[dict], *, key: str) -> None:
    """Check the class of every object before the first iteration.

    Args:
        cfg: the config of a run, after :func:`derive_num_classes`.
        dataset_dicts: the training set in Detectron2's format.
        key: that holds the number of classes.

    Raises:
        ValueError: if there is not a single object, or one whose class is not in [0, number of classes).
    """
    num_classes = get_value(cfg, key)
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


def advise_empty_images(dataset_dicts: Sequence[dict], *, left_out: bool) -> None:
    """Warn of a training set many of whose images have no annotation: unlabeled, or background?

    Args:
        dataset_dicts: in Detectron2's format.
        left_out: ``DATALOADER.FILTER_EMPTY_ANNOTATIONS``.
    """
    num_empty = sum(
        all(each.get("iscrowd", 0) for each in dataset_dict["annotations"]) for dataset_dict in dataset_dicts
    )
    if num_empty < MANY_EMPTY * len(dataset_dicts):
        return
    counts = (num_empty, len(dataset_dicts))
    if left_out:
        logger.warning(
            "%d of %d images of DATASETS.TRAIN have no annotation and are left out: set "
            "DATALOADER.FILTER_EMPTY_ANNOTATIONS False if they are known to show no object, so that they teach "
            "what background is.",
            *counts,
        )
    else:
        logger.warning(
            "%d of %d images of DATASETS.TRAIN have no annotation and are trained on as background: set "
            "DATALOADER.FILTER_EMPTY_ANNOTATIONS True if nobody has labeled them yet; False is right if they are "
            "known to show no object.",
            *counts,
        )


def advise_queries(cfg: CfgNode, dataset_dicts: Iterable[dict]) -> None:
    """Warn of training images with more objects than the detector has queries.

    Args:
        cfg: of the run.
        dataset_dicts: the training set in Detectron2's format.
    """
    counts = [
        sum(not each.get("iscrowd", 0) for each in (dataset_dict.get(key) or ()))
        for dataset_dict in dataset_dicts
        for key in ("annotations", "segments_info")
    ]
    too_many = sum(count > cfg.MODEL.DETR.NUM_QUERIES for count in counts)
    if too_many:
        logger.warning(
            "%d images of DATASETS.TRAIN have more objects than MODEL.DETR.NUM_QUERIES (%d), up to %d, and a "
            "query finds one object at most: raise it above that number (a pre-trained query embedding no longer "
            "fits then), or cut the images into tiles.",
            *(too_many, cfg.MODEL.DETR.NUM_QUERIES, max(counts)),
        )


def check_masks(dataset_dicts: Iterable[dict], where: str, *, all_of_them: bool = False) -> None:
    """Count the objects of instance annotations that have no mask, which mask training leaves out.

    Args:
        dataset_dicts: in Detectron2's format.
        where: what they are, for messages.
        all_of_them: refuse the data set if a single object lacks its mask: mask AP would count it as missed.

    Raises:
        ValueError: if no object has a mask, or one has none and ``all_of_them`` must.
    """
    flags = [
        bool(each.get("segmentation"))
        for dataset_dict in dataset_dicts
        for each in dataset_dict.get("annotations", ())
        if not each.get("iscrowd", 0)
    ]
    without = flags.count(False)
    if without and (all_of_them or without == len(flags)):
        raise ValueError(
            f"{where} has {without} of {len(flags)} objects without a mask ('segmentation'), which MODEL.MASK_ON "
            "needs: add masks, take these objects out, or train boxes alone with MODEL.META_ARCHITECTURE DETR."
        )
    if without:
        logger.warning(
            "%s: %d of %d objects have no mask ('segmentation') and are not trained on.",
            *(where, without, len(flags)),
        )


def _differing(first: Sequence[str], second: Sequence[str]) -> str:
    """Two lists of classes in words: where they begin to differ, if they are as long."""
    number = next((i for i, names in enumerate(zip(first, second)) if names[0] != names[1]), 0)
    if len(first) == len(second) and number:
        return f"class {number} is '{first[number]}' and '{second[number]}'"
    return f"{_some(first)} and {_some(second)}"


def _some(names: Sequence[str], limit: int = 5) -> str:
    return ", ".join(names[:limit]) + (", ..." if len(names) > limit else "")
