"""The embedded world's scenes, what is in a clip and how it moves, and its clips, drawn and captioned.

A `Scene` describes a clip completely, in world units (the picture is `WORLD` = 96 units wide and high); drawing it at
another image size or with more or fewer frames changes neither its content nor its captions. Only single images are
different scenes. The same (split, seed, index) gives the same bytes on any machine.

The splits are disjoint by construction. What a scene shows (symbol, colour, size and motion of each thing) is
hashed; training takes 80 % of the hash values, validation and test 10 % each. `HELD_OUT` colour and symbol
pairs occur in none of these three; in the split "unseen" the first thing always is such a pair."""

import zlib
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch.utils.data import Dataset

from gitdistill.world.drawing import GROWTH, SIZES, WORLD, draw, draw_masks, extent, generators
from gitdistill.world.grammar import COLOURS, MOTIONS, SYMBOLS, describe

MARGIN = 1  # kept free along the border
ROOM = WORLD - 2 * MARGIN
GAP = 3  # kept free between two things
TRAVEL = (34, 54)  # shortest and longest way of a moving thing where there is room
LEAST_TRAVEL = 32  # the shortest where there is little room
STEPS = {"left": (-1, 0), "right": (1, 0), "up": (0, -1), "down": (0, 1)}
CLEAR = 1.5  # a relation is clear when the centres are so many times farther apart along its axis than across

SPLITS = {"train": range(80), "val": range(80, 90), "test": range(90, 100), "unseen": range(100)}

_SYMBOLS, _COLOURS, _MOTIONS = list(SYMBOLS), list(COLOURS), list(MOTIONS)
_SPINNING = [name for name, symbol in SYMBOLS.items() if symbol.spins]
# Every symbol lacks one colour, every colour four symbols.
_LACKS = {symbol: _COLOURS[(3 * i + i // 8) % 8] for i, symbol in enumerate(_SYMBOLS)}
HELD_OUT = frozenset((colour, symbol) for symbol, colour in _LACKS.items())
_OFFERED = {symbol: [c for c in _COLOURS if c != _LACKS[symbol]] for symbol in _SYMBOLS}


class Thing(NamedTuple):
    """One thing of a scene, in keys of the grammar's tables; what grows or shrinks has size "medium"."""

    symbol: str
    colour: str
    size: str
    motion: str

    @property
    def names(self) -> dict[str, tuple]:
        """The words that name the thing, by kind of word."""
        return {"object": SYMBOLS[self.symbol].names, "colour": (self.colour,)}


class Scene(NamedTuple):
    """All that it takes to draw and describe a clip; a named tuple, as Lightning's batches refuse frozen dataclasses.

    things: one or two `Thing`s; paths: for each its centre at the start and at the end, (x0, y0, x1, y1) in
    world units; turns: for each the sense of its rotation (+1 clockwise, -1, or 0 when it does not spin);
    relation: where the first thing is, seen from the second, if that is clear in every frame, else None;
    order: the things' indices as a caption would name them, the larger first, then the one on the left;
    moving: False for a single image, where no motion can be seen; background: (kind, colour, colour, seed)."""

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


def content_bucket(things):
    """0..99: the hash of what a scene shows, whatever the order of its things. It decides the split."""
    key = ";".join(sorted(f"{t.symbol},{t.colour},{t.size},{t.motion}" for t in things))
    return zlib.crc32(key.encode()) % 100


def _generator(split, seed, index, *more):
    """The thread's generator, seeded: valid until the next call."""
    generators.scenes.seed([seed, list(SPLITS).index(split), index, *more])
    return generators.scenes


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
    ranks = [(-SIZES[thing.size], path[0] + path[2]) for thing, path in zip(things, paths)]
    order = tuple(
        sorted(range(count), key=ranks.__getitem__)
    )  # the larger one first, then the one on the left
    kind = ("plain", "gradient", "noise")[int(draw() * 3)]
    colours = [tuple(_between(draw, 4, 52) for _ in range(3)) for _ in range(2)]
    background = kind, *colours, int(draw() * 2**31)
    return Scene(things, paths, turns, relation, order, moving, background)


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
        things = [thing._replace(size="medium" if thing.size == "large" else "small") for thing in things]
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


def _fits(things):
    """Whether two things have room beside or above each other, whatever their symbols are."""
    boxes = []
    for thing in things:
        size = (GROWTH[1] if thing.motion in ("grow", "shrink") else SIZES[thing.size]) + 1
        side = size * 17 // 12 if thing.motion == "spin" else size  # half-covered pixels included
        boxes.append(_swept((0, 0, side, side), thing, LEAST_TRAVEL))
    return any(sum(sides) <= ROOM - GAP for sides in zip(*boxes))


def _between(draw, low, high):
    """A random integer low..high."""
    return low + int(draw() * (high - low + 1))


def _draw_paths(draw, things, moving):
    """Start and end of each thing's centre such that the areas they sweep lie apart and inside the picture.

    Two areas lie apart when they are separated along x or y: the axis, the order along it and the free space are
    drawn at random, so that every draw succeeds."""
    extents = [extent(thing.symbol, thing.size, thing.motion) for thing in things]
    travels = [_between(draw, *TRAVEL) if thing.motion in STEPS else 0 for thing in things]
    boxes = [_swept(*row) for row in zip(extents, things, travels)]
    if len(things) == 1:
        corner = [_between(draw, MARGIN, MARGIN + ROOM - side) for side in boxes[0]]
        return (_path(things[0], extents[0], boxes[0], corner),)
    least = [_swept(extent, thing, LEAST_TRAVEL) for extent, thing in zip(extents, things)]
    axes = [axis for axis in (0, 1) if least[0][axis] + least[1][axis] + GAP <= ROOM]
    axis = axes[int(draw() * len(axes))]
    while boxes[0][axis] + boxes[1][axis] > ROOM - GAP:  # the longer way becomes shorter first
        spare = [box[axis] - low[axis] for box, low in zip(boxes, least)]
        boxes[spare[1] > spare[0]][axis] -= 1
    corners = _draw_corners(draw, boxes, axis, int(draw() * 2))
    if all(thing.motion == "still" for thing in things) and (moving or draw() < 0.75):
        _align(draw, corners, boxes, axis)
    return tuple(_path(*row) for row in zip(things, extents, boxes, corners))


def _swept(extent, thing, travel):
    """[width, height] of the area that a thing sweeps on its way, no more than there is room."""
    x, y = STEPS.get(thing.motion, (0, 0))
    width, height = extent[2] - extent[0], extent[3] - extent[1]
    return [min(ROOM, width + abs(x) * travel), min(ROOM, height + abs(y) * travel)]


def _draw_corners(draw, boxes, axis, first):
    free = ROOM - GAP - boxes[0][axis] - boxes[1][axis]
    a, b = sorted((_between(draw, 0, free), _between(draw, 0, free)))
    corners = [[0, 0], [0, 0]]
    corners[first][axis] = MARGIN + a
    corners[1 - first][axis] = MARGIN + boxes[first][axis] + GAP + b
    for corner, box in zip(corners, boxes):
        corner[1 - axis] = _between(draw, MARGIN, MARGIN + ROOM - box[1 - axis])
    return corners


def _align(draw, corners, boxes, axis):
    """Moves the second thing across `axis` so that it is clear on which side of it the first one is."""
    across = 1 - axis
    twice = [[2 * corner[k] + box[k] for k in (0, 1)] for corner, box in zip(corners, boxes)]  # the centres
    reach = int(abs(twice[0][axis] - twice[1][axis]) / CLEAR / 2) - 2
    middle = (twice[0][across] - boxes[1][across]) // 2
    high = min(MARGIN + ROOM - boxes[1][across], middle + reach)
    corners[1][across] = _between(draw, max(MARGIN, middle - reach), high)


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
    extents = [extent(thing.symbol, thing.size, thing.motion) for thing in things]
    found = set()
    for at in (0, 2):
        (x, y), (u, v) = paths[0][at : at + 2], paths[1][at : at + 2]
        across, along = x - u, y - v
        side = None
        if abs(across) >= CLEAR * abs(along) and _apart(x, u, extents, 0):
            side = "left" if across < 0 else "right"
        elif abs(along) >= CLEAR * abs(across) and _apart(y, v, extents, 1):
            side = "above" if along < 0 else "below"
        found.add(side)
    return found.pop() if len(found) == 1 else None


def _apart(a, b, extents, axis):
    if a < b:
        return a + extents[0][axis + 2] <= b + extents[1][axis]
    return b + extents[1][axis + 2] <= a + extents[0][axis]


class GlyphClips(Dataset):
    """Clips of the embedded world, drawn when they are asked for; nothing is stored.

    split: "train", "val", "test" or "unseen" (see the module's docstring); size: number of clips (an index
    beyond it raises IndexError); seed: another seed gives another stream of the same split; num_frames: F >= 1,
    where 1 means single images, in which nothing moves; image_size: pixels along a side, from 32; objects: 1
    or 2 things in every clip, None for both (40 and 60 %)."""

    def __init__(self, split="train", size=1000, seed=0, num_frames=4, image_size=WORLD, objects=None):
        if split not in SPLITS:
            raise ValueError(f"unknown split {split!r}; one of {', '.join(SPLITS)}")
        if num_frames < 1 or image_size < 32:
            raise ValueError(f"num_frames is at least 1 and image_size 32, not {num_frames} and {image_size}")
        if objects not in (None, 1, 2):
            raise ValueError(f"objects must be 1, 2 or None for both, not {objects}")
        if size < 0 or seed < 0:
            raise ValueError(f"size and seed must not be negative, got {size} and {seed}")
        self.split, self.size, self.seed = split, size, seed
        self.num_frames, self.image_size, self.objects = num_frames, image_size, objects

    def __len__(self):
        return self.size

    def clip(self, index, masks=True, captions=5):
        """Clip number `index`, with or without masks, with the first so many of its captions."""
        rng, scene = self._start(index)
        frames = torch.from_numpy(draw(scene, self.num_frames, self.image_size))
        cover = torch.from_numpy(draw_masks(scene, self.num_frames, self.image_size)) if masks else None
        return Clip(frames, cover, [describe(scene, rng) for _ in range(captions)], scene)

    __getitem__ = clip

    def scene(self, index):
        """The scene of clip number `index`, without drawing it."""
        return self._start(index)[1]

    def captions(self, index, count, salt):
        """`count` more captions of clip number `index`; another `salt` (an integer) gives others."""
        scene = self.scene(index)
        rng = _generator(self.split, self.seed, index, self.objects or 0, salt + 1)
        return [describe(scene, rng) for _ in range(count)]

    def _start(self, index):
        if not 0 <= index < self.size:
            raise IndexError(f"clip {index} of {self.size}")
        rng = _generator(self.split, self.seed, index, self.objects or 0)
        return rng, _make_scene(rng, self.split, self.objects, self.num_frames > 1)
