"""The search for a caption, as a tree."""

import numpy as np

from gitdistill.plots.style import GREY, OKABE_ITO, WIDTH, _figure, _minus_sign, _styled


@_styled
def beam_tree(trace, words, top=3, clip=0, upto=None, title=None):
    """A beam search as a tree: a column a step, candidates from likely to unlikely.

    Each box holds a token and the log-probability of the caption so far. Solid: kept as a beam; dashed and faint:
    pruned; double line: a finished caption, with its score after the length penalty in brackets. The thick path
    is the caption that won: the best of these scores.

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
    steps = []
    for step in range(int(trace["step"][trace["clip"] == clip].max()) + 1):
        rows = np.nonzero((trace["clip"] == clip) & (trace["step"] == step))[0]
        rows = rows[np.argsort(-trace["score"][rows], kind="stable")]
        nodes = [{name: values[row] for name, values in trace.items()} for row in rows]
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
    axes.plot([step - 1, step], [before or 0, rank], alpha=0.5 if pruned else 1, zorder=1, **style)


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
