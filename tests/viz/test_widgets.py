"""Sliders over pictures drawn beforehand."""

import io
import time
from itertools import product
from statistics import median

import numpy as np
import pytest
from PIL import Image

from gitdistill.viz import plots, widgets
from gitdistill.viz.plots import cards
from gitdistill.viz.widgets import Explorer, explore, png

AXES = {"word": ["a", "red", "a"], "layer": [0, 1]}
POSITIONS = [(word, layer) for word in range(3) for layer in range(2)]


def draw(word, layer):
    return plots.budget({"part": 1 + word, "rest": 1 + 5 * layer})


def shown(widget):
    return bytes(widget.picture.value)


def visit(widget):
    """The bytes at every position of every slider."""
    seen = {}
    for word, layer in POSITIONS:
        widget.sliders["word"].value, widget.sliders["layer"].value = word, layer
        seen[word, layer] = shown(widget)
    return seen


def test_every_position_shows_its_own_picture():
    frames = {at: png(draw(*at)) for at in POSITIONS}
    widget = explore(frames, AXES)
    assert isinstance(widget, Explorer)
    assert shown(widget) == frames[0, 0]
    assert visit(widget) == frames
    assert len(set(frames.values())) == 6
    assert widget.children == (*widget.sliders.values(), widget.picture)


def test_figures_and_functions_work_alike():
    by_figure = explore({(k,): draw(k, 0) for k in range(2)}, {"word": ["a", "red"]})
    by_function = explore(lambda k: draw(k, 0), {"word": ["a", "red"]})
    for k in (1, 0):
        by_figure.sliders["word"].value = by_function.sliders["word"].value = k
        assert shown(by_figure) == shown(by_function) == png(draw(k, 0))


def test_a_function_draws_lazily_and_once():
    calls = []

    def counted(*at):
        calls.append(at)
        return bytes(at)

    widget = explore(counted, AXES)
    assert calls == [(0, 0)]
    visit(widget)
    visit(widget)
    assert sorted(calls) == POSITIONS


def test_equal_labels_stay_different_positions():
    widget = explore(lambda word, layer: bytes([word, layer]), AXES)
    slider = widget.sliders["word"]
    assert slider.continuous_update
    for position in (2, 0, 2, 1):
        slider.index = position  # as the arrow keys do
        assert slider.value == position and shown(widget) == bytes([position, 0])


def test_a_play_button_moves_its_slider_and_starts_from_where_it_is():
    frames = {at: png(draw(*at)) for at in POSITIONS}
    widget = explore(frames, AXES, play="word")
    assert widget.player.max == 2
    widget.player.value = 2  # as it does by itself
    assert widget.sliders["word"].value == 2 and shown(widget) == frames[2, 0]
    widget.sliders["word"].value = 1
    assert widget.player.value == 1 and shown(widget) == frames[1, 0]
    row, layer, picture = widget.children
    assert row.children == (widget.sliders["word"], widget.player)
    assert (layer, picture) == (widget.sliders["layer"], widget.picture)


def test_a_slider_answers_within_50_ms():
    frames = {(k,): np.random.RandomState(k).bytes(200_000) for k in range(20)}
    widget = explore(frames, {"step": list(range(20))})
    times = []
    for position in range(1, 20):
        start = time.perf_counter()
        widget.sliders["step"].value = position
        times.append(time.perf_counter() - start)
    assert sorted(times)[len(times) // 2] < 0.05


def test_an_error_in_a_picture_reaches_the_reader():
    def broken(position):
        if position:
            raise RuntimeError("no such map")
        return b"first"

    widget = explore(broken, {"step": [0, 1]})
    with pytest.raises(RuntimeError, match="no such map"):
        widget.sliders["step"].value = 1


def test_clear_messages():
    with pytest.raises(ValueError, match=r"1 of 2 pictures are missing, the first at \(1,\)"):
        explore({(0,): b""}, {"step": [0, 1]})
    with pytest.raises(ValueError, match="slider 'step' has no positions"):
        explore({}, {"step": []})


def test_png_is_an_image_of_the_figures_size():
    image = Image.open(io.BytesIO(png(draw(0, 0))))
    assert image.format == "PNG" and image.width == 720


# -- the explorers, each with every one of its positions


WORDS = ["a", "red", "cup", "moves"]
F, T, L, H = 3, len(WORDS), 2, 4


def frames():
    return np.random.RandomState(0).randint(0, 90, (F, 3, 96, 96), dtype=np.uint8)


def maps(*shape, seed=1):
    values = np.random.RandomState(seed).rand(*shape, F, 6, 6) ** 4
    return values / values.sum((-3, -2, -1), keepdims=True)


def searches():
    """Two made-up searches of two and three steps."""
    found = {}
    for beams in (1, 2):
        rows = [
            (
                step,
                0,
                10 + step + rank,
                -step - rank / 2,
                rank if rank < beams else -1,
                rank < beams,
                False,
                np.nan,
                0,
            )
            for step in range(beams + 1)
            for rank in range(3)
        ]
        names = ("step", "parent", "token", "score", "beam", "kept", "finished", "final", "clip")
        found[f"{beams} beams"] = {name: np.array(column) for name, column in zip(names, zip(*rows))}
    return found


EXPLORERS = {
    "gaze": lambda: widgets.gaze(frames(), ["word"] * T, {"teacher": maps(T), "student": maps(T, seed=2)}),
    "heads": lambda: widgets.heads(frames(), WORDS, maps(L, H, T)),
    "frame_words": lambda: widgets.frame_words(frames(), WORDS, maps(T)),
    "modules": lambda: widgets.modules(
        frames(),
        {f"stage {k}": np.random.RandomState(k).randn(F, 20, 6, 6) for k in range(4)},
        {"stage 1": 0.5},
    ),
}


@pytest.mark.parametrize("name", EXPLORERS)
def test_every_position_of_an_explorer_is_another_picture_and_comes_within_50_ms(name):
    widget = EXPLORERS[name]()
    positions = list(product(*(range(len(slider.options)) for slider in widget.sliders.values())))
    seen, times = {}, []
    for at in positions:
        start = time.process_time()
        for slider, value in zip(widget.sliders.values(), at):
            slider.value = value
        times.append(time.process_time() - start)
        seen[at] = shown(widget)
    assert len(set(seen.values())) == len(positions)
    assert median(times) < 0.05
    print(f"{name}: {1000 * median(times):.0f} ms, at most {1000 * max(times):.0f} ms")  # pytest -rP shows it
    assert Image.open(io.BytesIO(seen[positions[-1]])).width <= 1100


def test_the_probability_of_each_word_stands_beside_its_map():
    same = np.repeat(maps(1), T, 0)
    widget = widgets.gaze(frames(), ["word"] * T, {"teacher": same}, {"teacher": np.linspace(0, 1, T)})
    pictures = set()
    for position in range(T):
        widget.sliders["word"].value = position
        pictures.add(shown(widget))
    assert len(pictures) == T


PAINTED = {
    "tree": lambda: widgets.tree(searches(), [str(k) for k in range(30)]),
    "board": lambda: widgets.board({"loss": {"KL": ([1, 2], [3.0, 2.0])}}, {1: ["a cup"], 2: ["a red cup"]}),
}


@pytest.mark.parametrize("name", PAINTED)
def test_what_is_drawn_beforehand_comes_within_50_ms_at_once(name):
    widget, times = PAINTED[name](), []
    for slider in widget.sliders.values():
        for value in reversed(range(len(slider.options))):
            start = time.process_time()
            slider.value = value
            times.append(time.process_time() - start)
    assert max(times) < 0.05


def test_the_tree_grows_in_each_search_and_a_shorter_one_stays_done():
    widget = widgets.tree(searches(), [str(k) for k in range(30)])
    assert [len(slider.options) for slider in widget.sliders.values()] == [2, 3]
    grown = {}
    for search, step in product(range(2), range(3)):
        widget.sliders["search"].value, widget.sliders["step"].value = search, step
        grown[search, step] = shown(widget)
    assert grown[0, 1] == grown[0, 2]  # two steps only
    assert len(set(grown.values())) == 5


def test_the_board_marks_each_moment():
    curve = {"loss": {"KL": ([10, 20, 30], [3.0, 2.0, 1.0])}}
    widget = widgets.board(curve, {10: ["a cup"], 20: ["a red cup"], 30: ["a red cup"]}, log=("loss",))
    pictures = set()
    for position in range(3):
        widget.sliders["step"].value = position
        pictures.add(shown(widget))
    assert len(pictures) == 3


# -- painted pictures: a map that points at one cell lights that cell


def lit(data, left, top, width, height):
    """The middle of a place, as colours between 0 and 1."""
    image = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"), float) / 255
    return image[round(top + height / 2), round(left + width / 2)]


def test_the_word_card_lights_one_cell_and_signs_the_difference():
    black = np.zeros((F, 3, 96, 96), np.uint8)
    teacher, student = np.zeros((F, 4, 4)), np.zeros((F, 4, 4))
    teacher[1, 2, 3], student[0, 0, 0] = 1, 1
    data = plots.word_card(black, "cup", {"teacher": teacher, "student": student})
    x, y, cell = 150 + cards.SIDE + 8, 62, cards.SIDE / 4
    bright = lit(data, x + 3 * cell, y + 2 * cell, cell, cell)
    dark = lit(data, x + cell, y + 2 * cell, cell, cell)
    assert bright.mean() > 0.5 > 0.2 > dark.mean()
    below = y + 2 * (cards.SIDE + 12)  # the difference
    plus = lit(data, x + 3 * cell, below + 2 * cell - 8, cell, cell)
    minus = lit(data, 150, below - 8, cell, cell)
    assert plus[2] > plus[1] and minus[0] > minus[2]  # purple above zero, orange below
    alone = plots.word_card(black, "cup", {"teacher": teacher, "student": student}, difference=False)
    tall, short = (Image.open(io.BytesIO(d)).height for d in (data, alone))
    assert tall - short == cards.SIDE + 12


def test_the_word_card_gives_each_row_its_scale_and_outlines_what_is_named():
    black, faint, strong = np.zeros((F, 3, 96, 96), np.uint8), np.zeros((F, 4, 4)), np.zeros((F, 4, 4))
    faint[1, 2, 3], strong[0, 0, 0] = 0.01, 1
    mask = np.zeros((F, 96, 96), bool)
    mask[1, 48:72, 24:48] = True  # a cell
    rows = {"teacher": faint, "student": strong}
    plain = plots.word_card(black, "cup", rows, difference=False)
    data = plots.word_card(black, "cup", rows, difference=False, mask=mask)
    x, y, cell = 150 + cards.SIDE + 8, 62, cards.SIDE / 4
    assert lit(plain, x + 3 * cell, y + 2 * cell, cell, cell).mean() > 0.5
    changed = np.asarray(Image.open(io.BytesIO(data)).convert("L"), int)
    changed = np.abs(changed - np.asarray(Image.open(io.BytesIO(plain)).convert("L"), int)) > 50
    rows, columns = (np.nonzero(changed[:190].any(axis))[0] for axis in (1, 0))
    assert abs(rows[0] - (y + 2 * cell)) <= 3 and abs(rows[-1] - (y + 3 * cell)) <= 3
    assert abs(columns[0] - (x + cell)) <= 3 and abs(columns[-1] - (x + 2 * cell)) <= 3


def test_the_head_card_enlarges_the_chosen_head():
    black, values = np.zeros((3, 96, 96), np.uint8), np.zeros((L, H, 6, 6))
    values[1, 2, 0, 5] = 1.0
    one, other = plots.head_card(black, "cup", values, 1, 2), plots.head_card(black, "cup", values, 0, 0)
    left, cell = 110 + (cards.THUMB + 8) * H + 60, 280 / 6
    place = left + 5 * cell, 62, cell, cell
    assert lit(one, *place).mean() > 0.5 > 0.2 > lit(other, *place).mean()
    small = (
        80 + 2 * (cards.THUMB + 8) + 5 * cards.THUMB / 6,
        62 + cards.THUMB + 14,
        cards.THUMB / 6,
        cards.THUMB / 6,
    )
    assert lit(other, *small).mean() > 0.4


def test_the_frame_word_card_shows_where_the_mass_is():
    black, values = np.zeros((F, 3, 96, 96), np.uint8), np.zeros((T, F, 6, 6))
    values[:, 0, 0, 0] = 1.0
    values[2, 0], values[2, 1, 5, 5] = 0, 1.0
    data = plots.frame_word_card(black, WORDS, values, 2, 1)
    full, empty = lit(data, 130 + 2 * 62, 62 + 64, 30, 20), lit(data, 130 + 2 * 62, 62, 30, 20)
    assert full.mean() > empty.mean() + 0.3
    cell = 280 / 6
    assert lit(data, 140 + 62 * T + 10 + 5 * cell, 62 + 5 * cell, cell, cell).mean() > 0.5


def test_the_module_card_orders_channels_by_strength():
    black, values = np.zeros((3, 96, 96), np.uint8), np.zeros((20, 16, 16))
    values[13] = 2.0
    values[4, :, :8] = -1.0
    table = [("stage", "1 x 20 x 16 x 16", 0.0, 1.0, 0.9, 0.5)]
    data = plots.module_card(black, table, 0, values)
    first, second = lit(data, 666, 30, 102, 102), lit(data, 666 + 108, 30, 51, 102)
    assert first[2] > first[1] and second[0] > second[2]
    assert plots.module_card(black, table, 0, values, page=1) != data
