"""Scores of predicted captions: which clips count, and how they are predicted."""

import math

import pytest
import tiny
import torch

from gitdistill.distillation import losses, scoring, terms
from gitdistill.distillation.scoring import Predictions
from gitdistill.world.module import toybox_tokenizer


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


def test_ranks_score_clips_without_numbers_and_one_may_have_none(data, monkeypatch):
    batch = next(iter(data.val_dataloader()))
    del batch["clip"]
    student, parts = tiny.student().eval(), []
    for rank, batches in enumerate((2, 1, 0)):
        monkeypatch.setattr(scoring, "rank_and_world", lambda rank=rank: (rank, 3))
        mine = Predictions()
        for _ in range(batches):
            mine.add("val", student, batch, toybox_tokenizer(), max_length=8)
        parts.append(mine.splits)
    monkeypatch.setattr(scoring, "gather", lambda mine: parts)  # as the last rank, which has none
    counts = []
    found = mine.scores(lambda captions, scenes: counts.append(len(captions)) or {"true": 1.0})
    assert counts == [12] and found["val"]["true"] == 1.0 and found["val"]["cross_entropy"] > 0


@pytest.mark.parametrize("subset", [False, True])
def test_a_batch_is_encoded_once_and_scored_as_by_the_loss(data, subset):
    batch = next(iter(data.val_dataloader()))
    student = tiny.student(vocab_subset=batch["tokens"].unique().tolist() if subset else None).eval()
    encoded = []
    student.backbone.register_forward_hook(lambda *_: encoded.append(1))
    mine = Predictions()
    with torch.no_grad():
        mine.add("val", student, batch, toybox_tokenizer(), max_length=8)
        assert len(encoded) == 1
        output = student(batch["frames"], batch["tokens"])
    tokens, pad = terms.to_vocab_subset(student, batch["tokens"])
    expected = losses.cross_entropy(output.subset_logits, tokens, pad).item()
    assert mine.scores()["val"]["cross_entropy"] == pytest.approx(expected, rel=1e-5)
    captions = student.caption(batch["frames"], toybox_tokenizer(), max_length=8)
    assert [caption for caption, *_ in mine.splits["val"].values()] == captions
