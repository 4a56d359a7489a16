"""Panoptic annotations in COCO's format: a JSON file, and a PNG of segment ids for each image."""

import hashlib
import json
import logging
import os
from collections.abc import Iterator

import numpy as np
import pycocotools.mask as mask_util
from detectron2.data import Metadata
from detectron2.utils.file_io import PathManager
from iopath.common.file_io import file_lock
from PIL import Image

from updetr_d2.data.datasets.coco_repair import AnnotationError, read_json
from updetr_d2.data.datasets.panoptic_repair import repair_panoptic_content
from updetr_d2.data.datasets.repaired_files import keep_repaired
from updetr_d2.data.transforms.image_io import UnusableImageError
from updetr_d2.utils.cache import cache_folder, keep_copy
from updetr_d2.utils.files import refuse_special_file, write_text

logger = logging.getLogger(__name__)

VOID = 0  # id of pixels without a segment
# Field -> types that it may have, of each section of a file.
_FIELDS: dict[str, dict[str, tuple]] = {
    "images": {"id": (int, str), "file_name": (str,), "height": (int,), "width": (int,)},
    "annotations": {"image_id": (int, str), "file_name": (str,)},
    "categories": {"id": (int,), "name": (str,)},
}
_SEGMENT_FIELDS = {"id": (int,), "category_id": (int,), "area": (int, float), "iscrowd": (int, bool)}
_SEGMENT_KEYS = {"id", "category_id", "area", "iscrowd"}


def read_panoptic_png(file_name: str) -> np.ndarray:
    """The ids of a panoptic PNG as its colors, uint8 ``[height, width, 3]``.

    Palettes are looked up, alpha is left away; the values of grey files, of 8 or 16 bits, are the ids themselves.

    Raises:
        UnusableImageError: if it cannot be read.
    """
    try:
        refuse_special_file(file_name)
        with PathManager.open(file_name, "rb") as file:
            image = Image.open(file)
            if image.mode in ("RGB", "RGBA", "P", "PA"):
                return np.array(image.convert("RGB"))
            ids = np.asarray(image)
    except Exception as error:  # damaged files make Pillow raise nearly anything
        raise UnusableImageError(file_name, f"cannot be read as a label image ({error})") from error
    ids = ids[..., 0] if ids.ndim == 3 else ids
    if not np.issubdtype(ids.dtype, np.integer) or ids.min() < 0:
        raise UnusableImageError(file_name, f"holds no ids of segments, but pixels of mode {image.mode}")
    ids = ids.astype(np.int64)
    return np.stack([ids % 256, ids // 256 % 256, ids // 65536], axis=-1).astype(np.uint8)


def rgb_to_ids(rgb: np.ndarray) -> np.ndarray:
    """Colors of a panoptic PNG, uint8 ``[..., 3]`` -> segment ids R + 256 G + 65536 B, int64 ``[...]``."""
    return rgb[..., :3].astype(np.int64) @ np.array([1, 256, 65536])


def read_panoptic_file(json_file: str) -> dict:
    """Read a panoptic annotation file.

    Raises:
        AnnotationError: if it cannot be read or is not in COCO's panoptic format.
    """
    return check_panoptic_content(read_json(json_file), json_file)


def usable_panoptic_file(json_file: str) -> tuple[str, dict]:
    """Check a panoptic annotation file; what is repaired is logged as a table.

    Returns:
        the copy in the cache folder, repaired if something had to be, for evaluators until the end of the run; and
        its content.

    Raises:
        AnnotationError: if it cannot be used.
    """
    repaired, report = repair_panoptic_content(read_json(json_file))
    content = check_panoptic_content(repaired, json_file)
    if report.counts:
        return keep_repaired(content, json_file=json_file, report=report), content
    return keep_copy(json_file, "annotations"), content


def check_panoptic_content(content: object, json_file: str) -> dict:
    """Return the content of a panoptic annotation file if it is one.

    Raises:
        AnnotationError: if it is not in COCO's panoptic format.
    """
    if not isinstance(content, dict) or not {"images", "annotations", "categories"} <= content.keys():
        raise AnnotationError(
            f"{json_file} is not a panoptic annotation file: it must have 'images', 'annotations' and "
            "'categories'."
        )
    for section in _FIELDS:
        _check_fields(content[section], section, {}, json_file)
    if not all("segments_info" in annotation for annotation in content["annotations"]):
        raise AnnotationError(
            f"The annotations of {json_file} have no 'segments_info'; use coco:ANNOTATIONS.json@IMAGE_DIR for "
            "instance annotations."
        )
    if not content["categories"] or not all(c.get("isthing") in (0, 1) for c in content["categories"]):
        raise AnnotationError(f"The 'categories' of {json_file} must each say 'isthing' (0 or 1).")
    for section, fields in _FIELDS.items():
        _check_fields(content[section], section, fields, json_file)
    if len({type(image["id"]) for image in content["images"]}) > 1:
        raise AnnotationError(
            f"The ids of the 'images' of {json_file} are texts and integers; make all the same."
        )
    known = {category["id"] for category in content["categories"]}
    if len(known) < len(content["categories"]):
        raise AnnotationError(f"The 'categories' of {json_file} hold an id more than once.")
    for annotation in content["annotations"]:
        _check_fields(annotation["segments_info"], "segments_info", {}, json_file)
        for segment in annotation["segments_info"]:
            if not segment.keys() >= _SEGMENT_KEYS:
                raise AnnotationError(
                    f"A segment of {annotation['file_name']} in {json_file} lacks "
                    f"{sorted(_SEGMENT_KEYS - segment.keys())}, which panoptic evaluation needs."
                )
            _check_fields([segment], "segments_info", _SEGMENT_FIELDS, json_file)
            if segment["category_id"] not in known:
                raise AnnotationError(
                    f"{json_file} uses the category id {segment['category_id']} ({annotation['file_name']}), "
                    "which its 'categories' do not define."
                )
    return content


def _check_fields(entries: object, section: str, fields: dict[str, tuple], json_file: str) -> None:
    """Raise AnnotationError, naming the field, unless all entries are objects with fields of the right types."""
    if not isinstance(entries, list):
        raise AnnotationError(f"'{section}' of {json_file} is not a list.")
    for entry in entries:
        if not isinstance(entry, dict):
            raise AnnotationError(f"'{section}' of {json_file} holds {str(entry)[:50]}, not an object.")
        for name, types in fields.items():
            if type(entry.get(name)) not in types:
                raise AnnotationError(
                    f"An entry of '{section}' in {json_file} has {str(entry.get(name))[:50]} as '{name}'; it must "
                    f"be {' or '.join(each.__name__ for each in types)}."
                )


def instances_file(metadata: Metadata) -> str:
    """The instance annotations of a panoptic data set; made from the panoptic ones if it has none.

    Args:
        metadata: ``json_file`` is returned if there is such a file; else ``panoptic_json`` and
            ``panoptic_root`` are read, and the result is kept in the cache folder.
    """
    json_file = metadata.get("json_file")
    if json_file and os.path.isfile(json_file):
        return json_file
    state = os.stat(metadata.panoptic_json)
    source = (
        os.path.abspath(metadata.panoptic_json),
        metadata.panoptic_root,
        state.st_mtime_ns,
        state.st_size,
    )
    digest = hashlib.sha256(repr(source).encode()).hexdigest()[:24]
    path = cache_folder("panoptic_instances") / f"{digest}.json"
    with file_lock(str(path)):
        if not path.is_file():
            logger.info("Making instance annotations of %s (once) ...", metadata.panoptic_json)
            content = read_panoptic_file(metadata.panoptic_json)
            write_text(path, json.dumps(_things_as_instances(content, metadata.panoptic_root)))
    return str(path)


def _things_as_instances(content: dict, png_folder: str) -> dict:
    """COCO's instance annotations of the things of panoptic ones."""
    things = [category for category in content["categories"] if category["isthing"]]
    thing_ids = {category["id"] for category in things}
    annotations: list[dict] = []
    usable = set()
    for annotation in content["annotations"]:
        try:
            annotations += _image_instances(annotation, thing_ids, png_folder)
            usable.add(annotation["image_id"])
        except UnusableImageError as error:
            logger.warning("The annotations of an image are left out: %s", error)
    for annotation_id, annotation in enumerate(annotations, start=1):  # pycocotools ignores id 0
        annotation["id"] = annotation_id
    images = [image for image in content["images"] if image["id"] in usable]
    return {"images": images, "annotations": annotations, "categories": things}


def _image_instances(annotation: dict, thing_ids: set[int], png_folder: str) -> Iterator[dict]:
    ids = rgb_to_ids(read_panoptic_png(os.path.join(png_folder, annotation["file_name"])))
    for segment in annotation["segments_info"]:
        mask = ids == segment["id"]
        if segment["category_id"] not in thing_ids or not mask.any():
            continue
        rle = mask_util.encode(np.asfortranarray(mask, dtype=np.uint8))
        yield {
            "image_id": annotation["image_id"],
            "category_id": segment["category_id"],
            "iscrowd": segment.get("iscrowd", 0),
            "area": int(mask.sum()),
            "bbox": mask_util.toBbox(rle).tolist(),
            "segmentation": {"size": rle["size"], "counts": rle["counts"].decode("ascii")},
        }
