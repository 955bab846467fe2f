"""Explorers that need no kernel: an HTML output with its data, one script and one style sheet, all in one piece.

The same output works in JupyterLab, in exported pages and offline. Each takes `still`, the picture of
`gitdistill.viz.plots` that stands in its place where scripts do not run, and whose alternative text it keeps. Left and
right arrow keys move through words, steps or modules. Letters as in `gitdistill.viz.plots`.
"""

import base64
import io
import json
from html import escape
from importlib.resources import files

import numpy as np
from PIL import Image

from gitdistill.viz import plots
from gitdistill.viz.plots import search, style
from gitdistill.viz.plots.features import strongest_channels
from gitdistill.viz.plots.training import line_places

SIDE = 118  # pixels of a frame's longer side, as shown
CHANNELS = 8  # of a module, for each frame
GRID = 16  # cells of a module's map; a finer one is averaged


def asset(name: str) -> str:
    """A script or style sheet of this folder."""
    return (files(__package__) / name).read_text("utf-8")


def in_script(data) -> str:
    """Data as JSON that no text in it can end the script of; ValueError for NaN."""
    return json.dumps(data, allow_nan=False, separators=(",", ":")).replace("<", "\\u003c")


class Explorer:
    """What a notebook shows as the explorer `view` of `data`; `html` is the output."""

    def __init__(self, view: str, still, **data):
        self.view, self.data, self.alt = view, data, still.alt
        self.still = base64.b64encode(plots.png(still, scale=1)).decode()

    @property
    def html(self) -> str:
        text = in_script({"view": self.view, "alt": self.alt, "css": asset("explorer.css"), **self.data})
        picture = f'<img alt="{escape(self.alt)}" width="400" src="data:image/png;base64,{self.still}">'
        picture += "<p>A still picture: run this cell, and it becomes an explorer.</p>"
        run = f"(() => {{ const host = own_host();\n{asset('explorer.js')}\nexplore(host, {text}); }})()"
        return f'<div class="gitdistill-explorer">{picture}</div><script>{run}</script>'

    def _repr_mimebundle_(self, include=None, exclude=None) -> dict:
        return {"text/html": self.html, "text/plain": repr(self)}

    def __repr__(self) -> str:
        return f"<Explorer: {self.alt}>"


def words(frames, networks, still) -> Explorer:
    """Where each network attends when it predicts each word, in every frame; below, every head of every layer.

    frames: [F, 3, H, W]. networks: label -> a dict with
        words: T texts;
        heads: attention [L, H, T, F, h, w], for the mean map and the heads; or
        maps: name -> [T, F, h, w], further maps (rollout, ...), the first of them shown first without `heads`;
        probabilities: T numbers, below the words; optional;
        candidates: for each word the likeliest ones at its place, (text, probability) each; optional.
    """
    return Explorer("words", still, **words_data(frames, networks))


def words_data(frames, networks) -> dict:
    """What the script shows of `words`, whose arguments these are."""
    networks = style.some(networks, "networks").items()
    return {**_clip(frames), "networks": [_network(label, len(frames), **parts) for label, parts in networks]}


def _network(label, frames, words, heads=None, maps=None, probabilities=None, candidates=None) -> dict:
    chosen = {}
    if heads is not None:
        heads = style.array(heads, f"heads of {label}", ("L", "H", len(words), frames, "h", "w"))
        chosen["mean of all heads"] = heads.mean((0, 1)), None
    for name, values in (maps or {}).items():
        chosen[name] = style.array(values, name, (len(words), frames, "h", "w")), None
    for layer, head in np.ndindex(heads.shape[:2]) if heads is not None else ():
        chosen[f"layer {layer + 1}, head {head + 1}"] = heads[layer, head], (layer, head)
    style.some(chosen, f"heads and maps of {label}")
    grid = next(iter(chosen.values()))[0].shape[-2:]
    entries = []
    for name, (values, place) in chosen.items():
        tops = np.maximum(values.max((1, 2, 3)), 1e-9)
        shown = _bytes(np.maximum(values, 0) / tops[:, None, None, None])
        entries.append({"name": name, "head": place, "tops": _numbers(tops), "values": shown})
    if probabilities is not None:
        probabilities = _numbers(style.array(probabilities, "probabilities", [len(words)]))
    candidates = style.one_each(candidates, "candidates", len(words)) or ()
    likely = [[(text, *_numbers([chance])) for text, chance in row] for row in candidates]
    found = {"name": label, "words": list(words), "grid": list(grid), "maps": entries}
    return found | {"probabilities": probabilities, "candidates": likely}


def tree(traces, words, still, top: int = 2, clip: int = 0) -> Explorer:
    """Beam searches step by step: the caption so far of each candidate, and its score.

    traces: label (a number of beams, a length penalty) -> trace; words, top and clip: as for `plots.beam_tree`.
    """
    text = words if callable(words) else words.__getitem__
    searches = []
    for label, trace in style.some(traces, "traces").items():
        steps = search.tree({name: np.asarray(values) for name, values in trace.items()}, clip, top)
        shown = []
        for step, nodes in enumerate(steps):
            shown.append([_node(shown, steps, step, node, text(int(node["token"]))) for node in nodes])
        searches.append({"name": str(label), "steps": shown, "best": search.winner(steps)})
    return Explorer("tree", still, searches=searches)


def _node(shown, steps, step, node, word) -> dict:
    parent = search.parent(steps, step, node)
    before = "" if parent is None else shown[step - 1][parent]["text"] + " "
    state = "finished" if node["finished"] else "kept" if node["kept"] else "pruned"
    final = float(node["final"]) if node["finished"] else None
    found = {"token": style.short(word, 9), "text": before + word, "parent": parent or 0, "state": state}
    return found | {"score": float(node["score"]), "final": final}


def training(panels, captions, still, log=(), levels=None, maps=None) -> Explorer:
    """A training in review: curves, and at each step that has captions or maps, these.

    panels, captions, log, levels: as for `plots.board`. maps: name -> (step -> [rows, columns] of numbers from 0 to 1,
        names of the rows, names of the columns).
    """
    maps = maps or {}
    steps = sorted({*captions, *(step for values, *_ in maps.values() for step in values)})
    moments = [
        {"step": step, "captions": captions.get(step, []), "maps": _maps_at(step, maps)}
        for step in style.some(steps, "captions and maps")
    ]
    places, levels, drawn = line_places(panels), levels or {}, []
    for name, lines in panels.items():
        if lines := {label: line for label, line in lines.items() if len(line[0])}:  # others never came
            drawn.append(_panel(name, lines, places[name], name in log, levels.get(name, {})))
    sides = {name: {"rows": list(rows), "columns": list(heads)} for name, (_, rows, heads) in maps.items()}
    return Explorer("training", still, panels=drawn, moments=moments, sides=sides)


def _maps_at(step, maps) -> list[dict]:
    arrays = {name: values[step] for name, (values, *_) in maps.items() if step in values}
    arrays = {name: style.array(values, name, "rows columns") for name, values in arrays.items()}
    return [{"name": name, "values": [_numbers(row) for row in values]} for name, values in arrays.items()]


def _panel(name, lines, places, log, levels) -> dict:
    lines = [
        {"name": label, "place": places[label], "steps": list(steps), "values": _numbers(values)}
        for label, (steps, values) in lines.items()
    ]
    levels = [{"name": label, "value": float(value)} for label, value in levels.items()]
    return {"name": name, "log": log, "lines": lines, "levels": levels}


def modules(frames, images, still, milliseconds=None) -> Explorer:
    """The output of each module for each frame: a table of all, and the strongest channels of one.

    frames: [F, 3, H, W]. images: module -> activations [F, C, h, w], in the order of execution. milliseconds: module
    -> time it took.
    """
    found = []
    for name, values in style.some(images, "images").items():
        values = style.array(values, name, (len(frames), "C", "h", "w"))
        numbers = (*(f"{v:.2f}" for v in (values.mean(), values.std())), f"{(values == 0).mean():.0%}")
        took = style.number((milliseconds or {}).get(name, float("nan")), 2)
        cells = [" x ".join(map(str, values.shape)), *numbers, took]
        strongest = [strongest_channels(frame, CHANNELS).tolist() for frame in values]
        norms = _coarse(np.linalg.norm(values, axis=1)[:, None])[:, 0]
        maps = [_coarse(frame[order][None])[0] for frame, order in zip(values, strongest)]
        far = [np.maximum(np.abs(frame).max(), 1e-9) for frame in maps]
        maps = np.stack([0.5 + 0.5 * frame / most for frame, most in zip(maps, far)])
        norms = norms / np.maximum(norms.max((1, 2), keepdims=True), 1e-9)
        entry = {"name": name, "cells": cells, "channels": strongest, "shape": list(maps.shape[1:])}
        found.append(entry | {"values": _bytes(maps), "norms": _bytes(norms)})
    return Explorer("modules", still, **_clip(frames), modules=found)


def _coarse(values):
    """[n, C, h, w] with at most GRID x GRID cells, averaged."""
    step = [-(-size // GRID) for size in values.shape[2:]]
    high, wide = (size // by for size, by in zip(values.shape[2:], step))
    values = values[..., : high * step[0], : wide * step[1]]
    return values.reshape(*values.shape[:2], high, step[0], wide, step[1]).mean((3, 5))


def _clip(frames) -> dict:
    """The frames as pictures, their names, and the size in which they are shown."""
    frames = style.photos(frames)
    shrink = SIDE / max(frames.shape[1:3])
    pictures = []
    for frame in frames:
        out, image = io.BytesIO(), Image.fromarray((255 * frame).round().astype(np.uint8))
        if 2 * shrink < 1:  # no finer than a screen of double resolution shows
            sides = [round(2 * shrink * length) for length in image.size]
            image = image.resize(sides, Image.Resampling.LANCZOS)
        image.save(out, "PNG", compress_level=3)  # in half the time of the default, a tenth larger
        pictures.append("data:image/png;base64," + base64.b64encode(out.getvalue()).decode())
    names = [f"frame {f + 1}" for f in range(len(frames))]
    return {"frames": pictures, "names": names, "size": [round(shrink * side) for side in frames.shape[1:3]]}


def _bytes(values) -> str:
    """Numbers from 0 to 1 as base64 of bytes."""
    return base64.b64encode((255 * np.clip(values, 0, 1)).round().astype(np.uint8).tobytes()).decode()


def _numbers(values) -> list[float]:
    return [float(f"{float(value):.4g}") for value in values]
