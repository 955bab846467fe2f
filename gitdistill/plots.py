"""Pictures: arrays in, `Figure` out. Nothing here loads a model, and pyplot keeps no reference to anything.

All arguments may be torch tensors or numpy arrays, on any device. One style for all pictures: at most 11 inches
at 80 dpi; cividis for amounts; PuOr around zero for differences; Okabe and Ito's colours
(https://jfly.uni-koeln.de/color/) for categories, each with a mark, dash or hatch of its own, so that a print
in grey still tells them apart; maps as sharp cells over a grey photo; numbers where they matter. `title` states
what the picture shows, and becomes the alternative text for readers who cannot see it.

Letters: C clips, F frames, H x W pixels, h x w cells of a map, T words, L layers, Q and S tokens that look and
that are looked at.
"""

import io
from collections import Counter
from functools import wraps
from itertools import accumulate
from textwrap import fill

import matplotlib as mpl
import numpy as np
from matplotlib.cm import ScalarMappable
from matplotlib.colors import ListedColormap, Normalize, PowerNorm
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import LogLocator, NullFormatter
from PIL import Image, ImageChops

DPI = 80
WIDTH = 11.0  # inches, the widest picture
AMOUNT, DIFFERENCE = "cividis", "PuOr"
OKABE_ITO = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#F0E442")
DASHES = ("-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)), (0, (1, 3)), (0, (8, 2)), (0, (3, 1)))
MARKS = ("o", "s", "^", "D", "v", "P", "X", "*")
HATCHES = ("", "///", "...", "\\\\\\", "xxx", "---", "ooo", "+++")
GREY = "#777777"
LUMA = np.array([0.299, 0.587, 0.114])
STYLE = {
    "font.size": 10,
    "font.family": "DejaVu Sans",
    "axes.titlesize": 10,
    "axes.labelsize": 10,
    "xtick.labelsize": 9,
    "ytick.labelsize": 9,
    "legend.fontsize": 9,
    "figure.titlesize": 11,
    "figure.titleweight": "bold",
    "figure.facecolor": "white",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "hatch.linewidth": 1.2,
    "lines.linewidth": 1.8,
    "image.interpolation": "nearest",
}
# Matplotlib's own values for all else, so that a picture does not depend on the reader's settings.
_DEFAULTS = {
    k: v for k, v in mpl.rcParamsDefault.items() if not k.startswith(("backend", "interactive", "toolbar"))
}


class Picture(Figure):
    """A figure that a notebook shows as a small PNG with alternative text, whichever backend is active."""

    alt = ""
    top = 0.0  # inches that the title takes
    exact = False  # keep every colour: a palette would turn the smooth backgrounds of frames into bands

    def _ipython_display_(self):
        from IPython.display import display

        data = {"image/png": png(self), "text/plain": repr(self)}
        display(data, metadata={"image/png": {"alt": self.alt}}, raw=True)


def png(figure: Figure) -> bytes:
    """The figure as PNG bytes; the same figure gives the same bytes.

    A palette of 256 colours makes them three times smaller. It is used unless the picture asks for exact colours
    or one of them would move visibly.
    """
    full, small = io.BytesIO(), io.BytesIO()
    with mpl.rc_context(_DEFAULTS | STYLE):
        figure.savefig(full, format="png", dpi=figure.dpi, metadata={"Software": None})
    if getattr(figure, "exact", False):
        return full.getvalue()
    image = Image.open(full).convert("RGB")
    fewer = image.quantize(256, method=Image.Quantize.MAXCOVERAGE, dither=0)
    if max(high for _, high in ImageChops.difference(image, fewer.convert("RGB")).getextrema()) > 16:
        return full.getvalue()
    fewer.save(small, format="png", optimize=True)
    return small.getvalue()


def _styled(function):
    """Let `function` return a picture in this module's style, laid out once and for all."""

    @wraps(function)
    def draw(*args, **kwargs):
        with mpl.rc_context(_DEFAULTS | STYLE):
            figure = function(*args, **kwargs)
            figure.draw_without_rendering()  # lays out; a second time would move things by a pixel
            figure.set_layout_engine("none")
            return figure

    return draw


# -- what all pictures share ----------------------------------------------------------------------------------


def _figure(width, height, kind, title, layout="constrained"):
    """An empty picture of width x height inches below its title; `kind` and `title` are its alternative text."""
    width = min(width, WIDTH)
    text = None if title is None else fill(title, int(width * 10.5))
    top = 0.0 if title is None else 0.18 + 0.18 * (text.count("\n") + 1)
    figure = Picture(figsize=(width, height + top), dpi=DPI, layout=layout)
    figure.alt, figure.top = kind if title is None else f"{kind}: {title}", top
    if title is not None:
        place = {} if layout else {"y": 1 - 0.08 / (height + top), "va": "top"}
        figure.suptitle(text, x=0.08 / width, ha="left", **place)
    return figure


def _place(figure, left, top, width, height):
    """Axes at a place in inches, counted from the upper left corner below the title."""
    whole, high = figure.get_size_inches()
    return figure.add_axes(
        (left / whole, 1 - (figure.top + top + height) / high, width / whole, height / high)
    )


def _array(values, name, letters):
    """`values` as a numpy array with as many dimensions as `letters` has words."""
    if hasattr(values, "detach"):
        values = values.detach().cpu()
        values = (values.float() if values.is_floating_point() else values).numpy()
    values = np.asarray(values)
    if values.ndim != len(letters.split()):
        raise ValueError(f"{name} must be [{letters.replace(' ', ', ')}], got {list(values.shape)}")
    if not np.isfinite(values).all():
        raise ValueError(f"{name} holds NaN or infinite values")
    return values


def _frames(frames, name="frames", letters="F 3 H W"):
    """Frames as floats in [0, 1], channels last."""
    frames = _array(frames, name, letters)
    if frames.shape[-3] != 3:
        raise ValueError(f"{name} must be [{letters.replace(' ', ', ')}], got {list(frames.shape)}")
    if frames.dtype == np.uint8:
        frames = frames / 255.0
    elif frames.min() < 0 or frames.max() > 1:
        raise ValueError(f"{name} must be uint8 or between 0 and 1: show raw frames, not normalised pixels")
    return np.moveaxis(frames, -3, -1)


def _same(got, expected, name):
    if tuple(got) != tuple(expected):
        raise ValueError(f"{name} must have shape {list(expected)}, got {list(got)}")


def _some(values, name):
    if len(values) == 0:
        raise ValueError(f"{name} is empty: nothing to draw")
    return values


def _amounts(*arrays):
    """One square-root scale from 0 for all arrays, so that a faint map still shows beside a sharp one."""
    return PowerNorm(0.5, 0.0, max(max(float(a.max()) for a in arrays), 1e-9))


def _around_zero(*arrays):
    limit = max(max(float(np.abs(a).max()) for a in arrays), 1e-9)
    return Normalize(-limit, limit)


def _cell(values, photo):
    """Height and width of a map's cell in pixels: tiles as fine as the photo, but at most about 128 pixels."""
    shrink = min(1.0, 128 / max(photo.shape[:2]))
    return [max(1, round(shrink * pixels / cells)) for pixels, cells in zip(photo.shape, values.shape[-2:])]


def _overlay(photo, values, norm, cmap):
    """A map [h, w] as cells over a grey photo [H, W, 3]; RGB in [0, 1].

    Opacity grows with the value. The photo keeps to the dark half under amounts, whose large values are bright,
    and to the bright half under differences, whose large values are dark.
    """
    size = _cell(values, photo)
    grey = _resized(photo, values.shape[0] * size[0], values.shape[1] * size[1]) @ LUMA
    position = np.asarray(norm(values), dtype=float)
    strength = np.abs(2 * position - 1) if cmap == DIFFERENCE else position
    grey = 0.55 + 0.45 * grey[..., None] if cmap == DIFFERENCE else 0.5 * grey[..., None]
    cells = np.ones((*size, 1))
    alpha = np.kron((0.15 + 0.7 * np.sqrt(strength))[..., None], cells)
    return alpha * np.kron(mpl.colormaps[cmap](position)[..., :3], cells) + (1 - alpha) * grey


def _resized(photo, height, width):
    """[H, W, 3] to [height, width, 3], nearest neighbours."""
    rows, columns = ((np.arange(n) * old) // n for n, old in zip((height, width), photo.shape))
    return photo[rows][:, columns]


def _mosaic(tiles, gap):
    """Rows of equally large RGB tiles (None: empty) as one image with white gaps between them."""
    height, width = next(t for row in tiles for t in row if t is not None).shape[:2]
    shape = (len(tiles) * (height + gap) - gap, max(map(len, tiles)) * (width + gap) - gap, 3)
    image = np.ones(shape)
    for r, row in enumerate(tiles):
        for c, tile in enumerate(row):
            if tile is not None:
                y, x = r * (height + gap), c * (width + gap)
                image[y : y + height, x : x + width] = tile
    return image


def _centres(count, size, gap):
    return np.arange(count) * (size + gap) + (size - 1) / 2


def _bare(axes):
    """No ticks, no frame: the axes of an image."""
    axes.tick_params(length=0)
    axes.set_xticks([])
    axes.set_yticks([])
    axes.spines[:].set_visible(False)


def _bar(figure, norm, cmap, label, **place):
    bar = figure.colorbar(ScalarMappable(norm, cmap), label=label, **place)
    bar.outline.set_linewidth(0.5)
    if isinstance(norm, PowerNorm):
        ticks = [norm.vmax * part for part in (0, 0.05, 0.2, 0.5, 1)]
        bar.set_ticks(ticks, labels=[_number(tick, 2) for tick in ticks])
    return bar


def _number(value, digits=3):
    return _minus_sign(f"{value:,.0f}" if abs(value) >= 100 else f"{value:.{digits}g}")


def _minus_sign(text):
    return text.replace("-", "\u2212")


def _count(value):
    for unit, name in ((1e9, " G"), (1e6, " M"), (1e3, " k")):
        if value >= unit:
            return f"{value / unit:.3g}{name}"
    return str(int(value))


# -- clips ------------------------------------------------------------------------------------------------------


@_styled
def film(frames, titles=None, captions=None, masks=None, columns=None, title=None):
    """Film strips: a clip a row, its frames from left to right, its caption below.

    frames: one clip [F, 3, H, W], or a list of clips (or [C, F, 3, H, W]); uint8, or floats in [0, 1].
    titles, captions: a text for each clip, above and below it; long captions wrap, line breaks are kept.
    masks: for each clip None or boolean [O, F, H, W] (or [F, H, W]), outlined in black on white: O objects.
    columns: clips side by side; by default one, and up to six for single frames.
    """
    single = getattr(frames, "ndim", 0) == 4
    clips = [_frames(clip) for clip in _some([frames] if single else frames, "frames")]
    titles, captions, masks = ([v] if single and v is not None else v for v in (titles, captions, masks))
    for name, values in (("titles", titles), ("captions", captions), ("masks", masks)):
        if values is not None and len(values) != len(clips):
            raise ValueError(f"{name} must hold one entry for each of {len(clips)} clips, got {len(values)}")
    length = max(map(len, clips))
    columns = columns or (min(6, len(clips)) if length == 1 else 1)
    rows = -(-len(clips) // columns)
    tile = min(1.6, (WIDTH - 0.1) / (length * columns) - 0.1 / length)
    texts = [_wrapped(text or "", max(12, int(tile * length * 12))) for text in captions or [""] * len(clips)]
    lines = max(text.count("\n") + 1 for text in texts) if captions else 0
    width, height = tile * length, tile * clips[0].shape[1] / clips[0].shape[2]
    above, below = (0.3 if titles else 0.08), (0.12 + 0.165 * lines if captions else 0.0)
    size = max((width + 0.1) * columns + 0.1, 4.0), rows * (above + height + below) + 0.08
    figure = _figure(*size, "Film strips", title, layout=None)
    figure.exact = True
    for k, clip in enumerate(clips):
        row, column = divmod(k, columns)
        left, top = 0.1 + column * (width + 0.1), above + row * (above + height + below)
        axes = _place(figure, left, top, width, height)
        smoothing = "nearest" if tile * DPI > clip.shape[2] else "antialiased"
        _strip(axes, clip, length, None if masks is None else masks[k], smoothing)
        axes.set_xlabel(texts[k], fontsize=9)
        axes.set_title(titles[k] if titles else "", fontsize=10)
    return figure


def _wrapped(text, letters):
    return "\n".join(fill(line, letters) for line in text.split("\n"))


def _strip(axes, clip, length, mask, smoothing):
    width = clip.shape[2]
    gap = max(2, width // 24)
    _bare(axes)
    axes.imshow(_mosaic([[*clip, *[None] * (length - len(clip))]], gap), interpolation=smoothing)
    if mask is None:
        return
    mask = _array(mask, "mask", "O F H W" if getattr(mask, "ndim", 4) == 4 else "F H W")
    mask = mask.reshape(-1, *mask.shape[-3:]) > 0
    _same(mask.shape[1:], clip.shape[:3], "mask")
    for thing in mask:
        for f, shape in enumerate(thing):
            _outline(axes, shape, f * (width + gap))


def _outline(axes, mask, left, margin=2):
    """A line around a mask [H, W], `margin` pixels outside it so that thin shapes stay visible."""
    if not mask.any():
        return
    side = 2 * margin + 1
    wide = np.pad(mask, 2 * margin)
    wide = np.lib.stride_tricks.sliding_window_view(wide, (side, side)).any((2, 3))
    wide = np.pad(wide[margin:-margin, margin:-margin], 1).astype(float)  # padding closes lines at the border
    y, x = (np.arange(n) - 1 for n in wide.shape)
    for colour, thickness in (("white", 2.6), ("black", 1.0)):
        axes.contour(x + left, y, wide, [0.5], colors=colour, linewidths=thickness)


# -- the model as a whole ---------------------------------------------------------------------------------------


@_styled
def token_mask(mask, groups, labels=None, title=None):
    """Who sees whom: one row a token that looks, one column a token that is looked at.

    mask: boolean [Q, S], True may be seen; Q = S, or the last Q of the S tokens look.
    groups: blocks of tokens in order, as (name, count) pairs that add up to S; e.g. image and text in GIT
        (https://arxiv.org/abs/2205.14100). Each pair of blocks is bracketed, and named by what its cells hold.
    labels: a text for each of the S tokens, drawn when they fit (up to 40).
    """
    mask = _array(mask, "mask", "Q S").astype(bool)
    looking, seen = mask.shape
    ends = list(accumulate(count for _, count in groups))
    if ends[-1] != seen or looking > seen:
        raise ValueError(f"groups hold {ends[-1]} tokens, but mask is {list(mask.shape)}")
    figure = _figure(7.5, 1.0 + 5.0 * looking / seen, "Attention mask", title)
    axes = figure.subplots()
    colours = ListedColormap(["white", OKABE_ITO[5]])
    axes.imshow(mask, cmap=colours, vmin=0, vmax=1, extent=(0, seen, seen, seen - looking))
    axes.set(xlabel="is looked at", ylabel="looks", xlim=(0, seen), ylim=(seen, seen - looking))
    axes.spines[:].set_visible(True)
    if seen <= 40:
        grid = {"color": "white", "linewidth": 0.8}
        axes.vlines(np.arange(1, seen), seen - looking, seen, **grid)
        axes.hlines(np.arange(seen - looking + 1, seen), 0, seen, **grid)
    axes.set_xticks([])
    axes.set_yticks([])
    if labels is not None and seen <= 40:
        axes.set_xticks(np.arange(seen) + 0.5, labels, rotation=90)
        axes.set_yticks(np.arange(seen - looking, seen) + 0.5, labels[seen - looking :])
        axes.tick_params(length=0)
    starts = [0, *ends[:-1]]
    for (name, _), start, end in zip(groups, starts, ends):
        axes.axvline(end, color="black")
        axes.annotate(name, ((start + end) / 2, 1.02), xycoords=("data", "axes fraction"), ha="center")
        if end > seen - looking:
            axes.axhline(end, color="black")
            middle = (max(start, seen - looking) + end) / 2
            place = {"xycoords": ("axes fraction", "data"), "va": "center", "rotation": 270}
            axes.annotate(name, (1.02, middle), **place)
            for left, right in zip(starts, ends):
                _describe(axes, mask, (max(start, seen - looking), end), (left, right), seen - looking)
    return figure


def _describe(axes, mask, rows, columns, offset):
    """Write into one block what it lets through, if there is room."""
    block = mask[rows[0] - offset : rows[1] - offset, columns[0] : columns[1]]
    if block.shape[0] < 0.045 * mask.shape[1] or block.shape[1] < 0.15 * mask.shape[1]:
        return
    past = np.tril(np.ones_like(block), block.shape[1] - block.shape[0])
    causal = (block == past).all() and not block.all()
    text = "sees itself\nand the past" if causal else "sees a part"
    text = "sees all" if block.all() else text if block.any() else "sees nothing"
    x, y = (0.32, 0.8) if causal else (0.5, 0.5)  # the lower left of a triangle
    x, y = columns[0] + x * block.shape[1], rows[0] + y * block.shape[0]
    style = {"boxstyle": "round", "facecolor": "white", "edgecolor": GREY}
    axes.text(x, y, text, ha="center", va="center", fontsize=9, bbox=style)


@_styled
def budget(parts, title=None):
    """Parameters of each part as bars, with numbers and shares.

    parts: name -> parameters, or model -> (name -> parameters) for several models on one scale.
    """
    models = parts if isinstance(next(iter(_some(parts, "parts").values())), dict) else {"": parts}
    sizes = [len(model) for model in models.values()]
    figure = _figure(9, 0.32 * sum(sizes) + 0.45 * len(sizes) + 0.5, "Parameters", title)
    ratios = [size + 0.6 for size in sizes]
    grid = figure.subplots(len(sizes), 1, sharex=True, squeeze=False, height_ratios=ratios)[:, 0]
    top = max(value for model in models.values() for value in model.values())
    for k, (axes, (model, values)) in enumerate(zip(grid, models.items())):
        total = sum(values.values())
        axes.barh(list(values), list(values.values()), 0.75, **_bars(k))
        for y, value in enumerate(values.values()):
            share = f"{value / total:.0%}" if value >= 0.005 * total else "< 1%"
            axes.text(value + top / 100, y, f"{_count(value)} ({share})", va="center", fontsize=9)
        axes.set_title(f"{model}: {_count(total)}" if model else f"total {_count(total)}", loc="left")
        axes.set(xlim=(0, top * 1.2), ylim=(len(values) - 0.5, -0.5))
        axes.tick_params(axis="y", length=0)
        axes.xaxis.set_major_formatter(lambda value, _: _count(value))
    grid[-1].set_xlabel("parameters")
    return figure


def _bars(k):
    colour, hatch = OKABE_ITO[k % len(OKABE_ITO)], HATCHES[k % len(HATCHES)]
    return {"facecolor": colour, "edgecolor": "white", "hatch": hatch, "linewidth": 0}


# -- where a model looks ----------------------------------------------------------------------------------------


@_styled
def gaze(frames, words, rows, probabilities=None, difference=False, wrap=None, title=None):
    """Where each word looks: words from left to right, frames from top to bottom, a block for each model.

    The idea is the word-by-word strip of Show, Attend and Tell (https://arxiv.org/abs/1502.03044). All blocks
    share one scale; a square marks the strongest cell of each word. The first column shows the frames.

    frames: [F, 3, H, W]. words: T texts.
    rows: label -> attention [T, F, h, w]; the grids of two models may differ unless `difference` is asked for.
    probabilities: a number for each word, or label -> such numbers; printed beside the word.
    difference: append first minus second (exactly two rows); + and - mark its strongest cells.
    wrap: words in a line; by default 12 for clips and 6 for single frames.
    """
    frames = _frames(frames)
    maps = {label: _array(values, f"attention of {label}", "T F h w") for label, values in rows.items()}
    for label, values in _some(maps, "rows").items():
        _same(values.shape[:2], (len(words), len(frames)), f"the words and frames of {label}")
    wrap = min(wrap or (6 if len(frames) == 1 else 12), len(_some(words, "words")))
    scale = _amounts(*maps.values())
    panels = [(label, values, scale, AMOUNT) for label, values in maps.items()]
    if difference:
        panels.append(_minus(maps))
    lines = [slice(start, start + wrap) for start in range(0, len(words), wrap)]
    count, above = len(lines) * len(panels), 0.28 if probabilities is None else 0.44
    tile = min(1.35, (WIDTH - 2.2) / (wrap + 1), 11.0 / (count * len(frames)))  # not much higher than wide
    width, height = tile * (wrap + 1), tile * len(frames) * frames.shape[1] / frames.shape[2]
    figure = _figure(
        max(width + 2.2, 5.0), count * (above + height) + 0.15, "Attention of words", title, None
    )
    for k in range(count):
        label, values, norm, cmap = panels[k % len(panels)]
        chosen = lines[k // len(panels)]
        top = above + k * (above + height)
        axes = _place(figure, 1.0, top, width, height)
        _gaze_panel(
            axes, frames, _gaze_texts(words, probabilities, label)[chosen], values[chosen], norm, cmap, wrap
        )
        side = {"rotation": 90, "ha": "center", "va": "center", "transform": axes.transAxes}
        axes.text(-0.82 / width, 0.5, label, **side)
        if k < len(panels) and (k == 0 or cmap == DIFFERENCE):
            bar = _place(figure, 1.15 + width, top, 0.15, min(height, 4.0))
            _bar(figure, norm, cmap, "difference" if k else "attention\n(\u221a scale)", cax=bar)
    return figure


def _minus(maps):
    if len(maps) != 2:
        raise ValueError(f"a difference needs exactly two rows, got {len(maps)}")
    (name, first), (other, second) = maps.items()
    _same(second.shape, first.shape, f"attention of {other}")
    values = first - second
    return f"{name}\nminus {other}", values, _around_zero(values), DIFFERENCE


def _gaze_texts(words, probabilities, label):
    numbers = probabilities.get(label) if isinstance(probabilities, dict) else probabilities
    if numbers is None:
        return list(words)
    numbers = _array(numbers, "probabilities", "T")
    _same(numbers.shape, (len(words),), "probabilities")
    return [f"{word}\n{number:.2f}" for word, number in zip(words, numbers)]


def _gaze_panel(axes, frames, words, values, norm, cmap, wrap):
    cells = values.shape[-2:]
    size = _cell(values, frames[0])
    height, width = cells[0] * size[0], cells[1] * size[1]
    gap = max(2, width // 16)
    picture = [_resized(frame, height, width) for frame in frames]
    tiles = [
        [picture[f], *(_overlay(frame, v[f], norm, cmap) for v in values)] for f, frame in enumerate(frames)
    ]
    tiles[0] += [None] * (wrap - len(words))
    _bare(axes)
    axes.imshow(_mosaic(tiles, gap), interpolation="antialiased")
    axes.xaxis.tick_top()
    axes.set_xticks(_centres(len(words) + 1, width, gap), ["", *words])
    if len(frames) > 1:
        axes.set_yticks(_centres(len(frames), height, gap), [f"frame {f + 1}" for f in range(len(frames))])
    mark = _signs if cmap == DIFFERENCE else _peaks
    mark(axes, values, norm, size, (height + gap, width + gap))


def _peaks(axes, values, norm, size, step):
    """A square around the strongest cell of each word, in the panel's pixels; values [T, F, h, w]."""
    for t, value in enumerate(values):
        f, r, c = np.unravel_index(value.argmax(), value.shape)
        _square(axes, (t + 1) * step[1] + c * size[1], f * step[0] + r * size[0], size)


def _square(axes, left, top, size):
    """A black and white line around one cell of `size` [height, width]."""
    for colour, thickness in (("black", 2.4), ("white", 1.0)):
        place = (left - 0.5, top - 0.5), size[1], size[0]
        axes.add_patch(Rectangle(*place, fill=False, edgecolor=colour, linewidth=thickness))


def _signs(axes, values, norm, size, step):
    """The sign of the strong cells of a difference, in the panel's pixels; values [T, F, h, w]."""
    for mark, sign in (("+", 1), ("_", -1)):
        t, f, r, c = np.nonzero(sign * values > 0.4 * norm.vmax)
        x, y = (t + 1) * step[1] + (c + 0.5) * size[1] - 0.5, f * step[0] + (r + 0.5) * size[0] - 0.5
        axes.scatter(x, y, s=16, marker=mark, color="white", linewidths=1.2)


@_styled
def frame_word_map(attention, words, frames, title=None):
    """How a word's attention divides over the frames: columns add up to one, values above 0.3 are printed.

    attention: [T, F, h, w], or label -> such an array for models side by side.
    words: T texts. frames: [F, 3, H, W], shown at the left edge.
    """
    frames = _frames(frames)
    maps = attention if isinstance(attention, dict) else {"": attention}
    shares = {}
    for label, values in _some(maps, "attention").items():
        mass = _array(values, "attention", "T F h w").sum((2, 3))
        _same(mass.shape, (len(words), len(frames)), "the words and frames of attention")
        shares[label] = (mass / np.maximum(mass.sum(1, keepdims=True), 1e-9)).T
    limit = max(float(share.max()) for share in shares.values())
    cell, height = min(0.7, (WIDTH - 2.6 - 0.2 * len(maps)) / (len(words) * len(maps))), 0.6 * len(frames)
    width, above = cell * len(words), 0.3 if any(maps) else 0.08
    size = max(2.6 + (width + 0.2) * len(maps), 5.0), above + height + 0.75
    figure = _figure(*size, "Attention per frame", title, None)
    gap = max(2, frames.shape[1] // 16)
    strip = _place(figure, 0.75, above, 0.6 * frames.shape[2] / frames.shape[1], height)
    strip.imshow(_mosaic([[frame] for frame in frames], gap), interpolation="antialiased")
    _bare(strip)
    middles = _centres(len(frames), frames.shape[1], gap)
    strip.set_yticks(middles, [f"frame {f + 1}" for f in range(len(frames))])
    for k, (label, share) in enumerate(shares.items()):
        axes = _place(figure, 1.5 + k * (width + 0.2), above, width, height)
        _share_map(axes, share, words, limit)
        axes.set_title(label)
    bar = _place(figure, 1.5 + len(maps) * (width + 0.2), above, 0.15, height)
    _bar(figure, Normalize(0, limit), AMOUNT, "share of attention", cax=bar)
    return figure


def _share_map(axes, share, words, limit):
    axes.pcolormesh(share, cmap=AMOUNT, vmin=0, vmax=limit, edgecolors="white", linewidth=1)
    axes.set_ylim(len(share), 0)
    axes.set_xticks(np.arange(len(words)) + 0.5, words, rotation=45, ha="right", rotation_mode="anchor")
    axes.set_yticks([])
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    for f, t in zip(*np.nonzero(share > 0.3)):
        colour = "black" if share[f, t] > 0.5 * limit else "white"
        axes.text(t + 0.5, f + 0.5, f"{share[f, t]:.2f}", ha="center", va="center", color=colour, fontsize=9)


@_styled
def heads(attention, frame, title=None):
    """Every head of every layer for one word: a row a layer, a column a head, one scale.

    attention: [L, H, h, w], not renormalised: below each map stands the share of its attention that falls on
        this frame (left out when it is all of it everywhere). frame: [3, H, W].
    """
    attention = _array(attention, "attention", "L H h w")
    frame = _frames(frame, "frame", "3 H W")
    layers, columns = attention.shape[:2]
    height, width = (n * cell for n, cell in zip(attention.shape[2:], _cell(attention, frame)))
    gap = width // 5
    scale = _amounts(attention)
    tile = min(1.3, (WIDTH - 1.6) / columns)
    shape = 1.6 + tile * columns, tile * layers * (height + gap) / (width + gap) + 0.4
    figure = _figure(max(shape[0], 5.0), shape[1], "Attention of every head", title)
    axes = figure.subplots()
    _bare(axes)
    tiles = [[_overlay(frame, head, scale, AMOUNT) for head in layer] for layer in attention]
    axes.imshow(_mosaic(tiles, gap), interpolation="antialiased")
    axes.xaxis.tick_top()
    x, y = _centres(columns, width, gap), _centres(layers, height, gap)
    axes.set_xticks(x, [f"head {h}" for h in range(columns)])
    axes.set_yticks(y, [f"layer {layer}" for layer in range(layers)])
    shares = attention.sum((2, 3))
    if np.abs(shares - 1).max() > 1e-3:
        for r, c in np.ndindex(shares.shape):
            axes.text(x[c], y[r] + height / 2, f"{shares[r, c]:.0%}", ha="center", va="top", fontsize=9)
        axes.set_ylim(y[-1] + height / 2 + gap, -0.5)
    _bar(figure, scale, AMOUNT, "attention\n(\u221a scale)", ax=axes, aspect=20, fraction=0.05)
    return figure


@_styled
def feature_maps(frame, maps, channels=4, title=None):
    """What each stage computes: the length of its feature vectors, and its strongest channels.

    A row a stage. First the frame under the norm over channels of each cell (amounts), then the `channels`
    with the largest mean square (signed, around zero; - marks strongly negative cells).

    frame: [3, H, W]. maps: name -> [C, h, w].
    """
    frame = _frames(frame, "frame", "3 H W")
    maps = {name: _array(values, name, "C h w") for name, values in _some(maps, "maps").items()}
    channels = min(channels, min(len(values) for values in maps.values()))
    tile = min(1.6, (WIDTH - 2.4) / (channels + 2))
    shape = 2.4 + tile * (channels + 2), len(maps) * (tile + 0.3) + 0.1
    figure = _figure(max(shape[0], 5.0), shape[1], "Feature maps", title)
    grid = figure.subplots(len(maps), channels + 2, squeeze=False)
    for axes in grid.flat:
        _bare(axes)
    for k, (row, (name, values)) in enumerate(zip(grid, maps.items())):
        if k == 0:
            row[0].imshow(frame)
        row[0].set_ylabel(
            f"{name}\n{' x '.join(map(str, values.shape))}", rotation=0, ha="right", va="center"
        )
        _feature_row(figure, row[1:], values, channels)
    grid[0, 0].set_title("frame")
    return figure


def _feature_row(figure, row, values, channels):
    norm = np.linalg.norm(values, axis=0)
    scale = Normalize(0, max(norm.max(), 1e-9))
    row[0].imshow(norm, cmap=AMOUNT, norm=scale)
    row[0].set_title("norm", fontsize=9)
    _bar(figure, scale, AMOUNT, "norm", ax=row[0], aspect=14, fraction=0.08)
    strongest = np.argsort(-np.square(values).mean((1, 2)), kind="stable")[:channels]
    scale = _around_zero(values[strongest])
    for axes, channel in zip(row[1:], strongest):
        axes.imshow(values[channel], cmap=DIFFERENCE, norm=scale)
        axes.set_title(f"channel {channel}", fontsize=9)
        r, c = np.nonzero(values[channel] < -0.5 * scale.vmax)
        axes.scatter(c, r, s=9, marker="_", color="white", linewidths=1)
    _bar(figure, scale, DIFFERENCE, "activation", ax=list(row[1:]), aspect=14, fraction=0.02)


@_styled
def overview(frames, models, title=None):
    """One clip, what each model says about it, and where it looked for each word.

    The clip at the left; at the right for each model its caption and, for each word, the frame that got most of its
    attention, with the attention on it. Each map has a scale of its own; a square marks its strongest cell.

    frames: [F, 3, H, W]. models: label -> (caption, T words, attention [T, F, h, w]); words and grids may differ.
    """
    frames = _frames(frames)
    columns = -(-len(frames) // 2)
    grid = [list(frames[k : k + columns]) for k in range(0, len(frames), columns)]
    high, wide = len(grid) * frames.shape[1], columns * frames.shape[2]
    told = {}
    for label, (caption, words, attention) in _some(models, "models").items():
        values = _array(attention, f"attention of {label}", "T F h w")
        _same(values.shape[:2], (len(_some(words, "words")), len(frames)), f"the words and frames of {label}")
        told[label] = caption, words, values
    most = max(len(words) for _, words, _ in told.values())
    side = 3.4  # inches, the clip's width
    strip = min(1.15 * most, WIDTH - side - 0.4)  # a model's row of tiles
    block = 0.85 + strip / most * frames.shape[1] / frames.shape[2]
    height = max(block * len(told), side * high / wide + 0.45)
    figure = _figure(side + strip + 0.4, height, "Overview", title, None)
    axes = _place(figure, 0.1, 0.42, side, side * high / wide)
    axes.imshow(_mosaic(grid, max(2, frames.shape[2] // 24)), interpolation="antialiased")
    axes.set_title(f"{len(frames)} frames" if len(frames) > 1 else "the image", loc="left")
    _bare(axes)
    for k, (label, row) in enumerate(told.items()):
        axes = _place(figure, side + 0.3, k * block + 0.42, strip, block - 0.85)
        _told(axes, frames, label, *row, most)
    return figure


def _told(axes, frames, label, caption, words, values, most):
    """A model's caption over its words, each with the frame it looked at most; `most` tiles wide."""
    size = _cell(values, frames[0])
    height, width = (n * cell for n, cell in zip(values.shape[2:], size))
    gap = max(2, width // 16)
    frame = values.sum((2, 3)).argmax(1)
    peak = values[np.arange(len(values)), frame]
    tiles = [_overlay(frames[f], v, _amounts(v), AMOUNT) for f, v in zip(frame, peak)]
    _bare(axes)
    axes.imshow(_mosaic([tiles + [None] * (most - len(tiles))], gap), interpolation="antialiased")
    axes.xaxis.tick_top()
    x = _centres(len(words), width, gap)
    axes.set_xticks(x, words)
    above = 1 + 0.3 / (axes.get_position().height * axes.figure.get_figheight())
    axes.text(0, above, f"{label}: {caption}", transform=axes.transAxes, weight="bold")
    for k, f in enumerate(frame):
        axes.text(x[k], height + gap / 2, f"frame {f + 1}", ha="center", va="top", fontsize=8, color=GREY)
        r, c = np.unravel_index(peak[k].argmax(), peak[k].shape)
        _square(axes, k * (width + gap) + c * size[1], r * size[0], size)


# -- training and scores ----------------------------------------------------------------------------------------


@_styled
def curves(logs, log=(), levels=None, xlabel="step", ylabel="", title=None):
    """Training curves: a line style and a mark for each run or term.

    logs: label -> (steps, values), or panel -> (label -> (steps, values)).
    log: True, or the panels whose vertical axis is logarithmic.
    levels: horizontal lines to compare with, e.g. the teacher's score; label -> value, or panel -> such a dict.
    ylabel: what a single panel measures; several panels say it in their titles.
    """
    nested = isinstance(next(iter(_some(logs, "logs").values())), dict)
    panels = logs if nested else {"": logs}
    levels = (levels or {}) if nested else {"": levels or {}}
    columns = min(len(panels), 2 if len(panels) in (2, 4) else 3)
    rows = -(-len(panels) // columns)
    shape = (8.0 if columns == 1 else WIDTH), rows * 3.0
    figure = _figure(*shape, "Curves", title)
    grid = list(figure.subplots(rows, columns, squeeze=False).flat)
    counts = Counter(label for lines in panels.values() for label in lines)
    shared = [label for label, count in counts.items() if count > 1]  # have one look in all panels
    for axes, (panel, lines) in zip(grid, panels.items()):
        order = shared + [label for label in lines if label not in shared]
        for label, (steps, values) in lines.items():
            _curve(axes, label, steps, values, order.index(label))
        for k, (label, value) in enumerate(levels.get(panel, {}).items()):
            axes.axhline(value, color="black", linestyle=DASHES[(k + 3) % len(DASHES)], linewidth=1.2)
            place = {"xycoords": ("axes fraction", "data"), "xytext": (0, 3), "textcoords": "offset points"}
            axes.annotate(f"{label} {_number(value)}", (0.98, value), ha="right", fontsize=9, **place)
        if log is True or panel in (log or ()):
            axes.set_yscale("log")
        axes.set(title=panel, xlabel=xlabel, ylabel=ylabel)
        axes.grid(alpha=0.3)
        if len(lines) > 1 or not nested:
            axes.legend(frameon=False)
    for axes in grid[len(panels) :]:
        axes.remove()
    return figure


def _curve(axes, label, steps, values, k):
    steps, values = _array(steps, "steps", "n"), np.asarray(values, dtype=float)
    _same(values.shape, steps.shape, f"values of {label}")
    every = max(1, len(steps) // 6)
    offset = min(k * every // 4, max(len(steps) - 1, 0))  # marks of different curves stand apart
    mark = {"marker": MARKS[k % len(MARKS)], "markevery": (offset, every), "markersize": 5}
    look = {"color": OKABE_ITO[k % len(OKABE_ITO)], "linestyle": DASHES[k % len(DASHES)]}
    axes.plot(steps, values, label=label, **look, **mark)


@_styled
def scores(table, title=None):
    """Models compared score by score: a panel a score, each with its own axis from zero, values printed.

    table: model -> (score -> number); a score missing for a model leaves its bar out.
    """
    names = list(dict.fromkeys(name for row in _some(table, "table").values() for name in row))
    rows = -(-len(_some(names, "table")) // 4)
    columns = -(-len(names) // rows)
    height = rows * (0.36 * len(table) + 0.55)
    figure = _figure(max(5.0, 1.6 + 2.35 * columns), height, "Scores", title)
    grid = figure.subplots(rows, columns, squeeze=False, sharey=True)
    for axes, name in zip(grid.flat, names):
        values = {k: row[name] for k, row in enumerate(table.values()) if row.get(name) is not None}
        top = max([abs(value) for value in values.values()] + [1e-9])
        for k, value in values.items():
            axes.barh(k, value, 0.7, **_bars(k))
            axes.text(max(value, 0) + top / 40, k, _number(value), va="center", fontsize=9)
        low = min([*values.values(), 0])
        axes.set(title=name, xlim=(low * 1.1, top * 1.3), ylim=(len(table) - 0.5, -0.5))
        axes.set_yticks(range(len(table)), list(table))
        axes.set_xticks([])
        axes.tick_params(axis="y", length=0)
        axes.spines["bottom"].set_visible(False)
    for axes in list(grid.flat)[len(names) :]:
        axes.remove()
    return figure


@_styled
def pareto(rows, score="score", title=None):
    """Quality against time: up and to the left is better, a dashed line joins what nothing else beats.

    rows: a dict each with name, ms (for a clip), score, parameters (the area of its mark).
    score: what the vertical axis measures.
    """
    rows = sorted(_some(rows, "rows"), key=lambda row: (row["ms"], -row["score"]))
    figure = _figure(8.0, 4.5, "Quality against time", title)
    axes = figure.subplots()
    largest = max(row["parameters"] for row in rows)
    times, values = [row["ms"] for row in rows], [row["score"] for row in rows]
    best = [k for k in range(len(rows)) if values[k] > max(values[:k], default=-np.inf)]
    axes.plot([times[k] for k in best], [values[k] for k in best], "--", color=GREY, zorder=1)
    axes.set_xscale("log")
    axes.set_xlim(min(times) / 1.3, max(times) * max(2.0, (max(times) / min(times)) ** 0.35))
    spread = max(values) - min(values) or 1.0
    axes.set_ylim(min(values) - 0.15 * spread, max(values) + 0.15 * spread)
    axes.set(xlabel="milliseconds for a clip (log scale); area: parameters", ylabel=score)
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter(lambda value, _: _number(value))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.grid(alpha=0.3)
    for k, row in enumerate(rows):
        area = 40 + 460 * row["parameters"] / largest
        mark = {"marker": MARKS[k % len(MARKS)], "color": OKABE_ITO[k % len(OKABE_ITO)], "edgecolor": "black"}
        axes.scatter(row["ms"], row["score"], s=area, zorder=2, alpha=0.85, **mark)
    _point_labels(axes, rows)
    return figure


def _point_labels(axes, rows):
    """Names to the right of the points, pushed down where one would cover another."""
    axes.figure.draw_without_rendering()  # settles the layout, so that data can be turned into points
    taken, scale = [], 72 / axes.figure.dpi
    for row in sorted(rows, key=lambda row: -row["score"]):
        text = f"{row['name']}\n{_count(row['parameters'])}, {_number(row['ms'])} ms"
        x, y = axes.transData.transform((row["ms"], row["score"])) * scale
        left, low, width = x + 18, y, 6 * max(map(len, text.split("\n")))
        for other, level, extent in taken:
            if left < other + extent and other < left + width and abs(low - level) < 26:
                low = level - 26
        taken.append((left, low, width))
        line = {"arrowstyle": "-", "color": GREY, "linewidth": 0.8} if low < y - 4 else None
        place = {
            "xytext": (left - x, low - y),
            "textcoords": "offset points",
            "va": "center",
            "arrowprops": line,
        }
        ground = {"facecolor": "white", "edgecolor": "none", "alpha": 0.8, "pad": 0.5}
        axes.annotate(text, (row["ms"], row["score"]), fontsize=9, bbox=ground, **place)


# -- the search -------------------------------------------------------------------------------------------------


@_styled
def beam_tree(trace, words, top=3, clip=0, upto=None, title=None):
    """A beam search as a tree: a column a step, candidates from likely to unlikely.

    Each box holds a token and the log-probability of the caption so far. Solid: kept as a beam; dashed and faint:
    pruned; double line: a finished caption, with its score after the length penalty in brackets. The thick path
    is the caption that won: the best of these scores.

    trace: the table of `gitdistill.decoding.beam(..., trace=True)`: equally long columns `step`, `clip`,
        `parent`, `token`, `score`, `beam`, `kept`, `finished`, `final`.
    words: the text of a token, as a function (a tokenizer's `convert_ids_to_tokens`), list or dict.
    top: pruned candidates drawn in each step. clip: which clip of the trace.
    upto: draw only that many steps, in a frame of the whole tree's size; the winner shows with the last one.
    """
    text = words if callable(words) else words.__getitem__
    trace = {name: _column(values) for name, values in trace.items()}
    if clip not in trace["clip"]:
        raise ValueError(f"clip {clip} is not in the trace, which holds clips {sorted(set(trace['clip']))}")
    steps = _tree(trace, clip, top)
    shown = steps if upto is None else steps[:upto]
    best = _winner(steps) if len(shown) == len(steps) else []
    ranks = max(map(len, steps))
    figure = _figure(WIDTH, 0.5 * ranks + 0.9, "Beam search", title)
    axes = figure.subplots()
    axes.set(xlim=(-1.5, max(len(steps), 6) - 0.4), ylim=(ranks - 0.5, -0.6), xlabel="step", ylabel="rank")
    axes.set_xticks(range(len(steps)), range(1, len(steps) + 1))
    axes.set_yticks(range(ranks), range(1, ranks + 1))
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    size, letters = (9, 9) if len(steps) <= 12 else (8, 7)
    _box(axes, -1, 0, "start", "kept", False, size)
    for step, nodes in enumerate(shown):
        for rank, node in enumerate(nodes):
            won = (step, rank) in best
            _edge(axes, steps, step, rank, node, won)
            score = f"({node['final']:.2f})" if node["finished"] else f"{node['score']:.2f}"
            label = f"{_short(text(int(node['token'])), letters)}\n{_minus_sign(score)}"
            _box(axes, step, rank, label, _fate(node), won, size)
    _tree_legend(axes, bool(best))
    return figure


def _column(values):
    return values.numpy() if hasattr(values, "numpy") else np.asarray(values)


def _tree(trace, clip, top):
    """For each step the candidates to draw, best first: dicts of the trace's columns."""
    steps = []
    for step in range(int(trace["step"][trace["clip"] == clip].max()) + 1):
        rows = np.nonzero((trace["clip"] == clip) & (trace["step"] == step))[0]
        rows = rows[np.argsort(-trace["score"][rows], kind="stable")]
        nodes = [{name: values[row] for name, values in trace.items()} for row in rows]
        pruned = [node for node in nodes if _fate(node) == "pruned"][top:]
        steps.append([node for node in nodes if not any(node is other for other in pruned)])
    return steps


def _fate(node):
    return "finished" if node["finished"] else "kept" if node["kept"] else "pruned"


def _parent(steps, step, node):
    """Rank in the step before of the candidate that `node` continues; None at the first step."""
    if step == 0:
        return None
    ranks = [
        rank
        for rank, other in enumerate(steps[step - 1])
        if other["kept"] and other["beam"] == node["parent"]
    ]
    return ranks[0]


def _winner(steps):
    """(step, rank) of every candidate on the way to the best finished caption."""
    ends = [
        (node["final"], s, r)
        for s, nodes in enumerate(steps)
        for r, node in enumerate(nodes)
        if node["finished"]
    ]
    if not ends:
        return []
    _, step, rank = max(ends, key=lambda end: end[0])
    path = []
    while rank is not None:
        path.append((step, rank))
        rank, step = _parent(steps, step, steps[step][rank]), step - 1
    return path


def _edge(axes, steps, step, rank, node, won):
    before = _parent(steps, step, node)
    pruned = _fate(node) == "pruned"
    colour = OKABE_ITO[1] if won else GREY if pruned else "black"
    style = {"color": colour, "linestyle": "--" if pruned else "-", "linewidth": 3.5 if won else 1.0}
    axes.plot([step - 1, step], [before or 0, rank], alpha=0.5 if pruned else 1, zorder=1, **style)


def _box(axes, x, y, text, fate, won, size):
    pruned = fate == "pruned"
    box = {"boxstyle": "round,pad=0.25", "facecolor": "#FCE4D2" if won else "white"}
    box |= {"linestyle": "--" if pruned else "-", "linewidth": 2.2 if won else 0.9}
    box["edgecolor"] = OKABE_ITO[1] if won else GREY if pruned else "black"
    style = {"ha": "center", "va": "center", "fontsize": size, "color": GREY if pruned else "black"}
    if fate == "finished":
        outer = box | {"boxstyle": "round,pad=0.5", "facecolor": "white"}
        axes.text(x, y, text, bbox=outer, zorder=2, **style)
    axes.text(x, y, text, bbox=box, zorder=3, weight="bold" if won else "normal", **style)


def _short(text, letters):
    return text if len(text) <= letters else text[: letters - 1] + "\u2026"


def _tree_legend(axes, won):
    entries = {"kept": {"color": "black"}, "pruned": {"color": GREY, "linestyle": "--", "alpha": 0.5}}
    box = {"linestyle": "", "marker": "s", "markersize": 9, "markerfacecolor": "white", "color": "black"}
    entries["finished (score after the length penalty)"] = box | {"markeredgewidth": 2.5}
    if won:
        entries["the caption that won"] = {"color": OKABE_ITO[1], "linewidth": 3.5}
    handles = [axes.plot([], [], label=label, **style)[0] for label, style in entries.items()]
    axes.figure.legend(handles=handles, loc="outside lower right", ncols=4, frameon=False)


# -- experiments ------------------------------------------------------------------------------------------------


@_styled
def dots(table, intervals=None, levels=None, title=None):
    """Variants compared over several runs: a row a variant, a panel a score, a dot a run, a line at their mean.

    table: variant -> (score -> values, one a run); a score missing for a variant leaves its place empty.
    intervals: variant -> (score -> (low, high)), drawn as a bar; nan: none.
    levels: vertical lines to compare with; score -> (label -> value); "" writes nothing.
    """
    names = list(dict.fromkeys(name for row in _some(table, "table").values() for name in row))
    widest = max(map(len, table))
    figure = _figure(
        0.075 * widest + 2.1 * len(_some(names, "table")), 0.26 * len(table) + 0.7, "Runs", title
    )
    grid = figure.subplots(1, len(names), squeeze=False, sharey=True).flat
    for k, (axes, name) in enumerate(zip(grid, names)):
        look = {"color": OKABE_ITO[k % len(OKABE_ITO)]}
        for place, (variant, row) in enumerate(table.items()):
            values = _array(row.get(name, []), f"{name} of {variant}", "runs")
            if not len(values):
                continue
            axes.plot(values, [place] * len(values), MARKS[k % len(MARKS)], alpha=0.6, markersize=5, **look)
            axes.plot([values.mean()] * 2, [place - 0.32, place + 0.32], color="black", linewidth=1.8)
            ends = (intervals or {}).get(variant, {}).get(name)
            if ends is not None and np.isfinite(ends).all():
                axes.plot(ends, [place] * 2, color="black", linewidth=1.0, zorder=1)
        for label, level in (levels or {}).get(name, {}).items():
            axes.axvline(level, color=GREY, linestyle="--", linewidth=1.0, zorder=0)
            if label:
                place = {"xycoords": ("data", "axes fraction"), "ha": "right", "va": "bottom"}
                axes.annotate(f"{label} {_number(level)}", (level, 1), fontsize=8, **place)
        axes.set_title(name, pad=14)  # above the names of the levels
        axes.set_ylim(len(table) - 0.5, -0.5)
        axes.set_yticks(range(len(table)), list(table))
        axes.tick_params(axis="y", length=0)
        axes.grid(alpha=0.3)
    return figure
