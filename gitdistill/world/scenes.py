"""The embedded world: short clips of everyday symbols that move, grow or spin, drawn and captioned here.

The symbols are glyphs of DejaVu Sans, the font matplotlib ships. A `Scene` is a complete description of a
clip in world units (the picture is `WORLD` = 96 units wide and high); drawing it at another image size or
with more or fewer frames changes neither its content nor its captions. Only single images are different
scenes.

The same (split, seed, index) gives the same bytes on any machine: unhinted outlines, polygons filled once at
eight times the resolution, everything after that in 8- and 16-bit integers, random numbers from seeded
`numpy.random.RandomState`s only.

The splits are disjoint by construction. What a scene shows (symbol, colour, size and motion of each thing) is
hashed; training takes 80 % of the hash values, validation and test 10 % each. `HELD_OUT` colour and symbol
pairs occur in none of these three; in the split "unseen" the first thing always is such a pair.
"""

import math
import threading
import zlib
from dataclasses import dataclass
from functools import cache, lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch.utils.data import Dataset

from gitdistill.world.grammar import COLOURS, MOTIONS, SYMBOLS, describe

__all__ = [
    "Clip",
    "GlyphClips",
    "HELD_OUT",
    "SPLITS",
    "Scene",
    "Thing",
    "WORLD",
    "content_bucket",
    "draw",
    "draw_masks",
    "make_scene",
]

WORLD = 96  # world units along a side
MARGIN = 1  # kept free along the border
GAP = 3  # kept free between two things
SIZES = {"small": 22, "medium": 31, "large": 42}  # longest side of the ink
GROWTH = (20, 44)  # ink of a growing thing in the first and the last frame
TRAVEL = (34, 54)  # shortest and longest way of a moving thing, room permitting ...
LEAST_TRAVEL = 32  # ... and where there is little room
STEPS = {"left": (-1, 0), "right": (1, 0), "up": (0, -1), "down": (0, 1)}
CLEAR = (
    1.5  # a relation is clear when the centres are this many times farther apart along its axis than across
)

SPLITS = {"train": range(80), "val": range(80, 90), "test": range(90, 100), "unseen": range(100)}
_SPLIT_NUMBER = {name: number for number, name in enumerate(SPLITS)}

_SYMBOLS, _COLOURS, _MOTIONS = list(SYMBOLS), list(COLOURS), list(MOTIONS)
_SPINNING = [name for name, symbol in SYMBOLS.items() if symbol.spins]
# Every symbol lacks one colour, every colour four symbols.
_LACKS = {symbol: _COLOURS[(3 * i + i // 8) % 8] for i, symbol in enumerate(_SYMBOLS)}
HELD_OUT = frozenset((colour, symbol) for symbol, colour in _LACKS.items())
_OFFERED = {symbol: [c for c in _COLOURS if c != _LACKS[symbol]] for symbol in _SYMBOLS}


class Thing(NamedTuple):
    """One thing of a scene, in the keys of the grammar's tables; what grows or shrinks has size "medium"."""

    symbol: str
    colour: str
    size: str
    motion: str

    @property
    def names(self) -> dict[str, tuple]:
        """The words that name the thing, by kind of word."""
        return {"object": SYMBOLS[self.symbol].names, "colour": (self.colour,)}


class Scene(NamedTuple):
    """Everything that is needed to draw a clip and to talk about it; a named tuple, so that it travels in
    Lightning's batches (which refuse frozen dataclasses).

    things: one or two `Thing`s; paths: for each its centre at the start and at the end, (x0, y0, x1, y1) in
    world units; turns: for each the sense of its rotation (+1 clockwise, -1, or 0 when it does not spin);
    relation: where the first thing is, seen from the second, if that is clear in every frame, else None;
    order: the things' indices as a caption would name them, the larger first, then the one on the left;
    moving: False for a single image, where no motion can be told; background: (kind, colour, colour, seed).
    """

    things: tuple
    paths: tuple
    turns: tuple
    relation: str | None
    order: tuple
    moving: bool
    background: tuple


@dataclass
class Clip:
    """frames uint8 [F, 3, H, W]; masks bool [O, F, H, W], one for each thing of the scene, or None when they
    were not asked for; captions: list of str; scene: the `Scene`."""

    frames: torch.Tensor
    masks: torch.Tensor | None
    captions: list
    scene: Scene


# ---------------------------------------------------------------------------------------------------- sprites

_OVERSAMPLING = 8


@cache
def _outline(symbol):
    """The glyph's closed contours, [points, 2] each: y down, centred, longest side of the ink = 1."""
    import matplotlib
    from matplotlib.font_manager import FontProperties
    from matplotlib.textpath import TextPath

    font = FontProperties(fname=Path(matplotlib.get_data_path(), "fonts", "ttf", "DejaVuSans.ttf"))
    path = TextPath((0, 0), SYMBOLS[symbol].char, size=100, prop=font)
    contours = []
    at = 0
    while at < len(path.codes):
        code, point = path.codes[at], path.vertices[at]
        if code == path.MOVETO:
            contours.append([point])
        elif code == path.LINETO:
            contours[-1].append(point)
        elif code == path.CURVE3:  # TrueType has quadratic curves only
            start, end = contours[-1][-1], path.vertices[at + 1]
            for t in (k / 8 for k in range(1, 9)):
                contours[-1].append((1 - t) ** 2 * start + 2 * t * (1 - t) * point + t * t * end)
            at += 1
        at += 1
    contours = [np.array(contour) * (1, -1) for contour in contours if len(contour) > 2]
    low = np.min([contour.min(0) for contour in contours], 0)
    high = np.max([contour.max(0) for contour in contours], 0)
    return [(contour - (low + high) / 2) / (high - low).max() for contour in contours]


@cache
def _sprite(symbol, size, eighths=0):
    """(alpha uint8 [h, w] cropped to its ink, x, y): `symbol` with `size` pixels along its longest side,
    turned clockwise by `eighths` of a circle; (x, y) is the corner's offset from the centre.

    Filled by the rule of TrueType (the contours' winding numbers add up, zero is outside), so that holes stay
    holes."""
    from PIL import Image, ImageDraw

    half = int(size * 0.75) + 1
    side = 2 * half * _OVERSAMPLING
    angle = eighths % 8 * math.pi / 4
    turn = np.array([[math.cos(angle), math.sin(angle)], [-math.sin(angle), math.cos(angle)]])
    winding = np.zeros((side, side), np.int8)
    for contour in _outline(symbol):
        points = np.floor(contour @ turn * (size * _OVERSAMPLING) + side / 2 + 0.5).astype(int)
        filled = Image.new("L", (side, side))
        ImageDraw.Draw(filled).polygon([(int(x), int(y)) for x, y in points], fill=1)
        x, y = contour.T
        clockwise = np.sum(x * np.roll(y, -1) - y * np.roll(x, -1)) > 0
        winding += np.asarray(filled, np.int8) * np.int8(1 if clockwise else -1)
    alpha = np.asarray(Image.fromarray((winding != 0).astype(np.uint8) * 255).reduce(_OVERSAMPLING))
    rows, columns = np.flatnonzero(alpha.any(1)), np.flatnonzero(alpha.any(0))
    top, left = int(rows[0]), int(columns[0])
    return alpha[top : int(rows[-1]) + 1, left : int(columns[-1]) + 1].copy(), left - half, top - half


@lru_cache(maxsize=8192)
def _paint(symbol, size, eighths, colour):
    """A sprite to paste: (colour times alpha uint8 [3, h, w], 256 minus alpha uint16 [h, w], x, y)."""
    alpha, x, y = _sprite(symbol, size, eighths)
    alpha = alpha.astype(np.uint16)
    alpha += alpha >> 7  # 0..256, so that a shift divides
    paint = np.array(COLOURS[colour], np.uint16)[:, None, None] * alpha >> 8
    return paint.astype(np.uint8), 256 - alpha, x, y


@cache
def _extent(symbol, size, motion):
    """(left, top, right, bottom) of a thing's ink around its centre in world units, at any size and angle."""
    if motion == "spin":
        sprites = [_sprite(symbol, SIZES[size], eighths) for eighths in range(8)]
    else:
        sprites = [_sprite(symbol, GROWTH[1] if motion in ("grow", "shrink") else SIZES[size])]
    boxes = [(x, y, x + alpha.shape[1], y + alpha.shape[0]) for alpha, x, y in sprites]
    return (*(min(box[k] for box in boxes) for k in (0, 1)), *(max(box[k] for box in boxes) for k in (2, 3)))


# ----------------------------------------------------------------------------------------------------- scenes


def content_bucket(things):
    """0..99: the hash of what a scene shows, whatever the order of its things. It decides the split."""
    key = ";".join(sorted(f"{t.symbol},{t.colour},{t.size},{t.motion}" for t in things))
    return zlib.crc32(key.encode()) % 100


def make_scene(split, seed, index, objects=None, moving=True):
    """The scene number `index` of a split's stream; see `GlyphClips` for the arguments."""
    return _make_scene(_generator(split, seed, index, objects or 0), split, objects, moving)


class _Generators(threading.local):
    """One generator for scenes and captions and one for noise in every thread: to seed one is ten times as
    fast as to build one."""

    def __init__(self):
        self.scenes, self.noise = np.random.RandomState(0), np.random.RandomState(0)


_generators = _Generators()


def _generator(split, seed, index, *more):
    """The thread's generator, seeded: valid until the next call."""
    _generators.scenes.seed([seed, _SPLIT_NUMBER[split], index, *more])
    return _generators.scenes


def _make_scene(rng, split, objects, moving):
    draw = rng.random_sample
    count = objects or (1 if draw() < 0.4 else 2)
    while True:
        things = _draw_things(draw, count, moving, split == "unseen")
        if content_bucket(things) in SPLITS[split]:
            break
    paths = _draw_paths(draw, things, moving)
    turns = tuple((1 if draw() < 0.5 else -1) if thing.motion == "spin" else 0 for thing in things)
    relation = _relation(things, paths) if count == 2 else None
    return Scene(things, paths, turns, relation, _order(things, paths), moving, _draw_background(draw))


def _draw_things(draw, count, moving, unseen):
    motions = _draw_motions(draw, count) if moving else ["still"] * count
    things = []
    for k, motion in enumerate(motions):
        symbols = _SPINNING if motion == "spin" else _SYMBOLS
        symbol = symbols[int(draw() * len(symbols))]
        while things and symbol == things[0].symbol:
            symbol = symbols[int(draw() * len(symbols))]
        colour = _LACKS[symbol] if unseen and k == 0 else _OFFERED[symbol][int(draw() * 7)]
        size = "medium" if motion in ("grow", "shrink") else ("small", "medium", "large")[int(draw() * 3)]
        things.append(Thing(symbol, colour, size, motion))
    while count == 2 and not _fits(things):
        things = [Thing(t.symbol, t.colour, _smaller(t.size), t.motion) for t in things]
    return tuple(things)


def _draw_motions(draw, count):
    first = _MOTIONS[int(draw() * 8)]
    if count == 1:
        return [first]
    choice = draw()
    if choice < 0.25:
        return ["still", "still"]
    if choice < 0.40:  # one moves, one is at rest
        first = _MOTIONS[1 + int(draw() * 7)]
        return [first, "still"] if draw() < 0.5 else ["still", first]
    while True:
        motions = [first, _MOTIONS[int(draw() * 8)]]
        if motions != ["still", "still"]:
            return motions
        first = _MOTIONS[int(draw() * 8)]


def _smaller(size):
    return {"large": "medium", "medium": "small", "small": "small"}[size]


def _fits(things):
    """Whether two things have room beside or above each other, whatever their symbols are."""
    room = WORLD - 2 * MARGIN - GAP
    widths, heights = zip(*(_swept_size(thing) for thing in things))
    return sum(widths) <= room or sum(heights) <= room


def _swept_size(thing):
    if thing.motion in ("grow", "shrink"):
        return GROWTH[1] + 1, GROWTH[1] + 1
    size = SIZES[thing.size] + 1  # half-covered pixels included
    if thing.motion == "spin":
        return size * 17 // 12, size * 17 // 12
    x, y = STEPS.get(thing.motion, (0, 0))
    return size + abs(x) * LEAST_TRAVEL, size + abs(y) * LEAST_TRAVEL


def _between(draw, low, high):
    """A random integer low..high."""
    return low + int(draw() * (high - low + 1))


def _draw_paths(draw, things, moving):
    """Start and end of each thing's centre such that the areas they sweep lie apart and inside the picture.

    Two areas lie apart when they are separated along x or along y: the axis, the order along it and the free
    space are drawn at random, so that every draw succeeds."""
    extents = [_extent(thing.symbol, thing.size, thing.motion) for thing in things]
    room = WORLD - 2 * MARGIN
    travels = [_between(draw, *TRAVEL) if thing.motion in STEPS else 0 for thing in things]
    boxes = [
        _swept(extent, thing, min(travel, room - _span(extent, thing)))
        for extent, thing, travel in zip(extents, things, travels)
    ]
    if len(things) == 1:
        corners = [[_between(draw, MARGIN, MARGIN + room - boxes[0][axis]) for axis in (0, 1)]]
        return (_path(things[0], extents[0], boxes[0], corners[0]),)
    least = [_swept(extent, thing, LEAST_TRAVEL) for extent, thing in zip(extents, things)]
    axes = [axis for axis in (0, 1) if least[0][axis] + least[1][axis] + GAP <= room]
    axis = axes[int(draw() * len(axes))]
    boxes = _squeeze(boxes, least, axis, room - GAP)
    first = int(draw() * 2)
    corners = _draw_corners(draw, boxes, axis, first, room)
    if all(thing.motion == "still" for thing in things) and (moving or draw() < 0.75):
        _align(draw, corners, boxes, axis, room)
    return tuple(_path(*row) for row in zip(things, extents, boxes, corners))


def _span(extent, thing):
    axis = 0 if thing.motion in ("left", "right") else 1
    return extent[axis + 2] - extent[axis]


def _swept(extent, thing, travel):
    """[width, height] of the area that a thing sweeps on its way."""
    x, y = STEPS.get(thing.motion, (0, 0))
    return [extent[2] - extent[0] + abs(x) * travel, extent[3] - extent[1] + abs(y) * travel]


def _squeeze(boxes, least, axis, room):
    """Shortens the ways along `axis` until both areas fit beside each other, the longer one first."""
    while boxes[0][axis] + boxes[1][axis] > room:
        spare = [box[axis] - low[axis] for box, low in zip(boxes, least)]
        boxes[spare[1] > spare[0]][axis] -= 1
    return boxes


def _draw_corners(draw, boxes, axis, first, room):
    free = room - GAP - boxes[0][axis] - boxes[1][axis]
    a, b = sorted((_between(draw, 0, free), _between(draw, 0, free)))
    corners = [[0, 0], [0, 0]]
    corners[first][axis] = MARGIN + a
    corners[1 - first][axis] = MARGIN + boxes[first][axis] + GAP + b
    for corner, box in zip(corners, boxes):
        corner[1 - axis] = _between(draw, MARGIN, MARGIN + room - box[1 - axis])
    return corners


def _align(draw, corners, boxes, axis, room):
    """Moves the second thing across `axis` so that it is clear on which side of it the first one is."""
    centres = [
        [2 * corner[k] + box[k] for k in (0, 1)] for corner, box in zip(corners, boxes)
    ]  # twice the centre
    reach = int(abs(centres[0][axis] - centres[1][axis]) / CLEAR / 2) - 2
    across = 1 - axis
    middle = (centres[0][across] - boxes[1][across]) // 2
    low = max(MARGIN, middle - reach)
    high = min(MARGIN + room - boxes[1][across], middle + reach)
    corners[1][across] = _between(draw, low, high)


def _path(thing, extent, box, corner):
    """(x0, y0, x1, y1) of the centre of a thing whose area has its corner there."""
    x, y = corner[0] - extent[0], corner[1] - extent[1]
    across, along = box[0] - (extent[2] - extent[0]), box[1] - (extent[3] - extent[1])
    return {
        "left": (x + across, y, x, y),
        "right": (x, y, x + across, y),
        "up": (x, y + along, x, y),
        "down": (x, y, x, y + along),
    }.get(thing.motion, (x, y, x, y))


def _relation(things, paths):
    """Where the first of two things is, seen from the second, if that is clear all the time; else None.

    Clear means: their areas are apart along one axis at the start and at the end, on the same side, and the
    centres lie at least `CLEAR` times as far apart along it as across it. Both move evenly, so the ends
    decide."""
    extents = [_extent(thing.symbol, thing.size, thing.motion) for thing in things]
    found = set()
    for at in (0, 2):
        (x, y), (u, v) = paths[0][at : at + 2], paths[1][at : at + 2]
        across, along = x - u, y - v
        if abs(across) >= CLEAR * abs(along) and _apart(x, u, extents, 0):
            found.add("left" if across < 0 else "right")
        elif abs(along) >= CLEAR * abs(across) and _apart(y, v, extents, 1):
            found.add("above" if along < 0 else "below")
        else:
            found.add(None)
    return found.pop() if len(found) == 1 else None


def _apart(a, b, extents, axis):
    if a < b:
        return a + extents[0][axis + 2] <= b + extents[1][axis]
    return b + extents[1][axis + 2] <= a + extents[0][axis]


def _order(things, paths):
    """The things' indices, the larger one first, then the one on the left."""
    keys = [(-SIZES[thing.size], path[0] + path[2]) for thing, path in zip(things, paths)]
    return tuple(sorted(range(len(things)), key=keys.__getitem__))


def _draw_background(draw):
    kind = ("plain", "gradient", "noise")[int(draw() * 3)]
    colours = [tuple(_between(draw, 4, 52) for _ in range(3)) for _ in range(2)]
    return kind, colours[0], colours[1], int(draw() * 2**31)


# ---------------------------------------------------------------------------------------------------- drawing


def _background(background, size):
    """uint8, [3, size, size] or something that broadcasts to it."""
    kind, first, second, seed = background
    start = np.array(first, np.int16)[:, None, None]
    if kind == "plain":
        return start.astype(np.uint8)
    if kind == "noise":
        _generators.noise.seed(seed)
        grey = _generators.noise.randint(0, 32, (size, size), np.uint8)
        return grey + start.astype(np.uint8)
    ramp = np.arange(size, dtype=np.int16)
    ramp = ramp[None, None, :] if seed % 2 else ramp[None, :, None]
    step = np.array(second, np.int16)[:, None, None] - start
    return (start + step * ramp // size).astype(np.uint8)


def _placements(scene, frames, image_size, only=None):
    """For each thing and frame (or `only` one): (frame, thing, symbol, size, eighths, x, y) in pixels."""
    rows = []
    last = max(frames - 1, 1)
    for o, (thing, path, turn) in enumerate(zip(scene.things, scene.paths, scene.turns)):
        x0, y0, x1, y1 = path
        for f in range(frames) if only is None else (only,):
            size = SIZES[thing.size]
            if thing.motion in ("grow", "shrink"):
                t = f if thing.motion == "grow" else last - f
                size = GROWTH[0] * (GROWTH[1] / GROWTH[0]) ** (t / last)
            x = x0 * last + (x1 - x0) * f
            y = y0 * last + (y1 - y0) * f
            rows.append(
                (
                    f,
                    o,
                    thing.symbol,
                    int(size * image_size / WORLD + 0.5),
                    turn * f % 8,
                    (2 * x * image_size + WORLD * last) // (2 * WORLD * last),
                    (2 * y * image_size + WORLD * last) // (2 * WORLD * last),
                )
            )
    return rows


def _window(x, y, height, width, image_size):
    """The slices of the picture and of a sprite where they overlap."""
    top, left = max(y, 0), max(x, 0)
    bottom, right = min(y + height, image_size), min(x + width, image_size)
    return (slice(top, bottom), slice(left, right)), (slice(top - y, bottom - y), slice(left - x, right - x))


def draw(scene, frames=4, image_size=WORLD, only=None):
    """Draws a scene: uint8 array [F, 3, H, W], or frame `only` of it, [3, H, W]."""
    pictures = np.empty((1 if only is not None else frames, 3, image_size, image_size), np.uint8)
    pictures[:] = _background(scene.background, image_size)
    for f, o, symbol, size, eighths, x, y in _placements(scene, frames, image_size, only):
        paint, rest, left, top = _paint(symbol, size, eighths, scene.things[o].colour)
        left, top = left + x, top + y
        height, width = rest.shape
        if left < 0 or top < 0 or left + width > image_size or top + height > image_size:
            there, here = _window(left, top, height, width, image_size)
            paint, rest = paint[:, here[0], here[1]], rest[here]
        else:
            there = slice(top, top + height), slice(left, left + width)
        region = pictures[(0 if only is not None else f, slice(None), *there)]
        region[...] = (region * rest >> 8) + paint
    return pictures[0] if only is not None else pictures


def draw_masks(scene, frames=4, image_size=WORLD, only=None):
    """The things' masks, where they cover at least half of a pixel: bool array [O, F, H, W], or [O, H, W] of
    `only` one frame."""
    shape = (len(scene.things), 1 if only is not None else frames, image_size, image_size)
    masks = np.zeros(shape, bool)
    for f, o, symbol, size, eighths, x, y in _placements(scene, frames, image_size, only):
        alpha, left, top = _sprite(symbol, size, eighths)
        there, here = _window(left + x, top + y, *alpha.shape, image_size)
        masks[(o, 0 if only is not None else f, *there)] = alpha[here] >= 128
    return masks[:, 0] if only is not None else masks


# ---------------------------------------------------------------------------------------------------- dataset


class GlyphClips(Dataset):
    """Clips of the embedded world, drawn when they are asked for; nothing is stored.

    split: "train", "val", "test" or "unseen" (see the module's docstring); size: number of clips (an index
    beyond it raises IndexError); seed: another seed gives another stream of the same split; frames: F >= 1,
    where 1 means single images, in which nothing moves; image_size: pixels along a side, from 32; objects: 1
    or 2 things in every clip, None for both (40 and 60 %).
    """

    def __init__(self, split="train", size=1000, seed=0, frames=4, image_size=WORLD, objects=None):
        if split not in SPLITS:
            raise ValueError(f"unknown split {split!r}; one of {', '.join(SPLITS)}")
        if frames < 1:
            raise ValueError(f"frames must be at least 1, not {frames}")
        if image_size < 32:
            raise ValueError(f"image_size must be at least 32 pixels, not {image_size}")
        if objects not in (None, 1, 2):
            raise ValueError(f"objects must be 1, 2 or None for both, not {objects}")
        if size < 0 or seed < 0:
            raise ValueError(f"size and seed must not be negative, got {size} and {seed}")
        self.split, self.size, self.seed = split, size, seed
        self.frames, self.image_size, self.objects = frames, image_size, objects

    def __len__(self):
        return self.size

    def __getitem__(self, index):
        return self.clip(index)

    def clip(self, index, masks=True, captions=5):
        """Clip number `index`, with or without masks, with the first so many of its captions."""
        rng, scene = self._start(index)
        frames = torch.from_numpy(draw(scene, self.frames, self.image_size))
        cover = torch.from_numpy(draw_masks(scene, self.frames, self.image_size)) if masks else None
        return Clip(frames, cover, [describe(scene, rng) for _ in range(captions)], scene)

    def scene(self, index):
        """The scene of clip number `index`, without drawing it."""
        return self._start(index)[1]

    def captions(self, index, count, salt):
        """`count` more captions of clip number `index`; another `salt` (an integer) gives others."""
        scene = self.scene(index)
        rng = _generator(self.split, self.seed, index, self.objects or 0, salt + 1)
        return [describe(scene, rng) for _ in range(count)]

    def frame(self, index, frame):
        """One frame of clip number `index`: (uint8 [3, H, W], masks bool [O, H, W], scene)."""
        if not 0 <= frame < self.frames:
            raise IndexError(f"frame {frame} of a clip with {self.frames} frames")
        scene = self.scene(index)
        picture = torch.from_numpy(draw(scene, self.frames, self.image_size, frame))
        return picture, torch.from_numpy(draw_masks(scene, self.frames, self.image_size, frame)), scene

    def _start(self, index):
        if not 0 <= index < self.size:
            raise IndexError(f"clip {index} of {self.size}")
        rng = _generator(self.split, self.seed, index, self.objects or 0)
        return rng, _make_scene(rng, self.split, self.objects, self.frames > 1)
