"""What the documentation names exists: links, files, config keys, data sets, command-line options."""

import re
from pathlib import Path

import pytest
from detectron2.config import get_cfg
from detectron2.data import DatasetCatalog

import updetr_d2  # noqa: F401  (registers the data sets)
from updetr_d2 import add_updetr_config

ROOT = Path(__file__).parents[2]
PAGES = sorted([ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").glob("*.md")])
pytestmark = pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)


def test_links_lead_to_files_and_headings(page):
    for link in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        if link.startswith(("http:", "https:")):
            continue
        path, _, heading = link.partition("#")
        target = page.parent / path if path else page
        assert target.exists(), f"{page.name} links to {link}, which is not there"
        if heading:
            assert heading in headings(target), f"{page.name} links to {link}; there is no such heading"


def test_named_files_exist(page):
    named = re.findall(
        r"\b(?<!tests/)((?:configs|tools|updetr_d2|docs)/[\w./{},-]+\.(?:yaml|py|md))", page.read_text()
    )
    for name in named:
        for path in expand_braces(name):
            assert (ROOT / path).exists(), f"{page.name} names {path}"


def test_named_config_keys_exist(page):
    cfg = get_cfg()
    add_updetr_config(cfg)
    pattern = (
        r"\b((?:MODEL|INPUT|SOLVER|TEST|DATASETS|DATALOADER|TRACKING)(?:\.[A-Z][A-Z0-9_]*)+)\b(?!\.[*{])"
    )
    for key in re.findall(pattern, page.read_text()):
        node = cfg
        for part in key.split("."):
            assert part in node, f"{page.name} names the config key {key}"
            node = node[part]


def test_named_data_sets_are_registered(page):
    pattern = r"`((?:scenes|imagenet|coco_2017|voc_20)[\w{},]*)`"
    for name in re.findall(pattern, page.read_text()):
        for expanded in expand_braces(name):
            assert expanded in DatasetCatalog.list(), f"{page.name} names the data set {expanded}"


def test_make_targets_exist(page):
    makefile = (ROOT / "Makefile").read_text()
    for target in re.findall(r"(?:`|^)make ([a-z-]+)", page.read_text(), flags=re.MULTILINE):
        assert re.search(rf"^{target}:", makefile, flags=re.MULTILINE), f"{page.name} names `make {target}`"


def headings(page):
    lines = re.findall(r"^#+ (.+)$", page.read_text(), flags=re.MULTILINE)
    return {re.sub(r"[^\w -]", "", line).strip().lower().replace(" ", "-") for line in lines}


def expand_braces(name):
    match = re.search(r"\{([^}]*)\}", name)
    if not match:
        return [name]
    options = match[1].split(",")
    return [path for option in options for path in expand_braces(name.replace(match[0], option, 1))]
