"""Repair of panoptic annotation files: numbers and flags that are written as another type of JSON.

Only what says the same is read so. What would have to be guessed, such as the area of a segment, is left for
:func:`.panoptic_annotations.check_panoptic_content` to refuse.
"""

from collections import Counter
from collections.abc import Callable, Mapping

from updetr_d2.data.datasets.annotation_repair import RepairReport, id_key, number

_FLAGS = {"0": 0, "1": 1, "false": 0, "true": 1}


def repair_panoptic_content(content: object) -> tuple[object, RepairReport]:
    """Read numbers, ids and flags as what they say.

    Args:
        content: of a JSON file, of any structure; not changed.

    Returns:
        the content, the same object if nothing was repaired, and what was.
    """
    report = RepairReport()
    if not isinstance(content, dict):
        return content, report
    repaired = dict(content)
    _repair_entries(repaired, "categories", {"id": _whole, "isthing": _flag}, report)
    all_texts = all(isinstance(image.get("id"), str) for image in _dicts(repaired, "images"))
    own_id = _as_it_is if all_texts else _whole
    _repair_entries(repaired, "images", {"id": own_id, "height": _whole, "width": _whole}, report)
    listed = {id_key(image.get("id")): image.get("id") for image in _dicts(repaired, "images")}
    is_unambiguous = len(listed) == len(_dicts(repaired, "images"))

    def image_id(value: object) -> object:
        key = id_key(value)
        return listed.get(key, value) if is_unambiguous and key is not None else value

    _repair_entries(repaired, "annotations", {"image_id": image_id}, report)
    segment_fields = {"id": _whole, "category_id": _whole, "area": _area, "iscrowd": _crowd}
    annotations = [dict(each) if isinstance(each, dict) else each for each in _list(repaired, "annotations")]
    for annotation in annotations:
        if isinstance(annotation, dict):
            _repair_entries(annotation, "segments_info", segment_fields, report)
    if not report.counts:
        return content, report
    if isinstance(content.get("annotations"), list):
        repaired["annotations"] = annotations
    return repaired, report


def _list(container: dict, section: str) -> list:
    entries = container.get(section)
    return entries if isinstance(entries, list) else []


def _dicts(container: dict, section: str) -> list[dict]:
    return [entry for entry in _list(container, section) if isinstance(entry, dict)]


def _repair_entries(
    container: dict, section: str, fields: Mapping[str, Callable[[object], object]], report: RepairReport
) -> None:
    """Replace a list of ``container`` by one of repaired entries, if some of it is to be repaired."""
    entries = list(_list(container, section))
    used = Counter(id_key(entry.get("id")) for entry in entries if isinstance(entry, dict))
    changed = False
    for place, entry in enumerate(entries):
        if not isinstance(entry, dict):
            continue
        for name, read in fields.items():
            given = entry.get(name)
            found = read(given) if name in entry else given
            if (type(found) is type(given) and found == given) or found is given:
                continue
            if name == "id" and used[id_key(found)] > 1:
                continue  # of two entries of one id, nothing can say which is meant
            report.add(f"'{name}' in '{section}' of another type: read as what it says", f"{given!r}")
            entries[place] = entry = {**entry, name: found}
            changed = True
    if changed:
        container[section] = entries


def _whole(value: object) -> object:
    read = number(value)
    return int(read) if read is not None and read >= 0 and read == int(read) else value


def _as_it_is(value: object) -> object:
    return value


def _area(value: object) -> object:
    read = number(value)
    return value if read is None or read < 0 else read


def _flag(value: object) -> object:
    if isinstance(value, str):
        return _FLAGS.get(value.strip().lower(), value)
    return int(value) if isinstance(value, float) and value in (0, 1) else value


def _crowd(value: object) -> object:
    return 0 if value is None else _flag(value)
