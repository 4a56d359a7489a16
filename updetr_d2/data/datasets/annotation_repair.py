"""Repair of one annotation of a COCO file: its box, its mask, its flags.

Numbers come as texts, flags as null, masks as empty lists. What says the same is read so, and a mask that is none
never costs a box.
"""

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import pycocotools.mask as mask_util
from tabulate import tabulate

# Boxes may stand out of the image by this much (px): rounding, as in COCO itself. The mapper clips them.
CLIP_TOLERANCE = 1.0
_NUM_EXAMPLES = 3
MAX_ID = 2**53  # evaluation keeps ids as floats
_TRUE, _FALSE = ("1", "true", "yes"), ("", "0", "false", "no", "none", "null")


class AnnotationError(ValueError):
    """An annotation file that cannot be used, in one sentence."""


@dataclass
class RepairReport:
    """What was found in an annotation file.

    Attributes:
        counts: number of cases of each problem, with what was done about it.
        notes: the same of what is odd but stays as it is.
        examples: first cases of each problem.
    """

    counts: Counter = field(default_factory=Counter)
    notes: Counter = field(default_factory=Counter)
    examples: dict[str, list[str]] = field(default_factory=dict)

    def add(self, problem: str, example: object) -> None:
        self._count(self.counts, problem, example)

    def note(self, problem: str, example: object) -> None:
        self._count(self.notes, problem, example)

    def _count(self, counter: Counter, problem: str, example: object) -> None:
        counter[problem] += 1
        examples = self.examples.setdefault(problem, [])
        if len(examples) < _NUM_EXAMPLES:
            examples.append(str(example)[:100])

    def table(self) -> str:
        rows = [(problem, count, ", ".join(self.examples[problem])) for problem, count in self._all()]
        return tabulate(rows, ("problem", "count", "first cases"), tablefmt="pipe")

    def sentence(self) -> str:
        """The table in a line."""
        return "; ".join(
            f"{problem} ({n}, such as {self.examples[problem][0]})" for problem, n in self._all()
        )

    def _all(self) -> list[tuple[str, int]]:
        return [*self.counts.items(), *self.notes.items()]


def numbers(values: Iterable[object]) -> list[float] | None:
    """All values as numbers, None if one of them is none."""
    if isinstance(values, list) and are_numbers(values):
        return values
    read = [number(value) for value in values]
    return [value for value in read if value is not None] if None not in read else None


def are_numbers(values: list) -> bool:
    """Whether all values of a JSON list are finite numbers; asked of millions of lists, so without a loop."""
    try:
        return all(map(math.isfinite, values)) and bool not in set(map(type, values))
    except (TypeError, OverflowError):
        return False


def number(value: object) -> float | int | None:
    """A finite number, also one written as a text; None for anything else."""
    if isinstance(value, str):
        try:
            value = float(value)
        except ValueError:
            return None
        value = int(value) if math.isfinite(value) and value == int(value) else value
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        return value if math.isfinite(value) else None
    except OverflowError:
        return None


def id_key(value: object) -> str | None:
    """What an id is known by, whether written as 7, 7.0 or "7"; None for what cannot be one."""
    if type(value) is int:
        return str(value)
    if isinstance(value, float) and math.isfinite(value) and value == int(value):
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int | str):
        return None
    return str(value)


def flag(value: object) -> int:
    """0 or 1 of a JSON value; what says neither is 0."""
    if isinstance(value, str):
        return int(value.strip().lower() in _TRUE)
    return int(bool(value)) if isinstance(value, bool | int | float) and value == value else 0


def is_plain_flag(value: object) -> bool:
    return type(value) is int and value in (0, 1)


def repair_fields(annotation: dict, image: dict, report: RepairReport, name: str) -> dict | None:
    """An annotation with a box inside its image, flags, an area, and a mask if it has a valid one.

    Args:
        annotation: as in the file; not changed.
        image: its image, repaired.
        report: counts what is done.
        name: of the annotation, for the report.

    Returns:
        the annotation itself, a changed copy, or None if it has no usable box.
    """
    box, problem = repair_box(annotation.get("bbox"), image)
    if problem:
        report.add(problem, name)
    if box is None:
        return None
    repaired = dict(annotation)
    repaired["bbox"] = box
    ignore = repaired.pop("ignore", 0)
    if flag(ignore):
        report.add("'ignore' is not COCO's: made 'iscrowd'", name)
        repaired["iscrowd"] = 1
    elif "ignore" in annotation and not is_plain_flag(ignore):
        report.add("'ignore' is neither 0 nor 1: left out", name)
    if "iscrowd" not in repaired or "area" not in repaired:
        report.add("'iscrowd' or 'area' missing: 0, area of the box", name)
    elif not is_plain_flag(repaired["iscrowd"]):
        report.add("'iscrowd' is neither 0 nor 1: read as such", name)
    repaired["iscrowd"] = flag(repaired.get("iscrowd"))
    area = repaired.setdefault("area", box[2] * box[3])
    if isinstance(area, bool) or not isinstance(area, int | float) or not 0 <= area < math.inf:
        report.add("'area' is no number: that of the box", name)
        found = number(area)
        repaired["area"] = box[2] * box[3] if found is None or found < 0 else found
    if "segmentation" in repaired:
        _repair_mask(repaired, image, report, name)
    points = repaired.get("keypoints")
    if points is not None and not (isinstance(points, list) and are_numbers(points)):
        del repaired["keypoints"]
        report.add("'keypoints' are no numbers: left out", name)
    return annotation if repaired == annotation else repaired


def repair_box(box: object, image: dict) -> tuple[list[float] | None, str | None]:
    """The box (XYWH) inside its image, None if nothing is left of it, and the problem if there is one."""
    if isinstance(box, list) and len(box) == 5 and are_numbers(box):
        return None, "box is five numbers, as of a rotated one, not four: left out"
    if not isinstance(box, list) or len(box) != 4:
        return None, "box is not four finite numbers: left out"
    read = numbers(box)
    if read is None:
        return None, "box is not four finite numbers: left out"
    problem = None if read is box else "box of texts: read as numbers"
    x, y, width, height = read
    if width <= 0 or height <= 0:
        return None, "box of no area: left out"
    x0, y0 = max(x, 0), max(y, 0)
    x1, y1 = min(x + width, image["width"]), min(y + height, image["height"])
    if x1 <= x0 or y1 <= y0:
        return None, "box outside of its image: left out"
    if stands_out(read, image) <= CLIP_TOLERANCE:
        return read, problem
    return [x0, y0, x1 - x0, y1 - y0], "box partly outside of its image: clipped"


def stands_out(box: Sequence[float], image: dict) -> float:
    """By how much (px) a box (XYWH) is larger than its image on the worst side."""
    x, y, width, height = box
    return max(-x, -y, x + width - image["width"], y + height - image["height"])


def _repair_mask(annotation: dict, image: dict, report: RepairReport, name: str) -> None:
    """Keep what can be drawn of ``segmentation``, in a form that Detectron2 and pycocotools read."""
    given = annotation["segmentation"]
    mask = usable_mask(given, image)
    if mask is None:
        del annotation["segmentation"]
        if given not in (None, [], {}, ""):  # these say that there is none
            report.add("'segmentation' holds no polygon or mask: left out, the box stays", name)
    elif mask is not given:
        annotation["segmentation"] = mask
        report.add("'segmentation' in part or in another form: what can be drawn is kept", name)


def usable_mask(value: object, image: dict) -> list | dict | None:
    """What can be drawn of a ``segmentation``: itself, if it is good as it is; None if nothing."""
    if isinstance(value, dict):
        return value if _decodes(value, image) else None
    if not isinstance(value, list) or not value:
        return None
    if are_numbers(value):  # one polygon without its list
        return [value] if _is_polygon(value) else None
    if all(isinstance(part, dict) for part in value):
        parts = [_encoded(part, image) for part in value if _decodes(part, image)]
        if not parts:
            return None
        merged = mask_util.merge(parts)
        return {"size": merged["size"], "counts": merged["counts"].decode("ascii")}
    polygons = [part for part in value if _is_polygon(part)]
    if len(polygons) == len(value):
        return value
    return polygons or None


def _is_polygon(value: object) -> bool:
    return isinstance(value, list) and len(value) >= 6 and len(value) % 2 == 0 and are_numbers(value)


def _decodes(rle: dict, image: dict) -> bool:
    """Whether a run-length encoding covers its image exactly: pycocotools reads beyond its end otherwise."""
    height, width = image["height"], image["width"]
    counts = rle.get("counts")
    if rle.get("size") != [height, width] or not isinstance(counts, list | str) or not counts:
        return False
    if isinstance(counts, list):
        whole = all(type(each) is int and each >= 0 for each in counts)
        return whole and sum(counts) == height * width
    runs = _read_runs(counts)
    return runs is not None and sum(runs) == height * width


def _read_runs(text: str) -> list[int] | None:
    """The run lengths of COCO's compressed text; None if it is none."""
    runs: list[int] = []
    value = shift = 0
    for character in text:
        code = ord(character) - 48
        if not 0 <= code < 64 or shift > 60:
            return None
        value |= (code & 31) << shift
        shift += 5
        if code & 32:
            continue
        if code & 16:
            value -= 1 << shift
        if len(runs) > 2:  # later runs are differences from the run before the last
            value += runs[-2]
        if value < 0:
            return None
        runs.append(value)
        value = shift = 0
    return None if shift else runs


def _encoded(rle: dict, image: dict) -> dict:
    if isinstance(rle["counts"], str):
        return rle
    return mask_util.frPyObjects(rle, image["height"], image["width"])


def is_usable_id(value: object) -> bool:
    """Whether evaluation can match by the id of an annotation: 0 would count as "not matched"."""
    return type(value) is int and 0 < value < MAX_ID
