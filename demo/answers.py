"""What the demo page answers: pictures and tables for what a visitor puts in, or a sentence on what is wrong."""

import itertools
import logging
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog
from detectron2.modeling import META_ARCH_REGISTRY
from detectron2.structures import Boxes, BoxMode, pairwise_iou
from torch import Tensor

from updetr_d2.data.datasets.names import ensure_registered
from updetr_d2.data.transforms.image_io import UnusableImageError, read_image_rgb
from updetr_d2.data.transforms.patch_boxes import random_patch_boxes
from updetr_d2.data.transforms.read_options import ReadOptions
from updetr_d2.inference.predictor import Predictor, cut_query_patch, setup_inference_config
from updetr_d2.tasks import task_of, task_of_architecture
from updetr_d2.tasks.findings import Findings
from updetr_d2.visualization.boxes import draw_patch_guesses

logger = logging.getLogger(__name__)

# Of a picture for the page: a few seconds and 300 MB at most. The files of visitors are nobody's photo archive.
READ_OPTIONS = ReadOptions(max_pixels=40_000_000)
# Short side (px) that pictures of results have at least.
PICTURE_SIDE = 640


class VisitorError(Exception):
    """A sentence for the visitor: what is missing or wrong, and what to do."""


@dataclass
class DemoModel:
    """A trained model with its config.

    Attributes:
        cfg: of the model.
        predictor: the model.
        objects: file name of an example, without folder (Gradio copies it) -> a labeled object (XYXY, px).
    """

    cfg: CfgNode
    predictor: Predictor
    objects: dict[str, list[int]] = field(default_factory=dict)

    @classmethod
    def load(cls, config_file: str, options: list[str], *, tab: str) -> "DemoModel":
        """
        Args:
            config_file, options: as for ``setup_inference_config``; they name the weights.
            tab: of the page; the model's task must be one that it shows.

        Raises:
            ValueError: if it is of another kind, or config or weights are wrong.
        """
        cfg = setup_inference_config(config_file, options)
        if tab not in task_of(cfg).tabs:
            raise ValueError(
                f"MODEL.META_ARCHITECTURE of {config_file} is {cfg.MODEL.META_ARCHITECTURE}; here it must be "
                f"{' or '.join(architectures_of(tab))}."
            )
        return cls(cfg, Predictor(cfg))

    @property
    def group_size(self) -> int:
        """Object queries that look for one patch."""
        return self.cfg.MODEL.DETR.NUM_QUERIES // self.cfg.MODEL.UPDETR.NUM_PATCHES

    def example_files(self, count: int) -> list[str]:
        """Images of the first data set that the config tests on; none if it is not there."""
        try:
            if not self.cfg.DATASETS.TEST:
                raise ValueError("it is empty")
            ensure_registered(self.cfg.DATASETS.TEST[:1])
            items = list(itertools.islice(DatasetCatalog.get(self.cfg.DATASETS.TEST[0]), count))
        except (OSError, ValueError) as error:
            logger.warning("No examples on the page, as DATASETS.TEST is not there: %s", error)
            return []
        for item in items:
            for each in item.get("annotations", ())[:1]:
                box = BoxMode.convert(each["bbox"], each["bbox_mode"], BoxMode.XYXY_ABS)
                self.objects[Path(item["file_name"]).name] = [round(value) for value in box]
        return [item["file_name"] for item in items]

    def example_box(self, file_name: str) -> list[int]:
        """A labeled object, or a random box of at least a quarter of the image's short side; XYXY, px."""
        if known := self.objects.get(Path(file_name).name):
            return known
        height, width = read_picture(file_name).shape[:2]
        side = max(self.cfg.INPUT.QUERY_PATCH.MIN_SIZE, min(height, width) // 4)
        rng = np.random.default_rng(zlib.crc32(Path(file_name).name.encode()))
        return random_patch_boxes(rng, width=width, height=height, num_patches=1, min_size=side)[0].tolist()


def architectures_of(tab: str) -> list[str]:
    """Names of the meta-architectures that a tab of the page can show."""
    return [name for name, each in META_ARCH_REGISTRY if tab in task_of_architecture(each).tabs]


def read_picture(file_name: str | None, what: str = "picture") -> np.ndarray:
    """RGB pixels of an uploaded file.

    Raises:
        VisitorError: if there is none or it cannot be read.
    """
    if not file_name:
        raise VisitorError(f"There is no {what} yet: drop one on the page, or click an example.")
    try:
        return read_image_rgb(file_name, options=READ_OPTIONS)
    except UnusableImageError as error:
        raise VisitorError(f"The {what} cannot be used: {Path(file_name).name} {error.reason}.") from error


def cut_query(
    model: DemoModel, image: np.ndarray, box: tuple[float | None, ...], *, whole_image: bool = False
) -> np.ndarray:
    """The query patch ``[size, size, 3]`` of a box.

    Args:
        model: it says how large patches are.
        image: RGB uint8 ``[H, W, 3]``.
        box: XYXY in pixels, None where a field is empty; all None or all 0 is no box.
        whole_image: take the whole image if there is no box.

    Raises:
        VisitorError: if there is no box, or a useless one.
    """
    is_empty = not any(box)  # Gradio shows fields that nothing was entered in as 0
    if is_empty and whole_image:
        return cut_query_patch(image, None, model.cfg)
    if is_empty or None in box:
        raise VisitorError(
            "There is no box yet: draw one on the picture with the mouse, or enter its corners."
        )
    x0, y0, x1, y1 = (int(value) for value in box if value is not None)
    smallest = model.cfg.INPUT.QUERY_PATCH.MIN_SIZE
    if 0 <= x1 - x0 < smallest or 0 <= y1 - y0 < smallest:
        raise VisitorError(
            f"The box has {x1 - x0}x{y1 - y0} px, which is too small: patches have at least {smallest} px on "
            "each side (INPUT.QUERY_PATCH.MIN_SIZE)."
        )
    try:
        return cut_query_patch(image, (x0, y0, x1, y1), model.cfg)
    except ValueError as error:
        raise VisitorError(f"The box cannot be used: {error}") from error


def preview_query(model: DemoModel, file_name: str | None, *box: float | None) -> np.ndarray | None:
    """The patch that a box cuts out, None as long as there is none."""
    try:
        return cut_query(model, read_picture(file_name), box)
    except VisitorError:
        return None


def locate_patch(
    model: DemoModel,
    file_name: str | None,
    x0: float | None,
    y0: float | None,
    x1: float | None,
    y1: float | None,
    other_file: str | None,
    num_guesses: int,
) -> tuple[np.ndarray, str]:
    """Where a UPDETR finds a patch of an image, in it or in another one.

    Args:
        model: the UPDETR.
        file_name: the image that the patch is cut from.
        x0, y0, x1, y1: the patch, in pixels.
        other_file: image to search instead of the first.
        num_guesses: queries of the patch's group to show, the best first.

    Returns:
        the searched image with the guesses, and a Markdown table of them.

    Raises:
        VisitorError: for what is missing or wrong.
    """
    image = read_picture(file_name)
    patch = cut_query(model, image, (x0, y0, x1, y1))
    searched = image if other_file is None else read_picture(other_file, "other picture")
    found = model.predictor(searched, patch[None])["instances"][: int(num_guesses)]
    scores = found.scores.numpy()
    header = ["guess", "score", "x0", "y0", "x1", "y1"]
    rows = [
        [str(i), f"{score:.3f}", *pixels(box)]
        for i, (score, box) in enumerate(zip(scores, found.pred_boxes), start=1)
    ]
    true_box = None
    if other_file is None:
        true_box = np.array([x0, y0, x1, y1], dtype=np.float32)
        header.append("IoU")
        for row, iou in zip(rows, pairwise_iou(found.pred_boxes, Boxes(true_box[None]))[:, 0]):
            row.append(f"{iou:.2f}")
    picture = draw_patch_guesses(searched, true_box, found.pred_boxes.tensor.numpy(), scores)
    return picture, markdown_table(header, rows)


def detect(model: DemoModel, kind: str, file_name: str | None, threshold: float) -> tuple[np.ndarray, str]:
    """What a detector sees in an image.

    Args:
        model: the detector.
        kind: of the picture, "pictures" (boxes) or "panoptic".
        file_name: the image.
        threshold: lowest score of what is shown, in [0, 1].

    Returns:
        picture and Markdown table.

    Raises:
        VisitorError: for what is missing or wrong.
    """
    image = read_picture(file_name)
    found = model.predictor.find(image, threshold=threshold, picture_scale=enlargement(image))
    return found.pictures[kind], describe(found, model.predictor.classes.name, threshold)


def find_similar(
    model: DemoModel,
    query_file: str | None,
    x0: float | None,
    y0: float | None,
    x1: float | None,
    y1: float | None,
    file_name: str | None,
    threshold: float,
) -> tuple[np.ndarray, str]:
    """The things in an image that a OneShotDETR takes for the same class as the query.

    Args:
        model: the OneShotDETR.
        query_file: image that shows the query.
        x0, y0, x1, y1: box of the query in it, in pixels; all None for the whole image.
        file_name: image to search.
        threshold: lowest score of what is shown, in [0, 1].

    Returns:
        picture and Markdown table.

    Raises:
        VisitorError: for what is missing or wrong.
    """
    query = cut_query(model, read_picture(query_file, "query"), (x0, y0, x1, y1), whole_image=True)
    image = read_picture(file_name, "picture to search")
    found = model.predictor.find(
        image, threshold=threshold, patches=query[None], picture_scale=enlargement(image)
    )
    return found.pictures["pictures"], describe(found, lambda _: "like the query", threshold)


def describe(found: Findings, name: Callable[[int], str], threshold: float) -> str:
    """A Markdown table of the findings, best first; if there are none, how to get some."""
    if not len(found.instances):
        return (
            f"Nothing has a score of {threshold:.2f} or more; the highest is {found.best_score:.2f}. "
            "Lower the threshold to see what it is."
        )
    instances = found.instances[found.instances.scores.argsort(descending=True)]
    rows = [
        [name(class_id), f"{score:.3f}", *pixels(box)]
        for class_id, score, box in zip(
            instances.pred_classes.tolist(), instances.scores.tolist(), instances.pred_boxes
        )
    ]
    return markdown_table(["class", "score", "x0", "y0", "x1", "y1"], rows)


def pixels(box: Tensor) -> list[str]:
    return [str(round(value)) for value in box.tolist()]  # as integers, which have no -0


def markdown_table(header: list[str], rows: list[list[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(cell.replace('|', '/') for cell in line)} |" for line in lines)


def enlargement(image: np.ndarray) -> float:
    """Factor that small images are drawn larger by."""
    return max(1.0, PICTURE_SIDE / min(image.shape[:2]))
