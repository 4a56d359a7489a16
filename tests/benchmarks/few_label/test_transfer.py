"""The transfer benchmark's recipe: which commands run, in which order, and what it makes of their results."""

import json
import sys
import time
from pathlib import Path

import pytest

from benchmarks.few_label import transfer


@pytest.fixture(name="tool")
def _tool(tmp_path, monkeypatch):
    module = transfer
    monkeypatch.setattr(module, "ROOT", tmp_path)
    yield module
    sys.modules.pop("steps", None)


@pytest.fixture(name="commands")
def _commands(tool, tmp_path, monkeypatch) -> list[list[str]]:
    """The commands that would have run; each leaves a run's files behind, of an AP that depends on its seed.

    Without pre-training the object of the only image is not found, with it it is taken for another class.
    """
    ran = []
    object_of_class_1 = {"id": 1, "image_id": 1, "category_id": 1, "bbox": [40, 0, 20, 20], "area": 400}
    ground_truth = {
        "images": [{"id": 1, "width": 100, "height": 100}],
        "categories": [{"id": 1, "name": "bird"}, {"id": 2, "name": "fish"}],
        "annotations": [{**object_of_class_1, "iscrowd": 0}],
        "info": {},
    }
    (tmp_path / "data/cutouts/val").mkdir(parents=True)
    (tmp_path / "data/cutouts/val/instances.json").write_text(json.dumps(ground_truth))

    def run_step(title, command, *, result, again, **options):
        ran.append([str(part) for part in command])
        folder = (tmp_path / result).parent
        folder.mkdir(parents=True, exist_ok=True)
        seed = int(command[command.index("SEED") + 1]) if "SEED" in command else 0
        scratch = tool.SCRATCH in folder.name
        records = [
            {"iteration": i, "bbox/AP": ap, "bbox/AP50": 2 * ap, "bbox/AP75": ap / 2}
            for i, ap in ((9, 1.0 * seed), (19, 4.0 * seed - scratch))
        ]
        others = [metric for task in tool.TASKS.values() for metric in task.metrics if "bbox" not in metric]
        records.append({"iteration": 19, **dict.fromkeys(others, 7.0 * seed)})
        records.append({"iteration": 19, "query_patch/AP50": 50.0, "query_patch/mIoU": 40.0})
        (folder / "metrics.json").write_text("".join(json.dumps(record) + "\n" for record in records))
        found = {"image_id": 1, "category_id": 2, "bbox": [0 if scratch else 40, 0, 20, 20], "score": 0.9}
        (folder / "inference/val").mkdir(parents=True, exist_ok=True)
        (folder / "inference/val/coco_instances_results.json").write_text(json.dumps([found]))

    monkeypatch.setattr(tool, "run_step", run_step)
    return ran


def run(tool, *arguments: str) -> dict:
    args = tool.get_parser().parse_args([*arguments])
    tool.main(args)
    return json.loads((tool.ROOT / args.output / "results.json").read_text())


def test_scratch_and_pretrained_differ_in_nothing_but_where_they_start(tool, commands):
    run(tool, "--labeled", "500", "--seeds", "3")
    scratch, pretrained = commands[-2:]
    changed = [(a, b) for a, b in zip(scratch, pretrained, strict=True) if a != b]
    assert changed == [
        (
            "configs/cutouts/detr_lite0_cutouts.yaml",
            "configs/cutouts/updetr_lite0_cutouts_detection.yaml",
        ),
        ("output/cutouts/efficientnet_lite0.pth", "output/cutouts/pretrain_updetr/model_final.pth"),
        ("output/cutouts/scratch_500_seed3", "output/cutouts/updetr_500_seed3"),
    ]
    assert [Path(command[0]).name for command in commands] == [
        *("-m", "convert_weights.py", "train_net.py", "train_net.py", "train_net.py")
    ]


def test_results_are_mean_and_spread_of_the_last_evaluations(tool, commands, capsys):
    results = run(tool, "--labeled", "500", "2000", "--seeds", "1", "2")
    rows = {(row["labeled_scenes"], row["start"]): row["bbox/AP"] for row in results["detection"]}
    assert rows == {
        (n, start): [4.0 - lower, 8.0 - lower]
        for n in (500, 2000)
        for start, lower in (("scratch", 1), ("updetr", 0))
    }
    found = {row["start"]: row["any class AP50"] for row in results["detection"]}
    assert found == {"scratch": [0, 0], "updetr": [pytest.approx(100)] * 2}  # of another class, but there
    assert results["query_patches"]["updetr"]["query_patch/mIoU"] == 40
    printed = capsys.readouterr().out
    assert "5.00 (3.00 – 7.00)" in printed and "6.00 (4.00 – 8.00)" in printed
    for count in (500, 2000):
        assert (tool.ROOT / f"output/cutouts/learning_curves_{count}.png").stat().st_size > 1000


def test_ablations_pretrain_in_every_way_and_options_reach_every_training(tool, commands, capsys):
    run(tool, "--ablations", "--labeled", "500", "--seeds", "1", "--", "SOLVER.MAX_ITER", "5")
    table = capsys.readouterr().out.partition("(lowest – highest)")[2]
    assert "single_query" in table and "–" not in table  # one seed has no spread
    trainings = [command for command in commands if command[0].endswith("train_net.py")]
    assert len(trainings) == (1 + len(tool.ABLATIONS)) + (2 + len(tool.ABLATIONS))
    assert all(command[-2:] == ["SOLVER.MAX_ITER", "5"] for command in trainings)
    assert sum("MODEL.UPDETR.ATTENTION_MASK" in command for command in trainings) == 1


def test_side_by_side_a_fine_tuning_still_waits_for_its_pretraining(tool, commands, monkeypatch):
    fake, events = tool.run_step, []

    def slow(title, command, *, result, **options):
        events.append(("start", result, options.get("threads"), options.get("log")))
        time.sleep(0.2 if "pretrain" in str(result) else 0.05)
        fake(title, command, result=result, **options)
        events.append(("end", result))

    monkeypatch.setattr(tool, "run_step", slow)
    monkeypatch.setattr(tool.os, "cpu_count", lambda: 8)
    run(tool, "--jobs", "4", "--labeled", "500", "--seeds", "1")
    order = [(kind, result.parent.name) for kind, result, *_ in events]
    pretrained = order.index(("end", "pretrain_updetr"))
    assert order.index(("end", "scratch_500_seed1")) < pretrained < order.index(("start", "updetr_500_seed1"))
    started = next(event for event in events if "scratch_500" in str(event[1]))
    assert started[2:] == (2, Path("output/cutouts/scratch_500_seed1.log"))


def test_a_training_that_fails_ends_the_benchmark(tool, commands, monkeypatch):
    fake = tool.run_step

    def failing(title, command, *, result, **options):
        if "pretrain" in str(result):
            sys.exit("status 1")
        fake(title, command, result=result, **options)

    monkeypatch.setattr(tool, "run_step", failing)
    with pytest.raises(SystemExit, match="status 1"):
        run(tool, "--jobs", "2", "--labeled", "500", "--seeds", "1")
    assert not any("updetr_500" in part for command in commands for part in command)
    assert not (tool.ROOT / "output/cutouts/results.json").exists()


def test_curves_are_means_over_seeds_and_can_be_drawn_from_the_results_alone(tool, commands, tmp_path):
    results = run(tool, "--labeled", "500", "--seeds", "1", "2")
    scratch = next(row for row in results["detection"] if row["start"] == "scratch")
    assert scratch["mean_curves"]["bbox/AP"] == {"9": 1.5, "19": 5.0}
    drawn = tmp_path / "output/cutouts/learning_curves_500.png"
    before = drawn.read_bytes()
    drawn.unlink()
    tool.draw_curves(results, drawn.parent)
    assert drawn.read_bytes() == before


@pytest.mark.parametrize("option", ["--jobs", "--seeds", "--labeled"])
def test_numbers_that_mean_nothing_are_refused_at_once(tool, commands, option, capsys):
    with pytest.raises(SystemExit):
        run(tool, option, "0")
    assert f"{option}: invalid positive value: '0'" in capsys.readouterr().err
    assert not commands


def test_other_tasks_compare_scratch_and_the_standard_pretraining_alone(tool, commands, capsys):
    tasks = ("--tasks", "panoptic", "oneshot")
    results = run(tool, *tasks, "--ablations", "single_query", "--labeled", "500", "--seeds", "1", "2")
    assert "detection" not in results
    for task, metric in (("panoptic", "panoptic_seg/PQ_st"), ("oneshot", "oneshot/unseen_AP50")):
        assert {row["start"]: row[metric] for row in results[task]} == {"scratch": [7, 14], "updetr": [7, 14]}
        assert results[task][0]["mean_curves"][metric] == {"19": 10.5}
    printed = capsys.readouterr().out
    assert "=== panoptic on held-out scenes" in printed and "10.50 (7.00 – 14.00)" in printed
    finetunings = [command for command in commands if "SEED" in command]
    folders = [command[command.index("OUTPUT_DIR") + 1] for command in finetunings]
    assert folders[:2] == [
        "output/cutouts/scratch_panoptic_500_seed1",
        "output/cutouts/scratch_panoptic_500_seed2",
    ]
    assert len(set(folders)) == len(folders) == 8
    panoptic = next(command for command in finetunings if "panoptic" in command[2])
    assert (
        "('coco_panoptic:data/cutouts/train_500/panoptic.json@"
        in panoptic[panoptic.index("DATASETS.TRAIN") + 1]
    )
