"""Prints in black and white: what colours tell is told by something else as well.

The printer here is a bad one: all categories come out black, and both ends of a scale around zero. Then two things
are exchanged, and the picture must change.
"""

import io

import matplotlib as mpl
import numpy as np
import pytest
from matplotlib.colors import LinearSegmentedColormap, to_rgb
from PIL import Image
from test_plots import VOCABULARY, attention, frames, pointer, trace

from gitdistill.viz import plots
from gitdistill.viz.plots import attention as looks
from gitdistill.viz.plots import cards, features, model, search, style, training

MODULES = (looks, cards, features, model, search, style, training)
UP, DOWN = [1.0, 2.0, 3.0], [3.0, 2.0, 1.0]
STEPS = [0, 10, 20]
GOOD, BAD = (0.9, 0.8, 0.95, 100), (0.5, 0.45, 0.55, 100)


@pytest.fixture
def black(monkeypatch):
    """A printer without colours."""
    both = LinearSegmentedColormap.from_list("black_white_black", ["black", "white", "black"])
    mpl.colormaps.register(both, force=True)
    for module in MODULES:
        for name, value in {"OKABE_ITO": ("black",) * 7, "DIFFERENCE": both.name}.items():
            if hasattr(module, name):
                monkeypatch.setattr(module, name, value)
    yield
    mpl.colormaps.unregister(both.name)


def printed(picture):
    data = picture if isinstance(picture, bytes) else plots.png(picture)
    return np.asarray(Image.open(io.BytesIO(data)).convert("L"), dtype=int)


def curves(swap):
    return plots.curves({"a": (STEPS, DOWN if swap else UP), "b": (STEPS, UP if swap else DOWN)})


def board(swap):
    lines = {"a": (STEPS, DOWN if swap else UP), "b": (STEPS, UP if swap else DOWN)}
    return plots.board({"losses": lines}, {0: ["a cup"], 20: ["a red cup"]})


def grounding(swap):
    return plots.grounding({"a": {"object": BAD if swap else GOOD}, "b": {"object": GOOD if swap else BAD}})


def winner(swap):
    """Another caption wins, whose score after the penalty is written in as few strokes."""
    searched = {name: column.clone() for name, column in trace().items()}
    ends = searched["finished"].nonzero()[:, 0]
    if swap:
        searched["final"][ends] = searched["final"][ends.flip(0)]
    return plots.beam_tree(searched, VOCABULARY)


def gaze(swap):
    strong, none = pointer((1, 2, 6, 6), (0, 1, 3, 4)), np.zeros((1, 2, 6, 6))
    rows = {"a": none, "b": strong} if swap else {"a": strong, "b": none}
    return plots.gaze(np.zeros((2, 3, 24, 24), np.uint8), ["cup"], rows, difference=True)


def word_card(swap):
    strong, none = pointer((2, 6, 6), (1, 3, 4)), np.zeros((2, 6, 6))
    rows = {"a": none, "b": strong} if swap else {"a": strong, "b": none}
    return plots.word_card(np.zeros((2, 3, 24, 24), np.uint8), "cup", rows)


def ribbon(swap):
    first, second = (["a", "cup"], ["a", "bell"]) if swap else (["a", "cup"], ["a", "cup"])
    return plots.ribbon({"greedy": (first, second, [0.9, 0.2])})


def drafts(swap):
    return plots.drafts([(["bell" if swap else "mill"], ["mill"])])


def channels(side):
    """Eight channels with one strong cell each."""
    return np.stack([(8 - k) * pointer((side, side), (k % side, 1)) for k in range(8)])


def feature_maps(swap, side=4):
    values = channels(side)
    return plots.feature_maps(np.zeros((3, 24, 24), np.uint8), {"stage": -values if swap else values})


def module_card(swap, side=4):
    values = channels(side)
    table = [("stage", "8 x 4 x 4", 0.0, 1.0, 0.5, 1.0)]
    return plots.module_card(np.zeros((3, 24, 24), np.uint8), table, 0, -values if swap else values)


def fine_feature_maps(swap):
    return feature_maps(swap, 24)


def fine_module_card(swap):
    return module_card(swap, 24)


TOLD_APART = (
    curves,
    board,
    grounding,
    winner,
    ribbon,
    drafts,
    gaze,
    word_card,
    feature_maps,
    module_card,
)


def part(draw, values):
    """Where the two models, or the two signs, are drawn: below the names that swap places with them."""
    rows = {gaze: slice(2 * values.shape[0] // 3, None), word_card: slice(2 * values.shape[0] // 3, None)}
    return values[rows.get(draw, slice(None))]


@pytest.mark.parametrize("draw", [*TOLD_APART, fine_feature_maps, fine_module_card], ids=lambda d: d.__name__)
def test_exchanging_two_things_shows_in_black(black, draw):
    one, other = (part(draw, printed(draw(swap))) for swap in (False, True))
    assert one.shape == other.shape
    assert (np.abs(one - other) > 100).sum() >= 6


def test_amounts_only_grow_lighter():
    levels = mpl.colormaps[style.AMOUNT](np.linspace(0, 1, 256))[:, :3] @ style.LUMA
    assert (np.diff(levels) > 0).all() and levels[-1] - levels[0] > 0.6


@pytest.mark.parametrize("shade", [0.0, 0.5, 1.0])
def test_more_attention_is_lighter_over_any_photo(shade):
    values = np.linspace(0, 1, 8)[None]
    photo = np.full((4, 32, 3), shade)
    image = style._overlay(photo, values, style._amounts(values), style.AMOUNT) @ style.LUMA
    rises = np.diff(image[0, ::4])
    assert (rises[1:] > 0.03).all() and rises[0] > -0.01  # on white the very faint looks like none


def test_no_category_is_too_pale_for_white_paper():
    for colour in style.OKABE_ITO:
        assert np.array(to_rgb(colour)) @ style.LUMA < 0.7, colour
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


def test_the_first_component_has_a_picture_without_hues():
    maps = attention(3, 4).unsqueeze(-1).expand(-1, -1, -1, -1, 3)[:, 0]  # [3, 6, 6, 3]
    figure = plots.components(frames(3), {"teacher": maps / maps.max()}, first=True)
    image = next(axes.images[0].get_array() for axes in figure.axes[3:] if axes.images)
    order = np.argsort(maps[0, ..., 0].numpy().ravel())
    assert (np.diff((np.asarray(image) @ style.LUMA).ravel()[order]) >= -1e-6).all()
