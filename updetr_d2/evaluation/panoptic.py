"""Panoptic quality and instance AP of panoptic models."""

from detectron2.data import MetadataCatalog
from detectron2.evaluation import DatasetEvaluator, DatasetEvaluators

from updetr_d2.data.datasets.panoptic_annotations import instances_file
from updetr_d2.data.datasets.panoptic_classes import PanopticClasses
from updetr_d2.evaluation.coco_style import EvaluatedImagesCOCOEvaluator
from updetr_d2.evaluation.error_report import ErrorReport
from updetr_d2.evaluation.panoptic_quality import PanopticQualityEvaluator


def build_panoptic_evaluator(
    dataset_name: str,
    output_folder: str,
    *,
    with_masks: bool = True,
    error_report: ErrorReport | None = None,
) -> DatasetEvaluators:
    """PQ of things and stuff, box and mask AP of things.

    Args:
        dataset_name: registered panoptic data set, "standard" or "separated".
        output_folder: where predictions and results go.
        with_masks: False for detectors, of which only the boxes of things are evaluated.
        error_report: on the boxes of things; None for nothing.
    """
    evaluators: list[DatasetEvaluator] = []
    if with_masks:
        evaluators.append(PanopticQualityEvaluator(dataset_name, output_folder))
    if MetadataCatalog.get(dataset_name).thing_dataset_id_to_contiguous_id:
        tasks = ("bbox", "segm") if with_masks else ("bbox",)
        evaluators.append(ThingEvaluator(dataset_name, output_folder, tasks=tasks, error_report=error_report))
    return DatasetEvaluators(evaluators)


class ThingEvaluator(EvaluatedImagesCOCOEvaluator):
    """Detectron2's COCO evaluator of boxes and masks, on the things among the predictions.

    Where the data set has no instance annotations they are made from its panoptic ones.

    Args:
        dataset_name: registered panoptic data set.
        output_dir: where the predictions go.
        tasks: of "bbox" and "segm".
        error_report: as in the parent.
    """

    def __init__(
        self,
        dataset_name: str,
        output_dir: str,
        *,
        tasks: tuple[str, ...] = ("bbox", "segm"),
        error_report: ErrorReport | None = None,
    ) -> None:
        metadata = MetadataCatalog.get(dataset_name)
        classes = PanopticClasses.from_metadata(metadata)
        self._num_things = classes.num_things
        # The metadata of panoptic data sets name stuff among the things, which the parent cannot evaluate.
        name = f"{dataset_name} (things)"
        MetadataCatalog.pop(name, None)
        MetadataCatalog.get(name).set(
            json_file=instances_file(metadata),
            thing_classes=list(classes.names[: classes.num_things]),
            thing_dataset_id_to_contiguous_id=metadata.thing_dataset_id_to_contiguous_id,
        )
        super().__init__(name, tasks=tasks, output_dir=output_dir, error_report=error_report)

    def process(self, inputs: list[dict], outputs: list[dict]) -> None:
        """As in the parent, for ``instances`` whose ``pred_classes`` may be stuff."""
        things = [
            {"instances": output["instances"][output["instances"].pred_classes < self._num_things]}
            for output in outputs
        ]
        super().process(inputs, things)
