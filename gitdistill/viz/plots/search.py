"""The search for a caption: as a tree, as words side by side, and in drafts."""

import matplotlib as mpl
import numpy as np
from matplotlib.colors import Normalize
from matplotlib.patches import Rectangle

from gitdistill.viz.plots.style import (
    AMOUNT,
    GREY,
    OKABE_ITO,
    WIDTH,
    _array,
    _bar,
    _bare,
    _figure,
    _minus_sign,
    _place,
    _same,
    _some,
    _styled,
)


@_styled
def beam_tree(trace, words, top=3, clip=0, upto=None, title=None):
    """A beam search as a tree: a column a step, candidates from likely to unlikely.

    Each box holds a token and the log-probability of the caption so far. Solid: kept as a beam; dashed and faint:
    pruned, which includes what is unfinished when the search ends; double line: a finished caption, with its score
    after the length penalty in brackets. The thick path is the caption that won: the best of these scores.

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
    steps, last = [], int(trace["step"][trace["clip"] == clip].max())
    for step in range(last + 1):
        rows = np.nonzero((trace["clip"] == clip) & (trace["step"] == step))[0]
        rows = rows[np.argsort(-trace["score"][rows], kind="stable")]
        nodes = [{name: values[row] for name, values in trace.items()} for row in rows]
        for node in nodes if step == last else ():
            node["kept"] = False  # nobody continues it
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
    x, y = (
        [step - 1, step - 0.7, step - 0.3, step],
        [before or 0, before or 0, rank, rank],
    )  # clear of other boxes
    axes.plot(x, y, alpha=0.5 if pruned else 1, zorder=1, **style)


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


@_styled
def ribbon(rows, title=None):
    """Two captions word by word for each kind of search: the teacher's above, the student's below.

    A cell of the teacher's row has the colour and the number of the probability that the student gives to that word
    after the teacher's words before it. A triangle marks a place where the captions differ.

    rows: search -> (the teacher's T words, the student's words, probabilities [T] in [0, 1]).
    """
    longest = max(max(len(first), len(second)) for first, second, _ in _some(rows, "rows").values())
    cell = min(0.95, (WIDTH - 3.0) / longest)
    figure = _figure(3.0 + cell * longest, 1.05 * len(rows) + 0.3, "Decoding ribbon", title, None)
    axes = _place(figure, 1.75, 0.15, cell * longest, 1.05 * len(rows))
    axes.set(xlim=(0, longest), ylim=(1.05 * len(rows), 0))
    _bare(axes)
    ticks = []
    for k, (label, (first, second, probabilities)) in enumerate(rows.items()):
        values = _array(probabilities, f"probabilities of {label}", "T")
        _same(values.shape, (len(first),), f"probabilities of {label}")
        top = 1.05 * k
        ticks += [(top + 0.25, f"{label}: teacher"), (top + 0.75, "student")]
        for t in range(max(len(first), len(second))):
            pair = [words[t] if t < len(words) else "" for words in (first, second)]
            _ribbon_cell(axes, t, top, pair[0], values[t] if t < len(values) else None)
            axes.text(t + 0.5, top + 0.75, _short(pair[1], 11), ha="center", va="center", fontsize=9)
            if pair[0] != pair[1]:
                axes.plot(t + 0.5, top + 0.56, "^", color=OKABE_ITO[1], markersize=7, markeredgecolor="black")
    axes.set_yticks(*zip(*ticks))
    bar = _place(figure, 1.95 + cell * longest, 0.15, 0.15, 1.05 * len(rows))
    _bar(figure, Normalize(0, 1), AMOUNT, "student's\nprobability", cax=bar)
    return figure


def _ribbon_cell(axes, t, top, word, value):
    if value is None:
        return
    axes.add_patch(Rectangle((t + 0.02, top), 0.96, 0.48, facecolor=mpl.colormaps[AMOUNT](float(value))))
    ink = {"color": "black" if value > 0.5 else "white", "ha": "center", "va": "center", "fontsize": 9}
    axes.text(t + 0.5, top + 0.24, f"{_short(word, 11)}\n{value:.2f}", linespacing=1.1, **ink)


@_styled
def drafts(passes, title=None):
    """A caption that one model drafted and another one checked: a row a pass of the checking model.

    In each row the drafted words in boxes, solid where they were kept, dashed and struck out where not; the word that
    the checking model added itself is bold in a thick box below.

    passes: for each pass the drafted words and the words that the caption gained, both lists of texts.
    """
    longest = sum(len(gained) for _, gained in _some(passes, "passes"))
    figure = _figure(WIDTH, 0.72 * len(passes) + 0.5, "Drafts", title)
    axes = figure.subplots()
    place = 0
    widest = longest
    for row, (drafted, gained) in enumerate(passes):
        alike = [a == b for a, b in zip(drafted, gained)]
        kept = alike.index(False) if False in alike else len(alike)
        for k, word in enumerate(drafted):
            _draft_box(axes, place + k, row - 0.2, word, "kept" if k < kept else "struck")
        for k, word in enumerate(gained[kept:], start=kept):
            _draft_box(axes, place + k, row + 0.22, word, "own")
        widest = max(widest, place + len(drafted))
        place += len(gained)
    axes.set(xlim=(-0.6, widest - 0.4), ylim=(len(passes) - 0.45, -0.55), xlabel="place in the caption")
    axes.set_xticks(range(widest), range(1, widest + 1))
    axes.set_yticks(range(len(passes)), [f"pass {row + 1}" for row in range(len(passes))])
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    return figure


def _draft_box(axes, x, y, word, fate):
    struck, own = fate == "struck", fate == "own"
    box = {"boxstyle": "round,pad=0.25", "facecolor": "#FCE4D2" if own else "white"}
    box |= {"edgecolor": OKABE_ITO[1] if own else GREY if struck else "black"}
    box |= {"linestyle": "--" if struck else "-", "linewidth": 2.2 if own else 0.9}
    style = {"color": GREY if struck else "black", "weight": "bold" if own else "normal", "fontsize": 9}
    axes.text(x, y, _short(word, 11), ha="center", va="center", bbox=box, **style)
    if struck:
        axes.plot([x - 0.4, x + 0.4], [y, y], color="black", linewidth=1.2, zorder=4)
