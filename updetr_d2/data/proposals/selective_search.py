"""Selective Search (Uijlings et al., IJCV 2013), DETReg's boxes, by OpenCV's contributed modules."""

from typing import Any

import cv2
import numpy as np

from updetr_d2.data.proposals.source import PROPOSAL_REGISTRY, ProposalSource, SourceOptions
from updetr_d2.data.transforms.resize import resize_uint8

# Side (px) of the square that images are resized to before the search, as in DETReg.
_SIDE = 128


@PROPOSAL_REGISTRY.register()
class SelectiveSearch(ProposalSource):
    """OpenCV's fast variant on the image squashed to a square; the score is minus the rank.

    Raises:
        ValueError: if OpenCV lacks the module.
    """

    name = "selective_search"

    def __init__(self, options: SourceOptions) -> None:
        super().__init__(options)
        self._module: Any = getattr(cv2, "ximgproc", None)
        if self._module is None:
            raise ValueError(
                "--source selective_search needs OpenCV's contributed modules: pip install "
                "opencv-contrib-python-headless in the place of opencv-python-headless."
            )

    def __call__(self, image: np.ndarray, dataset_dict: dict) -> tuple[np.ndarray, np.ndarray]:
        cv2.setRNGSeed(self.options.seed)  # its ranks are partly random
        search = self._module.segmentation.createSelectiveSearchSegmentation()
        search.setBaseImage(cv2.cvtColor(resize_uint8(image, height=_SIDE, width=_SIDE), cv2.COLOR_RGB2BGR))
        search.switchToSelectiveSearchFast()
        corners_and_sizes = np.asarray(search.process(), np.float64).reshape(-1, 4)
        boxes = corners_and_sizes.copy()
        boxes[:, 2:] += boxes[:, :2]
        height, width = image.shape[:2]
        return boxes * (np.array([width, height, width, height]) / _SIDE), -np.arange(len(boxes))
