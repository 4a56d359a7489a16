"""Write folders in Pascal VOC's layout for tests."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

# Class name, XYXY in VOC's 1-based inclusive pixels, difficult.
VOCObject = tuple[str, tuple[int, int, int, int], int]


def write_voc_folder(
    folder: Path, splits: Mapping[str, Mapping[str, Sequence[VOCObject]]], *, size: tuple[int, int]
) -> None:
    """Write grey images with one bright rectangle for each object, XML files and lists of images.

    Args:
        folder: to write, such as ``.../VOC2007``.
        splits: name of a split -> image id -> objects.
        size: (width, height) of all images.
    """
    for name in ("Annotations", "ImageSets/Main", "JPEGImages"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    for split, images in splits.items():
        (folder / "ImageSets" / "Main" / f"{split}.txt").write_text("".join(f"{i}\n" for i in images))
        for image_id, objects in images.items():
            pixels = np.full((size[1], size[0], 3), 90, np.uint8)
            for name, (x0, y0, x1, y1), _ in objects:
                pixels[y0 - 1 : y1, x0 - 1 : x1, sum(map(ord, name)) % 3] = 250
            Image.fromarray(pixels).save(folder / "JPEGImages" / f"{image_id}.jpg", quality=95)
            xml = "".join(_object_xml(*entry) for entry in objects)
            size_xml = f"<size><width>{size[0]}</width><height>{size[1]}</height><depth>3</depth></size>"
            path = folder / "Annotations" / f"{image_id}.xml"
            path.write_text(f"<annotation>{size_xml}{xml}</annotation>")


def _object_xml(name: str, box: tuple[int, int, int, int], difficult: int) -> str:
    corners = "".join(f"<{key}>{v}</{key}>" for key, v in zip(("xmin", "ymin", "xmax", "ymax"), box))
    return (
        f"<object><name>{name}</name><pose>Unspecified</pose><truncated>0</truncated>"
        f"<difficult>{difficult}</difficult><bndbox>{corners}</bndbox></object>"
    )
