"""Runs of experiments as dots."""

import math

import pytest

from gitdistill.viz import plots


def test_dots_stand_where_the_runs_are():
    table = {"one": {"s": [1.0, 3.0], "t": [5.0]}, "other": {"s": [2.0]}}
    left, right = plots.dots(table, {"one": {"s": (0.5, 3.5)}}, {"s": {"teacher": 4.0}}, title="Dots").axes
    lines = [(line.get_xdata(), line.get_ydata()) for line in left.lines]
    assert any(list(x) == [1.0, 3.0] and list(y) == [0, 0] for x, y in lines)  # the runs
    assert any(list(x) == [2.0, 2.0] and min(y) < 0 < max(y) for x, y in lines)  # their mean
    assert any(list(x) == [0.5, 3.5] and list(y) == [0, 0] for x, y in lines)  # its interval
    assert [text.get_text() for text in left.get_yticklabels()] == ["one", "other"]
    assert [text.get_text() for text in left.texts] == ["teacher 4"]
    assert len(right.lines) == 2
    with pytest.raises(ValueError, match="s of one holds NaN"):
        plots.dots({"one": {"s": [math.nan]}})
