"""Panoptic quality (Kirillov et al., CVPR 2019), counted image by image while the predictions come in."""

import functools
import json
import logging
import os
from collections import OrderedDict
from collections.abc import Sequence

import numpy as np
from detectron2.data import MetadataCatalog
from detectron2.evaluation import DatasetEvaluator
from detectron2.utils import comm
from detectron2.utils.file_io import PathManager
from tabulate import tabulate

from updetr_d2.data.datasets.panoptic_annotations import (
    VOID,
    read_panoptic_file,
    read_panoptic_png,
    rgb_to_ids,
)
from updetr_d2.data.datasets.panoptic_classes import PanopticClasses
from updetr_d2.data.transforms.image_io import UnusableImageError
from updetr_d2.utils.files import write_text

logger = logging.getLogger(__name__)

# Columns of the counts.
IOU, TP, FP, FN = range(4)
_QUALITIES = ("PQ", "SQ", "RQ")


class PanopticQualityEvaluator(DatasetEvaluator):
    """PQ of a panoptic data set in either of Detectron2's registrations, with the rules of the COCO panoptic API.

    Images without a prediction are not counted; their number is logged.

    Args:
        dataset_name: registered panoptic data set.
        output_dir: for ``predictions.json``, the segments of each image in COCO's panoptic format without their
            PNGs; None writes nothing.
    """

    def __init__(self, dataset_name: str, output_dir: str | None = None) -> None:
        self._metadata = MetadataCatalog.get(dataset_name)
        self._classes = PanopticClasses.from_metadata(self._metadata)
        self._class_of = {category: i for i, category in enumerate(self._classes.dataset_ids)}
        self._output_dir = output_dir
        self.reset()

    @functools.cached_property
    def _annotations(self) -> dict:
        """The annotations of the images by id."""
        content = read_panoptic_file(PathManager.get_local_path(self._metadata.panoptic_json))
        return {annotation["image_id"]: annotation for annotation in content["annotations"]}

    def reset(self) -> None:
        self._counts = np.zeros((len(self._classes.names), 4))
        self._predictions: list[dict] = []

    def process(self, inputs: list[dict], outputs: list[dict]) -> None:
        """
        Args:
            inputs: samples with ``image_id`` and ``file_name``.
            outputs: each with ``panoptic_seg``: an integer map ``[height, width]`` of segment ids, 0 where there
                is none, and a list of its segments with ``id`` and ``category_id``, a class number.

        Raises:
            ValueError: if the map has another size than its annotation, or other segments than the list.
        """
        for sample, output in zip(inputs, outputs):
            segment_map, segments = output["panoptic_seg"]
            annotation = self._annotations[sample["image_id"]]
            try:
                true_map = self._read_map(annotation["file_name"])
            except UnusableImageError as error:
                logger.warning("Not counted: %s", error)
                continue
            predicted_map = segment_map.cpu().numpy()
            if predicted_map.shape != true_map.shape:
                raise ValueError(
                    f"The prediction for {sample['file_name']} is of size {predicted_map.shape}, its annotation "
                    f"{annotation['file_name']} of size {true_map.shape}; return maps of the original size."
                )
            true_segments = [
                {**segment, "category_id": self._class_of[segment["category_id"]]}
                for segment in annotation["segments_info"]
            ]
            add_counts(self._counts, true_map, true_segments, predicted_map, segments)
            stem = os.path.splitext(self._name(sample["file_name"]))[0]
            self._predictions.append(
                {
                    "image_id": sample["image_id"],
                    "file_name": f"{stem}.png",
                    "segments_info": [self._in_file(segment) for segment in segments],
                }
            )

    def _name(self, file_name: str) -> str:
        """Path below the folder of the images; those of different subfolders may have one base name."""
        root = self._metadata.get("image_root")
        is_below = root is not None and os.path.abspath(file_name).startswith(
            os.path.join(os.path.abspath(root), "")
        )
        return os.path.relpath(file_name, root) if is_below else os.path.basename(file_name)

    def _read_map(self, file_name: str) -> np.ndarray:
        path = os.path.join(self._metadata.panoptic_root, file_name)
        return rgb_to_ids(read_panoptic_png(path))

    def _in_file(self, segment: dict) -> dict:
        return {"id": segment["id"], "category_id": self._classes.dataset_ids[segment["category_id"]]}

    def evaluate(self) -> OrderedDict | None:
        """
        Returns:
            on the main process ``{"panoptic_seg": {"PQ", "SQ", "RQ", "PQ_th", …, "RQ_st"}}`` in percent, without
            the group (things, stuff) of which there are no segments; None on the others.

        Raises:
            ValueError: if no image was evaluated.
        """
        gathered = comm.gather((self._counts, self._predictions))
        if not comm.is_main_process():
            return None
        counts = np.sum([counts for counts, _ in gathered], axis=0)
        predictions = [prediction for _, part in gathered for prediction in part]
        if not predictions:
            raise ValueError("No image of the test set could be used: see the warnings about skipped files.")
        num_missing = len(self._annotations.keys() - {prediction["image_id"] for prediction in predictions})
        if num_missing:
            logger.warning("%d annotated images have no prediction and are not counted.", num_missing)
        if self._output_dir is not None:
            self._write(predictions, self._output_dir)
        return OrderedDict(panoptic_seg=self._summarize(counts))

    def _write(self, predictions: list[dict], output_dir: str) -> None:
        content = read_panoptic_file(PathManager.get_local_path(self._metadata.panoptic_json))
        PathManager.mkdirs(output_dir)
        path = os.path.join(output_dir, "predictions.json")
        write_text(path, json.dumps({**content, "annotations": predictions}))

    def _summarize(self, counts: np.ndarray) -> dict[str, float]:
        names, num_things = self._classes.names, self._classes.num_things
        qualities, seen = panoptic_quality(counts)
        groups = {"": slice(None), "_th": slice(num_things), "_st": slice(num_things, None)}
        results, rows = {}, []
        for (suffix, group), title in zip(groups.items(), ("All", "Things", "Stuff")):
            if not seen[group].any():
                continue
            means = 100 * qualities[group][seen[group]].mean(axis=0)
            rows.append([title, *means, int(seen[group].sum())])
            results.update({f"{key}{suffix}": float(mean) for key, mean in zip(_QUALITIES, means)})
        _log_table("Panoptic quality", ["", *_QUALITIES, "#categories"], rows)
        rows = [[name, *row] for name, row in zip(names, 100 * np.where(seen[:, None], qualities, np.nan))]
        _log_table("Panoptic quality of each class", ["class", *_QUALITIES], rows)
        return results


def add_counts(
    counts: np.ndarray,
    true_map: np.ndarray,
    true_segments: Sequence[dict],
    predicted_map: np.ndarray,
    predicted_segments: Sequence[dict],
) -> None:
    """Match the segments of an image and add what was found and missed.

    Segments of a class match if their IoU, without VOID pixels, is above 0.5. An unmatched prediction is no false
    positive if more than half of it lies on VOID or on a crowd of its class.

    Args:
        counts: float64 ``[K, 4]``, added to: sum of the IoU of the matches, TP, FP and FN of each class.
        true_map, predicted_map: integers ``[height, width]``, ids of segments below 2^24, 0 is VOID.
        true_segments: with ``id``, ``category_id`` (0 to K - 1), ``area``, ``iscrowd``.
        predicted_segments: with ``id``, ``category_id``; all of those on the map.

    Raises:
        ValueError: if the predicted segments are not those on their map.
    """
    overlaps = _overlaps(true_map, predicted_map)
    areas: dict[int, int] = {}
    for (_, predicted), pixels in overlaps.items():
        areas[predicted] = areas.get(predicted, 0) + pixels
    predicted_class = {segment["id"]: segment["category_id"] for segment in predicted_segments}
    if areas.keys() - {VOID} != predicted_class.keys():
        raise ValueError(
            f"The predicted segment map has the ids {sorted(areas.keys() - {VOID})}, but its list of segments "
            f"{sorted(predicted_class)}; give each segment an id from 1 and exclude those without pixels."
        )
    unmatched = set(predicted_class)
    crowds = {}
    for segment in true_segments:
        true, category = segment["id"], segment["category_id"]
        if segment["iscrowd"]:
            crowds[category] = true
            continue
        for predicted in sorted(unmatched):
            shared = overlaps.get((true, predicted), 0)
            if not shared or predicted_class[predicted] != category:
                continue
            iou = shared / (segment["area"] + areas[predicted] - shared - overlaps.get((VOID, predicted), 0))
            if iou > 0.5:
                counts[category, [IOU, TP]] += iou, 1
                unmatched.remove(predicted)
                break
        else:
            counts[category, FN] += 1
    for predicted in unmatched:
        category = predicted_class[predicted]
        ignored = overlaps.get((VOID, predicted), 0)
        if category in crowds:
            ignored += overlaps.get((crowds[category], predicted), 0)
        if ignored / areas[predicted] <= 0.5:
            counts[category, FP] += 1


def _overlaps(true_map: np.ndarray, predicted_map: np.ndarray) -> dict[tuple[int, int], int]:
    """Shared pixels of each pair (true id, predicted id) that has any."""
    pairs, pixels = np.unique((true_map.astype(np.int64) << 32) + predicted_map, return_counts=True)
    return dict(zip(zip((pairs >> 32).tolist(), (pairs & 0xFFFFFFFF).tolist()), pixels.tolist()))


def panoptic_quality(counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """
    Args:
        counts: ``[K, 4]`` as :func:`add_counts` makes them.

    Returns:
        PQ, SQ and RQ of each class, float64 ``[K, 3]`` in 0–1, and bool ``[K]``: which classes have segments at
        all. The others have zeros and do not belong into a mean.
    """
    iou, tp, fp, fn = counts.T
    total = tp + fp / 2 + fn / 2
    pq, rq = (np.divide(part, total, out=np.zeros_like(total), where=total > 0) for part in (iou, tp))
    sq = np.divide(iou, tp, out=np.zeros_like(tp), where=tp > 0)
    return np.stack([pq, sq, rq], axis=1), total > 0


def _log_table(title: str, headers: list[str], rows: list[list]) -> None:
    table = tabulate(rows, headers=headers, tablefmt="pipe", floatfmt=".3f", numalign="center")
    logger.info("%s:\n%s", title, table)
