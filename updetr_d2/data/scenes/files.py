"""Write labeled scenes, drawn by any function, as JPEG images and annotation files in COCO's two formats."""

import json
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import numpy as np
import pycocotools.mask as mask_util
from PIL import Image

_JPEG_QUALITY = 95


def image_name(index: int) -> str:
    """File name of a scene; ``load_coco_panoptic_json`` expects the extension ".jpg"."""
    return f"{index:06d}.jpg"


def write_scenes(
    folder: Path,
    indices: Iterable[int],
    render: Callable[[int], tuple[np.ndarray, dict]],
    *,
    labeled: bool,
    thing_classes: Sequence[str],
    stuff_classes: Sequence[str],
) -> None:
    """Write ``images/*.jpg`` and, if ``labeled``, ``instances.json``, ``panoptic.json`` and ``panoptic/*.png``.

    Args:
        folder: a new folder.
        indices: which scenes; they are the image ids, too.
        render: draws a scene by its index: an image, uint8 H×W×3 RGB, and a dict with ``panoptic_seg`` and
            ``segments_info`` as made by :func:`segment`.
        labeled: whether to write annotations.
        thing_classes, stuff_classes: class names; contiguous category ids count the things first.
    """
    (folder / "images").mkdir(parents=True)
    if labeled:
        (folder / "panoptic").mkdir()
    images, instances, panoptic = [], [], []
    for index in indices:
        image, annotation = render(index)
        image_file = folder / "images" / image_name(index)
        Image.fromarray(image).save(image_file, quality=_JPEG_QUALITY, subsampling=0)
        if not labeled:
            continue
        height, width = image.shape[:2]
        images.append({"id": index, "file_name": image_file.name, "height": height, "width": width})
        label_name = f"{image_file.stem}.png"
        segment_map, segments = annotation["panoptic_seg"], annotation["segments_info"]
        _save_segment_map(segment_map, folder / "panoptic" / label_name)
        panoptic.append(
            {
                "image_id": index,
                "file_name": label_name,
                "segments_info": [{"id": s["id"], **_coco_segment(s)} for s in segments],
            }
        )
        instances += [
            {
                "image_id": index,
                **_coco_segment(s),
                "segmentation": _encode_mask(segment_map == s["id"]),
            }
            for s in segments
            if s["isthing"]
        ]

    if labeled:
        for annotation_id, instance in enumerate(instances, start=1):  # pycocotools ignores id 0
            instance["id"] = annotation_id
        categories = [
            {"id": i + 1, "name": name, "isthing": int(i < len(thing_classes))}
            for i, name in enumerate((*thing_classes, *stuff_classes))
        ]
        things = [category for category in categories if category["isthing"]]
        for file_name, annotations, kinds in (
            ("instances.json", instances, things),
            ("panoptic.json", panoptic, categories),
        ):
            content = {"images": images, "annotations": annotations, "categories": kinds}
            (folder / file_name).write_text(json.dumps(content))


def segment(mask: np.ndarray, segment_id: int, category_id: int, *, isthing: bool) -> dict:
    """Describe a segment of a scene.

    Args:
        mask: bool H×W, its visible pixels, at least one.
        segment_id: its id in ``panoptic_seg``, 1 to 255.
        category_id: contiguous, things first.
        isthing: whether it is a thing.

    Returns:
        an entry of ``segments_info``, with ``area`` (px) and ``bbox``, the tight box of the visible pixels
        (x0, y0, x1, y1) in Detectron2's ``XYXY_ABS``.
    """
    columns, rows = np.flatnonzero(mask.any(axis=0)), np.flatnonzero(mask.any(axis=1))
    return {
        "id": segment_id,
        "category_id": category_id,
        "isthing": isthing,
        "area": int(np.count_nonzero(mask)),
        "bbox": [int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1],
    }


def _coco_segment(segment: dict) -> dict:
    """Turn an entry of ``segments_info`` into COCO's: 1-based category, XYWH box."""
    x0, y0, x1, y1 = segment["bbox"]
    return {
        "category_id": segment["category_id"] + 1,
        "area": segment["area"],
        "bbox": [x0, y0, x1 - x0, y1 - y0],
        "iscrowd": 0,
    }


def _encode_mask(mask: np.ndarray) -> dict:
    rle = mask_util.encode(np.asfortranarray(mask, dtype=np.uint8))
    return {"size": rle["size"], "counts": rle["counts"].decode("ascii")}


def _save_segment_map(segment_map: np.ndarray, path: Path) -> None:
    """Save segment ids (below 256) in COCO's panoptic PNG encoding, id = R + 256 G + 256^2 B."""
    rgb = np.zeros((*segment_map.shape, 3), dtype=np.uint8)
    rgb[..., 0] = segment_map
    Image.fromarray(rgb).save(path)
