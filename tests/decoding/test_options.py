"""Which search runs is decided in one place."""

import numpy as np
import pytest
import torch
from fakes import TableModel, clips
from transformers import NoRepeatNGramLogitsProcessor, RepetitionPenaltyLogitsProcessor

from gitdistill.decoding import beam, decode, greedy, sample

CLIPS = clips(3)
BEAMS = {"beams": 4, "length_penalty": 0.6, "max_length": 8}


@pytest.mark.parametrize("defaults, options, search, expected", [
    ({}, {}, greedy, {}),
    ({"max_length": 6}, {}, greedy, {"max_length": 6}),
    ({}, {"beams": 3}, beam, {"beams": 3}),
    (BEAMS, {}, beam, BEAMS),
    (BEAMS, {"max_length": 5}, beam, BEAMS | {"max_length": 5}),
    (BEAMS, {"beams": 1}, greedy, {"max_length": 8}),
    (BEAMS, {"temperature": 2.0, "seed": 1}, sample, {"temperature": 2.0, "seed": 1, "max_length": 8}),
    ({"top_k": 3, "seed": 1}, {"num_return": 2}, sample, {"top_k": 3, "seed": 1, "num_return": 2}),
    ({"top_k": 3}, {"beams": 2, "num_return": 2}, beam, {"beams": 2, "num_return": 2}),
])  # fmt: skip
def test_options_choose_the_search_and_override_defaults(defaults, options, search, expected):
    model = TableModel()
    assert torch.equal(
        decode(model, CLIPS, defaults, **options).tokens, search(model, CLIPS, **expected).tokens
    )


@pytest.mark.parametrize("options, named", [
    ({"beams": 4, "temperature": 0.7}, "beams.*temperature"),
    ({"num_return": 2}, "greedy.*num_return"),
    ({"beam": 4}, "beam"),
    ({"beams": 4, "top": 1}, "beam.*top"),
])  # fmt: skip
def test_options_that_contradict_each_other_or_do_not_exist(options, named):
    with pytest.raises(ValueError, match=named):
        decode(TableModel(), CLIPS, **options)


@pytest.mark.parametrize("search", [{}, {"beams": 3}, {"temperature": 1.5, "seed": 0}])
def test_processors_by_name(search):
    """For each search: as with the processors themselves, from options or defaults."""
    model = TableModel()
    named = {"repetition_penalty": 5, "no_repeat_ngram": 2}
    made = [RepetitionPenaltyLogitsProcessor(5.0), NoRepeatNGramLogitsProcessor(2)]
    expected = decode(model, CLIPS, max_length=8, processors=made, **search).tokens
    assert torch.equal(decode(model, CLIPS, max_length=8, **search, **named).tokens, expected)
    assert torch.equal(decode(model, CLIPS, {"max_length": 8} | named, **search).tokens, expected)
    assert not torch.equal(decode(model, CLIPS, max_length=8, **search).tokens[..., -1], expected[..., -1])
    with pytest.raises(ValueError, match="penalty"):
        decode(model, CLIPS, repetition_penalty=-1)


def test_numbers_that_no_search_can_use():
    for options in ({"beams": 2, "length_penalty": float("nan")}, {"temperature": 1e-40}):
        with pytest.raises(ValueError, match="length_penalty|temperature"):
            decode(TableModel(), CLIPS, **options)
    drawn = [sample(TableModel(), CLIPS, seed=seed).tokens for seed in (3, np.int64(3))]
    assert torch.equal(*drawn)
