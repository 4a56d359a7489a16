"""tools/benchmark.py: every subcommand runs on a small model, and the reference gives the same numbers."""

import json

from helpers import load_tool
from PIL import Image

CONFIG = "configs/pretrain/updetr_r50_imagenet_60ep.yaml"
TINY = (
    *("MODEL.DEVICE", "cpu", "MODEL.DETR.NUM_QUERIES", "20", "MODEL.UPDETR.NUM_PATCHES", "5"),
    *("MODEL.DETR.ENC_LAYERS", "2", "MODEL.DETR.DEC_LAYERS", "2"),
)


def run(tmp_path, command: str, *arguments: str) -> dict:
    """The JSON report of a run with one repeat on tiny settings."""
    output = tmp_path / "report.json"
    load_tool("benchmark").main(
        [
            *(command, "--config-file", CONFIG, "--repeats", "1", "--json", str(output)),
            *(*arguments, "--compare", *TINY),
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
