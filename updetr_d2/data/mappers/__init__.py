"""From a dataset dict to a sample: one mapper for each task."""

from collections.abc import Callable

from detectron2.config import CfgNode
from detectron2.data import DatasetMapper

from updetr_d2.data.mappers.pretrain import QueryPatchDatasetMapper

MAPPERS = {"UPDETR": QueryPatchDatasetMapper}


def build_mapper(cfg: CfgNode, *, is_train: bool) -> Callable[[dict], dict]:
    """The mapper that ``MODEL.META_ARCHITECTURE`` needs; Detectron2's for architectures that are not ours."""
    return MAPPERS.get(cfg.MODEL.META_ARCHITECTURE, DatasetMapper)(cfg, is_train)
