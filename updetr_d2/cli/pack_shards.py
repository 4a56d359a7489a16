"""Pack images into tar shards that DATASETS.TRAIN takes as "shards:DIR/{000000..000099}.tar".

    updetr pack-shards /data/photos /data/shards
    updetr pack-shards imagenet_train_unlabeled coco_2017_train /data/shards --shard-mb 500
    updetr pack-shards /data/photos /data/shards --max-side 640 --workers 8

The files go in as they are, in random order, so that each shard is a sample of the whole. With --max-side,
larger images become JPEG files of that size. Beside each shard lies its index (NAME.tar.index.npz); sources.tsv
tells which file became which member, and for those made smaller the size before and after. Labels are not packed.
"""

import argparse
import json
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
from detectron2.utils.file_io import PathManager
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm
from webdataset import ShardWriter

import updetr_d2  # noqa: F401  (registers the data sets)
from updetr_d2.data.datasets.names import DatasetDicts, load_dataset_dicts
from updetr_d2.data.datasets.shard_index import PREFIX, write_index_beside
from updetr_d2.data.transforms.image_io import UnusableImageError, read_image_rgb
from updetr_d2.data.transforms.shrink import shrink

MEGABYTE = 1_000_000


def get_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "sources", nargs="+", metavar="SOURCE", help="folder, or name of a data set as in DATASETS.TRAIN"
    )
    parser.add_argument("output", metavar="DIR", help="folder for the shards, new or empty")
    parser.add_argument("--shard-mb", type=float, default=1000, help="begin a new shard at this size (MB)")
    parser.add_argument("--shard-images", type=int, default=10_000, help="and at this number of images")
    parser.add_argument("--seed", type=int, default=0, help="of the order; -1 keeps that of the source")
    parser.add_argument("--check", action="store_true", help="decode each image and leave out damaged ones")
    parser.add_argument(
        "--max-side", type=int, help="make images with a longer side (px) smaller; others stay as they are"
    )
    parser.add_argument("--quality", type=int, default=90, help="of the JPEG files that --max-side makes")
    parser.add_argument(
        "--workers", type=int, default=0, help="processes that read, beside the one that writes"
    )
    return parser


class PartialShards:
    """Gives each shard its name only when it is complete, so that a crash leaves no half one behind.

    Args:
        folder: for the shards.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.shards: list[Path] = []

    def open(self, name: str) -> BinaryIO:
        """Open the shard ``name`` under a temporary name."""
        self._file = open(self.folder / f"{name}.part", "wb")  # noqa: SIM115  (closed when complete)
        return self._file

    def complete(self, name: str) -> None:
        """Close the shard, name it and write its index."""
        self._file.close()
        shard = self.folder / name
        os.replace(self._file.name, shard)
        write_index_beside(str(shard))
        self.shards.append(shard)


def pack(
    dataset: DatasetDicts,
    folder: Path,
    *,
    max_bytes: float,
    max_images: int,
    seed: int = 0,
    check: bool = False,
    max_side: int | None = None,
    quality: int = 90,
    num_workers: int = 0,
) -> tuple[list[Path], dict[str, str]]:
    """Pack the images of a data set.

    Args:
        dataset: dicts with ``file_name``.
        folder: for the shards; exists.
        max_bytes, max_images: a new shard begins when one has reached either.
        seed: of the order; negative keeps that of ``dataset``.
        check: decode each image and leave out what training could not use.
        max_side, quality: see :func:`~updetr_d2.data.transforms.shrink.shrink`; None keeps all files as they are.
        num_workers: processes that read.

    Returns:
        the shards, and the files left out with reasons.
    """
    order = list(range(len(dataset)))
    if seed >= 0:
        order = np.random.default_rng(seed).permutation(len(dataset)).tolist()
    left_out: dict[str, str] = {}
    partial = PartialShards(folder)
    writer = None
    files = _Files(dataset, check=check, max_side=max_side, quality=quality)
    with open(folder / "sources.tsv", "w", encoding="ascii") as sources:
        for number, file in enumerate(_read_all(files, order, left_out, num_workers=num_workers)):
            if writer is None:  # not before there is something to write
                writer = ShardWriter(
                    "%06d.tar",
                    maxcount=max_images,
                    maxsize=max_bytes,
                    opener=partial.open,
                    post=partial.complete,
                    verbose=0,
                    encoder=False,
                    mtime=0,
                )
            # Numbers instead of the names: these may be too long for the tar format, or have dots, at which
            # WebDataset ends the key of a sample.
            key = f"{number:010d}"
            writer.write({"__key__": key, file.extension: file.content})
            member = f"{Path(writer.fname).name}::{key}.{file.extension}"
            sources.write("\t".join([member, json.dumps(file.name), *file.notes]) + "\n")
    if writer is not None:
        writer.close()
    return partial.shards, left_out


class _File(NamedTuple):
    """A file to pack, or why it is left out.

    Attributes:
        notes: on the image, for the list of sources.
    """

    name: str
    content: bytes = b""
    extension: str = ""
    notes: tuple[str, ...] = ()
    refused: str = ""


class _Files(Dataset):
    """The files of a data set as they are packed, by index."""

    def __init__(self, dataset: DatasetDicts, *, check: bool, max_side: int | None, quality: int) -> None:
        self.dataset = dataset
        self.check = check
        self.max_side = max_side
        self.quality = quality

    def __getitem__(self, index: int) -> _File:
        name = str(self.dataset[index]["file_name"])
        try:
            return self._read(name)
        except UnusableImageError as error:
            return _File(name, refused=error.reason)
        except OSError as error:
            return _File(name, refused=error.strerror or str(error))

    def _read(self, name: str) -> _File:
        with PathManager.open(name, "rb") as file:
            content = file.read()
        if not content:
            raise UnusableImageError(name, "is empty")
        if self.max_side is not None:
            shrunk = shrink(name, content, max_side=self.max_side, quality=self.quality)
            if shrunk is not None:
                sizes = ("{}x{}".format(*size) for size in (shrunk.original_size, shrunk.size))
                return _File(name, shrunk.content, "jpg", notes=tuple(sizes))
        if self.check:
            read_image_rgb(name)
        return _File(name, content, _extension(name))


def _read_all(
    files: _Files, order: Sequence[int], left_out: dict[str, str], *, num_workers: int
) -> Iterator[_File]:
    """Give the files in an order; those that cannot be used go to ``left_out``."""
    # DataLoader's types want a Sampler or an Iterable of int, and a list is one that it refuses.
    loader: Any = DataLoader(
        files,
        batch_size=None,
        sampler=order,
        num_workers=num_workers,
        collate_fn=_identity,  # type: ignore[arg-type]
    )
    for file in tqdm(loader, unit=" images", disable=None):
        if file.refused:
            left_out[file.name] = file.refused
        else:
            yield file


def _identity(file: _File) -> _File:
    return file


def _extension(name: str) -> str:
    if name.startswith(PREFIX):  # a member of a shard: what follows # is its place
        name = name.rpartition("#")[0]
    return os.path.splitext(name)[1].lstrip(".").lower()


def main(arguments: list[str] | None = None) -> None:
    args = get_parser().parse_args(arguments)
    if args.shard_mb <= 0 or args.shard_images < 1:
        sys.exit("--shard-mb and --shard-images must be positive.")
    if (args.max_side is not None and args.max_side < 1) or not 1 <= args.quality <= 100 or args.workers < 0:
        sys.exit("--max-side must be positive, --quality in 1 to 100, --workers 0 or more.")
    folder = Path(args.output)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        sys.exit(f"{folder} is not an empty folder: old and new shards would be mixed up.")
    names = [f"folder:{source}" if os.path.isdir(source) else source for source in args.sources]
    try:
        dataset = load_dataset_dicts(names, filter_empty=False, key="SOURCE")
        folder.mkdir(parents=True, exist_ok=True)
        shards, left_out = pack(
            dataset,
            folder,
            max_bytes=args.shard_mb * MEGABYTE,
            max_images=args.shard_images,
            seed=args.seed,
            check=args.check,
            max_side=args.max_side,
            quality=args.quality,
            num_workers=args.workers,
        )
    except (ValueError, OSError) as error:
        sys.exit(f"pack_shards: {error}")
    for name, reason in left_out.items():
        print(f"left out {name}: {reason}", file=sys.stderr)
    if not shards:
        sys.exit("pack_shards: no image could be read.")
    print(f"{len(dataset) - len(left_out)} images in {len(shards)} shards, {len(left_out)} files left out")
    span = shards[0].name if len(shards) == 1 else f"{{{shards[0].stem}..{shards[-1].stem}}}.tar"
    print(f"DATASETS.TRAIN \"('shards:{folder.absolute() / span}',)\"")
