"""The code and the commands that pages show, so that tests can run them as they stand."""

import re
import shlex
from pathlib import Path

ROOT = Path(__file__).parents[2]


def blocks(page: str, language: str = "") -> list[str]:
    """The code blocks of a page of the repository."""
    text = (ROOT / page).read_text(encoding="utf-8")
    found = re.findall(r"^```(\w*)\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)
    return [code for its_language, code in found if its_language == language]


def python_files(page: str) -> dict[str, str]:
    """The Python blocks that begin with a file's name, such as ``# train.py``, by this name."""
    named = {re.match(r"# (\w+\.py)\n", block): block for block in blocks(page, "python")}
    return {name[1]: block for name, block in named.items() if name}


def commands(page: str, start: str) -> list[list[str]]:
    """The command lines that begin with ``start``, split as a shell does it."""
    lines = [line for block in blocks(page) for line in block.replace("\\\n", " ").splitlines()]
    return [shlex.split(line) for line in lines if line.startswith(start)]
