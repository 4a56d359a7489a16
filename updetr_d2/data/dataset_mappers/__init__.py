"""From a dataset dict to a sample: one mapper for each task."""

from updetr_d2.data.dataset_mappers.detection import DETRDatasetMapper
from updetr_d2.data.dataset_mappers.oneshot import OneShotDatasetMapper
from updetr_d2.data.dataset_mappers.panoptic import PanopticDETRDatasetMapper
from updetr_d2.data.dataset_mappers.query_patch import QueryPatchDatasetMapper
from updetr_d2.data.dataset_mappers.two_views import TwoViewDatasetMapper

__all__ = [
    "DETRDatasetMapper",
    "OneShotDatasetMapper",
    "PanopticDETRDatasetMapper",
    "QueryPatchDatasetMapper",
    "TwoViewDatasetMapper",
]
