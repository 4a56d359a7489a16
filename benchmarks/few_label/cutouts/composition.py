"""Compose labeled scenes: cut-out objects on photographs, each scene a function of (seed, index)."""

import math
from collections.abc import Sequence

import cv2
import numpy as np
from PIL import Image

from benchmarks.few_label.cutouts.assets import Asset
from benchmarks.few_label.cutouts.catalog import STUFF_CLASSES, THING_CLASSES
from updetr_d2.data.scenes.files import segment

OBJECTS_PER_SCENE = (1, 4)
# Longer side of an object, as a share of the scene's side.
OBJECT_SIZE = (0.25, 0.7)
ROTATION = 20  # degrees, to both sides
# An object is left out where less than this share of it would be seen.
MIN_VISIBLE_SHARE = 0.5
# Side of the window that is cut from a photograph, as a share of its shorter side.
WINDOW = (0.4, 1.0)
# Shorter side that photographs are kept at, relative to the scene's side.
PHOTO_SCALE = 2.0


class Composer:
    """Draws scenes from the assets of one split.

    Args:
        stamps: objects; those with the label "" appear in scenes without being labeled.
        photographs: backgrounds; those with the label "" are no segment.
        size: width and height of a scene, px.
        seed: which family of scenes, >= 0.
        thing_classes: names of the classes.
    """

    def __init__(
        self,
        *,
        stamps: Sequence[Asset],
        photographs: Sequence[Asset],
        size: int,
        seed: int,
        thing_classes: Sequence[str] = THING_CLASSES,
    ) -> None:
        self.size = size
        self.thing_classes = tuple(thing_classes)
        self.seed = seed
        self.photos = [(asset.label, _read_photo(asset, round(size * PHOTO_SCALE))) for asset in photographs]
        # Classes are equally likely, not stamps.
        self.by_class: dict[str, list[np.ndarray]] = {}
        for asset in stamps:
            self.by_class.setdefault(asset.label, []).append(_read_stamp(asset, max_side=size))

    def __call__(self, index: int) -> tuple[np.ndarray, dict]:
        """Draw one scene.

        Returns:
            image: uint8 size×size×3, RGB.
            annotation: dict with ``panoptic_seg`` (int32 map of segment ids, 0 where the photograph has
                no label) and ``segments_info`` (see ``updetr_d2.data.scenes.files.segment``); objects of no
                class are part of the background.
        """
        rng = np.random.default_rng([self.seed, index])
        stuff, canvas = self._background(rng)
        objects = self._place_objects(rng)
        segment_map = np.zeros((self.size, self.size), dtype=np.int32)
        labels = []
        for label, rgba in objects:  # the backmost first
            alpha = rgba[..., 3:].astype(np.float32) / 255
            canvas = canvas * (1 - alpha) + _relight(rng, rgba[..., :3], alpha)
            visible = rgba[..., 3] >= 128
            if label:
                labels.append(label)
                segment_map[visible] = len(labels)
            else:
                segment_map[visible] = 0
        segments = [
            segment(segment_map == i, i, self.thing_classes.index(label), isthing=True)
            for i, label in enumerate(labels, start=1)
        ]
        background = segment_map == 0
        if stuff and background.any():
            category = len(self.thing_classes) + STUFF_CLASSES.index(stuff)
            segments.append(segment(background, len(segments) + 1, category, isthing=False))
            segment_map[background] = len(segments)
        canvas = canvas + rng.uniform(0, 5) * rng.standard_normal((self.size, self.size, 1))
        image = np.clip(np.rint(canvas), 0, 255).astype(np.uint8)
        return image, {"panoptic_seg": segment_map, "segments_info": segments}

    def _background(self, rng: np.random.Generator) -> tuple[str, np.ndarray]:
        label, photo = self.photos[rng.integers(len(self.photos))]
        side = round(min(photo.shape[:2]) * rng.uniform(*WINDOW))
        y, x = (int(rng.integers(length - side + 1)) for length in photo.shape[:2])
        window = cv2.resize(
            photo[y : y + side, x : x + side], (self.size, self.size), interpolation=cv2.INTER_AREA
        )
        if rng.random() < 0.5:
            window = window[:, ::-1]
        return label, _relight(rng, window)

    def _place_objects(self, rng: np.random.Generator) -> list[tuple[str, np.ndarray]]:
        """Choose and place objects, from the front to the back, and keep what stays visible enough.

        Returns:
            (label, RGBA layer of the scene's size) of each, the backmost first.
        """
        covered = np.zeros((self.size, self.size), dtype=bool)
        placed = []
        for _ in range(rng.integers(OBJECTS_PER_SCENE[0], OBJECTS_PER_SCENE[1] + 1)):
            label = list(self.by_class)[rng.integers(len(self.by_class))]
            stamps = self.by_class[label]
            layer, area = self._layer(rng, stamps[rng.integers(len(stamps))])
            silhouette = layer[..., 3] >= 128
            if np.count_nonzero(silhouette & ~covered) < max(MIN_VISIBLE_SHARE * area, 1):
                continue
            covered |= silhouette
            placed.append((label, layer))
        return placed[::-1]

    def _layer(self, rng: np.random.Generator, rgba: np.ndarray) -> tuple[np.ndarray, float]:
        """A stamp at a random size, angle and place; and its area, px, inside the scene or not."""
        side = self.size * math.exp(rng.uniform(math.log(OBJECT_SIZE[0]), math.log(OBJECT_SIZE[1])))
        scale = side / max(rgba.shape[:2])
        small = cv2.resize(rgba, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
        if rng.random() < 0.5:
            small = small[:, ::-1]
        height, width = small.shape[:2]
        # The center stays inside the scene, most often with all of the object.
        x, y = (rng.uniform(0.1, 0.9, 2) * self.size).tolist()
        matrix: np.ndarray = cv2.getRotationMatrix2D(
            (width / 2, height / 2), rng.uniform(-ROTATION, ROTATION), 1.0
        )
        matrix[:, 2] += (x - width / 2, y - height / 2)
        layer = cv2.warpAffine(np.ascontiguousarray(small), matrix, (self.size, self.size))
        return layer, float(np.count_nonzero(small[..., 3] >= 128))


def _relight(rng: np.random.Generator, rgb: np.ndarray, alpha: np.ndarray | float = 1.0) -> np.ndarray:
    """Vary brightness and contrast of colors that are premultiplied with ``alpha``; float32."""
    contrast, brightness = rng.uniform(0.75, 1.2), rng.uniform(-20, 20)
    return rgb.astype(np.float32) * contrast + (128 * (1 - contrast) + brightness) * alpha


def _read_stamp(asset: Asset, max_side: int) -> np.ndarray:
    """A stamp without its empty margin, at most ``max_side`` px; uint8 H×W×4, colors premultiplied with alpha."""
    rgba: np.ndarray = np.asarray(Image.open(asset.path).convert("RGBA")).astype(np.float32)
    ys, xs = np.nonzero(rgba[..., 3] >= 128)
    if not len(ys):
        raise ValueError(f"{asset.path} is empty; list it in catalog.EXCLUDED_STAMPS.")
    rgba = rgba[ys.min() : ys.max() + 1, xs.min() : xs.max() + 1]
    rgba[..., :3] *= rgba[..., 3:] / 255
    scale = min(1.0, max_side / max(rgba.shape[:2]))
    if scale < 1:
        rgba = cv2.resize(rgba, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
    return np.clip(np.rint(rgba), 0, 255).astype(np.uint8)


def _read_photo(asset: Asset, short_side: int) -> np.ndarray:
    image = Image.open(asset.path)
    image.draft("RGB", (2 * short_side, 2 * short_side))
    rgb = np.asarray(image.convert("RGB"))
    scale = short_side / min(rgb.shape[:2])
    return cv2.resize(rgb, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
