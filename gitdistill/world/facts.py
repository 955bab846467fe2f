"""What captions of the embedded world state: read by `parse`, checked against a scene by `count_facts`, scored by
`facts_scores`.

A scene is what `gitdistill.world.grammar` says of one."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import product

import numpy as np

from gitdistill.world.grammar import KINDS, OPPOSITE, PHRASES, has_size, relation_from

LONGEST = max(map(len, PHRASES))
# The kinds that `facts_recall` counts; a caption may well leave out sizes and relations.
RECALLED = ("object", "colour", "motion")


@dataclass
class Mention:
    """One noun of a caption with what is said about it: table keys, each at most once, in the text's order."""

    symbol: str = ""
    colour: list = field(default_factory=list)
    size: list = field(default_factory=list)
    motion: list = field(default_factory=list)


def _meanings(caption: str):
    """Yields (kind, key) of the longest known phrase at each place; unknown words are skipped."""
    words = caption.lower().split()
    while words:
        length = min(LONGEST, len(words))
        while length and tuple(words[:length]) not in PHRASES:
            length -= 1
        if length:
            yield PHRASES[tuple(words[:length])]
        words = words[max(1, length) :]


def parse(caption: str) -> tuple[list[Mention], list[tuple], dict[str, int]]:
    """Reads a caption: (mentions, relations, loose).

    Colours and sizes belong to the next noun, motions to the last one. `relations` lists (i, relation, j): mention i
    is `relation` of mention j. `loose` counts, by kind, statements that belong to no noun ("red", "moves left"
    alone, "above" without a second noun)."""
    mentions, relations, loose = [], [], dict.fromkeys(KINDS, 0)
    pending, waiting = Mention(), None  # waiting: a relation that still lacks its second noun
    for kind, key in _meanings(caption):
        last = len(mentions) - 1
        if kind == "object":
            pending.symbol = key
            mentions.append(pending)
            pending = Mention()
            if waiting:
                _relate(relations, *waiting, last + 1)
                waiting = None
        elif kind in ("colour", "size"):
            _add(getattr(pending, kind), key)
        elif kind == "motion" and mentions:
            _add(mentions[-1].motion, key)
        elif kind == "with" and last > 0:
            _relate(relations, last, key, last - 1)
        elif kind == "relation" and mentions:
            loose["relation"] += waiting is not None
            waiting = last, key
        else:
            loose["motion" if kind == "motion" else "relation"] += 1
    loose["relation"] += waiting is not None
    loose["colour"] += len(pending.colour)
    loose["size"] += len(pending.size)
    return mentions, relations, loose


def _add(found: list, key) -> None:
    if key not in found:
        found.append(key)


def _relate(relations: list, i: int, relation: str, j: int) -> None:
    """Adds "mention i is `relation` of mention j", the earlier mention in front, unless it has been said."""
    _add(relations, (i, relation, j) if i < j else (j, OPPOSITE[relation], i))


def count_facts(caption: str, scene) -> dict[str, tuple[int, int, int]]:
    """Counts what a caption states about a scene: kind -> (correct, stated, true), for the kinds of `KINDS`.

    * The caption's mentions are matched with the scene's things one to one, such that most statements are right;
      every statement of a mention too many, and of no mention at all, is wrong.
    * stated: how often something of this kind is said; correct: how much of it is right (precision: correct / stated).
    * true: what could be said (recall: correct / true). Each thing has an object, a colour and (unless the scene is a
      single image) a motion; a size counts where a caption may have it, a relation where it is clear.
    * Two things related to each other without a word of motion ("a cat above a cup") are said to stay still: the
      canonical caption of an arrangement states its motions that way, and it is wrong about things that move.
    * A relation is right if it holds between the two things its nouns are matched with."""
    mentions, relations, stated = parse(caption)
    if scene.moving and not (stated["motion"] or any(mention.motion for mention in mentions)):
        for i, _, j in relations:
            mentions[i].motion, mentions[j].motion = ["still"], ["still"]
    stated["object"] += len(mentions)
    stated["relation"] += len(relations)
    for kind in ("colour", "size", "motion"):
        stated[kind] += sum(len(getattr(mention, kind)) for mention in mentions)
    matchings = _matchings(mentions, relations, scene)
    correct = max(matchings, key=lambda right: (sum(right.values()), right["object"]))
    true = dict.fromkeys(KINDS, len(scene.things)) | {"relation": int(scene.relation is not None)}
    true["size"] = sum(map(has_size, scene.things))
    true["motion"] *= scene.moving
    return {kind: (correct[kind], stated[kind], true[kind]) for kind in KINDS}


def _matchings(mentions: list[Mention], relations: list[tuple], scene):
    """The number of right statements by kind, for each one-to-one matching of mentions with the scene's things."""
    candidates = [None, *range(len(mentions))]
    for match in product(candidates, repeat=len(scene.things)):  # the mention of each thing
        matched = {i: thing for i, thing in zip(match, scene.things) if i is not None}
        if len(matched) + match.count(None) < len(match):
            continue
        right = dict.fromkeys(KINDS, 0)
        for mention, thing in ((mentions[i], thing) for i, thing in matched.items()):
            right["object"] += mention.symbol == thing.symbol
            right["colour"] += thing.colour in mention.colour
            right["size"] += thing.size in mention.size and has_size(thing)
            right["motion"] += scene.moving and thing.motion in mention.motion
        for i, relation, j in relations:
            if i in match and j in match:
                right["relation"] += relation == relation_from(scene, match.index(i))
        yield right


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
    counted = [count_facts(caption, scene) for caption, scene in zip(captions, scenes)]
    counts = np.array([[found[kind] for kind in KINDS] for found in counted])  # [B, kinds, 3]
    scores = {}
    for kind, (correct, stated, true) in zip(KINDS, counts.sum(0)):
        scores |= {f"{kind}_precision": _share(correct, stated), f"{kind}_recall": _share(correct, true)}
    correct, stated, _ = counts.sum((0, 1))
    scores["facts_precision"] = _share(correct, stated)
    correct, _, true = counts[:, [KINDS.index(kind) for kind in RECALLED]].sum((0, 1))
    scores["facts_recall"] = _share(correct, true)
    correct, stated, _ = counts.sum(1).T
    scores["all_right"] = float(np.mean((stated > 0) & (correct == stated)))
    return scores


def _share(part: int, whole: int) -> float:
    return float(part / whole) if whole else float("nan")
