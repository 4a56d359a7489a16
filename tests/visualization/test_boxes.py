"""Pictures show the image, every query patch in its colour, and boxes where they are."""

import numpy as np
import torch
from detectron2.structures import Boxes, Instances
from helpers import random_sample
from PIL import Image

from updetr_d2.visualization.boxes import draw_query_patch_sample, patch_colors, save_picture


def prediction(sample, boxes, original_size):
    return Instances(
        original_size,
        pred_boxes=Boxes(boxes),
        scores=torch.full((len(boxes),), 0.5),
        pred_patches=torch.arange(len(boxes)),
    )


def color_share(picture, color, tolerance=40):
    return (np.abs(picture.astype(int) - np.round(255 * color)).max(axis=-1) < tolerance).mean()


def test_every_patch_has_a_colour_of_its_own_in_the_picture():
    sample = random_sample(96, 128, num_patches=6)
    sample["image"].fill_(128)
    sample["patches"].fill_(128)
    picture = draw_query_patch_sample(
        sample, prediction(sample, sample["instances"].gt_boxes.tensor, (96, 128)), "RGB"
    )
    assert picture.dtype == np.uint8
    assert picture.ndim == 3
    colors = patch_colors(6)
    assert min(np.abs(a - b).max() for i, a in enumerate(colors) for b in colors[:i]) > 0.2
    assert all(color_share(picture, color) > 0.001 for color in colors)


def test_predictions_in_original_pixels_are_drawn_in_the_resized_image():
    sample = random_sample(64, 64, num_patches=1)
    sample["image"].fill_(255)
    sample["patches"].fill_(255)
    true_boxes = torch.tensor([[8.0, 8.0, 56.0, 56.0]])
    sample["instances"].gt_boxes = Boxes(true_boxes)
    same = draw_query_patch_sample(sample, prediction(sample, true_boxes, (64, 64)), "RGB")
    scaled = draw_query_patch_sample(sample, prediction(sample, true_boxes * 4, (256, 256)), "RGB")
    assert np.array_equal(same, scaled)


def test_bgr_samples_give_the_same_picture_as_rgb():
    sample = random_sample(64, 80, num_patches=2)
    output = prediction(sample, sample["instances"].gt_boxes.tensor, (64, 80))
    bgr = {**sample, "image": sample["image"].flip(0), "patches": sample["patches"].flip(1)}
    assert np.array_equal(
        draw_query_patch_sample(sample, output, "RGB"), draw_query_patch_sample(bgr, output, "BGR")
    )


def test_any_number_of_patches_fits():
    for count in (1, 3, 25):
        sample = random_sample(64, 160, num_patches=count)
        output = prediction(sample, sample["instances"].gt_boxes.tensor, (64, 160))
        assert min(draw_query_patch_sample(sample, output, "RGB").shape[:2]) > 100


def test_save_makes_the_folder(tmp_path):
    picture = np.full((4, 5, 3), (10, 20, 30), dtype=np.uint8)
    save_picture(picture, str(tmp_path / "a" / "b.png"))
    assert np.array_equal(np.asarray(Image.open(tmp_path / "a" / "b.png")), picture)
