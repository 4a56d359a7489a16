"""The augmentation of patches does what torchvision's transforms do, to about a grey level."""

import cv2
import numpy as np
import pytest
import torch
from detectron2.config import get_cfg
from scipy.ndimage import gaussian_filter
from scipy.stats import ks_2samp
from torchvision.transforms import functional as F
from torchvision.transforms import v2

from updetr_d2 import add_updetr_config
from updetr_d2.data.transforms import patch_augmentation
from updetr_d2.data.transforms.patch_augmentation import PatchAugmentation

NO_AUGMENTATION = {
    "jitter_prob": 0.0,
    "brightness": 0.4,
    "contrast": 0.4,
    "saturation": 0.4,
    "hue": 0.1,
    "grayscale_prob": 0.0,
    "blur_prob": 0.0,
    "blur_sigma": (0.1, 2.0),
}


def colourful(size: int = 64, seed: int = 0) -> np.ndarray:
    """Smooth blobs of all colours with some noise: uint8 size×size×3."""
    rng = np.random.default_rng(seed)
    blobs = cv2.resize(rng.uniform(-60, 315, (5, 5, 3)), (size, size), interpolation=cv2.INTER_CUBIC)
    return np.clip(blobs + rng.normal(0, 4, blobs.shape), 0, 255).astype(np.uint8)


def with_torchvision(function, image: np.ndarray, *args) -> np.ndarray:
    return function(torch.from_numpy(image).permute(2, 0, 1), *args).permute(1, 2, 0).numpy()


@pytest.mark.parametrize(
    ("name", "factors"),
    [
        ("adjust_brightness", (0.0, 0.6, 1.0, 1.4)),
        ("adjust_contrast", (0.0, 0.6, 1.0, 1.4)),
        ("adjust_saturation", (0.0, 0.6, 1.0, 1.4)),
        ("adjust_hue", (-0.5, -0.1, 0.0, 0.037, 0.1, 0.5)),
    ],
)
def test_each_adjustment_equals_torchvisions(name, factors):
    for factor in factors:
        for image in (colourful(), np.full((4, 4, 3), 77, np.uint8), np.zeros((4, 4, 3), np.uint8)):
            ours = getattr(patch_augmentation, name)(image, factor).astype(int)
            reference = with_torchvision(getattr(F, name), image, factor).astype(int)
            assert np.abs(ours - reference).max() <= 2, factor
            if (
                len(image) > 4
            ):  # torchvision rounds the grey of tensors down, that of Pillow images to nearest
                assert abs((ours - reference).mean()) < 0.6, factor


def test_greyscale_equals_torchvisions():
    ours = patch_augmentation.to_grayscale(colourful()).astype(int)
    reference = with_torchvision(F.rgb_to_grayscale, colourful(), 3).astype(int)
    assert np.abs(ours - reference).max() <= 1


@pytest.mark.parametrize("sigma", [0.1, 0.5, 1.0, 2.0])
def test_blur_is_a_gaussian(sigma):
    image = colourful()
    reference = gaussian_filter(image.astype(float), (sigma, sigma, 0), mode="nearest")
    assert np.abs(patch_augmentation.gaussian_blur(image, sigma) - reference).max() <= 2


def test_the_whole_has_the_statistics_of_torchvisions():
    """Mean, contrast, colourfulness and sharpness of many augmented copies are distributed alike."""
    cfg = get_cfg()
    add_updetr_config(cfg)
    augment = PatchAugmentation(cfg)
    reference = v2.Compose(
        [
            v2.RandomApply([v2.ColorJitter(0.4, 0.4, 0.4, 0.1)], p=0.8),
            v2.RandomGrayscale(p=0.2),
            v2.RandomApply([v2.GaussianBlur(13, sigma=(0.1, 2.0))], p=0.5),
        ]
    )
    image = colourful(32)
    rng = np.random.default_rng(0)
    torch.manual_seed(0)
    num_copies = 1000
    ours = [augment(image, rng) for _ in range(num_copies)]
    theirs = [with_torchvision(reference, image) for _ in range(num_copies)]
    for statistic in (
        lambda x: x.mean(),
        lambda x: x.astype(float).mean(axis=2).std(),
        lambda x: np.ptp(x.astype(int), axis=2).mean(),
        lambda x: x[..., 0].mean() - x[..., 2].mean(),
        lambda x: np.abs(np.diff(x.astype(float).mean(axis=2))).mean(),
    ):
        sample, expected = ([statistic(x) for x in copies] for copies in (ours, theirs))
        assert ks_2samp(sample, expected).statistic < 0.09  # p = 0.001 for 1000 of each


def test_probabilities():
    image = colourful(16)
    rng = np.random.default_rng(0)
    for key, probability in (("jitter_prob", 0.8), ("grayscale_prob", 0.2), ("blur_prob", 0.5)):
        augment = PatchAugmentation(**NO_AUGMENTATION | {key: probability})
        changed = np.mean([not np.array_equal(augment(image, rng), image) for _ in range(2000)])
        assert abs(changed - probability) < 0.05, key


def test_nothing_but_the_colours_change_without_blur():
    """No flip and no geometric change: the largest pixels of a ramp stay where they are."""
    ramp = np.repeat(np.arange(0, 240, 4, dtype=np.uint8)[None, :, None], 20, axis=0).repeat(3, axis=2)
    augment = PatchAugmentation(**NO_AUGMENTATION | {"jitter_prob": 1.0})
    rng = np.random.default_rng(0)
    for _ in range(50):
        assert (np.diff(augment(ramp, rng)[..., 0].astype(int), axis=1) >= 0).all()


def test_same_generator_state_same_patch_and_the_input_stays():
    image = colourful()
    before = image.copy()
    augment = PatchAugmentation(**NO_AUGMENTATION | {"jitter_prob": 1.0, "blur_prob": 0.5})
    first, second, other = (augment(image, np.random.default_rng(seed)) for seed in (1, 1, 2))
    np.testing.assert_array_equal(first, second)
    assert not np.array_equal(first, other)
    np.testing.assert_array_equal(image, before)


@pytest.mark.parametrize(
    ("change", "key"),
    [
        ({"jitter_prob": 1.5}, "COLOR_JITTER_PROB"),
        ({"hue": 0.6}, "HUE"),
        ({"contrast": -1}, "CONTRAST"),
        ({"blur_sigma": (0, 1)}, "BLUR_SIGMA"),
    ],
)
def test_impossible_strengths_are_an_error_that_names_the_key(change, key):
    with pytest.raises(ValueError, match=f"INPUT.QUERY_PATCH.{key}"):
        PatchAugmentation(**NO_AUGMENTATION | change)
