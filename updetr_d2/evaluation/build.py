"""Choose the evaluator of a data set."""

from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from detectron2.evaluation import COCOEvaluator, DatasetEvaluator

from updetr_d2.data.datasets.classes import class_names
from updetr_d2.data.datasets.panoptic_classes import PANOPTIC_EVALUATOR
from updetr_d2.data.oneshot.splits import class_split
from updetr_d2.evaluation.coco_style_voc import build_voc_evaluator
from updetr_d2.evaluation.oneshot import OneShotEvaluator
from updetr_d2.evaluation.panoptic import build_panoptic_evaluator
from updetr_d2.evaluation.query_patch import QueryPatchEvaluator


def build_evaluator(cfg: CfgNode, dataset_name: str, output_folder: str) -> DatasetEvaluator:
    """The evaluator for the task of the model and the kind of the data set.

    Args:
        cfg: ``MODEL.META_ARCHITECTURE`` decides first: pre-training is evaluated on random query
            patches, one-shot detection on those of its classes.
        dataset_name: registered data set; its metadata's ``evaluator_type`` decides next.
        output_folder: where results and pictures go.

    Raises:
        ValueError: if there is no evaluator for the data set.
    """
    if cfg.MODEL.META_ARCHITECTURE == "UPDETR":
        return QueryPatchEvaluator(
            output_folder=output_folder, num_pictures=cfg.TEST.VIS_IMAGES, input_format=cfg.INPUT.FORMAT
        )
    if cfg.MODEL.META_ARCHITECTURE == "OneShotDETR":
        return OneShotEvaluator(
            dataset_name,
            split=class_split(cfg, class_names(dataset_name)),
            num_shots=cfg.DATASETS.ONESHOT.NUM_SHOTS,
            seed=cfg.TEST.ONESHOT.SEED,
            output_folder=output_folder,
        )
    evaluator_type = MetadataCatalog.get(dataset_name).get("evaluator_type")
    if evaluator_type == "coco":
        return COCOEvaluator(dataset_name, output_dir=output_folder)
    if evaluator_type == PANOPTIC_EVALUATOR:
        return build_panoptic_evaluator(dataset_name, output_folder, with_masks=cfg.MODEL.MASK_ON)
    if evaluator_type == "pascal_voc":
        return build_voc_evaluator(dataset_name, output_folder)
    raise ValueError(
        f"DATASETS.TEST '{dataset_name}' has evaluator type '{evaluator_type}', which "
        f"{cfg.MODEL.META_ARCHITECTURE} cannot be evaluated on."
    )
