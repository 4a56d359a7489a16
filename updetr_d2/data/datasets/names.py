"""Names of data sets that need no registration code, such as ``DATASETS.TRAIN: ("folder:/data/photos",)``.

Importing the module also registers ``imagenet_train_unlabeled`` and ``imagenet_val_unlabeled``, the folders
``ImageNet/train`` and ``ImageNet/val`` below ``$DETECTRON2_DATASETS`` (``datasets`` if it is not set).
"""

import functools
import itertools
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

from detectron2.data import DatasetCatalog, MetadataCatalog, get_detection_dataset_dicts
from torch.utils.data import ConcatDataset

from updetr_d2.data.datasets.image_folder import existing_folder, load_image_folder
from updetr_d2.data.datasets.pascal_voc import load_voc

# Evaluator of data sets without labels: how well are random patches found again?
QUERY_PATCH_EVALUATOR = "query_patch"


class DatasetDicts(Protocol):
    """Detectron2's dataset dicts by index: a list, or a data set that makes them when they are asked for."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> dict: ...

    def __iter__(self) -> Iterator[dict]: ...


class JoinedDatasetDicts(ConcatDataset):
    """Dataset dicts of several data sets, one after the other."""

    def __iter__(self) -> Iterator[dict]:
        return (self[i] for i in range(len(self)))


@dataclass(frozen=True)
class Source:
    """A form of data set names.

    Attributes:
        form: how such names look, for people.
        register: called with the full name and the part after the prefix; registers the name in
            Detectron2's catalogs or raises ValueError with one sentence.
    """

    form: str
    register: Callable[[str, str], None]


_SOURCES: dict[str, Source] = {}


def add_source(prefix: str, *, form: str, register: Callable[[str, str], None]) -> None:
    """Make data set names that begin with ``prefix:`` usable; see :class:`Source`."""
    _SOURCES[prefix] = Source(form, register)


def ensure_registered(names: Iterable[str]) -> None:
    """Register the data sets that say in their names where they are, such as ``folder:DIR``.

    Args:
        names: names as in ``DATASETS.TRAIN``; those already registered stay as they are.

    Raises:
        ValueError: for a name that is neither registered nor of a known form, or whose data are not there.
    """
    for name in names:
        if name in DatasetCatalog:
            if MetadataCatalog.get(name).get("evaluator_type") == "pascal_voc":
                DatasetCatalog.pop(name)
                DatasetCatalog.register(name, functools.partial(load_voc, name))
            continue
        prefix, separator, argument = name.partition(":")
        if not separator or prefix not in _SOURCES:
            forms = ", ".join(source.form for source in _SOURCES.values())
            raise ValueError(
                f"Unknown data set {name!r} in DATASETS: use the name of a registered data set or one of the "
                f"forms {forms}."
            )
        _SOURCES[prefix].register(name, argument)


def split_location(location: str, num_parts: int) -> list[str]:
    """The paths of ``FILE@FOLDER@...``, whose own names may hold an ``@``.

    Args:
        location: ``~`` is understood.
        num_parts: a file and so many folders less one.

    Returns:
        absolute paths: the first way of splitting of which all are there, else that at the last ``@``; fewer if
        the location has not enough of them.
    """
    pieces = location.split("@")
    for cuts in itertools.combinations(range(1, len(pieces)), num_parts - 1):
        ends = zip((0, *cuts), (*cuts, len(pieces)))
        file, *folders = (_absolute("@".join(pieces[begin:end])) for begin, end in ends)
        if os.path.isfile(file) and all(map(os.path.isdir, folders)):
            return [file, *folders]
    return [_absolute(part) for part in location.rsplit("@", num_parts - 1) if part]


def _absolute(path: str) -> str:
    return os.path.abspath(os.path.expanduser(path))


def load_dataset_dicts(
    names: Sequence[str], *, filter_empty: bool, key: str = "DATASETS.TRAIN"
) -> DatasetDicts:
    """Load one or more data sets, registered or named by a source, one after the other.

    Args:
        names: names of the data sets.
        filter_empty: leave out images of labelled data sets that have no (non-crowd) annotation.
        key: where the names come from, for messages.

    Returns:
        Dataset dicts in Detectron2's format, as a list or, for data sets without labels, a map-style
        ``torch.utils.data.Dataset``.

    Raises:
        ValueError: if there are no images.
    """
    if not names:
        raise ValueError(f"{key} is empty: name a data set, for instance {key} \"('folder:/data/photos',)\".")
    ensure_registered(names)
    try:
        if any(MetadataCatalog.get(name).get("evaluator_type") == QUERY_PATCH_EVALUATOR for name in names):
            # Detectron2 can neither mix lists and data sets nor labelled and unlabelled images.
            parts = [get_detection_dataset_dicts(name, filter_empty=filter_empty) for name in names]
            dataset_dicts = parts[0] if len(parts) == 1 else JoinedDatasetDicts(parts)
        else:
            dataset_dicts = get_detection_dataset_dicts(list(names), filter_empty=filter_empty)
    except AssertionError as error:  # Detectron2's way of saying that a data set is empty
        raise ValueError(f"{key} = {tuple(names)} has no images to use: {error}") from error
    if not len(dataset_dicts):
        raise ValueError(f"{key} = {tuple(names)} has no images to use.")
    return dataset_dicts


def _register_images(name: str, folder: str) -> None:
    DatasetCatalog.register(name, functools.partial(load_image_folder, folder))
    MetadataCatalog.get(name).set(image_root=folder, evaluator_type=QUERY_PATCH_EVALUATOR)


def _register_folder(name: str, folder: str) -> None:
    _register_images(name, existing_folder(folder))


def register_imagenet() -> None:
    """Register ImageNet's images without their labels; see the module."""
    root = os.path.expanduser(os.getenv("DETECTRON2_DATASETS", "datasets"))
    for split in ("train", "val"):
        _register_images(f"imagenet_{split}_unlabeled", os.path.join(root, "ImageNet", split))


add_source("folder", form="folder:DIR", register=_register_folder)
register_imagenet()
