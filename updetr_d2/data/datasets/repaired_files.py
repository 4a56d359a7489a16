"""Repaired copies of annotation files, in the cache folder."""

import hashlib
import json
import logging
from pathlib import Path

from updetr_d2.data.datasets.annotation_repair import RepairReport
from updetr_d2.utils.cache import cache_folder, short_name
from updetr_d2.utils.files import write_text

logger = logging.getLogger(__name__)


def keep_repaired(content: dict, *, json_file: str, report: RepairReport) -> str:
    """Write a repaired annotation file, and log what was wrong with the given one.

    Returns:
        path of the copy, the same for the same content.
    """
    text = json.dumps(content)
    digest = hashlib.sha256(text.encode()).hexdigest()[:24]
    path = cache_folder("repaired_annotations") / short_name(Path(json_file).stem, f"-{digest}.json")
    write_text(path, text)
    logger.warning("Problems in %s; the repaired annotations are in %s:\n%s", json_file, path, report.table())
    return str(path)
