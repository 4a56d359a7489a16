"""Samples of pre-training are distributed as those of Pillow and torchvision, however they are computed."""

import random

import cv2
import numpy as np
import pytest
import torch
from detectron2.config import get_cfg
from scipy.stats import ks_2samp

from benchmarks.speed.data import write_photos
from benchmarks.speed.reference_data import ReferenceMapper
from updetr_d2 import add_updetr_config
from updetr_d2.data.dataset_mappers import QueryPatchDatasetMapper

WIDTH, HEIGHT = 200, 150
NUM_SAMPLES = 200
# Kolmogorov-Smirnov distance that two samples of 2000 patches exceed with probability 1e-4.
LIMIT = 2.23 * np.sqrt(2 / 2000)


@pytest.fixture(name="samples", scope="module")
def samples_of_both(tmp_path_factory):
    """Boxes in the original image, patches B×H×W×3 and sizes of the resized images, of ours and the reference."""
    (file,) = write_photos(tmp_path_factory.mktemp("photo"), 1, WIDTH, HEIGHT)
    cfg = get_cfg()
    add_updetr_config(cfg)
    cfg.merge_from_file("configs/pretrain/updetr_r50_imagenet_60ep.yaml")
    np.random.seed(0)
    random.seed(0)
    torch.manual_seed(0)
    mapper, reference = QueryPatchDatasetMapper(cfg, True), ReferenceMapper(cfg)
    ours = [mapper({"file_name": file}) for _ in range(NUM_SAMPLES)]
    theirs = [reference(file) for _ in range(NUM_SAMPLES)]
    for sample in ours:
        height, width = sample["image"].shape[1:]
        scale = torch.tensor([width / WIDTH, height / HEIGHT] * 2)
        sample["original_boxes"] = sample["instances"].gt_boxes.tensor / scale
    return tuple(
        {
            "boxes": torch.cat([each["original_boxes"] for each in samples]).round().int().numpy(),
            "patches": torch.cat([each["patches"] for each in samples]).permute(0, 2, 3, 1).numpy(),
            "sizes": [tuple(each["image"].shape[1:]) for each in samples],
        }
        for samples in (ours, theirs)
    )


def sharpness(patches: np.ndarray) -> np.ndarray:
    """Second by first derivatives of each patch: less after a blur, the same for any contrast."""
    gray = [cv2.cvtColor(patch, cv2.COLOR_RGB2GRAY).astype(np.float32) for patch in patches]
    second, first = (
        np.array([np.abs(derivative(each)).mean() + 0.05 for each in gray])
        for derivative in (lambda x: cv2.Laplacian(x, -1), lambda x: cv2.Sobel(x, -1, 1, 0))
    )
    return second / first


STATISTICS = {
    "width": lambda each: each["boxes"][:, 2] - each["boxes"][:, 0],
    "height": lambda each: each["boxes"][:, 3] - each["boxes"][:, 1],
    "left": lambda each: each["boxes"][:, 0],
    "top": lambda each: each["boxes"][:, 1],
    "mean of red": lambda each: each["patches"][..., 0].mean(axis=(1, 2)),
    "mean of green": lambda each: each["patches"][..., 1].mean(axis=(1, 2)),
    "mean of blue": lambda each: each["patches"][..., 2].mean(axis=(1, 2)),
    "deviation of red": lambda each: each["patches"][..., 0].std(axis=(1, 2)),
    "deviation of green": lambda each: each["patches"][..., 1].std(axis=(1, 2)),
    "deviation of blue": lambda each: each["patches"][..., 2].std(axis=(1, 2)),
    "colour": lambda each: np.ptp(each["patches"], axis=3).mean(axis=(1, 2)),
    "sharpness": lambda each: sharpness(each["patches"]),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", STATISTICS)
def test_patches_are_distributed_alike(samples, name):
    ours, theirs = (STATISTICS[name](each) for each in samples)
    assert len(ours) == len(theirs) == 2000
    assert ks_2samp(ours, theirs).statistic < LIMIT


@pytest.mark.slow
def test_a_fifth_of_the_patches_is_grey(samples):
    for each in samples:
        grey = np.ptp(each["patches"], axis=3).max(axis=(1, 2)) == 0
        assert abs(grey.mean() - 0.2) < 4 * np.sqrt(0.2 * 0.8 / 2000)


@pytest.mark.slow
def test_images_have_the_same_sizes_equally_often(samples):
    ours, theirs = (each["sizes"] for each in samples)
    assert set(ours) == set(theirs)
    assert len(set(ours)) == 9  # 464 and 480 are limited to 450×600
    for size in set(ours):
        share = 0.2 if size == (450, 600) else 0.1
        assert abs(ours.count(size) - share * NUM_SAMPLES) < 4 * np.sqrt(share * (1 - share) * NUM_SAMPLES)
