"""Training curves and scores."""

from collections import Counter

import numpy as np

from gitdistill.viz.plots import style

# Behind a text that lies over lines.
BACKING = {"facecolor": "white", "edgecolor": "none", "alpha": 0.85, "pad": 0.5}


@style.plot
def curves(logs, log=(), levels=None, xlabel="step", ylabel="", title=None):
    """Training curves: a line style and a mark for each run or term.

    logs: label -> (steps, values), or panel -> (label -> (steps, values)). A value may be (mean, low, high): a bar is
        drawn from low to high.
    log: True, or the panels whose vertical axis is logarithmic.
    levels: horizontal lines to compare with, e.g. the teacher's score; label -> value, or panel -> such a dict.
    ylabel: what a single panel measures; several panels say it in their titles.
    """
    nested = isinstance(next(iter(style.some(logs, "logs").values())), dict)
    panels = logs if nested else {"": logs}
    levels = (levels or {}) if nested else {"": levels or {}}
    columns = min(len(panels), 2 if len(panels) in (2, 4) else 3)
    rows = -(-len(panels) // columns)
    figure = style.figure(8.0 if columns == 1 else style.WIDTH, rows * 3.0, "Curves", title)
    grid = list(figure.subplots(rows, columns, squeeze=False).flat)
    places = line_places(panels)
    for axes, (panel, lines) in zip(grid, panels.items()):
        _panel(axes, lines, places[panel], levels.get(panel, {}), log is True or panel in (log or ()))
        axes.set(title=panel, xlabel=xlabel, ylabel=ylabel)
        if len(lines) > 1 or not nested:
            axes.legend(frameon=False)
    for axes in grid[len(panels) :]:
        axes.remove()
    return figure


def line_places(panels):
    """Panel -> (label -> place in the lists of `style`): what occurs in several panels looks the same in all."""
    counts = Counter(label for lines in panels.values() for label in lines)
    shared = [label for label, count in counts.items() if count > 1]
    return {
        panel: style.slots(shared + [label for label in lines if label not in shared])
        for panel, lines in panels.items()
    }


def _panel(axes, lines, places, levels, log):
    for label, (steps, values) in lines.items():
        _curve(axes, label, steps, values, places[label])
    for k, (label, value) in enumerate(levels.items(), start=3):
        axes.axhline(value, color="black", linestyle=style.line(k)["linestyle"], linewidth=1.2)
        place = {"xycoords": ("axes fraction", "data"), "xytext": (0, 3), "textcoords": "offset points"}
        text = f"{label} {style.number(value)}"
        axes.annotate(text, (0.98, value), ha="right", fontsize=9, bbox=BACKING, **place)
    if log:
        axes.set_yscale("log")
        low, high = axes.get_ylim()
        style.plain_log_ticks(axes.yaxis, (1,) if high > 100 * low else (1, 2, 5))
    axes.grid(alpha=0.3)


def _curve(axes, label, steps, values, k):
    steps, values = style.array(steps, "steps", "n"), np.asarray(values, dtype=float)
    if values.ndim == 2 and values.shape[1] == 3:
        values, *ends = values.T
        axes.vlines(steps, *ends, color=style.colour(k), linewidth=5, alpha=0.3)
    values = style.array(values, f"values of {label}", steps.shape)
    every = max(1, len(steps) // 6)
    offset = min(k * every // 4, max(len(steps) - 1, 0))  # marks of different curves stand apart
    axes.plot(steps, values, label=label, markevery=(offset, every), markersize=5, **style.line(k))


@style.plot
def board(panels, captions=None, step=None, log=(), levels=None, title=None):
    """A training at a glance: curves over one axis of steps, and below them the student's captions on the way.

    panels: panel -> (label -> (steps, values)), up to four; an empty line is a measure that is still to come.
    captions: step -> a caption for each of a few fixed clips; words that the one before did not have there are
        underlined. At most six steps are shown, the last one among them.
    step: the moment to point at: a vertical rule in every panel, its captions in bold.
    log, levels: as in `curves`, by panel.
    """
    captions = captions or {}
    clips = len(next(iter(captions.values()), ()))
    steps = sorted(captions)
    steps = [steps[round(k)] for k in np.linspace(0, len(steps) - 1, min(6, len(steps)))]  # evenly chosen
    high = clips * (0.2 * len(steps) + 0.32)
    figure = style.figure(style.WIDTH, 2.75 + (high and high + 0.1), "Training", title, None)
    width = (style.WIDTH - 0.2) / max(len(style.some(panels, "panels")), 3)
    places = line_places(panels)
    for k, (panel, lines) in enumerate(panels.items()):
        axes = style.axes_at(figure, 0.55 + k * width, 0.3, width - 0.65, 1.95)
        lines = {label: values for label, values in lines.items() if len(values[0])}
        _panel(axes, lines, places[panel], (levels or {}).get(panel, {}), panel in log)
        if step is not None:
            axes.axvline(step, color=style.ACCENT, linewidth=1.6)
        axes.set(title=panel, xlabel="step")
        if lines:
            axes.legend(frameon=False, fontsize=8)
    for clip in range(clips):
        rows = [(at, captions[at][clip].split()) for at in steps]
        _captions_so_far(figure, 2.85 + clip * (high / clips), f"clip {clip + 1}", rows, step)
    return figure


def _captions_so_far(figure, top, name, rows, step):
    """Captions of one clip, a line a step, new words underlined; in letters of one width, so that places are known."""
    width, height = style.WIDTH - 0.2, 0.2 * len(rows) + 0.3
    axes = style.axes_at(figure, 0.1, top, width, height)
    axes.set(xlim=(0, width * 72), ylim=(height * 72, 0))
    axes.axis("off")
    axes.text(0, 11, name, weight="bold")
    letter = 9 * style.LETTER  # points
    before = rows[0][1] if rows else []
    for k, (at, words) in enumerate(rows):
        y, weight = 11 + 14.4 * (k + 1), "bold" if at == step else "normal"
        text = f"{at:>8,}  {' '.join(words) or '(nothing)'}"
        axes.text(0, y, text, family="DejaVu Sans Mono", fontsize=9, weight=weight)
        start = 10
        for n, word in enumerate(words):
            end = start + len(word)
            if before[n : n + 1] != [word]:
                axes.plot([start * letter, end * letter], [y + 2, y + 2], color="black", linewidth=0.9)
            start = end + 1
        before = words


@style.plot
def scores(table, title=None, shared=False):
    """Models compared score by score: a panel a score, axes from zero, values printed.

    table: model -> (score -> number); a score missing for a model leaves its bar out.
    shared: one axis for all panels, for numbers of one kind; otherwise each has its own.
    """
    names = list(dict.fromkeys(name for row in style.some(table, "table").values() for name in row))
    rows = -(-len(style.some(names, "table")) // 4)
    columns = -(-len(names) // rows)
    height = rows * (0.36 * len(table) + 0.55)
    figure = style.figure(max(5.0, 1.6 + 2.35 * columns), height, "Scores", title)
    grid = list(figure.subplots(rows, columns, squeeze=False, sharey=True).flat)
    everything = [value for row in table.values() for value in row.values() if value is not None]
    places = list(style.slots(table).values())
    for axes, name in zip(grid, names):
        values = {k: row[name] for k, row in enumerate(table.values()) if row.get(name) is not None}
        in_range = everything if shared else list(values.values())
        top = max([abs(value) for value in in_range] + [1e-9])
        for k, value in values.items():
            axes.barh(k, value, 0.7, **style.bar(places[k]))
            axes.text(max(value, 0) + top / 40, k, style.number(value), va="center", fontsize=9)
        low = min([*in_range, 0])
        axes.set(title=name, xlim=(low * 1.1, top * 1.3), xticks=[])
        _rows(axes, list(table))
        axes.spines["bottom"].set_visible(False)
    for axes in grid[len(names) :]:
        axes.remove()
    return figure


@style.plot
def pareto(rows, score="score", title=None):
    """Quality against time: up and to the left is better, a dashed line joins the points that no other beats.

    Colour is the network, the same as in all pictures; shape is the search. A band joins a network's points.

    rows: a dict each with network, search, ms (for a clip), score, parameters (the area of its mark).
    score: what the vertical axis measures.
    """
    networks, searches = (list(dict.fromkeys(row[key] for row in rows)) for key in ("network", "search"))
    rows = sorted(style.some(rows, "rows"), key=lambda row: (row["ms"], -row["score"]))
    figure = style.figure(8.0, 4.5, "Quality against time", title)
    axes = figure.subplots()
    largest = max(row["parameters"] for row in rows)
    times, values = [row["ms"] for row in rows], [row["score"] for row in rows]
    best = [k for k in range(len(rows)) if values[k] > max(values[:k], default=-np.inf)]
    axes.plot([times[k] for k in best], [values[k] for k in best], "--", color=style.GREY, zorder=1)
    axes.set_xscale("log")
    axes.set_xlim(min(times) / 1.3, max(times) * max(2.0, (max(times) / min(times)) ** 0.35))
    spread = max(values) - min(values) or 1.0
    axes.set_ylim(min(values) - 0.15 * spread, max(values) + 0.15 * spread)
    axes.set(xlabel="milliseconds for a clip (log scale); area: parameters", ylabel=score)
    style.plain_log_ticks(axes.xaxis, (1, 1.5, 2, 3, 5, 7))
    axes.grid(alpha=0.3)
    for k, search in enumerate(searches):
        look = style.mark(k) | {"color": "white", "markeredgecolor": "black"}
        axes.plot([], [], linestyle="", label=search, **look)
    axes.legend(frameon=False, loc="lower right", title="search")
    places = style.slots(networks)
    own = {network: [row for row in rows if row["network"] == network] for network in networks}
    for network, points in own.items():
        x, y, area = zip(*((row["ms"], row["score"], row["parameters"] / largest) for row in points))
        axes.plot(x, y, color=style.colour(places[network]), linewidth=9, alpha=0.25, zorder=0)
        for row, *place, size in zip(points, x, y, area):
            look = style.mark(searches.index(row["search"])) | {"color": style.colour(places[network])}
            axes.scatter(*place, s=40 + 460 * size, edgecolor="black", zorder=2, alpha=0.85, **look)
    _network_labels(axes, own)
    return figure


def _network_labels(axes, own):
    """Each network's name, size and times, right of its slowest point; pushed down where one would cover another."""
    axes.figure.draw_without_rendering()  # settles the layout, so that data can be turned into points
    taken, scale = [], 72 / axes.figure.dpi
    for network, rows in sorted(own.items(), key=lambda item: -item[1][-1]["score"]):
        times = " and ".join(style.number(row["ms"]) for row in rows)
        text = f"{network}\n{style.count(rows[-1]['parameters'])}, {times} ms"
        place = rows[-1]["ms"], rows[-1]["score"]
        x, y = axes.transData.transform(place) * scale
        left, low, width = x + 18, y, 6 * max(map(len, text.split("\n")))
        for other, level, extent in taken:
            if left < other + extent and other < left + width and abs(low - level) < 26:
                low = level - 26
        taken.append((left, low, width))
        line = {"arrowstyle": "-", "color": style.GREY, "linewidth": 0.8} if low < y - 4 else None
        look = {"fontsize": 9, "va": "center", "zorder": 1.5, "bbox": BACKING | {"alpha": 0.8}}
        beside = {"xytext": (left - x, low - y), "textcoords": "offset points"}
        axes.annotate(text, place, arrowprops=line, **beside, **look)


@style.plot
def dots(table, intervals=None, levels=None, title=None, unit=None):
    """Variants compared over several runs: a row a variant, a panel a score, a dot a run, a line at their mean.

    table: variant -> (score -> values, one a run); a score missing for a variant leaves its place empty.
    intervals: variant -> (score -> (low, high)), drawn as a bar; nan: none.
    levels: vertical lines to compare with; score -> (label -> value); "" writes nothing.
    unit: what all scores are measured in, below them.
    """
    names = list(dict.fromkeys(name for row in style.some(table, "table").values() for name in row))
    width = 0.075 * max(map(len, table)) + 2.1 * len(style.some(names, "table"))
    figure = style.figure(width, 0.26 * len(table) + 0.7 + (0.2 if unit else 0), "Runs", title)
    grid = figure.subplots(1, len(names), squeeze=False, sharey=True).flat
    figure.supxlabel(unit or "", fontsize="medium")
    places = style.slots(names)  # a panel may be a network
    for axes, name in zip(grid, names):
        for place, (variant, row) in enumerate(table.items()):
            values = style.array(row.get(name, []), f"{name} of {variant}", "runs")
            if not len(values):
                continue
            look = {"linestyle": "", "alpha": 0.6, "markersize": 5, "marker": "o", "color": style.GREY}
            look |= style.mark(places[name]) if name in style.NETWORKS else {}
            axes.plot(values, [place] * len(values), **look)
            axes.plot([values.mean()] * 2, [place - 0.32, place + 0.32], color="black", linewidth=1.8)
            ends = (intervals or {}).get(variant, {}).get(name)
            if ends is not None and np.isfinite(ends).all():
                axes.plot(ends, [place] * 2, color="black", linewidth=1.0, zorder=1)
        for label, level in (levels or {}).get(name, {}).items():
            axes.axvline(level, color=style.GREY, linestyle="--", linewidth=1.0, zorder=0)
            if label:
                look = {"xycoords": ("data", "axes fraction"), "ha": "right", "va": "bottom", "fontsize": 8}
                axes.annotate(f"{label} {style.number(level)}", (level, 1), **look)
        axes.set_title(name, pad=14)  # above the names of the levels
        _rows(axes, list(table))
        axes.grid(alpha=0.3)
    return figure


def _rows(axes, names):
    """A row for each name, from top to bottom."""
    axes.set(ylim=(len(names) - 0.5, -0.5), yticks=range(len(names)), yticklabels=names)
    axes.tick_params(axis="y", length=0)
