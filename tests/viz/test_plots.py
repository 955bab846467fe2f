"""Pictures: known arrays in, known marks out."""

import io
import subprocess
import sys
from itertools import combinations

import matplotlib as mpl
import numpy as np
import pytest
import tiny
import torch
from fakes import TableModel, clips
from matplotlib.colors import to_rgb
from PIL import Image
from plot_inputs import VOCABULARY, WORDS, attention, black, frames, pixels, pointer, texts, trace
from transformers import GitConfig

from gitdistill.decoding import beam
from gitdistill.models.git import GenerativeImageTextModel
from gitdistill.viz import plots
from gitdistill.viz.plots import style

RUNS = [
    ("teacher", "greedy", 40.0, 5.2, 4_000_000),
    ("student", "greedy", 10.0, 4.6, 500_000),
    ("student", "4 beams", 15.0, 4.5, 500_000),
    ("slow", "4 beams", 60.0, 4.0, 4_000_000),
]
ROWS = [dict(zip(("network", "search", "ms", "score", "parameters"), run)) for run in RUNS]
ALIKE = np.array([[0.9, 0.2, 0.4], [0.1, 0.3, 0.55]])
WHY = {"trained": {"raw attention": np.eye(4), "rollout": np.eye(4)[::-1]}}
BOARDS = {
    "teacher": {"object": (0.9, 0.8, 0.95, 120), "colour": (0.7, 0.6, 0.8, 100)},
    "student": {"object": (0.5, 0.45, 0.55, 120), "colour": (0.4, 0.3, 0.5, 100)},
}
PANELS = {"losses": {"KL": ([10, 20, 30], [3.0, 2.0, 1.0])}, "CIDEr": {"student": ([], [])}}
CAPTIONS = {10: ["a cup moves"], 20: ["a red cup"], 30: ["a red plane"]}
COLOURS = torch.rand(9, 6, 6, 3, generator=torch.manual_seed(2))
RIBBON = {"greedy": (["a", "cup"], ["a", "bell", "moves"], [0.75, 0.1]), "sampled": (["a"], ["a"], [0.5])}
PICTURES = {
    "architecture": (tiny.git(), tiny.student(), True),
    "film": (frames(), None, "a bell"),
    "token_mask": (np.tri(6) > 0, [("text", 6)]),
    "budget": ({"encoder": 2_000_000, "decoder": 500},),
    "gaze": (frames(), WORDS, {"teacher": attention()}),
    "frame_word_map": (attention(), WORDS, frames()),
    "flow": ({"layer 0": np.full((3, 2), 0.5)}, ["cup", "background"], WORDS, 1),
    "heads": (attention(2, 3), frames()[0]),
    "feature_maps": (frames()[0], {"layer": attention(2, 8)[0]}),
    "overview": (frames(), {"teacher": ("a red bell", WORDS, attention())}),
    "curves": ({"loss": ([0, 1, 2], [3.0, 2.0, 1.0])},),
    "scores": ({"teacher": {"CIDEr": 5.0}},),
    "pareto": (ROWS,),
    "beam_tree": (trace(), VOCABULARY),
    "similarity": (ALIKE, ["a", "b"], ["x", "y", "z"]),
    "components": (frames(9), {"teacher": COLOURS}, [0.3, 0.2, 0.1]),
    "explanations": (frames()[0], WHY, {"trained": {"rollout": 0.5}}),
    "effects": ([[1.0, -0.2]], ["cut"], ["a", "bell"]),
    "lens": ([["two", "bell"], ["a", "bell"]], [[0.1, 0.9], [0.6, 1.0]], ["first", "last"], ["a", "bell"]),
    "pointing_game": (BOARDS, {"object": 0.1, "colour": 0.12}),
    "pointing_examples": (frames(2), attention(2, 1)[:, 0], torch.ones(2, 24, 24), ["a", "b"]),
    "board": (PANELS, CAPTIONS, 20),
    "ribbon": (RIBBON,),
    "temperatures": ([0.5, 1.0], {"teacher": np.full((2, 7), 1 / 7)}, VOCABULARY, {1.0: "here"}),
    "drafts": ([(["a", "bell"], ["a", "cup"])],),
    "dots": ({"one": {"CIDEr": [1.0, 2.0]}},),
    "word_map": ({"teacher": np.eye(3)[:, :2], "distilled": -np.eye(3)[:, :2]}, WORDS),
}


def draw(name, title=None):
    return getattr(plots, name)(*PICTURES[name], title=title)


def images(figure):
    """The arrays of all images but colour bars."""
    return [image.get_array() for axes in figure.axes for image in axes.images]


def lit(image):
    """How pink an image is: attention over a photo without much red."""
    return np.asarray(image[..., 0] - image[..., 1])


@pytest.mark.parametrize("name", PICTURES)
def test_every_picture_is_drawn_fits_and_says_what_it_shows(name):
    figure = draw(name, "The finding")
    image = pixels(figure)
    assert image.std() > 5 and image.shape[1] <= 880
    edges = image[[0, -1]], image[:, [0, -1]]
    assert (edges[0] == 255).all() and (edges[1] == 255).mean() > 0.9  # nothing runs off the edge
    assert "The finding" in texts(figure) and figure.alt.endswith(": The finding")
    assert not any(text.get_parse_math() for text in figure.findobj(mpl.text.Text) if text.get_text())


def test_a_caption_is_no_formula():
    words, odd = ["$", r"$\frac", "b$"], r"$\frac$ costs $5"
    figure = plots.gaze(frames(), words, {odd: attention()}, title=odd)
    assert {odd, *words} <= set(texts(figure)) | {word for text in texts(figure) for word in text.split()}
    assert pixels(figure).std() > 5 and pixels(plots.scores({odd: {odd: 5.0}})).std() > 5


def test_the_same_picture_gives_the_same_bytes_whatever_the_users_style():
    figure = draw("heads")
    expected = plots.png(figure)
    assert figure.alt == "Attention of every head"  # without a title
    with mpl.rc_context({"font.size": 20, "axes.facecolor": "black", "figure.dpi": 200}):
        assert plots.png(figure) == expected == plots.png(draw("heads"))
        assert mpl.rcParams["font.size"] == 20


def test_a_story_writes_word_by_word_and_marks_what_is_false():
    maps = np.zeros((2, 2, 3, 3))
    maps[:, :, 0, 0] = 1.0
    told = {"a": (["a", "cup"], maps, [False, True]), "b": (["bell"], maps[:1], [False])}
    images = [pixels(one) for one in plots.story(black(2), told, repeats=1)]
    assert len(images) == 3 and len({image.shape for image in images}) == 1
    channels = [np.moveaxis(image, -1, 0) for image in images]
    pink = [int(((r > 180) & (g < 40) & (b > 90)).sum()) for r, g, b in channels]
    red = [int(((r > 150) & (g < 60) & (b < 60)).sum()) for r, g, b in channels]
    assert pink[0] > 1.8 * pink[1] > 0 == pink[2]  # two maps, one, and none at the end
    assert red[0] == 0 < red[1] == red[2]
    with pytest.raises(ValueError, match="wrong words of a must hold 2 entries, got 1"):
        plots.story(black(2), {"a": (["a", "cup"], maps, [True])})


def test_pyplot_and_models_stay_out():
    code = "import sys, gitdistill.viz.plots as p, gitdistill.viz.explorers\np.png(p.budget({'a': 1}))\n"
    code += "print([m for m in ('matplotlib.pyplot', 'torch', 'gitdistill.models') if m in sys.modules])"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert run.stdout.strip() == "[]", run.stderr


def test_a_notebook_shows_the_picture_with_alternative_text(monkeypatch):
    shown = []
    monkeypatch.setattr("IPython.display.display", lambda data, metadata, raw: shown.append((data, metadata)))
    figure = draw("budget", "Half")
    figure._ipython_display_()
    ((data, metadata),) = shown
    assert data["image/png"] == plots.png(figure) and data["text/plain"].startswith("<Picture size")
    width, height = (int(80 * inches) for inches in figure.get_size_inches())
    assert metadata == {"image/png": {"alt": "Parameters: Half", "width": width, "height": height}}
    assert Image.open(io.BytesIO(data["image/png"])).size == (2 * width, 2 * height)


def test_a_small_png_keeps_a_rare_bright_colour():
    figure = plots.heads(pointer((4, 12, 6, 6), (2, 5, 1, 1)), frames(1, 96)[0] // 4)
    full = io.BytesIO()
    figure.savefig(full, dpi=2 * figure.dpi)
    assert abs(pixels(plots.png(figure)) - pixels(full.getvalue())).max() <= 16
    assert len(plots.png(figure)) < full.tell() / 1.3


TEACHER, ODDS, SMALL = {"teacher": attention()}, np.ones((2, 7)), np.ones((1, 2, 2))
MISTAKES = {
    r"odds of a must be \[3, V\], got \[2, 7\]": lambda: plots.temperatures(
        [1, 2, 3], {"a": ODDS}, VOCABULARY, {}
    ),
    r"shares of a must be \[3, 1\], got \[2, 7\]": lambda: plots.flow({"a": ODDS}, ["cup"], WORDS, 1),
    "s of one holds NaN": lambda: plots.dots({"one": {"s": [np.nan]}}),
    r"frames must be \[F, 3, H, W\], got \[4, 24, 24\]": lambda: plots.film([torch.zeros(4, 24, 24)]),
    "raw frames, not normalised": lambda: plots.film(torch.randn(4, 3, 24, 24)),
    r"teacher must be \[2, 4, h, w\], got \[3, 4, 6, 6\]": lambda: plots.gaze(frames(), WORDS[:2], TEACHER),
    "^rows: attention holds NaN": lambda: plots.gaze(frames(), WORDS, {"attention": attention() * np.nan}),
    "two rows, got 1": lambda: plots.gaze(frames(), WORDS, TEACHER, difference=True),
    r"mask must be \[4, 24, 24\]": lambda: plots.gaze(frames(), WORDS, TEACHER, masks=[SMALL] * 3),
    "masks must hold 3 entries": lambda: plots.gaze(frames(), WORDS, TEACHER, masks=[None]),
    "NaN": lambda: plots.heads(torch.full((1, 1, 2, 2), torch.nan), frames()[0]),
    "groups hold 5 tokens": lambda: plots.token_mask(np.ones((6, 6)), [("text", 5)]),
    "clip 3 is not in the trace": lambda: plots.beam_tree(trace(), VOCABULARY, clip=3),
    "empty: nothing to draw": lambda: plots.curves({}),
    "give a student": lambda: plots.architecture(tiny.git(), losses=True),
    "random must hold the methods": lambda: plots.explanations(frames()[0], WHY | {"random": {}}),
}


@pytest.mark.parametrize("message", MISTAKES)
def test_mistakes_are_named(message):
    with pytest.raises(ValueError, match=message):
        MISTAKES[message]()


def test_overlay_colours_the_one_cell_it_should():
    image = style.overlay(np.ones((24, 24, 3)), pointer((6, 6), (1, 4)), style.amounts(np.ones(1)))
    expected = np.zeros((24, 24), bool)
    expected[4:8, 16:20] = True
    assert ((image @ style.LUMA < 0.5) == expected).all()
    assert np.allclose(image[4, 16], 0.92 * np.array(style.HEAT(1.0)[:3]) + 0.08)  # opacity 0.92
    assert (image[0, 0] == 1).all()  # the photo itself


def test_overlay_leaves_a_photo_its_colours_but_paler():
    photo = np.zeros((12, 12, 3))
    photo[..., 1] = 1.0
    image = style.overlay(photo, pointer((3, 3), (0, 0)), style.amounts(np.ones(1)))
    assert np.allclose(image[-1, -1], (0.45, 1, 0.45))


def test_overlay_of_a_difference_is_pale_at_zero_and_dark_at_both_ends():
    values = np.array([[1.0, 0.0], [0.0, -1.0]])
    image = style.overlay(np.ones((8, 8, 3)), values, style.differences(values))
    luma = image @ style.LUMA
    assert luma[0, 0] < 0.4 and luma[-1, -1] < 0.5 and luma[0, -1] > 0.9
    # purple above, orange below
    assert image[0, 0, 2] > image[0, 0, 1] and image[-1, -1, 0] > image[-1, -1, 2]


def test_gaze_puts_each_word_and_frame_in_its_place():
    values = pointer((3, 4, 6, 6), (2, 1, 5, 0))
    values[0, 0, 0, 0] = values[1, 3, 2, 2] = 0.25
    shown = black()
    shown[:, 0] = 255
    figure = plots.gaze(shown, WORDS, {"teacher": values}, [0.1, 0.2, 0.9])
    (image,) = images(figure)
    step = 24 + 2  # a tile and the gap
    assert image.shape == (4 * step - 2, 4 * step - 2, 3)  # the frames and three words; four frames
    assert (image[:24, :24] == (1.0, 0.0, 0.0)).all()  # the frames in colour
    pink = lit(image)[:, step:]
    y, x = np.unravel_index(pink.argmax(), pink.shape)
    assert (y // step, x // step) == (1, 2)  # second frame, third word
    assert (y % step // 4, x % step // 4) == (5, 0)  # lower left cell
    corners = {patch.get_xy() for patch in figure.axes[0].patches}
    assert corners == {(step - 0.5, -0.5), (2 * step + 7.5, 3 * step + 7.5), (3 * step - 0.5, step + 19.5)}
    assert {"a\n0.10", "red\n0.20", "bell\n0.90", "teacher", "frame 4"} <= set(texts(figure))


def test_gaze_gives_each_model_its_scale_and_marks_the_sign_of_a_difference():
    strong, weak = pointer((3, 4, 6, 6), (1, 2, 3, 4)), pointer((3, 4, 6, 6), (2, 0, 0, 5)) / 2
    figure = plots.gaze(frames(), WORDS, {"teacher": strong, "student": weak}, difference=True)
    labels = [text for text in texts(figure) if text in ("teacher", "student", "teacher\nminus student")]
    assert labels == ["teacher", "student", "teacher\nminus student"]
    bars = [axes for axes in figure.axes if axes.get_ylabel().startswith(("attention", "difference"))]
    assert [axes.get_ylim() for axes in bars] == [(0.0, 1.0), (0.0, 0.5), (-1.0, 1.0)]
    panel = next(axes for axes in figure.axes if len(axes.collections) == 2 and axes.images)
    plus, minus = (collection.get_offsets().tolist() for collection in panel.collections)
    step = 26
    assert plus == [[2 * step + 17.5, 2 * step + 13.5]]  # the middle of a cell of 4 x 4 pixels
    assert minus == [[3 * step + 21.5, 1.5]]


def test_gaze_outlines_what_a_word_names_in_every_frame():
    masks = [None, np.zeros((4, 24, 24), bool), None]
    masks[1][:, 8:16, 4:12] = True
    figure = plots.gaze(frames(), WORDS, {"teacher": attention()}, masks=masks)
    lines = [c for axes in figure.axes for c in axes.collections if type(c).__name__ == "QuadContourSet"]
    boxes = {tuple(line.get_paths()[0].get_extents().get_points().mean(0).round()) for line in lines}
    assert boxes == {(2 * 26 + 8, f * 26 + 12) for f in range(4)}  # the middle of the thing, second word


def test_gaze_puts_two_models_side_by_side_where_words_are_few():
    two = {"teacher": attention(1), "student": attention(1)}
    places = [axes.get_position() for axes in plots.gaze(frames(), WORDS[:1], two).axes if axes.images]
    assert places[0].y0 == pytest.approx(places[1].y0) and places[0].x1 < places[1].x0
    three = plots.gaze(frames(), WORDS[:1], two | {"plain": attention(1)})
    places = [axes.get_position() for axes in three.axes if axes.images]
    assert places[2].y1 < places[0].y0 and places[2].x0 == pytest.approx(places[0].x0)


def test_gaze_wraps_long_captions_and_takes_two_grids():
    words = [f"w{k}" for k in range(9)]
    figure = plots.gaze(frames(1), words, {"teacher": attention(9, 1, 14), "student": attention(9, 1, 6)})
    panels = [[t.get_text() for t in axes.get_xticklabels()] for axes in figure.axes if axes.images]
    assert panels == [["", *words[:6]]] * 2 + [["", *words[6:]]] * 2  # two lines of two models


def test_frame_word_map_adds_up_and_prints_what_is_large():
    values = np.zeros((2, 3, 2, 2))
    values[0, 1] = 5.0  # all on the second frame
    values[1, 0, 0, 0], values[1, 2, 1, 1] = 3.0, 1.0  # three quarters on the first
    figure = plots.frame_word_map({"teacher": values, "student": values}, ["a", "bell"], frames(3))
    for axes in figure.axes[1:3]:
        assert axes.collections[0].get_array().reshape(3, 2).tolist() == [[0, 0.75], [1, 0], [0, 0.25]]
        printed = {(t.get_position(), t.get_text()) for t in axes.texts}
        assert printed == {((0.5, 1.5), "1.00"), ((1.5, 0.5), "0.75")}


def test_heads_light_the_right_layer_and_head():
    figure = plots.heads(pointer((2, 3, 6, 6), (1, 2, 0, 5)), black()[0])
    image = lit(images(figure)[0])
    y, x = np.unravel_index(image.argmax(), image.shape)
    step = 24 + 24 // 5
    assert (y // step, x // step, y % step // 4, x % step // 4) == (1, 2, 0, 5)
    assert {"layer 1", "head 2", "100%", "0%"} <= set(texts(figure))
    even = torch.full((2, 3, 6, 6), 1 / 36)
    assert not any("%" in text for text in texts(plots.heads(even, frames()[0])))


def test_overview_shows_for_each_word_the_frame_with_most_of_its_attention():
    values = pointer((2, 4, 6, 6), (0, 2, 1, 4)) + pointer((2, 4, 6, 6), (1, 0, 5, 0))
    models = {"teacher": ("a red bell", WORDS[1:], values)}
    models["student"] = "a bell", WORDS[2:], attention(1, 4, 3)
    figure = plots.overview(black(), models)
    clip, teacher, student = images(figure)
    step = 24 + 2  # a tile and the gap
    assert clip.shape[:2] == (2 * step - 2, 2 * step - 2)
    assert teacher.shape == student.shape == (24, 2 * step - 2, 3)
    pink = lit(teacher)
    assert pink[4, 16] > 0.5 and pink[20, step] > 0.5 and np.median(pink) < 0.1
    assert [patch.get_xy() for patch in figure.axes[1].patches][::2] == [(15.5, 3.5), (step - 0.5, 19.5)]
    assert (student[:, step:] == 1).all()  # no second word
    assert {"teacher\na red bell", "student\na bell", "red", "frame 3", "frame 1"} <= set(texts(figure))


def test_explanations_light_their_cell_and_print_their_agreement():
    maps = {"raw attention": pointer((6, 6), (1, 4)), "occlusion": pointer((6, 6), (5, 0)) - 0.5}
    figure = plots.explanations(black()[0], {"trained": maps}, {"trained": {"raw attention": -0.25}})
    raw, covered = (axes for axes in figure.axes if axes.patches)
    assert raw.get_title() == "raw attention" and covered.get_title() == "occlusion"
    assert {patch.get_xy() for patch in raw.patches} == {(15.5, 3.5)}
    assert {patch.get_xy() for patch in covered.patches} == {(-0.5, 19.5)}
    pink = lit(covered.images[0].get_array())
    assert pink[20, 0] > 0.5 and np.median(pink) == 0  # negative values count as 0
    assert raw.get_xlabel() == "\u22120.25" and covered.get_xlabel() == ""


def test_pointing_game_puts_each_model_at_its_scores_with_their_intervals_and_chance():
    kinds = ("object", "colour")
    others = {name: dict.fromkeys(kinds, (0.1 * k, 0.0, 0.5, 9)) for k, name in enumerate(BOARDS)}
    (axes,) = plots.pointing_game(BOARDS, {"object": 0.11, "colour": 0.2}, others=others).axes
    marks = [container.lines[0] for container in axes.containers]
    named, other = marks[::2], marks[1::2]
    assert [line.get_xdata().tolist() for line in named] == [[0.9, 0.7], [0.5, 0.4]]
    assert [line.get_xdata().tolist() for line in other] == [[0, 0], [0.1, 0.1]]
    bars = axes.containers[0].lines[2][0].get_segments()
    assert [segment[:, 0].round(6).tolist() for segment in bars] == [[0.8, 0.95], [0.6, 0.8]]
    dashed = [line.get_xdata()[0] for line in axes.lines if line.get_linestyle() == "--"]
    assert dashed == [0.11, 0.2]
    assert len({line.get_marker() for line in marks}) == len({line.get_color() for line in marks}) == 2
    for filled, hollow in zip(named, other):
        assert hollow.get_markerfacecolor() == "white" != filled.get_markerfacecolor()
        assert (filled.get_color(), filled.get_marker()) == (hollow.get_color(), hollow.get_marker())
        assert (hollow.get_ydata() > filled.get_ydata()).all()
    assert [t.get_text() for t in axes.get_yticklabels()] == ["object\n120 words", "colour\n100 words"]
    assert {"90%", "40%", "10%"} <= {t.get_text() for t in axes.texts}


def test_pointing_examples_mark_the_strongest_cell_and_the_middle_of_the_thing():
    mask = np.zeros((24, 24), bool)
    mask[4:8, 12:20] = True
    (axes,) = plots.pointing_examples(frames(1), [pointer((6, 6), (5, 0))], [mask], ["bell"]).axes
    marks = {(line.get_marker(), *line.get_xydata()[0].tolist()) for line in axes.lines}
    assert marks == {("+", 26 + 1.5, 21.5), ("x", 26 + 15.5, 5.5)}  # beside the frame of 24 pixels
    assert axes.get_xlabel() == "bell" and len(axes.collections) == 2  # the outline, black on white


def test_feature_maps_choose_the_strongest_channels():
    values = torch.zeros(5, 3, 3)
    values[3, 1, 2], values[1, 0, 0] = -4.0, 3.0
    figure = plots.feature_maps(frames()[0], {"layer 0": values, "layer 1": torch.randn(6, 2, 2)}, channels=2)
    shown = images(figure)
    assert np.allclose(shown[1], np.linalg.norm(values, axis=0))
    assert np.allclose(shown[2], values[3]) and np.allclose(shown[3], values[1])
    assert {"channel 3 \u2212", "channel 1 +", "layer 0\n5 x 3 x 3"} <= set(texts(figure))
    signed = next(axes for axes in figure.axes if axes.get_title() == "channel 3 \u2212")
    assert signed.images[0].get_clim() == (-4.0, 4.0) and signed.images[0].get_cmap().name == "PuOr"
    assert signed.collections[0].get_offsets().tolist() == [[2.0, 1.0]]  # the minus sign


def test_similarity_prints_the_large_and_rings_the_best_of_each_row():
    figure = plots.similarity({"before": ALIKE, "after": ALIKE[::-1]}, ["a", "b"], ["x", "y", "z"])
    before, after = figure.axes[:2]
    assert np.allclose(before.images[0].get_array(), ALIKE) and before.images[0].get_clim() == (0, 1)
    assert {(t.get_position(), t.get_text()) for t in before.texts} == {((0, 0), ".90"), ((2, 1), ".55")}
    rings = [axes.collections[0].get_offsets().tolist() for axes in (before, after)]
    assert rings == [[[0, 0], [2, 1]], [[2, 0], [0, 1]]]


def test_a_map_writes_a_word_in_all_panels_or_in_none():
    turn = np.linspace(0, 2 * np.pi, 8, endpoint=False)
    apart, words = np.stack([np.cos(turn), np.sin(turn)], 1), [f"word {k}" for k in range(8)]
    crowd = np.where(np.arange(8)[:, None] < 7, 0, [0.15, 0])  # all at one place, the last right of it
    whole, some = (plots.word_map({"teacher": apart, "distilled": x}, words) for x in (apart, crowd))
    for figure, expected in ((whole, words), (some, ["word 0", "word 7"])):  # left and right
        for axes in figure.axes:
            assert [text.get_text() for text in axes.texts] == expected
            boxes = [text.get_window_extent() for text in axes.texts]
            assert not any(one.overlaps(other) for one, other in combinations(boxes, 2))
    dots = [axes.collections[0] for axes in some.axes]
    assert np.allclose(dots[1].get_offsets(), crowd) and some.axes[0].get_xlim() == some.axes[1].get_xlim()
    assert [mpl.colors.to_hex(dot.get_facecolor()[0]).upper() for dot in dots] == list(style.OKABE_ITO[:2])


def test_effects_print_every_number_on_one_scale_around_zero():
    figure = plots.effects({"teacher": [[2.0, -0.25]], "student": [[-0.01, 1.0]]}, ["cut"], ["a", "bell"])
    teacher, student = figure.axes[:2]
    assert [text.get_text() for text in teacher.texts] == ["2.0", "-0.2"] and student.texts[
        0
    ].get_text() == "0.0"
    assert teacher.images[0].get_clim() == student.images[0].get_clim() == (-2.0, 2.0)


def test_nothing_to_draw_is_named():
    maps = {"teacher": np.zeros((0, 2))}
    for name, empty in {
        "lens": ([[]], [[]], ["first"], []),
        "word_map": (maps, []),
        "temperatures": ([], {"teacher": np.zeros((0, 3))}, "abc", {}),
        "flow": ({"layer 0": np.zeros((1, 0))}, [], ["a"], 0),
    }.items():
        with pytest.raises(ValueError, match="is empty"):
            getattr(plots, name)(*empty)


def test_the_lens_marks_the_words_of_the_caption():
    cells = draw("lens").axes[0].texts
    assert [text.get_text() for text in cells] == ["two", "bell", "a", "bell"]
    assert [text.get_fontweight() for text in cells] == ["normal", "bold", "bold", "bold"]


def test_a_network_has_one_colour_and_mark_whatever_stands_beside_it():
    alone = plots.curves({"captions only": ([0, 1], [1.0, 2.0])})
    several = plots.curves({name: ([0, 1], [1.0, 2.0]) for name in ("odd", "captions only", "teacher")})
    lines = [figure.axes[0].lines for figure in (alone, several)]
    looks = [{line.get_label(): (line.get_color(), line.get_marker()) for line in row} for row in lines]
    assert looks[0]["captions only"] == looks[1]["captions only"]
    assert len(set(looks[1].values())) == 3
    bars = plots.scores({"captions only": {"CIDEr": 1.0}}).axes[0].patches
    assert mpl.colors.to_hex(bars[0].get_facecolor()).upper() == looks[0]["captions only"][0]
    alone = plots.style.slots(["distilled student", "same student without distillation"])
    assert list(alone.values()) == [1, 2]  # not the teacher's place, though the teacher is not there
    budget = plots.budget({"captions only": {"all": 1}}).axes[0]
    dots = plots.dots({"layer 1": {"captions only": [1.0, 2.0]}}).axes[0]
    assert budget.patches[0].get_facecolor() == bars[0].get_facecolor()
    assert (dots.lines[0].get_color(), dots.lines[0].get_marker()) == looks[0]["captions only"]
    both = plots.style.slots(["distilled", "distilled student", "teacher"])
    assert both == {"distilled": 1, "distilled student": 6, "teacher": 0}


def test_components_are_red_green_and_blue_or_the_first_one_alone():
    maps = np.zeros((2, 3, 3, 3))
    maps[1, 0, 2] = (1.0, 0.5, 0.0)
    shown = images(plots.components(frames(2), {"teacher": maps}))
    assert len(shown) == 4 and (shown[0] == frames(2)[0].permute(1, 2, 0).numpy() / 255).all()
    assert shown[3][0, 2].tolist() == [1.0, 0.5, 0.0] and not shown[2].any()
    alone = plots.components(frames(2), {"teacher": maps}, [0.3, 0.2, 0.1], first=True)
    assert np.allclose(images(alone)[3][0, 2], mpl.colormaps["cividis"](1.0)[:3])
    assert "variance explained: 30%" in texts(alone)


def test_film_has_a_row_for_each_clip_and_outlines_masks_in_black_on_white():
    masks = torch.zeros(1, 4, 24, 24, dtype=torch.bool)
    masks[0, 2, 8:12, 10:16] = True  # in the third frame only
    captions = ["a very long caption " * 12, "teacher: a bell\nstudent: a star"]
    figure = plots.film([frames(), frames(2)], captions=captions, masks=[masks, None])
    first, second = figure.axes
    assert first.images[0].get_array().shape == second.images[0].get_array().shape == (24, 4 * 26 - 2, 3)
    assert (second.images[0].get_array()[:, 52:] == 1).all()  # a shorter clip leaves room
    assert first.get_xlabel().count("\n") >= 2 and second.get_xlabel() == captions[1]
    assert [tuple(c.get_edgecolor()[0][:3]) for c in first.collections] == [to_rgb("white"), to_rgb("black")]
    box = first.collections[1].get_paths()[0].get_extents()
    assert 2 * 26 + 6 < box.x0 < 2 * 26 + 10 and 2 * 26 + 15 < box.x1 < 2 * 26 + 19
    assert 4 < box.y0 < 8 and 11 < box.y1 < 15 and not second.collections
    places = [axes.get_position() for axes in plots.film([frames(1)] * 8).axes]
    # single frames side by side
    assert len(places) == 8 and len({round(place.y0, 3) for place in places}) == 2


def test_token_mask_shows_the_mask_and_names_its_blocks():
    mask = torch.zeros(10, 10, dtype=torch.bool)
    mask[:, :5] = True
    mask[5:, 5:] = torch.ones(5, 5).tril().bool()
    labels = [f"p{k}" for k in range(5)] + ["[CLS]", "an", "orange", "wheel", "[SEP]"]
    figure = plots.token_mask(mask, [("image", 5), ("text", 5)], labels)
    assert (images(figure)[0] == mask.numpy()).all()
    found = texts(figure)
    assert found.count("sees all") == 2
    assert {"sees nothing", "sees itself\nand the past", "image", "text", "orange"} <= set(found)
    groups = [("image", 5), ("text", 5)]
    part = plots.token_mask(mask[5:], groups, axes=("moves", "exchanged"), verb="moves with")
    assert (images(part)[0] == mask[5:].numpy()).all()
    assert {"moves", "exchanged", "moves with all", "moves with itself\nand the past"} <= set(texts(part))


def test_budget_bars_have_the_length_and_number_of_their_part():
    figure = plots.budget({"teacher": {"encoder": 3_000_000, "head": 1_000}, "student": {"all": 250_000}})
    bars = [bar for axes in figure.axes for bar in axes.patches]
    assert [bar.get_width() for bar in bars] == [3_000_000, 1_000, 250_000]
    assert {"3 M (100%)", "1 k (< 1%)", "250 k (100%)", "teacher: 3 M", "encoder"} <= set(texts(figure))
    assert len({(bar.get_facecolor(), bar.get_hatch()) for bar in bars}) == 2


with torch.device("meta"):
    GIT_BASE = GenerativeImageTextModel(GitConfig())
    ONE_LAYER = GenerativeImageTextModel(GitConfig(num_hidden_layers=1))
NETWORKS = {
    "teacher": (tiny.teacher(),),
    "both": (tiny.git(), tiny.student(mixer_layers=0, tie=False)),
    "losses": PICTURES["architecture"],
    "git-base": (GIT_BASE,),
    "one layer": (ONE_LAYER, tiny.student(layers=1), True),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_no_label_of_the_networks_touches_another_or_leaves_its_box(name):
    figure = plots.architecture(*NETWORKS[name])
    labels = [(text.get_text(), text.get_window_extent()) for text in figure.axes[0].texts if text.get_text()]
    boxes = [patch.get_window_extent() for patch in figure.axes[0].patches]
    for k, (text, place) in enumerate(labels):
        assert figure.bbox.contains(*place.min) and figure.bbox.contains(*place.max), text
        assert not [other for other, there in labels[:k] if place.overlaps(there)], text
        for box in boxes:
            inside = box.contains(*place.min) and box.contains(*place.max)
            assert inside or not box.overlaps(place), text


def test_the_networks_say_their_sizes_and_the_losses_between_them():
    git, student = tiny.git(), tiny.student()
    size = style.count(sum(p.numel() for p in git.image_encoder.parameters()))
    found = " ".join(texts(plots.architecture(git, student)))
    shapes = "2 × 3 × 32 × 32", "2 × 4 × 32", "2 × 5 × 32", "10 × 32", "8 × 32", "T × 359"
    assert all(text in found for text in (*shapes, size, "prefix"))
    assert "frozen" not in found and "KL" not in found
    found = " ".join(texts(draw("architecture")))
    for term in ("cross-entropy", "KL", "features", "hidden", "training only", "frozen"):
        assert term in found


def test_a_decoder_of_one_layer_is_not_named_as_several():
    found = texts(plots.architecture(*NETWORKS["one layer"]))
    assert {"decoder", "decoder, 1 layer"} <= set(found)
    size = style.count(sum(p.numel() for p in ONE_LAYER.layers.parameters()))
    assert f"its only layer: {size}" in found and not [text for text in found if "layers 0" in text]


def test_curves_keep_one_look_for_one_run_and_never_tell_by_colour_alone():
    run, other = ([0, 1, 2], [1.0, 2.0, 4.0]), ([0, 2], [(1.0, 0.5, 1.5), (2.0, 1.5, 2.5)])
    logs = {"loss": {"alone": other, "distilled": run}, "CIDEr": {"distilled": run, "alone": other}}
    figure = plots.curves(logs, log={"loss"}, levels={"CIDEr": {"teacher": 5.0}})
    loss, cider = figure.axes
    assert (loss.get_yscale(), cider.get_yscale()) == ("log", "linear")
    look = {c.get_label(): (c.get_color(), c.get_marker()) for c in loss.lines}
    assert all(len(set(part)) == 2 for part in zip(*look.values()))
    assert all(look[line.get_label()][1] == line.get_marker() for line in cider.lines[:2])
    assert [line.get_ydata().tolist() for line in loss.lines] == [[1, 2], [1, 2, 4]]
    bars = [segment[:, 1].tolist() for segment in loss.collections[0].get_segments()]
    assert bars == [[0.5, 1.5], [1.5, 2.5]]
    assert cider.lines[2].get_ydata()[0] == 5.0 and "teacher 5" in texts(figure)


def test_a_log_axis_has_plain_numbers_and_more_of_them_where_it_is_short():
    labels = []
    for values in ([0.6, 0.9, 2.2], [0.002, 0.9, 300.0]):
        figure = plots.curves({"loss": ([1, 2, 3], values)}, log=True)
        labels.append({label.get_text() for label in figure.axes[0].get_yticklabels()})
    assert {"1", "2"} <= labels[0] and {"0.01", "1", "100"} <= labels[1]
    assert "2" not in labels[1] and not any("10^" in text for text in labels[0] | labels[1])


def test_board_marks_the_moment_and_underlines_new_words():
    figure = plots.board(PANELS, CAPTIONS, step=20, levels={"CIDEr": {"teacher": 5.0}})
    losses, cider, below = figure.axes
    assert losses.lines[0].get_xydata().tolist() == [[10, 3], [20, 2], [30, 1]]
    assert [axes.lines[-1].get_xdata()[0] for axes in (losses, cider)] == [20, 20]
    assert "teacher 5" in texts(figure)  # though nothing is measured yet
    lines = [t for t in below.texts if t.get_text() != "clip 1"]
    assert [t.get_text().split()[0] for t in lines] == ["10", "20", "30"]
    assert [t.get_weight() for t in lines] == ["normal", "bold", "normal"]
    letter = 9 * 1233 / 2048
    under = [[round(x / letter) for x in line.get_xdata()] for line in below.lines]
    assert under == [[12, 15], [16, 19], [16, 21]]  # red, cup (shifted); then plane
    many = plots.board(PANELS, {k: ["a"] for k in range(20)})
    assert [t.get_text().split()[0] for t in many.axes[2].texts[1:]] == ["0", "4", "8", "11", "15", "19"]


def test_scores_have_an_axis_for_each_score_and_leave_out_what_is_missing():
    table = {"teacher": {"CIDEr": 5.25, "ms": 41.0}, "student": {"CIDEr": 4.5}}
    figure = plots.scores(table)
    cider, ms = figure.axes
    assert [[bar.get_width() for bar in axes.patches] for axes in figure.axes] == [[5.25, 4.5], [41.0]]
    assert cider.get_xlim()[0] == 0 and cider.get_xlim()[1] < 10 < 41 < ms.get_xlim()[1]
    assert {"5.25", "4.5", "41", "teacher", "student"} <= set(texts(figure))
    shared = [axes.get_xlim() for axes in plots.scores(table, shared=True).axes]
    assert shared[0] == shared[1] == ms.get_xlim()


def test_pareto_joins_what_nothing_beats_and_no_label_covers_another():
    close = [ROWS[3] | {"network": str(k), "ms": 60 + k / 10, "score": 4 + k / 1000} for k in range(3)]
    figure = plots.pareto([*ROWS, *close], score="CIDEr")
    (axes,) = figure.axes
    assert axes.lines[0].get_xydata().tolist() == [[10.0, 4.6], [40.0, 5.2]]  # not the slow ones
    assert axes.get_xscale() == "log" and axes.get_ylabel() == "CIDEr"
    sizes = {tuple(c.get_offsets()[0]): c.get_sizes()[0] for c in axes.collections}
    assert sizes[(10.0, 4.6)] < sizes[(40.0, 5.2)]
    figure.draw_without_rendering()
    boxes = [text.get_bbox_patch().get_window_extent().padded(-1) for text in axes.texts]
    assert len(boxes) == 6 and not any(a.overlaps(b) for a, b in combinations(boxes, 2))


def test_pareto_colours_a_network_as_everywhere_and_shapes_a_search():
    (axes,) = plots.pareto(ROWS[::-1]).axes
    found = {tuple(c.get_offsets()[0]): c for c in axes.collections}
    points = [found[row["ms"], row["score"]] for row in ROWS]
    colours = [mpl.colors.to_hex(point.get_facecolor()[0]).upper() for point in points]
    assert colours[:3] == [style.colour(0), style.colour(1), style.colour(1)] and len(set(colours)) == 3
    shapes = [point.get_paths()[0].vertices.tolist() for point in points]
    assert shapes[0] == shapes[1] != shapes[2] == shapes[3]
    assert "student\n500 k, 10 and 15 ms" in texts(axes.figure) and "4 beams" in texts(axes.figure)
    many = [ROWS[0] | {"search": f"{k} beams"} for k in range(9)]  # more than there are shapes
    assert {row["search"] for row in many} <= set(texts(plots.pareto(many)))


def test_beam_tree_draws_every_fate_and_the_winners_path():
    figure = plots.beam_tree(trace(), VOCABULARY, top=1)
    (axes,) = figure.axes
    found = texts(figure)
    assert {"bell\n\u22120.50", "wheel\n\u22120.90", "star\n\u22122.00", "[SEP]\n(\u22120.50)"} <= set(found)
    assert not any(text.startswith("exclam") for text in found)  # the second pruned one
    edges = [line for line in axes.lines if len(line.get_xdata())]
    won = [line.get_xydata()[[0, -1]].tolist() for line in edges if line.get_linewidth() > 3]
    assert won == [[[-1, 0], [0, 1]], [[0, 1], [1, 0]]]  # start, wheel (second rank), its end (first rank)
    pruned = [line.get_xydata()[[0, -1]].tolist() for line in edges if line.get_linestyle() == "--"]
    assert pruned == [[[-1, 0], [0, 2]], [[0, 1], [1, 2]]]  # the last was a beam, but the search ended
    for line in edges:  # slanting only where no box is
        x, y = line.get_xydata().T
        assert y[0] == y[1] and y[2] == y[3] and x[0] + 0.25 < x[1] < x[2] < x[3] - 0.25
    bold = {text.get_text() for text in axes.texts if text.get_weight() == "bold"}
    assert bold == {"wheel\n\u22120.90", "[SEP]\n(\u22120.50)"}
    assert [text.get_text() for text in axes.texts].count("[SEP]\n(\u22120.60)") == 2  # a double line
    assert "exclamat\u2026\n\u22123.00" in texts(plots.beam_tree(trace(), VOCABULARY.__getitem__, top=2))


def test_beam_tree_grows_step_by_step_in_one_frame():
    part, whole = grown = [plots.beam_tree(trace(), VOCABULARY, upto=k) for k in (1, 2)]
    assert whole.axes[0].get_xlim() == part.axes[0].get_xlim()
    assert (whole.get_size_inches() == part.get_size_inches()).all()
    assert not any("[SEP]" in text for text in texts(part))
    assert "the caption that won" in texts(whole) and "the caption that won" not in texts(part)
    image = Image.open(io.BytesIO(plots.animation(grown, 500)))
    assert image.format == "PNG" and image.n_frames == 2
    for k, figure in enumerate(grown):
        image.seek(k)
        shown = np.asarray(image.convert("RGB"), float)
        assert image.info["duration"] == (500, 1500)[k]
        assert abs(shown - pixels(figure)).mean() < 2 < abs(shown - pixels(grown[1 - k])).mean()


def test_the_ribbon_tells_where_two_captions_differ_and_how_likely_the_first_is():
    figure = plots.ribbon(RIBBON)
    axes, _ = figure.axes
    marks = [line.get_xdata()[0] for line in axes.lines if line.get_marker() == "^"]
    assert marks == [1.5, 2.5]  # cup, bell; then nothing against moves
    cells = [patch for patch in axes.patches if hasattr(patch, "get_xy")]
    assert [round(cell.get_x()) for cell in cells] == [0, 1, 0]
    assert np.allclose(cells[1].get_facecolor(), mpl.colormaps["cividis"](0.1))
    assert {"a\n0.75", "cup\n0.10", "bell", "moves", "greedy: teacher"} <= set(texts(figure))


def test_drafts_stand_in_boxes_kept_or_struck_out_with_the_others_own_word_below():
    (axes,) = plots.drafts([(["a", "bell", "moves"], ["a", "cup"]), (["moves"], ["moves"])]).axes
    found = {(t.get_text(), *t.get_position()): t.get_weight() for t in axes.texts}
    drafted = {("a", 0, -0.2), ("bell", 1, -0.2), ("moves", 2, -0.2), ("moves", 2, 0.8)}
    assert found == dict.fromkeys(drafted, "normal") | {("cup", 1, 0.22): "bold"}
    assert [line.get_xdata().mean() for line in axes.lines] == [1, 2]  # bell, and what came after it


@pytest.mark.parametrize("options", [{"beams": 3}, {"beams": 1}, {"beams": 3, "penalty": "gnmt"}])
def test_beam_tree_finds_the_caption_that_the_search_returned(options):
    decoded = beam(TableModel(vocab_size=7), clips(2), max_length=8, trace=True, **options)
    (axes,) = plots.beam_tree(decoded.trace, str, clip=1).axes
    bold = [text for text in axes.texts if text.get_weight() == "bold"]
    path = sorted((*text.get_position(), text.get_text()) for text in bold)
    tokens = [int(text.split("\n")[0]) for *_, text in path]
    caption = [int(token) for token in decoded.tokens[1, 0, 1:] if token != 0]
    if options.get("penalty") == "gnmt" and len(caption) == 7:  # writes the end over the last word
        tokens[-1] = 2
    assert tokens == caption


def test_dots_stand_where_the_runs_are():
    table = {"one": {"s": [1.0, 3.0], "t": [5.0]}, "other": {"s": [2.0]}}
    figure = plots.dots(
        table, {"one": {"s": (0.5, 3.5)}}, {"s": {"teacher": 4.0}}, title="Dots", unit="share"
    )
    left, right = figure.axes
    assert figure.get_supxlabel() == "share"
    lines = [(line.get_xdata(), line.get_ydata()) for line in left.lines]
    assert any(list(x) == [1.0, 3.0] and list(y) == [0, 0] for x, y in lines)  # the runs
    assert any(list(x) == [2.0, 2.0] and min(y) < 0 < max(y) for x, y in lines)  # their mean
    assert any(list(x) == [0.5, 3.5] and list(y) == [0, 0] for x, y in lines)  # its interval
    assert [text.get_text() for text in left.get_yticklabels()] == ["one", "other"]
    assert [text.get_text() for text in left.texts] == ["teacher 4"]
    assert len(right.lines) == 2
