"""The grammar: what it writes is true and correct English."""

import re

import numpy as np
import pytest

from gitdistill.world import GlyphClips, Scene, Thing
from gitdistill.world.facts import count_facts
from gitdistill.world.grammar import COLOURS, KINDS, MOTIONS, SYMBOLS, canonical, describe, noun_phrase, words


def scene_of(*things, relation=None, moving=True):
    return Scene(things, (), (), relation, tuple(range(len(things))), moving, ())


CAT = Thing("cat", "red", "large", "left")
FLOWER = Thing("flower", "white", "small", "grow")
STILL = scene_of(CAT._replace(motion="still"), FLOWER._replace(motion="still"), relation="left")


def captioned(split="train", count=1000, **options):
    clips = GlyphClips(split, count, **options)
    rng = np.random.RandomState(0)
    for scene in map(clips.scene, range(count)):
        yield scene, [describe(scene, rng) for _ in range(3)]


@pytest.mark.parametrize("split, num_frames", [("train", 4), ("test", 4), ("unseen", 4), ("train", 1)])
def test_own_captions_state_only_facts_and_the_canonical_one_leaves_nothing_out(split, num_frames):
    totals = dict.fromkeys(KINDS, 0)
    for scene, captions in captioned(split, num_frames=num_frames):
        for caption in captions:
            for kind, (correct, stated, true) in count_facts(caption, scene).items():
                assert correct == stated <= true, (caption, canonical(scene), kind)
                totals[kind] += stated
        counts = count_facts(canonical(scene), scene)
        for kind in ("object", "colour", "motion"):
            correct, stated, true = counts[kind]
            assert correct == stated == true, (canonical(scene), kind)
        if scene.relation and all(thing.motion == "still" for thing in scene.things):
            assert counts["relation"] == (1, 1, 1)
    assert all(totals[kind] > 100 for kind in KINDS if num_frames > 1 or kind != "motion")
    assert num_frames > 1 or totals["motion"] == 0


def test_canonical_wording():
    assert canonical(scene_of(CAT)) == "a red cat moves left"
    assert canonical(scene_of(CAT, moving=False)) == "a red cat"
    two = scene_of(CAT, FLOWER, relation="above")
    assert canonical(two) == "a red cat moves left and a white flower grows"
    assert canonical(STILL) == "a red cat to the left of a white flower"
    assert canonical(STILL._replace(order=(1, 0))) == "a white flower to the right of a red cat"


def test_the_canonical_caption_is_the_likeliest_and_a_seed_gives_the_same_ones():
    def drawn(scene, seed, count):
        rng = np.random.RandomState(seed)
        return [describe(scene, rng) for _ in range(count)]

    many = drawn(scene_of(CAT, FLOWER), 0, 4000)
    assert max(set(many), key=many.count) == canonical(scene_of(CAT, FLOWER))
    assert drawn(STILL, 1, 20) == drawn(STILL, 1, 20) != drawn(STILL, 2, 20)


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
    for num_frames in (1, 4):
        for _, captions in captioned(count=4000, num_frames=num_frames):
            seen.update(word for caption in captions for word in caption.split())
    assert sorted(seen) == words()


def test_every_name_and_phrase_means_one_thing():
    names = [name for symbol in SYMBOLS.values() for name in symbol.names]
    phrases = [phrase for motion in MOTIONS.values() for phrase in motion.verbs + motion.participles]
    assert len(SYMBOLS) == 32 and len(COLOURS) == 8 and len(MOTIONS) == 8
    for row in (names, phrases, [symbol.char for symbol in SYMBOLS.values()]):
        assert len(set(row)) == len(row)
