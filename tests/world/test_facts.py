"""Facts: what is wrong in a caption is found, and scores are what one counts by hand."""

import gc
import math
import time

import pytest

from gitdistill.world import Scene, Toy, facts
from gitdistill.world.facts import count_facts, facts_scores, false_words, parse
from gitdistill.world.grammar import canonical
from gitdistill.world.lexicon import KINDS

CAR, CAT = Toy("car", "red", "large", "left", 90, 30), Toy("cat", None, "small", "grow", 40, 95)
TWO = Scene([CAR, CAT])
STILL = Scene([CAR._replace(motion="still", x=34, y=40), CAT._replace(motion="still", x=100, y=40)])
HIDING = Scene([CAR._replace(motion="still", x=50, y=60), CAT._replace(motion="spin", x=70, y=66)])
TWINS = Scene([Toy("fir", motion="spin", size="small", x=30, y=30), Toy("fir", motion="spin", x=95, y=90)])


@pytest.mark.parametrize("caption, kind, expected", [
    ("a red car moves left and a cat grows", "colour", (1, 1, 1)),
    ("a blue car moves left and a cat grows", "colour", (0, 1, 1)),
    ("a red car moves right and a cat grows", "motion", (1, 2, 2)),
    ("a red tram moves left and a cat grows", "object", (1, 2, 2)),
    ("a red vehicle moves left and a cat grows", "object", (1, 1, 2)),
    ("a red vehicle moves left and a cat grows", "hypernym", (1, 1, 0)),
    ("a red bird moves left and a cat grows", "hypernym", (0, 1, 0)),
    ("a red tram moves left and a cat grows", "colour", (1, 1, 1)),
    ("a car moves left and a red cat grows", "colour", (0, 1, 1)),
    ("a red car grows and a cat moves left", "motion", (0, 2, 2)),
    ("a red car moves left and a red car moves left", "object", (1, 2, 2)),
    ("a red car moves left , a cat grows and a bell spins", "object", (2, 3, 2)),
    ("a red car moves left , a cat grows and a bell spins", "motion", (2, 3, 2)),
    ("a car and a cat grow", "motion", (1, 2, 2)),
    ("two cars move left", "count", (0, 1, 0)),
    ("two cars move left", "motion", (1, 2, 2)),
    ("a small red car moves left", "size", (0, 1, 1)),
    ("a big red car moves left", "size", (1, 1, 1)),
    ("a tiny cat grows", "size", (0, 1, 1)),
    ("a red car", "motion", (0, 0, 2)),
    ("moves left", "motion", (0, 1, 2)),
    ("a red", "colour", (0, 1, 1)),
    ("two", "count", (0, 1, 0)),
    ("", "object", (0, 0, 2)),
    ("a red car moves left above", "relation", (0, 1, 0)),
])  # fmt: skip
def test_what_is_wrong_is_found(caption, kind, expected):
    assert count_facts(caption, TWO)[kind] == expected


@pytest.mark.parametrize("scene, caption, expected", [
    (STILL, "a red car to the left of a cat", (1, 1, 1)),
    (STILL, "a cat right of a red car", (1, 1, 1)),
    (STILL, "a cat with a red car on its left", (1, 1, 1)),
    (STILL, "a red car with a cat on its left", (0, 1, 1)),
    (STILL, "a cat to the left of a red car", (0, 1, 1)),
    (STILL, "a red car above a cat", (0, 1, 1)),
    (STILL, "a red car and a cat", (0, 0, 1)),
    (STILL, "a red car left of a cat right of a red car", (1, 2, 1)),
    (HIDING, "a cat spins in front of a car", (1, 1, 1)),
    (HIDING, "a car behind a cat", (1, 1, 1)),
    (HIDING, "a car with a cat in front of it", (1, 1, 1)),
    (HIDING, "a cat behind a car", (0, 1, 1)),
])  # fmt: skip
def test_relations_are_checked_both_ways(scene, caption, expected):
    assert count_facts(caption, scene)["relation"] == expected


@pytest.mark.parametrize("caption, kind, expected", [
    ("two firs spin", "count", (1, 1, 1)),
    ("two firs spin", "object", (2, 2, 2)),
    ("two firs spin", "motion", (2, 2, 2)),
    ("two plants spinning", "count", (1, 1, 1)),
    ("two cats spin", "count", (0, 1, 1)),
    ("a fir and another fir spin", "motion", (2, 2, 2)),
    ("a fir spins", "motion", (1, 1, 2)),
])  # fmt: skip
def test_two_of_a_kind(caption, kind, expected):
    assert count_facts(caption, TWINS)[kind] == expected


@pytest.mark.parametrize("caption, false", [
    ("a red car moves left and a cat grows", ""),
    ("a blue car moves left and a cat grows", "blue"),
    ("a red tram moves left and a cat grows", "tram"),
    ("a red car moves right and a cat shrinks", "right shrinks"),
    ("a cat grows and a dog", "dog"),
])  # fmt: skip
def test_false_words_are_those_after_which_more_is_wrong(caption, false):
    words = caption.split()
    assert " ".join(word for word, wrong in zip(words, false_words(words, TWO)) if wrong) == false


def test_long_phrases_are_read_first():
    said = parse("a cat drifts to the left and a police car gets bigger to the left of a big bell")
    found = [(m.object, m.motion, m.size) for m in said.mentions]
    assert found == [(["cat"], ["left"], []), (["police car"], ["grow"], []), (["bell"], [], ["large"])]
    assert list(said.relations) == [(1, "left", 2)] and not any(said.loose.values())


@pytest.mark.parametrize("phrase", [
    "a red cat moves left and ", "two cats left of ", "two ", "a cat above a car and ",
])  # fmt: skip
def test_long_captions_are_read_in_time_that_grows_with_their_length(phrase):
    def seconds(count):
        spent = []
        for _ in range(3):  # the least counts, whatever else the machine does
            start = time.process_time()
            count_facts(phrase * (count // len(phrase.split())), TWO)
            spent.append(time.process_time() - start)
        return min(spent)

    gc.disable()  # its passes over all that lives are not the reader's
    try:
        assert seconds(40_000) < 80 * seconds(2_000)  # 20 times as long; 400 times if it grew with the square
    finally:
        gc.enable()


def test_scores_by_hand(monkeypatch):
    """Scenes that are their own counts: kind -> (correct, stated, true)."""
    monkeypatch.setattr(facts, "count_facts", lambda caption, scene: dict.fromkeys(KINDS, (0, 0, 0)) | scene)
    left_out = {"object": (2, 2, 2), "colour": (1, 1, 2), "relation": (1, 1, 1)}
    one_wrong = {"object": (1, 1, 1), "colour": (0, 1, 1), "motion": (1, 1, 1), "size": (0, 0, 1)}
    silent = {"object": (0, 0, 1), "motion": (0, 0, 1)}
    scores = facts_scores(["", "", ""], [left_out, one_wrong, silent])
    expected = {
        "object_precision": 1, "object_recall": 3 / 4, "colour_precision": 1 / 2, "colour_recall": 1 / 3,
        "motion_precision": 1, "motion_recall": 1 / 2, "size_recall": 0, "relation_recall": 1,
        "facts_precision": 6 / 7,  # one colour is wrong
        "facts_recall": 5 / 9,  # object, colour, motion: 3 + 1 + 1 of 4 + 3 + 2
        "all_right": 1 / 3,
    }  # fmt: skip
    assert {name: scores[name] for name in expected} == pytest.approx(expected)
    assert math.isnan(scores["size_precision"])  # never stated


def test_scores_of_captions():
    """One that says everything right, and the same one with another motion."""
    scene = Scene([CAR])
    right = facts_scores([canonical(scene)], [scene])
    assert (right["facts_precision"], right["facts_recall"], right["all_right"]) == (1, 1, 1)
    wrong = facts_scores([canonical(scene).replace("left", "right")], [scene])
    assert wrong["motion_precision"] == 0 and wrong["object_precision"] == 1
    assert wrong["facts_precision"] == pytest.approx(2 / 3) and wrong["all_right"] == 0
    for captions, message in (([], "no captions"), (["a", "b"], "2 captions but 1 scenes")):
        with pytest.raises(ValueError, match=message):
            facts_scores(captions, [scene])
