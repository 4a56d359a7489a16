"""tools/benchmark.py: every subcommand runs on a small model, and the reference gives the same numbers."""

import json

import pytest
import torch
from helpers import tiny_cfg
from PIL import Image

from benchmarks.speed import benchmark
from benchmarks.speed.reference_model import PlainDETR
from benchmarks.speed.step import check_same_losses
from benchmarks.speed.synthetic import build_random_model, random_samples

CONFIG = "configs/pretrain/updetr_r50_imagenet_60ep.yaml"
TINY = (
    *("MODEL.DEVICE", "cpu", "MODEL.DETR.NUM_QUERIES", "20", "MODEL.UPDETR.NUM_PATCHES", "5"),
    *("MODEL.DETR.ENC_LAYERS", "2", "MODEL.DETR.DEC_LAYERS", "2"),
)


def run(tmp_path, command: str, *arguments: str) -> dict:
    """The JSON report of a run with one repeat on tiny settings."""
    output = tmp_path / "report.json"
    benchmark.main(
        [
            *(command, "--config-file", CONFIG, "--repeats", "1", "--json", str(output)),
            *("--compare", *arguments, *TINY),
        ]
    )
    return json.loads(output.read_text())


def test_matcher_report_has_times_ratio_and_environment(tmp_path):
    report = run(tmp_path, "matcher", "--batch-sizes", "2", "3", "--targets", "4")
    assert [row["name"] for row in report["measurements"]] == [
        "matcher, 2 layers, batch 2, 4 targets",
        "matcher, 2 layers, batch 3, 4 targets",
    ]
    for row in report["measurements"]:
        assert row["ratio"] == row["reference_median_s"] / row["median_s"]
    assert {"device", "threads", "torch"} <= report["environment"].keys()
    assert report["command"].startswith("python tools/benchmark.py matcher --config-file")


def test_data_report_compares_the_sample_and_each_part(tmp_path):
    report = run(tmp_path, "data", "--num-images", "2", "--image-size", "160", "120")
    names = [row["name"] for row in report["measurements"]]
    assert names[0] == "sample, generated 160x120 JPEG, 5 patches"
    assert [name.removeprefix("sample / ") for name in names[1:]] == [
        *("decode", "crop and resize patches", "augment patches", "resize image", "to tensors"),
    ]
    assert all(row["ratio"] and row["images_per_s"] for row in report["measurements"])


def test_data_takes_images_of_ones_own(tmp_path):
    (tmp_path / "images").mkdir()
    for i in range(3):
        Image.new("RGB", (64, 48)).save(tmp_path / "images" / f"{i}.png")
    report = run(tmp_path, "data", "--images", str(tmp_path / "images"), "--num-images", "2")
    assert report["measurements"][0]["name"] == "sample, own images, 5 patches"


def test_step_is_broken_down_and_the_reference_has_the_same_losses(tmp_path):
    """Unequal losses would end the run, see check_same_losses."""
    small = ("MODEL.RESNETS.DEPTH", "18")
    report = run(tmp_path, "step", "--image-size", "64", "96", *small)
    names = [row["name"] for row in report["measurements"]]
    assert names[0] == "step, batch 2"
    assert set(names[1:]) == {
        f"step / {part}"
        for part in ("backbone, images", "backbone, patches", "transformer", "matcher", "losses")
        + ("other forward", "backward", "clipping and optimiser")
    }
    assert all(row["reference_seconds"] for row in report["measurements"])


TIMM = (
    *("MODEL.BACKBONE.NAME", "build_timm_backbone", "MODEL.TIMM.NAME", "tf_efficientnet_lite0"),
    *("MODEL.TIMM.OUT_FEATURES", ["res4"], "MODEL.DETR.IN_FEATURE", "res4"),
)


@pytest.mark.parametrize(
    "options",
    [(), ("MODEL.UPDETR.MATCH_WITHIN_GROUPS", True), TIMM],
    ids=["as in the paper", "matched within groups", "timm"],
)
def test_a_reference_with_other_losses_is_refused(options):
    if options == TIMM:
        pytest.importorskip("timm")
    cfg = tiny_cfg("UPDETR", *options)
    model = build_random_model(cfg)
    samples = random_samples(cfg, batch_size=2, size=(60, 90), num_targets=3)
    reference = PlainDETR(model, cfg)
    check_same_losses(model, reference, samples)
    with torch.no_grad():
        reference.bbox_embed.layers[0].weight.mul_(1.1)
    with pytest.raises(AssertionError, match="loss_bbox"):
        check_same_losses(model, reference, samples)


def test_criterion_compares_losses_with_their_gradient(tmp_path):
    report = run(tmp_path, "criterion", "--batch-sizes", "2", "--targets", "4")
    (row,) = report["measurements"]
    assert row["name"] == "criterion, 2 layers, batch 2, 4 targets" and row["ratio"]


def test_mask_head_measures_matched_queries_and_all(tmp_path):
    report = run(tmp_path, "mask-head", "--image-size", "64", "64", "--targets", "2")
    assert [row["name"] for row in report["measurements"]] == [
        "mask head, training, 2 matched queries",
        "mask head, inference, 20 queries",
    ]


def test_deformable_attention_compares_tokens_and_object_queries(tmp_path):
    report = run(tmp_path, "deformable-attention", "--image-sizes", "16", "--queries", "5")
    assert [row["name"] for row in report["measurements"]] == [
        f"16 px, {queries}, {part}"
        for queries in ("7 tokens", "5 object queries")
        for part in ("forward", "forward and backward")
    ]
    assert all(row["ratio"] for row in report["measurements"])


def test_inference_compares_whole_predictions(tmp_path):
    small = ("MODEL.RESNETS.DEPTH", "18")
    (row,) = run(tmp_path, "inference", "--image-size", "64", "96", *small)["measurements"]
    assert row["name"] == "inference, UPDETR, batch 1, 64x96" and row["ratio"]


@pytest.mark.slow
def test_scale_changes_one_thing_at_a_time_and_compares_processes(tmp_path):
    small = ("MODEL.RESNETS.DEPTH", "18")
    lists = ("--batch-sizes", "1", "2", "--patches", "1", "--queries", "40", "--image-sides", "64")
    rows = run(tmp_path, "scale", *lists, "--threads", "1", *small)["measurements"]
    assert [row["name"] for row in rows] == [
        "step, batch 1, side 64, patches 5, queries 20",
        "step, batch 2, side 64, patches 5, queries 20",
        "step, batch 1, side 64, patches 5, queries 40",
        "step, batch 1, side 64, patches 1, queries 20",
        "step, 2 processes, batch 1 each",
    ]
    assert "overhead %" in rows[-1]
