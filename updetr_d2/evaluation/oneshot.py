"""One-shot detection measured as CoAE does (Hsieh et al., NeurIPS 2019): AP per class over image-query pairs."""

import contextlib
import io
import json
import logging
import os
import tempfile
from collections import OrderedDict
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from detectron2.data import DatasetCatalog, Metadata, MetadataCatalog
from detectron2.evaluation import DatasetEvaluator
from detectron2.evaluation.pascal_voc_evaluation import voc_eval
from detectron2.structures import BoxMode
from detectron2.utils import comm
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from tabulate import tabulate

from updetr_d2.data.datasets.classes import class_names
from updetr_d2.data.oneshot.queries import evaluation_images
from updetr_d2.data.oneshot.splits import ClassSplit
from updetr_d2.evaluation.detection_matching import MAX_DETECTIONS, ImageResult
from updetr_d2.evaluation.error_report import ErrorReport

logger = logging.getLogger(__name__)


class QueryResult(NamedTuple):
    """What was found for one query in one image.

    Attributes:
        image_id: of the data set.
        query_class: contiguous class id.
        query_round: which of the image's queries of this class.
        boxes: float32 ``[N, 4]``, XYXY in original pixels.
        scores: float32 ``[N]``.
    """

    image_id: int | str
    query_class: int
    query_round: int
    boxes: np.ndarray
    scores: np.ndarray


class OneShotEvaluator(DatasetEvaluator):
    """AP and AP50 of every class, and their means over the seen and the unseen classes.

    A class is measured on the pairs (image, query patch) of the images that show it; only objects of this
    class count in them. Round r of evaluation takes the r-th query patch of every image and class; each
    round is measured by itself, and the results of the rounds are averaged. On VOC the AP50 by VOC's own rules
    is computed beside COCO's.

    Args:
        dataset_name: registered data set that is tested on.
        split: seen and unseen classes.
        num_shots: query patches that make one query, for the record.
        seed: of the query patches, for the record.
        output_folder: for ``oneshot_results.json``; None writes nothing.
        error_report: kinds of errors and pictures, for the first query of every image and class; None for nothing.
    """

    def __init__(
        self,
        dataset_name: str,
        *,
        split: ClassSplit,
        num_shots: int,
        seed: int,
        output_folder: str | None = None,
        error_report: ErrorReport | None = None,
    ) -> None:
        self.error_report = error_report
        self.dataset_name = dataset_name
        self.split = split
        self.num_shots = num_shots
        self.seed = seed
        self.output_folder = output_folder
        self.reset()

    def reset(self) -> None:
        self._results: list[QueryResult] = []

    def process(self, inputs: list[dict], outputs: list[dict]) -> None:
        """
        Args:
            inputs: samples with ``image_id``, ``query_class`` and ``query_round``.
            outputs: ``{"instances": Instances}`` with ``pred_boxes`` and ``scores`` in original pixels.
        """
        for sample, output in zip(inputs, outputs):
            instances = output["instances"].to("cpu")
            self._results.append(
                QueryResult(
                    sample["image_id"],
                    sample["query_class"],
                    sample["query_round"],
                    instances.pred_boxes.tensor.float().numpy(),
                    instances.scores.float().numpy(),
                )
            )

    def evaluate(self) -> dict | None:
        """
        Returns:
            on the main process ``{"oneshot": {...}}`` in percent: ``seen_AP50``, ``unseen_AP50``, ``seen_AP``,
            ``unseen_AP`` (for VOC also ``seen_voc_AP50``, ``unseen_voc_AP50``), the same per class as
            ``AP50-cow``, and ``num_queries``, ``num_shots``, ``seed``; None on the others.

        Raises:
            ValueError: if no image could be evaluated.
        """
        gathered = comm.gather(self._results)
        if not comm.is_main_process():
            return None
        results = [result for part in gathered for result in part]
        if not results:
            raise ValueError("No image of the test set could be used: see the warnings about skipped files.")
        names = class_names(self.dataset_name)
        images = evaluation_images(self.dataset_name, DatasetCatalog.get(self.dataset_name))
        metadata = MetadataCatalog.get(self.dataset_name)
        rounds = []
        for i in sorted({result.query_round for result in results}):
            of_round = [result for result in results if result.query_round == i]
            measured = coco_measures(images, of_round, len(names))
            if metadata.get("evaluator_type") == "pascal_voc":
                measured["voc_AP50"] = voc_ap50(metadata, of_round, names)
            rounds.append(measured)
        # Classes without a pair stay NaN.
        per_class = {measure: np.mean([each[measure] for each in rounds], axis=0) for measure in rounds[0]}
        settings = {"num_queries": len(rounds), "num_shots": self.num_shots, "seed": self.seed}
        summary = self._summary(per_class, names)
        self._log(per_class, names, summary)
        if self.output_folder:
            os.makedirs(self.output_folder, exist_ok=True)
            content = {
                "dataset": self.dataset_name,
                **settings,
                "num_pairs": len(results),
                "seen_classes": [names[i] for i in self.split.seen],
                "unseen_classes": [names[i] for i in self.split.unseen],
                **summary,
                "rounds": [self._summary(each, names) for each in rounds],
            }
            with open(os.path.join(self.output_folder, "oneshot_results.json"), "w") as file:
                json.dump(content, file, indent=1)
        if self.error_report is not None:
            pairs = {f"{each.image_id} {each.query_class}": each for each in results if not each.query_round}
            by_id = {image["image_id"]: image for image in images}
            self.error_report.write(
                lambda ids: [
                    result_of_query(str(i), pairs[str(i)], by_id[pairs[str(i)].image_id]) for i in ids
                ],
                {i: by_id[each.image_id].get("file_name", "") for i, each in pairs.items()},
                dict(enumerate(names)),
                name=self.dataset_name,
            )
        return OrderedDict(oneshot={**summary, **settings})

    def _summary(self, per_class: dict[str, np.ndarray], names: Sequence[str]) -> dict[str, float]:
        """Means over the measured seen and unseen classes, then the classes one by one."""
        summary = {}
        for group in ("seen", "unseen"):
            for measure, values in per_class.items():
                measured = values[list(getattr(self.split, group))]
                measured = measured[~np.isnan(measured)]
                if len(measured):
                    summary[f"{group}_{measure}"] = float(measured.mean())
        for measure, values in per_class.items():
            summary.update(
                {f"{measure}-{name}": float(v) for name, v in zip(names, values) if not np.isnan(v)}
            )
        return summary

    def _log(self, per_class: dict[str, np.ndarray], names: Sequence[str], summary: dict) -> None:
        rows = [
            (group, names[i], *(values[i] for values in per_class.values()))
            for group in ("seen", "unseen")
            for i in getattr(self.split, group)
            if not np.isnan(per_class["AP50"][i])
        ]
        rows += [
            (group, "mean", *(summary[f"{group}_{measure}"] for measure in per_class))
            for group in ("seen", "unseen")
            if f"{group}_AP50" in summary
        ]
        table = tabulate(rows, ("classes", "class", *per_class), tablefmt="pipe", floatfmt=".1f")
        logger.info("One-shot detection on %s:\n%s", self.dataset_name, table)


def result_of_query(pair_id: str, result: QueryResult, image: dict) -> ImageResult:
    """What was found for a query, with the objects of its class.

    Args:
        pair_id: of image and query.
        result: of the query.
        image: dataset dict.
    """
    order = np.argsort(-result.scores, kind="stable")[:MAX_DETECTIONS]
    boxes = result.boxes[order].astype(float)
    boxes[:, 2:] -= boxes[:, :2]
    objects = [each for each in image["annotations"] if each["category_id"] == result.query_class]
    true_boxes = [BoxMode.convert(each["bbox"], each["bbox_mode"], BoxMode.XYWH_ABS) for each in objects]
    return ImageResult(
        pair_id,
        boxes=boxes,
        scores=result.scores[order].astype(float),
        classes=np.full(len(order), result.query_class),
        true_boxes=np.array(true_boxes, dtype=float).reshape(-1, 4),
        true_classes=np.full(len(objects), result.query_class),
        crowd=np.array([bool(each.get("iscrowd")) for each in objects], dtype=bool),
    )


def coco_measures(
    images: Sequence[dict], results: Sequence[QueryResult], num_classes: int
) -> dict[str, np.ndarray]:
    """COCO's AP and AP50 of every class.

    Args:
        images: dataset dicts of the test set with ``annotations``; ``iscrowd`` objects are ignored.
        results: at most one for each image and class. Objects of a class count in the images that have a
            result for this class, and nowhere else.
        num_classes: K.

    Returns:
        ``AP``, ``AP50``: float ``[K]`` in percent, NaN for classes without objects that count.
    """
    numbers = {image["image_id"]: i for i, image in enumerate(images, start=1)}
    pairs = {(result.image_id, result.query_class) for result in results}
    annotations: list[dict] = []
    for image in images:
        for each in image["annotations"]:
            if (image["image_id"], each["category_id"]) not in pairs:
                continue
            x0, y0, width, height = BoxMode.convert(each["bbox"], each["bbox_mode"], BoxMode.XYWH_ABS)
            annotations.append(
                {
                    "id": len(annotations) + 1,  # pycocotools ignores id 0
                    "image_id": numbers[image["image_id"]],
                    "category_id": each["category_id"],
                    "bbox": [x0, y0, width, height],
                    "area": width * height,
                    "iscrowd": each.get("iscrowd", 0),
                }
            )
    detections = []
    for result in results:
        corner, size = result.boxes[:, :2], result.boxes[:, 2:] - result.boxes[:, :2]
        detections += [
            {
                "image_id": numbers[result.image_id],
                "category_id": result.query_class,
                "bbox": box,
                "score": score,
            }
            for box, score in zip(np.hstack((corner, size)).tolist(), result.scores.tolist())
        ]
    precision = _coco_precision(
        {
            "info": {},
            "images": [{"id": number} for number in numbers.values()],
            "annotations": annotations,
            "categories": [{"id": i} for i in range(num_classes)],
        },
        detections,
    )
    precision = np.where(precision < 0, np.nan, precision)  # pycocotools' mark of "no objects"
    return {"AP": 100 * precision.mean(axis=(0, 1)), "AP50": 100 * precision[0].mean(axis=0)}


def _coco_precision(ground_truth: dict, detections: list[dict]) -> np.ndarray:
    """Precision ``[IoU thresholds, recall points, classes]`` of all object sizes, at most 100 boxes an image."""
    with contextlib.redirect_stdout(io.StringIO()):  # pycocotools prints its progress
        coco = COCO()
        coco.dataset = ground_truth
        coco.createIndex()
        evaluation = COCOeval(coco, coco.loadRes(detections) if detections else COCO(), iouType="bbox")
        evaluation.params.areaRng, evaluation.params.areaRngLbl = [[0, 1e10]], ["all"]
        evaluation.params.maxDets = [100]
        evaluation.evaluate()
        evaluation.accumulate()
    return evaluation.eval["precision"][:, :, :, 0, 0]


def voc_ap50(metadata: Metadata, results: Sequence[QueryResult], names: Sequence[str]) -> np.ndarray:
    """AP50 of every class by Detectron2's implementation of VOC's rules (2007: 11-point interpolation).

    Args:
        metadata: of a data set in VOC's layout.
        results: as for :func:`coco_measures`.
        names: of the K classes.

    Returns:
        float ``[K]`` in percent, NaN for classes without a result.
    """
    values = np.full(len(names), np.nan)
    annotation_files = os.path.join(metadata.dirname, "Annotations", "{}.xml")
    with tempfile.TemporaryDirectory() as folder:
        image_list = os.path.join(folder, "images.txt")
        for class_id in sorted({result.query_class for result in results}):
            of_class = [result for result in results if result.query_class == class_id]
            with open(image_list, "w") as file:
                file.writelines(f"{result.image_id}\n" for result in of_class)
            with open(os.path.join(folder, f"{names[class_id]}.txt"), "w") as file:
                for result in of_class:
                    # VOC counts pixels from 1.
                    boxes = result.boxes + np.array([1, 1, 0, 0], dtype=np.float32)
                    file.writelines(
                        f"{result.image_id} {score:.6f} {x0:.2f} {y0:.2f} {x1:.2f} {y1:.2f}\n"
                        for score, (x0, y0, x1, y1) in zip(result.scores, boxes)
                    )
            _, _, ap = voc_eval(
                os.path.join(folder, "{}.txt"),
                annotation_files,
                image_list,
                names[class_id],
                ovthresh=0.5,
                use_07_metric=metadata.year == 2007,
            )
            values[class_id] = 100 * ap
    return values
