"""Run a trained model on images: pictures of what it finds, and its predictions in COCO's results format.

    updetr demo --config-file output/run/config.yaml --output output/demo photos/ 'more/*.jpg' one.png \\
        MODEL.WEIGHTS output/run/model_final.pth

IMAGES are files, folders (with their sub-folders) and patterns (quote them; ** reaches into sub-folders);
--video-input names a video. A pre-trained UPDETR looks for patches, each a whole image or a box (pixels, X0 Y0 X1
Y1) of one:

    updetr demo --config-file configs/pretrain/... --query-image dog.jpg --query-box 10 20 90 120 \\
        --output output/demo photos/ MODEL.WEIGHTS output/pretrain/model_final.pth

A OneShotDETR looks for objects of the class that the patches show, several of them being views of one class.

The output folder gets
    pictures/         one for each image; panoptic/ as well from a PanopticDETR
    videos/           one for each video
    images.json       in COCO's annotation format: a running id, from 1, and the file of each image (of frames the
                      video, and their place in it from 0 as frame_index); categories
    predictions.json  in COCO's results format: image_id of images.json, category_id of the data set (DATASETS.TEST
                      names it; contiguous class ids from 0 if it is not there), bbox X, Y, width, height in
                      pixels, score. For patches category_id counts the queries from 1.
so that pycocotools reads it with COCO("images.json").loadRes("predictions.json"). Images that cannot be read are
skipped and counted.
"""

import argparse
import contextlib
import glob
import json
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from detectron2.config import CfgNode, get_cfg
from detectron2.evaluation.coco_evaluation import instances_to_coco_json
from detectron2.utils.logger import setup_logger
from tqdm import tqdm

from updetr_d2.data.datasets.image_folder import load_image_folder
from updetr_d2.data.transforms.image_io import UnusableImageError, read_image_rgb
from updetr_d2.data.transforms.read_options import ReadOptions
from updetr_d2.inference.predictor import Predictor, cut_query_patch, setup_inference_config
from updetr_d2.inference.video import Frames, Video, writing
from updetr_d2.tasks import task_of
from updetr_d2.tasks.findings import Findings
from updetr_d2.visualization.boxes import save_picture

# Of each kind of picture; others keep their name.
VIDEO_FOLDERS = {"pictures": "videos"}


def list_images(arguments: Sequence[str]) -> list[str]:
    """Files of the images that files, folders and patterns name, in that order and each once.

    Raises:
        ValueError: for a name that is nothing of these.
    """
    files: dict[str, None] = {}
    for argument in arguments:
        if os.path.isdir(argument):
            folder = load_image_folder(argument)
            files |= dict.fromkeys(folder[i]["file_name"] for i in range(len(folder)))
            continue
        matches = [argument] if os.path.isfile(argument) else sorted(glob.glob(argument, recursive=True))
        matches = [match for match in matches if os.path.isfile(match)]
        if not matches:
            raise ValueError(f"{argument} is no file, folder or pattern of files that exist.")
        files |= dict.fromkeys(matches)
    return list(files)


def cut_query_patches(images: Sequence[str], boxes: Sequence[Sequence[int]], cfg: CfgNode) -> np.ndarray:
    """RGB uint8 ``[m, size, size, 3]``, one patch for each query.

    Args:
        images: files; one for each box, or one for all boxes.
        boxes: XYXY in pixels; none for whole images.
        cfg: of the model, which says how patches are cut and how many it takes.

    Raises:
        ValueError: if the numbers do not fit or a box is not inside its image.
    """
    if boxes and len(images) not in (1, len(boxes)):
        raise ValueError(f"{len(images)} --query-image and {len(boxes)} --query-box do not fit together.")
    count = max(len(images), len(boxes))
    needs = task_of(cfg).query_patches(cfg)
    if needs is not None and needs.limit is not None and count > needs.limit:
        raise ValueError(
            f"The model looks for 1 to {needs.limit} patches at a time ({needs.limit_key}), {count} are named "
            "with --query-image."
        )
    patches = []
    for i in range(count):
        file_name = images[min(i, len(images) - 1)]
        try:
            image = read_image_rgb(file_name, options=ReadOptions.from_config(cfg))
            patches.append(cut_query_patch(image, boxes[i] if boxes else None, cfg))
        except ValueError as error:
            raise ValueError(f"--query-box of {file_name}: {error}") from error
    return np.stack(patches)


def prepare(
    cfg: CfgNode, args: argparse.Namespace
) -> tuple[Callable[[np.ndarray, float], Findings], list[dict], Callable[[int], int]]:
    """Load the model and what it looks for.

    Returns:
        function (image, threshold) -> findings; categories of the results; function from the class of an
        instance to the id of its category.
    """
    name, task, patches = cfg.MODEL.META_ARCHITECTURE, task_of(cfg), None
    if task.query_patches(cfg) is not None:
        if not args.query_image:
            raise ValueError(f"{name} needs --query-image: what to look for.")
        patches = cut_query_patches(args.query_image, args.query_box, cfg)
    elif args.query_image:
        raise ValueError(
            f"--query-image is for UPDETR and OneShotDETR; {name} finds the classes it has learnt."
        )
    predictor = Predictor(cfg)
    classes = predictor.classes if patches is None else task.predicted_classes(cfg, len(patches))

    def find(image: np.ndarray, threshold: float) -> Findings:
        return predictor.find(image, threshold=threshold, patches=patches)

    return find, classes.categories(getattr(predictor.model, "num_classes", 0)), classes.category_id


class Output:
    """The folder that gets pictures, videos and COCO files.

    Args:
        folder: of the output.
        category_id: from the class of an instance to the id of its category.
    """

    def __init__(self, folder: Path, category_id: Callable[[int], int]) -> None:
        self.folder = folder
        self.category_id = category_id
        self.images: list[dict] = []
        self._results: list[dict] = []
        self._used_names: set[str] = set()

    def name_of(self, file_name: str, image_id: int) -> str:
        """The stem of a file's name, which no other file has had."""
        name = Path(file_name).stem
        while name in self._used_names:  # of another folder, or with another extension
            name = f"{name}_{image_id}"
        self._used_names.add(name)
        return name

    def add(self, found: Findings, image: np.ndarray, *, image_id: int, **entries: object) -> None:
        """What was found in an image; ``entries`` say which one it is."""
        height, width = image.shape[:2]
        self.images.append({"id": image_id, **entries, "width": width, "height": height})
        for result in instances_to_coco_json(found.instances, image_id):
            self._results.append({**result, "category_id": self.category_id(result["category_id"])})

    def write(self, categories: list[dict]) -> None:
        """Write ``images.json`` and ``predictions.json``."""
        self.folder.mkdir(parents=True, exist_ok=True)
        listing = {"info": {}, "images": self.images, "categories": categories, "annotations": []}
        (self.folder / "images.json").write_text(json.dumps(listing))
        (self.folder / "predictions.json").write_text(json.dumps(self._results))


def run(cfg: CfgNode, args: argparse.Namespace, files: Sequence[str]) -> tuple[int, int]:
    """Go through the images and write everything; returns the numbers of images done and skipped."""
    read_options = ReadOptions.from_config(cfg)
    videos = [Video(path, every=args.every, max_pixels=read_options.max_pixels) for path in args.video_input]
    find, categories, category_id = prepare(cfg, args)
    output = Output(Path(args.output), category_id)
    skipped = 0
    for image_id, file_name in enumerate(tqdm(files, unit="image", disable=not files), start=1):
        try:
            image = read_image_rgb(file_name, options=read_options)
        except UnusableImageError as error:
            tqdm.write(f"skipped {error}", file=sys.stderr)
            skipped += 1
            continue
        found = find(image, args.score_threshold)
        name = output.name_of(file_name, image_id)
        for kind, picture in found.pictures.items():
            save_picture(picture, str(output.folder / kind / f"{name}.jpg"))
        output.add(found, image, image_id=image_id, file_name=file_name)
    first_id = len(files) + 1
    for video in videos:
        first_id += run_video(video, find, output, threshold=args.score_threshold, first_id=first_id)
    output.write(categories)
    return len(output.images), skipped


def run_video(
    video: Video,
    find: Callable[[np.ndarray, float], Findings],
    output: Output,
    *,
    threshold: float,
    first_id: int,
) -> int:
    """Go through the frames of a video and write a video for each kind of picture; returns their number."""
    name = output.name_of(video.path, first_id)
    count = 0
    with contextlib.ExitStack() as stack:
        written: dict[str, Frames] = {}
        for number, frame in tqdm(video.frames(), total=video.num_frames or None, unit="frame"):
            found = find(frame, threshold)
            for kind, picture in found.pictures.items():
                if kind not in written:
                    path = output.folder / VIDEO_FOLDERS.get(kind, kind) / f"{name}.mp4"
                    written[kind] = stack.enter_context(writing(path, fps=video.fps))
                written[kind].add(picture)
            output.add(found, frame, image_id=first_id + count, file_name=video.path, frame_index=number)
            count += 1
    if count < video.num_frames:
        print(f"{video.path} ends after {count} of {video.num_frames} frames.", file=sys.stderr)
    return count


def split_options(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """Images, then the KEY VALUE pairs from the first name on that is a config key and no file."""
    sections = get_cfg()
    for i, argument in enumerate(arguments):
        if argument.split(".")[0] in sections and not os.path.exists(argument):
            return list(arguments[:i]), list(arguments[i:])
    return list(arguments), []


def get_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config-file", required=True, help="config of the model")
    parser.add_argument("--output", default="output/demo", help="folder to write to (default: %(default)s)")
    parser.add_argument(
        "--video-input",
        action="append",
        default=[],
        metavar="FILE",
        help="video to go through; repeat for more",
    )
    parser.add_argument(
        "--every",
        type=int,
        default=1,
        metavar="N",
        help="look at every Nth frame of the videos only (default: %(default)s)",
    )
    parser.add_argument(
        "--score-threshold",
        type=float,
        default=0.5,
        metavar="P",
        help="leave out detections below it, 0 to 1 (default: %(default)s)",
    )
    parser.add_argument("--query-image", action="append", default=[], help="image to find; repeat for more")
    parser.add_argument(
        "--query-box",
        action="append",
        default=[],
        nargs=4,
        type=int,
        metavar=("X0", "Y0", "X1", "Y1"),
        help="part of the query image: one for each --query-image, or several of a single one",
    )
    parser.add_argument(
        "arguments",
        nargs="*",
        metavar="IMAGES | KEY VALUE",
        help="files, folders and patterns of images; then config values that override the file's",
    )
    return parser


def main(argv: list[str] | None = None) -> int:
    """Run the command line; returns the exit status: 1 if no image could be used."""
    args = get_parser().parse_intermixed_args(argv)
    setup_logger(name="updetr_d2")
    try:
        inputs, options = split_options(args.arguments)
        files = list_images(inputs)
        if not files and not args.video_input:
            raise ValueError("Name images (files, folders or patterns) or videos (--video-input).")
        if args.every < 1:
            raise ValueError(f"--every is {args.every}; it must be at least 1.")
        cfg = setup_inference_config(args.config_file, options)
        done, skipped = run(cfg, args, files)
    except (ValueError, OSError, UnusableImageError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(f"{done} images done, {skipped} skipped; see {args.output}")
    return 0 if done else 1
