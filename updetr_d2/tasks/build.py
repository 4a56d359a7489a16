"""The parts of a run as functions of its config; the task of ``MODEL.META_ARCHITECTURE`` chooses them."""

from collections.abc import Callable

from detectron2.config import CfgNode
from detectron2.evaluation import DatasetEvaluator

from updetr_d2.data.datasets.names import DatasetDicts
from updetr_d2.data.loading import build as loading
from updetr_d2.tasks.base import task_of


def check_config(cfg: CfgNode) -> None:
    """Check the values that would otherwise fail late, or never and silently.

    Args:
        cfg: a config with the keys of ``add_updetr_config``.

    Raises:
        ValueError: naming the key, its value and what it may be.
    """
    task_of(cfg).check_config(cfg)


def build_mapper(
    cfg: CfgNode, *, is_train: bool, dataset_dicts: DatasetDicts | None = None
) -> Callable[[dict], dict]:
    """The mapper from dataset dicts to the samples that the model takes.

    Args:
        cfg: of the run.
        is_train: whether the samples are for training.
        dataset_dicts: the training set, which one-shot training takes its query patches from.
    """
    return task_of(cfg).build_mapper(cfg, is_train=is_train, dataset_dicts=dataset_dicts)


def build_test_loader(
    cfg: CfgNode,
    dataset_name: str,
    *,
    mapper: Callable[[dict], dict] | None = None,
    batch_size: int = 1,
    split: bool = True,
) -> loading.TestLoader:
    """The loader that evaluation goes through: every image (or image and query) of a data set once, in order.

    Args:
        cfg: of the run.
        dataset_name: as in ``DATASETS.TEST``.
        mapper: makes a sample of a dataset dict; None for that of :func:`build_mapper`.
        batch_size: images of a batch.
        split: share the images out among the processes; else every process gets all of them.

    Raises:
        ValueError: if the data set is empty.
    """
    task = task_of(cfg)
    return loading.build_test_loader(
        cfg,
        dataset_name,
        mapper=mapper or task.build_mapper(cfg, is_train=False),
        dataset_dicts=task.test_set(cfg, dataset_name),
        batch_size=batch_size,
        split=split,
    )


def build_evaluator(cfg: CfgNode, dataset_name: str, output_folder: str) -> DatasetEvaluator:
    """The evaluator for the task of the model and the kind of the data set.

    Args:
        cfg: of the run.
        dataset_name: registered data set; its metadata's ``evaluator_type`` counts for detectors.
        output_folder: where results and pictures go.

    Raises:
        ValueError: if there is no evaluator for the data set.
    """
    return task_of(cfg).build_evaluator(cfg, dataset_name, output_folder)
