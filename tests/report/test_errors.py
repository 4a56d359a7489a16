"""What a detector does wrong on the page of its run: numbers, figures, pictures, suspicious labels."""

import pytest
from errors_file import write_errors
from helpers import tiny_cfg
from html_page import Page
from PIL import Image

from updetr_d2.report.errors import ErrorAnalysis
from updetr_d2.report.run_folder import RunFolder
from updetr_d2.report.run_page import render


def make_run(folder, *, inference="inference/val", **changes):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.yaml").write_text(tiny_cfg("DETR", "SOLVER.MAX_ITER", 40).dump())
    errors = folder / inference / "errors"
    (errors / "worst").mkdir(parents=True)
    Image.new("RGB", (64, 48), (200, 30, 90)).save(errors / "worst/0.jpg")
    write_errors(folder / inference / "errors.json", **changes)
    return folder


def test_the_page_of_a_run_shows_its_errors(tmp_path):
    text = render({"mine": RunFolder.read(make_run(tmp_path / "run"))}, title="t")
    page = Page(text)
    assert "What goes wrong on val" in page.headings and "The worst images" in page.headings
    assert "mine: AP50 50.0 on 1000 of 5000 images, drawn at random." in text
    header = [
        "detector",
        "score from",
        "right",
        "localization",
        "class",
        "duplicate",
        "background",
        "both",
        "missed",
    ]
    assert page.rows[page.rows.index(header) + 1] == ["mine", "0.25", "7", "0", "1", "2", "3", "4", "5"]
    assert ["no label", "a/0.jpg", "1, 2, 3, 5", "cat 0.91", "–"] in page.rows
    assert "0.jpg: 2 wrong" in text and "inference/val/errors" not in " ".join(page.headings)
    # Costs, precision, precision of each class, confusion, and the picture once.
    assert [picture.format for picture in page.pictures()] == ["PNG"] * 4 + ["JPEG"]
    assert all(address.startswith("data:") for address in page.addresses)


def test_runs_on_one_data_set_are_compared(tmp_path):
    runs = {name: RunFolder.read(make_run(tmp_path / name)) for name in ("a", "b")}
    page = Page(render(runs, title="t"))
    assert page.headings.count("What goes wrong on val") == 1
    rows = [row[:2] for row in page.rows if row[1:2] == ["0.25"]]
    assert rows == [["a", "0.25"], ["b", "0.25"]]
    assert len([each for each in page.pictures() if each.format == "PNG"]) == 4  # and a matrix for each


def test_averaged_weights_and_other_data_sets_are_told_apart(tmp_path):
    run = make_run(tmp_path / "run")
    make_run(run, inference="ema/inference/val")
    make_run(run, inference="inference/other", dataset="other")
    page = Page(render({"mine": RunFolder.read(run)}, title="t"))
    assert {"What goes wrong on val", "What goes wrong on other"} <= set(page.headings)
    assert {"mine", "mine, ema"} <= {row[0] for row in page.rows if row}


def test_what_the_file_says_is_text(tmp_path):
    evil = "<script>alert(1)</script>"
    run = make_run(tmp_path / "run", dataset=evil, pictures={"worst": {"0.jpg": evil}, evil: {}})
    text = render({"mine": RunFolder.read(run)}, title="t")
    assert "<script" not in text and "&lt;script" in text


@pytest.mark.parametrize(
    "changes",
    [
        {"pictures": 5},
        {"suspicious_labels": [{}]},
        {"suspicious_labels": None},
        {"num_images": "x"},
        {"AP50": []},
    ],
)
def test_a_damaged_file_is_named_and_the_rest_shown(tmp_path, changes):
    run = make_run(tmp_path / "run", **changes)
    with pytest.raises(ValueError):
        ErrorAnalysis.read(run / "inference/val/errors.json")
    text = render({"mine": RunFolder.read(run)}, title="t")
    assert "errors.json cannot be read" in text and "What goes wrong" not in text


def test_a_damaged_picture_is_named_and_the_rest_shown(tmp_path):
    run = make_run(tmp_path / "run")
    (run / "inference/val/errors/worst/0.jpg").write_bytes(b"nothing")
    text = render({"mine": RunFolder.read(run)}, title="t")
    assert "0.jpg is no picture" in text and "What goes wrong" in text
