"""Where the toys of a scene stand and which way they go: inside the picture, apart or one before the other.

All lengths are in world units, and all arithmetic is in integers."""

from math import isqrt
from typing import NamedTuple

import numpy as np

from gitdistill.world.drawing import GROWTH, JUMP, SIZES, WORLD
from gitdistill.world.lexicon import OBJECTS

MARGIN = 2  # kept free along the border
GAP = 2  # kept free between two toys
TRAVEL = (44, 64)  # shortest and longest way of a moving toy
STEPS = {"left": (-1, 0), "right": (1, 0), "up": (0, -1), "down": (0, 1)}
CLEAR = 1.5  # a relation is clear when the centres are so many times farther apart along its axis than across
HIDDEN = (15, 45)  # per cent of a toy that one in front of it may hide
IN_PLACE = ("still", "spin", "wobble")  # motions of toys that may hide each other
TRIES = 60  # places drawn before a scene is given up


class Toy(NamedTuple):
    """One toy of a scene. colour: None for its own; size: "small", "medium" or "large"; x, y: its centre at the start,
    in world units; None: anywhere there is room; mirrored: left and right exchanged."""

    name: str
    colour: str | None = None
    size: str = "medium"
    motion: str = "still"
    x: int | None = None
    y: int | None = None
    mirrored: bool = False

    @property
    def names(self) -> dict[str, tuple]:
        """The words that name the toy, by kind of word."""
        words = tuple(word for name in OBJECTS[self.name].names for word in name.split())
        return {"object": words, "colour": (self.colour,) if self.colour else ()}


def between(draw: np.random.RandomState, low: int, high: int) -> int:
    """A random integer low..high."""
    return low + int(draw.random_sample() * (high - low + 1))


def sides(toy: Toy) -> tuple[int, int]:
    """Width and height of a toy at rest, at its largest, in world units."""
    width, height = OBJECTS[toy.name].box[2:]
    size = GROWTH[1] if toy.motion in ("grow", "shrink") else SIZES[toy.size]
    longer = max(width, height)
    return -(-size * width // longer), -(-size * height // longer)


def extent(toy: Toy) -> tuple[int, int, int, int]:
    """The area that a toy takes at its place (left, top, right, bottom), seen from its centre."""
    width, height = sides(toy)
    if toy.motion == "spin":
        width = height = isqrt(width * width + height * height) + 1
    half, up, down = (width + 1) // 2, (height + 1) // 2, (height + 1) // 2
    if toy.motion == "wobble":  # about the middle of its lower edge, by 20 degrees: sine 0.342, cosine 0.94
        half = (470 * width + 342 * height) // 1000 + 1
        up, down = (440 * height + 171 * width) // 1000 + 1, height // 2 + 171 * width // 1000 + 1
    elif toy.motion == "jump":
        up += JUMP
    return -half, -up, half, down


def place(draw: np.random.RandomState, toys, ways: list[int], arrangement: str) -> tuple:
    """Paths such that nothing is cut off, and that toys lie apart unless they are to hide each other; any if "free"."""
    areas = [extent(toy) for toy in toys]
    for _ in range(TRIES):
        paths = tuple(path_of(draw, toy, area, way) for toy, area, way in zip(toys, areas, ways, strict=True))
        if arrangement == "hiding":
            paths = (paths[0], near(draw, toys, areas, paths), *paths[2:])
        if arrangement == "free" or suits(toys, areas, paths, arrangement):
            return paths
    raise ValueError(f"no room for {', '.join(toy.name for toy in toys)}: take smaller sizes or fewer toys")


def path_of(draw: np.random.RandomState, toy: Toy, area: tuple, way: int) -> tuple:
    """(x0, y0, x1, y1) of a toy that starts at its place, or anywhere from where its way fits into the picture. From a
    place that is given the way ends at the border."""
    spot = []
    for axis, given in enumerate((toy.x, toy.y)):
        step = STEPS.get(toy.motion, (0, 0))[axis] * way
        low, high = inside(area, axis)
        if given is None:
            step = max(low - high, min(high - low, step))  # no farther than there is room
            first, last = low - min(step, 0), high - max(step, 0)
            at = between(draw, first, max(first, last))
            spot.append((at, at + step))
        else:
            end = max(given + step, min(low, given)) if step < 0 else min(given + step, max(high, given))
            spot.append((given, end))
    return spot[0][0], spot[1][0], spot[0][1], spot[1][1]


def inside(area: tuple, axis: int) -> tuple[int, int]:
    """The least and the largest place of a toy's centre along an axis where nothing of it is cut off."""
    return MARGIN - area[axis], WORLD - MARGIN - area[axis + 2]


def near(draw: np.random.RandomState, toys, areas: list, paths: tuple) -> tuple:
    """A place for the second toy where it may hide a part of the first."""
    reach = [(one + other) // 2 for one, other in zip(sides(toys[0]), sides(toys[1]), strict=True)]
    at = []
    for axis in (0, 1):
        low, high = inside(areas[1], axis)
        spot = paths[0][axis] + between(draw, -reach[axis], reach[axis])
        at.append(min(max(spot, low), max(low, high)))
    return at[0], at[1], at[0], at[1]


def suits(toys, areas: list, paths: tuple, arrangement: str) -> bool:
    """Whether the toys lie as they should; whose places are given may lie anywhere."""
    given = [toy.x is not None and toy.y is not None for toy in toys]
    swept = [sweep(area, path) for area, path in zip(areas, paths, strict=True)]
    outside = [max(-box[0], -box[1], box[2] - WORLD, box[3] - WORLD) > 0 for box in swept]
    if any(out and not free for out, free in zip(outside, given, strict=True)):
        return False
    for i, j in pairs(toys):
        if given[i] and given[j]:
            continue
        if arrangement == "hiding" and (i, j) == (0, 1):
            share = 100 * covered(toys, paths, 0, 1) // (sides(toys[0])[0] * sides(toys[0])[1])
            if not HIDDEN[0] <= share <= HIDDEN[1]:
                return False
        elif touches(swept[i], swept[j]):
            return False
    return arrangement != "beside" or relations(toys, paths)[0, 1] is not None


def pairs(toys) -> list[tuple[int, int]]:
    return [(i, j) for j in range(len(toys)) for i in range(j)]


def sweep(area: tuple, path: tuple) -> tuple:
    """The area that a toy takes during the whole clip."""
    (left, top, right, low), (x0, y0, x1, y1) = area, path
    return min(x0, x1) + left, min(y0, y1) + top, max(x0, x1) + right, max(y0, y1) + low


def touches(a: tuple, b: tuple) -> bool:
    return a[0] < b[2] + GAP and b[0] < a[2] + GAP and a[1] < b[3] + GAP and b[1] < a[3] + GAP


def covered(toys, paths: tuple, i: int, j: int, at: int = 0) -> int:
    """The area that the boxes of two toys share, at the start (at = 0) or the end (at = 2)."""
    shared = 1
    for axis in (0, 1):
        half = (sides(toys[i])[axis] + sides(toys[j])[axis]) // 2
        distance = abs(paths[i][at + axis] - paths[j][at + axis])
        smaller = min(sides(toys[i])[axis], sides(toys[j])[axis])
        shared *= min(max(0, half - distance), smaller)
    return shared


def relations(toys, paths: tuple) -> dict[tuple[int, int], str | None]:
    """Where toy i is, seen from toy j, for i < j: what holds at the start and at the end, or None.

    Beside: their areas are apart along one axis, on the same side, and the centres lie at least `CLEAR` times as far
    apart along it as across it. Behind: j hides at least a tenth of the smaller one's box."""
    found = {}
    for i, j in pairs(toys):
        both = {relation(toys, paths, i, j, at) for at in (0, 2)}
        found[i, j] = both.pop() if len(both) == 1 else None
    return found


def relation(toys, paths: tuple, i: int, j: int, at: int) -> str | None:
    areas = extent(toys[i]), extent(toys[j])
    apart = [paths[i][at + axis] - paths[j][at + axis] for axis in (0, 1)]
    for axis, names in enumerate((("left", "right"), ("above", "below"))):
        if abs(apart[axis]) < CLEAR * abs(apart[1 - axis]):
            continue
        if apart[axis] + areas[0][axis + 2] <= areas[1][axis]:
            return names[0]
        if apart[axis] + areas[0][axis] >= areas[1][axis + 2]:
            return names[1]
    least = min(width * height for width, height in (sides(toys[i]), sides(toys[j])))
    still = toys[i].motion in IN_PLACE and toys[j].motion in IN_PLACE
    return "behind" if still and 10 * covered(toys, paths, i, j, at) >= least else None
