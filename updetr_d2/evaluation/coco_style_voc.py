"""Pascal VOC measured COCO's way (AP, AP50, AP75 over IoU 0.5:0.95) beside Detectron2's own VOC measure."""

import hashlib
import json
import os
import tempfile

from detectron2.data import MetadataCatalog
from detectron2.data.datasets.coco import convert_to_coco_dict
from detectron2.evaluation import (
    DatasetEvaluator,
    DatasetEvaluators,
    PascalVOCDetectionEvaluator,
)
from detectron2.utils import comm

from updetr_d2.data.datasets.pascal_voc import difficult_flags, write_plain_annotations
from updetr_d2.evaluation.coco_style import EvaluatedImagesCOCOEvaluator
from updetr_d2.evaluation.error_report import ErrorReport
from updetr_d2.utils.cache import cache_folder
from updetr_d2.utils.files import write_text


class RenamedVOCEvaluator(PascalVOCDetectionEvaluator):
    """Detectron2's evaluator with its results under "voc_bbox", since COCO's are under "bbox".

    It reads what :func:`.pascal_voc.write_plain_annotations` makes of the images that were evaluated.
    """

    def reset(self) -> None:
        super().reset()
        self._seen: set[str] = set()

    def process(self, inputs: list[dict], outputs: list[dict]) -> None:
        super().process(inputs, outputs)
        self._seen.update(sample["image_id"] for sample in inputs)

    def evaluate(self) -> dict | None:
        seen = sorted(set().union(*comm.all_gather(self._seen)))
        with tempfile.TemporaryDirectory() as folder:
            if comm.is_main_process():
                write_plain_annotations(self._dataset_name, folder, seen)
            image_list = os.path.join(folder, "images.txt")
            write_text(image_list, "".join(f"{image_id}\n" for image_id in seen))
            self._anno_file_template = os.path.join(folder, "{}.xml")
            self._image_set_path = image_list
            results = super().evaluate()
        return None if results is None else {"voc_bbox": results["bbox"]}


def build_voc_evaluator(
    dataset_name: str, output_folder: str, *, error_report: ErrorReport | None = None
) -> DatasetEvaluator:
    """Both measures on a data set in VOC's layout.

    Args:
        dataset_name: registered with ``detectron2.data.datasets.register_pascal_voc``.
        output_folder: for the predictions.
        error_report: kinds of errors and pictures; None for nothing.

    Returns:
        an evaluator with the results "bbox" (COCO's AP, AP50, AP75 ..., see :func:`coco_style_ground_truth`) and
        "voc_bbox" (VOC's AP, 11-point for 2007, averaged over IoU 0.5:0.95, at 0.5 and 0.75).
    """
    metadata = MetadataCatalog.get(dataset_name)
    if not metadata.get("json_file"):
        digest = hashlib.sha256(os.path.abspath(metadata.dirname).encode()).hexdigest()[:16]
        metadata.json_file = str(cache_folder("coco_style_voc") / f"{dataset_name}-{digest}.json")
    # Written anew each time, as nothing tells whether the XML files have changed.
    write_text(metadata.json_file, json.dumps(coco_style_ground_truth(dataset_name)))
    return DatasetEvaluators(
        [
            EvaluatedImagesCOCOEvaluator(dataset_name, output_dir=output_folder, error_report=error_report),
            RenamedVOCEvaluator(dataset_name),
        ]
    )


def coco_style_ground_truth(dataset_name: str) -> dict:
    """The labels of a VOC data set in COCO's format.

    UP-DETR's code has no evaluation on VOC; the paper reports COCO's measures on VOC's test set. Objects
    marked difficult are ignored, neither missed nor false, as in VOC's own protocol: they become ``iscrowd``,
    the only mark of COCO's format that its evaluation honours. Training uses them as any other object, as
    Detectron2's loader does. Boxes are those of the loader: VOC's 1-based inclusive pixels as continuous
    coordinates from 0.

    Args:
        dataset_name: registered with ``detectron2.data.datasets.register_pascal_voc``.
    """
    ground_truth = convert_to_coco_dict(dataset_name)
    ground_truth.setdefault("annotations", [])
    folder = os.path.join(MetadataCatalog.get(dataset_name).dirname, "Annotations")
    # The loader keeps the order of the objects in the XML files.
    difficult = [
        flag for image in ground_truth["images"] for flag in difficult_flags(f"{folder}/{image['id']}.xml")
    ]
    for annotation, flag in zip(ground_truth["annotations"], difficult, strict=True):
        annotation["iscrowd"] = flag
    return ground_truth
