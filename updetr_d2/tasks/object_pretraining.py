"""Pre-training on boxes without labels (``ObjectDETR``), evaluated on labeled objects of any class."""

import logging
from collections.abc import Callable, Sequence

from detectron2.config import CfgNode
from detectron2.evaluation import DatasetEvaluator

from updetr_d2.config.access import changed
from updetr_d2.config.checks import check_detr_config
from updetr_d2.data.dataset_mappers.detection import DETRDatasetMapper, build_detr_augmentations
from updetr_d2.data.dataset_mappers.objects import ObjectDatasetMapper
from updetr_d2.data.datasets.names import DatasetDicts
from updetr_d2.data.loading.build import load_test_set
from updetr_d2.data.proposals.file import Proposals, image_id_of
from updetr_d2.evaluation.class_agnostic import ClassAgnosticEvaluator
from updetr_d2.evaluation.error_report import ErrorReport
from updetr_d2.tasks.base import TASKS, Task
from updetr_d2.tasks.findings import PredictedClasses
from updetr_d2.utils.files import file_size, printable

logger = logging.getLogger(__name__)

# Images of the training set that are looked for in a file of proposals before training.
_NUM_CHECKED = 1000


def derive_num_clusters(cfg: CfgNode) -> CfgNode:
    """Take ``MODEL.DETR.NUM_CLASSES`` from the clusters of ``INPUT.PROPOSALS.FILE`` if they are the classes.

    Returns:
        ``cfg``, or a changed copy.

    Raises:
        ValueError: if the file has none, or another number of them than the config says.
    """
    if not cfg.INPUT.PROPOSALS.CLUSTERS:
        return cfg
    if not cfg.INPUT.PROPOSALS.FILE:
        raise ValueError("INPUT.PROPOSALS.CLUSTERS needs an INPUT.PROPOSALS.FILE with clusters: name it.")
    num_clusters = Proposals.load(cfg.INPUT.PROPOSALS.FILE).num_clusters
    if not num_clusters:
        raise ValueError(
            f"INPUT.PROPOSALS.CLUSTERS is on, but INPUT.PROPOSALS.FILE {cfg.INPUT.PROPOSALS.FILE} has none: "
            "make it with `updetr proposals --cluster K`, or take a recipe of one class."
        )
    if cfg.MODEL.DETR.NUM_CLASSES not in (0, num_clusters):
        raise ValueError(
            f"MODEL.DETR.NUM_CLASSES is {cfg.MODEL.DETR.NUM_CLASSES}, but INPUT.PROPOSALS.FILE "
            f"{cfg.INPUT.PROPOSALS.FILE} has {num_clusters} clusters; set it to 0 to take theirs."
        )
    return changed(cfg, ["MODEL.DETR.NUM_CLASSES", num_clusters])


def check_proposals(cfg: CfgNode, dataset_dicts: DatasetDicts) -> None:
    """Make sure that the file of proposals is of the images of the training set.

    Raises:
        ValueError: if it knows none of the first of them.
    """
    if not cfg.INPUT.PROPOSALS.FILE:
        return
    proposals = Proposals.load(cfg.INPUT.PROPOSALS.FILE)
    first = [dataset_dicts[i] for i in range(min(_NUM_CHECKED, len(dataset_dicts)))]
    found = [(each["file_name"], proposals.find(image_id_of(each))) for each in first]
    known = [(file_name, boxes.file_size) for file_name, boxes in found if boxes is not None]
    if not known:
        raise ValueError(
            f"INPUT.PROPOSALS.FILE {cfg.INPUT.PROPOSALS.FILE} knows none of the images of DATASETS.TRAIN "
            f"{tuple(cfg.DATASETS.TRAIN)}: make it from a data set of the same name or folder."
        )
    others = [name for name, size in known if size and (file_size(name) or size) != size]
    if len(others) > len(known) / 2:
        logger.warning(
            "INPUT.PROPOSALS.FILE %s was made of images with the names of those in DATASETS.TRAIN %s, but other "
            "files: %d of %d have another size, such as %s. Its boxes are where other images have objects, unless "
            "these are the same images, saved anew: make it again with `updetr proposals`.",
            *(
                cfg.INPUT.PROPOSALS.FILE,
                tuple(cfg.DATASETS.TRAIN),
                len(others),
                len(known),
                printable(others[0]),
            ),
        )


class UnlabeledTask(Task):
    """Base of tasks whose classes come from a file of proposals, or are given."""

    def num_classes_key(self, cfg: CfgNode) -> str | None:
        return None

    def derive_num_classes(self, cfg: CfgNode, dataset_names: Sequence[str]) -> CfgNode:
        return derive_num_clusters(cfg)

    def check_training_set(self, cfg: CfgNode, dataset_dicts: DatasetDicts) -> None:
        check_proposals(cfg, dataset_dicts)


@TASKS.register()
class ObjectPretrainingTask(UnlabeledTask):
    """No labels in training: the objects are boxes of a file, or random."""

    name = "pretraining_objects"

    def check_config(self, cfg: CfgNode) -> None:
        super().check_config(cfg)
        check_detr_config(cfg)
        if not cfg.INPUT.PROPOSALS.CLUSTERS and cfg.MODEL.DETR.NUM_CLASSES not in (1, 2):
            raise ValueError(
                f"MODEL.DETR.NUM_CLASSES is {cfg.MODEL.DETR.NUM_CLASSES}; boxes without clusters have one class: "
                "use 1 (or 2 for a checkpoint of UPDETR), or set INPUT.PROPOSALS.CLUSTERS True."
            )
        for is_train in (True, False):
            build_detr_augmentations(cfg, is_train)

    def build_mapper(
        self, cfg: CfgNode, *, is_train: bool, dataset_dicts: DatasetDicts | None = None
    ) -> Callable[[dict], dict]:
        if is_train:
            return ObjectDatasetMapper(cfg, patch_queries=False)
        return DETRDatasetMapper(cfg, is_train=False)

    def build_evaluator(self, cfg: CfgNode, dataset_name: str, output_folder: str) -> DatasetEvaluator:
        return ClassAgnosticEvaluator(
            load_test_set(dataset_name),
            output_folder=output_folder,
            name=dataset_name,
            error_report=ErrorReport.from_config(cfg, output_folder),
        )

    def predicted_classes(self, cfg: CfgNode, num_patches: int = 0) -> PredictedClasses:
        return PredictedClasses(names=["object"], ids=[1])
