"""Boxes from the features of a frozen CNN: regions whose features differ most from what lies around them.

The idea is that of TokenCut and CutLER (arXiv 2202.11539, 2301.11320): features of a trained network are alike
within an object and differ across its edge. Instead of cutting the graph of cells in two and masking what was
found, again and again, neighbors are merged bottom-up once, which gives the regions of all sizes.
"""

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from torchvision.ops import nms

from updetr_d2.data.proposals.frozen_cnn import FrozenCNN
from updetr_d2.data.proposals.regions import RegionTree, build_region_tree
from updetr_d2.data.proposals.source import PROPOSAL_REGISTRY, ProposalSource, SourceOptions
from updetr_d2.data.transforms.resize import resize_uint8

# Of the strides 8 and 16: finer ones see edges instead of objects, coarser ones blur the boxes.
_FEATURES = ("res3", "res4")
# Cells of the feature map in the finest of them, about.
_NUM_CELLS = 32 * 32
_MIN_CELLS = 4
_LARGEST_SHARE = 0.9
# Factor on the score for each side of the image that a region touches: background does.
_BORDER_FACTOR = 0.6
_NMS_THRESHOLD = 0.7


@PROPOSAL_REGISTRY.register()
class FeatureBoxes(ProposalSource):
    """Regions of the feature map of ``MODEL.BACKBONE``, see :func:`region_scores` for their order.

    The scores of different images are comparable, as features are standardized within each image.
    """

    name = "features"
    needs_config = True

    def __init__(self, options: SourceOptions) -> None:
        super().__init__(options)
        assert options.cfg is not None
        self.cnn = FrozenCNN(options.cfg, _FEATURES)

    def __call__(self, image: np.ndarray, dataset_dict: dict) -> tuple[np.ndarray, np.ndarray]:
        height, width = image.shape[:2]
        finest, coarsest = min(self.cnn.strides.values()), max(self.cnn.strides.values())
        scale = finest * np.sqrt(_NUM_CELLS / (height * width))
        sides = [max(2 * coarsest, round(side * scale / coarsest) * coarsest) for side in (height, width)]
        features = self.cnn([resize_uint8(image, height=sides[0], width=sides[1])])
        levels = [features[name][0].float() for name in self.cnn.features]
        return boxes_of_features(levels, width=width, height=height)


def boxes_of_features(levels: list[Tensor], *, width: int, height: int) -> tuple[np.ndarray, np.ndarray]:
    """Boxes of the regions of a feature map, without those that overlap a better one by more than IoU 0.7.

    Args:
        levels: ``[D, h, w]`` of an image.
        width, height: of the image, px.

    Returns:
        boxes ``[N, 4]``, XYXY px, the best first; scores ``[N]``.
    """
    features = joined_levels(levels).permute(1, 2, 0).cpu().numpy()
    rows, columns = features.shape[:2]
    tree = build_region_tree(features)
    scores = region_scores(tree, rows=rows, columns=columns)
    boxes = tree.boxes * (np.array([width, height, width, height]) / [columns, rows, columns, rows])
    usable = np.isfinite(scores)
    boxes, scores = boxes[usable], scores[usable]
    kept = nms(torch.from_numpy(boxes), torch.from_numpy(scores), _NMS_THRESHOLD).numpy()
    return boxes[kept], scores[kept]


def joined_levels(levels: list[Tensor]) -> Tensor:
    """Levels ``[D_i, h_i, w_i]`` -> ``[sum D_i, h, w]`` of the finest; each channel has mean 0 and, for levels of
    any number of channels to count the same, each level unit variance in all."""
    size = max((level.shape[-2:] for level in levels), key=lambda shape: shape[0] * shape[1])
    joined = []
    for level in levels:
        if level.shape[-2:] != size:
            level = F.interpolate(level[None], size=size, mode="bilinear", align_corners=False)[0]
        mean, std = level.mean(dim=(1, 2), keepdim=True), level.std(dim=(1, 2), keepdim=True)
        joined.append((level - mean) / (std + 1e-5) / len(level) ** 0.5)
    return torch.cat(joined)


def region_scores(tree: RegionTree, *, rows: int, columns: int) -> np.ndarray:
    """How much regions look like objects, ``[R]``; −inf for those too small or as large as the image.

    A region counts by what its merging into the next one costs (objects resist longest), times the share of its
    box that it fills, times a factor for each side of the image that it touches.

    Args:
        tree: of the image.
        rows, columns: of the feature map.
    """
    x0, y0, x1, y1 = tree.boxes.T
    filled = tree.num_cells / ((x1 - x0) * (y1 - y0))
    touched = (x0 == 0).astype(int) + (y0 == 0) + (x1 == columns) + (y1 == rows)
    scores = tree.cost[tree.parent] * filled * _BORDER_FACTOR**touched
    usable = (tree.num_cells >= _MIN_CELLS) & (tree.num_cells < _LARGEST_SHARE * rows * columns)
    return np.where(usable & (tree.parent >= 0), scores, -np.inf)
