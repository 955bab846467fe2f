"""Draws scenes of the toybox: frames, and the mask of each toy, exact where one hides another.

Positions are in world units: a picture is `WORLD` wide and high, whatever its size in pixels. All arithmetic is in
integers, so the same scene gives the same bytes on any machine."""

from functools import cache

import numpy as np

from gitdistill.world import sprites

WORLD = 128
SIZES = {"small": 34, "medium": 46, "large": 62}  # the longer side of a toy
GROWTH = (28, 62)  # of a toy that grows, at the start and at the end
SPIN, SWAY = 135, 20  # degrees: a spin's whole turn, and how far a wobble leans to each side
JUMP = 26  # how high a toy jumps
GROUNDS = ("meadow", "evening", "snow", "beach", "sea", "paper", "grid", "pastel", "sunny")

# Colours from the top to the horizon, of the hills behind, and from the horizon to the lower edge.
_LANDSCAPES = {
    "meadow": ((120, 190, 250), (205, 232, 252), (150, 200, 120), (140, 196, 100), (108, 166, 78)),
    "evening": ((255, 190, 150), (255, 226, 196), (176, 196, 128), (160, 190, 104), (120, 160, 84)),
    "snow": ((160, 214, 240), (214, 238, 248), (226, 240, 248), (238, 244, 250), (212, 224, 240)),
    "beach": ((110, 180, 250), (170, 216, 250), (120, 196, 214), (240, 214, 150), (222, 190, 124)),
    "sea": ((140, 206, 248), (196, 230, 250), (96, 178, 220), (84, 166, 214), (48, 124, 186)),
}
_PLAINS = {
    "paper": ((244, 243, 238), (236, 235, 228)),
    "grid": ((252, 240, 240), (246, 230, 232)),
    "pastel": ((250, 212, 226), (212, 220, 250)),
    "sunny": ((255, 242, 196), (208, 240, 214)),
}


def draw(scene, num_frames: int = 4, image_size: int = WORLD, only: int | None = None) -> np.ndarray:
    """The frames of a scene, uint8 [F, 3, H, W]; with `only`, just that one of them, [1, 3, H, W]."""
    ground = draw_ground(*scene.ground, image_size)
    chosen = range(num_frames) if only is None else [only]
    canvas = np.empty((len(chosen), *ground.shape), np.uint16)
    canvas[:] = ground
    for frame, number in zip(canvas, chosen, strict=True):
        for k in range(len(scene.toys)):
            sprite, x, y = placed(scene, k, number, num_frames, image_size)
            here, part = overlap(sprite.opacity.shape, x, y, image_size)
            below = frame[(slice(None), *here)]
            below *= 255 - sprite.opacity[part]
            below += sprite.colour[(slice(None), *part)]
            below += 128
            below += below >> 8
            below >>= 8
    return canvas.astype(np.uint8)


def draw_masks(scene, num_frames: int = 4, image_size: int = WORLD, only: int | None = None) -> np.ndarray:
    """What is seen of each toy, bool [O, F, H, W]: a toy in front hides those behind it."""
    chosen = range(num_frames) if only is None else [only]
    masks = np.zeros((len(scene.toys), len(chosen), image_size, image_size), bool)
    for f, number in enumerate(chosen):
        for k in range(len(scene.toys)):
            sprite, x, y = placed(scene, k, number, num_frames, image_size)
            here, part = overlap(sprite.mask.shape, x, y, image_size)
            shown = sprite.mask[part]
            masks[k, f][here] = shown
            for hidden in masks[:k, f]:
                hidden[here] &= ~shown
    return masks


def placed(scene, k: int, frame: int, num_frames: int, image_size: int) -> tuple:
    """(sprite, x, y): toy k as it looks in a frame, and where its sprite's upper left corner lies, in pixels."""
    toy, path = scene.toys[k], scene.paths[k]
    last = max(1, num_frames - 1)
    height, angle, low = 0, 0, False
    size = SIZES[toy.size]
    if toy.motion in ("grow", "shrink"):
        first, end = GROWTH if toy.motion == "grow" else GROWTH[::-1]
        size = (first * (last - frame) + end * frame) // last
    elif toy.motion == "jump":
        height = 4 * JUMP * frame * (last - frame) // (last * last)
    elif toy.motion == "spin":
        angle = (SPIN * frame // last) // 5 * 5 * (1 if scene.turns[k] else -1)
    elif toy.motion == "wobble":
        angle, low = SWAY if (frame + scene.turns[k]) % 2 else -SWAY, True
    flipped = -angle if toy.mirrored else angle
    sprite = sprites.sprite(toy.name, toy.colour, max(1, size * image_size // WORLD), flipped, low)
    sprite = sprites.mirrored(sprite) if toy.mirrored else sprite
    x, y = ((path[i] * (last - frame) + path[i + 2] * frame) * image_size for i in (0, 1))
    y -= height * last * image_size
    return sprite, x // (last * WORLD) + sprite.x, y // (last * WORLD) + sprite.y


def overlap(shape: tuple[int, int], x: int, y: int, size: int) -> tuple:
    """The part of the picture that a sprite covers, and the part of the sprite that lies in the picture."""
    height, width = shape
    top, left, low, right = max(0, y), max(0, x), min(size, y + height), min(size, x + width)
    low, right = max(top, low), max(left, right)
    here = slice(top, low), slice(left, right)
    return here, (slice(top - y, low - y), slice(left - x, right - x))


def draw_ground(kind: str, seed: int, image_size: int = WORLD) -> np.ndarray:
    """What the toys stand before, uint16 [3, H, W]: one of `GROUNDS`, varied by the seed."""
    picture = landscape(kind, seed) if kind in _LANDSCAPES else plain(kind, seed)
    picture += grain(seed)
    np.clip(picture, 0, 255, out=picture)
    if image_size != WORLD:
        rows = sprites.resample(picture.transpose(1, 2, 0).astype(np.int64), (image_size, image_size))
        picture = np.clip(rows, 0, 255).transpose(2, 0, 1)
    return picture.astype(np.uint16)


def landscape(kind: str, seed: int) -> np.ndarray:
    """Sky, hills and ground: int16 [3, H, W]."""
    top, horizon, behind, near, low = _LANDSCAPES[kind]
    line = 56 + seed % 24
    picture = np.empty((3, WORLD, WORLD), np.int16)
    picture[:, :line] = ramp(top, horizon, line)[:, :, None]
    picture[:, line:] = ramp(near, low, WORLD - line)[:, :, None]
    rows = np.arange(WORLD)[:, None]
    flat = kind in ("beach", "sea")
    far = line - 6 - (0 if flat else bumps(seed // 24 % 97, 83, 10) + bumps(seed // 7 % 61, 41, 4))
    close = line + (np.zeros(WORLD, int) if flat else -bumps(seed // 5 % 71, 113, 7))
    hill = (rows >= far) & (rows < close)
    picture[:, hill] = np.array(behind, np.int16)[:, None]
    front = (rows >= close) & (rows < line)
    picture[:, front] = np.array(near, np.int16)[:, None]
    return picture


def plain(kind: str, seed: int) -> np.ndarray:
    """Paper, or a soft gradient with bubbles: int16 [3, H, W]."""
    first, second = _PLAINS[kind]
    if seed % 2:
        first, second = second, first
    picture = np.repeat(ramp(first, second, WORLD)[:, :, None], WORLD, 2)
    lines, steps = np.arange(WORLD), 12 + seed % 5
    if kind == "paper":
        picture[:, (lines + seed) % steps == 0] -= np.array([28, 20, 8], np.int16)[:, None, None]
    elif kind == "grid":
        picture[:, (lines + seed) % steps == 0] -= np.array([24, 14, 4], np.int16)[:, None, None]
        picture[:, :, (lines + seed // 5) % steps == 0] -= np.array([24, 14, 4], np.int16)[:, None, None]
    else:
        for k in range(3):
            x, y, radius = (seed >> 3 * k) % WORLD, (seed >> (2 * k + 5)) % WORLD, 6 + (seed >> k) % 10
            disc = (lines[None] - x) ** 2 + (lines[:, None] - y) ** 2 < radius * radius
            picture += 12 * disc.astype(np.int16)
    return picture


def ramp(first: tuple, second: tuple, steps: int) -> np.ndarray:
    """Colours from one to the other, int16 [3, steps]."""
    at = np.arange(steps)
    pairs = zip(first, second, strict=True)
    return np.array([a + (b - a) * at // max(1, steps - 1) for a, b in pairs], dtype=np.int16)


def bumps(offset: int, period: int, height: int) -> np.ndarray:
    """A smooth wavy line, int [W], 0 to `height`."""
    at = (np.arange(WORLD) + offset) % period
    return 4 * height * at * (period - at) // (period * period)


@cache
def speckles() -> np.ndarray:
    """Fine noise, int16 [2W, 2W], -3 to 3."""
    noise = np.random.RandomState(5).randint(-9, 10, (2 * WORLD, 2 * WORLD))
    smooth = noise + np.roll(noise, 1, 0) + np.roll(noise, 1, 1) + np.roll(noise, 1, (0, 1))
    return (smooth // 10).astype(np.int16)


def grain(seed: int) -> np.ndarray:
    """The part of the noise that a seed means."""
    x, y = seed % WORLD, seed // WORLD % WORLD
    return speckles()[y : y + WORLD, x : x + WORLD]
