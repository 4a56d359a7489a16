"""Labelled data sets straight from the command line: ``coco:/data/train.json@/data/images``."""

import hashlib
import json
import logging
import os
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import load_coco_json

from updetr_d2.data.datasets.coco_dicts import (
    coco_dicts,
    read_dicts,
    without_garbage_collection,
    write_dicts,
)
from updetr_d2.data.datasets.coco_repair import AnnotationError, read_annotation_file, repair_annotations
from updetr_d2.data.datasets.names import add_source, split_location
from updetr_d2.data.datasets.repaired_files import keep_repaired
from updetr_d2.utils.cache import cache_folder, keep_copy, short_name
from updetr_d2.utils.files import write_text

logger = logging.getLogger(__name__)

# A file changed this shortly (ns) before it was read may change again within the clock tick of its file system.
_MTIME_MARGIN = 2_000_000_000


@dataclass(frozen=True)
class CocoFiles:
    """A checked data set in COCO's format.

    Attributes:
        json_file: annotations as evaluators read them: a copy in the cache, repaired if something had to be.
        categories: ``(id, name)``, sorted by id.
        dicts_file: the dataset dicts in the cache; None if they are not there.
        summary: numbers of images, annotations and classes, for the log.
    """

    json_file: str
    categories: list[tuple[int, str]]
    dicts_file: str | None
    summary: str

    def load(self, name: str, image_folder: str) -> list[dict]:
        """Detectron2's dataset dicts of the data set registered as ``name``."""
        if self.dicts_file is not None:
            try:
                return read_dicts(self.dicts_file)
            except (OSError, ValueError) as error:
                logger.warning("The annotations of %s are read once more: %s", name, error)
        return load_coco_json(self.json_file, image_folder, name)


def register_coco(name: str, location: str) -> None:
    """Check a data set in COCO's format and register it, with its classes, under ``name``.

    Detectron2's loader and evaluators read a copy of the annotation file in the cache folder: repaired if
    anything had to be, and the same for the whole run.

    Args:
        name: for ``DATASETS.*``.
        location: ``JSON@IMAGE_FOLDER``; ``~`` is understood.

    Raises:
        ValueError: if the location is of another form, or its files cannot be used.
    """
    parts = split_location(location, 2)
    if len(parts) != 2:
        raise ValueError(
            f"DATASETS: '{name}' must name an annotation file and a folder, as in "
            "coco:/data/train.json@/data/images."
        )
    json_file, image_folder = parts
    if not os.path.isdir(image_folder):
        raise ValueError(f"DATASETS: '{name}' names the folder {image_folder}, which does not exist.")
    files, fresh = usable_files(json_file, image_folder)

    def load() -> list[dict]:
        """The first caller gets what was made just now; each gets lists of its own."""
        return fresh.pop() if fresh else files.load(name, image_folder)

    DatasetCatalog.register(name, load)
    MetadataCatalog.get(name).set(
        json_file=files.json_file,
        image_root=image_folder,
        evaluator_type="coco",
        thing_classes=[class_name for _, class_name in files.categories],
        thing_dataset_id_to_contiguous_id=_contiguous_ids(files.categories),
    )


def usable_annotation_file(json_file: str, image_folder: str) -> tuple[str, list[tuple[int, str]]]:
    """Check an annotation file; log what is wrong with it as a table.

    Returns:
        the copy in the cache folder, repaired if something had to be; and the categories as ``(id, name)``,
        sorted by id.

    Raises:
        AnnotationError: if it cannot be used.
    """
    files, _ = usable_files(json_file, image_folder)
    return files.json_file, files.categories


def usable_files(json_file: str, image_folder: str) -> tuple[CocoFiles, list[list[dict]]]:
    """Check an annotation file, unless it is known from an earlier start and has not changed since.

    A file with problems is checked, and they are logged, at each start: images that were missing may have come.

    Returns:
        the files, and a list with the dataset dicts if they have been made now.

    Raises:
        AnnotationError: if it cannot be used.
    """
    state = _state(json_file, image_folder)
    known = _read_known(state)
    if known is not None:
        logger.info("%s: %s (checked before)", json_file, known.summary)
        return known, []
    with without_garbage_collection():
        content = read_annotation_file(json_file)
        repaired, report = repair_annotations(content, json_file=json_file, image_folder=image_folder)
        categories = sorted((category["id"], category["name"]) for category in repaired["categories"])
        images, annotations = len(repaired["images"]), len(repaired["annotations"])
        summary = f"{images} images, {annotations} annotations, {len(categories)} classes"
        logger.info("%s: %s", json_file, summary)
        if content["annotations"] and not annotations:
            raise AnnotationError(
                f"None of the {len(content['annotations'])} annotations of {json_file} can be used: "
                f"{report.sentence()}."
            )
        if report.counts:
            usable_file = keep_repaired(repaired, json_file=json_file, report=report)
        else:
            if report.notes:
                logger.warning("Odd things in %s:\n%s", json_file, report.table())
            usable_file = keep_copy(json_file, "annotations")
        dataset_dicts = coco_dicts(repaired, image_folder, _contiguous_ids(categories))
        del content, repaired  # half of the memory
        files = CocoFiles(usable_file, categories, _keep_dicts(state, dataset_dicts), summary)
    if not report.counts and not report.notes:
        _write_known(state, files)
    return files, [dataset_dicts]


def _contiguous_ids(categories: list[tuple[int, str]]) -> dict[int, int]:
    return {category_id: i for i, (category_id, _) in enumerate(categories)}


def _state(json_file: str, image_folder: str) -> list:
    """What a data set is known by: paths, and time, size and number of the annotation file."""
    try:
        status = os.stat(json_file)
    except OSError:
        return [json_file, image_folder]
    return [json_file, image_folder, status.st_mtime_ns, status.st_size, status.st_ino]


def _cache_file(state: list, suffix: str) -> Path:
    digest = hashlib.sha256(os.fsencode(repr(state))).hexdigest()[:24]
    return cache_folder("coco") / short_name(Path(state[0]).stem, f"-{digest}{suffix}")


def _keep_dicts(state: list, dataset_dicts: list[dict]) -> str | None:
    try:
        path = _cache_file(state, ".dicts")
        write_dicts(path, dataset_dicts)
    except (OSError, RuntimeError) as error:
        logger.warning("The annotations are not kept, each start will read them anew: %s", error)
        return None
    return str(path)


def _read_known(state: list) -> CocoFiles | None:
    """What an earlier start has found of the file, None if that is not known or any more there."""
    try:
        known = json.loads(_cache_file(state, ".json").read_text(encoding="utf-8"))
        if known["state"] != state:
            return None
        categories = [(int(category_id), str(name)) for category_id, name in known["files"]["categories"]]
        files = CocoFiles(**{**known["files"], "categories": categories})
        are_there = all(map(os.path.isfile, (files.json_file, str(files.dicts_file))))
        return files if are_there else None
    except (OSError, RuntimeError, ValueError, KeyError, TypeError):
        return None  # none yet, or damaged


def _write_known(state: list, files: CocoFiles) -> None:
    is_settled = len(state) > 2 and time.time_ns() - state[2] > _MTIME_MARGIN
    if not is_settled or files.dicts_file is None or files.json_file == state[0]:
        return
    try:
        write_text(_cache_file(state, ".json"), json.dumps({"state": state, "files": asdict(files)}))
    except (OSError, RuntimeError) as error:
        logger.warning("That %s was checked is not kept: %s", state[0], error)


add_source("coco", form="coco:ANNOTATIONS.json@IMAGE_DIR", register=register_coco)
