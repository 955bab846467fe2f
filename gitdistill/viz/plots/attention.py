"""Attention over the frames of a clip."""

import numpy as np
from matplotlib.patches import PathPatch
from matplotlib.path import Path

from gitdistill.viz.plots import style

SIDES = 2.6  # inches beside the tiles of a block of `gaze`, for its names and its scale


@style.plot
def gaze(frames, words, rows, probabilities=None, difference=False, title=None, masks=None):
    """Attention of each word: words from left to right, frames from top to bottom, a block for each model.

    After the word-by-word strip of Show, Attend and Tell (https://arxiv.org/abs/1502.03044). The first column shows
    the frames. Each block has its own scale, up to its largest value; a square marks the strongest cell of each word.
    Long captions wrap; of captions of one or two words, two blocks stand side by side.

    frames: [F, 3, H, W]. words: T texts.
    rows: label -> attention [T, F, h, w]; the grids of two models may differ unless `difference` is asked for.
    probabilities: a number for each word, or label -> such numbers; printed below the word.
    difference: append first minus second (exactly two rows); + and - mark its strongest cells.
    masks: for each word None or boolean [F, H, W], the thing it names, outlined in the models' blocks.
    """
    frames = style.photos(frames)
    masks = style.one_each(masks, "masks", len(words))
    blocks = model_blocks(rows, (len(words), len(frames), "h", "w"), difference)
    wrap = min(6 if len(frames) == 1 else 12, len(style.some(words, "words")))
    lines = [slice(start, start + wrap) for start in range(0, len(words), wrap)]
    count, across = len(lines) * len(blocks), min(len(blocks), 2) if len(words) < 3 else 1
    down, above = -(-count // across), 0.28 if probabilities is None else 0.44
    # Not much higher than wide.
    tile = min(1.35, (style.WIDTH / across - SIDES) / (wrap + 1), 11.0 / (down * len(frames)))
    width, height = tile * (wrap + 1), tile * len(frames) * frames.shape[1] / frames.shape[2]
    size = max(across * (width + SIDES), 5.0), down * (above + height) + 0.15
    figure = style.figure(*size, "Attention of words", title, None)
    for k in range(count):
        label, values, scale = blocks[k % len(blocks)]
        line, left = lines[k // len(blocks)], k % across * (width + SIDES)
        top = above + k // across * (above + height)
        axes = style.axes_at(figure, left + 1.0, top, width, height)
        outlined = None if masks is None or style.is_signed(scale) else masks[line]
        _block(axes, frames, _texts(words, probabilities, label)[line], values[line], scale, wrap, outlined)
        axes.text(-0.82 / width, 0.5, label, rotation=90, transform=axes.transAxes, **style.CENTRE)
        if k < len(blocks):
            place = style.axes_at(figure, left + 1.15 + width, top, 0.15, min(height, 4.0))
            name = "difference" if style.is_signed(scale) else "attention\n(power 0.7)"
            style.colour_bar(figure, scale, name, cax=place)
    return figure


def model_blocks(rows, shape, difference):
    """(label, attention, scale) for each model, and if asked for the difference of two."""
    maps = {label: style.array(values, f"rows: {label}", shape) for label, values in rows.items()}
    blocks = [(label, values, style.amounts(values)) for label, values in style.some(maps, "rows").items()]
    if not difference:
        return blocks
    if len(maps) != 2:
        raise ValueError(f"a difference needs exactly two rows, got {len(maps)}")
    (name, first), (other, second) = maps.items()
    values = first - style.array(second, f"rows: {other}", first.shape)
    return [*blocks, (f"{name}\nminus {other}", values, style.differences(values))]


def _texts(words, probabilities, label):
    numbers = probabilities.get(label) if isinstance(probabilities, dict) else probabilities
    if numbers is None:
        return list(words)
    numbers = style.array(numbers, "probabilities", [len(words)])
    return [f"{word}\n{number:.2f}" for word, number in zip(words, numbers)]


def _block(axes, frames, words, values, scale, wrap, masks):
    """One model's maps [T, F, h, w] beside the frames, with their strongest cells marked."""
    size = style.cell_size(values, frames[0])
    height, width = (n * cells for n, cells in zip(size, values.shape[2:]))
    gap = max(2, width // 16)
    tiles = [
        [style.resized(frame, height, width), *(style.overlay(frame, v[f], scale) for v in values)]
        for f, frame in enumerate(frames)
    ]
    tiles[0] += [None] * (wrap - len(words))
    names = [f"frame {f + 1}" for f in range(len(frames))]
    style.show_tiles(axes, tiles, gap, ["", *words], names if len(frames) > 1 else ())
    step = height + gap, width + gap
    if style.is_signed(scale):
        _signs(axes, values, 0.4 * scale.norm.vmax, size, step)
    else:
        for t, value in enumerate(values):
            f, r, c = style.strongest(value)
            style.square(axes, (t + 1) * step[1] + c * size[1], f * step[0] + r * size[0], size)
    for t, mask in enumerate([] if masks is None else masks):
        mask = [] if mask is None else style.array(mask, "mask", frames.shape[:3]) > 0
        for f, shape in enumerate(mask):
            shape = style.resized(shape, height, width)
            style.outline(axes, shape, (t + 1) * step[1], f * step[0], margin=3, thin=0.6)


def _signs(axes, values, least, size, step):
    """The sign of the cells of a difference [T, F, h, w] that are stronger than `least`."""
    for mark, sign in (("+", 1), ("_", -1)):
        t, f, r, c = np.nonzero(sign * values > least)
        x, y = (t + 1) * step[1] + (c + 0.5) * size[1] - 0.5, f * step[0] + (r + 0.5) * size[0] - 0.5
        axes.scatter(x, y, s=30, marker=mark, color="white", linewidths=1.4)


def frame_shares(maps, shape):
    """How the attention [T, F, h, w] of each word divides over the frames: [T, F], rows add up to one."""
    mass = style.array(maps, "attention", shape).sum((2, 3))
    return mass / np.maximum(mass.sum(1, keepdims=True), 1e-9)


@style.plot
def frame_word_map(attention, words, frames, title=None):
    """How each word's attention divides over the frames: columns add up to one, values above 0.3 are printed.

    attention: [T, F, h, w], or label -> such an array for models side by side.
    words: T texts. frames: [F, 3, H, W], shown at the left edge.
    """
    frames = style.photos(frames)
    maps = style.some(attention if isinstance(attention, dict) else {"": attention}, "attention")
    shares = {label: frame_shares(v, (len(words), len(frames), "h", "w")).T for label, v in maps.items()}
    scale = style.shares(max(float(share.max()) for share in shares.values()))
    cell = min(0.7, (style.WIDTH - 2.6 - 0.2 * len(maps)) / (len(words) * len(maps)))
    width, height, above = cell * len(words), 0.6 * len(frames), 0.3 if any(maps) else 0.08
    size = max(2.6 + (width + 0.2) * len(maps), 5.0), above + height + 0.75
    figure = style.figure(*size, "Attention per frame", title, None)
    gap = max(2, frames.shape[1] // 16)
    strip = style.axes_at(figure, 0.75, above, 0.6 * frames.shape[2] / frames.shape[1], height)
    names = [f"frame {f + 1}" for f in range(len(frames))]
    style.show_tiles(strip, [[frame] for frame in frames], gap, rows=names)
    for k, (label, share) in enumerate(shares.items()):
        axes = style.axes_at(figure, 1.5 + k * (width + 0.2), above, width, height)
        _share_map(axes, share, words, scale)
        axes.set_title(label)
    place = style.axes_at(figure, 1.5 + len(maps) * (width + 0.2), above, 0.15, height)
    style.colour_bar(figure, scale, "share of attention", cax=place)
    return figure


def _share_map(axes, share, words, scale):
    style.bare(axes)
    axes.pcolormesh(share, cmap=scale.cmap, norm=scale.norm, edgecolors="white", linewidth=1)
    axes.set_ylim(len(share), 0)
    axes.set_xticks(np.arange(len(words)) + 0.5, words, rotation=45, ha="right", rotation_mode="anchor")
    for f, t in zip(*np.nonzero(share > 0.3)):
        ink = style.ink(scale.norm(share[f, t]))
        axes.text(t + 0.5, f + 0.5, f"{share[f, t]:.2f}", color=ink, fontsize=9, **style.CENTRE)


@style.plot
def flow(panels, sources, words, coloured, title=None):
    """What each word of a caption reads: ribbons from the sources at the left, as thick as the attention is large.

    The ribbons of a word lie in the order of the sources, from top to bottom; all words are equally high.

    panels: label -> shares [T, S], rows add up to one; the layers of a network, for example. words: T texts.
    sources: S texts; the first `coloured` of them have a colour and a hatch, the others are grey.
    """
    figure = style.figure(style.WIDTH, 0.44 * len(style.some(words, "words")) + 1.0, "Flow", title, None)
    wide, high = (style.WIDTH - 1.1) / len(style.some(panels, "panels")), 0.44 * len(words) + 0.55
    looks = [style.bar(s) | {"edgecolor": "white", "linewidth": 0.4} for s in range(coloured)]
    looks += [look := {"facecolor": "#B4B4B4", "edgecolor": "white", "linewidth": 0.4}]
    looks += [look | {"facecolor": "#DDDDDD"}] * len(sources)
    for k, (label, values) in enumerate(panels.items()):
        values = style.array(values, f"shares of {label}", (len(words), len(style.some(sources, "sources"))))
        axes = style.axes_at(figure, 1.0 + k * wide, 0.3, wide - 0.85, high)
        axes.set(xlim=(0, 1), ylim=(1.15 * values.sum(), 0), title=label)
        axes.axis("off")
        left, right = _stacks(values.T).T, _stacks(values)
        for t, s in np.ndindex(values.shape):
            band = _ribbon(left[t, s], right[t, s], values[t, s])
            axes.add_patch(PathPatch(band, clip_on=False, **looks[s]))
        for t, word in enumerate(words):
            axes.text(1.03, right[t, 0] + values[t].sum() / 2, word, va="center", fontsize=9)
        for s, name in enumerate(sources if k == 0 else ()):
            axes.text(-0.05, left[0, s] + values[:, s].sum() / 2, name, ha="right", va="center", fontsize=9)
    return figure


def _stacks(values):
    """The upper ends [n, k] of pieces that are stacked row by row, with gaps between the rows."""
    ends = np.cumsum(values.ravel()).reshape(values.shape)
    gap = 0.15 * values.sum() / max(len(values) - 1, 1)
    return ends - values + gap * np.arange(len(values))[:, None]


def _ribbon(left, right, thick):
    """A band from the height `left` to the height `right`."""
    there = [(0, left), (0.5, left), (0.5, right), (1, right)]
    back = [(1, right + thick), (0.5, right + thick), (0.5, left + thick), (0, left + thick)]
    return Path([*there, *back, (0, left)], [1, 4, 4, 4, 2, 4, 4, 4, 79])


@style.plot
def heads(attention, frame, title=None, row="layer"):
    """Every head of every layer for one word: a row a layer, a column a head, one scale.

    attention: [L, H, h, w], not renormalised: below each map stands the share of its attention that falls on
        this frame (left out when it is all of it everywhere). frame: [3, H, W]. row: what a row is called.
    """
    attention = style.array(attention, "attention", "L H h w")
    frame = style.photos(frame, "frame", "3 H W")
    layers, columns = attention.shape[:2]
    height, width = (n * cells for n, cells in zip(style.cell_size(attention, frame), attention.shape[2:]))
    gap = width // 5
    scale = style.amounts(attention)
    tile = min(1.3, (style.WIDTH - 1.6) / columns)
    size = max(1.6 + tile * columns, 5.0), tile * layers * (height + gap) / (width + gap) + 0.4
    figure = style.figure(*size, "Attention of every head", title)
    axes = figure.subplots()
    tiles = [[style.overlay(frame, head, scale) for head in layer] for layer in attention]
    names = [f"head {h}" for h in range(columns)], [f"{row} {layer}" for layer in range(layers)]
    style.show_tiles(axes, tiles, gap, *names)
    shares = attention.sum((2, 3))
    if np.abs(shares - 1).max() > 1e-3:
        x, y = style.centres(columns, width, gap), style.centres(layers, height, gap)
        for r, c in np.ndindex(shares.shape):
            axes.text(x[c], y[r] + height / 2, f"{shares[r, c]:.0%}", ha="center", va="top", fontsize=9)
        axes.set_ylim(y[-1] + height / 2 + gap, -0.5)
    style.colour_bar(figure, scale, "attention\n(power 0.7)", ax=axes, aspect=20, fraction=0.05)
    return figure


@style.plot
def overview(frames, models, title=None):
    """One clip, the caption that each model gives it, and the attention of each word.

    The clip at the left; at the right for each model its caption and, for each word, the frame that got most of its
    attention, with the attention on it. Each map has its own scale; a square marks its strongest cell.

    frames: [F, 3, H, W]. models: label -> (caption, T words, attention [T, F, h, w]); words and grids may differ.
    """
    frames = style.photos(frames)
    columns = -(-len(frames) // 2)
    grid = [list(frames[k : k + columns]) for k in range(0, len(frames), columns)]
    high, wide = len(grid) * frames.shape[1], columns * frames.shape[2]
    most = max(len(style.some(words, "words")) for _, words, _ in style.some(models, "models").values())
    side = 3.4  # inches, the clip's width
    strip = min(1.15 * most, style.WIDTH - side - 0.4)  # a model's row of tiles
    block = 1.05 + strip / most * frames.shape[1] / frames.shape[2]
    height = max(block * len(models), side * high / wide + 0.45)
    figure = style.figure(side + strip + 0.4, height, "Overview", title, None)
    axes = style.axes_at(figure, 0.1, 0.42, side, side * high / wide)
    style.show_tiles(axes, grid, max(2, frames.shape[2] // 24))
    axes.set_title(f"{len(frames)} frames" if len(frames) > 1 else "the image", loc="left")
    for k, (label, (caption, words, attention)) in enumerate(models.items()):
        values = style.array(attention, f"attention of {label}", (len(words), len(frames), "h", "w"))
        axes = style.axes_at(figure, side + 0.3, k * block + 0.62, strip, block - 1.05)
        _captioned(axes, frames, f"{label}\n{caption}", words, values, most)
    return figure


def _captioned(axes, frames, text, words, values, most):
    """A text over words, each with the frame that got most of its attention; `most` tiles wide."""
    size = style.cell_size(values, frames[0])
    height, width = (n * cells for n, cells in zip(size, values.shape[2:]))
    gap = max(2, width // 16)
    frame = values.sum((2, 3)).argmax(1)
    peak = values[np.arange(len(values)), frame]
    tiles = [style.overlay(frames[f], v, style.amounts(v)) for f, v in zip(frame, peak)]
    style.show_tiles(axes, [tiles + [None] * (most - len(tiles))], gap, words)
    above = 1 + 0.26 / (axes.get_position().height * axes.figure.get_figheight())
    axes.text(0, above, text, transform=axes.transAxes, weight="bold", va="bottom", linespacing=1.3)
    below = {"ha": "center", "va": "top", "fontsize": 8, "color": style.GREY}
    for k, (f, x) in enumerate(zip(frame, style.centres(len(words), width, gap))):
        axes.text(x, height + gap / 2, f"frame {f + 1}", **below)
        r, c = style.strongest(peak[k])
        style.square(axes, k * (width + gap) + c * size[1], r * size[0], size)
