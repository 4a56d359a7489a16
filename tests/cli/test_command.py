"""``updetr NAME ...`` and ``tools/`` reach the same functions, from any folder."""

import subprocess
import sys
from pathlib import Path

import pytest

from updetr_d2.cli import command

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("name", command.COMMANDS)
def test_every_command_explains_itself_under_its_own_name(name, capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["updetr", name, "--help"])
    with pytest.raises(SystemExit) as exit_:
        command.main()
    assert exit_.value.code == 0
    assert capsys.readouterr().out.startswith(f"usage: updetr {name} ")


def test_without_a_command_all_are_listed(capsys):
    assert command.main([]) == 0
    listed = [line.split()[0] for line in capsys.readouterr().out.splitlines() if line.startswith("  ")]
    assert listed == list(command.COMMANDS)


def test_an_unknown_command_is_named_and_fails(capsys):
    assert command.main(["trian"]) == 2
    assert capsys.readouterr().err.startswith("updetr: there is no command 'trian'.")


def test_the_status_of_a_command_is_that_of_updetr(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["updetr"])
    assert command.main(["curves", str(tmp_path)]) == 1
    assert capsys.readouterr().err.startswith("error: ")


def test_a_missing_extra_is_named(capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["updetr"])
    monkeypatch.delitem(sys.modules, "updetr_d2.cli.pack_shards", raising=False)
    monkeypatch.setitem(sys.modules, "webdataset", None)
    assert command.main(["pack-shards"]) == 1
    assert capsys.readouterr().err == (
        "updetr pack-shards needs the Python package 'webdataset'; install it first.\n"
    )


@pytest.mark.slow
def test_a_file_of_tools_works_from_any_folder(tmp_path):
    tool = [sys.executable, str(ROOT / "tools" / "train_net.py"), "--help"]
    shown = subprocess.run(tool, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert shown.stdout.startswith("usage: train_net.py ")
