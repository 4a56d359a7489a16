#!/usr/bin/env python3
"""Make the environment that the Makefile uses. Needs nothing but Python 3.10 - 3.13.

    python3 tools/setup_environment.py default .venv   a virtual environment with the pinned packages
    python3 tools/setup_environment.py demo .venv      adds what the demo page needs to it
    python3 tools/setup_environment.py docs .venv      adds what the site of docs/ needs to it
    python tools/setup_environment.py own              only this package, into the environment that runs this
    python tools/setup_environment.py lock             write requirements-lock.txt anew from requirements.txt

The first three are repeated whenever the pins change. On Linux the first installs only files whose hashes are in
requirements-lock.txt; --no-hashes at its end installs requirements.txt without (mirrors with files of their own).
"""

import importlib.metadata
import importlib.util
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
LOCK = ROOT / "requirements-lock.txt"
LOCK_HEADER = """\
# What requirements.txt needs, all included, with the SHA-256 hashes of all files of each version: the files that
# `make setup` may install. Made by `make lock`, for Python 3.10 - 3.13 on Linux.
"""
# What uv resolves for, all at once.
LOCK_PROJECT = """\
[project]
name = "lock"
version = "0"
requires-python = ">=3.10"

[tool.uv]
environments = [
    "sys_platform == 'linux' and platform_machine == 'x86_64' and python_full_version < '3.14'",
    "sys_platform == 'linux' and platform_machine == 'aarch64' and python_full_version < '3.14'",
]
"""
# Modules that building and importing the package take, and where they come from; pip would replace another build
# of OpenCV.
NEEDED = {
    "setuptools": "setuptools",
    **{name: name for name in ("torch", "torchvision", "detectron2", "fvcore", "scipy", "pycocotools")},
    "cv2": "opencv-python-headless",
}
OLDEST_SETUPTOOLS = 77  # that of pyproject.toml
SUPPORTED = ((3, 10), (3, 11), (3, 12), (3, 13))


def main() -> None:
    if sys.argv[1:2] == ["own"]:
        install_into_own_environment()
    elif sys.argv[1:] == ["lock"]:
        write_lock()
    elif sys.argv[1:2] == ["default"] and sys.argv[3:] in ([], ["--no-hashes"]):
        make_default_environment(Path(sys.argv[2]), check_hashes=sys.platform == "linux" and not sys.argv[3:])
    elif sys.argv[1:2] in (["demo"], ["docs"]) and len(sys.argv) == 3:
        install_requirements(Path(sys.argv[2]) / "bin" / "python", f"requirements-{sys.argv[1]}.txt")
    else:
        sys.exit(__doc__)


def make_default_environment(folder: Path, *, check_hashes: bool) -> None:
    """Create or update the virtual environment ``folder`` from the requirements files."""
    python = folder / "bin" / "python"
    if not python.exists():
        run(supported_interpreter(), "-m", "venv", folder)
    say("Installing the pinned packages (PyTorch is large: this takes minutes the first time)")
    run(python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "uv")
    if check_hashes:
        install_requirements(python, LOCK.name, "--require-hashes")
    else:
        install_requirements(python, "requirements.txt")
    say("Installing Detectron2")
    install_detectron2(python)
    say("Installing updetr_d2")
    install_package(python)
    run(python, "-c", "import updetr_d2, torch; print('Ready: torch', torch.__version__)")
    say(f"For commands of your own: source {folder}/bin/activate")


def install_requirements(python: Path, file_name: str, *options: str) -> None:
    """Install a requirements file of this project into the environment of ``python``."""
    try:
        run(python, "-m", "uv", "pip", "install", "--python", python, *options, "-r", ROOT / file_name)
    except subprocess.CalledProcessError:
        say("uv did not manage; trying pip, which is slower")
        run(python, "-m", "pip", "install", *options, "-r", ROOT / file_name)


def write_lock() -> None:
    """Resolve requirements.txt, near the versions of the present lock, and write the hashes of all files."""
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "pyproject.toml").write_text(LOCK_PROJECT)
        shutil.copy(ROOT / "requirements.txt", folder)
        output = Path(folder) / "lock.txt"
        if LOCK.exists():
            shutil.copy(LOCK, output)
        options = ("--generate-hashes", "--universal", "--python-version", "3.10")
        quiet = ("--quiet", "--no-header", "--no-annotate", "-o", output.name, "requirements.txt")
        command = (sys.executable, "-m", "uv", "pip", "compile", *options, *quiet)
        subprocess.run(command, check=True, cwd=folder)
        LOCK.write_text(LOCK_HEADER + output.read_text())


def install_detectron2(python: Path) -> None:
    """Unpack the Python code of requirements-detectron2.txt; the file tags need not be those of this Python."""
    code = "import sysconfig; print(sysconfig.get_path('purelib'))"
    site_packages = subprocess.run(
        [python, "-c", code], check=True, capture_output=True, text=True
    ).stdout.strip()
    if (Path(site_packages) / "detectron2").exists():
        shutil.rmtree(Path(site_packages) / "detectron2")
    options = ("--no-deps", "--only-binary=:all:", "--implementation", "cp", "--python-version", "3.10")
    requirements = ROOT / "requirements-detectron2.txt"
    run(
        python,
        "-m",
        "pip",
        "install",
        "--disable-pip-version-check",
        "--upgrade",
        "--require-hashes",
        *options,
        "--target",
        site_packages,
        "-r",
        requirements,
    )


def install_into_own_environment() -> None:
    """Install this package, and nothing else, into the running environment."""
    missing = [package for name, package in NEEDED.items() if not importlib.util.find_spec(name)]
    if missing:
        sys.exit(
            f"{sys.executable} has no {', '.join(missing)}: install them first, or run `make setup` without "
            "PYTHON to get an environment with everything."
        )
    # Without build isolation, so that nothing is downloaded: pip takes the setuptools that is there.
    if int(importlib.metadata.version("setuptools").split(".")[0]) < OLDEST_SETUPTOOLS:
        sys.exit(
            f"setuptools of {sys.executable} is too old for this package's pyproject.toml: "
            f"`pip install 'setuptools>={OLDEST_SETUPTOOLS}'` there first."
        )
    install_package(Path(sys.executable))


def install_package(python: Path) -> None:
    run(
        python,
        "-m",
        "pip",
        "install",
        "--quiet",
        "--disable-pip-version-check",
        "--no-deps",
        "--no-build-isolation",
        "--editable",
        ROOT,
    )


def supported_interpreter() -> str:
    if sys.version_info[:2] in SUPPORTED:
        return sys.executable
    for major, minor in reversed(SUPPORTED):
        interpreter = shutil.which(f"python{major}.{minor}")
        if interpreter and not subprocess.run([interpreter, "-c", ""], capture_output=True).returncode:
            return interpreter
    sys.exit(
        f"Python {sys.version.split()[0]} is not supported: install Python 3.10 - 3.13, or use an "
        "environment of your own with `make setup PYTHON=...`."
    )


def run(*command: object) -> None:
    subprocess.run([str(part) for part in command], check=True, cwd=ROOT)


def say(message: str) -> None:
    print(f"=== {message}", flush=True)


if __name__ == "__main__":
    try:
        main()
    except subprocess.CalledProcessError as error:
        sys.exit(f"Set-up stopped: `{' '.join(error.cmd)}` failed with status {error.returncode}.")
