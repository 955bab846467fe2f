"""The grammar: what it writes is true and correct English, and the parser finds what is wrong."""

import re

import numpy as np
import pytest

from gitdistill.world.facts import count_facts, parse
from gitdistill.world.grammar import (
    COLOURS,
    KINDS,
    MOTIONS,
    SYMBOLS,
    canonical,
    describe,
    noun_phrase,
    words,
)
from gitdistill.world.scenes import GlyphClips, Scene, Thing


def scene_of(*things, relation=None, moving=True):
    order = tuple(range(len(things)))
    return Scene(things, (), (), relation, order, moving, ())


CAT = Thing("cat", "red", "large", "left")
FLOWER = Thing("flower", "white", "small", "grow")
STILL = scene_of(CAT._replace(motion="still"), FLOWER._replace(motion="still"), relation="left")


def captioned(split="train", count=1000, **options):
    clips = GlyphClips(split, count, **options)
    rng = np.random.RandomState(0)
    for index in range(count):
        scene = clips.scene(index)
        yield scene, [describe(scene, rng) for _ in range(3)]


@pytest.mark.parametrize("split, frames", [("train", 4), ("test", 4), ("unseen", 4), ("train", 1)])
def test_own_captions_state_only_facts(split, frames):
    totals = dict.fromkeys(KINDS, 0)
    for scene, captions in captioned(split, num_frames=frames):
        for caption in captions:
            for kind, (correct, stated, true) in count_facts(caption, scene).items():
                assert correct == stated <= true, (caption, canonical(scene), kind)
                totals[kind] += stated
    assert all(totals[kind] > 100 for kind in KINDS if frames > 1 or kind != "motion")
    assert frames > 1 or totals["motion"] == 0


@pytest.mark.parametrize("frames", [1, 4])
def test_canonical_caption_leaves_nothing_out(frames):
    for scene, _ in captioned("test", num_frames=frames):
        counts = count_facts(canonical(scene), scene)
        for kind in ("object", "colour", "motion"):
            correct, stated, true = counts[kind]
            assert correct == stated == true, (canonical(scene), kind)
        if scene.relation and all(thing.motion == "still" for thing in scene.things):
            assert counts["relation"] == (1, 1, 1)


def test_canonical_wording():
    assert canonical(scene_of(CAT)) == "a red cat moves left"
    assert canonical(scene_of(CAT, moving=False)) == "a red cat"
    assert (
        canonical(scene_of(CAT, FLOWER, relation="above")) == "a red cat moves left and a white flower grows"
    )
    assert canonical(STILL) == "a red cat to the left of a white flower"
    assert canonical(STILL._replace(order=(1, 0))) == "a white flower to the right of a red cat"


def test_canonical_caption_is_the_likeliest():
    scene = scene_of(CAT, FLOWER)
    rng = np.random.RandomState(0)
    drawn = [describe(scene, rng) for _ in range(4000)]
    assert max(set(drawn), key=drawn.count) == canonical(scene)


def test_same_generator_same_captions():
    def first(seed):
        rng = np.random.RandomState(seed)
        return [describe(STILL, rng) for _ in range(20)]

    assert first(1) == first(1) != first(2)


def test_articles_and_pairs():
    assert noun_phrase("wheel", "orange") == "an orange wheel"
    assert noun_phrase("umbrella") == "an umbrella"
    assert noun_phrase("umbrella", "red") == "a red umbrella"
    assert noun_phrase("scissors", "blue", "tiny") == "a pair of tiny blue scissors"
    for _, captions in captioned():
        for caption in captions:
            assert not re.search(r"\ba [aeiou]|\ban [^aeiou]", caption), caption
            assert not re.search(r"\ban? (?!pair of)(\w+ ){0,2}(swords|scissors)\b", caption), caption


def test_all_words_occur_and_no_others():
    seen = set()
    for frames in (1, 4):
        for _, captions in captioned(count=4000, num_frames=frames):
            seen.update(word for caption in captions for word in caption.split())
    assert sorted(seen) == words()


def test_every_name_and_phrase_means_one_thing():
    names = [name for symbol in SYMBOLS.values() for name in symbol.names]
    phrases = [phrase for motion in MOTIONS.values() for phrase in motion.verbs + motion.participles]
    assert len(SYMBOLS) == 32 and len(COLOURS) == 8 and len(MOTIONS) == 8
    for row in (names, phrases, [symbol.char for symbol in SYMBOLS.values()]):
        assert len(set(row)) == len(row)


@pytest.mark.parametrize(
    "caption, kind, expected",
    [
        ("a red cat moves left and a white flower grows", "colour", (2, 2, 2)),
        ("a blue cat moves left and a white flower grows", "colour", (1, 2, 2)),
        ("a red cat moves right and a white flower grows", "motion", (1, 2, 2)),
        ("a red cup moves left and a white flower grows", "object", (1, 2, 2)),
        ("a red cup moves left and a white flower grows", "colour", (2, 2, 2)),
        ("a white cat moves left and a red flower grows", "colour", (0, 2, 2)),
        ("a red cat grows and a white flower moves left", "motion", (0, 2, 2)),
        ("a red cat moves left and a red cat moves left", "object", (1, 2, 2)),
        ("a red cat moves left , a white flower grows and a green cup spins", "object", (2, 3, 2)),
        ("a red cat moves left , a white flower grows and a green cup spins", "motion", (2, 3, 2)),
        ("a small red cat moves left", "size", (0, 1, 1)),
        ("a big red cat moves left", "size", (1, 1, 1)),
        ("a tiny white flower grows", "size", (0, 1, 1)),
        ("a red cat to the left of a white flower", "motion", (0, 2, 2)),
        ("a red cat", "motion", (0, 0, 2)),
        ("moves left", "motion", (0, 1, 2)),
        ("a red", "colour", (0, 1, 2)),
        ("", "object", (0, 0, 2)),
        ("a red cat moves left above", "relation", (0, 1, 0)),
    ],
)
def test_what_is_wrong_is_found(caption, kind, expected):
    assert count_facts(caption, scene_of(CAT, FLOWER))[kind] == expected


@pytest.mark.parametrize(
    "caption, expected",
    [
        ("a red cat to the left of a white flower", (1, 1, 1)),
        ("a white flower right of a red cat", (1, 1, 1)),
        ("a white flower with a red cat on its left", (1, 1, 1)),
        ("a red cat with a white flower on its left", (0, 1, 1)),
        ("a white flower to the left of a red cat", (0, 1, 1)),
        ("a red cat above a white flower", (0, 1, 1)),
        ("a red cat and a white flower", (0, 0, 1)),
        ("a red cat left of a white flower right of a red cat", (1, 2, 1)),
    ],
)
def test_relations_are_checked_both_ways(caption, expected):
    assert count_facts(caption, STILL)["relation"] == expected


def test_parser_reads_long_phrases_first():
    mentions, relations, loose = parse(
        "a cat drifts to the left and a cup gets bigger to the left of a big die"
    )
    assert [(m.symbol, m.motion, m.size) for m in mentions] == [
        ("cat", ["left"], []),
        ("cup", ["grow"], []),
        ("die", [], ["large"]),
    ]
    assert relations == [(1, "left", 2)] and not any(loose.values())


def test_endless_repetition_is_read_quickly():
    caption = " and ".join(["a red cat moves left"] * 40)
    assert count_facts(caption, scene_of(CAT, FLOWER))["object"] == (1, 40, 2)
