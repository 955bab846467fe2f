"""Scores of predicted captions: which clips count."""

import math

import pytest

from gitdistill.distillation.scoring import Predictions


def rows(*references):
    return {n: ("a star", list(texts), None, (2.0 + n, 1)) for n, texts in enumerate(references)}


def test_clips_whose_references_hold_no_word_are_left_out():
    good, mine = (["a star"], ["a red bell", "\u2026"]), Predictions()
    mine.splits = {"val": rows(*good), "test": rows(*good, ["!!!", "\u2605 \U0001f600"], [])}
    with pytest.warns(UserWarning, match="test: 2 of 4 clips have no caption to score against"):
        scores = mine.scores()
    assert scores["test"] == scores["val"] and scores["val"]["cross_entropy"] == 2.5
    mine.splits = {"test": rows(["..."])}
    with pytest.warns(UserWarning, match="test: 1 of 1 clips"):
        assert all(map(math.isnan, mine.scores()["test"].values()))
