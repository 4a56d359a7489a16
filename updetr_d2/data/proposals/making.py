"""Make the proposals of a data set: boxes of every image, their clusters, one file."""

import hashlib
import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from updetr_d2.data.datasets.names import DatasetDicts
from updetr_d2.data.proposals.clusters import BoxFeatureMapper, fit_clusters
from updetr_d2.data.proposals.file import VERSION, Proposals, image_id_of, image_key
from updetr_d2.data.proposals.frozen_cnn import FrozenCNN
from updetr_d2.data.proposals.parts import Parts, Results
from updetr_d2.data.proposals.source import ProposalMapper

logger = logging.getLogger(__name__)

# Features, a row for each box, that clusters are made of; the rest of the boxes go to the nearest.
_CLUSTER_SAMPLE = 100_000


@dataclass(frozen=True)
class Clustering:
    """How boxes get clusters.

    Attributes:
        num_clusters: K.
        cnn: makes the network, with one feature.
        crop_size: side (px) of the square that a box is resized to.
        seed: of the sample and of k-means.
    """

    num_clusters: int
    cnn: Callable[[], FrozenCNN]
    crop_size: int = 128
    seed: int = 0


def make_proposals(
    dataset: DatasetDicts,
    output: Path,
    *,
    description: dict,
    mapper: Callable[[], ProposalMapper],
    clustering: Clustering | None = None,
    num_workers: int = 0,
    part_size: int = 500,
) -> tuple[Proposals, int]:
    """Make boxes, and their clusters, of all images, or the rest of those that an interrupted run left.

    Until the file is whole, its parts are in the folder ``OUTPUT.parts``.

    Args:
        dataset: dataset dicts.
        output: file to write.
        description: what the boxes depend on beside the images, plain values; parts of others are refused.
        mapper: makes the mapper, if there is an image left.
        clustering: None for no clusters.
        num_workers: processes; 0 works in this one.
        part_size: images that an interruption loses at most, for each worker.

    Returns:
        what is in the file, and how many images could not be used.

    Raises:
        ValueError: if two images have the same id, or the parts are of another run.
    """
    keys = image_keys(dataset)
    digest = hashlib.blake2b(keys.tobytes(), digest_size=16).hexdigest()
    parts = Parts(parts_folder(output), {**description, "version": VERSION, "images": digest})
    boxes = parts.run("boxes", dataset, mapper(), num_workers=num_workers, part_size=part_size)
    if not len(boxes.indices):
        raise ValueError("No image could be used: see the skipped files.")
    proposals = _collect(boxes, keys, description["source"])
    if clustering is not None:
        _add_clusters(
            proposals, dataset, keys, parts, clustering, num_workers=num_workers, part_size=part_size
        )
    proposals.save(output)
    parts.remove()
    return Proposals.load(output), boxes.num_skipped


def parts_folder(output: Path) -> Path:
    """Where the results are until the file ``output`` is complete."""
    return output.with_name(f"{output.name}.parts")


def image_keys(dataset: DatasetDicts) -> np.ndarray:
    """uint64 key of each image.

    Raises:
        ValueError: if two images have the same id.
    """
    keys = np.fromiter((image_key(image_id_of(each)) for each in dataset), np.uint64, len(dataset))
    order = np.argsort(keys)
    same = np.flatnonzero(np.diff(keys[order]) == 0)
    if len(same):
        first, second = (dataset[int(order[same[0] + i])] for i in (0, 1))
        raise ValueError(
            f"{first['file_name']} and {second['file_name']} have the same image_id {image_id_of(first)}: make "
            "the proposals of each data set by itself."
        )
    return keys


def _collect(boxes: Results, keys: np.ndarray, source: str) -> Proposals:
    counts = boxes.counts("boxes")
    keys = keys[boxes.indices]
    order = np.argsort(keys)
    begins = np.cumsum(counts) - counts
    counts = counts[order]
    # Rows of each image in the new order of the images.
    rows = np.repeat(begins[order] - (np.cumsum(counts) - counts), counts) + np.arange(counts.sum())
    return Proposals(
        source=source,
        keys=keys[order],
        sizes=boxes["size"][order],
        file_sizes=boxes["file_size"][order],
        ends=np.cumsum(counts),
        boxes=boxes["boxes"][rows],
        scores=boxes["scores"][rows],
    )


def _add_clusters(
    proposals: Proposals,
    dataset: DatasetDicts,
    keys: np.ndarray,
    parts: Parts,
    clustering: Clustering,
    *,
    num_workers: int,
    part_size: int,
) -> None:
    counts = np.diff(proposals.ends, prepend=0)
    index_of_key = np.argsort(keys)
    # Index of each image in the data set, in the order of the file.
    indices = index_of_key[np.searchsorted(keys[index_of_key], proposals.keys)]
    indices, counts = indices[counts > 0], counts[counts > 0]
    if not len(indices):
        raise ValueError("There is no box to put into clusters.")
    cnn = clustering.cnn()
    sample = np.random.default_rng(clustering.seed).permutation(len(indices))
    sample = sample[: int(np.searchsorted(np.cumsum(counts[sample]), _CLUSTER_SAMPLE)) + 1]
    mapper = BoxFeatureMapper(cnn, proposals, size=clustering.crop_size)
    options = {"num_workers": num_workers, "part_size": part_size}
    features = parts.run("features", dataset, mapper, indices=indices[sample].tolist(), **options)
    mapper.clusters = fit_clusters(
        torch.from_numpy(features["features"]), clustering.num_clusters, seed=clustering.seed
    )
    assigned = parts.run("clusters", dataset, mapper, indices=indices.tolist(), **options)
    if assigned.num_skipped:
        raise ValueError(
            f"{assigned.num_skipped} images could not be read again for their clusters: run the command once more "
            "when the files are back."
        )
    proposals.clusters = assigned["clusters"]
    proposals.num_clusters = clustering.num_clusters
    sizes = np.bincount(proposals.clusters, minlength=clustering.num_clusters)
    logger.info("Boxes of a cluster: %d to %d, median %d", sizes.min(), sizes.max(), np.median(sizes))
