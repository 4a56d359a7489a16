"""Beside the results of an evaluation: kinds of errors in ``errors.json``, pictures of examples in ``errors/``.

Pages (:mod:`updetr_d2.report`) show both. Cost and memory are bounded: of large test sets a random part counts.
"""

import json
import logging
import os
import re
import shutil
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from detectron2.config import CfgNode

from updetr_d2.data.transforms.image_io import UnusableImageError, read_image_rgb
from updetr_d2.data.transforms.read_options import ReadOptions
from updetr_d2.evaluation.detection_errors import above, classify, summarize
from updetr_d2.evaluation.detection_matching import ImageResult, read_results
from updetr_d2.evaluation.error_examples import (
    Suspect,
    choose_examples,
    count_images,
    find_suspects,
)
from updetr_d2.utils.cache import short_name
from updetr_d2.utils.files import printable, write_text
from updetr_d2.visualization.boxes import save_picture
from updetr_d2.visualization.errors import draw_errors

logger = logging.getLogger(__name__)

LoadResults = Callable[[Sequence[int | str]], list[ImageResult]]

ERRORS_FILE, PICTURES_FOLDER = "errors.json", "errors"
LABELS = "labels"
# Suspicious labels that the file lists for each picture that is drawn.
_SUSPECTS_OF_A_PICTURE = 10
_LONGEST_STEM = 60  # characters of an image's name in that of its picture
_SEED = 0


@dataclass(frozen=True)
class ErrorReport:
    """Writes what a detector does wrong on a data set; whatever goes wrong meanwhile is only logged.

    Args:
        folder: of the results; gets ``errors.json`` and ``errors/{worst,best,random,labels}/``.
        num_pictures: of each group, at most.
        max_images: of larger test sets so many are drawn at random, the same each time.
        read_options: for images.
    """

    folder: str
    num_pictures: int
    max_images: int
    read_options: ReadOptions = field(default_factory=ReadOptions)

    @classmethod
    def from_config(cls, cfg: CfgNode, folder: str) -> "ErrorReport | None":
        """None where ``TEST.VIS_IMAGES`` is 0."""
        if not cfg.TEST.VIS_IMAGES or not folder:
            return None
        return cls(folder, cfg.TEST.VIS_IMAGES, cfg.TEST.ERROR_IMAGES, ReadOptions.from_config(cfg))

    def write(
        self,
        load: LoadResults,
        files: Mapping[int | str, str],
        classes: Mapping[int, str],
        *,
        name: str,
    ) -> None:
        """
        Args:
            load: gives what was found in the images of some ids.
            files: image id -> file, of the images that were evaluated.
            classes: category id -> name.
            name: of the data set.
        """
        try:
            started = time.perf_counter()
            self._write(load, files, classes, name)
            logger.info(
                "Kinds of errors and pictures of examples are in %s (%.1f s; TEST.VIS_IMAGES 0 leaves them out).",
                *(self.folder, time.perf_counter() - started),
            )
        except Exception:  # what a picture cannot be drawn of must not end a training
            logger.exception(
                "The errors on '%s' were not drawn; the results above are not affected.", printable(name)
            )

    def _write(
        self, load: LoadResults, files: Mapping[int | str, str], classes: Mapping[int, str], name: str
    ) -> None:
        shutil.rmtree(os.path.join(self.folder, PICTURES_FOLDER), ignore_errors=True)
        Path(self.folder, ERRORS_FILE).unlink(missing_ok=True)
        results = load(choose_images(list(files), self.max_images))
        summary = summarize(results, dict(classes))
        counts = count_images(results, summary.threshold)
        suspects = find_suspects(
            results, threshold=summary.threshold, number=_SUSPECTS_OF_A_PICTURE * self.num_pictures
        )
        groups: dict[str, list[tuple[int, str]]] = {
            group: [(i, counts[i].describe()) for i in indices]
            for group, indices in choose_examples(counts, self.num_pictures, seed=_SEED).items()
        }
        groups[LABELS] = suspicious_images(suspects, classes, self.num_pictures)
        drawn = {
            group: self._draw(group, examples, results, files, summary.threshold, classes)
            for group, examples in groups.items()
        }
        listing = {
            "dataset": printable(name),
            "num_images": len(files),
            "num_analyzed": len(results),
            **summary.to_json(),
            "pictures": drawn,
            "suspicious_labels": [
                {
                    "kind": each.kind,
                    "image": printable(files[results[each.index].image_id]),
                    "box": [round(float(v), 1) for v in each.box],
                    "score": round(each.score, 3),
                    "found": None if each.found is None else classes[each.found],
                    "labeled": None if each.labeled is None else classes[each.labeled],
                }
                for each in suspects
            ],
        }
        write_text(os.path.join(self.folder, ERRORS_FILE), json.dumps(listing, indent=1))

    def _draw(
        self,
        group: str,
        examples: Sequence[tuple[int, str]],
        results: Sequence[ImageResult],
        files: Mapping[int | str, str],
        threshold: float,
        classes: Mapping[int, str],
    ) -> dict[str, str]:
        """Draw the images of a group; returns what stands below each picture, by its file name."""
        drawn = {}
        for place, (index, note) in enumerate(examples, start=1):
            file = files[results[index].image_id]
            try:
                image = read_image_rgb(file, options=self.read_options)
            except (UnusableImageError, OSError) as error:
                logger.warning("No picture of %s", error)
                continue
            stem = re.sub(r"[^\w.-]+", "_", Path(printable(file)).stem)
            picture_name = short_name(f"{place:02d}_{stem[:_LONGEST_STEM]}", ".jpg")
            picture = draw_result(image, results[index], threshold, classes)
            save_picture(picture, os.path.join(self.folder, PICTURES_FOLDER, group, picture_name))
            drawn[picture_name] = f"{printable(os.path.basename(file))}: {note}"
        return drawn


def choose_images(image_ids: Sequence[int | str], number: int) -> list[int | str]:
    """All ids, or a random part of them that is the same each time, in their order."""
    if len(image_ids) <= number:
        return list(image_ids)
    chosen = np.random.default_rng(_SEED).choice(len(image_ids), number, replace=False)
    return [image_ids[i] for i in np.sort(chosen).tolist()]


def results_of_file(content: dict, predictions: str, image_ids: Iterable[int | str]) -> list[ImageResult]:
    """What was found in some of the images, with their labels.

    Args:
        content: ground truth in COCO's format.
        predictions: file of results in COCO's format.
        image_ids: of the images, in the order of the result.
    """
    images = [{"id": image_id} for image_id in image_ids]
    chosen = {image["id"] for image in images}
    annotations = [each for each in content["annotations"] if each["image_id"] in chosen]
    found = json.loads(Path(predictions).read_text(encoding="utf-8"))
    return read_results({"images": images, "annotations": annotations}, found)


def suspicious_images(
    suspects: Sequence[Suspect], classes: Mapping[int, str], number: int
) -> list[tuple[int, str]]:
    """Images with suspicious labels, each kind in its turn, and what is suspicious in them."""
    queues: dict[str, list[Suspect]] = {}
    for each in suspects:
        queues.setdefault(each.kind, []).append(each)
    found: dict[int, str] = {}
    while len(found) < number and any(queues.values()):
        for queue in filter(None, queues.values()):
            each = queue.pop(0)
            if each.index not in found and len(found) < number:
                found[each.index] = describe_suspect(each, classes)
    return list(found.items())


def describe_suspect(suspect: Suspect, classes: Mapping[int, str]) -> str:
    """As part of a caption."""
    if suspect.found is None:
        return f"never found: {classes[suspect.labeled or 0]}"
    what = f"{classes[suspect.found]} {suspect.score:.2f}"
    return f"{what} without a label" if suspect.labeled is None else f"{what} on a {classes[suspect.labeled]}"


def draw_result(
    image: np.ndarray, result: ImageResult, threshold: float, classes: Mapping[int, str]
) -> np.ndarray:
    """The image with its true boxes and the predictions that have at least a score, RGB uint8 ``[h, w, 3]``."""
    result = above(result, threshold)
    errors = classify(result)
    captions = [
        f"{classes[category]} {score:.2f}" for category, score in zip(result.classes.tolist(), result.scores)
    ]
    return draw_errors(
        image,
        boxes=corners(result.boxes),
        captions=captions,
        kinds=errors.kinds,
        true_boxes=corners(result.true_boxes),
        true_captions=[classes[category] for category in result.true_classes.tolist()],
        missed=errors.missed,
    )


def corners(boxes: np.ndarray) -> np.ndarray:
    """XYXY of boxes with x, y, width, height."""
    return np.concatenate([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], axis=1)
