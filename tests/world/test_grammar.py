"""The grammar: what it writes is true and correct English."""

import re

import numpy as np
import pytest

from gitdistill.world import Clips, Scene, Toy
from gitdistill.world.facts import count_facts
from gitdistill.world.grammar import article, canonical, describe
from gitdistill.world.lexicon import COLOURS, HYPERNYMS, KINDS, MOTIONS, OBJECTS, PHRASES, words

CAR, CAT = Toy("car", "red", "large", "left", 90, 30), Toy("cat", None, "small", "grow", 40, 95)
STILL = Scene([CAR._replace(motion="still", x=34, y=40), CAT._replace(motion="still", x=100, y=40)])


def captioned(split="train", count=800, **options):
    clips = Clips(split, count, **options)
    rng = np.random.RandomState(0)
    for scene in map(clips.scene, range(count)):
        yield scene, [describe(scene, rng) for _ in range(3)]


@pytest.mark.parametrize(
    "split, frames", [("train", 4), ("test", 4), ("unseen", 4), ("lookalike", 4), ("train", 1)]
)
def test_own_captions_state_only_facts_and_the_canonical_one_leaves_nothing_out(split, frames):
    totals = dict.fromkeys(KINDS, 0)
    for scene, captions in captioned(split, frames=frames):
        for caption in captions:
            for kind, (correct, stated, true) in count_facts(caption, scene).items():
                assert correct == stated, (caption, canonical(scene), kind)
                assert stated <= true or kind in ("hypernym", "count"), (caption, scene)
                totals[kind] += stated
        counts = count_facts(canonical(scene), scene)
        assert all(correct == stated for correct, stated, _ in counts.values()), canonical(scene)
        assert counts["object"][0] == len(scene.toys)
        assert counts["colour"][1] == counts["colour"][2]
        moving = sum(toy.motion != "still" for toy in scene.toys)
        assert counts["motion"][0] >= moving, canonical(scene)
    rare = {"motion"} if frames == 1 else {"count"} if split == "lookalike" else set()
    assert all(totals[kind] > 15 for kind in KINDS if kind not in rare), totals
    assert frames > 1 or totals["motion"] == 0


def test_canonical_wording():
    assert canonical(Scene([CAR])) == "a red car moves left"
    assert canonical(Scene([CAR._replace(motion="still")], moving=False)) == "a red car"
    assert canonical(Scene([CAR, CAT])) == "a red car moves left and a cat grows"
    assert canonical(STILL) == "a red car to the left of a cat"
    firs = [Toy("fir", motion="spin", size="small", x=30, y=30), Toy("fir", motion="spin", x=95, y=90)]
    assert canonical(Scene(firs)) == "two firs spin"
    sheep = Scene([Toy("sheep", x=30, y=64), Toy("sheep", x=100, y=64)])
    assert canonical(sheep) == "two sheep"
    owl = Toy("owl", motion="jump", x=64, y=100, size="small")
    text = canonical(Scene([owl, Toy("gift", "blue", "small", x=20, y=20)]))
    assert text.startswith("an owl jumps ") and text.endswith(" a blue gift")


def test_a_seed_gives_the_same_captions_and_another_one_others():
    def drawn(seed):
        rng = np.random.RandomState(seed)
        return [describe(STILL, rng) for _ in range(20)]

    assert drawn(1) == drawn(1) != drawn(2)
    assert len(set(drawn(1))) > 10


def test_correct_english():
    assert article("orange gift") == "an orange gift" and article("small owl") == "a small owl"
    plurals = {kind.plural for kind in OBJECTS.values()} | set(HYPERNYMS.values())
    assert OBJECTS["mouse"].plural == "mice" and OBJECTS["fish"].plural == "fish"
    singular = "|".join(verb.singular for row in MOTIONS.values() for verb in row)
    plural = "|".join(verb.plural for row in MOTIONS.values() for verb in row)
    for _, captions in captioned(count=2500):
        for caption in captions:
            assert not re.search(r"\ba [aeiou]|\ban [^aeiou]", caption), caption
            if found := re.search(r"\btwo (.*)$", caption):
                assert any(re.search(rf"\b{name}\b", found[1]) for name in plurals), caption
                assert not re.search(rf"\b({singular})\b", found[1]), caption
            elif re.search(rf"\b({plural})\b(?! it)", caption):
                assert re.match(r"an? .* and an? .*", caption), caption
            assert not re.search(r"(left|right|up|down) (to the )?(left|right) of", caption), caption


def test_all_words_occur_and_no_others():
    seen = set()
    for frames in (1, 4):
        for _, captions in captioned(count=4000, frames=frames):
            seen.update(word for caption in captions for word in caption.split())
    assert seen <= set(words())
    plurals = [*HYPERNYMS.values(), *(kind.plural for kind in OBJECTS.values()), "do", "rest", "stay"]
    assert set(words()) - seen <= {word for name in plurals for word in name.split()}  # these are rare


def test_every_name_and_phrase_means_one_thing():
    names = [name for kind in OBJECTS.values() for name in kind.names]
    phrases = [phrase for row in MOTIONS.values() for verb in row for phrase in verb]
    for row in (names, phrases):
        assert len(set(row)) == len(row)
    assert len(OBJECTS) == 100 and len(MOTIONS) == 10 and len(COLOURS) == 6
    assert sum(bool(kind.colours) for kind in OBJECTS.values()) == 13
    assert not set(names) & {*HYPERNYMS, *HYPERNYMS.values(), *COLOURS}
    for kind in OBJECTS.values():
        assert PHRASES[tuple(kind.name.split())].key == kind.name
