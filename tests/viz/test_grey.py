"""Prints in black and white: what colours tell is told by something else as well.

The printer here is a bad one: all categories come out black, and both ends of a scale around zero. Then two things
are exchanged, and the picture must change.
"""

import matplotlib as mpl
import numpy as np
import pytest
import torch
from matplotlib.colors import LinearSegmentedColormap, to_rgb
from plot_inputs import VOCABULARY, black, frames, pixels, pointer, trace

from gitdistill.viz import plots
from gitdistill.viz.plots import style


@pytest.fixture
def no_colours(monkeypatch):
    """A printer without colours."""
    both = LinearSegmentedColormap.from_list("black_white_black", ["black", "white", "black"])
    mpl.colormaps.register(both, force=True)
    for name, value in {"OKABE_ITO": ("black",) * 7, "ACCENT": "black", "DIFFERENCE": both.name}.items():
        monkeypatch.setattr(style, name, value)
    yield
    mpl.colormaps.unregister(both.name)


def winner(first, second):
    """A beam search whose two finished captions have these scores, written in equally many strokes."""
    searched = trace()
    searched["final"][searched["finished"]] = torch.tensor([first, second])
    return plots.beam_tree(searched, VOCABULARY)


def feature_maps(first, second):
    return plots.feature_maps(black()[0], {"layer": first})


def gaze(first, second):
    return plots.gaze(black(2), ["cup"], {"a": first[None], "b": second[None]}, difference=True)


def channels(side):
    """Eight channels with one strong cell each."""
    return np.stack([(8 - k) * pointer((side, side), (k % side, 1)) for k in range(8)])


STEPS, UP, DOWN = [0, 10, 20], [1.0, 2.0, 3.0], [3.0, 2.0, 1.0]
GOOD, BAD = (0.9, 0.8, 0.95, 100), (0.5, 0.45, 0.55, 100)
STRONG, NONE = pointer((2, 6, 6), (1, 3, 4)), np.zeros((2, 6, 6))
EXCHANGED = {
    "curves": (lambda a, b: plots.curves({"a": (STEPS, a), "b": (STEPS, b)}), UP, DOWN),
    "board": (lambda a, b: plots.board({"losses": {"a": (STEPS, a), "b": (STEPS, b)}}), UP, DOWN),
    "pointing game": (lambda a, b: plots.pointing_game({"a": {"object": a}, "b": {"object": b}}), GOOD, BAD),
    "beam tree": (winner, -0.5, -0.6),
    "gaze": (gaze, STRONG, NONE),
    "ribbon": (lambda a, b: plots.ribbon({"greedy": (["a", "cup"], ["a", a], [0.9, 0.2])}), "cup", "bell"),
    "drafts": (lambda a, b: plots.drafts([([a], ["mill"])]), "mill", "bell"),
    "feature maps": (feature_maps, channels(4), -channels(4)),
    "fine feature maps": (feature_maps, channels(24), -channels(24)),
}


@pytest.mark.parametrize("name", EXCHANGED)
def test_exchanging_two_things_shows_in_black(no_colours, name):
    draw, *two = EXCHANGED[name]
    one, other = pixels(draw(*two), "L"), pixels(draw(*two[::-1]), "L")
    assert one.shape == other.shape
    if name == "gaze":  # their difference, below the names that swap places with them
        one, other = (image[2 * len(image) // 3 :] for image in (one, other))
    assert (np.abs(one - other) > 100).sum() >= 6


def test_amounts_only_grow_lighter():
    levels = mpl.colormaps[style.AMOUNT](np.linspace(0, 1, 256))[:, :3] @ style.LUMA
    assert (np.diff(levels) > 0).all() and levels[-1] - levels[0] > 0.6


@pytest.mark.parametrize("shade", [0.0, 0.5, 1.0])
def test_more_attention_is_darker_over_any_photo(shade):
    values = np.linspace(0, 1, 8)[None]
    image = style.overlay(np.full((4, 32, 3), shade), values, style.amounts(values)) @ style.LUMA
    assert (np.diff(image[0, ::4]) < -0.01).all()


def test_no_category_is_too_pale_for_white_paper():
    assert all(np.array(to_rgb(colour)) @ style.LUMA < 0.7 for colour in style.OKABE_ITO)
    assert np.array(to_rgb(style.GREY)) @ style.LUMA < 0.5


def readable(figure, largest):
    """Whether each number printed on a cell stands out from it; the scale ends at `largest`."""
    texts = [text for axes in figure.axes for text in axes.texts if text.get_text()[:1] in "0."]
    for text in texts:
        ground = np.array(mpl.colormaps[style.AMOUNT](float(text.get_text()) / largest)[:3]) @ style.LUMA
        yield abs(np.array(to_rgb(text.get_color())) @ style.LUMA - ground) > 0.4


def test_numbers_on_cells_can_be_read():
    values = np.array([[0.51, 0.59, 0.61, 0.7, 0.8, 0.9, 0.99]])
    found = list(readable(plots.similarity(values, ["a"], list("bcdefgh")), 1.0))
    assert len(found) == 7 and all(found)
    shares = np.array([[0.4, 0.6], [0.31, 0.69], [0.35, 0.65]])[..., None, None]
    found = list(readable(plots.frame_word_map(shares, ["a", "b", "c"], frames(2)), 0.69))
    assert len(found) == 6 and all(found)
