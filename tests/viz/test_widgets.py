"""Explorers: pictures under sliders, and the cards that are painted for them."""

import time
from itertools import product
from statistics import median

import numpy as np
import pytest
from plot_inputs import VOCABULARY, attention, black, pixels, trace

from gitdistill.viz import plots, widgets
from gitdistill.viz.plots import cards

AXES = {"word": ["a", "red", "a"], "layer": [0, 1]}
POSITIONS = list(product(range(3), range(2)))
WORDS = ["a", "red", "cup", "moves"]
F, T, L, H = 3, len(WORDS), 2, 4
BLACK = np.zeros((F, 3, 96, 96), np.uint8)


def visit(widget):
    """What is shown at every position of every slider, and the processor's seconds to get there."""
    seen, times = {}, []
    for at in product(*(range(len(slider.options)) for slider in widget.sliders.values())):
        start = time.process_time()
        for slider, value in zip(widget.sliders.values(), at):
            slider.value = value
        times.append(time.process_time() - start)
        seen[at] = bytes(widget.picture.value)
    return seen, times


def test_every_position_shows_its_own_picture_equal_labels_or_not():
    figure = plots.budget({"part": 1})
    pictures = {at: bytes(at) for at in POSITIONS} | {(2, 1): figure}
    widget = widgets.explore(pictures, AXES)
    assert bytes(widget.picture.value) == bytes((0, 0))
    assert visit(widget)[0] == pictures | {(2, 1): plots.png(figure, scale=1)}
    assert widget.children == (*widget.sliders.values(), widget.picture)
    assert all(slider.continuous_update for slider in widget.sliders.values())


def test_a_function_draws_lazily_and_once():
    calls = []

    def counted(*at):
        calls.append(at)
        return bytes(at)

    widget = widgets.explore(counted, AXES)
    assert calls == [(0, 0)]
    assert visit(widget)[0] == visit(widget)[0] == {at: bytes(at) for at in POSITIONS}
    assert sorted(calls) == POSITIONS


def test_a_play_button_moves_its_slider_and_starts_from_where_it_is():
    widget = widgets.explore(lambda *at: bytes(at), AXES, play="word")
    assert widget.player.max == 2
    widget.player.value = 2  # as it does by itself
    assert widget.sliders["word"].value == 2 and bytes(widget.picture.value) == bytes((2, 0))
    widget.sliders["word"].index = 1  # as the arrow keys do
    assert widget.player.value == 1 and bytes(widget.picture.value) == bytes((1, 0))
    row, layer, picture = widget.children
    assert row.children == (widget.sliders["word"], widget.player)
    assert (layer, picture) == (widget.sliders["layer"], widget.picture)


def test_errors_reach_the_reader():
    widget = widgets.explore(lambda step: [b"first"][step], {"step": [0, 1]})
    with pytest.raises(IndexError):
        widget.sliders["step"].value = 1
    with pytest.raises(ValueError, match=r"1 of 2 pictures are missing, the first at \(1,\)"):
        widgets.explore({(0,): b""}, {"step": [0, 1]})
    with pytest.raises(ValueError, match="slider 'step' has no positions"):
        widgets.explore({}, {"step": []})


def frames():
    return np.random.RandomState(0).randint(0, 90, (F, 3, 96, 96), dtype=np.uint8)


def maps(*shape, seed=1):
    values = np.random.RandomState(seed).rand(*shape, F, 6, 6) ** 4
    return values / values.sum((-3, -2, -1), keepdims=True)


def gaze():
    """Words of which two differ in their map only, and two in their probability only."""
    values = maps(T)
    values[3] = values[2]
    return widgets.gaze(frames(), ["word"] * T, {"teacher": values}, {"teacher": [0.5, 0.5, 0.1, 0.9]})


def modules():
    images = {f"layer {k}": np.random.RandomState(k).randn(F, 20, 6, 6) for k in range(4)}
    return widgets.modules(frames(), images, {"layer 1": 0.5})


def tree():
    """A search of two steps, and its first step alone."""
    first = {name: values[trace()["step"] == 0] for name, values in trace().items()}
    return widgets.tree({"short": first, "long": trace()}, VOCABULARY)


def board():
    captions = {10: ["a cup"], 20: ["a red cup"], 30: ["a red cup"]}
    return widgets.board({"loss": {"KL": ([10, 20, 30], [3.0, 2.0, 1.0])}}, captions, log=("loss",))


EXPLORERS = {
    "gaze": (gaze, T),
    "heads": (lambda: widgets.heads(frames(), WORDS, maps(L, H, T)), L * H * T),
    "frame_words": (lambda: widgets.frame_words(frames(), WORDS, maps(T)), F * T),
    "modules": (modules, 4 * F * 2),
    "tree": (tree, 3),  # the short search stays complete
    "board": (board, 3),
}


@pytest.mark.parametrize("name", EXPLORERS)
def test_every_position_of_an_explorer_is_another_picture_and_comes_within_50_ms(name):
    make, different = EXPLORERS[name]
    seen, times = visit(make())
    assert len(set(seen.values())) == different
    assert (max if name in ("tree", "board") else median)(times) < 0.05  # these two are drawn beforehand
    print(f"{name}: {1000 * median(times):.0f} ms, at most {1000 * max(times):.0f} ms")  # pytest -rP shows it
    assert pixels(seen[max(seen)]).shape[1] <= 1100


def lit(card, left, top, width, height):
    """The middle of a place, as colours between 0 and 1."""
    return pixels(card)[round(top + height / 2), round(left + width / 2)] / 255


@pytest.mark.parametrize("word", ["a\nb", "\x1b[2J", "$x$", "<b>"])
def test_explorers_show_any_word(word):
    widgets.gaze(black(), [word, "b", "c"], {"t": attention()})
    widgets.frame_words(black(), [word, "b", "c"], attention())


def test_the_word_card_lights_one_cell_and_signs_the_difference():
    rows = {"teacher": np.zeros((F, 4, 4)), "student": np.zeros((F, 4, 4))}
    rows["teacher"][1, 2, 3] = rows["student"][0, 0, 0] = 1
    card = plots.word_card(BLACK, "cup", rows)
    x, y, cell = 150 + cards.SIDE + 8, 62, cards.SIDE / 4
    bright = lit(card, x + 3 * cell, y + 2 * cell, cell, cell)
    dark = lit(card, x + cell, y + 2 * cell, cell, cell)
    assert bright.mean() > 0.5 > 0.2 > dark.mean()
    below = y + 2 * (cards.SIDE + 12)  # the difference
    plus = lit(card, x + 3 * cell, below + 2 * cell - 8, cell, cell)
    minus = lit(card, 150, below - 8, cell, cell)
    assert plus[2] > plus[1] and minus[0] > minus[2]  # purple above zero, orange below
    alone = plots.word_card(BLACK, "cup", rows, difference=False)
    assert len(pixels(card)) - len(pixels(alone)) == cards.SIDE + 12


def test_the_word_card_gives_each_row_its_scale_and_outlines_what_is_named():
    rows = {"teacher": np.zeros((F, 4, 4)), "student": np.zeros((F, 4, 4))}
    rows["teacher"][1, 2, 3], rows["student"][0, 0, 0] = 0.01, 1
    mask = np.zeros((F, 96, 96), bool)
    mask[1, 48:72, 24:48] = True  # a cell
    plain = plots.word_card(BLACK, "cup", rows, difference=False)
    outlined = plots.word_card(BLACK, "cup", rows, difference=False, mask=mask)
    x, y, cell = 150 + cards.SIDE + 8, 62, cards.SIDE / 4
    assert lit(plain, x + 3 * cell, y + 2 * cell, cell, cell).mean() > 0.5
    changed = np.abs(pixels(outlined, "L") - pixels(plain, "L"))[:190] > 50
    rows, columns = (np.nonzero(changed.any(axis))[0][[0, -1]] for axis in (1, 0))
    assert abs(rows - (y + cell * np.array([2, 3]))).max() <= 3
    assert abs(columns - (x + cell * np.array([1, 2]))).max() <= 3


def test_the_head_card_enlarges_the_chosen_head():
    values = np.zeros((L, H, 6, 6))
    values[1, 2, 0, 5] = 1.0
    one, other = (plots.head_card(BLACK[0], "cup", values, *chosen) for chosen in ((1, 2), (0, 0)))
    left, cell, step = 110 + (cards.THUMB + 8) * H + 60, cards.LARGE / 6, cards.THUMB / 6
    place = left + 5 * cell, 62, cell, cell
    assert lit(one, *place).mean() > 0.5 > 0.2 > lit(other, *place).mean()
    small = 80 + 2 * (cards.THUMB + 8) + 5 * step, 62 + cards.THUMB + 14, step, step
    assert lit(other, *small).mean() > 0.4


def test_the_frame_word_card_shows_where_the_mass_is():
    values = np.zeros((T, F, 6, 6))
    values[:, 0, 0, 0] = 1.0
    values[2, 0], values[2, 1, 5, 5] = 0, 1.0
    card = plots.frame_word_card(BLACK, WORDS, values, 2, 1)
    full, empty = (lit(card, 130 + 2 * 62, y, 30, 20) for y in (62 + 64, 62))
    assert full.mean() > empty.mean() + 0.3
    cell = cards.LARGE / 6
    assert lit(card, 140 + 62 * T + 10 + 5 * cell, 62 + 5 * cell, cell, cell).mean() > 0.5


def test_the_module_card_orders_channels_by_strength():
    values = np.zeros((20, 16, 16))
    values[13], values[4, :, :8] = 2.0, -1.0
    table = [("layer", "1 x 20 x 16 x 16", 0.0, 1.0, 0.9, 0.5)]
    card = plots.module_card(BLACK[0], table, 0, values)
    first, second = lit(card, 666, 30, 102, 102), lit(card, 666 + 108, 30, 51, 102)
    assert first[2] > first[1] and second[0] > second[2]
    assert plots.module_card(BLACK[0], table, 0, values, page=1) != card
