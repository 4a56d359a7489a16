"""The model zoo lists every recipe of the paper's tasks and names no file that does not exist."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
ZOO = (ROOT / "docs" / "MODEL_ZOO.md").read_text(encoding="utf-8")
FOLDERS = ("pretrain", "voc", "coco", "panoptic", "oneshot", "baselines")
NAMED = set(re.findall(r"[\w/]*\w\.yaml", ZOO))


def test_every_config_named_exists():
    existing = {path.name for path in (ROOT / "configs").rglob("*.yaml")}
    assert NAMED
    for name in NAMED:
        if name.startswith("_"):  # "..._joint.yaml": the end of several names
            assert any(file.endswith(name) for file in existing), name
        else:
            assert name.rpartition("/")[2] in existing, name
            assert not name.startswith("configs/") or (ROOT / name).is_file(), name


@pytest.mark.parametrize("folder", FOLDERS)
def test_every_recipe_is_listed(folder):
    for path in (ROOT / "configs" / folder).glob("*.yaml"):
        if path.name.startswith("Base-") or "scenes" in path.name:
            continue
        abbreviated = re.sub(r".*(?=_9x)", "", path.name)
        split = re.sub(r"split[23]", "split1", path.name)  # "split1 to split4"
        names = {path.name, f"{folder}/{path.name}", abbreviated, split}
        assert any(name.rpartition("/")[2] in {n.rpartition("/")[2] for n in NAMED} for name in names), (
            path.name
        )
