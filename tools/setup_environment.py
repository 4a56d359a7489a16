#!/usr/bin/env python3
"""Make the environment that the Makefile uses. Needs nothing but Python 3.10 - 3.12.

    python3 tools/setup_environment.py default .venv   a virtual environment with the pinned packages
    python3 tools/setup_environment.py demo .venv      adds what the demo page needs to it
    python tools/setup_environment.py own              only this package, into the environment that runs this

The first two are repeated whenever the pins change.
"""

import importlib.util
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SUPPORTED = ((3, 10), (3, 11), (3, 12))


def main() -> None:
    if sys.argv[1:2] == ["own"]:
        install_into_own_environment()
    elif sys.argv[1:2] == ["default"] and len(sys.argv) == 3:
        make_default_environment(Path(sys.argv[2]))
    elif sys.argv[1:2] == ["demo"] and len(sys.argv) == 3:
        install_requirements(Path(sys.argv[2]) / "bin" / "python", "requirements-demo.txt")
    else:
        sys.exit(__doc__)


def make_default_environment(folder: Path) -> None:
    """Create or update the virtual environment ``folder`` from the requirements files."""
    python = folder / "bin" / "python"
    if not python.exists():
        run(supported_interpreter(), "-m", "venv", folder)
    say("Installing the pinned packages (PyTorch is large: this takes minutes the first time)")
    run(python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "uv")
    install_requirements(python, "requirements.txt")
    say("Installing Detectron2")
    install_detectron2(python)
    say("Installing updetr_d2")
    install_package(python)
    run(python, "-c", "import updetr_d2, torch; print('Ready: torch', torch.__version__)")


def install_requirements(python: Path, file_name: str) -> None:
    """Install a requirements file of this project into the environment of ``python``."""
    try:
        run(python, "-m", "uv", "pip", "install", "--python", python, "-r", ROOT / file_name)
    except subprocess.CalledProcessError:
        say("uv did not manage; trying pip, which is slower")
        run(python, "-m", "pip", "install", "-r", ROOT / file_name)


def install_detectron2(python: Path) -> None:
    """Unpack Detectron2's Python code; pip checks the hash, the file tag is not that of this Python."""
    code = "import sysconfig; print(sysconfig.get_path('purelib'))"
    site_packages = subprocess.run(
        [python, "-c", code], check=True, capture_output=True, text=True
    ).stdout.strip()
    if (Path(site_packages) / "detectron2").exists():
        shutil.rmtree(Path(site_packages) / "detectron2")
    options = ("--no-deps", "--only-binary=:all:", "--implementation", "cp", "--python-version", "3.10")
    requirements = ROOT / "requirements-detectron2.txt"
    run(
        *(python, "-m", "pip", "install", "--disable-pip-version-check", "--upgrade", "--require-hashes"),
        *(*options, "--target", site_packages, "-r", requirements),
    )


def install_into_own_environment() -> None:
    """Install this package, and nothing else, into the running environment."""
    missing = [name for name in ("torch", "torchvision", "detectron2") if not importlib.util.find_spec(name)]
    if missing:
        sys.exit(
            f"{sys.executable} has no {', '.join(missing)}: install them first, or run `make setup` without "
            "PYTHON to get an environment with everything."
        )
    install_package(Path(sys.executable))


def install_package(python: Path) -> None:
    run(
        *(python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"),
        *("--no-deps", "--no-build-isolation", "--editable", ROOT),
    )


def supported_interpreter() -> str:
    if sys.version_info[:2] in SUPPORTED:
        return sys.executable
    for major, minor in reversed(SUPPORTED):
        interpreter = shutil.which(f"python{major}.{minor}")
        if interpreter and not subprocess.run([interpreter, "-c", ""], capture_output=True).returncode:
            return interpreter
    sys.exit(
        f"Python {sys.version.split()[0]} is not supported: install Python 3.10, 3.11 or 3.12, or use an "
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
