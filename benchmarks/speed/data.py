"""``benchmark.py data``: making pre-training samples from JPEG files in one process, and its parts."""

import tempfile
from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Sequence
from pathlib import Path

import cv2
import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import transforms as T

from benchmarks.speed.reference_data import ReferenceMapper
from benchmarks.speed.timing import Measurement, measure_in_turn
from updetr_d2.data.dataset_mappers.query_patch import QueryPatchDatasetMapper
from updetr_d2.data.datasets.image_folder import load_image_folder
from updetr_d2.data.transforms.image_io import read_image_rgb, stack_to_tensor, to_tensor
from updetr_d2.data.transforms.patch_boxes import random_patch_boxes
from updetr_d2.data.transforms.resize import resize_uint8

# Amplitude of the noise in generated photos at each scale relative to the next coarser one: photographs have
# about the same contrast at every scale. JPEG files of 640×480 px then take as many bytes as those of photos.
_OCTAVE_RATIO = 0.62


def add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument(
        "--images", type=Path, metavar="DIR", help="folder of images (default: generated ones)"
    )
    parser.add_argument("--num-images", type=int, default=16, help="images of a repeat (default: 16)")
    parser.add_argument(
        "--image-size",
        type=int,
        nargs=2,
        default=[640, 480],
        metavar=("W", "H"),
        help="of generated ones (px)",
    )


def run(args: Namespace, cfg: CfgNode) -> list[Measurement]:
    cv2.setNumThreads(0)  # as in the workers of our loader
    torch.set_num_threads(args.threads or 1)
    with tempfile.TemporaryDirectory() as folder:
        if args.images:
            files = [each["file_name"] for each in load_image_folder(str(args.images))][: args.num_images]
            kind = "own images"
        else:
            files = write_photos(Path(folder), args.num_images, *args.image_size)
            kind = f"generated {args.image_size[0]}x{args.image_size[1]} JPEG"
        return _measure(args, cfg, files, kind)


def _measure(args: Namespace, cfg: CfgNode, files: list[str], kind: str) -> list[Measurement]:
    mapper, reference = QueryPatchDatasetMapper(cfg, True), ReferenceMapper(cfg)
    images = [read_image_rgb(file) for file in files]
    reference_images = [reference.decode(file) for file in files]
    rng = np.random.default_rng(0)
    boxes = [
        random_patch_boxes(
            rng,
            width=image.shape[1],
            height=image.shape[0],
            num_patches=mapper.num_patches,
            min_size=mapper.min_patch_size,
        ).tolist()
        for image in images
    ]
    side = mapper.patch_size
    patches = [[_cut(image, box, side) for box in each] for image, each in zip(images, boxes)]
    reference_patches = [
        [reference.cut(image, box) for box in each] for image, each in zip(reference_images, boxes)
    ]
    resized = [_resize(mapper.resize, image) for image in images]
    reference_resized = [reference.resize(image) for image in reference_images]

    # name: ours and the reference, each with its inputs, one for each image
    parts: dict[str, tuple[tuple[Callable, Sequence], tuple[Callable, Sequence]]] = {
        "sample": (
            (lambda file: mapper({"file_name": file}), files),
            (reference, files),
        ),
        "sample / decode": ((read_image_rgb, files), (reference.decode, files)),
        "sample / crop and resize patches": (
            (lambda pair: [_cut(pair[0], box, side) for box in pair[1]], list(zip(images, boxes))),
            (
                lambda pair: [reference.cut(pair[0], box) for box in pair[1]],
                list(zip(reference_images, boxes)),
            ),
        ),
        "sample / augment patches": (
            (lambda each: [mapper.patch_augmentation(patch, rng) for patch in each], patches),
            (lambda each: [reference.augment(patch) for patch in each], reference_patches),
        ),
        "sample / resize image": (
            (lambda image: _resize(mapper.resize, image), images),
            (reference.resize, reference_images),
        ),
        "sample / to tensors": (
            (
                lambda pair: (to_tensor(pair[0], "RGB"), stack_to_tensor(pair[1], "RGB")),
                list(zip(resized, patches)),
            ),
            (
                lambda pair: [reference.to_tensor(image) for image in (pair[0], *pair[1])],
                list(zip(reference_resized, reference_patches)),
            ),
        ),
    }
    measurements = []
    for name, (ours, theirs) in parts.items():
        functions = {"ours": lambda ours=ours: [ours[0](each) for each in ours[1]]}
        if args.compare:
            functions["reference"] = lambda theirs=theirs: [theirs[0](each) for each in theirs[1]]
        seconds = measure_in_turn(functions, repeats=args.repeats, warmup=args.warmup, clock=args.clock)
        measurements.append(
            Measurement(
                name if "/" in name else f"{name}, {kind}, {mapper.num_patches} patches",
                seconds["ours"],
                seconds.get("reference", []),
                images=len(files),
            )
        )
    return measurements


def _cut(image: np.ndarray, box: Sequence[int], side: int) -> np.ndarray:
    x0, y0, x1, y1 = box
    return resize_uint8(image[y0:y1, x0:x1], height=side, width=side)


def _resize(resize: T.Augmentation, image: np.ndarray) -> np.ndarray:
    return resize.get_transform(image).apply_image(image)


def write_photos(folder: Path, count: int, width: int, height: int) -> list[str]:
    """Write JPEG files (quality 90) of colored noise with about the spectrum of photographs.

    Returns:
        their paths.
    """
    rng = np.random.default_rng(0)
    files = []
    for i in range(count):
        image = np.full((height, width, 3), 127.0, np.float32)
        amplitude, cells = 60.0, 2
        while cells < max(width, height):
            # Mostly gray, as detail in photographs is.
            noise = rng.normal(size=(cells, cells, 1)) + 0.4 * rng.normal(size=(cells, cells, 3))
            image += amplitude * cv2.resize(
                noise.astype(np.float32), (width, height), interpolation=cv2.INTER_CUBIC
            )
            amplitude *= _OCTAVE_RATIO
            cells *= 2
        pixels = np.clip(image, 0, 255).astype(np.uint8)
        path = str(folder / f"{i:03d}.jpg")
        cv2.imwrite(path, pixels, [cv2.IMWRITE_JPEG_QUALITY, 90])
        files.append(path)
    return files
