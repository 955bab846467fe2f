"""Pictures: known arrays in, known marks out."""

import io
import os
import subprocess
import sys

import matplotlib as mpl
import numpy as np
import pytest
import tiny
import torch
from matplotlib.colors import to_rgb
from PIL import Image
from transformers import GitConfig

from gitdistill.models.git import GenerativeImageTextModel
from gitdistill.viz import plots
from gitdistill.viz.plots import networks, search, style

WORDS = ["a", "red", "bell"]


def frames(count=4, size=24):
    return torch.randint(0, 256, (count, 3, size, size), generator=torch.manual_seed(0), dtype=torch.uint8)


def pointer(shape, at):
    """A map that is 0 but for 1 in one cell."""
    values = np.zeros(shape)
    values[at] = 1.0
    return values


def attention(words=3, count=4, cells=6):
    values = torch.rand(words, count, cells, cells, generator=torch.manual_seed(1))
    return values / values.sum((1, 2, 3), keepdim=True)


def trace():
    """Two beams, two steps, by hand: token 3 leads at first, but 4 then 2 (the end) wins after the penalty."""
    rows = [  # step, parent, token, score, beam, kept, finished, final
        (0, 0, 3, -0.5, 0, True, False, np.nan),
        (0, 0, 4, -0.9, 1, True, False, np.nan),
        (0, 0, 5, -2.0, -1, False, False, np.nan),
        (0, 0, 6, -3.0, -1, False, False, np.nan),
        (1, 1, 2, -1.0, -1, False, True, -0.50),
        (1, 0, 2, -1.2, -1, False, True, -0.60),
        (1, 1, 5, -4.0, 0, True, False, np.nan),
    ]
    names = ("step", "parent", "token", "score", "beam", "kept", "finished", "final")
    table = {name: torch.tensor(column) for name, column in zip(names, zip(*rows))}
    return table | {"clip": torch.zeros(len(rows), dtype=torch.long)}


VOCABULARY = ["[PAD]", "[CLS]", "[SEP]", "bell", "wheel", "star", "exclamation"]
ROWS = [
    {"name": "teacher", "ms": 40.0, "score": 5.2, "parameters": 4_000_000},
    {"name": "student", "ms": 10.0, "score": 4.6, "parameters": 500_000},
    {"name": "slow", "ms": 60.0, "score": 4.0, "parameters": 4_000_000},
]
ALIKE = np.array([[0.9, 0.2, 0.4], [0.1, 0.3, 0.55]])
WHY = {"trained": {"raw attention": np.eye(4), "rollout": np.eye(4)[::-1]}}
BOARDS = {
    "teacher": {"object": (0.9, 0.8, 0.95, 120), "colour": (0.7, 0.6, 0.8, 100)},
    "student": {"object": (0.5, 0.45, 0.55, 120), "colour": (0.4, 0.3, 0.5, 100)},
}
PANELS = {"losses": {"KL": ([10, 20, 30], [3.0, 2.0, 1.0])}, "CIDEr": {"student": ([], [])}}
SAID = {10: ["a cup moves"], 20: ["a red cup"], 30: ["a red plane"]}
PICTURES = {
    "architecture": lambda title: plots.architecture(tiny.git(), tiny.student(), losses=True, title=title),
    "film": lambda title: plots.film(frames(), captions="a bell", title=title),
    "token_mask": lambda title: plots.token_mask(np.tri(6) > 0, [("text", 6)], title=title),
    "budget": lambda title: plots.budget({"encoder": 2_000_000, "decoder": 500}, title=title),
    "gaze": lambda title: plots.gaze(frames(), WORDS, {"teacher": attention()}, title=title),
    "frame_word_map": lambda title: plots.frame_word_map(attention(), WORDS, frames(), title=title),
    "heads": lambda title: plots.heads(attention(2, 3), frames()[0], title=title),
    "feature_maps": lambda title: plots.feature_maps(frames()[0], {"stage": attention(2, 8)[0]}, title=title),
    "overview": lambda title: plots.overview(
        frames(), {"teacher": ("a red bell", WORDS, attention())}, title
    ),
    "curves": lambda title: plots.curves({"loss": ([0, 1, 2], [3.0, 2.0, 1.0])}, title=title),
    "scores": lambda title: plots.scores({"teacher": {"CIDEr": 5.0}}, title=title),
    "pareto": lambda title: plots.pareto(ROWS, title=title),
    "beam_tree": lambda title: plots.beam_tree(trace(), VOCABULARY, title=title),
    "similarity": lambda title: plots.similarity(ALIKE, ["a", "b"], ["x", "y", "z"], title=title),
    "components": lambda title: plots.components(
        frames(), {"teacher": colours(4, 6)}, [0.3, 0.2, 0.1], title=title
    ),
    "explanations": lambda title: plots.explanations(
        frames()[0], WHY, {"trained": {"rollout": 0.5}}, title=title
    ),
    "grounding": lambda title: plots.grounding(BOARDS, {"object": 0.1, "colour": 0.12}, title=title),
    "board": lambda title: plots.board(PANELS, SAID, step=20, title=title),
    "pointed": lambda title: plots.pointed(
        frames(2), attention(2, 1)[:, 0], torch.ones(2, 24, 24), ["a", "b"], title
    ),
    "ribbon": lambda title: plots.ribbon({"greedy": (["a", "cup"], ["a", "bell"], [0.9, 0.2])}, title=title),
    "drafts": lambda title: plots.drafts([(["a", "bell"], ["a", "cup"])], title=title),
}


def colours(count, cells):
    return torch.rand(count, cells, cells, 3, generator=torch.manual_seed(2))


def pixels(figure):
    return np.asarray(Image.open(io.BytesIO(plots.png(figure))).convert("RGB"))


def texts(figure):
    return [text.get_text() for text in figure.findobj(mpl.text.Text) if text.get_text()]


def images(figure):
    """The arrays of all images but colour bars."""
    return [image.get_array() for axes in figure.axes for image in axes.images]


# -- what all pictures share


@pytest.mark.parametrize("name", PICTURES)
def test_every_picture_is_drawn_fits_and_says_what_it_shows(name):
    figure = PICTURES[name]("The finding")
    image = pixels(figure)
    assert image.std() > 5
    assert image.shape[1] <= 880
    assert (image[[0, -1]] == 255).all() and (
        image[:, [0, -1]] == 255
    ).mean() > 0.9  # nothing runs off the edge
    assert "The finding" in texts(figure)
    assert figure.alt.endswith("The finding")
    assert "The finding" not in PICTURES[name](None).alt


@pytest.mark.parametrize("name", ["heads", "beam_tree"])
def test_the_same_picture_gives_the_same_bytes(name):
    figure = PICTURES[name]("t")
    first = plots.png(figure)
    assert plots.png(figure) == first == plots.png(PICTURES[name]("t"))


def test_pyplot_and_models_stay_out():
    code = "import sys, gitdistill.viz.plots, gitdistill.viz.widgets as w\n"
    code += "w.png(gitdistill.viz.plots.budget({'a': 1}))\n"
    code += "print([m for m in ('matplotlib.pyplot', 'torch', 'gitdistill.models') if m in sys.modules])"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=dict(os.environ))
    assert run.stdout.strip() == "[]", run.stderr


# -- the networks as boxes


def drawn(figure):
    """Each text, and its place in pixels."""
    found = [text for axes in figure.axes for text in axes.texts if text.get_text()]
    return [(text.get_text(), text.get_window_extent()) for text in found]


def git_base():
    with torch.device("meta"):
        return GenerativeImageTextModel(GitConfig())


NETWORKS = {
    "teacher": lambda: plots.architecture(tiny.teacher()),
    "both": lambda: plots.architecture(tiny.git(), tiny.student(mixer_layers=0, tie=False)),
    "losses": lambda: PICTURES["architecture"](None),
    "git-base": lambda: plots.architecture(git_base()),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_no_two_labels_of_the_networks_touch(name):
    figure = NETWORKS[name]()
    found = drawn(figure)
    for k, (text, place) in enumerate(found):
        assert figure.bbox.contains(*place.min) and figure.bbox.contains(*place.max), text
        assert not [other for other, there in found[:k] if place.overlaps(there)], text


@pytest.mark.parametrize("name", NETWORKS)
def test_labels_fit_into_their_boxes(name):
    figure = NETWORKS[name]()
    boxes = [patch.get_window_extent() for patch in figure.axes[0].patches]
    for text, place in drawn(figure):
        for box in boxes:
            inside = box.contains(*place.min) and box.contains(*place.max)
            assert inside or not box.overlaps(place), text


def test_the_networks_say_their_sizes():
    git, student = tiny.git(), tiny.student()
    found = " ".join(texts(plots.architecture(git, student)))
    size = style._count(sum(p.numel() for p in git.image_encoder.parameters()))
    for shape in ("2 × 3 × 32 × 32", "2 × 4 × 32", "2 × 5 × 32", "10 × 32", "8 × 32", "T × 122", size):
        assert shape in found
    assert "cross-attention" in found and "prefix" in found and "frozen" not in found and "KL" not in found


def test_the_losses_lie_between_the_networks():
    found = " ".join(texts(NETWORKS["losses"]()))
    for term in ("cross-entropy", "KL", "features", "hidden", "training only", "frozen"):
        assert term in found
    with pytest.raises(ValueError, match="give a student"):
        plots.architecture(tiny.git(), losses=True)


def test_a_mask_says_what_its_rows_do():
    figure = plots.token_mask(np.tri(6) > 0, [("text", 6)], axes=("moves", "exchanged"), verb="moves with")
    assert {"moves", "exchanged", "moves with itself\nand the past"} <= set(texts(figure))


def test_the_small_mask_is_gits():
    axes = plots.Picture().add_axes((0, 0, 1, 1))
    networks._mask(axes, 0, 0, image=2, words=3, memory=2)
    white = np.array([patch.get_facecolor()[:3] == (1, 1, 1) for patch in axes.patches]).reshape(5, 5)
    seen = np.tri(5) > 0
    seen[:2, :2] = True
    assert (white == ~seen).all()


def test_the_users_own_style_is_neither_used_nor_changed():
    expected = plots.png(PICTURES["curves"]("t"))
    with mpl.rc_context({"font.size": 20, "axes.facecolor": "black", "figure.dpi": 200}):
        plots.scores({"teacher": {"CIDEr": 1.0}})
        assert mpl.rcParams["font.size"] == 20
        assert plots.png(PICTURES["curves"]("t")) == expected


def test_a_notebook_shows_the_picture_with_alternative_text(monkeypatch):
    shown = []
    monkeypatch.setattr("IPython.display.display", lambda data, metadata, raw: shown.append((data, metadata)))
    figure = PICTURES["budget"]("Half")
    figure._ipython_display_()
    ((data, metadata),) = shown
    assert data["image/png"] == plots.png(figure) and data["text/plain"].startswith("<Picture size")
    assert metadata == {"image/png": {"alt": "Parameters: Half"}}


def test_a_small_png_keeps_a_rare_bright_colour():
    figure = plots.heads(pointer((4, 12, 6, 6), (2, 5, 1, 1)), frames(1, 96)[0] // 4)
    full = io.BytesIO()
    figure.savefig(full, dpi=figure.dpi)
    difference = pixels(figure).astype(int) - np.asarray(Image.open(full).convert("RGB"))
    assert abs(difference).max() <= 16
    assert len(plots.png(figure)) < full.tell() / 1.3


def test_clear_messages():
    with pytest.raises(ValueError, match=r"frames must be \[F, 3, H, W\], got \[4, 24, 24\]"):
        plots.gaze(torch.zeros(4, 24, 24), WORDS, {"teacher": attention()})
    with pytest.raises(ValueError, match="raw frames, not normalised"):
        plots.film(torch.randn(4, 3, 24, 24))
    with pytest.raises(
        ValueError, match=r"words and frames of teacher must have shape \[2, 4\], got \[3, 4\]"
    ):
        plots.gaze(frames(), WORDS[:2], {"teacher": attention()})
    with pytest.raises(ValueError, match="two rows, got 1"):
        plots.gaze(frames(), WORDS, {"teacher": attention()}, difference=True)
    with pytest.raises(ValueError, match="NaN"):
        plots.heads(torch.full((1, 1, 2, 2), torch.nan), frames()[0])
    with pytest.raises(ValueError, match="captions must hold one entry for each of 2 clips, got 1"):
        plots.film([frames(), frames()], captions=["a"])
    with pytest.raises(ValueError, match="groups hold 5 tokens"):
        plots.token_mask(np.ones((6, 6)), [("text", 5)])
    with pytest.raises(ValueError, match="clip 3 is not in the trace"):
        plots.beam_tree(trace(), VOCABULARY, clip=3)
    for empty in (plots.budget, plots.scores, plots.curves):
        with pytest.raises(ValueError, match="empty: nothing to draw"):
            empty({})


# -- each picture


def test_overlay_lights_the_one_cell_it_should():
    black = np.zeros((24, 24, 3))
    image = style._overlay(black, pointer((6, 6), (1, 4)), style._amounts(np.ones(1)), style.AMOUNT)
    assert image.shape == (24, 24, 3)
    bright = image @ style.LUMA > 0.5
    expected = np.zeros((24, 24), bool)
    expected[4:8, 16:20] = True
    assert (bright == expected).all()
    assert np.allclose(image[4, 16], 0.9 * np.array(mpl.colormaps["cividis"](1.0)[:3]))  # opacity 0.9
    assert (image[0, 0] == 0).all()  # the photo itself


def test_overlay_shows_the_photo_in_grey_and_never_brighter_than_strong_attention():
    photo = np.zeros((12, 12, 3))
    photo[:, :6] = (1.0, 0.0, 0.0)
    photo[:, 6:] = 1.0
    image = style._overlay(photo, pointer((2, 2), (0, 0)), style._amounts(np.ones(1)), style.AMOUNT)
    assert image[-1, -1] @ style.LUMA > image[-1, 0] @ style.LUMA + 0.2  # white shines more than red
    assert image[0, 0] @ style.LUMA > image[-1, -1] @ style.LUMA + 0.1  # attention on red above plain white


def test_overlay_leaves_a_dark_photo_as_bright_as_it_is_and_darkens_a_bright_one():
    dark = np.zeros((12, 12, 3))
    dark[-4:, -4:] = 0.9  # a bright thing on black
    bright = np.full((12, 12, 3), 0.5)
    for photo, expected in ((dark, 0.9), (bright, 0.25)):
        image = style._overlay(photo, pointer((3, 3), (0, 0)), style._amounts(np.ones(1)), style.AMOUNT)
        assert np.allclose(image[-1, -1], expected)


def test_overlay_of_a_difference_is_pale_at_zero_and_dark_at_both_ends():
    values = np.array([[1.0, 0.0], [0.0, -1.0]])
    image = style._overlay(np.ones((8, 8, 3)), values, style._around_zero(values), style.DIFFERENCE)
    luma = image @ style.LUMA
    assert luma[0, 0] < 0.4 and luma[-1, -1] < 0.5 and luma[0, -1] > 0.9
    assert (
        image[0, 0, 2] > image[0, 0, 1] and image[-1, -1, 0] > image[-1, -1, 2]
    )  # purple above, orange below


def test_gaze_puts_each_word_and_frame_in_its_place():
    values = pointer((3, 4, 6, 6), (2, 1, 5, 0))
    values[0, 0, 0, 0] = values[1, 3, 2, 2] = 0.25
    figure = plots.gaze(
        torch.zeros(4, 3, 24, 24, dtype=torch.uint8), WORDS, {"teacher": values}, [0.1, 0.2, 0.9]
    )
    (image,) = images(figure)
    step = 24 + 2  # a tile and the gap
    assert image.shape == (4 * step - 2, 4 * step - 2, 3)  # the frames and three words; four frames
    bright = image @ style.LUMA
    bright[bright > 0.999] = 0  # gaps
    y, x = np.unravel_index(bright.argmax(), bright.shape)
    assert (y // step, x // step) == (1, 3)  # second frame, third word
    assert (y % step // 4, x % step // 4) == (5, 0)  # lower left cell
    corners = {patch.get_xy() for patch in figure.axes[0].patches}
    assert corners == {(step - 0.5, -0.5), (2 * step + 7.5, 3 * step + 7.5), (3 * step - 0.5, step + 19.5)}
    assert {"a\n0.10", "red\n0.20", "bell\n0.90", "teacher", "frame 4"} <= set(texts(figure))


def test_gaze_shows_the_frames_in_colour_first():
    red = torch.zeros(1, 3, 24, 24, dtype=torch.uint8)
    red[:, 0] = 255
    (image,) = images(plots.gaze(red, ["a"], {"teacher": torch.ones(1, 1, 2, 2)}))
    assert (image[:, :24] == (1.0, 0.0, 0.0)).all()


def test_gaze_gives_each_model_its_scale_and_marks_the_sign_of_a_difference():
    strong, weak = pointer((3, 4, 6, 6), (1, 2, 3, 4)), pointer((3, 4, 6, 6), (2, 0, 0, 5)) / 2
    figure = plots.gaze(frames(), WORDS, {"teacher": strong, "student": weak}, difference=True)
    labels = [text for text in texts(figure) if text in ("teacher", "student", "teacher\nminus student")]
    assert labels == ["teacher", "student", "teacher\nminus student"]
    bars = [axes for axes in figure.axes if axes.get_ylabel().startswith(("attention", "difference"))]
    assert [axes.get_ylim() for axes in bars] == [(0.0, 1.0), (0.0, 0.5), (-1.0, 1.0)]
    panel = next(axes for axes in figure.axes if len(axes.collections) == 2 and axes.images)
    plus, minus = (collection.get_offsets() for collection in panel.collections)
    step = 26
    assert plus.tolist() == [[2 * step + 17.5, 2 * step + 13.5]]  # the middle of a cell of 4 x 4 pixels
    assert minus.tolist() == [[3 * step + 21.5, 1.5]]


def test_gaze_outlines_what_a_word_names_in_every_frame():
    masks = [None, np.zeros((4, 24, 24), bool), None]
    masks[1][:, 8:16, 4:12] = True
    figure = plots.gaze(frames(), WORDS, {"teacher": attention()}, masks=masks)
    lines = [c for axes in figure.axes for c in axes.collections if type(c).__name__ == "QuadContourSet"]
    boxes = {tuple(line.get_paths()[0].get_extents().get_points().mean(0).round()) for line in lines}
    step = 26
    assert boxes == {(2 * step + 8, f * step + 12) for f in range(4)}  # the middle of the thing, second word
    with pytest.raises(ValueError, match=r"mask must have shape \[4, 24, 24\], got \[1, 24, 24\]"):
        plots.gaze(frames(), WORDS, {"teacher": attention()}, masks=[masks[1][:1], None, None])


def test_gaze_wraps_long_captions_and_takes_two_grids():
    words = [f"w{k}" for k in range(9)]
    rows = {"teacher": attention(9, 1, 14), "student": attention(9, 1, 6)}
    figure = plots.gaze(frames(1), words, rows)
    assert len(images(figure)) == 4  # two lines of two models
    panels = [axes for axes in figure.axes if axes.images]
    first, last = panels[0].get_xticklabels(), panels[-1].get_xticklabels()
    assert [t.get_text() for t in first] == ["", *words[:6]]
    assert [t.get_text() for t in last] == ["", *words[6:]]


def test_frame_word_map_adds_up_and_prints_what_is_large():
    values = np.zeros((2, 3, 2, 2))
    values[0, 1] = 5.0  # all on the second frame
    values[1, 0, 0, 0], values[1, 2, 1, 1] = 3.0, 1.0  # three quarters on the first
    figure = plots.frame_word_map(values, ["a", "bell"], frames(3))
    (mesh,) = (
        c for axes in figure.axes for c in axes.collections if type(c).__name__ == "QuadMesh" and axes.texts
    )
    assert mesh.get_array().reshape(3, 2).tolist() == [[0, 0.75], [1, 0], [0, 0.25]]
    printed = {(t.get_position(), t.get_text()) for axes in figure.axes for t in axes.texts}
    assert printed == {((0.5, 1.5), "1.00"), ((1.5, 0.5), "0.75")}
    assert (
        len(plots.frame_word_map({"teacher": values, "student": values}, ["a", "bell"], frames(3)).axes) == 4
    )


def test_heads_light_the_right_layer_and_head():
    values = pointer((2, 3, 6, 6), (1, 2, 0, 5))
    figure = plots.heads(values, torch.zeros(3, 24, 24, dtype=torch.uint8))
    image = images(figure)[0] @ style.LUMA
    image[image > 0.999] = 0
    y, x = np.unravel_index(image.argmax(), image.shape)
    step = 24 + 24 // 5
    assert (y // step, x // step, y % step // 4, x % step // 4) == (1, 2, 0, 5)
    assert {"layer 1", "head 2", "100%", "0%"} <= set(texts(figure))
    even = torch.full((2, 3, 6, 6), 1 / 36)
    assert not any("%" in text for text in texts(plots.heads(even, frames()[0])))


def test_feature_maps_choose_the_strongest_channels():
    values = torch.zeros(5, 3, 3)
    values[3, 1, 2], values[1, 0, 0] = -4.0, 3.0
    figure = plots.feature_maps(frames()[0], {"stage 0": values, "stage 1": torch.randn(6, 2, 2)}, channels=2)
    shown = images(figure)
    assert np.allclose(shown[1], np.linalg.norm(values, axis=0))
    assert np.allclose(shown[2], values[3]) and np.allclose(shown[3], values[1])
    assert {"channel 3 \u2212", "channel 1 +", "stage 0\n5 x 3 x 3"} <= set(texts(figure))
    signed = [
        axes.images[0] for axes in figure.axes if axes.get_title() in ("channel 3 \u2212", "channel 1 +")
    ][:2]
    assert all(image.get_clim() == (-4.0, 4.0) and image.get_cmap().name == "PuOr" for image in signed)
    assert signed[0].axes.collections[0].get_offsets().tolist() == [[2.0, 1.0]]  # the minus sign


def test_overview_shows_for_each_word_the_frame_it_looked_at_most():
    values = pointer((2, 4, 6, 6), (0, 2, 1, 4)) + pointer((2, 4, 6, 6), (1, 0, 5, 0))
    said = {
        "teacher": ("a red bell", WORDS[1:], values),
        "student": ("a bell", WORDS[2:], attention(1, 4, 3)),
    }
    figure = plots.overview(torch.zeros(4, 3, 24, 24, dtype=torch.uint8), said)
    clip, teacher, student = images(figure)
    step = 24 + 2  # a tile and the gap
    assert clip.shape[:2] == (2 * step - 2, 2 * step - 2) and teacher.shape == student.shape == (
        24,
        2 * step - 2,
        3,
    )
    lit = teacher @ style.LUMA
    assert (
        lit[4, 16] > 0.5 and lit[20, step] > 0.5 and np.median(np.asarray(lit)) < 0.1
    )  # row 1, column 4; row 5, column 0
    assert [patch.get_xy() for patch in figure.axes[1].patches][::2] == [(15.5, 3.5), (step - 0.5, 19.5)]
    assert (student[:, step:] == 1).all()  # no second word
    assert {"teacher\na red bell", "student\na bell", "red", "frame 3", "frame 1"} <= set(texts(figure))
    with pytest.raises(
        ValueError, match=r"words and frames of teacher must have shape \[1, 4\], got \[2, 4\]"
    ):
        plots.overview(frames(), {"teacher": ("a bell", WORDS[2:], values)})


def test_similarity_prints_the_large_and_rings_the_best_of_each_row():
    figure = plots.similarity({"before": ALIKE, "after": ALIKE[::-1]}, ["a", "b"], ["x", "y", "z"])
    before, after = figure.axes[:2]
    assert np.allclose(before.images[0].get_array(), ALIKE) and before.images[0].get_clim() == (0, 1)
    assert {(t.get_position(), t.get_text()) for t in before.texts} == {((0, 0), ".90"), ((2, 1), ".55")}
    rings = before.collections[0].get_offsets().tolist()
    assert rings == [[0, 0], [2, 1]] and after.collections[0].get_offsets().tolist() == [[2, 0], [0, 1]]
    with pytest.raises(ValueError, match=r"values must have shape \[1, 3\], got \[2, 3\]"):
        plots.similarity(ALIKE, ["a"], ["x", "y", "z"])


def test_components_are_red_green_and_blue_or_the_first_one_alone():
    maps = np.zeros((2, 3, 3, 3))
    maps[1, 0, 2] = (1.0, 0.5, 0.0)
    shown = images(plots.components(frames(2), {"teacher": maps}))
    assert len(shown) == 4 and (shown[0] == frames(2)[0].permute(1, 2, 0).numpy() / 255).all()
    assert shown[3][0, 2].tolist() == [1.0, 0.5, 0.0] and not shown[2].any()
    many = pixels(plots.components(frames(9), {"teacher": colours(9, 3)}))
    assert many.shape[1] <= 880 and (many[:, -3:] == 255).all()  # nothing runs off the edge
    alone = plots.components(frames(2), {"teacher": maps}, [0.3, 0.2, 0.1], first=True)
    assert np.allclose(images(alone)[3][0, 2], mpl.colormaps["cividis"](1.0)[:3])
    assert "variance explained: 30%" in texts(alone)


def test_explanations_light_their_cell_and_print_their_agreement():
    maps = {"raw attention": pointer((6, 6), (1, 4)), "occlusion": pointer((6, 6), (5, 0)) - 0.5}
    black = torch.zeros(3, 24, 24, dtype=torch.uint8)
    figure = plots.explanations(black, {"trained": maps}, {"trained": {"raw attention": -0.25}})
    raw, covered = (axes for axes in figure.axes if axes.patches)
    assert raw.get_title() == "raw attention" and covered.get_title() == "occlusion"
    assert {patch.get_xy() for patch in raw.patches} == {(15.5, 3.5)}
    assert {patch.get_xy() for patch in covered.patches} == {(-0.5, 19.5)}
    lit = covered.images[0].get_array() @ style.LUMA
    assert lit[20, 0] > 0.5 and np.median(lit) < 0.1  # what is below zero is nothing
    assert raw.get_xlabel() == "\u22120.25" and covered.get_xlabel() == ""
    with pytest.raises(
        ValueError, match="random must hold the methods raw attention, occlusion, got occlusion"
    ):
        plots.explanations(black, {"trained": maps, "random": {"occlusion": maps["occlusion"]}})


def test_grounding_puts_each_model_at_its_score_with_its_interval_and_chance():
    (axes,) = plots.grounding(BOARDS, {"object": 0.11, "colour": 0.2}).axes
    points = [c.lines[0].get_xdata().tolist() for c in axes.containers]
    assert points == [[0.9, 0.7], [0.5, 0.4]]
    bars = axes.containers[0].lines[2][0].get_segments()
    assert [segment[:, 0].round(6).tolist() for segment in bars] == [[0.8, 0.95], [0.6, 0.8]]
    dashed = [line.get_xdata()[0] for line in axes.lines if line.get_linestyle() == "--"]
    assert dashed == [0.11, 0.2]
    looks = {(c.lines[0].get_marker(), c.lines[0].get_color()) for c in axes.containers}
    assert len({mark for mark, _ in looks}) == len({colour for _, colour in looks}) == 2
    assert [t.get_text() for t in axes.get_yticklabels()] == ["object\n120 words", "colour\n100 words"]
    assert {"90%", "40%"} <= {t.get_text() for t in axes.texts}


def test_grounding_tells_the_named_thing_from_the_other():
    others = {
        name: dict.fromkeys(("object", "colour"), (0.1 * k, 0.0, 0.5, 9)) for k, name in enumerate(BOARDS)
    }
    (axes,) = plots.grounding(BOARDS, others=others).axes
    named, other = axes.containers[::2], axes.containers[1::2]
    assert [c.lines[0].get_xdata().tolist() for c in other] == [[0, 0], [0.1, 0.1]]
    for filled, hollow in zip(named, other):
        assert hollow.lines[0].get_markerfacecolor() == "white" != filled.lines[0].get_markerfacecolor()
        assert filled.lines[0].get_color() == hollow.lines[0].get_color()
        assert filled.lines[0].get_marker() == hollow.lines[0].get_marker()
        assert (hollow.lines[0].get_ydata() > filled.lines[0].get_ydata()).all()
    assert {"90%", "10%"} <= {t.get_text() for t in axes.texts}


def test_pointed_marks_the_strongest_cell_and_the_middle_of_the_thing():
    mask = np.zeros((24, 24), bool)
    mask[4:8, 12:20] = True
    (axes,) = plots.pointed(frames(1), [pointer((6, 6), (5, 0))], [mask], ["bell"]).axes
    marks = {(line.get_marker(), *line.get_xydata()[0].tolist()) for line in axes.lines}
    assert marks == {("+", 26 + 1.5, 21.5), ("x", 26 + 15.5, 5.5)}  # beside the frame of 24 pixels
    assert axes.get_xlabel() == "bell" and len(axes.collections) == 2  # the outline, black on white


def test_board_marks_the_moment_and_underlines_new_words():
    figure = plots.board(PANELS, SAID, step=20, levels={"CIDEr": {"teacher": 5.0}})
    losses, cider, said = figure.axes
    assert losses.lines[0].get_xydata().tolist() == [[10, 3], [20, 2], [30, 1]]
    assert [line.get_xdata()[0] for axes in (losses, cider) for line in axes.lines[-1:]] == [20, 20]
    assert "teacher 5" in texts(figure)  # though nothing is measured yet
    lines = [t for t in said.texts if t.get_text() != "clip 1"]
    assert [t.get_text().split()[0] for t in lines] == ["10", "20", "30"]
    assert [t.get_weight() for t in lines] == ["normal", "bold", "normal"]
    letter = 9 * 1233 / 2048
    under = [[round(x / letter) for x in line.get_xdata()] for line in said.lines]
    assert under == [[12, 15], [16, 19], [16, 21]]  # red, cup (shifted); then plane
    many = plots.board(PANELS, {k: ["a"] for k in range(20)})
    assert [t.get_text().split()[0] for t in many.axes[2].texts[1:]] == ["0", "4", "8", "11", "15", "19"]


def test_film_has_a_row_for_each_clip_and_outlines_masks_in_black_on_white():
    masks = torch.zeros(1, 4, 24, 24, dtype=torch.bool)
    masks[0, 2, 8:12, 10:16] = True  # in the third frame only
    long = "a very long caption " * 12
    figure = plots.film(
        [frames(), frames(2)], captions=[long, "teacher: a bell\nstudent: a star"], masks=[masks, None]
    )
    first, second = figure.axes
    assert first.images[0].get_array().shape == second.images[0].get_array().shape == (24, 4 * 26 - 2, 3)
    assert (second.images[0].get_array()[:, 52:] == 1).all()  # a shorter clip leaves room
    assert first.get_xlabel().count("\n") >= 2 and second.get_xlabel() == "teacher: a bell\nstudent: a star"
    assert [tuple(c.get_edgecolor()[0][:3]) for c in first.collections] == [to_rgb("white"), to_rgb("black")]
    box = first.collections[1].get_paths()[0].get_extents()
    assert 2 * 26 + 6 < box.x0 < 2 * 26 + 10 and 2 * 26 + 15 < box.x1 < 2 * 26 + 19
    assert 4 < box.y0 < 8 and 11 < box.y1 < 15
    assert not second.collections


def test_film_puts_single_frames_side_by_side():
    figure = plots.film([frames(1)] * 8, titles=[str(k) for k in range(8)])
    assert len(figure.axes) == 8
    assert len({round(axes.get_position().y0, 3) for axes in figure.axes}) == 2


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
    rows = images(plots.token_mask(mask[5:], [("image", 5), ("text", 5)], labels))[0]
    assert (rows == mask[5:].numpy()).all()


def test_budget_bars_have_the_length_and_number_of_their_part():
    figure = plots.budget({"teacher": {"encoder": 3_000_000, "head": 1_000}, "student": {"all": 250_000}})
    widths = [[bar.get_width() for bar in axes.patches] for axes in figure.axes]
    assert widths == [[3_000_000, 1_000], [250_000]]
    assert {"3 M (100%)", "1 k (< 1%)", "250 k (100%)", "teacher: 3 M", "encoder"} <= set(texts(figure))
    assert len({(bar.get_facecolor(), bar.get_hatch()) for axes in figure.axes for bar in axes.patches}) == 2


def test_curves_keep_one_look_for_one_run_and_never_tell_by_colour_alone():
    run, other = ([0, 1, 2], [1.0, 2.0, 4.0]), ([0, 1, 2], [1.0, 1.5, 2.0])
    logs = {"loss": {"alone": other, "distilled": run}, "CIDEr": {"distilled": run, "alone": other}}
    figure = plots.curves(logs, log={"loss"}, levels={"CIDEr": {"teacher": 5.0}})
    loss, cider = figure.axes
    assert (loss.get_yscale(), cider.get_yscale()) == ("log", "linear")
    look = {
        line.get_label(): (line.get_color(), line.get_linestyle(), line.get_marker()) for line in loss.lines
    }
    assert all(len(set(part)) == 2 for part in zip(*look.values()))
    assert all(look[line.get_label()][1] == line.get_linestyle() for line in cider.lines[:2])
    assert loss.lines[1].get_xydata().tolist() == [[0, 1], [1, 2], [2, 4]]
    assert cider.lines[2].get_ydata()[0] == 5.0 and "teacher 5" in texts(figure)
    assert cider.get_xlabel() == "step"


def test_curves_draw_intervals_where_there_are_some():
    figure = plots.curves({"a": ([1, 2], [(0.5, 0.4, 0.7), (0.6, 0.6, 0.6)])})
    (axes,) = figure.axes
    assert axes.lines[0].get_ydata().tolist() == [0.5, 0.6]
    bars = [segment[:, 1].tolist() for segment in axes.collections[0].get_segments()]
    assert bars == [[0.4, 0.7], [0.6, 0.6]]


def test_scores_have_an_axis_for_each_score_and_leave_out_what_is_missing():
    table = {"teacher": {"CIDEr": 5.25, "ms": 41.0}, "student": {"CIDEr": 4.5}}
    figure = plots.scores(table)
    cider, ms = figure.axes
    assert [bar.get_width() for bar in cider.patches] == [5.25, 4.5]
    assert [bar.get_width() for bar in ms.patches] == [41.0]
    assert cider.get_xlim()[0] == 0 and cider.get_xlim()[1] < 10 < 41 < ms.get_xlim()[1]
    assert {"5.25", "4.5", "41", "teacher", "student"} <= set(texts(figure))
    assert cider.patches[0].get_hatch() != cider.patches[1].get_hatch()
    shared = [axes.get_xlim() for axes in plots.scores(table, shared=True).axes]
    assert shared[0] == shared[1] == ms.get_xlim()


def test_a_log_axis_has_plain_numbers_and_more_of_them_where_it_is_short():
    short = plots.curves({"loss": ([1, 2, 3], [0.6, 0.9, 2.2])}, log=True)
    long = plots.curves({"loss": ([1, 2, 3], [0.002, 0.9, 300.0])}, log=True)
    labels = []
    for figure in (short, long):
        figure.draw_without_rendering()
        labels.append({label.get_text() for label in figure.axes[0].get_yticklabels()})
    assert {"1", "2"} <= labels[0] and {"0.01", "1", "100"} <= labels[1]
    assert "2" not in labels[1] and not any("10^" in text for text in labels[0] | labels[1])


def test_pareto_joins_only_what_nothing_beats():
    (axes,) = plots.pareto(ROWS, score="CIDEr").axes
    assert axes.lines[0].get_xydata().tolist() == [[10.0, 4.6], [40.0, 5.2]]  # not the slow one
    assert axes.get_xscale() == "log" and axes.get_ylabel() == "CIDEr"
    sizes = {tuple(c.get_offsets()[0]): c.get_sizes()[0] for c in axes.collections}
    assert sizes[(10.0, 4.6)] < sizes[(40.0, 5.2)] == sizes[(60.0, 4.0)]


def test_pareto_labels_do_not_cover_each_other():
    rows = [
        {"name": f"beam {k}", "ms": 20.0 + k / 10, "score": 5.0 + k / 1000, "parameters": 1e6}
        for k in range(4)
    ]
    figure = plots.pareto(rows)
    figure.draw_without_rendering()
    boxes = sorted(
        (t.get_bbox_patch().get_window_extent() for t in figure.axes[0].texts), key=lambda box: box.y0
    )
    assert len(boxes) == 4
    assert all(below.y1 <= above.y0 + 1 for below, above in zip(boxes, boxes[1:]))


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
    ends = [text for text in axes.texts if text.get_text() == "[SEP]\n(\u22120.60)"]
    assert len(ends) == 2  # a double line
    assert "exclamat\u2026\n\u22123.00" in texts(plots.beam_tree(trace(), VOCABULARY.__getitem__, top=2))


def test_beam_tree_grows_step_by_step_in_one_frame():
    whole, part = plots.beam_tree(trace(), VOCABULARY), plots.beam_tree(trace(), VOCABULARY, upto=1)
    assert whole.axes[0].get_xlim() == part.axes[0].get_xlim()
    assert (whole.get_size_inches() == part.get_size_inches()).all()
    assert not any("[SEP]" in text for text in texts(part))
    assert "the caption that won" in texts(whole) and "the caption that won" not in texts(part)


def test_the_ribbon_tells_where_two_captions_differ_and_how_likely_the_first_is():
    figure = plots.ribbon(
        {"greedy": (["a", "cup"], ["a", "bell", "moves"], [0.75, 0.1]), "sampled": (["a"], ["a"], [0.5])}
    )
    axes, _ = figure.axes
    marks = [line.get_xdata()[0] for line in axes.lines if line.get_marker() == "^"]
    assert marks == [1.5, 2.5]  # cup, bell; then nothing against moves
    cells = [patch for patch in axes.patches if hasattr(patch, "get_xy")]
    assert [round(cell.get_x()) for cell in cells] == [0, 1, 0]
    assert np.allclose(cells[1].get_facecolor(), mpl.colormaps["cividis"](0.1))
    assert {"a\n0.75", "cup\n0.10", "bell", "moves", "greedy: teacher"} <= set(texts(figure))
    with pytest.raises(ValueError, match="probabilities of greedy must have shape"):
        plots.ribbon({"greedy": (["a"], ["a"], [0.5, 0.5])})


def test_drafts_stand_in_boxes_kept_or_struck_out_with_the_others_own_word_below():
    figure = plots.drafts([(["a", "bell", "moves"], ["a", "cup"]), (["moves"], ["moves"])])
    (axes,) = figure.axes
    found = {(t.get_text(), *t.get_position()): t for t in axes.texts}
    assert set(found) == {
        ("a", 0, -0.2),
        ("bell", 1, -0.2),
        ("moves", 2, -0.2),
        ("cup", 1, 0.22),
        ("moves", 2, 0.8),
    }
    struck = [line.get_xdata().mean() for line in axes.lines]
    assert struck == [1, 2]  # bell, and what came after it
    assert found["cup", 1, 0.22].get_weight() == "bold" != found["a", 0, -0.2].get_weight()


def test_an_animation_shows_each_figure_in_turn():
    grown = [plots.beam_tree(trace(), VOCABULARY, upto=k) for k in (1, 2)]
    image = Image.open(io.BytesIO(plots.animation(grown, 500)))
    assert image.format == "PNG" and image.n_frames == 2
    for k, figure in enumerate(grown):
        image.seek(k)
        shown = np.asarray(image.convert("RGB"), float)
        assert image.info["duration"] == (500, 1500)[k]
        assert abs(shown - pixels(figure)).mean() < 2 < abs(shown - pixels(grown[1 - k])).mean()


class Counting:
    """A fake captioner with fixed transition scores, to draw the table of a real search."""

    bos_token_id, eos_token_id, pad_token_id, max_positions, vocab_size = 1, 2, 0, 20, 7

    def __init__(self):
        self.scores = torch.randn(7, 7, generator=torch.manual_seed(3)) * 2
        self.scores[:, :2] = -20

    def prefill(self, frames):
        return self

    def decode_step(self, tokens, state):
        return self.scores[tokens], self

    def reorder(self, rows):
        return self


@pytest.mark.parametrize("options", [{"beams": 3}, {"beams": 1}, {"beams": 3, "penalty": "gnmt"}])
def test_beam_tree_finds_the_caption_that_the_search_returned(options):
    from gitdistill.decoding import beam

    decoded = beam(Counting(), torch.zeros(2, 1, 3, 8, 8), max_length=8, trace=True, **options)
    steps = search._tree({name: np.asarray(values) for name, values in decoded.trace.items()}, 1, top=3)
    path = [int(steps[step][rank]["token"]) for step, rank in reversed(search._winner(steps))]
    caption = [int(token) for token in decoded.tokens[1, 0, 1:] if token != 0]
    if options.get("penalty") == "gnmt" and len(caption) == 7:  # writes the end over the last word
        path[-1] = 2
    assert path == caption
    assert pixels(plots.beam_tree(decoded.trace, VOCABULARY, clip=1)).std() > 5
