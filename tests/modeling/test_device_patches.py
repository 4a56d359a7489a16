"""Patches made on the model's device are those that the loader worker would have made, up to rounding."""

import cv2
import numpy as np
import pytest
import torch
from helpers import random_sample, tiny_cfg, tiny_model
from PIL import Image
from pretend_cuda import CudaTensor, pretend_cuda, to_cuda
from torch.nn import functional as F

from updetr_d2.config.access import changed
from updetr_d2.data.dataset_mappers import query_patch
from updetr_d2.data.dataset_mappers.query_patch import QueryPatchDatasetMapper
from updetr_d2.data.loading.handover import pack
from updetr_d2.data.transforms import patch_augmentation as worker
from updetr_d2.engine.bad_batches import load_bad_batch, save_bad_batch
from updetr_d2.modeling import device_patches as device
from updetr_d2.modeling.device_patches import PLAN, augment, resize_weights, with_patches

CPU = torch.device("cpu")
KEY = "INPUT.QUERY_PATCH.ON_DEVICE"


def photo(height, width, seed=0):
    """Blobs with some detail in them."""
    rng = np.random.default_rng(seed)
    blobs = cv2.resize(
        rng.integers(0, 256, (8, 10, 3), dtype=np.uint8), (width, height), interpolation=cv2.INTER_CUBIC
    )
    detail = rng.normal(0, 12, (height // 3 + 1, width // 3 + 1, 3)).repeat(3, 0).repeat(3, 1)
    return (blobs + detail[:height, :width]).clip(0, 255).astype(np.uint8)


@pytest.mark.parametrize(
    ("start", "length", "size"), [(3, 40, 16), (0, 50, 17), (10, 7, 20), (4, 12, 12), (49, 1, 5)]
)
def test_parts_of_a_line_are_resized_as_pytorch_does(start, length, size):
    line = torch.rand(50)
    weights = resize_weights(torch.tensor([float(start)]), torch.tensor([float(length)]), size, 50)
    torch.testing.assert_close(weights.sum(dim=-1), torch.ones(1, size))
    expected = F.interpolate(
        line[None, None, None, start : start + length], size=(1, size), mode="bilinear", antialias=True
    )
    torch.testing.assert_close(weights[0] @ line, expected[0, 0, 0], rtol=1e-4, atol=1e-5)


def row(operation=-1, factor=1.0, gray=0, sigma=0.0):
    return [float(operation), -1, -1, -1, factor, 1, 1, 1, gray, sigma]


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        (row(device.BRIGHTNESS, 1.3), lambda x: worker.adjust_brightness(x, 1.3)),
        (row(device.CONTRAST, 0.6), lambda x: worker.adjust_contrast(x, 0.6)),
        (row(device.SATURATION, 1.4), lambda x: worker.adjust_saturation(x, 1.4)),
        (row(device.HUE, -0.1), lambda x: worker.adjust_hue(x, -0.1)),
        (row(device.HUE, 0.5), lambda x: worker.adjust_hue(x, 0.5)),
        (row(gray=1), worker.to_grayscale),
        (row(sigma=0.2), lambda x: worker.gaussian_blur(x, 0.2)),
        (row(sigma=1.7), lambda x: worker.gaussian_blur(x, 1.7)),
        (row(), lambda x: x),
    ],
)
def test_each_operation_is_the_worker_s(changes, expected):
    patches = np.stack([photo(40, 40, seed) for seed in range(3)])
    # The second patch stays as it is.
    rows = torch.tensor([changes, row(), changes])
    found = augment(torch.from_numpy(patches).permute(0, 3, 1, 2).float(), rows).permute(0, 2, 3, 1).numpy()
    for i in (0, 2):
        difference = np.abs(found[i] - expected(patches[i]).astype(float))
        assert difference.max() <= 1
        assert difference.mean() < 0.1
    assert np.array_equal(found[1], patches[1])


def mappers(*options):
    """The mapper that makes patches and the one that plans them."""
    cfg = tiny_cfg("UPDETR", "INPUT.QUERY_PATCH.SIZE", 64, "MODEL.UPDETR.NUM_PATCHES", 10, *options)
    cfg = changed(cfg, ["MODEL.DETR.NUM_QUERIES", 20])
    return [QueryPatchDatasetMapper(changed(cfg, [KEY, value]), is_train=True) for value in (False, True)]


def samples_of(mapper, folder, count):
    samples = []
    for seed in range(count):
        path = folder / f"{seed}.png"
        Image.fromarray(photo(150, 200, seed)).save(path)
        np.random.seed(seed)
        samples.append(mapper({"file_name": str(path)}))
    return samples


@pytest.mark.parametrize("image_format", ["RGB", "BGR"])
def test_plans_give_the_patches_of_the_worker(tmp_path, image_format):
    """With the same random numbers, so that the distribution is the same as well."""
    made, planned = (samples_of(mapper, tmp_path, 6) for mapper in mappers("INPUT.FORMAT", image_format))
    assert all("patches" not in sample for sample in planned)
    differences = []
    for expected, found in zip(made, with_patches(planned, CPU)):
        assert found.keys() == expected.keys()
        assert torch.equal(found["image"], expected["image"])
        assert torch.equal(found["instances"].gt_boxes.tensor, expected["instances"].gt_boxes.tensor)
        assert found["patches"].dtype == torch.uint8
        difference = (found["patches"].float() - expected["patches"].float()).abs()
        differences.append(difference.mean(dim=(1, 2, 3)))
    # A gray level from resizing, which contrast and saturation enlarge.
    assert torch.cat(differences).max() < 1.5
    assert torch.cat(differences).mean() < 0.4


def test_statistics_of_all_patches_are_the_worker_s(tmp_path):
    made, planned = (samples_of(mapper, tmp_path, 8) for mapper in mappers())
    patches = torch.cat([x["patches"] for x in made]).float()
    others = torch.cat([x["patches"] for x in with_patches(planned, CPU)]).float()
    for statistic in (
        lambda x: x.mean(dim=(2, 3)),
        lambda x: x.std(dim=(2, 3)),
        lambda x: (x.amax(dim=1) - x.amin(dim=1)).mean(dim=(1, 2)),  # colorfulness
        lambda x: x.diff(dim=3).abs().mean(dim=(1, 2, 3)),  # sharpness
    ):
        torch.testing.assert_close(statistic(others), statistic(patches), rtol=0.03, atol=1.0)


def test_large_images_and_evaluation_stay_with_the_worker(tmp_path, monkeypatch):
    _, planning = mappers()
    monkeypatch.setattr(query_patch, "_MOST_PIXELS", 150 * 200 - 1)
    assert "patches" in samples_of(planning, tmp_path, 1)[0]
    cfg = tiny_cfg("UPDETR", KEY, True)
    assert "patches" in samples_of(QueryPatchDatasetMapper(cfg, is_train=False), tmp_path, 1)[0]


def test_a_model_trains_on_plans_and_patches_in_one_batch(tmp_path):
    made, planned = (samples_of(mapper, tmp_path, 2) for mapper in mappers("INPUT.MIN_SIZE_TRAIN", (64,)))
    options = ("MODEL.UPDETR.NUM_PATCHES", 10, "MODEL.DETR.NUM_QUERIES", 20, "MODEL.UPDETR.MASK_RATIO", 0.0)
    torch.manual_seed(0)
    model = tiny_model("UPDETR", *options)
    expected = model(made)
    plan = pack([made[0], planned[1]]).unpack()  # as it comes from a loader worker
    for name, value in model(plan).items():
        torch.testing.assert_close(value, expected[name], rtol=0.05, atol=0.02)
    assert PLAN in plan[1]  # samples stay as they are


def test_plans_of_a_bad_batch_are_saved(tmp_path):
    _, planning = mappers()
    (sample,) = samples_of(planning, tmp_path, 1)
    path = save_bad_batch(str(tmp_path), [sample], iteration=1, rank=0, seed=0, scalars={})
    (loaded,) = load_bad_batch(path)["batch"]
    assert torch.equal(with_patches([loaded], CPU)[0]["patches"], with_patches([sample], CPU)[0]["patches"])


def test_nothing_waits_for_the_device(tmp_path):
    _, planning = mappers("INPUT.MIN_SIZE_TRAIN", (64,))
    samples = samples_of(planning, tmp_path, 3)
    expected = with_patches(samples, CPU)
    with pretend_cuda() as mode:
        found = with_patches(samples, torch.device("cuda"))
    for one, other in zip(found, expected):
        assert isinstance(one["patches"], CudaTensor)
        assert torch.equal(one["patches"].inner, other["patches"])
    assert {kind for kind, _ in mode.events} == {"copy to the device"}


def test_the_whole_step_waits_no_more_than_without(tmp_path):
    made, planned = (samples_of(mapper, tmp_path, 2) for mapper in mappers("INPUT.MIN_SIZE_TRAIN", (64,)))
    kinds = []
    for samples in (made, planned):
        model = to_cuda(tiny_model("UPDETR", "MODEL.UPDETR.NUM_PATCHES", 10, "MODEL.DETR.NUM_QUERIES", 20))
        with pretend_cuda() as mode:
            model(samples)
        kinds.append({k: n for k, n in mode.events.items() if k[0] != "copy to the device"})
    assert kinds[0] == kinds[1]


def test_samples_without_plans_are_left_alone():
    sample = random_sample(num_patches=5)
    (same,) = with_patches([sample], CPU)
    assert same is sample
