"""What the command line does around training: the run's config.yaml, weights that do not fit."""

import logging
import subprocess
import sys

import pytest
import torch
from detectron2.engine import default_argument_parser
from helpers import tiny_cfg, tiny_model

from updetr_d2.cli import train
from updetr_d2.config.files import get_config_file
from updetr_d2.engine.config_file import kept_config


def test_the_config_of_a_run_stays_until_another_run_begins(tmp_path):
    for there in (False, True):
        with kept_config(str(tmp_path)):
            (tmp_path / "config.yaml").write_text("of a later start" if there else "of the run")
        assert (tmp_path / "config.yaml").read_text() == "of the run"


@pytest.mark.parametrize("fits", [True, False])
def test_an_evaluation_says_that_weights_are_random(tmp_path, caplog, fits):
    train_net = train
    torch.save({"model": tiny_model("DETR" if fits else "UPDETR").state_dict()}, tmp_path / "model.pth")
    cfg = tiny_cfg("DETR", "MODEL.WEIGHTS", str(tmp_path / "model.pth"), "OUTPUT_DIR", str(tmp_path))
    with caplog.at_level(logging.WARNING, "updetr_d2"):
        train_net.load_for_evaluation(cfg, resume=False)
    assert ("class_embed.weight, are not in MODEL.WEIGHTS" in caplog.text) != fits


def test_a_recipe_is_found_by_its_name_from_any_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    opened_for_log = []
    monkeypatch.setattr(train, "default_setup", lambda cfg, args: opened_for_log.append(args.config_file))
    monkeypatch.setattr(train, "setup_logger", lambda *_, **__: None)  # would take the logs of other tests
    name = "quickstart/detr_lite0_scenes_detection.yaml"
    args = default_argument_parser().parse_args(["--config-file", name, "OUTPUT_DIR", str(tmp_path / "run")])
    assert train.setup(args).MODEL.META_ARCHITECTURE == "DETR"
    assert opened_for_log == [get_config_file(name)]
    assert args.config_file == name


def test_flags_may_stand_behind_the_pairs():
    """A command that was interrupted is repeated with one more word at its end."""
    argv = ["--config-file", "a.yaml", "--num-gpus", "2", "SEED", "3", "OUTPUT_DIR", "out"]
    before, behind = train.parse_arguments(["--resume", *argv]), train.parse_arguments([*argv, "--resume"])
    assert before == behind and behind.resume and not behind.eval_only
    assert behind.opts == ["SEED", "3", "OUTPUT_DIR", "out"]
    assert train.parse_arguments([*argv[:6], "--eval-only", *argv[6:]]).eval_only


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["SEED", "3", "--num-gpus", "2"], "Put --num-gpus, with its value, before the KEY VALUE pairs"),
        (["SEED", "3", "OUTPUT_DIR"], "one is alone: SEED 3 OUTPUT_DIR"),
    ],
)
def test_what_is_no_pair_is_said_in_a_sentence(argv, words):
    with pytest.raises(SystemExit, match=words):
        train.parse_arguments(argv)


@pytest.mark.parametrize("processes", [1, 2])
def test_what_is_refused_at_the_start_is_one_sentence_on_the_console(tmp_path, processes):
    name = f"coco:{tmp_path / 'missing.json'}@{tmp_path}"
    config = get_config_file("custom/few_label_lite0.yaml")
    options = ["DATASETS.TRAIN", f"('{name}',)", "OUTPUT_DIR", str(tmp_path / "run")]
    command = [
        sys.executable,
        "-m",
        "updetr_d2",
        "train",
        "--config-file",
        config,
        "--num-gpus",
        str(processes),
    ]
    done = subprocess.run([*command, *options], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    console = done.stdout + done.stderr
    assert "Traceback" not in console
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert "missing.json" in line and "DATASETS.TRAIN" in line
    assert "Traceback" in (tmp_path / "run" / "log.txt").read_text()
