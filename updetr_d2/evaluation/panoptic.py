"""Panoptic quality and instance AP of panoptic models, through Detectron2's evaluators."""

import functools
import math
import operator
import os
import signal
from collections import OrderedDict
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from unittest import mock

import panopticapi.evaluation
from detectron2.data import MetadataCatalog
from detectron2.evaluation import COCOEvaluator, COCOPanopticEvaluator, DatasetEvaluator, DatasetEvaluators
from panopticapi.evaluation import PQStat, pq_compute_single_core

from updetr_d2.data.datasets.panoptic_annotations import instances_file
from updetr_d2.data.datasets.panoptic_classes import PanopticClasses


def build_panoptic_evaluator(
    dataset_name: str, output_folder: str, *, with_masks: bool = True
) -> DatasetEvaluators:
    """PQ of things and stuff, box and mask AP of things.

    Args:
        dataset_name: registered panoptic data set, "standard" or "separated".
        output_folder: where predictions and results go.
        with_masks: False for detectors, of which only the boxes of things are evaluated.
    """
    evaluators: list[DatasetEvaluator] = []
    if with_masks:
        evaluators.append(PanopticQualityEvaluator(dataset_name, output_folder))
    if MetadataCatalog.get(dataset_name).thing_dataset_id_to_contiguous_id:
        tasks = ("bbox", "segm") if with_masks else ("bbox",)
        evaluators.append(ThingEvaluator(dataset_name, output_folder, tasks=tasks))
    return DatasetEvaluators(evaluators)


class PanopticQualityEvaluator(COCOPanopticEvaluator):
    """Detectron2's evaluator for both of its registrations, and for data sets of things or stuff alone.

    Args:
        dataset_name: registered panoptic data set.
        output_dir: where the predictions go.
    """

    def __init__(self, dataset_name: str, output_dir: str | None = None) -> None:
        super().__init__(dataset_name, output_dir)
        self._classes = PanopticClasses.from_metadata(self._metadata)

    def _convert_category_id(self, segment_info: dict) -> dict:
        # A copy, as other evaluators and pictures need the output as it is.
        category_id = self._classes.dataset_ids[segment_info["category_id"]]
        return {"id": segment_info["id"], "category_id": category_id}

    def evaluate(self) -> OrderedDict | None:
        """
        Returns:
            on the main process ``{"panoptic_seg": {"PQ", "SQ", "RQ", "PQ_th", …, "RQ_st"}}`` in percent,
            without the group (things, stuff) that the data set does not have; None on the others.
        """
        with (
            mock.patch.object(PQStat, "pq_average", _pq_average),
            mock.patch.object(panopticapi.evaluation, "pq_compute_multi_core", _count_segments),
        ):
            results = super().evaluate()
        if results is None:
            return None
        panoptic = results["panoptic_seg"]
        return OrderedDict(panoptic_seg={k: v for k, v in panoptic.items() if not math.isnan(v)})


def _count_segments(
    annotations: list[tuple[dict, dict]], gt_folder: str, pred_folder: str, categories: dict
) -> PQStat:
    """panopticapi's counts, by processes that live through a signal to all processes of a run, and then end.

    Its own pool ends them by SIGTERM at a moment of its choice, and loses the images of one that dies.
    """
    count = len(os.sched_getaffinity(0))
    with ProcessPoolExecutor(count, mp_context=get_context("fork"), initializer=_ignore_signals) as executor:
        parts = [
            executor.submit(
                pq_compute_single_core, i, annotations[i::count], gt_folder, pred_folder, categories
            )
            for i in range(count)
        ]
        return functools.reduce(operator.iadd, (part.result() for part in parts), PQStat())


def _ignore_signals() -> None:
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)


_divide_by_count = PQStat.pq_average


def _pq_average(statistics: PQStat, categories: dict, isthing: bool | None) -> tuple[dict, dict]:
    """panopticapi's average, NaN instead of a ZeroDivisionError over a group without categories."""
    try:
        return _divide_by_count(statistics, categories, isthing)
    except ZeroDivisionError:
        return {"pq": math.nan, "sq": math.nan, "rq": math.nan, "n": 0}, {}


class ThingEvaluator(COCOEvaluator):
    """Detectron2's COCO evaluator of boxes and masks, on the things among the predictions.

    Where the data set has no instance annotations they are made from its panoptic ones.

    Args:
        dataset_name: registered panoptic data set.
        output_dir: where the predictions go.
        tasks: of "bbox" and "segm".
    """

    def __init__(
        self, dataset_name: str, output_dir: str, *, tasks: tuple[str, ...] = ("bbox", "segm")
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
        super().__init__(name, tasks=tasks, output_dir=output_dir)

    def process(self, inputs: list[dict], outputs: list[dict]) -> None:
        """As in the parent, for ``instances`` whose ``pred_classes`` may be stuff."""
        things = [
            {"instances": output["instances"][output["instances"].pred_classes < self._num_things]}
            for output in outputs
        ]
        super().process(inputs, things)
