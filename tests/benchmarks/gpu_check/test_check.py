"""``tools/gpu_check.py`` without a GPU: its blocks run, one that fails or hangs is told and stops no other."""

import json

import pytest

from benchmarks.gpu_check import check
from benchmarks.gpu_check.blocks import BLOCKS, attention, hand_over, training
from benchmarks.gpu_check.parity import parity


def test_what_cannot_run_here_and_what_fails_is_told(tmp_path, capsys, monkeypatch):
    file = tmp_path / "result.json"
    arguments = ["--device", "cpu", "--small", "--json", str(file), "--blocks", "waits", "attention"]
    assert check.main([*arguments, "--limit", "0.05"]) == 1  # nothing starts in that time
    blocks = json.loads(file.read_text())["blocks"]
    assert blocks["waits"]["status"] == "not here"
    assert (blocks["attention"]["status"], blocks["attention"]["reason"]) == (
        "failed",
        "not done after 0.05 s",
    )
    assert "it needs a GPU" in capsys.readouterr().out
    monkeypatch.setattr("sys.executable", "false")
    assert check.main([*arguments]) == 1
    assert json.loads(file.read_text())["blocks"]["attention"]["reason"] == "exit code 1"


@pytest.mark.slow
def test_blocks_run_in_processes_of_their_own(tmp_path, capsys):
    file = tmp_path / "result.json"
    arguments = ["--device", "cpu", "--small", "--json", str(file), "--blocks", "attention", "processes"]
    assert check.main(arguments) == 0
    result = json.loads(file.read_text())
    assert result["environment"]
    assert result["blocks"]["processes"]["values"]["device_ids None, ms a step"] > 0
    values = result["blocks"]["attention"]["values"]
    errors = [value for name, value in values.items() if "error" in name]
    assert errors and max(errors) < 1e-4
    assert "flash_attention" in capsys.readouterr().out


@pytest.mark.slow
def test_parity_of_a_cpu_with_itself():
    values = parity("cpu", True)
    float32 = [value for name, value in values.items() if "float32" in name]
    bfloat16 = [value for name, value in values.items() if "bfloat16" in name and "loss" in name]
    assert len(float32) == 10 and max(float32) < 1e-5
    assert all(0 < value < 0.2 for value in bfloat16)


@pytest.mark.slow
def test_the_hand_over_is_measured():
    assert all(value > 0 for value in hand_over("cpu", True).values())


@pytest.mark.slow
@pytest.mark.parametrize("name", ["step", "reference", "panoptic-memory"])
def test_blocks_of_whole_models(name, monkeypatch):
    if name == "step":  # a smaller one than the recipe's; the reference has no timm networks
        recipe = "quickstart/updetr_lite0_scenes.yaml"
        monkeypatch.setattr("benchmarks.gpu_check.blocks.PRETRAINING", recipe)
    values = BLOCKS[name].run("cpu", True)
    assert all(value >= 0 for value in values.values() if not isinstance(value, str))


@pytest.mark.long
def test_a_run_that_is_stopped_and_resumed():
    assert training("cpu", True) == {
        "exit code after SIGTERM (75)": 75,
        "exit code of --resume": 0,
        "finished": "True",
    }


def test_attention_kernels_take_our_masks():
    assert any("groups" in name for name in attention("cpu", True))
