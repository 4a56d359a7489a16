"""The lines of ERRORS.md that read results with pycocotools run as they stand there."""

import json
import runpy
import sys

from docs.pages import python_files


def test_results_are_read_with_pycocotools(tmp_path, monkeypatch, capsys):
    (tmp_path / "read_results.py").write_text(python_files("docs/ERRORS.md")["read_results.py"])
    box = {"image_id": 3, "category_id": 7, "bbox": [1, 2, 10, 10]}
    labels = {
        "images": [{"id": 3, "width": 20, "height": 20}],
        "annotations": [{"id": 1, "area": 100, "iscrowd": 0, **box}],
        "categories": [{"id": 7, "name": "cat"}],
    }
    (tmp_path / "val.json").write_text(json.dumps(labels))
    (tmp_path / "results.json").write_text(json.dumps([{**box, "score": 0.5}]))
    monkeypatch.setattr(sys, "argv", ["read", f"{tmp_path}/val.json", f"{tmp_path}/results.json"])
    runpy.run_path(str(tmp_path / "read_results.py"))
    assert capsys.readouterr().out.rstrip().endswith("AP50 100.0")
