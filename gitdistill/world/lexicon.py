"""The words of the toybox: objects, colours, sizes, motions and relations, each with all that captions call it.

Whatever a caption can state is listed here or in `data/toybox/objects.json`, once. `gitdistill.world.grammar` writes
captions with these tables, `gitdistill.world.facts` reads them."""

import json
from typing import NamedTuple

from gitdistill.models.checkpoints import embedded

FOLDER = embedded("toybox")
KINDS = ("object", "hypernym", "colour", "size", "motion", "relation", "count")


class Kind(NamedTuple):
    """One kind of toy. names: the usual one first; plural: of the usual name; group: toys that look alike share it;
    colours: in which it is drawn (none: always its own); box: x, y, width, height in the atlas."""

    name: str
    names: tuple
    plural: str
    hypernym: str
    group: str
    colours: tuple
    box: tuple


class Verb(NamedTuple):
    """One way to say a motion: "moves left" (of one), "move left" (of two), "moving left"."""

    singular: str
    plural: str
    participle: str


def _read() -> dict[str, Kind]:
    kinds = {}
    for row in json.loads((FOLDER / "objects.json").read_text(encoding="utf-8")):
        names = row["name"], *row["synonyms"]
        lists = tuple(row["colours"]), tuple(row["box"])
        kinds[row["name"]] = Kind(row["name"], names, row["plural"], row["hypernym"], row["group"], *lists)
    return kinds


OBJECTS = _read()
HYPERNYMS = {kind.hypernym: kind.hypernym + "s" for kind in OBJECTS.values()}  # name -> plural
COLOURS = ("red", "orange", "yellow", "green", "blue", "purple")
SIZES = {"small": ("small", "little", "tiny"), "medium": (), "large": ("big", "large")}  # () is never said
MOTIONS = {
    "still": (
        Verb("stays still", "stay still", "staying still"),
        Verb("rests", "rest", "resting"),
        Verb("does not move", "do not move", "not moving"),
    ),
    "left": (
        Verb("moves left", "move left", "moving left"),
        Verb("drifts to the left", "drift to the left", "drifting to the left"),
    ),
    "right": (
        Verb("moves right", "move right", "moving right"),
        Verb("drifts to the right", "drift to the right", "drifting to the right"),
    ),
    "up": (Verb("moves up", "move up", "moving up"), Verb("rises", "rise", "rising")),
    "down": (Verb("moves down", "move down", "moving down"), Verb("sinks", "sink", "sinking")),
    "grow": (Verb("grows", "grow", "growing"), Verb("gets bigger", "get bigger", "getting bigger")),
    "shrink": (
        Verb("shrinks", "shrink", "shrinking"),
        Verb("gets smaller", "get smaller", "getting smaller"),
    ),
    "spin": (Verb("spins", "spin", "spinning"), Verb("turns around", "turn around", "turning around")),
    "jump": (Verb("jumps", "jump", "jumping"), Verb("hops", "hop", "hopping")),
    "wobble": (Verb("wobbles", "wobble", "wobbling"), Verb("sways", "sway", "swaying")),
}
RELATIONS = {
    "left": ("to the left of", "left of"),
    "right": ("to the right of", "right of"),
    "above": ("above", "over"),
    "below": ("below", "under"),
    "front": ("in front of",),
    "behind": ("behind",),
}
OPPOSITE = {"left": "right", "above": "below", "front": "behind"}
OPPOSITE |= {second: first for first, second in OPPOSITE.items()}
# "a rose with a cat on its left": the phrase after the second noun says where that second toy is.
WITH = {
    "left": "on its left",
    "right": "on its right",
    "above": "above it",
    "below": "below it",
    "front": "in front of it",
    "behind": "behind it",
}
# Words of the sentence frames that stand in no table.
FRAME_WORDS = ("a", "an", "and", "another", "are", "as", "is", "picture", "there", "while", "with")


class Meaning(NamedTuple):
    """What a phrase means: its kind, its key in the kind's table, and whether it speaks of several toys."""

    kind: str
    key: str
    plural: bool = False


def _phrases() -> dict[tuple, Meaning]:
    table = {colour: Meaning("colour", colour) for colour in COLOURS}
    for name, plural in HYPERNYMS.items():
        table |= {name: Meaning("hypernym", name), plural: Meaning("hypernym", name, True)}
    for name, kind in OBJECTS.items():
        table[kind.plural] = Meaning("object", name, True)
        table |= dict.fromkeys(kind.names, Meaning("object", name))  # "sheep" is read as one
    for key, row in SIZES.items():
        table |= dict.fromkeys(row, Meaning("size", key))
    for key, row in MOTIONS.items():
        for verb in row:
            one = Meaning("motion", key)
            table |= {verb.singular: one, verb.participle: one, verb.plural: Meaning("motion", key, True)}
    for key, row in RELATIONS.items():
        table |= dict.fromkeys(row, Meaning("relation", key)) | {WITH[key]: Meaning("with", key)}
    table["two"] = Meaning("count", "two")
    return {tuple(phrase.split()): meaning for phrase, meaning in table.items()}


PHRASES = _phrases()


def words() -> list[str]:
    """All words that a caption can contain, sorted."""
    return sorted({*FRAME_WORDS, *(word for phrase in PHRASES for word in phrase)})
