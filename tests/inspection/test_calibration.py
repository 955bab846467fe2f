"""Calibration and risk against numbers worked out by hand, and against what chance would give."""

import numpy as np
import pytest
import tiny
import torch

from gitdistill.inspection import (
    bootstrap,
    calibration_error,
    mean_risk,
    reliability,
    risk_coverage,
    word_confidence,
)


def test_groups_are_of_equal_size_and_by_rising_confidence():
    found = reliability([0.9, 0.1, 0.8, 0.3], [1, 0, 0, 1], bins=2)
    assert found == [(pytest.approx(0.2), 0.5, 2), (pytest.approx(0.85), 0.5, 2)]
    assert calibration_error([0.9, 0.1, 0.8, 0.3], [1, 0, 0, 1], bins=2) == pytest.approx((0.3 + 0.35) / 2)
    assert reliability([0.5], [1]) == [(0.5, 1.0, 1)]


def test_a_calibrated_captioner_has_no_error():
    generator = np.random.default_rng(0)
    confidence = generator.random(200_000)
    right = generator.random(200_000) < confidence
    assert calibration_error(confidence, right) < 0.005
    assert calibration_error(confidence**2, right) > 0.15


def test_risk_counts_the_surest_first():
    coverage, risk = risk_coverage([0.2, 0.9, 0.6, 0.4], [0, 1, 0, 1])
    assert coverage.tolist() == [0.25, 0.5, 0.75, 1.0]
    assert risk.tolist() == [0.0, 0.5, pytest.approx(1 / 3), 0.5]
    assert mean_risk([0.2, 0.9, 0.6, 0.4], [0, 1, 0, 1]) == pytest.approx(np.mean(risk))
    assert mean_risk([3, 2, 1], [1, 1, 0]) < mean_risk([1, 2, 3], [1, 1, 0])


def test_the_interval_draws_whole_clips():
    """Every clip's two words are alike: an interval over words would be too narrow."""
    right = np.repeat(np.arange(50) % 2, 2)

    def share(confidence, right):
        return right.mean()

    values = np.ones(100), right
    value, low, high = bootstrap(values, np.repeat(np.arange(50), 2), share)
    _, low_words, high_words = bootstrap(values, np.arange(100), share)
    assert value == 0.5 and (high - low) > 1.25 * (high_words - low_words)
    assert (low, high) == bootstrap(values, np.repeat(np.arange(50), 2), share)[1:]
    mean, low, high = bootstrap([1.0] * 50 + [0.0] * 50, list(range(100)))
    assert mean == 0.5 and 0.38 < low < 0.43 and 0.57 < high < 0.62  # 0.5 +- 1.96 * 0.05
    with pytest.raises(ValueError, match="nothing to average"):
        bootstrap([], [])


def test_words_are_right_where_the_likeliest_one_comes_next():
    model = tiny.teacher()
    frames = torch.zeros(tiny.FRAMES, 3, tiny.SIDE, tiny.SIDE, dtype=torch.uint8)
    tokens = torch.tensor([2, 7, 9, 3])
    logits = model(frames[None], tokens[None]).logits[0]
    tokens[1] = logits[0].argmax()
    confidence, right = word_confidence(model, frames, tokens)
    assert confidence.shape == right.shape == (3,) and right[0]
    assert confidence[0] == pytest.approx(float(logits[0].softmax(-1).max()), rel=1e-5)


@pytest.mark.parametrize("values", [([], []), ([0.5], [1, 0]), ([[0.5]], [[1]])])
def test_values_that_do_not_fit(values):
    with pytest.raises(ValueError, match="must be"):
        reliability(*values)
