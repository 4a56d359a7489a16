"""Pseudo-classes of boxes: clusters of what they show, by the features of a frozen CNN (as in AlignDet).

Each box is cut out, resized to a square and pooled over the CNN's feature; PCA, l2 normalization and k-means, on a
sample of the boxes, follow. ``D`` channels, ``C`` principal components, ``K`` clusters.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from updetr_d2.data.proposals.file import Proposals, image_id_of
from updetr_d2.data.proposals.frozen_cnn import FrozenCNN
from updetr_d2.data.transforms.image_io import UnusableImageError, read_image_rgb
from updetr_d2.data.transforms.resize import resize_uint8

# Features that k-means sees in one step.
_BATCH = 8192
_NUM_STEPS = 100
# Features for each cluster that the first centers are chosen from.
_FEATURES_PER_START = 32


@dataclass
class Clusters:
    """How features become cluster ids.

    Attributes:
        mean: float32 ``[D]``.
        components: float32 ``[C, D]``, orthonormal.
        centers: float32 ``[K, C]``.
    """

    mean: Tensor
    components: Tensor
    centers: Tensor

    def assign(self, features: Tensor) -> Tensor:
        """Nearest center int64 ``[N]`` of features ``[N, D]``."""
        return torch.cdist(self.project(features), self.centers).argmin(dim=1)

    def project(self, features: Tensor) -> Tensor:
        """``[N, D]`` -> ``[N, C]`` of length 1."""
        return F.normalize((features - self.mean) @ self.components.T, dim=1)


def fit_clusters(
    features: Tensor, num_clusters: int, *, num_components: int = 256, seed: int = 0
) -> Clusters:
    """PCA, l2 normalization, k-means with k-means++ and mini-batches.

    Args:
        features: float32 ``[N, D]``.
        num_clusters: K, at most N.
        num_components: most principal components C.
        seed: of the first centers and the batches.

    Raises:
        ValueError: if there are fewer features than clusters.
    """
    if len(features) < num_clusters:
        raise ValueError(
            f"{num_clusters} clusters are more than there are boxes ({len(features)}): give more images, or "
            "make fewer (updetr proposals --cluster)."
        )
    mean = features.mean(dim=0)
    centered = features - mean
    _, vectors = torch.linalg.eigh(centered.T @ centered / len(features))
    components = vectors.flip(1).T[: min(num_components, len(features), features.shape[1])].contiguous()
    clusters = Clusters(mean, components, torch.empty(0))
    clusters.centers = _minibatch_kmeans(clusters.project(features), num_clusters, seed)
    return clusters


def _minibatch_kmeans(points: Tensor, num_clusters: int, seed: int) -> Tensor:
    """Centers ``[K, C]`` of points ``[N, C]`` (Sculley, WWW 2010; all points at once where they fit a batch)."""
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(points), generator=generator)
    start = points[order[: _FEATURES_PER_START * num_clusters]]
    means = _first_centers(start, num_clusters, generator)
    counts = torch.zeros(num_clusters)
    for _ in range(_NUM_STEPS if len(points) > _BATCH else 20):
        batch = points
        if len(points) > _BATCH:
            batch = points[torch.randint(len(points), (_BATCH,), generator=generator)]
        else:
            counts.zero_()
        nearest = torch.cdist(batch, means).argmin(dim=1)
        sums = torch.zeros_like(means).index_add(0, nearest, batch)
        found = torch.bincount(nearest, minlength=num_clusters).to(counts)
        total = counts + found
        moved = (means * counts[:, None] + sums) / total.clamp(min=1)[:, None]
        means = torch.where(found[:, None] > 0, moved, means)
        counts = total
    return means


def _first_centers(points: Tensor, num_clusters: int, generator: torch.Generator) -> Tensor:
    """k-means++ (Arthur & Vassilvitskii, SODA 2007): points far from those chosen before are likely chosen."""
    chosen = points[:1]
    distances = torch.cdist(points, chosen)[:, 0].square()
    for _ in range(num_clusters - 1):
        weights = distances + 1e-12  # there may be fewer different points than clusters
        new = points[torch.multinomial(weights, 1, generator=generator)]
        chosen = torch.cat([chosen, new])
        distances = torch.minimum(distances, torch.cdist(points, new)[:, 0].square())
    return chosen


class BoxFeatureMapper:
    """Features, or cluster ids, of what the boxes of an image show.

    Args:
        cnn: with one feature.
        proposals: the boxes.
        size: side (px) of the square that a box is resized to.
        clusters: None gives features.
    """

    def __init__(
        self, cnn: FrozenCNN, proposals: Proposals, *, size: int, clusters: Clusters | None = None
    ) -> None:
        self.cnn = cnn
        self.proposals = proposals
        self.size = size
        self.clusters = clusters

    def __call__(self, dataset_dict: dict) -> dict[str, np.ndarray]:
        """
        Returns:
            ``features`` float32 ``[N, D]``, or ``clusters`` int32 ``[N]``.

        Raises:
            UnusableImageError: if the image cannot be read, or is not the one of the boxes.
        """
        found = self.proposals.find(image_id_of(dataset_dict))
        assert found is not None
        image = read_image_rgb(dataset_dict["file_name"])
        if (image.shape[1], image.shape[0]) != found.size:
            raise UnusableImageError(
                dataset_dict["file_name"], "has another size than when its boxes were made"
            )
        features = torch.zeros(0, next(iter(self.cnn.channels.values())))
        if len(found.boxes):
            crops = [self._cut(image, box) for box in found.boxes]
            (maps,) = self.cnn(crops).values()
            features = maps.float().mean(dim=(2, 3)).cpu()
        if self.clusters is None:
            return {"features": features.numpy()}
        return {"clusters": self.clusters.assign(features).numpy().astype(np.int32)}

    def _cut(self, image: np.ndarray, box: np.ndarray) -> np.ndarray:
        x0, y0, x1, y1 = outer_pixels(box, width=image.shape[1], height=image.shape[0])
        return resize_uint8(image[y0:y1, x0:x1], height=self.size, width=self.size)


def outer_pixels(box: np.ndarray, *, width: int, height: int) -> tuple[int, int, int, int]:
    """The whole pixels that a box inside an image touches, at least one each way, as XYXY."""
    x0, y0 = (int(np.clip(np.floor(box[i]), 0, size - 1)) for i, size in ((0, width), (1, height)))
    x1, y1 = (
        int(np.clip(np.ceil(box[i]), low + 1, size)) for i, low, size in ((2, x0, width), (3, y0, height))
    )
    return x0, y0, x1, y1
