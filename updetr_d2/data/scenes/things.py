"""The things of the embedded data set: eight classes, each a random shape with a texture of its own.

Shapes live in an object frame where the thing fills about [-1, 1] x [-1, 1], y pointing down. Colors are
drawn independently of the class, so that a class can only be told by its shape and its texture.
"""

import colorsys
import math
from collections.abc import Callable
from dataclasses import dataclass

import cv2
import numpy as np

# Fractional bits of the polygon coordinates that OpenCV draws with anti-aliasing.
_SUBPIXEL_BITS = 4
_TURN = np.linspace(0, 2 * np.pi, 40, endpoint=False)
_UNIT_CIRCLE = np.stack([np.cos(_TURN), np.sin(_TURN)], axis=1)


@dataclass
class Part:
    """A polygon of a thing.

    Args:
        outline: float array P x 2 of (x, y) in the object frame.
        tone: which color of the thing's palette fills it: "main", "second", "dark" or "light".
        solid: whether the part belongs to the silhouette; other parts only decorate it.
        hole: whether the part is cut out of the silhouette.
    """

    outline: np.ndarray
    tone: str = "main"
    solid: bool = False
    hole: bool = False


def _ellipse(
    x: float, y: float, rx: float, ry: float, *, angle: float = 0.0, wave: float = 0.0, lobes: int = 0
) -> np.ndarray:
    """Outline of an ellipse whose radius may vary by ``wave`` (relative) in ``lobes`` periods."""
    points = _UNIT_CIRCLE * (rx, ry)
    if lobes:
        points *= 1 + wave * np.cos(lobes * _TURN)[:, None]
    cos, sin = math.cos(angle), math.sin(angle)
    return points @ ((cos, sin), (-sin, cos)) + (x, y)


def _rectangle(x0: float, y0: float, x1: float, y1: float) -> np.ndarray:
    return np.array([(x0, y0), (x1, y0), (x1, y1), (x0, y1)])


def _ball(rng: np.random.Generator) -> list[Part]:
    parts = [Part(_ellipse(0, 0, 0.9, 0.9), solid=True)]
    panels = int(rng.integers(3, 6))
    start = rng.uniform(0, np.pi)
    for i in range(panels):
        t = start + 2 * np.pi * np.linspace(i, i + 0.5, 10) / panels
        arc = np.stack([np.cos(t), np.sin(t)], axis=1)
        parts.append(Part(np.concatenate([[(0.15, -0.1)], arc]), "second"))
    parts.append(Part(_ellipse(0.15, -0.1, 0.16, 0.16), "light"))
    return parts


def _boat(rng: np.random.Generator) -> list[Part]:
    bow, mast = rng.uniform(0.2, 0.4), rng.uniform(-0.2, 0.1)
    hull = np.array([(-0.95, 0.4), (0.98, 0.35), (0.98 - bow, 0.9), (-0.95 + bow, 0.9)])
    back = np.array([(mast - 0.1, -0.85), (mast - 0.1, 0.22), (-0.85, 0.22)])
    front = np.array([(mast + 0.1, -0.75), (mast + 0.1, 0.22), (0.85, 0.2)])
    return [
        Part(_rectangle(mast - 0.1, -0.95, mast + 0.1, 0.45), "dark", solid=True),
        Part(back, "light", solid=True),
        Part(front, "second", solid=True),
        Part(hull, solid=True),
        Part(np.array([(-0.95, 0.4), (0.98, 0.35), (0.93, 0.5), (-0.9, 0.53)]), "dark"),
    ]


def _butterfly(rng: np.random.Generator) -> list[Part]:
    wide, tilt, spot = rng.uniform(0.4, 0.5), rng.uniform(0.3, 0.6), rng.uniform(0.3, 0.55)
    parts, spots = [], []
    for side in (-1, 1):
        wings = [(0.5, -0.4, wide, 0.42, -tilt, "main"), (0.4, 0.4, 0.8 * wide, 0.34, tilt, "second")]
        for x, y, rx, ry, angle, tone in wings:
            parts.append(Part(_ellipse(side * x, y, rx, ry, angle=side * angle), tone, solid=True))
            spots.append(Part(_ellipse(side * x * 1.1, y, spot * rx, spot * ry), "dark"))
            spots.append(Part(_ellipse(side * x * 1.1, y, 0.5 * spot * rx, 0.5 * spot * ry), "light"))
    return parts + spots + [Part(_ellipse(0, 0, 0.11, 0.75), "dark", solid=True)]


def _car(rng: np.random.Generator) -> list[Part]:
    roof, hood = rng.uniform(-0.55, -0.35), rng.uniform(0.35, 0.6)
    cabin = np.array([(-0.75, 0.0), (-0.5, roof), (hood - 0.25, roof), (hood, 0.0)])
    glass = cabin * (0.82, 0.75) + (-0.03, -0.04)
    wheel = rng.uniform(0.2, 0.26)
    parts = [
        Part(cabin, solid=True),
        Part(_ellipse(0, 0.18, 0.97, 0.3, wave=0.05, lobes=4), solid=True),
        Part(glass, "light"),
        Part(_rectangle(-0.2, roof, -0.1, 0.4), "main"),
        Part(_rectangle(-0.97, 0.2, 0.97, 0.28), "second"),
    ]
    for x in (-0.52, 0.52):
        parts.append(Part(_ellipse(x, 0.42, wheel, wheel), "dark", solid=True))
        parts.append(Part(_ellipse(x, 0.42, 0.5 * wheel, 0.5 * wheel), "light"))
    return parts


def _donut(rng: np.random.Generator) -> list[Part]:
    hole = rng.uniform(0.26, 0.4)
    parts = [
        Part(_ellipse(0, 0, 0.92, 0.92), "second", solid=True),
        Part(_ellipse(0, 0, 0.78, 0.78, wave=0.06, lobes=int(rng.integers(6, 11)))),
    ]
    for i in range(14):
        t, r = 2 * np.pi * (i + rng.uniform(-0.3, 0.3)) / 14, rng.uniform(hole + 0.12, 0.68)
        sprinkle = _ellipse(r * np.cos(t), r * np.sin(t), 0.11, 0.05, angle=rng.uniform(0, np.pi))
        parts.append(Part(sprinkle, "light" if i % 2 else "dark"))
    return parts + [Part(_ellipse(0, 0, hole, hole), hole=True)]


def _fish(rng: np.random.Generator) -> list[Part]:
    height, fork = rng.uniform(0.4, 0.6), rng.uniform(0.6, 0.8)
    tail = np.array([(-0.4, 0.0), (-0.98, -0.55), (-fork, 0.0), (-0.98, 0.55)])
    fin = np.array([(-0.3, -0.6 * height), (0.1, -height - 0.3), (0.4, -0.6 * height)])
    head = _ellipse(0.15, 0, 0.78, height)
    return [
        Part(tail, "second", solid=True),
        Part(fin, "second", solid=True),
        Part(fin * (0.8, -0.9), "second", solid=True),
        Part(head, solid=True),
        Part(head[head[:, 0] > 0.5], "second"),
        Part(_ellipse(0.62, -0.12, 0.12, 0.12), "light"),
        Part(_ellipse(0.64, -0.12, 0.06, 0.06), "dark"),
    ]


def _flower(rng: np.random.Generator) -> list[Part]:
    petals, wide = int(rng.integers(5, 9)), rng.uniform(0.8, 1.1)
    parts = []
    for i in range(petals):
        t = 2 * np.pi * i / petals
        petal = _ellipse(
            0.58 * np.cos(t), 0.58 * np.sin(t), 0.38, wide * 0.55 * np.sin(np.pi / petals), angle=t
        )
        parts.append(Part(petal, solid=True))
    center = rng.uniform(0.2, 0.32)
    return parts + [
        Part(_ellipse(0, 0, center + 0.06, center + 0.06), "dark", solid=True),
        Part(_ellipse(0, 0, center, center), "second"),
    ]


def _house(rng: np.random.Generator) -> list[Part]:
    eaves, peak = rng.uniform(-0.3, 0.0), rng.uniform(-0.3, 0.3)
    roof = np.array([(-0.95, eaves), (peak, -0.9), (0.95, eaves)])
    door = rng.uniform(-0.1, 0.3)
    return [
        Part(_rectangle(0.4, -0.85, 0.62, eaves), "dark", solid=True),
        Part(_rectangle(-0.75, eaves, 0.75, 0.9), solid=True),
        Part(roof, "second", solid=True),
        Part(_rectangle(door, 0.3, door + 0.34, 0.9), "dark"),
        Part(_rectangle(-0.55, 0.15, -0.2, 0.5), "light"),
        Part(_rectangle(-0.4, 0.15, -0.35, 0.5), "dark"),
    ]


def _brightness(name: str, u: np.ndarray, v: np.ndarray, frequency: float) -> np.ndarray:
    """Texture of a class: relative brightness around 0 at the points (u, v) of the object frame."""
    radius = np.sqrt(u * u + v * v)
    if name == "ball":  # round shading with a highlight
        return 0.5 - 0.9 * radius**2 + np.exp(-12 * ((u + 0.3) ** 2 + (v + 0.35) ** 2))
    if name == "boat":  # planks
        return np.where(v > 0.3, np.sign(np.sin(22 * frequency * v)), 0.3 * np.sin(9 * u))
    if name == "butterfly":  # veins that spread from the body
        return np.sin(14 * frequency * np.arctan2(v, np.abs(u) + 0.05))
    if name == "car":  # a reflection along the body
        return np.exp(-30 * (v - 0.08) ** 2) - 0.8 * (v > 0.35)
    if name == "donut":  # a round rim
        return 0.8 - 5 * np.abs(radius - 0.6)
    if name == "fish":  # scales in staggered rows
        row = np.floor(7 * frequency * v)
        phase = 5 * frequency * u + 0.5 * np.mod(row, 2)
        return np.where(u < 0.5, 1.6 * np.abs(np.mod(phase, 1) - 0.5) - 0.8 * np.mod(7 * frequency * v, 1), 0)
    if name == "flower":  # streaks along the petals
        return np.sin(30 * frequency * np.arctan2(v, u)) * (radius > 0.3) - 1.2 * (0.6 - radius)
    row = np.floor(6 * frequency * (v + 1))  # house: bricks
    mortar = (np.mod(6 * frequency * (v + 1), 1) < 0.2) | (
        np.mod(3 * frequency * u + 0.5 * np.mod(row, 2), 1) < 0.12
    )
    return np.where(mortar, 0.9, -0.3 + 0.3 * np.sin(12.9 * row + 7 * np.floor(3 * frequency * u)))


_BUILDERS: dict[str, Callable[[np.random.Generator], list[Part]]] = {
    "ball": _ball,
    "boat": _boat,
    "butterfly": _butterfly,
    "car": _car,
    "donut": _donut,
    "fish": _fish,
    "flower": _flower,
    "house": _house,
}
# Things that have an up side are only tilted; the others are turned freely.
_UPRIGHT = {"boat", "car", "house"}
_MAX_TILT = np.deg2rad(30)


def _random_palette(rng: np.random.Generator) -> dict[str, tuple[int, int, int]]:
    """Draw RGB colors for the tones of a thing, two of them clearly apart from each other."""
    hue, value = rng.uniform(), rng.uniform(0.35, 1.0)
    second = (
        hue + rng.uniform(0.1, 0.9),
        rng.uniform(0.2, 0.9),
        value - 0.3 if value > 0.65 else value + 0.35,
    )
    tones = {
        "main": (hue, rng.uniform(0.2, 0.95), value),
        "second": second,
        "dark": (rng.uniform(), rng.uniform(0, 0.6), rng.uniform(0.08, 0.25)),
        "light": (rng.uniform(), rng.uniform(0, 0.3), rng.uniform(0.85, 1.0)),
    }
    palette = {}
    for tone, (h, s, v) in tones.items():
        red, green, blue = colorsys.hsv_to_rgb(h % 1, s, v)
        palette[tone] = round(255 * red), round(255 * green), round(255 * blue)
    return palette


def draw_thing(
    rng: np.random.Generator, name: str, half_size: float, light_angle: float
) -> tuple[np.ndarray, np.ndarray]:
    """Draw one thing with random shape, colors, rotation and shading.

    Args:
        rng: where the random numbers come from.
        name: one of the things' class names.
        half_size: half of the thing's extent before rotation, px.
        light_angle: direction that the light comes from, radians.

    Returns:
        rgb: float32 S x S x 3 in 0 to 255, the thing in the middle of a square that contains it whole.
        alpha: uint8 S x S, 255 inside the silhouette, anti-aliased at its edge.
    """
    parts = _BUILDERS[name](rng)
    palette = _random_palette(rng)
    angle = rng.uniform(-_MAX_TILT, _MAX_TILT) if name in _UPRIGHT else rng.uniform(-np.pi, np.pi)
    flip, stretch = 1 - 2 * int(rng.integers(2)), math.exp(rng.uniform(-0.2, 0.2))
    scale = half_size * np.array([flip * math.sqrt(stretch), 1 / math.sqrt(stretch)])
    cos, sin = math.cos(angle), math.sin(angle)
    to_image = np.diag(scale) @ np.array([[cos, sin], [-sin, cos]])
    ends = np.cumsum([len(part.outline) for part in parts])
    points = np.concatenate([part.outline for part in parts]) @ to_image
    # The margin leaves room for the shadow.
    middle = math.ceil(1.1 * np.abs(points).max()) + 2
    side = 2 * middle + 1
    polygons = np.split(np.rint((points + middle) * (1 << _SUBPIXEL_BITS)).astype(np.int32), ends[:-1])

    rgb = np.full((side, side, 3), palette["main"], dtype=np.uint8)
    alpha = np.zeros((side, side), dtype=np.uint8)
    for part, polygon in zip(parts, polygons):
        if part.solid or part.hole:
            cv2.fillPoly(alpha, [polygon], (0 if part.hole else 255,), cv2.LINE_AA, _SUBPIXEL_BITS)
        if not part.hole:
            cv2.fillPoly(rgb, [polygon], palette[part.tone], cv2.LINE_AA, _SUBPIXEL_BITS)

    axis = np.arange(side, dtype=np.float32) - middle
    x, y = axis[None, :], axis[:, None]
    to_object = np.linalg.inv(to_image).astype(np.float32)
    u, v = x * to_object[0, 0] + y * to_object[1, 0], x * to_object[0, 1] + y * to_object[1, 1]
    texture = rng.uniform(0.2, 0.35) * _brightness(name, u, v, rng.uniform(0.8, 1.25))
    shading = rng.uniform(0.1, 0.3) * (x * math.cos(light_angle) + y * math.sin(light_angle)) / half_size
    return rgb * cv2.merge([(1 + texture + shading).astype(np.float32)] * 3), alpha
