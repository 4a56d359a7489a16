"""Public weights by name: ``zoo:swav_r50_800ep`` in MODEL.WEIGHTS, ``updetr fetch swav_r50_800ep``.

Files come from where their authors publish them, are checked against the digest that is published, converted, and
kept in the cache.
"""

import hashlib
import logging
import os
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from iopath.common.file_io import file_lock
from tqdm import tqdm

from updetr_d2.checkpoint.conversions import convert
from updetr_d2.checkpoint.safe_loading import CheckpointError, load_state_file
from updetr_d2.data.datasets.remote_files import RemoteStatus, read_range, remote_status
from updetr_d2.utils.cache import cache_folder
from updetr_d2.utils.files import replacing

logger = logging.getLogger(__name__)

PREFIX = "zoo:"

_BLOCK_SIZE = 2**23
# A block is tried again after these waits (seconds).
_WAITS = (1.0, 5.0, 20.0)


@dataclass(frozen=True)
class PublicFile:
    """Weights of other people.

    Attributes:
        what: for people.
        source: converter, a name in :data:`.conversions.SOURCES`.
        url: of the file; of a page for browsers if ``by_hand``.
        megabytes: as published; None if it is not.
        sha256, md5: first hexadecimal digits of the digest, as published; "" if it is not.
        by_hand: the page gives the file to browsers only.
    """

    what: str
    source: str
    url: str
    megabytes: int | None = None
    sha256: str = ""
    md5: str = ""
    by_hand: bool = False

    @property
    def digest(self) -> str:
        """What is published of it, for people."""
        if self.sha256:
            return f"SHA-256 {self.sha256}..."
        return f"MD5 {self.md5}..." if self.md5 else "none published"


def _swav(epochs: int) -> PublicFile:
    url = f"https://dl.fbaipublicfiles.com/deepcluster/swav_{epochs}ep_pretrain.pth.tar"
    return PublicFile(f"SwAV ResNet-50, {epochs} epochs", "swav", url)


def _moco(version: int, epochs: int, md5: str) -> PublicFile:
    stem = f"moco_v{version}_{epochs}ep"
    url = f"https://dl.fbaipublicfiles.com/moco/moco_checkpoints/{stem}/{stem}_pretrain.pth.tar"
    return PublicFile(f"MoCo v{version} ResNet-50, {epochs} epochs", "moco", url, md5=md5)


def _moco3(epochs: int) -> PublicFile:
    url = f"https://dl.fbaipublicfiles.com/moco-v3/r-50-{epochs}ep/r-50-{epochs}ep.pth.tar"
    return PublicFile(f"MoCo v3 ResNet-50, {epochs} epochs", "moco", url)


def _torchvision(depth: int, version: int, sha256: str, megabytes: int) -> PublicFile:
    url = f"https://download.pytorch.org/models/resnet{depth}-{sha256}.pth"
    what = f"torchvision ResNet-{depth}, ImageNet labels, V{version}"
    return PublicFile(what, "torchvision", url, megabytes, sha256)


def _detr(what: str, stem: str, sha256: str, megabytes: int | None, source: str = "detr") -> PublicFile:
    url = f"https://dl.fbaipublicfiles.com/detr/{stem}-{sha256}.pth"
    return PublicFile(f"DETR {what}, COCO", source, url, megabytes, sha256)


def _by_hand(what: str, source: str, page: str, *, megabytes: int | None = None, md5: str = "") -> PublicFile:
    url = f"https://drive.google.com/{page}"
    return PublicFile(what, source, url, megabytes, md5=md5, by_hand=True)


_DINO_PAGE = "drive/folders/1qD5m1NmK0kjE5hh-G17XUX751WsEG-h_"

ZOO = {
    **{f"swav_r50_{epochs}ep": _swav(epochs) for epochs in (100, 200, 400, 800)},
    "moco_v1_r50_200ep": _moco(1, 200, "b251726a"),
    "moco_v2_r50_200ep": _moco(2, 200, "59fd9945"),
    "moco_v2_r50_800ep": _moco(2, 800, "a04e12f8"),
    **{f"moco_v3_r50_{epochs}ep": _moco3(epochs) for epochs in (100, 300, 1000)},
    "torchvision_r18": _torchvision(18, 1, "f37072fd", 45),
    "torchvision_r34": _torchvision(34, 1, "b627a593", 83),
    "torchvision_r50": _torchvision(50, 1, "0676ba61", 98),
    "torchvision_r50_v2": _torchvision(50, 2, "11ad3fa6", 98),
    "torchvision_r101": _torchvision(101, 1, "63fe2227", 171),
    "torchvision_r101_v2": _torchvision(101, 2, "cd907fc2", 171),
    "detr_r50": _detr("ResNet-50", "detr-r50", "e632da11", 159),
    "detr_r101": _detr("ResNet-101", "detr-r101", "2c7b67e5", 232),
    "detr_r50_panoptic": _detr("ResNet-50, masks", "detr-r50-panoptic", "00ce5173", None, "detr-panoptic"),
    "detr_r101_panoptic": _detr("ResNet-101, masks", "detr-r101-panoptic", "40021d53", None, "detr-panoptic"),
    "updetr_r50_imagenet_60ep": _by_hand(
        "UP-DETR, pre-trained on ImageNet without labels",
        "up-detr",
        "file/d/1JhL1uwNJCaxMrIUx7UzQ3CMCHqmZpCnn/view",
        megabytes=164,
        md5="49f01f8b",
    ),
    "updetr_r50_coco_300ep": _by_hand(
        "UP-DETR, fine-tuned on COCO", "up-detr", "file/d/1_YNtzKKaQbgFfd6m2ZUCO6LWpKqd7o7X/view"
    ),
    "deformable_detr_r50_coco_50ep": _by_hand(
        "Deformable DETR, COCO", "deformable-detr", "file/d/1nDWZWHuRwtwGden77NLM9JoWe-YisJnA/view"
    ),
    "deformable_detr_refine_r50_coco_50ep": _by_hand(
        "Deformable DETR, refined boxes, COCO",
        "deformable-detr",
        "file/d/1JYKyRYzUH7uo9eVfDaVCiaIGZb5YTCuI/view",
    ),
    "deformable_detr_two_stage_r50_coco_50ep": _by_hand(
        "Deformable DETR, two stages, COCO",
        "deformable-detr",
        "file/d/15I03A7hNTpwuLNdfuEmW9_taZMNVssEp/view",
    ),
    "dino_r50_4scale_coco_12ep": _by_hand("DINO, checkpoint0011_4scale.pth, COCO", "dino", _DINO_PAGE),
}


def fetch(name: str, *, file: str | Path | None = None) -> Path:
    """The converted weights of a name, from the cache or, the first time, from their authors.

    Args:
        name: in :data:`ZOO`, also with ``zoo:`` before it.
        file: downloaded already, for what only browsers get.

    Returns:
        a file for ``MODEL.WEIGHTS``.

    Raises:
        CheckpointError: if there is no such name, or the file is not what is published.
        OSError: if the server does not give it; what has come so far is kept for the next try.
        RuntimeError: if the cache cannot be written.
    """
    name = name.removeprefix(PREFIX)
    if name not in ZOO:
        raise CheckpointError(f"There are no weights '{name}' in the zoo; use one of {', '.join(ZOO)}.")
    public = ZOO[name]
    converted = cache_folder("weights") / f"{name}.pth"
    if converted.exists() and file is None:
        return converted
    if file is None and public.by_hand:
        raise CheckpointError(
            f"'{name}' is given to browsers only: download it from {public.url} and hand it over once with "
            f"`updetr fetch {name} --file DOWNLOADED`."
        )
    with file_lock(str(converted)):  # two runs must not write to the end of the same file
        if not converted.exists() or file is not None:
            _make(name, converted, file)
    return converted


def _make(name: str, converted: Path, file: str | Path | None) -> None:
    public = ZOO[name]
    path = Path(file) if file is not None else download(public.url, converted.parent)
    try:
        check_digest(path, public)
        checkpoint, report = convert(load_state_file(path), source=public.source)
    except CheckpointError:
        if file is None:
            path.unlink()  # the next try starts anew
        raise
    if report.missing:
        logger.warning(
            "%s has no tensors for %d names, such as %s.", name, len(report.missing), report.missing[0]
        )
    for note in report.notes:
        logger.info("%s: %s", name, note)
    with replacing(converted) as target:
        torch.save(checkpoint, target)
    if file is None:
        path.unlink()
    logger.info("%s is in %s", name, converted)


def check_digest(path: str | Path, public: PublicFile) -> None:
    """Compare a file with the digest that is published.

    Raises:
        CheckpointError: if it is another file.
    """
    for algorithm, wanted in (("sha256", public.sha256), ("md5", public.md5)):
        if not wanted:
            continue
        digest = hashlib.new(algorithm)
        with open(path, "rb") as file:
            while block := file.read(_BLOCK_SIZE):
                digest.update(block)
        found = digest.hexdigest()
        if not found.startswith(wanted):
            raise CheckpointError(
                f"{path} is not the file of {public.url}: its {algorithm} begins with {found[: len(wanted)]}, "
                f"published is {wanted}; download it once more."
            )
        return
    logger.warning(
        "Its authors publish no digest of %s: the file is checked by the names of its tensors alone.",
        public.url,
    )


def download(url: str, folder: Path) -> Path:
    """Download a file, or the rest of it where an earlier try has ended.

    Args:
        url: ``http(s)://``.
        folder: for the file, beside which the unfinished one is kept.

    Raises:
        OSError: if the server does not give it.
    """
    status = remote_status(url)
    stem = f"{os.path.basename(url)}-{status.version:x}"
    path, unfinished = folder / stem, folder / f"{stem}.part"
    if path.exists():
        return path
    done = unfinished.stat().st_size if unfinished.exists() else 0
    logger.info("Downloading %s (%.0f MB, %.0f MB are there)", url, status.size / 1e6, done / 1e6)
    with (
        open(unfinished, "ab") as file,
        tqdm(total=status.size, initial=done, unit="B", unit_scale=True, disable=None) as progress,
    ):
        while file.tell() < status.size:
            content = _read_block(url, file.tell(), status)
            if not content:
                raise OSError(f"The server gives nothing of {url} from byte {file.tell()} on.")
            file.write(content)
            progress.update(len(content))
    os.replace(unfinished, path)
    return path


def _read_block(url: str, start: int, status: RemoteStatus) -> bytes:
    size = min(_BLOCK_SIZE, status.size - start)
    for wait in _WAITS:
        try:
            return read_range(url, start, size)
        except OSError as error:
            logger.warning("%s; the next try is in %.0f s.", error, wait)
            time.sleep(wait)
    return read_range(url, start, size)
