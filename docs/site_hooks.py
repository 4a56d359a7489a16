"""Hooks of MkDocs (mkdocs.yml): pages of the repository's root join those of docs/, and their links fit."""

import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File

ROOT = Path(__file__).resolve().parent.parent
# Pages of the root by their place in the site.
ROOT_PAGES = {"index.md": "README.md", "CONTRIBUTING.md": "CONTRIBUTING.md", "CHANGELOG.md": "CHANGELOG.md"}
_IN_SITE = (".md", ".png", ".jpg", ".svg", ".ipynb")
_LINK = re.compile(r"\[([^\]]*)\]\(([^)#\s]+)(#[^)\s]*)?\)")


def on_config(config: Any) -> Any:
    """Give headings the anchors that they have where the repository is hosted."""
    config.mdx_configs["toc"] = {**config.mdx_configs.get("toc", {}), "slugify": heading_anchor}
    return config


def heading_anchor(heading: str, separator: str) -> str:
    """``Words, and more`` -> ``words-and-more``."""
    return re.sub(r"[^\w -]", "", heading).strip().lower().replace(" ", separator)


def on_files(files: Any, config: Any) -> Any:
    """Add the pages of the root."""
    for place, name in ROOT_PAGES.items():
        files.append(File.generated(config, place, content=(ROOT / name).read_text(encoding="utf-8")))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Let the links of a page lead to pages of the site; a link to another file becomes its name."""
    source = ROOT / ROOT_PAGES.get(page.file.src_uri, f"docs/{page.file.src_uri}")
    places = {(ROOT / name).resolve(): place for place, name in ROOT_PAGES.items()}

    def mended(match: re.Match[str]) -> str:
        text, target, anchor = match.groups(default="")
        if re.match(r"[a-z]+:", target):
            return match[0]
        path = (source.parent / target).resolve()
        if path in places:
            return f"[{text}]({places[path]}{anchor})"
        if path.is_relative_to(ROOT / "docs") and path.suffix in _IN_SITE:
            return f"[{text}]({path.relative_to(ROOT / 'docs').as_posix()}{anchor})"
        return text

    return _LINK.sub(mended, markdown)
