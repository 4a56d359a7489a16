"""Check and repair COCO annotation files: a bad one is reported at the start of a run, not in its middle.

What can be repaired without guessing is repaired and counted; what cannot, such as a category id that the
file does not define, stops with one sentence.
"""

import json
import logging
import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from itertools import islice
from urllib.parse import unquote

from updetr_d2.data.datasets.annotation_repair import (
    CLIP_TOLERANCE,
    AnnotationError,
    RepairReport,
    id_key,
    is_usable_id,
    number,
    numbers,
    repair_fields,
    stands_out,
)
from updetr_d2.data.datasets.plain_annotations import have_plain_ids, plain_places
from updetr_d2.data.transforms.image_io import UnusableImageError, read_image_size
from updetr_d2.utils.files import refuse_special_file

__all__ = ["AnnotationError", "RepairReport", "read_annotation_file", "read_json", "repair_annotations"]

logger = logging.getLogger(__name__)

# So many boxes that all look like another format are no coincidence.
_ENOUGH_BOXES = 4
# Of the names of files that were uploaded to Label Studio.
_UPLOAD_PREFIX = re.compile(r"^[0-9a-f]{8}-(?=.)")


def read_json(json_file: str) -> object:
    """Read a JSON file.

    Raises:
        AnnotationError: if there is no such file, it is empty or not JSON.
    """
    try:
        refuse_special_file(json_file)
        with open(json_file, encoding="utf-8-sig") as file:
            return json.load(file)
    except OSError as error:
        raise AnnotationError(
            f"The annotation file {json_file} cannot be read ({error.strerror})."
        ) from error
    except ValueError as error:
        if os.path.getsize(json_file) == 0:
            raise AnnotationError(f"The annotation file {json_file} is empty.") from error
        raise AnnotationError(f"The annotation file {json_file} is not JSON ({error}).") from error
    except RecursionError as error:
        raise AnnotationError(f"The annotation file {json_file} is nested too deeply.") from error


def read_annotation_file(json_file: str) -> dict:
    """Read a file in COCO's instances format; a file without ``annotations`` has none.

    Raises:
        AnnotationError: if there is no such file, it is empty, not JSON or not in COCO's format.
    """
    content = read_json(json_file)
    lists = ("images", "categories", "annotations")
    if isinstance(content, dict):
        content = {"annotations": [], **content}
    if not isinstance(content, dict) or not all(_is_list_of_dicts(content.get(name)) for name in lists):
        raise AnnotationError(
            f"The annotation file {json_file} is not in COCO's format: it must be an object with the lists "
            "'images', 'annotations' and 'categories'."
        )
    return content


def repair_annotations(content: dict, *, json_file: str, image_folder: str) -> tuple[dict, RepairReport]:
    """Check the content of an annotation file against itself and against the image files.

    Args:
        content: as :func:`read_annotation_file` returns it; not changed.
        json_file: where it comes from, for messages.
        image_folder: folder that ``file_name`` is relative to.

    Returns:
        the content with everything repaired (the same object if nothing had to be), and what was found. Ids of
        categories are integers then, names are texts.

    Raises:
        AnnotationError: if ids of categories are missing, doubled or unknown, no image is left, or the boxes are
            of another format.
    """
    report = RepairReport()
    categories = _repair_categories(_without_root(content, report), json_file, report)
    images = _repair_images(_named_images(content["images"], report), image_folder, report)
    if not images:
        raise AnnotationError(
            f"None of the {len(content['images'])} images of {json_file} can be used: "
            + (
                f"is {image_folder} the folder of its images? Found: {report.sentence()}."
                if content["images"]
                else "it lists none."
            )
        )
    annotated = _images_of(content["annotations"], images)
    _check_box_format(content["annotations"], annotated, json_file)
    plain = plain_places(content["annotations"], annotated)
    if have_plain_ids(content["annotations"], images, categories):
        annotations = _repair_odd(content["annotations"], annotated, plain, report)
    else:
        annotations = _repair_annotations(content, annotated, images, categories, plain, report)
    _check_category_ids(annotations, categories, json_file)
    used = {annotation["category_id"] for annotation in annotations}
    for category in categories.values():
        if annotations and category["id"] not in used:
            report.note("category without a box", f"{category['name']} (id {category['id']})")
    if not report.counts:
        return content, report
    return {
        **content,
        "images": list(images.values()),
        "annotations": annotations,
        "categories": list(categories.values()),
    }, report


def _without_root(content: dict, report: RepairReport) -> list[dict]:
    """The categories without the one above all others that Roboflow writes, which no object has."""
    categories = content["categories"]
    roots = [
        each for each in categories if id_key(each.get("id")) == "0" and each.get("supercategory") == "none"
    ]
    others = [each for each in categories if each not in roots]
    if (
        len(roots) != 1
        or not others
        or any(each.get("supercategory") != roots[0].get("name") for each in others)
    ):
        return categories
    if any(id_key(each.get("category_id")) == "0" for each in content["annotations"]):
        return categories
    report.add("category above all others, as of Roboflow: left out", f"{roots[0]['name']} (id 0)")
    return others


def _repair_categories(categories: list[dict], json_file: str, report: RepairReport) -> dict[str, dict]:
    """Categories by the key of their id, with integers as ids and texts as names."""
    if not categories or any("id" not in category or "name" not in category for category in categories):
        raise AnnotationError(
            f"The 'categories' of {json_file} must list at least one category, each with 'id' and 'name'."
        )
    keys = [id_key(category["id"]) for category in categories]
    if None in keys:
        raise AnnotationError(
            f"The 'categories' of {json_file} hold the id {categories[keys.index(None)]['id']}, which is neither "
            "an integer nor a text."
        )
    known = [key for key in keys if key is not None]
    doubled = [key for key, count in Counter(known).items() if count > 1]
    if doubled:
        raise AnnotationError(f"The 'categories' of {json_file} hold the id {doubled[0]} more than once.")
    integers = [number(key) if len(key) < 16 else None for key in known]
    if not all(type(each) is int for each in integers) or len(set(integers)) < len(integers):
        integers = list(range(1, len(known) + 1))
    repaired = {}
    for key, category, new_id in zip(known, categories, integers):
        name = category["name"]
        if not isinstance(name, str) or not name:
            report.add("category name is no text: made one", f"{name} (id {category['id']})")
            name = str(name) if isinstance(name, int | float) else f"category {category['id']}"
        if type(category["id"]) is not int or category["id"] != new_id:
            report.add("category id is no integer: given one", f"{category['id']} -> {new_id}")
        repaired[key] = {**category, "id": new_id, "name": name}
    for name, count in Counter(category["name"] for category in repaired.values()).items():
        if count > 1:
            report.note("category name used more than once", name)
    return repaired


def _named_images(images: list[dict], report: RepairReport) -> list[dict]:
    """Images with a ``file_name``, which those of LVIS have in their ``coco_url`` alone."""
    named = []
    for image in images:
        url = image.get("coco_url")
        if "file_name" not in image and isinstance(url, str) and "/" in url:
            image = {**image, "file_name": "/".join(url.split("/")[-2:])}  # "train2017/000000391895.jpg"
            report.add("file_name as in LVIS: taken from coco_url", url)
        if image.get("not_exhaustive_category_ids"):
            report.note(
                "not all objects labeled, as in LVIS (COCO's AP counts boxes of the others as wrong)",
                image.get("file_name", "?"),
            )
        named.append(image)
    return named


def _repair_images(images: list[dict], image_folder: str, report: RepairReport) -> dict[str, dict]:
    """Usable images by the key of their id."""
    kept: dict[str, dict] = {}
    count_of = Counter(_base_name(image.get("file_name")) for image in images)
    for image in images:
        key, file_name = id_key(image.get("id")), image.get("file_name")
        if key is None or not isinstance(file_name, str) or not file_name:
            name = image.get("file_name", image.get("id", "?"))
            report.add("image without id, file_name, height or width: left out", name)
            continue
        if key in kept:
            report.add("image id used before: left out", f"id {image['id']} ({file_name})")
            continue
        found = _find_image(image_folder, file_name)
        if found is None and count_of[_base_name(file_name)] == 1:
            found = _find_below(image_folder, file_name)
        if found is None:
            path = os.path.join(image_folder, file_name)
            report.add("image file missing: left out with its annotations", path)
            continue
        if found != file_name:
            report.add("file_name as of another machine or URL: read as the file that is there", file_name)
        width, height = (_whole_side(image.get(side)) for side in ("width", "height"))
        if width is None or height is None:
            try:
                width, height = read_image_size(os.path.join(image_folder, found))
            except UnusableImageError:
                report.add("image without id, file_name, height or width: left out", file_name)
                continue
            report.add("width or height missing or no number of px: taken from the image file", file_name)
        elif type(image["width"]) is not int or type(image["height"]) is not int:
            report.add("width or height as text or fraction: read as integer", file_name)
        kept[key] = {**image, "file_name": found, "width": width, "height": height}
    if len({type(image["id"]) for image in kept.values()}) > 1 or not all(
        type(image["id"]) in (int, str) for image in kept.values()
    ):
        whole = {key: number(key) if len(key) < 16 else None for key in kept}
        if not all(type(each) is int for each in whole.values()) or len(set(whole.values())) < len(whole):
            whole = {key: place for place, key in enumerate(kept, start=1)}
        for key, image in kept.items():
            if type(image["id"]) is not int or image["id"] != whole[key]:
                report.add("image ids of several types: made integers", f"{image['id']} -> {whole[key]}")
                kept[key] = {**image, "id": whole[key]}
    return kept


def _find_image(folder: str, file_name: str) -> str | None:
    """The name by which the file is there, as it is written or without Windows' and URLs' ways of writing."""
    slashes = file_name.replace("\\", "/")
    for name in (file_name, slashes, unquote(file_name), unquote(slashes)):
        if "\0" not in name and os.path.isfile(os.path.join(folder, name)):
            return name
    return None


def _find_below(folder: str, file_name: str) -> str | None:
    """The file without the first folders of its name, or without the prefix that Label Studio gives to uploads."""
    name = unquote(file_name).replace("\\", "/").rpartition("?d=")[2]
    parts = name.split("/")
    shorter = ["/".join(parts[i:]) for i in range(1, len(parts))]
    without_prefix = _UPLOAD_PREFIX.sub("", parts[-1])
    candidates = (_find_image(folder, each) for each in (name, *shorter, without_prefix) if each)
    return next((each for each in candidates if each is not None), None)


def _base_name(file_name: object) -> str:
    """The last part of a name, by which images are told apart that have lost their folders."""
    name = unquote(str(file_name)).replace("\\", "/").rpartition("/")[2]
    return _UPLOAD_PREFIX.sub("", name)


def _whole_side(value: object) -> int | None:
    side = number(value)
    return int(side) if side is not None and side >= 1 and side == int(side) else None


def _images_of(annotations: list[dict], images: dict[str, dict]) -> list[dict | None]:
    """The image of each annotation, None if it has none that can be used."""
    keys = (id_key(annotation.get("image_id")) for annotation in annotations)
    return [None if key is None else images.get(key) for key in keys]


def _readable_boxes(annotations: list[dict], images: list[dict | None]) -> Iterator[tuple[list[float], dict]]:
    """The boxes of four numbers, with their images."""
    for annotation, image in zip(annotations, images):
        box = annotation.get("bbox")
        if image is not None and isinstance(box, list) and len(box) == 4:
            read = numbers(box)
            if read is not None:
                yield read, image


def _check_box_format(annotations: list[dict], images: list[dict | None], json_file: str) -> None:
    """Refuse boxes that are all of another format: repaired one by one they would be wrong or gone."""

    def boxes() -> Iterator[tuple[list[float], dict]]:
        """Anew for each question, as the first few answer nearly all of them."""
        return _readable_boxes(annotations, images)

    if len(list(islice(boxes(), _ENOUGH_BOXES))) < _ENOUGH_BOXES:
        return
    if all(0 <= value <= 1 for box, _ in boxes() for value in box):
        raise AnnotationError(
            f"The boxes ('bbox') of {json_file} are fractions of the image; COCO's are x, y, width, height in px."
        )
    as_corners = all(
        0 <= x0 < x1 <= image["width"] + CLIP_TOLERANCE and 0 <= y0 < y1 <= image["height"] + CLIP_TOLERANCE
        for (x0, y0, x1, y1), image in boxes()
    )
    if not as_corners:
        return
    outside = [stands_out(box, image) > CLIP_TOLERANCE for box, image in boxes()]
    if 4 * sum(outside) >= len(outside):
        raise AnnotationError(
            f"The boxes ('bbox') of {json_file} look like corners (x0, y0, x1, y1): as COCO's x, y, width, height "
            f"{sum(outside)} of {len(outside)} stand out of their images; convert them."
        )


def _repair_odd(
    annotations: list[dict], images: list[dict | None], plain: set[int], report: RepairReport
) -> list[dict]:
    """:func:`_repair_annotations` where ids are as they should be."""
    kept: list[dict] = []
    for place, (annotation, image) in enumerate(zip(annotations, images)):
        if place in plain or image is None:
            kept.append(annotation)
            continue
        repaired = repair_fields(annotation, image, report, f"id {annotation['id']}")
        if repaired is not None:
            kept.append(repaired)
    return kept


def _repair_annotations(
    content: dict,
    annotated: list[dict | None],
    images: dict[str, dict],
    categories: dict[str, dict],
    plain: set[int],
    report: RepairReport,
) -> list[dict]:
    annotations = content["annotations"]
    listed = {id_key(image.get("id")) for image in content["images"]}
    free_id = 1 + max((a["id"] for a in annotations if is_usable_id(a.get("id"))), default=0)
    used: dict = {}
    kept = []
    for place, (annotation, image) in enumerate(zip(annotations, annotated)):
        own_id = annotation.get("id")
        name = f"id {own_id}" if "id" in annotation else f"number {place} of the file"
        if image is None:
            image_key = id_key(annotation.get("image_id"))
            # The annotations of images that were left out are no problem of their own.
            if image_key is None or image_key not in listed:
                report.add(
                    "annotation of an unknown image: left out", f"{name} ({annotation.get('image_id')})"
                )
            continue
        own_key = id_key(own_id)
        first = None if own_key is None else used.get(own_key)
        if first is not None and first == annotation:
            report.add("annotation given twice: left out", name)
            continue
        repaired = annotation if place in plain else repair_fields(annotation, image, report, name)
        if repaired is None:
            continue
        # Evaluation matches by these; 0 would count as "not matched" in pycocotools.
        if first is not None or not is_usable_id(own_id):
            problem = (
                "missing, 0 or used before" if own_id in (None, 0) or first is not None else "no integer"
            )
            report.add(f"annotation id {problem}: new id", name)
            repaired = {**repaired, "id": free_id}
            free_id += 1
        category = categories.get(id_key(annotation.get("category_id")) or "")
        changes = {"image_id": image["id"]} | ({"category_id": category["id"]} if category else {})
        if any(type(repaired[k]) is not type(v) or repaired[k] != v for k, v in changes.items()):
            repaired = {**repaired, **changes}
            report.add("image_id or category_id of another type: made that of the list", name)
        if own_key is not None:
            used.setdefault(own_key, annotation)
        kept.append(repaired)
    return kept


def _check_category_ids(annotations: list[dict], categories: dict[str, dict], json_file: str) -> None:
    known = {category["id"] for category in categories.values()}
    found = [annotation.get("category_id") for annotation in annotations]
    if set(map(type, found)) <= {int} and set(found) <= known:
        return
    unknown = Counter(
        str(a.get("category_id"))
        for a in annotations
        if type(a.get("category_id")) is not int or a["category_id"] not in known
    )
    if unknown:
        raise AnnotationError(
            f"{sum(unknown.values())} annotations of {json_file} have category ids ({_some(unknown)}) that its "
            f"'categories' do not define ({_some(categories)})."
        )


def _some(texts: Iterable[str], limit: int = 10) -> str:
    texts = list(texts)
    return ", ".join(each[:50] for each in texts[:limit]) + (", ..." if len(texts) > limit else "")


def _is_list_of_dicts(value: object) -> bool:
    return isinstance(value, list) and all(isinstance(entry, dict) for entry in value)
