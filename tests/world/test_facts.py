"""Facts: what is wrong in a caption is found, and scores are what one counts by hand."""

import math

import pytest

from gitdistill.world import Scene, Thing, facts
from gitdistill.world.facts import count_facts, facts_scores, parse
from gitdistill.world.grammar import KINDS, canonical

CAT, FLOWER = Thing("cat", "red", "large", "left"), Thing("flower", "white", "small", "grow")
TWO = Scene((CAT, FLOWER), (), (), None, (0, 1), True, ())
STILL = TWO._replace(things=tuple(thing._replace(motion="still") for thing in TWO.things), relation="left")


@pytest.mark.parametrize("caption, kind, expected", [
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
    (" and ".join(["a red cat moves left"] * 40), "object", (1, 40, 2)),  # read quickly
])  # fmt: skip
def test_what_is_wrong_is_found(caption, kind, expected):
    assert count_facts(caption, TWO)[kind] == expected


@pytest.mark.parametrize("caption, expected", [
    ("a red cat to the left of a white flower", (1, 1, 1)),
    ("a white flower right of a red cat", (1, 1, 1)),
    ("a white flower with a red cat on its left", (1, 1, 1)),
    ("a red cat with a white flower on its left", (0, 1, 1)),
    ("a white flower to the left of a red cat", (0, 1, 1)),
    ("a red cat above a white flower", (0, 1, 1)),
    ("a red cat and a white flower", (0, 0, 1)),
    ("a red cat left of a white flower right of a red cat", (1, 2, 1)),
])  # fmt: skip
def test_relations_are_checked_both_ways(caption, expected):
    assert count_facts(caption, STILL)["relation"] == expected


def test_long_phrases_are_read_first():
    caption = "a cat drifts to the left and a cup gets bigger to the left of a big die"
    mentions, relations, loose = parse(caption)
    found = [(m.symbol, m.motion, m.size) for m in mentions]
    assert found == [("cat", ["left"], []), ("cup", ["grow"], []), ("die", [], ["large"])]
    assert relations == [(1, "left", 2)] and not any(loose.values())


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
    scene = TWO._replace(things=(CAT,), order=(0,))
    right = facts_scores([canonical(scene)], [scene])
    assert (right["facts_precision"], right["facts_recall"], right["all_right"]) == (1, 1, 1)
    wrong = facts_scores([canonical(scene).replace("left", "right")], [scene])
    assert wrong["motion_precision"] == 0 and wrong["object_precision"] == 1
    assert wrong["facts_precision"] == pytest.approx(2 / 3) and wrong["all_right"] == 0
    for captions, message in (([], "no captions"), (["a", "b"], "2 captions but 1 scenes")):
        with pytest.raises(ValueError, match=message):
            facts_scores(captions, [scene])
