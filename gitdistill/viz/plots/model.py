"""The model as a whole: who sees whom, and where the parameters are."""

from itertools import accumulate

import numpy as np
from matplotlib.colors import ListedColormap

from gitdistill.viz.plots.style import GREY, OKABE_ITO, _array, _bars, _count, _figure, _some, _styled


@_styled
def token_mask(mask, groups, labels=None, title=None, axes=("looks", "is looked at"), verb="sees"):
    """Who sees whom: one row a token that looks, one column a token that is looked at.

    mask: boolean [Q, S], True may be seen; Q = S, or the last Q of the S tokens look.
    groups: blocks of tokens in order, as (name, count) pairs that add up to S; e.g. image and text in GIT
        (https://arxiv.org/abs/2205.14100). Each pair of blocks is bracketed, and named by what its cells hold.
    labels: a text for each of the S tokens, drawn when they fit (up to 40).
    axes, verb: what rows and columns are, and what a row does to the columns it is true for.
    """
    mask = _array(mask, "mask", "Q S").astype(bool)
    looking, seen = mask.shape
    ends = list(accumulate(count for _, count in groups))
    if ends[-1] != seen or looking > seen:
        raise ValueError(f"groups hold {ends[-1]} tokens, but mask is {list(mask.shape)}")
    figure = _figure(7.5, 1.0 + 5.0 * looking / seen, "Attention mask", title)
    down, along = axes
    axes = figure.subplots()
    colours = ListedColormap(["white", OKABE_ITO[5]])
    axes.imshow(mask, cmap=colours, vmin=0, vmax=1, extent=(0, seen, seen, seen - looking))
    axes.set(xlabel=along, ylabel=down, xlim=(0, seen), ylim=(seen, seen - looking))
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
                _describe(axes, mask, (max(start, seen - looking), end), (left, right), seen - looking, verb)
    return figure


def _describe(axes, mask, rows, columns, offset, verb):
    """Write into one block what it lets through, if there is room."""
    block = mask[rows[0] - offset : rows[1] - offset, columns[0] : columns[1]]
    if block.shape[0] < 0.045 * mask.shape[1] or block.shape[1] < 0.15 * mask.shape[1]:
        return
    past = np.tril(np.ones_like(block), block.shape[1] - block.shape[0])
    causal = (block == past).all() and not block.all()
    text = f"{verb} itself\nand the past" if causal else f"{verb} a part"
    text = f"{verb} all" if block.all() else text if block.any() else f"{verb} nothing"
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
