"""From a dataset dict to a sample: one mapper for each task."""

from collections.abc import Callable, Sequence

from detectron2.config import CfgNode
from detectron2.data import DatasetMapper

from updetr_d2.data.dataset_mappers.detection import DETRDatasetMapper
from updetr_d2.data.dataset_mappers.oneshot import OneShotDatasetMapper
from updetr_d2.data.dataset_mappers.panoptic import PanopticDETRDatasetMapper
from updetr_d2.data.dataset_mappers.query_patch import QueryPatchDatasetMapper
from updetr_d2.data.datasets.panoptic_classes import is_panoptic

MAPPERS = {
    "DETR": DETRDatasetMapper,
    "PanopticDETR": PanopticDETRDatasetMapper,
    "UPDETR": QueryPatchDatasetMapper,
}


def build_mapper(
    cfg: CfgNode, *, is_train: bool, dataset_dicts: Sequence[dict] | None = None
) -> Callable[[dict], dict]:
    """The mapper that ``MODEL.META_ARCHITECTURE`` needs; Detectron2's for architectures that are not ours.

    DETR learns the boxes of panoptic data sets from the masks, too: the first step of panoptic training.

    Args:
        cfg: the config of a run.
        is_train: whether the samples have labels.
        dataset_dicts: the training set, which one-shot training takes its query patches from.
    """
    name = cfg.MODEL.META_ARCHITECTURE
    if name == "DETR" and any(is_panoptic(dataset) for dataset in cfg.DATASETS.TRAIN):
        name = "PanopticDETR"
    if name == "OneShotDETR":
        return OneShotDatasetMapper(cfg, is_train, dataset_dicts)
    return MAPPERS.get(name, DatasetMapper)(cfg, is_train)
