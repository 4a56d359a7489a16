"""What gives boxes for an image, the registry of such sources, and the mapper that asks one for every image."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from detectron2.config import CfgNode
from detectron2.utils.registry import Registry

from updetr_d2.data.proposals.file import to_units
from updetr_d2.data.transforms.image_io import read_image_rgb
from updetr_d2.utils.files import file_size


@dataclass(frozen=True)
class SourceOptions:
    """What the command line says; each source reads what it needs.

    Attributes:
        num_boxes: most boxes of an image.
        cfg: config with the network and its weights; None where none was named.
        file: other file to read, "" if none was named.
        min_score: lowest score of a box.
        seed: of random numbers, which depend on the image beside it.
    """

    num_boxes: int = 30
    cfg: CfgNode | None = None
    file: str = ""
    min_score: float = float("-inf")
    seed: int = 0


class ProposalSource:
    """Base of all sources.

    Args:
        options: of the command line.

    Attributes:
        name: in ``PROPOSAL_REGISTRY`` and for ``--source``.
        needs_config: whether ``options.cfg`` must be there.
    """

    name: str = ""
    needs_config = False

    def __init__(self, options: SourceOptions) -> None:
        self.options = options

    def __call__(self, image: np.ndarray, dataset_dict: dict) -> tuple[np.ndarray, np.ndarray]:
        """
        Args:
            image: RGB uint8 ``[H, W, 3]``.
            dataset_dict: of the image, with ``file_name`` and, in most data sets, ``image_id``.

        Returns:
            boxes ``[N, 4]`` XYXY in px, the best first, and their scores ``[N]``; they may stick out of the image.
        """
        raise NotImplementedError


class ProposalRegistry(Registry):
    """Sources of boxes by their ``name``."""

    def register(self, source: type[ProposalSource] | None = None) -> Any:
        """Use as ``@PROPOSAL_REGISTRY.register()`` on a subclass of :class:`ProposalSource`."""
        if source is None:
            return self.register
        self._do_register(source.name, source)
        return source


PROPOSAL_REGISTRY = ProposalRegistry("PROPOSAL")
PROPOSAL_REGISTRY.__doc__ = """
Sources of boxes for `updetr proposals --source`: subclasses of ProposalSource, made from SourceOptions.
"""


class ProposalMapper:
    """Read an image and ask a source for its boxes.

    Args:
        source: of the boxes.
        num_boxes: most boxes of an image.
        min_score: lowest score of a box.
        min_box_side: boxes with a shorter side (px) inside the image are dropped.
        min_image_side: images with a shorter side (px) are refused.
    """

    def __init__(
        self,
        source: ProposalSource,
        *,
        num_boxes: int,
        min_score: float = float("-inf"),
        min_box_side: float = 4,
        min_image_side: int = 17,
    ) -> None:
        self.source = source
        self.num_boxes = num_boxes
        self.min_score = min_score
        self.min_box_side = min_box_side
        self.min_image_side = min_image_side

    def __call__(self, dataset_dict: dict) -> dict[str, np.ndarray]:
        """
        Returns:
            ``size`` int32 ``[1, 2]``, width and height; ``file_size`` int64 ``[1]``, ``boxes`` uint16 ``[N, 4]``
            as in :class:`.Proposals`; ``scores`` float32 ``[N]``.

        Raises:
            UnusableImageError: if the image cannot be used.
        """
        image = read_image_rgb(dataset_dict["file_name"], min_side=self.min_image_side)
        height, width = image.shape[:2]
        boxes, scores = self.source(image, dataset_dict)
        boxes = np.clip(np.asarray(boxes, np.float64).reshape(-1, 4), 0, [width, height, width, height])
        scores = np.asarray(scores, np.float32)
        usable = (boxes[:, 2:] - boxes[:, :2] >= self.min_box_side).all(axis=1) & (scores >= self.min_score)
        boxes, scores = boxes[usable][: self.num_boxes], scores[usable][: self.num_boxes]
        return {
            "size": np.array([[width, height]], np.int32),
            "file_size": np.array([file_size(dataset_dict["file_name"]) or 0], np.int64),
            "boxes": to_units(boxes, width=width, height=height),
            "scores": scores,
        }
