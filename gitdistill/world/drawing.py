"""Pixels and masks of the embedded world's scenes.

The symbols are glyphs of DejaVu Sans, the font matplotlib ships: unhinted outlines, polygons filled once at eight
times the resolution, everything after that in 8- and 16-bit integers, so that the same scene gives the same bytes on
any machine. A scene has `things`, `paths`, `turns` and `background`, as `gitdistill.world.scenes.Scene` says."""

import math
import threading
from functools import cache, lru_cache
from pathlib import Path

import numpy as np

from gitdistill.world.grammar import COLOURS, SYMBOLS

WORLD = 96  # world units along a side of the picture
SIZES = {"small": 22, "medium": 31, "large": 42}  # longest side of the ink
GROWTH = (20, 44)  # ink of a growing thing in the first and the last frame
OVERSAMPLING = 8


class Generators(threading.local):
    """One generator for scenes and captions and one for noise in every thread: to seed one is ten times as fast as
    to build one."""

    def __init__(self):
        self.scenes, self.noise = np.random.RandomState(0), np.random.RandomState(0)


generators = Generators()


@cache
def outline(symbol):
    """The glyph's closed contours, [points, 2] each: y down, centred, longest side of the ink = 1."""
    import matplotlib
    from matplotlib.font_manager import FontProperties
    from matplotlib.textpath import TextPath

    font = FontProperties(fname=Path(matplotlib.get_data_path(), "fonts", "ttf", "DejaVuSans.ttf"))
    path = TextPath((0, 0), SYMBOLS[symbol].char, size=100, prop=font)
    contours, segments = [], zip(path.codes, path.vertices)
    for code, point in segments:
        if code == path.MOVETO:
            contours.append([point])
        elif code == path.LINETO:
            contours[-1].append(point)
        elif code == path.CURVE3:  # TrueType has quadratic curves only
            start, (_, end) = contours[-1][-1], next(segments)
            for t in (k / 8 for k in range(1, 9)):
                contours[-1].append((1 - t) ** 2 * start + 2 * t * (1 - t) * point + t * t * end)
    contours = [np.array(contour) * (1, -1) for contour in contours if len(contour) > 2]
    low = np.min([contour.min(0) for contour in contours], 0)
    high = np.max([contour.max(0) for contour in contours], 0)
    return [(contour - (low + high) / 2) / (high - low).max() for contour in contours]


@cache
def sprite(symbol, size, eighths=0):
    """(alpha uint8 [h, w] of its ink, x, y): `symbol` with `size` pixels along its longest side, turned clockwise by
    `eighths` of a circle; (x, y) is the corner's offset from the centre. Filled by the rule of TrueType (the contours'
    winding numbers add up, zero is outside), so that holes stay holes."""
    from PIL import Image, ImageDraw

    half = int(size * 0.75) + 1
    side = 2 * half * OVERSAMPLING
    angle = eighths % 8 * math.pi / 4
    turn = np.array([[math.cos(angle), math.sin(angle)], [-math.sin(angle), math.cos(angle)]])
    winding = np.zeros((side, side), np.int8)
    for contour in outline(symbol):
        points = np.floor(contour @ turn * (size * OVERSAMPLING) + side / 2 + 0.5).astype(int)
        filled = Image.new("L", (side, side))
        ImageDraw.Draw(filled).polygon([(int(x), int(y)) for x, y in points], fill=1)
        x, y = contour.T
        clockwise = np.sum(x * np.roll(y, -1) - y * np.roll(x, -1)) > 0
        winding += np.asarray(filled, np.int8) * np.int8(1 if clockwise else -1)
    alpha = np.asarray(Image.fromarray((winding != 0).astype(np.uint8) * 255).reduce(OVERSAMPLING))
    rows, columns = np.flatnonzero(alpha.any(1)), np.flatnonzero(alpha.any(0))
    top, left = int(rows[0]), int(columns[0])
    return alpha[top : int(rows[-1]) + 1, left : int(columns[-1]) + 1].copy(), left - half, top - half


@lru_cache(maxsize=8192)
def coloured(symbol, size, eighths, colour):
    """A sprite to paste: (colour times alpha uint8 [3, h, w], 256 minus alpha uint16 [h, w], x, y)."""
    alpha, x, y = sprite(symbol, size, eighths)
    alpha = alpha.astype(np.uint16)
    alpha += alpha >> 7  # 0..256, so that a shift divides
    paint = np.array(COLOURS[colour], np.uint16)[:, None, None] * alpha >> 8
    return paint.astype(np.uint8), 256 - alpha, x, y


@cache
def extent(symbol, size, motion):
    """(left, top, right, bottom) of a thing's ink around its centre in world units, at any size and angle."""
    if motion == "spin":
        sprites = [sprite(symbol, SIZES[size], eighths) for eighths in range(8)]
    else:
        sprites = [sprite(symbol, GROWTH[1] if motion in ("grow", "shrink") else SIZES[size])]
    boxes = np.array([(x, y, x + alpha.shape[1], y + alpha.shape[0]) for alpha, x, y in sprites])
    return (*boxes[:, :2].min(0).tolist(), *boxes[:, 2:].max(0).tolist())


def background(kind, first, second, seed, size):
    """uint8, [3, size, size] or something that broadcasts to it."""
    start = np.array(first, np.int16)[:, None, None]
    if kind == "plain":
        return start.astype(np.uint8)
    if kind == "noise":
        generators.noise.seed(seed)
        grey = generators.noise.randint(0, 32, (size, size), np.uint8)
        return grey + start.astype(np.uint8)
    ramp = np.arange(size, dtype=np.int16)
    ramp = ramp[None, None, :] if seed % 2 else ramp[None, :, None]
    step = np.array(second, np.int16)[:, None, None] - start
    return (start + step * ramp // size).astype(np.uint8)


def placements(scene, num_frames, image_size):
    """Yields (frame, thing, size, eighths, x, y) for each thing and frame, in pixels."""
    last = max(num_frames - 1, 1)
    for o, (thing, (x0, y0, x1, y1), turn) in enumerate(zip(scene.things, scene.paths, scene.turns)):
        for f in range(num_frames):
            size = SIZES[thing.size]
            if thing.motion in ("grow", "shrink"):
                t = f if thing.motion == "grow" else last - f
                size = GROWTH[0] * (GROWTH[1] / GROWTH[0]) ** (t / last)
            x = x0 * last + (x1 - x0) * f
            y = y0 * last + (y1 - y0) * f
            x, y = ((2 * at * image_size + WORLD * last) // (2 * WORLD * last) for at in (x, y))
            yield f, o, int(size * image_size / WORLD + 0.5), turn * f % 8, x, y


def window(x, y, height, width, image_size):
    """The slices of the picture and of a sprite where they overlap."""
    top, left = max(y, 0), max(x, 0)
    bottom, right = min(y + height, image_size), min(x + width, image_size)
    return (slice(top, bottom), slice(left, right)), (slice(top - y, bottom - y), slice(left - x, right - x))


def draw(scene, num_frames=4, image_size=WORLD):
    """Draws a scene: uint8 array [F, 3, H, W]."""
    pictures = np.empty((num_frames, 3, image_size, image_size), np.uint8)
    pictures[:] = background(*scene.background, image_size)
    for f, o, size, eighths, x, y in placements(scene, num_frames, image_size):
        paint, rest, left, top = coloured(scene.things[o].symbol, size, eighths, scene.things[o].colour)
        there, here = window(left + x, top + y, *rest.shape, image_size)
        region = pictures[(f, slice(None), *there)]
        region[...] = (region * rest[here] >> 8) + paint[(slice(None), *here)]
    return pictures


def draw_masks(scene, num_frames=4, image_size=WORLD):
    """The things' masks, where they cover at least half of a pixel: bool array [O, F, H, W]."""
    masks = np.zeros((len(scene.things), num_frames, image_size, image_size), bool)
    for f, o, size, eighths, x, y in placements(scene, num_frames, image_size):
        alpha, left, top = sprite(scene.things[o].symbol, size, eighths)
        there, here = window(left + x, top + y, *alpha.shape, image_size)
        masks[(o, f, *there)] = alpha[here] >= 128
    return masks
