"""Scenes of the toybox, what is in a clip and how it moves, made by hand or at random; and clips, drawn and captioned.

    Scene([Toy("cat", motion="jump"), Toy("balloon", "red", "small")], ground="beach")

is a whole scene: what is left open (places, the length of a way) is drawn from its seed. A scene is in world units, so
drawing it at another image size or with more or fewer frames changes neither its content nor its captions.

`Clips` are random scenes: the same (split, seed, index) gives the same bytes on any machine. The splits are disjoint by
construction. What a scene shows (name, colour, size and motion of each toy) is hashed; training takes 80 % of the hash
values, the other splits the rest. Each object lacks one motion, and each object of several colours one colour: these
`HELD_OUT` pairs occur in the split "unseen" alone, where the first toy is always such a pair. In "lookalike" two toys
are of a group that is easily confused, such as a ram and a goat."""

import zlib
from dataclasses import dataclass

import numpy as np
import torch
from torch.utils.data import Dataset

from gitdistill.world.drawing import GROUNDS, SIZES, WORLD, draw, draw_masks, placed
from gitdistill.world.grammar import describe, pick
from gitdistill.world.layout import IN_PLACE, TRAVEL, Toy, between, place, relations
from gitdistill.world.lexicon import MOTIONS, OBJECTS

SPLITS = {
    "train": range(80),
    "val": range(80, 86),
    "test": range(86, 94),
    "lookalike": range(94, 100),
    "unseen": range(100),
}
_MOVES = [motion for motion in MOTIONS if motion != "still"]
_COLOURFUL = [name for name, kind in OBJECTS.items() if kind.colours]
_LACKS_MOTION = {name: _MOVES[(4 * i + i // 9) % 9] for i, name in enumerate(OBJECTS)}
_LACKS_COLOUR = {
    name: OBJECTS[name].colours[i % len(OBJECTS[name].colours)] for i, name in enumerate(_COLOURFUL)
}
HELD_OUT = frozenset(_LACKS_MOTION.items()) | frozenset(_LACKS_COLOUR.items())  # (name, motion or colour)
_TWINS = {
    name: [other for other, its in OBJECTS.items() if its.group == kind.group and other != name]
    for name, kind in OBJECTS.items()
}


class Scene:
    """All that it takes to draw and describe a clip.

    Args:
        toys: one to three `Toy`s, those in front last.
        ground: one of `gitdistill.world.drawing.GROUNDS`.
        seed: of all that is left open.
        moving: False for a single image, where no motion can be seen.
        arrangement: how to place two toys: "apart", "beside" (so that their relation is clear), "hiding" (the second
            hides a part of the first), or "free" (wherever their x and y say, even half outside).

    Attributes: `toys`, with their places; `paths`: for each its centre at the start and the end, (x0, y0, x1, y1);
    `turns`: for each the sense of its rotation; `relations`: (i, relation, j) with i < j for all that are clear in
    every frame. ValueError for what is not in the toybox, and where there is no room."""

    def __init__(
        self, toys, ground: str = "meadow", seed: int = 0, moving: bool = True, arrangement: str = "apart"
    ):
        check(toys, ground)
        draw = np.random.RandomState(seed % 2**32)
        self.ground, self.seed, self.moving = (ground, int(draw.random_sample() * 2**24)), seed, moving
        ways = [between(draw, *TRAVEL) for _ in toys]
        self.turns = tuple(between(draw, 0, 1) for _ in toys)
        self.paths = place(draw, toys, ways, arrangement)
        spots = zip(toys, self.paths, strict=True)
        self.toys = tuple(toy._replace(x=path[0], y=path[1]) for toy, path in spots)
        found = relations(self.toys, self.paths)
        self.relations = tuple((i, relation, j) for (i, j), relation in found.items() if relation)

    def content(self) -> tuple:
        """All that a clip of the scene depends on."""
        return self.toys, self.paths, self.turns, self.ground, self.moving

    def __eq__(self, other) -> bool:
        return isinstance(other, Scene) and self.content() == other.content()

    def __hash__(self) -> int:
        return hash(self.content())

    def __repr__(self) -> str:
        return f"Scene({list(self.toys)}, ground={self.ground[0]!r}, seed={self.seed})"


@dataclass
class Clip:
    """frames: uint8 [F, 3, H, W]; masks: bool [O, F, H, W], what is seen of each toy of the scene, or None when they
    were not asked for; captions: list of str; scene: the `Scene`."""

    frames: torch.Tensor
    masks: torch.Tensor | None
    captions: list
    scene: Scene


def check(toys, ground: str) -> None:
    """ValueError in one line for what is not in the toybox."""

    def known(what: str, given, table) -> None:
        if given not in table:
            raise ValueError(f"unknown {what} {given!r}; one of {', '.join(table)}")

    if not 1 <= len(toys) <= 3:
        raise ValueError(f"a scene has one to three toys, not {len(toys)}")
    known("ground", ground, GROUNDS)
    for toy in toys:
        known("object", toy.name, OBJECTS)
        known("size", toy.size, SIZES)
        known("motion", toy.motion, MOTIONS)
        if toy.colour is not None and not OBJECTS[toy.name].colours:
            raise ValueError(f"a {toy.name} has its own colours only; leave colour out")
        if toy.colour is not None:
            known(f"colour of a {toy.name}", toy.colour, OBJECTS[toy.name].colours)


def content_bucket(toys) -> int:
    """0..99: the hash of what a scene shows, whatever the order of its toys. It decides the split."""
    key = ";".join(sorted(f"{toy.name},{toy.colour},{toy.size},{toy.motion}" for toy in toys))
    return zlib.crc32(key.encode()) % 100


def random_scene(draw: np.random.RandomState, split: str, objects: int | None, moving: bool) -> Scene:
    """A scene of a split, with so many toys or one to three."""
    while True:
        toys = random_toys(draw, split, objects, moving)
        if content_bucket(toys) not in SPLITS[split]:
            continue
        hides = len(toys) > 1 and all(toy.motion in IN_PLACE for toy in toys[:2])
        choice = draw.random_sample()
        arrangement = "hiding" if hides and choice < 0.45 else "apart"
        if arrangement == "apart" and len(toys) == 2 and all(toy.motion == "still" for toy in toys):
            arrangement = "beside"
        if split == "lookalike" and toys[1].name not in _TWINS[toys[0].name]:
            continue
        ground, seed = pick(draw, GROUNDS), int(draw.random_sample() * 2**32)
        try:
            scene = Scene(toys, ground, seed, moving, arrangement)
        except ValueError:  # no room: another scene
            continue
        if all(partly_hidden(scene, i) for i, relation, _ in scene.relations if relation == "behind"):
            return scene


def partly_hidden(scene: Scene, i: int, least: int = 3) -> bool:
    """Whether `least` per cent of toy i are hidden in the first frame, so that one sees what is in front."""
    whole = placed(scene, i, 0, 4, WORLD)[0].mask.sum()
    return 100 * draw_masks(scene, only=0)[i].sum() <= (100 - least) * whole


def random_toys(draw: np.random.RandomState, split: str, objects: int | None, moving: bool) -> list[Toy]:
    """Toys without places: what a scene of a split may show."""
    least = 2 if split == "lookalike" else 1
    share = draw.random_sample()
    count = max(objects or (1 if share < 0.4 else 2 if share < 0.88 else 3), least)
    motions = random_motions(draw, count) if moving else ["still"] * count
    toys = []
    for k, motion in enumerate(motions):
        name = random_name(draw, motion, [toy.name for toy in toys], split == "lookalike")
        colours = [colour for colour in OBJECTS[name].colours if colour != _LACKS_COLOUR[name]]
        colour = pick(draw, colours) if colours else None
        if split == "unseen" and k == 0:
            name, colour, motion = held_out(draw, name, colour, motion, moving)
        size = "medium" if motion in ("grow", "shrink") else pick(draw, list(SIZES)[: 2 if count == 3 else 3])
        toys.append(Toy(name, colour, size, motion, mirrored=draw.random_sample() < 0.5))
    return toys


def random_name(draw: np.random.RandomState, motion: str, others: list, twin: bool) -> str:
    """An object that may have the motion: new to the scene, now and then another of the same kind, or a look-alike."""
    if len(others) == 1 and (twin or draw.random_sample() < 0.12):
        names = _TWINS[others[0]] if twin else others
    else:
        names = [name for name in OBJECTS if name not in others]
    allowed = [name for name in names if _LACKS_MOTION[name] != motion]
    return pick(draw, allowed or [name for name in OBJECTS if _LACKS_MOTION[name] != motion])


def held_out(draw: np.random.RandomState, name: str, colour, motion: str, moving: bool) -> tuple:
    """A pair that no other split has: half of them of colour and object, half of motion and object."""
    if moving and draw.random_sample() < 0.5:
        return name, colour, _LACKS_MOTION[name]
    names = [name for name in _COLOURFUL if _LACKS_MOTION[name] != motion]
    name = pick(draw, names)
    return name, _LACKS_COLOUR[name], motion


def random_motions(draw: np.random.RandomState, count: int) -> list[str]:
    """One toy: any motion. Two: both at rest, or one or both of them moving. Three: one moves, at most."""
    if count == 1:
        return [pick(draw, list(MOTIONS))]
    choice, first = draw.random_sample(), pick(draw, _MOVES)
    if count == 3:
        return [first, "still", "still"] if choice < 0.65 else ["still"] * 3
    if choice < 0.30:
        return ["still", "still"]
    if choice < 0.65:
        return [first, "still"] if choice < 0.48 else ["still", first]
    return [first, first if choice < 0.74 else pick(draw, _MOVES)]


class Clips(Dataset):
    """Clips of the toybox, drawn when they are asked for; nothing is stored.

    split: "train", "val", "test", "unseen" or "lookalike" (see the module's docstring); size: number of clips (an
    index beyond it raises IndexError); seed: another seed gives another stream of the same split; frames: F >= 1, where
    1 means single images, in which nothing moves; image_size: pixels along a side, from 32; objects: so many toys in
    every clip, None for one to three."""

    def __init__(
        self,
        split: str = "train",
        size: int = 1000,
        seed: int = 0,
        frames: int = 4,
        image_size: int = WORLD,
        objects: int | None = None,
    ):
        if split not in SPLITS:
            raise ValueError(f"unknown split {split!r}; one of {', '.join(SPLITS)}")
        if frames < 1 or image_size < 32:
            raise ValueError(f"frames is at least 1 and image_size 32, not {frames} and {image_size}")
        if objects not in (None, 1, 2, 3):
            raise ValueError(f"objects must be 1, 2, 3 or None for all, not {objects}")
        if size < 0 or seed < 0:
            raise ValueError(f"size and seed must not be negative, got {size} and {seed}")
        self.split, self.size, self.seed = split, size, seed
        self.frames, self.image_size, self.objects = frames, image_size, objects

    def __len__(self) -> int:
        return self.size

    def clip(self, index: int, masks: bool = True, captions: int = 5, only: int | None = None) -> Clip:
        """Clip number `index`, with or without masks, with the first so many of its captions; `only` one frame."""
        rng, scene = self._start(index)
        picture = self.frames, self.image_size, only
        frames = torch.from_numpy(draw(scene, *picture))
        cover = torch.from_numpy(draw_masks(scene, *picture)) if masks else None
        return Clip(frames, cover, [describe(scene, rng) for _ in range(captions)], scene)

    __getitem__ = clip

    def scene(self, index: int) -> Scene:
        """The scene of clip number `index`, without drawing it."""
        return self._start(index)[1]

    def captions(self, index: int, count: int, salt: int) -> list[str]:
        """`count` more captions of clip number `index`; another `salt` (an integer) gives others."""
        scene = self.scene(index)
        rng = self._random(index, salt + 1)
        return [describe(scene, rng) for _ in range(count)]

    def _random(self, index: int, *more: int) -> np.random.RandomState:
        split = list(SPLITS).index(self.split)
        return np.random.RandomState([self.seed, split, index, self.objects or 0, *more])

    def _start(self, index: int) -> tuple[np.random.RandomState, Scene]:
        if not 0 <= index < self.size:
            raise IndexError(f"clip {index} of {self.size}")
        rng = self._random(index)
        return rng, random_scene(rng, self.split, self.objects, self.frames > 1)
