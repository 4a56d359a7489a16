"""Config files of others: plain values are read from them, code is never run, and reading them comes to an end."""

import os
from argparse import Namespace
from pathlib import Path

import pytest
from detectron2.config import get_cfg
from helpers import tiny_cfg

from benchmarks.speed import benchmark
from updetr_d2 import add_updetr_config
from updetr_d2.cli import demo, export, report, train
from updetr_d2.config.files import get_config, merge_config_file

CONFIGS = Path(__file__).parents[2] / "configs"
RECIPE = "quickstart/detr_lite0_scenes_detection.yaml"


def merged(path) -> dict:
    cfg = get_cfg()
    add_updetr_config(cfg)
    merge_config_file(cfg, str(path))
    return cfg


@pytest.fixture(name="trace")
def _trace(tmp_path):
    return tmp_path / "code_was_run"


def hostile(path: Path, trace: Path, tag="!!python/object/apply:os.mkdir") -> Path:
    """A config that makes a folder when it is loaded with unsafe YAML."""
    path.write_text(f"OUTPUT_DIR: {tag} ['{trace}']\nVERSION: 2\n")
    return path


def test_the_hostile_config_runs_code_where_unsafe_yaml_is_allowed(tmp_path, trace):
    get_cfg().merge_from_file(str(hostile(tmp_path / "evil.yaml", trace)))
    assert trace.exists()


@pytest.mark.parametrize(
    "tag",
    ["!!python/object/apply:os.mkdir", "!!python/object/new:os.mkdir", "!!python/name:os.mkdir", "!evil"],
)
def test_no_tag_of_yaml_is_followed(tmp_path, trace, tag):
    with pytest.raises(ValueError, match=r"evil\.yaml was not loaded.*only plain values"):
        merged(hostile(tmp_path / "evil.yaml", trace, tag))
    assert not trace.exists()


@pytest.mark.parametrize("base", ['"evil.yaml"', "[plain.yaml, evil.yaml]"])
def test_nor_in_a_base(tmp_path, trace, base):
    hostile(tmp_path / "evil.yaml", trace)
    (tmp_path / "plain.yaml").write_text("SEED: 1\nVERSION: 2\n")
    (tmp_path / "middle.yaml").write_text(f"_BASE_: {base}\n")
    (tmp_path / "mine.yaml").write_text("_BASE_: middle.yaml\n")
    with pytest.raises(ValueError, match="only plain values"):
        merged(tmp_path / "mine.yaml")
    assert not trace.exists()


@pytest.mark.parametrize(
    "start",
    [
        lambda path: train.setup(Namespace(config_file=path, opts=[], eval_only=False)),
        lambda path: demo.setup_inference_config(path, []),
        lambda path: export.main(["--config-file", path, "--output", "x.onnx"]),
        lambda path: benchmark.setup(Namespace(config_file=path, opts=[])),
    ],
    ids=["train", "demo", "export", "benchmark"],
)
def test_no_command_runs_code_of_a_config(tmp_path, trace, start, capsys):
    path = str(hostile(tmp_path / "evil.yaml", trace))
    try:
        status = start(path)
    except (ValueError, SystemExit) as error:
        said = str(error)
    else:
        assert status
        said = capsys.readouterr().err
    assert "evil.yaml was not loaded" in said
    assert not trace.exists()


@pytest.mark.parametrize(
    "name", ["{folder}/evil.yaml", "{up}{folder}/evil.yaml", "{configs}/{up}{folder}/evil.yaml"]
)
@pytest.mark.parametrize("content", ["code", "SEED: 5\nVERSION: 2\n"])
def test_a_report_takes_its_recipe_from_the_projects_configs_only(tmp_path, trace, name, content):
    """A mailed run folder names files in its log; even harmless ones of this machine are not read."""
    folder = tmp_path / "mailed"
    folder.mkdir()
    hostile(folder / "evil.yaml", trace)
    if content != "code":
        (folder / "evil.yaml").write_text(content)
    (folder / "config.yaml").write_text(tiny_cfg("DETR").dump())
    name = name.format(folder=folder, configs=CONFIGS, up="../" * 20)
    (folder / "log.txt").write_text(f"Command line arguments: Namespace(config_file={name!r}, opts=[])\n")
    run = report.RunFolder.read(folder)
    assert run.arguments["config_file"] == name
    assert run.recipe(CONFIGS) is None
    assert report.main([str(folder)]) == 0
    assert not trace.exists()


@pytest.mark.parametrize("name", [RECIPE, f"configs/{RECIPE}", str(CONFIGS / RECIPE)])
def test_a_report_finds_the_recipes_of_the_project(tmp_path, name):
    (tmp_path / "config.yaml").write_text(tiny_cfg("DETR").dump())
    (tmp_path / "log.txt").write_text(f"Command line arguments: Namespace(config_file={name!r}, opts=[])\n")
    assert report.RunFolder.read(tmp_path).recipe(CONFIGS)["MODEL.META_ARCHITECTURE"] == "DETR"


def test_the_config_of_a_run_folder_is_plain_too(tmp_path, trace):
    hostile(tmp_path / "config.yaml", trace)
    assert report.main([str(tmp_path)]) == 0
    assert "config.yaml cannot be read" in (tmp_path / "report.html").read_text()
    assert not trace.exists()


@pytest.mark.parametrize("through_base", [False, True])
@pytest.mark.parametrize("kind", ["device", "pipe", "folder"])
def test_only_regular_files_are_read(tmp_path, kind, through_base):
    path = tmp_path / "odd"
    if kind == "device":
        path = Path("/dev/zero")
    elif kind == "pipe":
        os.mkfifo(path)
    else:
        path.mkdir()
    if through_base:
        (tmp_path / "mine.yaml").write_text(f"_BASE_: {path}\n")
        with pytest.raises(ValueError, match="not a regular file"):
            merged(tmp_path / "mine.yaml")
    else:
        with pytest.raises(ValueError, match=r"not a regular file|does not exist"):
            merged(path)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("_BASE_: mine.yaml\n", "names itself"),
        ("[1, 2]\n", "no list of KEY: VALUE"),
        ("", "no list of KEY: VALUE"),
        ("a: [\n", "is not YAML"),
        ("NO_SUCH_KEY: 1\nVERSION: 2\n", "NO_SUCH_KEY"),
        ("SEED: text\nVERSION: 2\n", "SEED"),
        ("_BASE_: nowhere.yaml\n", "nowhere.yaml"),
        ("_BASE_: {a: 1}\n", "no list of KEY: VALUE"),
        ("SEED: " + "[" * 5000, "names itself|is not YAML"),
    ],
)
def test_what_is_wrong_with_a_config_is_said_in_a_sentence(tmp_path, content, said):
    (tmp_path / "mine.yaml").write_text(content)
    with pytest.raises(ValueError, match=said) as error:
        merged(tmp_path / "mine.yaml")
    assert "mine.yaml" in str(error.value)


def alias_bomb(levels: int = 40) -> str:
    """A YAML list that doubles with every level; as text of some kilobytes."""
    lines = ["x0: &x0 [1, 1]"]
    lines += [f"x{i}: &x{i} [*x{i - 1}, *x{i - 1}]" for i in range(1, levels)]
    return "\n".join(lines) + "\n"


MERGE_BOMB = "\n".join(
    ["x0: &x0 {a: 1}"] + [f"x{i}: &x{i} {{<<: [*x{i - 1}, *x{i - 1}]}}" for i in range(1, 40)]
)


@pytest.mark.parametrize(
    "content",
    [
        alias_bomb() + "SEED: *x39\n",
        "DATASETS:\n  TRAIN: &a [&b [c, c], *b, *b]\n  TEST: [" + "*a, " * 50_000 + "]\n",
        MERGE_BOMB,
        "SEED: &a [*a]\n",
        "DATASETS: &a {TRAIN: *a}\n",
        "# " + "x" * 5_000_000,
    ],
    ids=["doubling", "wide", "merge keys", "list of itself", "keys of itself", "long"],
)
@pytest.mark.parametrize("through_base", [False, True])
def test_alias_bombs_are_refused_in_a_sentence(tmp_path, content, through_base):
    """Some kilobytes that stand for more values than any memory holds."""
    (tmp_path / "bomb.yaml").write_text(content)
    (tmp_path / "mine.yaml").write_text("_BASE_: bomb.yaml\nVERSION: 2\n")
    with pytest.raises(ValueError, match=r"bomb\.yaml (stand for more than|has more than)"):
        merged(tmp_path / ("mine.yaml" if through_base else "bomb.yaml"))


def test_aliases_themselves_are_read(tmp_path):
    (tmp_path / "mine.yaml").write_text("DATASETS:\n  TRAIN: &a [b, c]\n  TEST: *a\nVERSION: 2\n")
    assert merged(tmp_path / "mine.yaml").DATASETS.TEST == ("b", "c")


def test_a_report_of_a_run_folder_with_an_alias_bomb_is_made(tmp_path):
    (tmp_path / "config.yaml").write_text(alias_bomb())
    assert report.main([str(tmp_path)]) == 0
    assert "config.yaml cannot be read" in (tmp_path / "report.html").read_text()


@pytest.mark.parametrize("base", [RECIPE, f"configs/{RECIPE}", f"[{RECIPE}]"])
def test_a_base_may_be_a_recipe_by_its_name(tmp_path, base):
    (tmp_path / "mine.yaml").write_text(f"_BASE_: {base}\nSEED: 7\n")
    cfg = merged(tmp_path / "mine.yaml")
    cfg.SEED = get_config(RECIPE).SEED
    assert cfg == get_config(RECIPE)


def test_a_file_beside_a_config_goes_before_a_recipe_of_its_name(tmp_path):
    (tmp_path / RECIPE).parent.mkdir()
    (tmp_path / RECIPE).write_text("SEED: 5\nVERSION: 2\n")
    (tmp_path / "mine.yaml").write_text(f"_BASE_: {RECIPE}\n")
    assert merged(tmp_path / "mine.yaml").SEED == 5
