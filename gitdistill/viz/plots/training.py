"""Training curves and scores."""

from collections import Counter

import numpy as np
from matplotlib.ticker import LogLocator, NullFormatter

from gitdistill.viz.plots.style import (
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
    _place,
    _same,
    _some,
    _styled,
)


@_styled
def curves(logs, log=(), levels=None, xlabel="step", ylabel="", title=None):
    """Training curves: a line style and a mark for each run or term.

    logs: label -> (steps, values), or panel -> (label -> (steps, values)). A value may be (mean, low, high): a bar is
        drawn from low to high.
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
    shared = _shared(panels)
    for axes, (panel, lines) in zip(grid, panels.items()):
        _panel(axes, lines, shared, levels.get(panel, {}), log is True or panel in (log or ()))
        axes.set(title=panel, xlabel=xlabel, ylabel=ylabel)
        if len(lines) > 1 or not nested:
            axes.legend(frameon=False)
    for axes in grid[len(panels) :]:
        axes.remove()
    return figure


def _shared(panels):
    """Labels that occur in several panels; they have one look in all of them."""
    counts = Counter(label for lines in panels.values() for label in lines)
    return [label for label, count in counts.items() if count > 1]


def _panel(axes, lines, shared, levels, log):
    order = shared + [label for label in lines if label not in shared]
    for label, (steps, values) in lines.items():
        _curve(axes, label, steps, values, order.index(label))
    for k, (label, value) in enumerate(levels.items()):
        axes.axhline(value, color="black", linestyle=DASHES[(k + 3) % len(DASHES)], linewidth=1.2)
        place = {"xycoords": ("axes fraction", "data"), "xytext": (0, 3), "textcoords": "offset points"}
        ground = {"facecolor": "white", "edgecolor": "none", "alpha": 0.85, "pad": 0.5}
        axes.annotate(
            f"{label} {_number(value)}", (0.98, value), ha="right", fontsize=9, bbox=ground, **place
        )
    if log:
        _log_axis(axes)
    axes.grid(alpha=0.3)


def _log_axis(axes):
    """A logarithmic axis with plain numbers, at every power of ten, and between them if there are few."""
    axes.set_yscale("log")
    low, high = axes.get_ylim()
    axes.yaxis.set_major_locator(LogLocator(subs=(1,) if high > 100 * low else (1, 2, 5)))
    axes.yaxis.set_major_formatter(lambda value, _: _number(value))
    axes.yaxis.set_minor_formatter(NullFormatter())


def _curve(axes, label, steps, values, k):
    steps, values = _array(steps, "steps", "n"), np.asarray(values, dtype=float)
    if values.ndim == 2 and values.shape[1] == 3:
        values, *ends = values.T
        axes.vlines(steps, *ends, color=OKABE_ITO[k % len(OKABE_ITO)], linewidth=5, alpha=0.3)
    _same(values.shape, steps.shape, f"values of {label}")
    every = max(1, len(steps) // 6)
    offset = min(k * every // 4, max(len(steps) - 1, 0))  # marks of different curves stand apart
    mark = {"marker": MARKS[k % len(MARKS)], "markevery": (offset, every), "markersize": 5}
    look = {"color": OKABE_ITO[k % len(OKABE_ITO)], "linestyle": DASHES[k % len(DASHES)]}
    axes.plot(steps, values, label=label, **look, **mark)


@_styled
def board(panels, captions=None, step=None, log=(), levels=None, title=None):
    """A training at a glance: curves over one axis of steps, and below them what the student said on the way.

    panels: panel -> (label -> (steps, values)), up to four; an empty line is a measure that is still to come.
    captions: step -> a caption for each of a few fixed clips; words that the one before did not have there are
        underlined. At most six steps are shown, the last one among them.
    step: the moment to point at: a vertical rule in every panel, its captions in bold.
    log, levels: as in `curves`, by panel.
    """
    captions = captions or {}
    clips = len(next(iter(captions.values()), ()))
    steps = _some_of(sorted(captions), 6)
    high = clips * (0.2 * len(steps) + 0.32)
    figure = _figure(WIDTH, 2.75 + (high and high + 0.1), "Training", title, None)
    width = (WIDTH - 0.2) / max(len(_some(panels, "panels")), 3)
    shared = _shared(panels)
    for k, (panel, lines) in enumerate(panels.items()):
        axes = _place(figure, 0.55 + k * width, 0.3, width - 0.65, 1.95)
        lines = {label: values for label, values in lines.items() if len(values[0])}
        _panel(axes, lines, shared, (levels or {}).get(panel, {}), panel in log)
        if step is not None:
            axes.axvline(step, color=OKABE_ITO[1], linewidth=1.6)
        axes.set(title=panel, xlabel="step")
        if lines:
            axes.legend(frameon=False, fontsize=8)
    for clip in range(clips):
        said = [(at, captions[at][clip].split()) for at in steps]
        _told_so_far(figure, 2.85 + clip * (high / clips), clip, said, step)
    return figure


def _some_of(values, count):
    """`count` of the values, evenly chosen, the last one among them; all if there are no more."""
    if len(values) <= count:
        return values
    return [values[round(k * (len(values) - 1) / (count - 1))] for k in range(count)]


def _told_so_far(figure, top, clip, said, step):
    """Captions of one clip, a line a step, new words underlined; in letters of one width, so that places are known."""
    axes = _place(figure, 0.1, top, WIDTH - 0.2, 0.2 * len(said) + 0.3)
    axes.set(xlim=(0, (WIDTH - 0.2) * 72), ylim=((0.2 * len(said) + 0.3) * 72, 0))
    axes.axis("off")
    axes.text(0, 11, f"clip {clip + 1}", weight="bold")
    letter = 9 * 1233 / 2048  # points: the advance of DejaVu Sans Mono
    before = None
    for k, (at, words) in enumerate(said):
        y, now = 11 + 14.4 * (k + 1), at == step
        style = {"family": "DejaVu Sans Mono", "fontsize": 9, "weight": "bold" if now else "normal"}
        axes.text(0, y, f"{at:>8,}  {' '.join(words) or '(nothing)'}", **style)
        place = 10
        for n, word in enumerate(words):
            if before is not None and (n >= len(before) or before[n] != word):
                axes.plot(
                    [place * letter, (place + len(word)) * letter], [y + 2, y + 2], color="black", lw=0.9
                )
            place += len(word) + 1
        before = words


@_styled
def scores(table, title=None, shared=False):
    """Models compared score by score: a panel a score, axes from zero, values printed.

    table: model -> (score -> number); a score missing for a model leaves its bar out.
    shared: one axis for all panels, for numbers of one kind; otherwise each has its own.
    """
    names = list(dict.fromkeys(name for row in _some(table, "table").values() for name in row))
    rows = -(-len(_some(names, "table")) // 4)
    columns = -(-len(names) // rows)
    height = rows * (0.36 * len(table) + 0.55)
    figure = _figure(max(5.0, 1.6 + 2.35 * columns), height, "Scores", title)
    grid = figure.subplots(rows, columns, squeeze=False, sharey=True)
    everything = [value for row in table.values() for value in row.values() if value is not None]
    for axes, name in zip(grid.flat, names):
        values = {k: row[name] for k, row in enumerate(table.values()) if row.get(name) is not None}
        range_of = everything if shared else [*values.values()]
        top = max([abs(value) for value in range_of] + [1e-9])
        for k, value in values.items():
            axes.barh(k, value, 0.7, **_bars(k))
            axes.text(max(value, 0) + top / 40, k, _number(value), va="center", fontsize=9)
        low = min([*range_of, 0])
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
        axes.annotate(text, (row["ms"], row["score"]), fontsize=9, bbox=ground, zorder=1.5, **place)


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
