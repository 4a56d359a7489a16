"""What the folder of a run tells: read back from files as Detectron2 and our evaluators write them."""

import json
import math

import pytest
from helpers import tiny_cfg
from PIL import Image

from updetr_d2.config.flat import flatten
from updetr_d2.report.run_folder import RunFolder, differences, is_number

LOG = """\
[11/23 15:37:09] detectron2 INFO: Environment info:
-------------------------------  -----------------
Python                           2.7
-------------------------------  -----------------
[11/23 15:37:09] detectron2 INFO: Command line arguments: Namespace(config_file='old.yaml', opts=[])
[11/24 10:00:00] detectron2 INFO: Environment info:
-------------------------------  ---------------------------------------
sys.platform                     linux
PyTorch                          2.11.0 @/opt/torch
GPU available                    No: torch.cuda.is_available() == False
-------------------------------  ---------------------------------------
PyTorch built with:
  - GCC 13.3
[11/24 10:00:00] detectron2 INFO: Command line arguments: {arguments}
[11/24 10:00:01] d2.engine INFO: Starting  training
"""
ARGUMENTS = (
    "Namespace(config_file='configs/voc/updetr_r50_voc_150ep.yaml', resume=True, eval_only=False, num_gpus=8, "
    "num_machines=1, machine_rank=0, dist_url='tcp://127.0.0.1:1', opts=['DATASETS.TRAIN', '(\"a b\",)'])"
)


@pytest.fixture(name="folder")
def _folder(tmp_path):
    (tmp_path / "config.yaml").write_text(tiny_cfg("DETR", "SOLVER.MAX_ITER", 40).dump())
    return tmp_path


def log_metrics(folder, *records):
    (folder / "metrics.json").write_text("".join(json.dumps(record) + "\n" for record in records))


def test_the_last_command_line_and_environment_count(folder):
    (folder / "log.txt").write_text(LOG.replace("{arguments}", ARGUMENTS))
    run = RunFolder.read(folder)
    assert run.command == (
        "updetr train --config-file configs/voc/updetr_r50_voc_150ep.yaml --num-gpus 8 "
        "DATASETS.TRAIN '(\"a b\",)'"
    )
    assert run.environment == {
        "sys.platform": "linux",
        "PyTorch": "2.11.0 @/opt/torch",
        "GPU available": "No: torch.cuda.is_available() == False",
    }


@pytest.mark.parametrize("arguments", ["Namespace(config_file=open('x'))", "Namespace(", "something else"])
def test_command_lines_that_are_not_plain_values_are_left_alone(folder, arguments):
    (folder / "log.txt").write_text(LOG.replace("{arguments}", arguments).replace("old.yaml", ""))
    assert RunFolder.read(folder).command is None


def test_the_state_is_that_of_files_and_metrics(folder):
    assert RunFolder.read(folder).state == "unfinished: 0 of 40 iterations"
    records = [{"iteration": 19, "total_loss": 2.0}, {"iteration": 29, "total_loss": 1.0}]
    log_metrics(folder, *records, {"iteration": 30, "bbox/AP": 1.0})
    assert RunFolder.read(folder).state == "unfinished: 30 of 40 iterations"
    (folder / "model_final.pth").touch()
    assert RunFolder.read(folder).state == "finished: 40 iterations"
    (folder / "log.txt").write_text(
        LOG.replace("{arguments}", ARGUMENTS.replace("eval_only=False", "eval_only=True"))
    )
    assert RunFolder.read(folder).state == "finished: 40 iterations"  # and evaluated again later
    (folder / "metrics.json").unlink()
    run = RunFolder.read(folder)
    assert run.state == "evaluation only"
    assert " --eval-only " in run.command


def test_metrics_are_the_last_of_training_or_those_of_files(folder):
    for name, value in (("a_val", 5.0), ("b_val", 7.0)):
        results = folder / "inference" / name
        results.mkdir(parents=True)
        (results / "query_patch_results.json").write_text(json.dumps({"AP": value, "rounds": [1, 2]}))
        (results / "coco_instances_results.json").write_text("[]")
    assert RunFolder.read(folder).metrics == {
        "a_val/query_patch/AP": 5.0,
        "b_val/query_patch/AP": 7.0,
    }
    log_metrics(
        folder,
        {"iteration": 9, "bbox/AP": 1.0, "total_loss": 3.0},
        {"iteration": 19, "bbox/AP": 2.0, "bbox/APl": math.nan},
    )
    metrics = RunFolder.read(folder).metrics
    assert list(metrics) == ["bbox/AP", "bbox/APl"]
    assert metrics["bbox/AP"] == 2.0 and not is_number(metrics["bbox/APl"])


def test_pictures_are_found_by_folder_and_of_the_last_iteration_only(folder):
    names = ["pictures/iteration_0000100/0.png", "pictures/iteration_0000200/0.png"]
    names += [f"inference/val/pictures/{i}.png" for i in (10, 9, 0)]
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (2, 2)).save(folder / name)
    (folder / "inference/val/instances_predictions.pth").touch()
    found = RunFolder.read(folder).pictures
    assert {name: [file.name for file in files] for name, files in found.items()} == {
        "inference/val/pictures": ["0.png", "9.png", "10.png"],
        "pictures/iteration_0000200": ["0.png"],
    }


def test_the_config_is_compared_key_by_key(folder, tmp_path):
    run = RunFolder.read(folder)
    assert run.config["MODEL.DETR.NHEADS"] == 4
    base = {**run.config, "MODEL.DETR.NHEADS": 8, "SOLVER.NEW_KEY": 1}
    del base["SEED"]
    assert differences(run.config, base) == [
        ("MODEL.DETR.NHEADS", 8, 4),
        ("SEED", None, run.config["SEED"]),
    ]
    assert flatten({"b": {"y": 1, "x": {}}, "a": [2]}) == {"a": [2], "b.x": {}, "b.y": 1}


def test_the_recipe_is_read_with_its_bases(folder, tmp_path):
    root = tmp_path / "root"
    root.mkdir()
    (root / "base.yaml").write_text("SEED: 5\nVERSION: 2\n")
    (root / "recipe.yaml").write_text('_BASE_: "base.yaml"\nSOLVER:\n  MAX_ITER: 7\n')
    (folder / "log.txt").write_text(
        LOG.replace("{arguments}", "Namespace(config_file='recipe.yaml', opts=[])")
    )
    run = RunFolder.read(folder)
    recipe = run.recipe(root)
    assert (recipe["SEED"], recipe["SOLVER.MAX_ITER"]) == (5, 7)
    (root / "recipe.yaml").write_text("NO_SUCH_KEY: 1\nVERSION: 2\n")
    assert run.recipe(root) is None
    assert run.recipe(root / "elsewhere") is None


def test_other_folders_are_refused(tmp_path):
    with pytest.raises(ValueError, match="it has no config"):
        RunFolder.read(tmp_path)


def test_an_evaluation_after_a_training_is_what_counts(folder):
    log_metrics(folder, {"iteration": 40, "bbox/AP": 30.0})
    evaluation = folder / "inference" / "val"
    evaluation.mkdir(parents=True)
    (evaluation / "bbox_results.json").write_text('{"AP": 20.0}')
    (folder / "log.txt").write_text(LOG.replace("{arguments}", ARGUMENTS))
    assert RunFolder.read(folder).metrics == {"bbox/AP": 30.0}
    (folder / "log.txt").write_text(
        LOG.replace("{arguments}", ARGUMENTS.replace("eval_only=False", "eval_only=True"))
    )
    assert RunFolder.read(folder).metrics == {"bbox/AP": 20.0}


def test_what_an_earlier_training_left_is_not_of_the_run(folder):
    for place in ("inference", "earlier_1/inference"):
        (folder / place / "val" / "pictures").mkdir(parents=True)
        Image.new("RGB", (4, 4)).save(folder / place / "val" / "pictures" / "0.png")
    assert list(RunFolder.read(folder).pictures) == ["inference/val/pictures"]
