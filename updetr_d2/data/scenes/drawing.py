"""Drawing of the embedded data set: textured backgrounds, overlapping things and their exact labels."""

import math

import cv2
import numpy as np

from updetr_d2.data.scenes.classes import STUFF_CLASSES, THING_CLASSES
from updetr_d2.data.scenes.files import segment
from updetr_d2.data.scenes.things import draw_thing

# The sizes in this file are in pixels of a scene with this side and scale with the scene.
_REFERENCE_SIZE = 128
_THINGS_PER_SCENE = (3, 8)
_HALF_SIZE = (9.0, 36.0)
# A thing is left out where less of it would be seen: share of its silhouette, and pixels.
_MIN_VISIBLE_SHARE = 0.35
_MIN_VISIBLE_AREA = 50
_SHADOW_STRENGTH = 0.45


def render_scene(seed: int, index: int, size: int = _REFERENCE_SIZE) -> tuple[np.ndarray, dict]:
    """Draw one labeled scene. The result depends on the arguments alone.

    Args:
        seed: which family of scenes, >= 0.
        index: which scene of the family, >= 0.
        size: width and height of the scene, px.

    Returns:
        image: uint8 size x size x 3, RGB.
        annotation: a dict with ``panoptic_seg``, an int32 map size x size of segment ids that start at 1 and
            leave no pixel out, and ``segments_info``, a list of dicts with ``id``, ``category_id``
            (contiguous: ``THING_CLASSES`` first, then ``STUFF_CLASSES``), ``isthing``, ``area`` (px) and
            ``bbox`` (x0, y0, x1, y1), the tight box of the visible pixels in Detectron2's ``XYXY_ABS``.
    """
    rng = np.random.default_rng([seed, index])
    canvas, stuff_labels = _draw_background(rng, size)
    things = _place_things(rng, size)
    segment_map = np.zeros((size, size), dtype=np.int32)
    for segment_id, (_, rgb, alpha, corner) in enumerate(things, start=1):
        _paint(canvas, segment_map, rgb, alpha, corner, segment_id)

    segments_info = [
        segment(segment_map == segment_id, segment_id, THING_CLASSES.index(name), isthing=True)
        for segment_id, (name, *_) in enumerate(things, start=1)
    ]
    for label in np.flatnonzero(np.bincount(stuff_labels[segment_map == 0])):
        segment_id = len(segments_info) + 1
        mask = (segment_map == 0) & (stuff_labels == label)
        segment_map[mask] = segment_id
        category_id = len(THING_CLASSES) + int(label)
        segments_info.append(segment(mask, segment_id, category_id, isthing=False))
    return _photograph(rng, canvas), {"panoptic_seg": segment_map, "segments_info": segments_info}


def _noise(rng: np.random.Generator, size: int, cell: tuple[float, float], octaves: int) -> np.ndarray:
    """Smooth fractal noise, float32 size x size of mean about 0 and range about ±1.

    Args:
        rng: where the random numbers come from.
        size: side, px.
        cell: height and width of the coarsest grains, px.
        octaves: how many times finer grains of half the size and strength are added.
    """
    total = np.zeros((size, size), dtype=np.float32)
    for octave in range(octaves):
        rows, columns = (min(size, 2 + int(size * 2**octave / side)) for side in cell)
        grid = rng.random((rows, columns), dtype=np.float32) * 2 - 1
        total += cv2.resize(grid, (size, size), interpolation=cv2.INTER_CUBIC) * 0.5**octave
    return total


def _random_color(rng: np.random.Generator, low: tuple, high: tuple) -> list[float]:
    """Draw an RGB color about a point of the line from ``low`` to ``high``, each in 0 to 255."""
    position = np.clip(rng.uniform() + rng.uniform(-0.25, 0.25, 3), 0, 1)
    return (np.array(low) + position * np.subtract(high, low)).tolist()


# The three color operations. Merging channels first is many times faster than broadcasting over them.
def _tint(color: list[float], brightness: np.ndarray) -> np.ndarray:
    return cv2.merge([brightness * channel for channel in color])


def _scale(image: np.ndarray, factor: np.ndarray) -> np.ndarray:
    return image * cv2.merge([factor] * 3)


def _blend(under: np.ndarray, over: np.ndarray, weight: np.ndarray) -> np.ndarray:
    return under + _scale(over - under, weight)


def _draw_sky(rng: np.random.Generator, size: int, scale: float) -> np.ndarray:
    zenith = _random_color(rng, (30, 60, 110), (130, 170, 240))
    horizon = _random_color(rng, (150, 130, 120), (250, 220, 230))
    height = np.repeat(np.linspace(0, 1, size, dtype=np.float32)[:, None], size, axis=1)
    air = _tint(zenith, 1 - height) + _tint(horizon, height)
    clouds = _noise(rng, size, (22 * scale, 44 * scale), octaves=4)
    shade = 1 + 0.25 * _noise(rng, size, (10 * scale, 14 * scale), octaves=2)
    lit = _tint(_random_color(rng, (170, 160, 160), (250, 245, 250)), shade)
    return _blend(air, lit, np.clip((clouds - rng.uniform(-0.3, 0.3)) * 1.6, 0, 1))


def _draw_grass(rng: np.random.Generator, size: int, scale: float) -> np.ndarray:
    blades = 1 + 0.4 * _noise(rng, size, (9 * scale, 2.2 * scale), octaves=2)
    dryness = np.clip(0.3 + 0.6 * _noise(rng, size, (30 * scale, 30 * scale), octaves=2), 0, 1)
    fresh = _random_color(rng, (50, 90, 15), (130, 165, 70))
    dry = _random_color(rng, (110, 110, 40), (190, 170, 90))
    grass = _tint(fresh, blades * (1 - dryness)) + _tint(dry, blades * dryness)
    blossom = _random_color(rng, (170, 120, 120), (255, 255, 255))
    for x, y in rng.integers(0, size, (rng.integers(0, 25), 2)).tolist():
        cv2.circle(grass, (x, y), max(1, round(0.7 * scale)), blossom, cv2.FILLED)
    return grass


def _draw_sand(rng: np.random.Generator, size: int, scale: float) -> np.ndarray:
    y, x = np.mgrid[:size, :size].astype(np.float32)
    angle, wavelength = rng.uniform(-0.6, 0.6), rng.uniform(6, 11) * scale
    bend = 2.5 * _noise(rng, size, (35 * scale, 35 * scale), octaves=2)
    phase = y * (math.cos(angle) * math.tau / wavelength) + x * (math.sin(angle) * math.tau / wavelength)
    grain = rng.random((size, size), dtype=np.float32) - 0.5
    brightness = 1 + rng.uniform(0.05, 0.16) * np.sin(phase + bend) + 0.22 * grain
    sand = _tint(_random_color(rng, (165, 120, 75), (235, 205, 165)), brightness)
    for x0, y0 in rng.integers(0, size, (rng.integers(3, 20), 2)).tolist():
        pebble = _random_color(rng, (70, 60, 50), (210, 200, 190))
        radii = (round(rng.uniform(1, 2.5) * scale), round(rng.uniform(1, 2) * scale))
        cv2.ellipse(sand, (x0, y0), radii, rng.uniform(0, 180), 0, 360, pebble, cv2.FILLED)
    return sand


def _draw_water(rng: np.random.Generator, size: int, scale: float) -> np.ndarray:
    waves = _noise(rng, size, (4.5 * scale, 18 * scale), octaves=3)
    depth = _noise(rng, size, (40 * scale, 60 * scale), octaves=2)
    glints = np.clip((waves - rng.uniform(0.6, 0.9)) * 3, 0, 1)
    base = _random_color(rng, (10, 60, 90), (70, 150, 190))
    water = _tint(base, (1 + 0.3 * waves + 0.2 * depth) * (1 - glints))
    return water + _tint(_random_color(rng, (190, 200, 190), (250, 255, 250)), glints)


_STUFF_PAINTERS = {"grass": _draw_grass, "sand": _draw_sand, "sky": _draw_sky, "water": _draw_water}


def _draw_background(rng: np.random.Generator, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Lay out one to three stuff regions.

    Returns:
        canvas: float32 size x size x 3 in 0 to 255.
        labels: int size x size, indices into ``STUFF_CLASSES``.
    """
    scale = size / _REFERENCE_SIZE
    y, x = np.mgrid[:size, :size].astype(np.float32) / size - 0.5
    layout = rng.choice(("horizon", "diagonal", "patches", "single"), p=(0.45, 0.2, 0.25, 0.1))
    if layout == "horizon":  # the sky above one or two kinds of ground
        ground = rng.permutation(("grass", "sand", "water"))[: rng.integers(1, 3)]
        names = ["sky", *ground]
        heights = sorted(rng.uniform(-0.35, 0.3, len(ground)).tolist())
        slope = rng.uniform(-0.25, 0.25)
        fields = [y - height - slope * x for height in heights]
    elif layout == "diagonal":  # a coast, a field's edge
        names = rng.permutation(STUFF_CLASSES)[:2].tolist()
        angle = rng.uniform(0, 2 * np.pi)
        fields = [x * math.cos(angle) + y * math.sin(angle) - rng.uniform(-0.2, 0.2)]
    elif layout == "patches":
        names = rng.permutation(STUFF_CLASSES)[: rng.integers(2, 4)].tolist()
        cell = size * rng.uniform(0.4, 0.7)
        fields = [0.25 * _noise(rng, size, (cell, cell), octaves=2) - 0.02 for _ in names[1:]]
    else:
        names = rng.permutation(STUFF_CLASSES)[:1].tolist()
        fields = []

    def paint(name: str) -> np.ndarray:
        return _STUFF_PAINTERS[name](rng, size, scale * math.exp(rng.uniform(-0.4, 0.4)))

    canvas, labels = paint(names[0]), np.full((size, size), STUFF_CLASSES.index(names[0]))
    for name, field in zip(names[1:], fields):
        texture = paint(name)
        wobble = rng.uniform(0, 0.05) * _noise(rng, size, (24 * scale, 24 * scale), octaves=3)
        distance = (field + wobble) * size
        canvas = _blend(canvas, texture, np.clip(distance + 0.5, 0, 1))
        labels[distance > 0] = STUFF_CLASSES.index(name)
    return canvas, labels


def _window(corner: tuple[int, int], side: int, size: int) -> tuple[tuple, tuple]:
    """Index the part of a square patch that lies inside the scene: (in the scene, in the patch)."""
    (x, y), start, stop = corner, np.maximum(corner, 0), np.minimum(np.add(corner, side), size)
    scene = (slice(start[1], stop[1]), slice(start[0], stop[0]))
    patch = (slice(start[1] - y, stop[1] - y), slice(start[0] - x, stop[0] - x))
    return scene, patch


def _place_things(rng: np.random.Generator, size: int) -> list[tuple]:
    """Draw things and keep those that stay visible enough behind the ones in front of them.

    Returns:
        A list, the backmost first, of (class name, rgb, alpha, corner (x, y) of the patch, may be negative).
    """
    scale = size / _REFERENCE_SIZE
    light_angle = rng.uniform(-np.pi, np.pi)
    covered = np.zeros((size, size), dtype=bool)
    things = []
    for _ in range(rng.integers(_THINGS_PER_SCENE[0], _THINGS_PER_SCENE[1] + 1)):
        name = THING_CLASSES[rng.integers(len(THING_CLASSES))]
        half_size = scale * math.exp(rng.uniform(math.log(_HALF_SIZE[0]), math.log(_HALF_SIZE[1])))
        rgb, alpha = draw_thing(rng, name, half_size, light_angle)
        x, y = (np.round(rng.uniform(0.05, 0.95, 2) * size).astype(int) - alpha.shape[0] // 2).tolist()
        corner = (x, y)
        in_scene, in_patch = _window(corner, alpha.shape[0], size)
        silhouette = alpha >= 128
        visible = silhouette[in_patch] & ~covered[in_scene]
        area = np.count_nonzero(visible)
        if area < max(_MIN_VISIBLE_SHARE * np.count_nonzero(silhouette), _MIN_VISIBLE_AREA * scale**2):
            continue
        covered[in_scene] |= silhouette[in_patch]
        things.append((name, rgb, alpha, corner))
    return things[::-1]


def _paint(
    canvas: np.ndarray,
    segment_map: np.ndarray,
    rgb: np.ndarray,
    alpha: np.ndarray,
    corner: tuple[int, int],
    segment_id: int,
) -> None:
    """Put a thing and its soft shadow on the canvas, and its silhouette into the map, both in place."""
    size, side = len(canvas), len(alpha)
    offset = max(1, side // 20)
    in_scene, in_patch = _window((corner[0] + offset, corner[1] + offset), side, size)
    blur = 2 * (side // 16) + 1
    shadow = cv2.blur(alpha, (blur, blur))[in_patch].astype(np.float32)
    canvas[in_scene] = _scale(canvas[in_scene], 1 - shadow * (_SHADOW_STRENGTH / 255))

    in_scene, in_patch = _window(corner, side, size)
    weight = alpha[in_patch].astype(np.float32) * (1 / 255)
    canvas[in_scene] = _blend(canvas[in_scene], rgb[in_patch], weight)
    segment_map[in_scene][alpha[in_patch] >= 128] = segment_id


def _photograph(rng: np.random.Generator, canvas: np.ndarray) -> np.ndarray:
    """Vary exposure, contrast, sharpness and sensor noise; round to uint8."""
    if rng.random() < 0.3:
        canvas = cv2.GaussianBlur(canvas, (0, 0), rng.uniform(0.3, 0.8) * len(canvas) / _REFERENCE_SIZE)
    contrast, exposure = rng.uniform(0.8, 1.15), 128 * rng.uniform(0.8, 1.15)
    noise = rng.uniform(0, 6) * rng.standard_normal(canvas.shape[:2], dtype=np.float32)
    canvas = (canvas - 128) * contrast + cv2.merge([exposure + noise] * 3)
    return np.clip(np.rint(canvas), 0, 255).astype(np.uint8)
