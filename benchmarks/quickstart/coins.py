"""The quickstart's pictures: photographed coins on photographs, with exact labels, from scikit-image alone.

Coins are cut out of scikit-image's picture of ancient Greek coins, toned in copper or silver, turned, scaled and
laid on parts of its other photographs; no coin lies twice in a picture. Coins and photographs of the test pictures
are none of those of the others. Each picture is a function of its split and number alone.
"""

import importlib.util
import shutil
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from updetr_d2.data.scenes.files import segment, write_scenes

CLASSES = ("copper coin", "silver coin")
# (Red, green, blue) factors of a gray coin.
TONES = ((1.0, 0.72, 0.45), (1.0, 1.0, 1.0))
HEIGHT, WIDTH = 240, 320
COINS_PER_PICTURE = (1, 4)
DIAMETER = (70, 128)  # px
# Part of a photograph's shorter side that the window behind the coins has.
WINDOW = (0.35, 0.8)
# Area (px) of a coin in the picture of all coins.
COIN_AREA = (700, 4500)
PLACEMENT_TRIES = 20
# Share of the coins for the test pictures.
TEST_SHARE = 0.3
PHOTOGRAPHS = {
    "train": ("astronaut.png", "brick.png", "camera.png", "coffee.png", "gravel.png", "rocket.jpg"),
    "test": ("chelsea.png", "grass.png", "motorcycle_left.png"),
}
# Families of pictures -> which coins and photographs they have, and their seed.
FAMILIES = {"unlabeled": ("train", 1), "train": ("train", 2), "test": ("test", 3)}


def photo_folder() -> Path:
    """Folder of scikit-image's photographs.

    Raises:
        ValueError: if scikit-image is not installed.
    """
    spec = importlib.util.find_spec("skimage")
    if spec is None or spec.origin is None:
        raise ValueError(
            "The photographs come with scikit-image, which is missing: pip install scikit-image."
        )
    return Path(spec.origin).parent / "data"


def cut_out_coins(gray: np.ndarray) -> list[np.ndarray]:
    """Coins that are brighter than what they lie on, as they lie from top to bottom.

    Args:
        gray: uint8 H×W.

    Returns:
        uint8 h×w×2 of each: gray, and how much of a pixel is coin (0–255).
    """
    _, bright = cv2.threshold(
        cv2.GaussianBlur(gray, (0, 0), 1.0), 0, 255, cv2.THRESH_BINARY + cv2.THRESH_OTSU
    )
    bright = cv2.morphologyEx(bright, cv2.MORPH_CLOSE, np.ones((5, 5), np.uint8))
    contours, _ = cv2.findContours(bright, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    coins = []
    for contour in sorted(contours, key=lambda points: cv2.boundingRect(points)[1]):
        hull = cv2.convexHull(contour)
        x, y, width, height = cv2.boundingRect(hull)
        is_round = 0.75 < width / height < 1.33
        at_border = x == 0 or y == 0 or x + width == gray.shape[1] or y + height == gray.shape[0]
        if is_round and not at_border and COIN_AREA[0] < cv2.contourArea(hull) < COIN_AREA[1]:
            mask = np.zeros_like(gray)
            cv2.fillConvexPoly(mask, hull, 255)
            mask = cv2.erode(mask, np.ones((3, 3), np.uint8))  # no rim of the background
            mask = cv2.GaussianBlur(mask, (0, 0), 0.8)  # a smooth rim when it is enlarged
            coins.append(np.dstack([gray, mask])[y : y + height, x : x + width])
    return coins


class Composer:
    """Composes the pictures of a family.

    Args:
        family: of :data:`FAMILIES`.
    """

    def __init__(self, family: str) -> None:
        part, self.seed = FAMILIES[family]
        folder = photo_folder()
        coins = cut_out_coins(np.asarray(Image.open(folder / "coins.png").convert("L")))
        order = np.random.default_rng(0).permutation(len(coins))
        num_test = round(TEST_SHARE * len(coins))
        chosen = order[:num_test] if part == "test" else order[num_test:]
        self.coins = [coins[i] for i in chosen]
        self.photos = [np.asarray(Image.open(folder / name).convert("RGB")) for name in PHOTOGRAPHS[part]]

    def __call__(self, index: int) -> tuple[np.ndarray, dict]:
        """A picture, as :func:`write_scenes` takes it; classes are those of :data:`CLASSES`."""
        rng = np.random.default_rng([self.seed, index])
        canvas = self._background(rng)
        segment_map = np.zeros((HEIGHT, WIDTH), dtype=np.int32)
        classes = []
        count = rng.integers(*COINS_PER_PICTURE, endpoint=True)
        for coin in rng.permutation(len(self.coins))[:count]:
            tone = int(rng.integers(len(TONES)))
            color, alpha = _turned(rng, self.coins[coin], TONES[tone])
            place = _free_place(rng, segment_map > 0, alpha.shape)
            if place is None:
                continue
            y, x = place
            window = slice(y, y + alpha.shape[0]), slice(x, x + alpha.shape[1])
            canvas[window] += alpha[..., None] * (color - canvas[window])
            classes.append(tone)
            segment_map[window][alpha > 0.5] = len(classes)
        segments = [
            segment(segment_map == i, i, tone, isthing=True) for i, tone in enumerate(classes, start=1)
        ]
        image = np.clip(np.rint(canvas), 0, 255).astype(np.uint8)
        return image, {"panoptic_seg": segment_map, "segments_info": segments}

    def _background(self, rng: np.random.Generator) -> np.ndarray:
        photo = self.photos[rng.integers(len(self.photos))]
        height = round(min(photo.shape[0], photo.shape[1] * HEIGHT / WIDTH) * rng.uniform(*WINDOW))
        width = round(height * WIDTH / HEIGHT)
        y, x = (int(rng.integers(have - need + 1)) for have, need in zip(photo.shape, (height, width)))
        window = cv2.resize(
            photo[y : y + height, x : x + width], (WIDTH, HEIGHT), interpolation=cv2.INTER_CUBIC
        )
        return cv2.GaussianBlur(window, (0, 0), 1.0).astype(np.float32)


def _turned(
    rng: np.random.Generator, coin: np.ndarray, tone: tuple[float, ...]
) -> tuple[np.ndarray, np.ndarray]:
    """A coin at a random size, angle and brightness: float32 color h×w×3 in 0–255 and alpha h×w in 0–1."""
    height, width = coin.shape[:2]
    scale = rng.uniform(*DIAMETER) / max(height, width)
    side = int(np.ceil(scale * np.hypot(height, width))) + 2
    matrix: np.ndarray = cv2.getRotationMatrix2D((width / 2, height / 2), rng.uniform(0, 360), scale)
    matrix[:, 2] += (side - width) / 2, (side - height) / 2
    turned = cv2.warpAffine(np.ascontiguousarray(coin), matrix, (side, side), flags=cv2.INTER_CUBIC)
    solid = np.argwhere(turned[..., 1] > 127)
    (top, left), (bottom, right) = solid.min(axis=0), solid.max(axis=0) + 1
    turned = turned[top:bottom, left:right].astype(np.float32)
    color = turned[..., :1] * np.array(tone, dtype=np.float32) * rng.uniform(0.7, 1.05)
    return color, turned[..., 1] / 255


def _free_place(
    rng: np.random.Generator, taken: np.ndarray, shape: tuple[int, ...]
) -> tuple[int, int] | None:
    """Row and column of a window of ``shape`` that touches nothing; None if none was found."""
    for _ in range(PLACEMENT_TRIES):
        y, x = (int(rng.integers(have - need + 1)) for have, need in zip(taken.shape, shape))
        if not taken[y : y + shape[0], x : x + shape[1]].any():
            return y, x
    return None


def write_coins(folder: Path, family: str, count: int) -> None:
    """Write the first ``count`` pictures of a family unless they are there.

    Args:
        folder: gets ``images/`` and, but for "unlabeled", ``instances.json``.
        family: of :data:`FAMILIES`.
        count: how many.
    """
    if folder.is_dir():
        return
    unfinished = folder.with_name(f"{folder.name}.unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    write_scenes(
        unfinished,
        range(count),
        Composer(family),
        labeled=family != "unlabeled",
        thing_classes=CLASSES,
        stuff_classes=(),
    )
    unfinished.rename(folder)
