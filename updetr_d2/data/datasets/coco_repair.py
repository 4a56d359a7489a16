"""Check and repair COCO annotation files: a bad one is reported at the start of a run, not in its middle.

What can be repaired without guessing is repaired and counted; what cannot, such as a category id that the
file does not define, stops with one sentence.
"""

import json
import logging
import math
import os
from collections import Counter
from dataclasses import dataclass, field

from tabulate import tabulate

logger = logging.getLogger(__name__)

# Boxes may stand out of the image by this much (px): rounding, as in COCO itself. The mapper clips them.
CLIP_TOLERANCE = 1.0
_NUM_EXAMPLES = 3


class AnnotationError(ValueError):
    """An annotation file that cannot be used, in one sentence."""


@dataclass
class RepairReport:
    """What was found in an annotation file.

    Attributes:
        counts: number of cases of each problem, with what was done about it.
        examples: first cases of each problem.
    """

    counts: Counter = field(default_factory=Counter)
    examples: dict[str, list[str]] = field(default_factory=dict)

    def add(self, problem: str, example: object) -> None:
        self.counts[problem] += 1
        examples = self.examples.setdefault(problem, [])
        if len(examples) < _NUM_EXAMPLES:
            examples.append(str(example))

    def table(self) -> str:
        rows = [(problem, count, ", ".join(self.examples[problem])) for problem, count in self.counts.items()]
        return tabulate(rows, ("problem", "count", "first cases"), tablefmt="pipe")


def read_annotation_file(json_file: str) -> dict:
    """Read a file in COCO's instances format; a file without ``annotations`` has none.

    Raises:
        AnnotationError: if there is no such file, it is empty, not JSON or not in COCO's format.
    """
    try:
        with open(json_file, encoding="utf-8") as file:
            content = json.load(file)
    except OSError as error:
        raise AnnotationError(
            f"The annotation file {json_file} cannot be read ({error.strerror})."
        ) from error
    except ValueError as error:
        if os.path.getsize(json_file) == 0:
            raise AnnotationError(f"The annotation file {json_file} is empty.") from error
        raise AnnotationError(f"The annotation file {json_file} is not JSON ({error}).") from error
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
        the content with everything repaired (the same object if nothing had to be), and what was found.

    Raises:
        AnnotationError: if ids of categories are missing, doubled or unknown, or no image is left.
    """
    report = RepairReport()
    category_ids = _check_categories(content, json_file)
    images = _repair_images(content["images"], image_folder, report)
    if not images:
        raise AnnotationError(
            f"None of the {len(content['images'])} images of {json_file} can be used: "
            + (f"is {image_folder} the folder of its images?" if content["images"] else "it lists none.")
        )
    annotations = _repair_annotations(content["annotations"], content["images"], images, category_ids, report)
    _check_category_ids(annotations, category_ids, json_file)
    if not report.counts:
        return content, report
    return {**content, "images": list(images.values()), "annotations": annotations}, report


def _check_categories(content: dict, json_file: str) -> set:
    categories = content["categories"]
    if not categories or any("id" not in category or "name" not in category for category in categories):
        raise AnnotationError(
            f"The 'categories' of {json_file} must list at least one category, each with 'id' and 'name'."
        )
    doubled = [i for i, count in Counter(category["id"] for category in categories).items() if count > 1]
    if doubled:
        raise AnnotationError(f"The 'categories' of {json_file} hold the id {doubled[0]} more than once.")
    return {category["id"] for category in categories}


def _repair_images(images: list[dict], image_folder: str, report: RepairReport) -> dict:
    """Usable images by id."""
    kept = {}
    for image in images:
        if any(image.get(key) is None for key in ("id", "file_name", "height", "width")):
            name = image.get("file_name", image.get("id", "?"))
            report.add("image without id, file_name, height or width: left out", name)
        elif image["id"] in kept:
            report.add("image id used before: left out", f"id {image['id']} ({image['file_name']})")
        elif not os.path.exists(os.path.join(image_folder, image["file_name"])):
            report.add("image file missing: left out with its annotations", image["file_name"])
        else:
            kept[image["id"]] = image
    return kept


def _repair_annotations(
    annotations: list[dict], all_images: list[dict], images: dict, category_ids: set, report: RepairReport
) -> list[dict]:
    listed = {image.get("id") for image in all_images}
    free_id = 1 + max((a["id"] for a in annotations if isinstance(a.get("id"), int)), default=0)
    used: dict = {}
    kept = []
    for place, annotation in enumerate(annotations):
        name = f"id {annotation['id']}" if "id" in annotation else f"number {place} of the file"
        image = images.get(annotation.get("image_id"))
        if image is None:
            # The annotations of images that were left out are no problem of their own.
            if annotation.get("image_id") not in listed:
                report.add(
                    "annotation of an unknown image: left out", f"{name} ({annotation.get('image_id')})"
                )
            continue
        first = used.get(annotation.get("id"))
        if first is not None and first == annotation:
            report.add("annotation given twice: left out", name)
            continue
        box, problem = _repair_box(annotation.get("bbox"), image)
        if problem is not None:
            report.add(problem, name)
        if box is None:
            continue
        repaired = dict(annotation)
        if box != annotation["bbox"]:
            repaired["bbox"] = box
        # Evaluation matches by these; 0 would count as "not matched" in pycocotools.
        if first is not None or not annotation.get("id"):
            report.add("annotation id missing, 0 or used before: new id", name)
            repaired["id"] = free_id
            free_id += 1
        if repaired.pop("ignore", 0):
            report.add("'ignore' is not COCO's: made 'iscrowd'", name)
            repaired["iscrowd"] = 1
        if "iscrowd" not in repaired or "area" not in repaired:
            report.add("'iscrowd' or 'area' missing: 0, area of the box", name)
            repaired.setdefault("iscrowd", 0)
            repaired.setdefault("area", box[2] * box[3])
        used.setdefault(annotation.get("id"), annotation)
        kept.append(repaired)
    return kept


def _repair_box(box: object, image: dict) -> tuple[list[float] | None, str | None]:
    """The box (XYWH) inside its image, None if nothing is left of it, and the problem if there is one."""
    if (
        not isinstance(box, list)
        or len(box) != 4
        or not all(isinstance(v, int | float) and math.isfinite(v) for v in box)
    ):
        return None, "box is not four finite numbers: left out"
    x, y, width, height = box
    if width <= 0 or height <= 0:
        return None, "box of no area: left out"
    x0, y0 = max(x, 0), max(y, 0)
    x1, y1 = min(x + width, image["width"]), min(y + height, image["height"])
    if x1 <= x0 or y1 <= y0:
        return None, "box outside of its image: left out"
    outside = max(x0 - x, y0 - y, x + width - x1, y + height - y1)
    if outside <= CLIP_TOLERANCE:
        return box, None
    return [x0, y0, x1 - x0, y1 - y0], "box partly outside of its image: clipped"


def _check_category_ids(annotations: list[dict], category_ids: set, json_file: str) -> None:
    unknown = Counter(a.get("category_id") for a in annotations if a.get("category_id") not in category_ids)
    if unknown:
        ids = ", ".join(str(i) for i in list(unknown)[:10])
        raise AnnotationError(
            f"{sum(unknown.values())} annotations of {json_file} have category ids ({ids}) that its "
            f"'categories' do not define ({', '.join(str(i) for i in sorted(category_ids, key=str)[:10])}, ...)."
        )


def _is_list_of_dicts(value: object) -> bool:
    return isinstance(value, list) and all(isinstance(entry, dict) for entry in value)
