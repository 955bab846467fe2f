"""Sliders over pictures drawn beforehand."""

import io
import time

import numpy as np
import pytest
from PIL import Image

from gitdistill import plots
from gitdistill.widgets import Explorer, explore, png

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
