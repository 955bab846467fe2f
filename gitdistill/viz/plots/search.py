"""The search for a caption: temperature, the tree, two captions side by side, drafts of speculative decoding."""

from itertools import takewhile, zip_longest

import numpy as np
from matplotlib.patches import Rectangle

from gitdistill.viz.plots import style


def _box(axes, x, y, text, faint=False, strong=False, **options):
    """A text in a rounded box: dashed and grey if faint, thick and tinted if strong."""
    box = {"boxstyle": "round,pad=0.25", "facecolor": style.TINT if strong else "white"}
    box |= {"linestyle": "--" if faint else "-", "linewidth": 2.2 if strong else 0.9}
    box["edgecolor"] = style.ACCENT if strong else style.GREY if faint else "black"
    look = {"color": style.GREY if faint else "black", "weight": "bold" if strong else "normal"}
    axes.text(x, y, text, bbox=box, **style.CENTRE, **look, **options)


@style.plot
def beam_tree(trace, words, top=3, clip=0, upto=None, title=None):
    """A beam search as a tree: a column a step, candidates from likely to unlikely.

    Each box holds a token and the log-probability of the caption so far. Solid: kept as a beam. Dashed and faint:
    pruned, or unfinished when the search ends. Double line: a finished caption, with its score after the length
    penalty in brackets. The thick path is the caption that won: the best of these scores.

    trace: the table of `gitdistill.decoding.beam(..., trace=True)`: equally long columns `step`, `clip`,
        `parent`, `token`, `score`, `beam`, `kept`, `finished`, `final`.
    words: the text of a token, as a function (a tokenizer's `convert_ids_to_tokens`), list or dict.
    top: pruned candidates drawn in each step. clip: which clip of the trace.
    upto: draw only that many steps, in a frame of the whole tree's size; the winner shows with the last one.
    """
    text = words if callable(words) else words.__getitem__
    trace = {name: np.asarray(values) for name, values in trace.items()}
    if clip not in trace["clip"]:
        raise ValueError(f"clip {clip} is not in the trace, which holds clips {sorted(set(trace['clip']))}")
    steps = tree(trace, clip, top)
    shown = steps if upto is None else steps[:upto]
    best = winner(steps) if len(shown) == len(steps) else []
    ranks = max(map(len, steps))
    figure = style.figure(style.WIDTH, 0.5 * ranks + 0.9, "Beam search", title)
    axes = figure.subplots()
    style.bare(axes)
    axes.set(xlim=(-1.5, max(len(steps), 6) - 0.4), ylim=(ranks - 0.5, -0.6), xlabel="step", ylabel="rank")
    axes.set_xticks(range(len(steps)), range(1, len(steps) + 1))
    axes.set_yticks(range(ranks), range(1, ranks + 1))
    size, letters = (9, 9) if len(steps) <= 12 else (8, 7)
    _box(axes, -1, 0, "start", fontsize=size, zorder=3)
    for step, nodes in enumerate(shown):
        for rank, node in enumerate(nodes):
            score = f"({node['final']:.2f})" if node["finished"] else f"{node['score']:.2f}"
            label = f"{style.short(text(int(node['token'])), letters)}\n{style.minus_sign(score)}"
            _node(axes, step, parent(steps, step, node) or 0, rank, node, label, (step, rank) in best, size)
    _tree_legend(axes, bool(best))
    return figure


def tree(trace, clip, top):
    """For each step the candidates to draw, best first: dicts of the trace's columns."""
    steps, last = [], int(trace["step"][trace["clip"] == clip].max())
    for step in range(last + 1):
        rows = np.nonzero((trace["clip"] == clip) & (trace["step"] == step))[0]
        rows = rows[np.argsort(-trace["score"][rows], kind="stable")]
        nodes = [{name: values[row] for name, values in trace.items()} for row in rows]
        for node in nodes if step == last else ():
            node["kept"] = False  # the search does not continue it
        pruned = [k for k, node in enumerate(nodes) if _pruned(node)][top:]
        steps.append([node for k, node in enumerate(nodes) if k not in pruned])
    return steps


def _pruned(node):
    return not (node["finished"] or node["kept"])


def parent(steps, step, node):
    """Rank in the step before of the candidate that `node` continues; None at the first step."""
    before = enumerate(steps[step - 1] if step else ())
    return next((rank for rank, other in before if other["kept"] and other["beam"] == node["parent"]), None)


def winner(steps):
    """(step, rank) of every candidate on the way to the best finished caption, the last one first."""
    places = [(s, r) for s, nodes in enumerate(steps) for r, node in enumerate(nodes) if node["finished"]]
    if not places:
        return []
    step, rank = max(places, key=lambda place: steps[place[0]][place[1]]["final"])
    path = []
    while rank is not None:
        path.append((step, rank))
        rank, step = parent(steps, step, steps[step][rank]), step - 1
    return path


def _node(axes, step, before, rank, node, label, won, size):
    """One candidate: its box, and the edge from the candidate that it continues, at rank `before`."""
    pruned = _pruned(node)
    colour = style.ACCENT if won else style.GREY if pruned else "black"
    look = {"color": colour, "linestyle": "--" if pruned else "-", "linewidth": 3.5 if won else 1.0}
    x, y = [step - 1, step - 0.7, step - 0.3, step], [before, before, rank, rank]  # clear of other boxes
    axes.plot(x, y, alpha=0.5 if pruned else 1, zorder=1, **look)
    if node["finished"]:
        outer = {"boxstyle": "round,pad=0.5", "facecolor": "white", "edgecolor": colour}
        outer |= {"linewidth": 2.2 if won else 0.9}
        axes.text(step, rank, label, bbox=outer, zorder=2, fontsize=size, **style.CENTRE)
    _box(axes, step, rank, label, pruned, won, fontsize=size, zorder=3)


def _tree_legend(axes, won):
    entries = {"kept": {"color": "black"}, "pruned": {"color": style.GREY, "linestyle": "--", "alpha": 0.5}}
    box = {"linestyle": "", "marker": "s", "markersize": 9, "markerfacecolor": "white", "color": "black"}
    entries["finished (score after the length penalty)"] = box | {"markeredgewidth": 2.5}
    if won:
        entries["the caption that won"] = {"color": style.ACCENT, "linewidth": 3.5}
    handles = [axes.plot([], [], label=label, **look)[0] for label, look in entries.items()]
    axes.figure.legend(handles=handles, loc="outside lower right", ncols=4, frameon=False)


@style.plot
def ribbon(rows, title=None):
    """Two captions word by word for each kind of search: the teacher's above, the student's below.

    A cell of the teacher's row has the colour and the number of the probability that the student gives to that word
    after the teacher's words before it. A triangle marks a place where the captions differ.

    rows: search -> (the teacher's T words, the student's words, probabilities [T] in [0, 1]).
    """
    longest = max(max(len(first), len(second)) for first, second, _ in style.some(rows, "rows").values())
    cell, scale = min(0.95, (style.WIDTH - 3.0) / longest), style.shares()
    width, height = cell * longest, 1.05 * len(rows)
    figure = style.figure(3.0 + width, height + 0.3, "Decoding ribbon", title, None)
    axes = style.axes_at(figure, 1.75, 0.15, width, height)
    axes.set(xlim=(0, longest), ylim=(height, 0))
    style.bare(axes)
    ticks = []
    for k, (label, (first, second, probabilities)) in enumerate(rows.items()):
        values = style.array(probabilities, f"probabilities of {label}", [len(first)])
        top = 1.05 * k
        ticks += [(top + 0.25, f"{label}: teacher"), (top + 0.75, "student")]
        for t, (word, other, value) in enumerate(zip_longest(first, second, values)):
            if word is not None:
                axes.add_patch(Rectangle((t + 0.02, top), 0.96, 0.48, facecolor=scale.cmap(float(value))))
                look = {"color": style.ink(value), "linespacing": 1.1, "fontsize": 9, **style.CENTRE}
                axes.text(t + 0.5, top + 0.24, f"{style.short(word, 11)}\n{value:.2f}", **look)
            if other is not None:
                axes.text(t + 0.5, top + 0.75, style.short(other, 11), fontsize=9, **style.CENTRE)
            if word != other:
                look = {"color": style.ACCENT, "markersize": 7, "markeredgecolor": "black"}
                axes.plot(t + 0.5, top + 0.56, "^", **look)
    axes.set_yticks(*zip(*ticks))
    place = style.axes_at(figure, 1.95 + width, 0.15, 0.15, height)
    style.colour_bar(figure, scale, "student's\nprobability", cax=place)
    return figure


@style.plot
def drafts(passes, title=None):
    """A caption that one model drafted and another one checked: a row a pass of the checking model.

    In each row the drafted words in boxes, solid where they were kept, dashed and struck out where not; the word that
    the checking model added itself is bold in a thick box below.

    passes: for each pass the drafted words and the words that the caption gained, both lists of texts.
    """
    widest = sum(len(gained) for _, gained in style.some(passes, "passes"))
    figure = style.figure(style.WIDTH, 0.72 * len(passes) + 0.5, "Drafts", title)
    axes = figure.subplots()
    style.bare(axes)
    place = 0
    for row, (drafted, gained) in enumerate(passes):
        kept = len(list(takewhile(lambda pair: pair[0] == pair[1], zip(drafted, gained))))
        for k, word in enumerate(drafted):
            _box(axes, place + k, row - 0.2, style.short(word, 11), faint=k >= kept, fontsize=9)
            if k >= kept:
                ends = [place + k - 0.4, place + k + 0.4]
                axes.plot(ends, [row - 0.2] * 2, color="black", linewidth=1.2, zorder=4)
        for k, word in enumerate(gained[kept:], start=kept):
            _box(axes, place + k, row + 0.22, style.short(word, 11), strong=True, fontsize=9)
        widest = max(widest, place + len(drafted))
        place += len(gained)
    axes.set(xlim=(-0.6, widest - 0.4), ylim=(len(passes) - 0.45, -0.55), xlabel="place in the caption")
    axes.set_xticks(range(widest), range(1, widest + 1))
    axes.set_yticks(range(len(passes)), [f"pass {row + 1}" for row in range(len(passes))])
    return figure


@style.plot
def temperatures(heat, odds, words, marks, count=6, title=None):
    """The distribution of one next word as it is heated: above as stacked probabilities, below its entropy.

    Each word has one colour and hatch for all networks, in the first one's order near T = 1; white: all other words.

    heat: n rising temperatures. odds: label -> probabilities [n, V]. words: as in `beam_tree`. count: words shown.
    marks: temperature -> what is done there; a dashed line, with the entropy.
    """
    heat = style.array(style.some(heat, "heat"), "heat", "n")
    text = words if callable(words) else words.__getitem__
    odds = {k: style.array(v, f"odds of {k}", (len(heat), "V")) for k, v in style.some(odds, "odds").items()}
    ranked = np.argsort(-next(iter(odds.values()))[np.abs(np.log(heat)).argmin()], kind="stable")[:count]
    figure = style.figure(style.WIDTH, 4.4, "Temperature", title)
    shared = {"sharex": True, "sharey": "row", "squeeze": False, "height_ratios": (2.2, 1)}
    above, below = figure.subplots(2, len(odds), **shared)
    for areas, curve, (label, values) in zip(above, below, odds.items()):
        _stacked(areas, heat, values[:, ranked], [text(int(token)) for token in ranked])
        areas.set_title(label, loc="left")
        bits = -(values * np.log2(np.maximum(values, 1e-30))).sum(1)
        curve.plot(heat, bits, color="black")
        curve.set(xlabel="temperature T (log scale)", ylim=(0, np.log2(values.shape[1])))
        for t, name in marks.items():
            at, look = np.interp(t, heat, bits), {"textcoords": "offset points", "fontsize": 9}
            curve.plot(t, at, "o", color="black", markersize=5)
            curve.annotate(f"{at:.1f}", (t, at), (-5, 4), ha="right", **look)
            areas.annotate(name, (t, 1), (0, 3), ha="center", **look)
            for axes in (areas, curve):
                axes.axvline(t, color="black", linestyle="--", linewidth=1.2)
    above[0].set_ylabel("probability")
    below[0].set_ylabel("entropy (bits)")
    handles, names = above[0].get_legend_handles_labels()
    figure.legend(handles[::-1], names[::-1], loc="outside right center", frameon=False)
    return figure


def _stacked(axes, heat, values, names):
    """Areas [n, k] one upon the other, over a logarithmic axis; what is left to 1 stays white."""
    ends = np.pad(np.cumsum(values, 1), ((0, 0), (1, 0)))
    for k, name in enumerate(names):
        axes.fill_between(heat, ends[:, k], ends[:, k + 1], label=name, **style.bar(k))
    look = {"facecolor": "white", "edgecolor": "black", "linewidth": 0.8}
    axes.fill_between(heat, ends[:, -1], 1, label="all other words", **look)
    axes.set(xscale="log", xlim=(0.999 * heat[0], 1.001 * heat[-1]), ylim=(0, 1))
    style.plain_log_ticks(axes.xaxis, (1, 2, 3, 5))
