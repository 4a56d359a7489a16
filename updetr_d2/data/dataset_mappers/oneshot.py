"""Make one sample of one-shot detection: an image, query patches of one class, all objects of this class."""

import math
from typing import Any

import numpy as np
from detectron2.config import CfgNode, configurable

from updetr_d2.data.dataset_mappers.detection import DETRDatasetMapper
from updetr_d2.data.datasets.names import DatasetDicts
from updetr_d2.data.oneshot.queries import QueryBox, QueryPool, build_query_pool, objects_of
from updetr_d2.data.transforms.image_io import UnusableImageError, read_image_rgb, stack_to_tensor
from updetr_d2.data.transforms.resize import resize_uint8


class OneShotDatasetMapper(DETRDatasetMapper):
    """:class:`DETRDatasetMapper` with one class, the one that the query patches show.

    In training the query is a random class of the image or, sometimes, one that is absent from it. For
    evaluation the dataset dicts say which patches to use (:func:`.oneshot.queries.evaluation_queries`).

    Args:
        query_pool: where the queries of training come from; None for evaluation.
        num_shots: patches of a query in training.
        absent_share: share of training samples whose query class is not in the image, in [0, 1].
        context_margin: context around the box of a patch on each side, as a fraction of the box's sides.
        patch_size: side (px) of the square that each patch is resized to.
        **detection_args: as for :class:`DETRDatasetMapper`.
    """

    @configurable
    def __init__(
        self,
        *,
        query_pool: QueryPool | None = None,
        num_shots: int = 1,
        absent_share: float = 0.0,
        context_margin: float = 0.0,
        patch_size: int = 128,
        **detection_args: Any,
    ) -> None:
        super().__init__(**detection_args)
        if num_shots < 1 or not 0 <= absent_share <= 1 or context_margin < 0:
            raise ValueError(
                f"DATASETS.ONESHOT.NUM_SHOTS ({num_shots}) must be at least 1, ABSENT_SHARE ({absent_share}) in "
                f"[0, 1] and CONTEXT_MARGIN ({context_margin}) not negative."
            )
        self.query_pool = query_pool
        self.num_shots = num_shots
        self.absent_share = absent_share
        self.context_margin = context_margin
        self.patch_size = patch_size

    @classmethod
    def from_config(
        cls, cfg: CfgNode, is_train: bool = True, dataset_dicts: DatasetDicts | None = None
    ) -> dict[str, Any]:
        """
        Args:
            cfg: ``DATASETS.ONESHOT`` and the keys of :class:`DETRDatasetMapper` are read.
            is_train: whether the samples have labels.
            dataset_dicts: for training, the result of :func:`updetr_d2.data.oneshot.queries.training_images`.

        Raises:
            ValueError: if they are missing in training.
        """
        oneshot = cfg.DATASETS.ONESHOT
        query_pool = None
        if is_train:
            if dataset_dicts is None:
                raise ValueError(
                    "One-shot training needs dataset_dicts, which the query patches are cut from."
                )
            query_pool = build_query_pool(cfg, dataset_dicts)
        return {
            **super().from_config(cfg, is_train),
            "query_pool": query_pool,
            "num_shots": oneshot.NUM_SHOTS,
            "absent_share": oneshot.ABSENT_SHARE,
            "context_margin": oneshot.CONTEXT_MARGIN,
            "patch_size": cfg.INPUT.QUERY_PATCH.SIZE,
        }

    def __call__(self, dataset_dict: dict) -> dict:
        """Make the sample of one image.

        Args:
            dataset_dict: Detectron2's format; for evaluation with ``query_class`` and ``queries``.

        Returns:
            the sample of :class:`DETRDatasetMapper`, in training with the ``instances`` of the query's class
            alone, as class 0; ``query_class``, the class in the data set; ``patches``, uint8
            ``num_shots``×3×``patch_size``×``patch_size``.

        Raises:
            UnusableImageError: if the image or that of a query cannot be used, or an image for training has
                no class that can be queried.
        """
        if self.query_pool is not None:
            dataset_dict = self._add_query(dataset_dict, self.query_pool)
        sample = super().__call__(dataset_dict)
        patches = [self._cut_patch(query) for query in sample.pop("queries")]
        sample["patches"] = stack_to_tensor(patches, self.image_format)
        return sample

    def _add_query(self, dataset_dict: dict, query_pool: QueryPool) -> dict:
        """Draw a query; of the annotations those of its class are left, as class 0."""
        rng = np.random.default_rng(np.random.randint(2**32, size=4, dtype=np.uint32))
        file_name, annotations = str(dataset_dict["file_name"]), dataset_dict["annotations"]
        # Crowds count as present: whether their class is absent cannot be said.
        shown = {each["category_id"] for each in annotations}
        absent = [each for each in query_pool.classes if each not in shown]
        present = sorted(each for each in objects_of(annotations) if query_pool.has_query(each, file_name))
        choices = absent if absent and rng.random() < self.absent_share else present
        if not choices:
            raise UnusableImageError(
                file_name,
                "shows no class of which another image has an instance for a query patch "
                "(DATASETS.ONESHOT.SAME_IMAGE would allow its own)",
            )
        query_class = int(rng.choice(choices))
        return {
            **dataset_dict,
            "annotations": [
                {**each, "category_id": 0} for each in annotations if each["category_id"] == query_class
            ],
            "query_class": query_class,
            "queries": query_pool.draw(rng, query_class, file_name, self.num_shots),
        }

    def _cut_patch(self, query: QueryBox) -> np.ndarray:
        image = read_image_rgb(query.file_name, options=self.read_options)
        return cut_patch(image, query.box, margin=self.context_margin, size=self.patch_size)


def cut_patch(
    image: np.ndarray, box: tuple[float, float, float, float], *, margin: float, size: int
) -> np.ndarray:
    """Cut out a box and resize it to a square, aspect not kept, as in pre-training.

    Args:
        image: uint8 H×W×3.
        box: XYXY in px; rounded outwards and clipped to the image.
        margin: context on each side, as a fraction of the box's sides.
        size: side (px) of the result.

    Returns:
        uint8 ``size``×``size``×3.
    """
    height, width = image.shape[:2]
    x0, y0, x1, y1 = box
    dx, dy = margin * (x1 - x0), margin * (y1 - y0)
    left = min(max(math.floor(x0 - dx), 0), width - 1)
    top = min(max(math.floor(y0 - dy), 0), height - 1)
    right = min(max(math.ceil(x1 + dx), left + 1), width)
    bottom = min(max(math.ceil(y1 + dy), top + 1), height)
    return resize_uint8(np.ascontiguousarray(image[top:bottom, left:right]), height=size, width=size)
