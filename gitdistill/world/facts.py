"""What captions of the toybox state: read by `parse`, checked against a scene by `count_facts`, scored by
`facts_scores`."""

from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from itertools import product

import numpy as np

from gitdistill.world.grammar import has_size, relation_from
from gitdistill.world.lexicon import KINDS, OBJECTS, OPPOSITE, PHRASES

LONGEST = max(map(len, PHRASES))
# The kinds that `facts_recall` counts; a caption may well leave out the others.
RECALLED = ("object", "colour", "motion")
CANDIDATES = 5  # mentions that are tried for each toy


@dataclass
class Mention:
    """One noun of a caption with what is said about it: table keys, each at most once, in the text's order."""

    object: list = field(default_factory=list)
    hypernym: list = field(default_factory=list)
    colour: list = field(default_factory=list)
    size: list = field(default_factory=list)
    motion: list = field(default_factory=list)


@dataclass
class Statements:
    """What a caption states. relations: the keys (i, relation, j), mention i is `relation` of mention j. counts: the
    number of the first of two mentions that "two cats" stands for. loose: statements of no noun, by kind."""

    mentions: list = field(default_factory=list)
    relations: dict = field(default_factory=dict)
    counts: list = field(default_factory=list)
    loose: dict = field(default_factory=lambda: dict.fromkeys(KINDS, 0))


def meanings(caption: str):
    """Yields the `Meaning` of the longest known phrase at each place; unknown words are skipped."""
    words = caption.lower().split()
    at = 0
    while at < len(words):
        for length in range(min(LONGEST, len(words) - at), 0, -1):
            if meaning := PHRASES.get(tuple(words[at : at + length])):
                yield meaning
                break
        at += length


def parse(caption: str) -> Statements:
    """Reads a caption, in time that grows with its length.

    Colours and sizes belong to the next noun; a motion of one ("jumps") to the last noun, a motion of several ("jump")
    to all nouns since the last motion; "two" makes two mentions of the plural that follows."""
    said, pending, two = Statements(), Mention(), False
    waiting, fresh = None, 0  # a relation that still lacks its second noun; the first noun without a motion
    for kind, key, plural in meanings(caption):
        last = len(said.mentions) - 1
        if kind in ("object", "hypernym"):
            getattr(pending, kind).append(key)
            said.mentions.append(pending)
            if two:
                said.mentions.append(deepcopy(pending))
                said.counts.append(last + 1)
            pending, two = Mention(), False
            if waiting:
                relate(said, *waiting, last + 1)
                waiting = None
        elif kind == "count":
            said.loose["count"] += two
            two = True
        elif kind in ("colour", "size"):
            add(getattr(pending, kind), key)
        elif kind == "motion" and said.mentions:
            for mention in said.mentions[min(fresh, last) if plural else last :]:
                add(mention.motion, key)
            fresh = last + 1
        elif kind == "with" and last > 0:
            relate(said, last, key, last - 1)
        elif kind == "relation" and said.mentions:
            said.loose["relation"] += waiting is not None
            waiting = last, key
        else:
            said.loose["motion" if kind == "motion" else "relation"] += 1
    said.loose["relation"] += waiting is not None
    said.loose["count"] += two
    said.loose["colour"] += len(pending.colour)
    said.loose["size"] += len(pending.size)
    return said


def add(found: list, key) -> None:
    if key not in found:
        found.append(key)


def relate(said: Statements, i: int, relation: str, j: int) -> None:
    """Adds "mention i is `relation` of mention j", the earlier mention in front, unless it has been said."""
    said.relations[(i, relation, j) if i < j else (j, OPPOSITE[relation], i)] = True


def count_facts(caption: str, scene) -> dict[str, tuple[int, int, int]]:
    """Counts what a caption states about a scene: kind -> (correct, stated, true), for the kinds of `KINDS`.

    * The caption's mentions are matched with the scene's toys one to one, such that most statements are right; every
      statement of a mention too many, and of no mention at all, is wrong. Of a caption with very many mentions only the
      `CANDIDATES` that fit a toy best are tried for it.
    * stated: how often something of this kind is said; correct: how much of it is right (precision: correct / stated).
    * true: what could be said (recall: correct / true). Each toy has an object, a motion (unless the scene is a single
      image), a colour if it comes in several, a size where a caption may have it; hypernyms need not be said.
    * A relation is right if it holds between the two toys its nouns are matched with; "two cats" is right if two toys
      are cats, and no third."""
    said = parse(caption)
    stated = dict(said.loose)
    for kind in ("object", "hypernym", "colour", "size", "motion"):
        stated[kind] += sum(len(getattr(mention, kind)) for mention in said.mentions)
    stated["relation"] += len(said.relations)
    stated["count"] += len(said.counts)
    right = max(matchings(said, scene), key=lambda right: (sum(right.values()), right["object"]))
    true = dict.fromkeys(KINDS, 0) | {"object": len(scene.toys)}
    true["colour"] = sum(toy.colour is not None for toy in scene.toys)
    true["size"] = sum(map(has_size, scene.toys))
    true["motion"] = len(scene.toys) * scene.moving
    true["relation"] = len(scene.relations)
    true["count"] = int(len(scene.toys) > len({toy.name for toy in scene.toys}))
    return {kind: (right[kind], stated[kind], true[kind]) for kind in KINDS}


def rightness(mention: Mention, toy, moving: bool) -> dict[str, int]:
    """The number of right statements of a mention about a toy, by kind."""
    return {
        "object": int(toy.name in mention.object),
        "hypernym": int(OBJECTS[toy.name].hypernym in mention.hypernym),
        "colour": int(toy.colour in mention.colour),
        "size": int(toy.size in mention.size and has_size(toy)),
        "motion": int(moving and toy.motion in mention.motion),
    }


def matchings(said: Statements, scene):
    """The number of right statements by kind, for each one-to-one matching of mentions with the scene's toys."""
    linked = {i for first, _, second in said.relations for i in (first, second)} | set(said.counts)
    tables, candidates = [], []
    for toy in scene.toys:
        table = {i: rightness(mention, toy, scene.moving) for i, mention in enumerate(said.mentions)}
        best = sorted(table, key=lambda i: (-sum(table[i].values()), i not in linked))[:CANDIDATES]
        tables.append(table)
        candidates.append([None, *best])
    for match in product(*candidates):  # the mention of each toy
        matched = [i for i in match if i is not None]
        if len(set(matched)) < len(matched):
            continue
        right = dict.fromkeys(KINDS, 0)
        for table, i in zip(tables, match, strict=True):
            for kind, value in (table[i] if i is not None else {}).items():
                right[kind] += value
        for i, relation, j in said.relations:
            if i in match and j in match:
                right["relation"] += relation == relation_from(scene, match.index(i), match.index(j))
        right["count"] = sum(exactly_two(said.mentions[i], scene) for i in said.counts if i in match)
        yield right


def exactly_two(mention: Mention, scene) -> bool:
    """Whether two toys, and no third, are what a mention names."""
    names = [(toy.name, OBJECTS[toy.name].hypernym) for toy in scene.toys]
    return sum(name in mention.object or hypernym in mention.hypernym for name, hypernym in names) == 2


def facts_scores(captions: Sequence[str], scenes: Sequence) -> dict[str, float]:
    """How much of what B captions state of their B scenes is true, and how much of the truth they state.

    Returns `<kind>_precision` (correct / stated) and `<kind>_recall` (correct / true) for every kind of fact, summed
    over all captions; `facts_precision` over all kinds; `facts_recall` over object, colour and motion; `all_right`, the
    share of clips whose caption states at least one fact and none that is wrong. All values are shares, 0 to 1; nan
    where nothing was stated (precision) or there was nothing to state (recall)."""
    if not len(captions):
        raise ValueError("no captions to score")
    if len(captions) != len(scenes):
        raise ValueError(f"{len(captions)} captions but {len(scenes)} scenes: one for each caption is needed")
    counted = [count_facts(caption, scene) for caption, scene in zip(captions, scenes, strict=True)]
    counts = np.array([[found[kind] for kind in KINDS] for found in counted])  # [B, kinds, 3]
    scores = {}
    for kind, (correct, stated, true) in zip(KINDS, counts.sum(0), strict=True):
        scores |= {f"{kind}_precision": share(correct, stated), f"{kind}_recall": share(correct, true)}
    correct, stated, _ = counts.sum((0, 1))
    scores["facts_precision"] = share(correct, stated)
    correct, _, true = counts[:, [KINDS.index(kind) for kind in RECALLED]].sum((0, 1))
    scores["facts_recall"] = share(correct, true)
    correct, stated, _ = counts.sum(1).T
    scores["all_right"] = float(np.mean((stated > 0) & (correct == stated)))
    return scores


def share(part: int, whole: int) -> float:
    return float(part / whole) if whole else float("nan")


def false_words(words: Sequence[str], scene) -> list[bool]:
    """Which words of a caption state something wrong: of some kind of fact more is wrong from there to the end."""
    counts = [count_facts(" ".join(words[:end]), scene).values() for end in range(len(words) + 1)]
    wrong = np.array([[stated - correct for correct, stated, _ in row] for row in counts])  # [T + 1, kinds]
    return [bool((wrong[k + 1 :].min(0) > wrong[k]).any()) for k in range(len(words))]
