"""Where a model looks."""

import numpy as np
from matplotlib.colors import Normalize
from matplotlib.patches import Rectangle

from gitdistill.viz.plots.clips import _outline
from gitdistill.viz.plots.style import (
    AMOUNT,
    DIFFERENCE,
    GREY,
    MARKS,
    OKABE_ITO,
    WIDTH,
    _amounts,
    _around_zero,
    _array,
    _bar,
    _bare,
    _cell,
    _centres,
    _figure,
    _frames,
    _mosaic,
    _number,
    _overlay,
    _place,
    _resized,
    _same,
    _some,
    _styled,
)


@_styled
def gaze(frames, words, rows, probabilities=None, difference=False, wrap=None, title=None, masks=None):
    """Where each word looks: words from left to right, frames from top to bottom, a block for each model.

    The idea is the word-by-word strip of Show, Attend and Tell (https://arxiv.org/abs/1502.03044). Each block has a
    scale of its own, up to its largest value; a square marks the strongest cell of each word. The first column shows
    the frames.

    frames: [F, 3, H, W]. words: T texts.
    rows: label -> attention [T, F, h, w]; the grids of two models may differ unless `difference` is asked for.
    probabilities: a number for each word, or label -> such numbers; printed beside the word.
    difference: append first minus second (exactly two rows); + and - mark its strongest cells.
    wrap: words in a line; by default 12 for clips and 6 for single frames.
    masks: for each word None or boolean [F, H, W], the thing it names, outlined in the models' blocks.
    """
    frames = _frames(frames)
    maps = {label: _array(values, f"attention of {label}", "T F h w") for label, values in rows.items()}
    for label, values in _some(maps, "rows").items():
        _same(values.shape[:2], (len(words), len(frames)), f"the words and frames of {label}")
    wrap = min(wrap or (6 if len(frames) == 1 else 12), len(_some(words, "words")))
    masks = [None] * len(words) if masks is None else masks
    _same((len(masks),), (len(words),), "masks")
    panels = [(label, values, _amounts(values), AMOUNT) for label, values in maps.items()]
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
        said = _gaze_texts(words, probabilities, label)[chosen]
        step = _gaze_panel(axes, frames, said, values[chosen], norm, cmap, wrap)
        if cmap == AMOUNT:
            _named(axes, frames, masks[chosen], values.shape[-2:], step)
        side = {"rotation": 90, "ha": "center", "va": "center", "transform": axes.transAxes}
        axes.text(-0.82 / width, 0.5, label, **side)
        if k < len(panels):
            bar = _place(figure, 1.15 + width, top, 0.15, min(height, 4.0))
            name = "difference" if cmap == DIFFERENCE else "attention\n(\u221a scale)"
            _bar(figure, norm, cmap, name, cax=bar)
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
    return height + gap, width + gap


def _named(axes, frames, masks, cells, step):
    """The outline of what each word names, in the panel's pixels; masks: for each word None or [F, H, W]."""
    size = _cell(np.empty(cells), frames[0])
    for t, mask in enumerate(masks):
        if mask is None:
            continue
        mask = _array(mask, "mask", "F H W") > 0
        _same(mask.shape, frames.shape[:3], "mask")
        for f, shape in enumerate(mask):
            shape = _resized(shape, cells[0] * size[0], cells[1] * size[1])
            _outline(axes, shape, (t + 1) * step[1], f * step[0], margin=3, thin=0.6)


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
        axes.scatter(x, y, s=30, marker=mark, color="white", linewidths=1.4)


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
    block = 1.05 + strip / most * frames.shape[1] / frames.shape[2]
    height = max(block * len(told), side * high / wide + 0.45)
    figure = _figure(side + strip + 0.4, height, "Overview", title, None)
    axes = _place(figure, 0.1, 0.42, side, side * high / wide)
    axes.imshow(_mosaic(grid, max(2, frames.shape[2] // 24)), interpolation="antialiased")
    axes.set_title(f"{len(frames)} frames" if len(frames) > 1 else "the image", loc="left")
    _bare(axes)
    for k, (label, row) in enumerate(told.items()):
        axes = _place(figure, side + 0.3, k * block + 0.62, strip, block - 1.05)
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
    above = 1 + 0.26 / (axes.get_position().height * axes.figure.get_figheight())
    axes.text(
        0, above, f"{label}\n{caption}", transform=axes.transAxes, weight="bold", va="bottom", linespacing=1.3
    )
    for k, f in enumerate(frame):
        axes.text(x[k], height + gap / 2, f"frame {f + 1}", ha="center", va="top", fontsize=8, color=GREY)
        r, c = np.unravel_index(peak[k].argmax(), peak[k].shape)
        _square(axes, k * (width + gap) + c * size[1], r * size[0], size)


@_styled
def explanations(frame, rows, agreement=None, title=None):
    """Several answers to "where did that word come from?", side by side over one frame.

    Each map has its own scale, from 0 to its largest value (what is below zero counts as nothing); a square marks
    its strongest cell.

    frame: [3, H, W]. rows: label -> (name of a method -> map [h, w]); the methods are the columns.
    agreement: label -> (name -> number), printed below the maps: rank correlation with the last method.
    """
    frame = _frames(frame, "frame", "3 H W")
    names = list(next(iter(_some(rows, "rows").values())))
    tile = min(1.9, (WIDTH - 1.2) / (len(names) + 1))
    size = 1.0 + (tile + 0.1) * (len(names) + 1), len(rows) * (tile + 0.32) + 0.35
    figure = _figure(size[0], size[1], "Explanations", title, None)
    for k, (label, maps) in enumerate(rows.items()):
        if list(maps) != names:
            raise ValueError(f"{label} must hold the methods {', '.join(names)}, got {', '.join(maps)}")
        top = 0.3 + k * (tile + 0.32)
        axes = _place(figure, 0.9, top, tile, tile)
        axes.imshow(frame)
        _bare(axes)
        axes.set_ylabel(label)
        for n, (name, values) in enumerate(maps.items()):
            axes = _place(figure, 0.9 + (n + 1) * (tile + 0.1), top, tile, tile)
            values = np.maximum(_array(values, name, "h w"), 0)
            axes.imshow(_overlay(frame, values, _amounts(values), AMOUNT), interpolation="antialiased")
            _bare(axes)
            size = _cell(values, frame)
            r, c = np.unravel_index(values.argmax(), values.shape)
            _square(axes, c * size[1], r * size[0], size)
            if k == 0:
                axes.set_title(name)
            if agreement is not None and name in agreement.get(label, ()):
                axes.set_xlabel(_number(agreement[label][name], 2), fontsize=9)
    if agreement is not None:
        figure.text(
            0.9 / figure.get_figwidth(),
            0.06 / figure.get_figheight(),
            "below a map: its rank correlation with the last one",
        )
    return figure


@_styled
def pointed(frames, maps, masks, notes, title=None):
    """Where a model pointed for one word of each clip: a frame, and beside it the map of that word on it.

    The thing that the word names is outlined, an x marks its centre, a + the strongest cell.

    frames: C times [3, H, W]. maps: C times [h, w]. masks: C times boolean [H, W]. notes: a text below each clip.
    """
    frames = [_frames(frame, "frame", "3 H W") for frame in _some(frames, "frames")]
    columns = min(3, len(frames))
    tile = min(1.6, (WIDTH - 0.3) / columns / 2 - 0.1)
    rows, block = -(-len(frames) // columns), tile * frames[0].shape[0] / frames[0].shape[1] + 0.45
    figure = _figure((2 * tile + 0.3) * columns + 0.1, rows * block + 0.1, "Pointing", title, None)
    for k, (frame, values, mask, note) in enumerate(zip(frames, maps, masks, notes, strict=True)):
        row, column = divmod(k, columns)
        axes = _place(figure, 0.1 + column * (2 * tile + 0.3), 0.08 + row * block, 2 * tile, block - 0.45)
        values, mask = _array(values, "map", "h w"), _array(mask, "mask", "H W") > 0
        _same(mask.shape, frame.shape[:2], "mask")
        size = _cell(values, frame)
        over = _overlay(frame, values, _amounts(values), AMOUNT)
        high, wide = over.shape[:2]
        _bare(axes)
        axes.imshow(_mosaic([[_resized(frame, high, wide), over]], 2), interpolation="antialiased")
        shape = _resized(mask, high, wide)
        _outline(axes, shape, wide + 2, thin=0.6)
        r, c = np.unravel_index(values.argmax(), values.shape)
        y, x = (np.mean(at) for at in np.nonzero(shape)) if shape.any() else (np.nan, np.nan)
        strongest = (c + 0.5) * size[1] - 0.5, (r + 0.5) * size[0] - 0.5
        for (left, top), mark in ((strongest, "+"), ((x, y), "x")):
            axes.plot(left + wide + 2, top, mark, color="black", markersize=11, markeredgewidth=4)
            axes.plot(left + wide + 2, top, mark, color="white", markersize=10, markeredgewidth=2)
        axes.set_xlabel(note, fontsize=9)
    return figure


@_styled
def grounding(boards, chance=None, measure="pointing accuracy", title=None, others=None):
    """Does the model look at what the word names? A line a kind of word, a mark a model, with its interval.

    boards: model -> (kind of word -> (mean, low, high, number of words)), as `scoreboard`
        gives them: filled marks. chance: kind -> what looking anywhere would score, a dashed line.
    others: the same for the thing that the word does not name, `scoreboard(rows, "other")`: hollow marks below.
    """
    kinds = list(dict.fromkeys(kind for board in _some(boards, "boards").values() for kind in board))
    high = 0.27 if others is None else 0.38
    figure = _figure(8.5, 0.45 + len(kinds) * (0.3 + high * len(boards)), "Grounding of words", title)
    axes = figure.subplots()
    step = 0.8 / len(boards)
    for k, (label, board) in enumerate(boards.items()):
        at = -0.4 + (k + 0.5) * step
        look = {"color": OKABE_ITO[k % len(OKABE_ITO)], "marker": MARKS[k % len(MARKS)], "markersize": 8}
        if others is None:
            _pointed(axes, kinds, board, at, label=label, **look)
            continue
        _pointed(axes, kinds, board, at - 0.2 * step, label=label, **look)
        _pointed(axes, kinds, others[label], at + 0.2 * step, markerfacecolor="white", **look)
    for kind, value in (chance or {}).items():
        at = kinds.index(kind)
        name = "chance" if kind == kinds[0] else None
        axes.plot([value, value], [at - 0.45, at + 0.45], "--", color="black", linewidth=1.4, label=name)
    words = {kind: max(int(board[kind][3]) for board in boards.values() if kind in board) for kind in kinds}
    axes.set_yticks(range(len(kinds)), [f"{kind}\n{words[kind]} words" for kind in kinds])
    axes.set(xlim=(0, 1.08), ylim=(len(kinds) - 0.5, -0.5), xlabel=f"{measure}, with 95 % intervals")
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
    axes.set_xticks(np.arange(0, 1.01, 0.2))
    axes.grid(axis="x", alpha=0.3)
    if others is not None:
        for name, face in (("filled: on the named thing", "black"), ("hollow: on the other thing", "white")):
            axes.plot([], [], "o", color="black", markerfacecolor=face, label=name)
    axes.legend(frameon=False, loc="center left", bbox_to_anchor=(1.0, 0.5))
    return figure


def _pointed(axes, kinds, board, below, **look):
    """A model's marks, each with its interval and number, `below` the middle of its kind's line."""
    y = np.array([kinds.index(kind) + below for kind in board])
    mean, low, high, _ = np.array(list(board.values()), dtype=float).T
    axes.errorbar(mean, y, xerr=[mean - low, high - mean], linestyle="", capsize=3, **look)
    for at, right, value in zip(y, high, mean):
        axes.text(right + 0.015, at, f"{value:.0%}", va="center", fontsize=9)
