"""Pins, lock file and the page about dependencies agree, and every locked package has hashes."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
PIN = re.compile(r"^([A-Za-z0-9_.-]+)==([^\s;\\]+)", flags=re.MULTILINE)


def pins(file_name: str) -> set[tuple[str, str]]:
    found = PIN.findall((ROOT / file_name).read_text())
    return {(name.lower().replace("_", "-"), version) for name, version in found}


def test_every_requirement_is_exact_and_in_the_lock():
    lines = (ROOT / "requirements.txt").read_text().splitlines()
    assert all(PIN.match(line) for line in lines if line and not line.startswith("#"))
    missing = pins("requirements.txt") - pins("requirements-lock.txt")
    assert not missing, f"run `make lock`: {missing}"


def test_every_locked_package_has_hashes_and_nothing_comes_from_elsewhere():
    text = (ROOT / "requirements-lock.txt").read_text()
    entries = re.split(r"^(?=[A-Za-z0-9])", text, flags=re.MULTILINE)[1:]
    assert len(entries) == len(PIN.findall(text)) > 100
    for entry in entries:
        assert re.search(r"--hash=sha256:[0-9a-f]{64}", entry), entry.splitlines()[0]
    assert "://" not in text
    assert "--index-url" not in text


def test_the_page_names_every_direct_dependency_in_bold():
    page = (ROOT / "docs" / "DEPENDENCIES.md").read_text()
    for name, _ in pins("requirements.txt") | pins("requirements-detectron2.txt"):
        assert f"**{name}**" in page, f"docs/DEPENDENCIES.md does not give the licence of {name}"


def test_the_page_names_every_locked_package():
    page = (ROOT / "docs" / "DEPENDENCIES.md").read_text().lower()
    # Only Python 3.10 needs these.
    old_python = {"coloredlogs", "exceptiongroup", "humanfriendly", "six", "tomli"}
    for name in {name for name, _ in pins("requirements-lock.txt")} - old_python:
        assert name.startswith("nvidia-") or name in page, f"docs/DEPENDENCIES.md does not name {name}"
