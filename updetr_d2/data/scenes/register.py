"""The embedded data set: generated scenes of several textured things on textured ground, exactly labeled.

Importing the module registers, for use in ``DATASETS.TRAIN`` and ``DATASETS.TEST``:

=========================================  ==========================================================
``scenes_unlabeled[_val]``                 images only, for pre-training and its evaluation
``scenes_train``, ``scenes_val``           instances with boxes and bitmask RLE masks
``scenes_{train,val}_panoptic``            things and stuff in COCO's panoptic format
=========================================  ==========================================================

A split is drawn when it is first loaded, into the cache folder (``$UPDETR_D2_CACHE``), as JPEG images and
COCO annotation files, so that mappers and evaluators find the same files as for COCO. The metadata hold the
paths of these files; they exist once the data set has been loaded.
"""

import functools
import hashlib
import logging
import shutil
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import load_coco_json
from detectron2.data.datasets.coco_panoptic import load_coco_panoptic_json
from iopath.common.file_io import file_lock

from updetr_d2.data.scenes.classes import COLORS, STUFF_CLASSES, THING_CLASSES
from updetr_d2.data.scenes.drawing import render_scene
from updetr_d2.data.scenes.files import image_name, write_scenes
from updetr_d2.utils.cache import cache_root

logger = logging.getLogger(__name__)

SCENE_SIZE = 128  # px
SEED = 0


@dataclass(frozen=True)
class Split:
    """Which scenes of the generator a split holds: ``count`` of them from ``first_index`` on."""

    first_index: int
    count: int
    labeled: bool


SPLITS = {
    "unlabeled": Split(first_index=0, count=4000, labeled=False),
    "unlabeled_val": Split(first_index=100_000, count=200, labeled=False),
    "train": Split(first_index=200_000, count=1000, labeled=True),
    "val": Split(first_index=300_000, count=200, labeled=True),
}


def register_scenes(root: Path, *, prefix: str = "scenes", splits: Mapping[str, Split] = SPLITS) -> None:
    """Register splits of the embedded data set with Detectron2; nothing is drawn or written yet.

    Args:
        root: folder below which every split gets a folder of its own when it is first loaded.
        prefix: beginning of the registered names.
        splits: what to register, by name.
    """
    for split_name, split in splits.items():
        name = f"{prefix}_{split_name}"
        folder = Path(root) / f"{name}-{_fingerprint(split)}"
        images = {"image_root": str(folder / "images")}
        if not split.labeled:
            DatasetCatalog.register(name, functools.partial(_load_images, folder, split))
            MetadataCatalog.get(name).set(**images, evaluator_type="query_patch")
            continue

        json_file = str(folder / "instances.json")
        thing_ids = {i + 1: i for i in range(len(THING_CLASSES))}
        DatasetCatalog.register(name, functools.partial(_load_instances, folder, split, name))
        MetadataCatalog.get(name).set(
            **images,
            json_file=json_file,
            evaluator_type="coco",
            thing_classes=list(THING_CLASSES),
            thing_colors=list(COLORS[: len(THING_CLASSES)]),
            thing_dataset_id_to_contiguous_id=thing_ids,
        )

        # As in Detectron2's "coco_panoptic_standard": both name lists hold all classes, things first.
        classes = [*THING_CLASSES, *STUFF_CLASSES]
        panoptic_metadata = {
            "thing_classes": classes,
            "thing_colors": list(COLORS),
            "stuff_classes": classes,
            "stuff_colors": list(COLORS),
            "thing_dataset_id_to_contiguous_id": thing_ids,
            "stuff_dataset_id_to_contiguous_id": {i + 1: i for i in range(len(THING_CLASSES), len(classes))},
        }
        name += "_panoptic"
        DatasetCatalog.register(name, functools.partial(_load_panoptic, folder, split, panoptic_metadata))
        MetadataCatalog.get(name).set(
            **images,
            **panoptic_metadata,
            json_file=json_file,
            panoptic_json=str(folder / "panoptic.json"),
            panoptic_root=str(folder / "panoptic"),
            evaluator_type="coco_panoptic_seg",
            ignore_label=255,
            label_divisor=1000,
        )


def _fingerprint(split: Split) -> str:
    """Identify what a split's files look like, so that a changed generator does not reuse old files."""
    here = Path(__file__).parent
    digest = hashlib.sha256(repr((split, SEED, SCENE_SIZE)).encode())
    for source in ("register.py", "classes.py", "drawing.py", "files.py", "things.py"):
        digest.update((here / source).read_bytes())
    return digest.hexdigest()[:10]


def _load_images(folder: Path, split: Split) -> list[dict]:
    _ensure_written(folder, split)
    return [
        {
            "file_name": str(folder / "images" / image_name(index)),
            "image_id": index,
            "height": SCENE_SIZE,
            "width": SCENE_SIZE,
        }
        for index in range(split.first_index, split.first_index + split.count)
    ]


def _load_instances(folder: Path, split: Split, name: str) -> list[dict]:
    _ensure_written(folder, split)
    return load_coco_json(str(folder / "instances.json"), str(folder / "images"), name)


def _load_panoptic(folder: Path, split: Split, metadata: dict) -> list[dict]:
    _ensure_written(folder, split)
    dataset_dicts = load_coco_panoptic_json(
        str(folder / "panoptic.json"), str(folder / "images"), str(folder / "panoptic"), metadata
    )
    for dataset_dict in dataset_dicts:
        dataset_dict.update(height=SCENE_SIZE, width=SCENE_SIZE)
    return dataset_dicts


def _ensure_written(folder: Path, split: Split) -> None:
    """Draw a split into its folder unless it is there; of several processes one draws, the others wait.

    Args:
        folder: the split's folder; it appears in one piece, complete.
        split: what to draw.

    Raises:
        RuntimeError: if the folder cannot be written.
    """
    if folder.is_dir():
        return
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with file_lock(str(folder)):
            if folder.is_dir():
                return
            logger.info("Drawing %d scenes into %s (once) ...", split.count, folder)
            start = time.perf_counter()
            unfinished = folder.with_name(folder.name + ".unfinished")
            shutil.rmtree(unfinished, ignore_errors=True)  # left by a process that was killed
            _write_split(unfinished, split)
            unfinished.rename(folder)
    except OSError as error:
        raise RuntimeError(
            f"Cannot write the generated scenes to {folder} ({error}): "
            "set $UPDETR_D2_CACHE to a folder that can be written."
        ) from error
    logger.info("Drew %d scenes in %.1f s.", split.count, time.perf_counter() - start)


def _write_split(folder: Path, split: Split) -> None:
    write_scenes(
        folder,
        range(split.first_index, split.first_index + split.count),
        lambda index: render_scene(SEED, index, SCENE_SIZE),
        labeled=split.labeled,
        thing_classes=THING_CLASSES,
        stuff_classes=STUFF_CLASSES,
    )


register_scenes(cache_root())
