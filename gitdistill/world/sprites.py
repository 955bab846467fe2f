"""The toys as pictures: cut from the atlas, recoloured, resized and turned, in integer arithmetic.

The artwork is Microsoft's Fluent Emoji (MIT licence; see `data/toybox/README.md`). Colours are premultiplied by their
opacity: a pixel is (red, green, blue, 255) x opacity, 0 to 65,025, so that resampling mixes what is seen. No
floating-point number and no library function of the platform decides a pixel: all machines draw the same bytes."""

from collections.abc import Sequence
from functools import cache, lru_cache
from math import isqrt
from typing import NamedTuple

import numpy as np
from PIL import Image

from gitdistill.world.lexicon import FOLDER, OBJECTS

MARGIN = 6  # around a sprite, for its shadow
SHADOW = 90  # opacity of a shadow, of 255
SINES = (
    (0, 5712, 11380, 16962, 22415, 27697, 32768, 37590, 42126, 46341)  # 65,536 times the sine of
    + (50203, 53684, 56756, 59396, 61584, 63303, 64540, 65287, 65536)  # 0, 5, ... 90 degrees
)
# What a saturated pixel of full value becomes: red, green, blue.
HUES = {
    "red": (235, 30, 40),
    "orange": (255, 130, 10),
    "yellow": (255, 220, 30),
    "green": (50, 180, 60),
    "blue": (40, 110, 245),
    "purple": (150, 60, 215),
}


class Sprite(NamedTuple):
    """A toy with its shadow, ready to be laid over a picture. colour: uint16 [3, h, w], premultiplied; opacity: uint16
    [h, w], 0 to 255; mask: bool [h, w], the toy without its shadow; x, y: from the toy's centre to the corner."""

    colour: np.ndarray
    opacity: np.ndarray
    mask: np.ndarray
    x: int
    y: int


@lru_cache(maxsize=4096)
def sprite(name: str, colour: str | None, size: int, angle: int, low: bool) -> Sprite:
    """A toy whose longer side is `size` pixels, turned clockwise by `angle` degrees (a multiple of 5) about its centre
    or, if `low`, about the middle of its lower edge."""
    picture = resized(look(name, colour), size)
    height = picture.shape[0]
    x = y = 0
    if angle:
        picture = turned(picture, angle)
        if low:
            x, y = height * sine(angle) // 131072, height * (65536 - sine(angle + 90)) // 131072
    picture = np.pad(picture, ((MARGIN, MARGIN), (MARGIN, MARGIN), (0, 0)))
    opacity = (picture[..., 3] + 127) // 255
    below = shadow(opacity, max(1, size // 20))
    covered = opacity + (below * (255 - opacity) + 127) // 255
    layers = np.ascontiguousarray(picture[..., :3].transpose(2, 0, 1), dtype=np.uint16)
    h, w = opacity.shape
    return Sprite(layers, covered.astype(np.uint16), opacity > 127, x - w // 2, y - h // 2)


def mirrored(flat: Sprite) -> Sprite:
    """The sprite seen in a mirror: left and right exchanged."""
    x = 1 - flat.x - flat.mask.shape[1]
    return Sprite(flat.colour[..., ::-1], flat.opacity[:, ::-1], flat.mask[:, ::-1], x, flat.y)


@cache
def atlas() -> np.ndarray:
    """All sprites, int64 [H, W, 4], premultiplied."""
    with Image.open(FOLDER / "atlas.png") as image:
        pixels = np.asarray(image.convert("RGBA")).astype(np.int64)
    pixels[..., :3] *= pixels[..., 3:]
    pixels[..., 3] *= 255
    return pixels


@cache
def look(name: str, colour: str | None) -> np.ndarray:
    """A toy as it lies in the atlas, in its own or another colour."""
    x, y, width, height = OBJECTS[name].box
    picture = atlas()[y : y + height, x : x + width]
    return picture if colour is None else recoloured(picture, colour)


def recoloured(picture: np.ndarray, colour: str) -> np.ndarray:
    """The parts that have the picture's main hue, in another; its ribbons, leaves and wheels stay as they are."""
    opacity = np.maximum(picture[..., 3:] // 255, 1)
    plain = picture[..., :3] // opacity
    high, low = plain.max(-1), plain.min(-1)
    chroma = high - low
    hue = hues(plain, high, np.maximum(chroma, 1))
    weight = chroma * (picture[..., 3] // 255)
    votes = np.bincount((hue // 60).ravel(), weight.ravel(), minlength=24).astype(np.int64)
    smooth = votes + np.roll(votes, 1) + np.roll(votes, -1)
    main = int(smooth.argmax()) * 60 + 30
    distance = np.abs((hue - main + 720) % 1440 - 720)
    share = np.clip((330 - distance) * 255 // 120, 0, 255) * (chroma > 24)  # 1 within 53 degrees, 0 beyond 83
    usual = int((high * weight * (share > 127)).sum() // max(1, int((weight * (share > 127)).sum())))
    value = np.minimum(255, high * 232 // usual)
    full = np.minimum(255, 130 + chroma * 235 // np.maximum(high, 1))  # how saturated, 0 to 255
    target = np.array(HUES[colour])
    mixed = (value[..., None] * (target * full[..., None] + 255 * (255 - full[..., None]))) // 65025
    new = (mixed * share[..., None] + plain * (255 - share[..., None])) // 255
    return np.concatenate([new * (picture[..., 3:] // 255), picture[..., 3:]], axis=-1)


def hues(plain: np.ndarray, high: np.ndarray, chroma: np.ndarray) -> np.ndarray:
    """The hue of each pixel, 0 to 1,439 (quarters of a degree)."""
    red, green, blue = np.moveaxis(plain, -1, 0)
    sector = np.where(high == red, green - blue, np.where(high == green, blue - red, red - green))
    start = np.where(high == red, 0, np.where(high == green, 480, 960))
    return (start + sector * 240 // chroma) % 1440


@cache
def weights(old: int, new: int) -> np.ndarray:
    """Catmull-Rom weights int64 [new, old] that resample `old` pixels to `new`; each row adds up to 65,536."""
    support = 2 * max(old, new)
    distance = np.abs((2 * np.arange(new)[:, None] + 1) * old - (2 * np.arange(old)[None] + 1) * new)
    near = 3 * distance**3 - 5 * distance**2 * support + 2 * support**3
    far = -(distance**3) + 5 * distance**2 * support - 8 * distance * support**2 + 4 * support**3
    table = np.where(distance < support, near, np.where(distance < 2 * support, far, 0))
    table = table * 65536 // table.sum(1, keepdims=True)
    table[np.arange(new), table.argmax(1)] += 65536 - table.sum(1)
    return table


def resized(picture: np.ndarray, size: int) -> np.ndarray:
    """The picture with a longer side of `size` pixels."""
    height, width = picture.shape[:2]
    longer = max(height, width)
    return resample(picture, [max(1, (2 * side * size + longer) // (2 * longer)) for side in (height, width)])


def resample(picture: np.ndarray, new: Sequence[int]) -> np.ndarray:
    """int64 [h, w, C] at another height and width."""
    rows, columns = weights(picture.shape[0], new[0]), weights(picture.shape[1], new[1])
    picture = np.tensordot(rows, picture, 1) >> 16
    picture = np.tensordot(columns, picture, (1, 1)).swapaxes(0, 1) >> 16
    picture = np.clip(picture, 0, 65025)
    return np.minimum(picture, picture[..., -1:]) if picture.shape[-1] == 4 else picture


def sine(angle: int) -> int:
    """65,536 times the sine of `angle` degrees, a multiple of 5."""
    angle %= 360
    if angle >= 180:
        return -sine(angle - 180)
    return SINES[min(angle, 180 - angle) // 5]


def turned(picture: np.ndarray, angle: int) -> np.ndarray:
    """The picture turned clockwise about its centre, on a square that holds it; bilinear."""
    height, width = picture.shape[:2]
    side = isqrt(height * height + width * width) + 2
    padded = np.pad(picture, ((2, 2), (2, 2), (0, 0)))
    u = 2 * np.arange(side) - side + 1  # twice the distance from the centre
    sin, cos = sine(angle), sine(angle + 90)
    x = (u[None] * cos + u[:, None] * sin) // 2 + ((width - 1) << 15)
    y = (u[:, None] * cos - u[None] * sin) // 2 + ((height - 1) << 15)
    left, top = np.clip(x >> 16, -2, width), np.clip(y >> 16, -2, height)
    right, low = (x & 65535)[..., None], (y & 65535)[..., None]
    corner = [padded[top + 2 + dy, left + 2 + dx] for dy in (0, 1) for dx in (0, 1)]
    upper = corner[0] * (65536 - right) + corner[1] * right >> 16
    lower = corner[2] * (65536 - right) + corner[3] * right >> 16
    return upper * (65536 - low) + lower * low >> 16


def shadow(opacity: np.ndarray, down: int) -> np.ndarray:
    """A soft shadow of a toy, a little below it: its opacity, 0 to `SHADOW`."""
    soft = np.pad(opacity, 2)
    for _ in range(2):
        soft = (np.roll(soft, 1, 0) + 2 * soft + np.roll(soft, -1, 0)) // 4
        soft = (np.roll(soft, 1, 1) + 2 * soft + np.roll(soft, -1, 1)) // 4
    return np.roll(soft, down, 0)[2:-2, 2:-2] * SHADOW // 255
