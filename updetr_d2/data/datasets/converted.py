"""Labels of other formats as files in COCO's format in the cache: checked, repaired and evaluated as such are.

A format is a function from a location to :class:`CocoContent`; :func:`add_converted_source` makes it a form of
data set names.
"""

import hashlib
import json
import logging
import os
from collections.abc import Callable, Sequence
from pathlib import Path

from updetr_d2.data.datasets.annotation_repair import AnnotationError
from updetr_d2.data.datasets.coco import register_coco
from updetr_d2.data.datasets.names import add_source
from updetr_d2.data.transforms.image_io import UnusableImageError, read_image_size
from updetr_d2.utils.cache import cache_folder, short_name
from updetr_d2.utils.files import write_text

logger = logging.getLogger(__name__)


class CocoContent:
    """Images and objects that become a file in COCO's format.

    Args:
        stem: of the name of the file.
        categories: id -> name.

    Attributes:
        num_skipped: images that could not be read.
    """

    def __init__(self, *, stem: str, categories: dict[int, str]) -> None:
        self.stem = stem
        self.categories = categories
        self.num_skipped = 0
        self._images: list[dict] = []
        self._objects: list[dict] = []

    def add_image(self, path: str, size: tuple[int, int] | None = None) -> tuple[int, int] | None:
        """Add an image, to which the objects that follow belong.

        Args:
            path: absolute.
            size: (width, height) if it is known.

        Returns:
            its size; None if it cannot be read, which is logged: it is not added.
        """
        try:
            width, height = size or read_image_size(path)
        except UnusableImageError as error:
            logger.warning("Skipping %s", error)
            self.num_skipped += 1
            return None
        image = {"id": len(self._images) + 1, "file_name": path, "width": width, "height": height}
        self._images.append(image)
        return width, height

    def add_object(
        self,
        category_id: int,
        box: Sequence[float],
        *,
        is_crowd: bool = False,
        polygon: list[float] | None = None,
    ) -> None:
        """Add an object of the last image.

        Args:
            category_id: one of the categories.
            box: XYWH in px.
            is_crowd: neither trained on nor counted.
            polygon: x, y, x, y, ... in px.
        """
        x, y, width, height = box
        found: dict = {
            "id": len(self._objects) + 1,
            "image_id": self._images[-1]["id"],
            "category_id": category_id,
            "bbox": [x, y, width, height],
            "area": max(width, 0) * max(height, 0),
            "iscrowd": int(is_crowd),
        }
        if polygon is not None:
            found["segmentation"] = [polygon]
        self._objects.append(found)

    def write(self) -> str:
        """Write the file into the cache.

        Returns:
            ``JSON@IMAGE_FOLDER``, as after ``coco:``.

        Raises:
            AnnotationError: if there are no images.
        """
        if not self._images:
            raise AnnotationError(f"{self.stem}: there is no image that can be read.")
        folder = os.path.commonpath([os.path.dirname(image["file_name"]) for image in self._images])
        images = [{**each, "file_name": os.path.relpath(each["file_name"], folder)} for each in self._images]
        categories = [{"id": number, "name": name} for number, name in self.categories.items()]
        text = json.dumps({"images": images, "annotations": self._objects, "categories": categories})
        digest = hashlib.sha256(f"{folder}\n{text}".encode(errors="surrogateescape")).hexdigest()[:24]
        path = cache_folder("converted_annotations", digest) / short_name(self.stem, ".json")
        if not path.exists():
            write_text(path, text)
        return f"{path}@{folder}"


_READERS: dict[str, Callable[[str], CocoContent]] = {}


def add_converted_source(prefix: str, *, form: str, read: Callable[[str], CocoContent]) -> None:
    """Make data set names that begin with ``prefix:`` usable.

    Args:
        prefix: of the names.
        form: how such names look, for people.
        read: from the part after the prefix to images and objects; raises ValueError with one sentence.
    """
    _READERS[prefix] = read

    def register(name: str, location: str) -> None:
        register_coco(name, read(location).write())

    add_source(prefix, form=form, register=register)


def coco_location(name: str) -> str:
    """``JSON@IMAGE_FOLDER`` of labels in any format.

    Args:
        name: of the form of a converted source, or of COCO's format with or without ``coco:`` before it.

    Raises:
        ValueError: if the labels cannot be used.
    """
    prefix, _, location = name.partition(":")
    return _READERS[prefix](location).write() if prefix in _READERS else name.removeprefix("coco:")


def split_of(location: str, *, default: str) -> tuple[str, str]:
    """The path and the split of ``PATH@SPLIT``.

    Args:
        location: the path may hold an ``@``; ``~`` is understood.
        default: the split where none is named.

    Returns:
        the absolute path, and the split.
    """
    path = Path(os.path.abspath(os.path.expanduser(location)))
    if path.exists() or "@" not in location:
        return str(path), default
    head, _, split = location.rpartition("@")
    return os.path.abspath(os.path.expanduser(head)), split
