"""Explanations of a word side by side, and the pointing game."""

import numpy as np

from gitdistill.viz.plots import style


@style.plot
def explanations(frame, rows, agreement=None, title=None):
    """Several explanations of one word side by side over one frame.

    Each map has its own scale from 0 to its maximum; a square marks its strongest cell. Negative values count as 0.

    frame: [3, H, W]. rows: label -> (name of a method -> map [h, w]); the methods are the columns.
    agreement: label -> (name -> number), printed below the maps: rank correlation with the last method.
    """
    frame = style.photos(frame, "frame", "3 H W")
    names = list(next(iter(style.some(rows, "rows").values())))
    tile = min(1.9, (style.WIDTH - 1.2) / (len(names) + 1))
    size = 1.0 + (tile + 0.1) * (len(names) + 1), len(rows) * (tile + 0.32) + 0.35
    figure = style.figure(*size, "Explanations", title, None)
    for k, (label, maps) in enumerate(rows.items()):
        if list(maps) != names:
            raise ValueError(f"{label} must hold the methods {', '.join(names)}, got {', '.join(maps)}")
        top, numbers = 0.3 + k * (tile + 0.32), (agreement or {}).get(label, {})
        axes = style.axes_at(figure, 0.9, top, tile, tile)
        axes.imshow(frame)
        style.bare(axes)
        axes.set_ylabel(label)
        for n, (name, values) in enumerate(maps.items(), start=1):
            axes = style.axes_at(figure, 0.9 + n * (tile + 0.1), top, tile, tile)
            values = np.maximum(style.array(values, name, "h w"), 0)
            style.show_tiles(axes, [[style.overlay(frame, values, style.amounts(values))]], 0)
            size, (r, c) = style.cell_size(values, frame), style.strongest(values)
            style.square(axes, c * size[1], r * size[0], size)
            axes.set_title(name if k == 0 else "")
            axes.set_xlabel(style.number(numbers[name], 2) if name in numbers else "", fontsize=9)
    if agreement is not None:
        note = "below a map: the method's mean rank correlation with the last one; each map has its own scale"
        style.text_at(figure, 0.9, 0.06, note)
    return figure


@style.plot
def pointing_examples(frames, maps, masks, notes, title=None):
    """The pointing game for one word of each clip: a frame, and beside it the map of that word on it.

    The thing that the word names is outlined. An x marks its centre, a + the strongest cell.

    frames: B times [3, H, W]. maps: B times [h, w]. masks: B times boolean [H, W]. notes: a text below each clip.
    """
    frames = [style.photos(frame, "frame", "3 H W") for frame in style.some(frames, "frames")]
    columns = min(3, len(frames))
    tile = min(1.6, (style.WIDTH - 0.3) / columns / 2 - 0.1)
    rows, block = -(-len(frames) // columns), tile * frames[0].shape[0] / frames[0].shape[1] + 0.45
    figure = style.figure((2 * tile + 0.3) * columns + 0.1, rows * block + 0.1, "Pointing", title, None)
    for k, (frame, values, mask, note) in enumerate(zip(frames, maps, masks, notes, strict=True)):
        row, column = divmod(k, columns)
        left, top = 0.1 + column * (2 * tile + 0.3), 0.08 + row * block
        axes = style.axes_at(figure, left, top, 2 * tile, block - 0.45)
        mask = style.array(mask, "mask", frame.shape[:2]) > 0
        _pointing(axes, frame, style.array(values, "map", "h w"), mask)
        axes.set_xlabel(note, fontsize=9)
    return figure


def _pointing(axes, frame, values, mask):
    size = style.cell_size(values, frame)
    over = style.overlay(frame, values, style.amounts(values))
    high, wide = over.shape[:2]
    style.show_tiles(axes, [[style.resized(frame, high, wide), over]], 2)
    shape = style.resized(mask, high, wide)
    style.outline(axes, shape, wide + 2, thin=0.6)
    r, c = style.strongest(values)
    marks = [((r + 0.5) * size[0] - 0.5, (c + 0.5) * size[1] - 0.5, "+")]
    if shape.any():
        marks.append((*np.argwhere(shape).mean(0), "x"))
    for y, x, mark in marks:
        for colour, thickness in (("black", 4), ("white", 2)):
            look = {"color": colour, "markersize": 9 + thickness / 2, "markeredgewidth": thickness}
            axes.plot(x + wide + 2, y, mark, **look)


@style.plot
def pointing_game(boards, chance=None, title=None, others=None):
    """Does the model attend to what a word names? A line a kind of word, a mark a model, with its interval.

    boards: model -> (kind of word -> (mean, low, high, number of words)), as `inspection.scores_by_kind` gives
        them: filled marks. chance: kind -> the score of attention that does not depend on the image, a dashed line.
    others: the same for the thing that the word does not name, `scores_by_kind(rows, "other")`: hollow marks below.
    """
    kinds = list(dict.fromkeys(kind for board in style.some(boards, "boards").values() for kind in board))
    high = 0.27 if others is None else 0.38
    figure = style.figure(8.5, 0.45 + len(kinds) * (0.3 + high * len(boards)), "Grounding of words", title)
    axes = figure.subplots()
    step, places = 0.8 / len(boards), style.slots(boards)
    for k, (label, board) in enumerate(boards.items()):
        at, look = -0.4 + (k + 0.5) * step, style.mark(places[label]) | {"markersize": 8}
        apart = 0.0 if others is None else 0.2 * step
        _scores(axes, kinds, board, at - apart, label=label, **look)
        if others is not None:
            _scores(axes, kinds, others[label], at + apart, markerfacecolor="white", **look)
    for kind, value in (chance or {}).items():
        ends = kinds.index(kind) - 0.45, kinds.index(kind) + 0.45
        name = "chance" if kind == kinds[0] else None
        axes.plot([value, value], ends, "--", color="black", linewidth=1.4, label=name)
    words = {kind: max(int(board[kind][3]) for board in boards.values() if kind in board) for kind in kinds}
    axes.set_yticks(range(len(kinds)), [f"{kind}\n{words[kind]} words" for kind in kinds])
    label = "pointing accuracy, with 95 % intervals"
    axes.set(xlim=(0, 1.08), ylim=(len(kinds) - 0.5, -0.5), xlabel=label)
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
    axes.set_xticks(np.arange(0, 1.01, 0.2))
    axes.grid(axis="x", alpha=0.3)
    if others is not None:
        for name, face in (("filled: on the named thing", "black"), ("hollow: on the other thing", "white")):
            axes.plot([], [], "o", color="black", markerfacecolor=face, label=name)
    axes.legend(frameon=False, loc="center left", bbox_to_anchor=(1.0, 0.5))
    return figure


def _scores(axes, kinds, board, below, **look):
    """A model's marks, each with its interval and number, `below` the middle of its kind's line."""
    y = np.array([kinds.index(kind) + below for kind in board])
    mean, low, high, _ = np.array(list(board.values()), dtype=float).T
    axes.errorbar(mean, y, xerr=[mean - low, high - mean], linestyle="", capsize=3, **look)
    for at, right, value in zip(y, high, mean):
        axes.text(right + 0.015, at, f"{value:.0%}", va="center", fontsize=9)


@style.plot
def effects(values, rows, columns, label="nats lost", title=None):
    """What interventions do: a row for each, a column for each word or kind of word; every number is printed.

    values: [R, C], or label -> such an array for several networks side by side, on one scale around zero.
    """
    maps = style.some(values if isinstance(values, dict) else {"": values}, "values")
    maps = {name: style.array(v, "values", (len(rows), len(columns))) for name, v in maps.items()}
    cell = max(0.5, min(0.9, (style.WIDTH - 3.0) / (len(columns) * len(maps))))
    size = 3.0 + cell * len(columns) * len(maps), 1.3 + 0.34 * len(rows)
    figure = style.figure(*size, "Effects", title)
    scale = style.differences(*maps.values())
    digits = 1 if scale.norm.vmax >= 2 else 2
    grid = style.matrices(figure, maps, scale, rows, columns, label, turn=30)
    for axes, v in zip(grid, maps.values()):
        for (r, c), value in np.ndenumerate(v):
            ink = "white" if abs(value) > 0.6 * scale.norm.vmax else "black"
            text = f"{round(value, digits) + 0.0:.{digits}f}"
            axes.text(c, r, text, color=ink, fontsize=9, **style.CENTRE)
    return figure


@style.plot
def lens(said, probabilities, rows, columns, title=None):
    """What the head reads off each layer: a row for each layer, a column for each word of the caption.

    A cell holds the likeliest word, bold where it is the caption's; the lighter, the likelier is the caption's word.

    said: R times C words. probabilities: [R, C], of the caption's words. rows, columns: names of layers, the words.
    """
    values = style.array(probabilities, "probabilities", (len(rows), len(columns)))
    cell = min(1.15, (style.WIDTH - 2.4) / len(style.some(columns, "columns")))
    figure = style.figure(2.4 + cell * len(columns), 0.9 + 0.4 * len(rows), "Words of each layer", title)
    label = "probability of the\ncaption's word"
    (axes,) = style.matrices(figure, {"": values}, style.shares(), rows, columns, label)
    for (r, c), value in np.ndenumerate(values):
        weight = "bold" if said[r][c] == columns[c] else "normal"
        axes.text(c, r, said[r][c], weight=weight, color=style.ink(value), fontsize=9, **style.CENTRE)
    return figure
