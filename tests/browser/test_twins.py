"""Explorers show what their still twins show: pixels of both are compared, and faults put into the script are seen.

A still is the picture of `gitdistill.viz.plots` that stands where scripts do not run. The two differ in size, letters
and in how pale the clip is below the heat, so what is compared is what was drawn: the opacity of the heat in each
cell, the fill and ink of each box, the height of each curve.
"""

import base64
import io

import numpy as np
import pytest
from matplotlib.colors import to_rgb
from PIL import Image
from plot_inputs import VOCABULARY, attention, trace

from gitdistill.viz import explorers, plots
from gitdistill.viz.plots import style
from gitdistill.world import Scene, Toy, draw

pytestmark = pytest.mark.browser

WORDS, CELLS, HEADS = ["a", "red", "bell"], (8, 8), (2, 4)
FRAMES = draw(Scene([Toy("cat", motion="left"), Toy("balloon", "red")]))  # [4, 3, SIDE, SIDE]
SIDE = 128
VALUES = attention(int(np.prod(HEADS)) * len(WORDS), len(FRAMES), CELLS[0]).numpy()
MAPS = VALUES.reshape(*HEADS, len(WORDS), len(FRAMES), *CELLS)
PINK, DARK = np.array([1, 0, 140 / 255]), np.array(to_rgb("#D80078"))  # heat in explorers, and in pictures
TOLERANCE = 0.12


def image(source):
    """An RGB picture from a data address or base64."""
    return Image.open(io.BytesIO(base64.b64decode(source.rpartition(",")[2]))).convert("RGB")


@pytest.fixture
def opened(page, tmp_path):
    """Opens an explorer, with a fault in its script if one is given, as a page; returns its host."""

    def open_page(explorer, fault=None):
        html, path = explorer.html, tmp_path / "explorer.html"
        if fault:
            assert html.count(fault[0]) == 1, fault
            html = html.replace(*fault)
        path.write_text(f"<!doctype html><meta charset=utf-8>{html}", encoding="utf-8")
        page.goto(path.as_uri())
        host = page.locator(".gitdistill-explorer")
        page.wait_for_timeout(300)  # until its pictures are decoded
        return host

    return open_page


def canvases(host, kind):
    sources = host.evaluate(
        "(host, kind) => [...host.shadowRoot.querySelectorAll(kind)].map((c) => c.toDataURL())", kind
    )
    return [image(source) for source in sources]


def part(still, axes, left, top, width, height):
    """What a still shows in a rectangle of an image in its axes, whose pixels have their middles at whole numbers."""
    corners = np.array([(left, top), (left + width, top + height)]) - 0.5
    (x0, y0), (x1, y1) = axes.transData.transform(corners)
    picture = image(still_of(still))
    return picture.crop([round(v) for v in (x0, picture.height - y0, x1, picture.height - y1)])


def still_of(figure):
    return explorers.Explorer("words", figure).still


def cells(picture):
    """The mean colour [h, w, 3] in the middle of each cell, clear of the lines around it."""
    fine = np.asarray(picture.resize((16 * CELLS[1], 16 * CELLS[0]), Image.Resampling.BICUBIC)) / 255
    return fine.reshape(CELLS[0], 16, CELLS[1], 16, 3)[:, 5:11, :, 5:11].mean((1, 3))


def opacity(shown, photo, colour):
    """How opaque [h, w] a colour lies over a photo, by cell; cells of another colour count as 1 too much."""
    away = colour - photo
    found = ((shown - photo) * away).sum(-1) / np.square(away).sum(-1)
    strange = np.abs(photo + found[..., None] * away - shown).max(-1) > TOLERANCE
    return found + strange


def heat_apart(tile, still_tile, frame, power=1.0):
    """The largest difference of two heats over one frame; that of the explorer to a `power` is that of the still."""
    photo = cells(Image.fromarray(np.moveaxis(frame, 0, -1)))
    ours = 0.92 * (np.maximum(opacity(cells(tile), photo, PINK), 0) / 0.92) ** power
    theirs = opacity(cells(still_tile), 0.45 + 0.55 * photo, DARK)
    return np.abs(ours - theirs).max()


def words_apart(opened, fault):
    maps = MAPS.mean((0, 1))
    # The word shown first has the largest value, and so the scale of all.
    order = np.argsort(-maps.max((1, 2, 3)))
    values, words = MAPS[:, :, order], [WORDS[k] for k in order]
    still = plots.gaze(FRAMES, words, {"teacher": values.mean((0, 1))})
    columns = {"teacher": {"words": words, "heads": values}}
    host, step = opened(explorers.words(FRAMES, columns, still), fault), SIDE + SIDE // 16
    found = []
    for t in range(len(words)):
        tiles = canvases(host, ".frames canvas")
        for f, tile in enumerate(tiles):
            theirs = part(still, still.axes[0], (t + 1) * step, f * step, SIDE, SIDE)
            found.append(heat_apart(tile, theirs, FRAMES[f]))
        host.locator("input[type=checkbox]").nth(1).check()  # one scale for all words, as in the still
        host.locator(".explorer").press("ArrowRight")
    return max(found)


def heads_apart(opened, fault):
    still = plots.heads(MAPS[:, :, 0, 0], FRAMES[0])
    columns = {"teacher": {"words": WORDS, "heads": MAPS[:, :, :, :1]}}
    host, step = opened(explorers.words(FRAMES[:1], columns, still), fault), SIDE + SIDE // 5
    found = []
    for (layer, head), tile in zip(np.ndindex(HEADS), canvases(host, ".heads canvas"), strict=True):
        theirs = part(still, still.axes[0], head * step, layer * step, SIDE, SIDE)
        # small tiles show the root of what large ones show
        found.append(heat_apart(tile, theirs, FRAMES[0], power=2))
    return max(found)


def modules_apart(opened, fault):
    """The share of strong cells that have the colour of the other sign."""
    channels = np.random.RandomState(5).randn(3, *CELLS)
    still = plots.feature_maps(FRAMES[0], {"stage": channels}, channels=3)
    host = opened(explorers.modules(FRAMES[:1], {"stage": channels[None]}, still), fault)
    axes = [axes for axes in still.axes if axes.get_title().startswith("channel")]
    signs = []
    for picture in canvases(host, ".frames canvas")[2:] + [part(still, a, 0, 0, *CELLS) for a in axes]:
        red, _, blue = np.moveaxis(cells(picture), -1, 0)
        signs.append(blue - red)  # violet above 0, orange below
    ours, theirs = np.array(signs[:3]), np.array(signs[3:])
    strong = np.abs(theirs) > 0.1
    return (ours * theirs < 0)[strong].mean()


def box(picture, place):
    """The middle colour of a box, and how dark its darkest pixel is (half of it: letters differ)."""
    pixels = np.asarray(picture.crop([round(v) for v in place])).reshape(-1, 3) / 255
    return [*np.median(pixels, 0), pixels.mean(1).min() / 2]


def spread(places):
    """Places [n, 2] between 0 and 1."""
    places = np.array(places)
    return (places - places.min(0)) / (places.max(0) - places.min(0))


def boxes_apart(opened, fault):
    """Place, fill and ink of every candidate."""
    still = plots.beam_tree(trace(), VOCABULARY, top=2)
    host = opened(explorers.tree({"2 beams": trace()}, VOCABULARY, still), fault)
    picture, shown = image(still_of(still)), Image.open(io.BytesIO(host.screenshot())).convert("RGB")
    # The outer of two boxes is drawn first, at the same place.
    texts = {text.get_position(): text for text in still.axes[0].texts if text.get_text() != "start"}
    corner, found, places = host.bounding_box(), [], []
    for text, node in zip(texts.values(), host.locator(".node rect:last-of-type").all(), strict=True):
        ours, theirs = node.bounding_box(), text.get_bbox_patch().get_window_extent()
        left, top = ours["x"] - corner["x"], ours["y"] - corner["y"]
        right, bottom = left + ours["width"], top + ours["height"]
        high = picture.height
        look = box(shown, (left, top, right, bottom))
        other = box(picture, (theirs.x0, high - theirs.y1, theirs.x1, high - theirs.y0))
        found.append(np.abs(np.subtract(look, other)).max())
        places.append(((left + right) / 2, (top + bottom) / 2))
    return max(*found, np.abs(spread(places) - spread(list(texts))).max())


def curve(picture, colour):
    """The pixels [n, 2] of a line: in each column where it is seen, their mean."""
    near = np.abs(np.asarray(picture) / 255 - to_rgb(colour)).max(-1) < 0.15
    rows, columns = np.nonzero(near)
    return np.array([(x, rows[columns == x].mean()) for x in np.unique(columns)]).reshape(-1, 2)


def heights(lines):
    """Heights of curves at 50 places, all on the scale of the highest and the lowest."""
    everything = np.concatenate(lines)
    low, size = everything.min(0), np.ptp(everything, 0)
    return np.array([np.interp(np.linspace(0.05, 0.95, 50), *((line - low) / size).T) for line in lines])


def curves_apart(opened, fault):
    steps, colours = np.arange(0, 101, 10), {"teacher": style.colour(0), "captions only": style.colour(2)}
    values = 3 * np.exp(-steps / 20), 2 * np.exp(-steps / 60), np.sqrt(steps)
    fast, slow, score = ((steps.tolist(), row.tolist()) for row in values)
    panels = {"losses": {"teacher": fast, "captions only": slow}, "score": {"teacher": score}}
    still = plots.board(panels, {100: ["a cup"]}, log=("losses",))
    host, found = opened(explorers.training(panels, {100: ["a cup"]}, still, log=("losses",)), fault), []
    picture = image(still_of(still))
    for panel, axes, svg in zip(panels, still.axes, host.locator("figure.panel > svg").all()):
        legend, place = axes.get_legend().get_window_extent(), axes.get_window_extent()
        theirs, high = picture.copy(), picture.height
        theirs.paste("white", [round(v) for v in (legend.x0, high - legend.y1, legend.x1, high - legend.y0)])
        theirs = theirs.crop([round(v) for v in (place.x0, high - place.y1, place.x1, high - place.y0)])
        ours = Image.open(io.BytesIO(svg.screenshot())).convert("RGB")
        lines = [[curve(shown, colours[name]) for name in panels[panel]] for shown in (ours, theirs)]
        if min(len(line) for line in lines[0]) == 0:
            return 1.0
        found.append(np.abs(np.subtract(*map(heights, lines))).max())
    return max(found)


SHIFTED = "pen.drawImage(small, 0, 0, width, height)", "pen.drawImage(small, width / 8, 0, width, height)"
BLUE = "const HEAT = [255, 0, 140]", "const HEAT = [0, 140, 255]"
FAULTS = {
    words_apart: [
        SHIFTED,
        BLUE,
        ("at(map, here(), frame), (value) => (part", "at(map, here(), 0), (value) => (part"),
        ("pen.drawImage(image, 0, 0, wide, high)", "pen.drawImage(images[0], 0, 0, wide, high)"),
    ],
    heads_apart: [SHIFTED, BLUE, ("map.tops[here()] / most;", "1;")],
    modules_apart: [
        ("value > 0.5 ? [94", "value < 0.5 ? [94"),
        ("state.frame * count + c, size", "state.frame * count, size"),
    ],
    boxes_apart: [
        ("s === step && r === rank", "s === step && r !== rank"),
        ("fill: #fce4d2", "fill: #eaf3fa"),
        ("y = (rank) => 42 * rank", "y = (rank) => 42 * (ranks - rank)"),
    ],
    curves_apart: [
        ("const scale = panel.log", "const scale = !panel.log"),
        ("...look(line.place), d", "...look(line.place + 1), d"),
        ("y(line.values[i])", "y(line.values.at(-1 - i))"),
    ],
}


@pytest.mark.parametrize("apart", FAULTS)
def test_an_explorer_shows_what_its_still_shows(opened, apart):
    same = apart(opened, None)
    faults = [apart(opened, fault) for fault in FAULTS[apart]]
    print(f"{apart.__name__}: {same:.3f}; with faults {', '.join(f'{fault:.3f}' for fault in faults)}")
    assert same < TOLERANCE < min(faults)
