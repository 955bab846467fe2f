"""Pictures of what a network knows at one word: its distribution by temperature, and what it reads."""

import numpy as np
from plot_inputs import VOCABULARY, texts

from gitdistill.viz import plots

HEAT = np.array([0.5, 1.0, 2.0])
SURE = np.array([[0, 0, 0, 0.5, 0.25, 0.25, 0]] * 3)  # 1.5 bits
EVEN = np.full((3, 7), 1 / 7)


def test_temperatures_stack_the_first_networks_words_and_print_the_entropy_where_marked():
    figure = plots.temperatures(HEAT, {"teacher": SURE, "student": EVEN}, VOCABULARY, {1.0: "here"}, count=2)
    teacher, student, bits, more = figure.axes
    # the tops of bell, wheel, and all other words
    for axes, expected in ((teacher, [0.5, 0.75, 1]), (student, [1 / 7, 2 / 7, 1])):
        tops = [area.get_paths()[0].vertices[:, 1].max() for area in axes.collections]
        assert np.allclose(tops, expected)
    colours = [[area.get_facecolor().tolist() for area in axes.collections] for axes in (teacher, student)]
    assert colours[0] == colours[1] and len(set(map(str, colours[0]))) == 3
    assert np.allclose(bits.lines[0].get_ydata(), 1.5) and np.allclose(more.lines[0].get_ydata(), np.log2(7))
    assert {"bell", "wheel", "all other words", "here", "1.5", "2.8"} <= set(texts(figure))
    assert "star" not in texts(figure) and teacher.get_xscale() == "log"
    assert len({area.get_hatch() for area in teacher.collections[:2]}) == 2


def test_flow_leads_from_each_source_to_each_word_as_thick_as_the_share():
    shares = np.array([[0.5, 0.25, 0.25], [0.0, 0.125, 0.875]])
    layers = {"layer 0": shares, "layer 1": shares[::-1]}
    figure = plots.flow(layers, ["cup", "bell", "rest"], ["a", "cup"], 2)
    first, last = figure.axes
    for axes, values in ((first, shares), (last, shares[::-1])):
        ribbons = [patch.get_path().vertices for patch in axes.patches]
        thick = [(np.ptp(v[v[:, 0] == 0, 1]), np.ptp(v[v[:, 0] == 1, 1])) for v in ribbons]
        assert np.allclose(np.array(thick).reshape(2, 3, 2), values[..., None])
    ribbons = [patch.get_path().vertices for patch in first.patches]
    ends = np.array([[v[v[:, 0] == x, 1].min() for x in (0, 1)] for v in ribbons])
    left, right = ends.reshape(2, 3, 2).transpose(2, 0, 1)
    assert (np.diff(right.ravel()) >= 0).all() and (np.diff(left.T.ravel()) >= 0).all()  # none over another
    looks = [(patch.get_facecolor(), patch.get_hatch()) for patch in first.patches]
    assert looks[:3] == looks[3:] and len(set(looks)) == 3
    assert texts(figure).count("cup") == 3 and texts(figure).count("bell") == 1  # a word twice, sources once
