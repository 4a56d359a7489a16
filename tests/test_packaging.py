"""The wheel holds all that an installed package needs: recipes, templates, type marker, licence, command."""

import configparser
import shutil
import subprocess
import sys
import zipfile
from email.parser import Parser
from pathlib import Path

import pytest

import updetr_d2

ROOT = Path(__file__).parents[1]
SOURCES = ("pyproject.toml", "setup.py", "README.md", "LICENSE")


@pytest.fixture(name="wheel", scope="module")
def _wheel(tmp_path_factory):
    """Built of a copy, because setuptools builds inside the source folder."""
    source, output = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    for name in SOURCES:
        shutil.copy(ROOT / name, source)
    for name in ("updetr_d2", "configs"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    options = ("--no-deps", "--no-build-isolation", "--no-index", "--disable-pip-version-check")
    subprocess.run([sys.executable, "-m", "pip", "wheel", *options, "-w", output, source], check=True)
    (path,) = output.iterdir()
    with zipfile.ZipFile(path) as archive:
        yield archive


def test_every_recipe_is_in_the_wheel_as_it_is(wheel):
    recipes = {path.relative_to(ROOT).as_posix(): path for path in (ROOT / "configs").rglob("*.yaml")}
    packed = {name for name in wheel.namelist() if name.startswith("updetr_d2/configs/")}
    assert packed == {f"updetr_d2/{name}" for name in recipes}
    for name, path in recipes.items():
        assert wheel.read(f"updetr_d2/{name}") == path.read_bytes()


def test_every_file_of_the_package_is_in_the_wheel(wheel):
    files = {
        path.relative_to(ROOT).as_posix()
        for path in (ROOT / "updetr_d2").rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert {"updetr_d2/py.typed", "updetr_d2/report/report.html.jinja"} <= files
    assert files <= set(wheel.namelist())


def test_nothing_else_is_in_the_wheel(wheel):
    assert {name.split("/")[0] for name in wheel.namelist()} == {
        "updetr_d2",
        f"updetr_d2-{updetr_d2.__version__}.dist-info",
    }


def test_the_metadata_tell_version_licence_and_command(wheel):
    folder = f"updetr_d2-{updetr_d2.__version__}.dist-info"
    metadata = Parser().parsestr(wheel.read(f"{folder}/METADATA").decode())
    assert metadata["Version"] == updetr_d2.__version__
    assert metadata["License-Expression"] == "Apache-2.0"
    assert wheel.read(f"{folder}/licenses/LICENSE") == (ROOT / "LICENSE").read_bytes()
    commands = configparser.ConfigParser()
    commands.read_string(wheel.read(f"{folder}/entry_points.txt").decode())
    assert dict(commands["console_scripts"]) == {"updetr": "updetr_d2.cli.command:main"}
