"""The evaluator of a labelled data set, by its ``evaluator_type``."""

from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from detectron2.evaluation import DatasetEvaluator

from updetr_d2.data.datasets.panoptic_classes import PANOPTIC_EVALUATOR
from updetr_d2.evaluation.coco_style import EvaluatedImagesCOCOEvaluator
from updetr_d2.evaluation.coco_style_voc import build_voc_evaluator
from updetr_d2.evaluation.error_report import ErrorReport
from updetr_d2.evaluation.panoptic import build_panoptic_evaluator


def build_dataset_evaluator(cfg: CfgNode, dataset_name: str, output_folder: str) -> DatasetEvaluator:
    """The evaluator of a data set for models that predict its classes.

    Args:
        cfg: ``MODEL.MASK_ON`` says whether the model predicts masks of instances, ``TEST.VIS_IMAGES`` how many
            pictures are drawn.
        dataset_name: registered data set; its metadata's ``evaluator_type`` decides.
        output_folder: where results go.

    Raises:
        ValueError: if there is no evaluator for the data set.
    """
    evaluator_type = MetadataCatalog.get(dataset_name).get("evaluator_type")
    errors = ErrorReport.from_config(cfg, output_folder)
    if evaluator_type == "coco":
        return EvaluatedImagesCOCOEvaluator(dataset_name, output_dir=output_folder, error_report=errors)
    if evaluator_type == PANOPTIC_EVALUATOR:
        with_masks = cfg.MODEL.MASK_ON
        return build_panoptic_evaluator(
            dataset_name, output_folder, with_masks=with_masks, error_report=errors
        )
    if evaluator_type == "pascal_voc":
        return build_voc_evaluator(dataset_name, output_folder, error_report=errors)
    raise ValueError(
        f"DATASETS.TEST '{dataset_name}' has evaluator type '{evaluator_type}', which "
        f"{cfg.MODEL.META_ARCHITECTURE} cannot be evaluated on."
    )
