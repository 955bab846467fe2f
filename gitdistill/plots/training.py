"""Training curves and scores."""

from collections import Counter

import numpy as np
from matplotlib.ticker import LogLocator, NullFormatter

from gitdistill.plots.style import (
    DASHES,
    GREY,
    MARKS,
    OKABE_ITO,
    WIDTH,
    _array,
    _bars,
    _count,
    _figure,
    _number,
    _same,
    _some,
    _styled,
)


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
