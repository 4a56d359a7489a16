"""The report of a run: one page that holds everything and asks for nothing, for every task, finished or not."""

import html
import json
import os
import re
import subprocess
import sys

import numpy as np
import pytest
from errors_file import write_errors
from helpers import SMALL_PRETRAINING, TOOLS, tiny_cfg
from html_page import Page
from PIL import Image

from updetr_d2.cli import report

METRICS = {
    "UPDETR": ("query_patch/AP", "loss_feature"),
    "DETR": ("bbox/AP", "loss_bbox"),
    "PanopticDETR": ("panoptic_seg/PQ", "loss_mask"),
    "OneShotDETR": ("oneshot/unseen_AP50", "loss_ce"),
}


@pytest.fixture(name="tool", scope="module")
def _tool():
    return report


def make_run(folder, kind, values=(1.0, 2.0), **options):
    """A folder as a run of ``kind`` leaves it; ``values`` are those of its metric at each evaluation."""
    folder.mkdir(parents=True)
    settings = ["SOLVER.MAX_ITER", 40, "DATASETS.TEST", ("val",)]
    (folder / "config.yaml").write_text(tiny_cfg(kind, *settings).dump())
    metric, loss = METRICS[kind]
    lines = []
    for i, value in enumerate(values, start=1):
        lines.append({"iteration": 10 * i - 1, "total_loss": 9.0 / i, loss: 5.0 / i, "lr": 0.1})
        lines.append(
            {"iteration": 10 * i, metric: value, f"{metric}-cat": value / 2, "bbox/APl": float("nan")}
        )
    (folder / "metrics.json").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


@pytest.mark.parametrize("kind", METRICS)
def test_runs_of_every_task_are_told_in_one_page(tool, tmp_path, kind):
    a = make_run(tmp_path / "a", kind)
    b = make_run(tmp_path / "b", kind, values=(3.25, 4.5))
    pixels = np.zeros((40, 1500, 3), np.uint8)
    pixels[:, :750] = (200, 30, 90)
    (b / "pictures").mkdir()
    Image.fromarray(pixels).save(b / "pictures/0.png")
    (b / "model_final.pth").touch()
    assert tool.main([str(a), str(b), "--output", str(tmp_path / "out/page.html")]) == 0
    page = Page((tmp_path / "out/page.html").read_text())

    assert [kind, "val", "unfinished: 20 of 40 iterations"] == [page.rows[1][i] for i in (1, 3, 4)]
    assert page.rows[2][4] == "finished: 40 iterations"
    metric = METRICS[kind][0]
    assert [metric, "2", "4.5"] in page.rows
    assert [f"{metric}-cat", "1", "2.25"] in page.rows
    assert ["bbox/APl", "–", "–"] in page.rows  # nothing to measure
    curves, picture = page.pictures()
    assert curves.format == "PNG" and len(curves.convert("L").getcolors()) > 20
    assert picture.width == 960
    assert np.abs(np.array(picture)[5, 100].astype(int) - (200, 30, 90)).max() < 10


def test_the_page_asks_for_nothing(tool, tmp_path):
    run = make_run(tmp_path / "run", "DETR")
    assert tool.main([str(run)]) == 0
    text = (run / "report.html").read_text()
    page = Page(text)
    assert page.addresses and all(address.startswith("data:image/") for address in page.addresses)
    assert not page.tags & {"script", "link", "iframe"}
    assert "url(" not in text and "@import" not in text


def test_everything_that_a_run_says_is_text(tool, tmp_path):
    """Names and values with markup in them cannot become markup."""
    evil = '<script>alert("1")</script>'
    run = make_run(tmp_path / "run", "DETR")
    config = (run / "config.yaml").read_text().replace("- val", f"- '{evil}'")
    (run / "config.yaml").write_text(config)
    line = {"iteration": 30, f"bbox/{evil}": 1.0}
    (run / "metrics.json").write_text((run / "metrics.json").read_text() + json.dumps(line) + "\n")
    options = f"opts=['SEED', '{evil}']"
    (run / "log.txt").write_text(
        f"[11/24 10:00:00] d2 INFO: Command line arguments: Namespace(config_file='{evil}', {options})\n"
    )
    assert tool.main([str(run), "--labels", evil, "--title", evil]) == 0
    text = (run / "report.html").read_text()
    assert "<script" not in text
    assert (
        text.count(html.escape(evil, quote=False))
        + text.count(str(html.escape(evil).replace("&quot;", "&#34;")))
        >= 6
    )


def test_a_run_that_has_not_logged_yet_has_a_page(tool, tmp_path):
    run = make_run(tmp_path / "run", "UPDETR", values=())
    assert tool.main([str(run)]) == 0
    text = (run / "report.html").read_text()
    assert "unfinished: 0 of 40 iterations" in text and "Nothing has been evaluated yet." in text
    assert Page(text).images == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere"], "nowhere is no OUTPUT_DIR of a run"),
        (["run", "run"], "as many different labels"),
        (["run", "--labels", "a", "b"], "as many different labels"),
    ],
)
def test_mistakes_are_answered_in_a_sentence(tool, tmp_path, monkeypatch, capsys, arguments, message):
    make_run(tmp_path / "run", "DETR")
    monkeypatch.chdir(tmp_path)
    assert tool.main([*arguments, "--output", "page.html"]) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: ") and message in error and error.count("\n") == 1
    assert not (tmp_path / "page.html").exists()


@pytest.mark.slow
def test_a_real_run_is_told_with_its_command(tool, tmp_path):
    """Two iterations of pre-training: what was changed, what was found, pictures, environment."""
    (tmp_path / "photos").mkdir()
    rng = np.random.default_rng(0)
    for i in range(4):
        noise = Image.fromarray(rng.integers(256, size=(8, 8, 3), dtype=np.uint8))
        noise.resize((96, 64), Image.Resampling.BICUBIC).save(tmp_path / "photos" / f"{i}.jpg")
    data = f'("folder:{tmp_path / "photos"}",)'
    recipe = "configs/pretrain/updetr_r50_imagenet_60ep.yaml"
    options = ["DATASETS.TRAIN", data, "DATASETS.TEST", data, "OUTPUT_DIR", str(tmp_path / "run")]
    options += [*SMALL_PRETRAINING, "SOLVER.MAX_ITER", "2", "SOLVER.IMS_PER_BATCH", "2"]
    command = [sys.executable, str(TOOLS / "train_net.py"), "--config-file", recipe, *options]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "UPDETR_D2_CACHE": str(tmp_path / "cache")}
    done = subprocess.run(command, cwd=TOOLS.parent, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]

    assert tool.main([str(tmp_path / "run")]) == 0
    text = (tmp_path / "run/report.html").read_text()
    page = Page(text)
    assert "finished: 2 iterations" in text
    assert [row for row in page.rows if row[0] == "query_patch/AP50"]
    assert ["SOLVER.MAX_ITER", "0", "2"] in page.rows
    assert [row for row in page.rows if row[0] == "PyTorch"]
    assert len(page.pictures()) >= 2  # curves and what was found
    told = html.unescape(re.search(r"<pre>(updetr train .*?)</pre>", text, flags=re.DOTALL)[1])
    assert recipe in told and f"'{data}'" in told


FILES = (
    *("config.yaml", "log.txt", "metrics.json", "inference/a/bbox_results.json", "pictures/0.png"),
    *("inference/a/errors.json", "inference/a/errors/worst/0.jpg"),
)


def damage(content: bytes, rng: np.random.Generator) -> bytes:
    """A file cut off, with other bytes, of another form, or with values of other types."""
    kind = rng.integers(4)
    if kind == 0:
        return content[: rng.integers(len(content))]
    if kind == 1:
        changed = bytearray(content)
        for place in rng.integers(len(content), size=8):
            changed[place] = rng.integers(256)
        return bytes(changed)
    if kind == 2:
        return rng.choice([b"", b"[1, 2]\n", b"{}\n", b"\xff\xfe\0", b"[" * 5000, b"null\n", b"a: &a [*a]\n"])
    value = rng.choice([b"null", b"[]", b'"x"', b"-1", b"1" + b"0" * 400, b"{}", b"NaN", b"true"])
    return re.sub(rb"\d+", value, content)


@pytest.mark.parametrize("seed", range(16))
def test_a_damaged_run_folder_has_a_page_all_the_same(tmp_path, seed):
    rng = np.random.default_rng(seed)
    for file in FILES:
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / "config.yaml").write_text(tiny_cfg("DETR", "SOLVER.MAX_ITER", 40).dump())
    (tmp_path / "log.txt").write_text(
        "Command line arguments: Namespace(config_file='a.yaml', num_gpus=1, opts=['SEED', '1'])\n"
    )
    records = [{"iteration": i, "total_loss": 1.5, "bbox/AP": 2.5} for i in range(3)]
    (tmp_path / "metrics.json").write_text("".join(json.dumps(record) + "\n" for record in records))
    (tmp_path / "inference/a/bbox_results.json").write_text(json.dumps({"AP": 12.5}))
    for picture in ("pictures/0.png", "inference/a/errors/worst/0.jpg"):
        Image.fromarray(rng.integers(0, 256, (40, 48, 3), dtype=np.uint8)).save(tmp_path / picture)
    write_errors(tmp_path / "inference/a/errors.json")
    for file in rng.choice(FILES, size=2, replace=False):
        (tmp_path / file).write_bytes(damage((tmp_path / file).read_bytes(), rng))
    assert report.main([str(tmp_path)]) == 0
    Page((tmp_path / "report.html").read_text())
