"""The site of docs/: every page and link is there, and a link that leads nowhere is an error."""

import re
import shutil
from pathlib import Path

import pytest

pytest.importorskip("mkdocs", reason="the site needs MkDocs: make setup-docs")

from mkdocs.commands.build import build
from mkdocs.config import load_config
from mkdocs.exceptions import Abort

ROOT = Path(__file__).parents[2]
PAGES = ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")


@pytest.fixture(name="copy")
def _copy(tmp_path):
    for name in (*PAGES, "mkdocs.yml"):
        shutil.copy(ROOT / name, tmp_path)
    shutil.copytree(ROOT / "docs", tmp_path / "docs", ignore=shutil.ignore_patterns("__pycache__"))
    return tmp_path


def build_site(root: Path) -> Path:
    config = load_config(str(root / "mkdocs.yml"))
    config.plugins.on_startup(command="build", dirty=False)
    build(config)
    return root / "output" / "site"


def test_every_page_is_in_the_site_and_its_links_lead_somewhere(copy):
    site = build_site(copy)
    names = {path.stem for path in (copy / "docs").glob("*.md")} | {"index", "CONTRIBUTING", "CHANGELOG"}
    assert names <= {path.stem for path in site.glob("*.html")}
    for page in site.glob("*.html"):
        for link in re.findall(r'(?:href|src)="(?!\w+:|//)([^"#?]+)', page.read_text(encoding="utf-8")):
            assert link.startswith("/") or (site / link).exists(), f"{page.name} links to {link}"
    # The README's links to docs/ become those of the site, links to files elsewhere become names.
    start = (site / "index.html").read_text(encoding="utf-8")
    assert 'href="MODEL_ZOO.html#pre-training"' in start and 'href="CONTRIBUTING.html"' in start


@pytest.mark.parametrize("link", ["docs/NOWHERE.md", "docs/DATASETS.md#no-such-heading"])
def test_a_link_that_leads_nowhere_is_an_error(copy, link):
    page = copy / "README.md"
    page.write_text(page.read_text() + f"\n[broken]({link})\n")
    with pytest.raises(Abort):
        build_site(copy)
