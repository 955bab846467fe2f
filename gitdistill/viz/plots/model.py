"""The model as a whole: its attention mask, and the parameters of its parts."""

from itertools import accumulate

import numpy as np
from matplotlib.colors import ListedColormap

from gitdistill.viz.plots import style


@style.plot
def token_mask(mask, groups, labels=None, title=None, axes=("looks", "is looked at"), verb="sees"):
    """An attention mask: one row a token that attends, one column a token that is attended to.

    mask: boolean [Q, S], True may be seen; Q = S, or the last Q of the S tokens attend.
    groups: blocks of tokens in order, as (name, count) pairs that add up to S; e.g. image and text in GIT
        (https://arxiv.org/abs/2205.14100). Each pair of blocks is bracketed, and named by what its cells hold.
    labels: a text for each of the S tokens, drawn when they fit (up to 40).
    axes, verb: what rows and columns are, and what a row does to the columns it is true for.
    """
    mask = style.array(mask, "mask", "Q S").astype(bool)
    rows, seen = mask.shape
    first = seen - rows  # the token of the first row
    ends = list(accumulate(count for _, count in groups))
    if ends[-1] != seen or first < 0:
        raise ValueError(f"groups hold {ends[-1]} tokens, but mask is {list(mask.shape)}")
    figure = style.figure(7.5, 1.0 + 5.0 * rows / seen, "Attention mask", title)
    (down, along), axes = axes, figure.subplots()
    colours = ListedColormap(["white", style.colour(5)])
    axes.imshow(mask, cmap=colours, vmin=0, vmax=1, extent=(0, seen, seen, first))
    axes.set(xlabel=along, ylabel=down, xlim=(0, seen), ylim=(seen, first), xticks=[], yticks=[])
    axes.spines[:].set_visible(True)
    if seen <= 40:
        grid = {"color": "white", "linewidth": 0.8}
        axes.vlines(np.arange(1, seen), first, seen, **grid)
        axes.hlines(np.arange(first + 1, seen), 0, seen, **grid)
        if labels is not None:
            axes.set_xticks(np.arange(seen) + 0.5, labels, rotation=90)
            axes.set_yticks(np.arange(first, seen) + 0.5, labels[first:])
            axes.tick_params(length=0)
    blocks = [(name, start, end) for (name, _), start, end in zip(groups, [0, *ends], ends)]
    for name, start, end in blocks:
        axes.axvline(end, color="black")
        axes.annotate(name, ((start + end) / 2, 1.02), xycoords=("data", "axes fraction"), ha="center")
        if end > first:
            _block_row(axes, mask, name, (max(start, first), end), [block[1:] for block in blocks], verb)
    return figure


def _block_row(axes, mask, name, rows, blocks, verb):
    """One block of rows: its name, a line below it, and what it lets through in each block of columns."""
    first = mask.shape[1] - mask.shape[0]
    axes.axhline(rows[1], color="black")
    place = {"xycoords": ("axes fraction", "data"), "va": "center", "rotation": 270}
    axes.annotate(name, (1.02, sum(rows) / 2), **place)
    for columns in blocks:
        block = mask[rows[0] - first : rows[1] - first, columns[0] : columns[1]]
        if block.shape[0] < 0.045 * mask.shape[1] or block.shape[1] < 0.15 * mask.shape[1]:
            continue  # no room for a text
        past = np.tril(np.ones_like(block), block.shape[1] - block.shape[0])
        causal = (block == past).all() and not block.all()
        text = f"{verb} itself\nand the past" if causal else f"{verb} a part"
        text = f"{verb} all" if block.all() else text if block.any() else f"{verb} nothing"
        x, y = (0.32, 0.8) if causal else (0.5, 0.5)  # the lower left of a triangle
        x, y = columns[0] + x * block.shape[1], rows[0] + y * block.shape[0]
        box = {"boxstyle": "round", "facecolor": "white", "edgecolor": style.GREY}
        axes.text(x, y, text, fontsize=9, bbox=box, **style.CENTRE)


@style.plot
def budget(parts, title=None):
    """Parameters of each part as bars, with numbers and shares.

    parts: name -> parameters, or model -> (name -> parameters) for several models on one scale.
    """
    models = parts if isinstance(next(iter(style.some(parts, "parts").values())), dict) else {"": parts}
    sizes = [len(model) for model in models.values()]
    figure = style.figure(9, 0.32 * sum(sizes) + 0.45 * len(sizes) + 0.5, "Parameters", title)
    ratios = [size + 0.6 for size in sizes]
    grid = figure.subplots(len(sizes), 1, sharex=True, squeeze=False, height_ratios=ratios)[:, 0]
    top = max(value for model in models.values() for value in model.values())
    places = style.slots(models)
    for axes, (model, values) in zip(grid, models.items()):
        total = sum(values.values())
        axes.barh(list(values), list(values.values()), 0.75, **style.bar(places[model]))
        for y, value in enumerate(values.values()):
            share = f"{value / total:.0%}" if value >= 0.005 * total else "< 1%"
            axes.text(value + top / 100, y, f"{style.count(value)} ({share})", va="center", fontsize=9)
        axes.set_title(f"{model + ':' if model else 'total'} {style.count(total)}", loc="left")
        axes.set(xlim=(0, top * 1.2), ylim=(len(values) - 0.5, -0.5))
        axes.tick_params(axis="y", length=0)
        axes.xaxis.set_major_formatter(lambda value, _: style.count(value))
    grid[-1].set_xlabel("parameters")
    return figure
