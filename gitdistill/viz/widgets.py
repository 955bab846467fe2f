"""Pictures with sliders for notebooks, around the figures of `gitdistill.viz.plots`.

A slider only swaps PNG bytes in an image: no drawing while it moves, no captured output, no stray figures, and an
error in a picture is an error in the cell. `observe` is used rather than `interact` for that reason.
"""

from itertools import product

import ipywidgets as widgets
import numpy as np

from gitdistill.viz import plots
from gitdistill.viz.plots import png

__all__ = ["Explorer", "board", "explore", "frame_words", "gaze", "heads", "modules", "png", "tree"]


class Explorer(widgets.VBox):
    """A picture under its sliders. `picture` is the `Image`; `sliders` maps an axis to its slider, whose `value` is
    the position (0, 1, ...); the arrow keys move a slider that has the focus. `player`, where there is one, moves the
    slider of the axis `play` by itself."""

    def __init__(self, draw, axes, play=None):
        self.picture = widgets.Image(
            format="png", layout={"max_width": "100%", "object_fit": "contain", "align_self": "flex-start"}
        )
        self.sliders = {name: _slider(name, labels) for name, labels in axes.items()}
        self._draw = draw
        self._show()
        for slider in self.sliders.values():
            slider.observe(self._show, names="value")
        rows = dict(self.sliders)
        if play is not None:
            self.player = widgets.Play(min=0, max=len(axes[play]) - 1, interval=900)  # milliseconds
            widgets.link((self.player, "value"), (self.sliders[play], "index"))
            rows[play] = widgets.HBox([self.sliders[play], self.player])
        super().__init__([*rows.values(), self.picture])

    def _show(self, _=None):
        self.picture.value = self._draw(tuple(slider.value for slider in self.sliders.values()))


def _slider(name, labels):
    options = [(str(label), position) for position, label in enumerate(labels)]
    width = {"layout": {"width": "95%", "max_width": "640px"}, "style": {"description_width": "6em"}}
    return widgets.SelectionSlider(
        options=options, value=0, description=name, continuous_update=True, **width
    )


def explore(frames, axes, play=None):
    """A widget that shows one picture for each combination of slider positions.

    axes: slider's name -> the labels of its positions.
    frames: a picture (PNG bytes or a figure) for every tuple of positions, as a dict; or a function of the
        positions that draws it, which is called once for each combination, when it is first shown.
    play: the axis that gets a play button.

    Returns an `Explorer`; ValueError when a slider has no positions or a combination has no picture.
    """
    for name, labels in axes.items():
        if len(labels) == 0:
            raise ValueError(f"slider {name!r} has no positions")
    if not callable(frames):
        wanted = set(product(*(range(len(labels)) for labels in axes.values())))
        missing = sorted(wanted - set(frames))
        if missing:
            raise ValueError(
                f"{len(missing)} of {len(wanted)} pictures are missing, the first at {missing[0]}"
            )
        return Explorer({at: _bytes(frames[at]) for at in wanted}.__getitem__, axes, play)
    cache = {}

    def draw(at):
        if at not in cache:
            cache[at] = _bytes(frames(*at))
        return cache[at]

    return Explorer(draw, axes, play)


def _bytes(picture):
    return picture if isinstance(picture, bytes) else png(picture)


# -- one explorer for each picture that moves --------------------------------------------------------------------
# What is painted by `plots.*_card` is painted when it is first asked for, which takes a few milliseconds. Figures
# take longer: they are drawn beforehand, all of them, when the explorer is made.


def gaze(frames, words, rows, probabilities=None, difference=True, masks=None):
    """Word by word: teacher, student and their difference, a frame a column. Slider: word.

    frames: [F, 3, H, W]. words: T texts. rows: model -> attention [T, F, h, w]. probabilities: model -> T numbers.
    masks: for each word None or [F, H, W], what it names. The still twin is `plots.gaze`.
    """

    def draw(word):
        maps = {label: values[word] for label, values in rows.items()}
        notes = {label: f"p = {float(values[word]):.2f}" for label, values in (probabilities or {}).items()}
        return plots.word_card(frames, words[word], maps, notes, difference, masks and masks[word])

    return explore(draw, {"word": words}, play="word")


def heads(frames, words, maps):
    """Every head of every layer for each word, on the frame that got most of the word's attention. Sliders: word,
    layer, head.

    maps: [L, H, T, F, h, w], not renormalised. The still twin is `plots.heads`.
    """
    chosen = [int(maps[:, :, word].sum((0, 1, 3, 4)).argmax()) for word in range(len(words))]

    def draw(word, layer, head):
        f = chosen[word]
        return plots.head_card(frames[f], words[word], maps[:, :, word, f], layer, head, f"frame {f + 1}")

    return explore(draw, {"word": words, "layer": range(maps.shape[0]), "head": range(maps.shape[1])})


def frame_words(frames, words, maps):
    """How each word divides over the frames, and its map on one of them. Sliders: word, frame.

    maps: [T, F, h, w]. The still twin is `plots.frame_word_map`.
    """

    def draw(word, frame):
        return plots.frame_word_card(frames, words, maps, word, frame)

    return explore(draw, {"word": words, "frame": range(1, len(frames) + 1)})


def modules(frames, images, milliseconds=None, pages=2):
    """What each module makes of each frame: a table of all, one of them with its strongest channels. Sliders:
    module, frame, channels.

    frames: [F, 3, H, W]. images: module -> activations [F, C, h, w], in the order of execution. milliseconds: module
    -> time it took. pages: of eight channels each. The still twin is `plots.feature_maps`.
    """
    names, table = list(images), []
    for name in names:
        values = np.asarray(images[name].detach().cpu() if hasattr(images[name], "detach") else images[name])
        shape = " x ".join(map(str, values.shape))
        time = (milliseconds or {}).get(name, float("nan"))
        table.append((name, shape, values.mean(), values.std(), (values == 0).mean(), time))
    last = {name: -(-images[name].shape[1] // 8) - 1 for name in names}

    def draw(module, frame, page):
        name = names[module]
        return plots.module_card(frames[frame], table, module, images[name][frame], min(page, last[name]))

    channels = [f"{8 * k + 1} to {8 * k + 8}" for k in range(pages)]
    return explore(draw, {"module": names, "frame": range(1, len(frames) + 1), "channels": channels})


def tree(traces, words, top=2, clip=0):
    """Beam searches step by step. Sliders: search, step (at the longest search's steps; a shorter one is then done).

    traces: label (a number of beams, a length penalty) -> trace, see `plots.beam_tree`, which is the still twin.
    """
    steps = max(int(trace["step"][trace["clip"] == clip].max()) + 1 for trace in traces.values())
    frames = {
        (k, step): plots.beam_tree(trace, words, top, clip, upto=step + 1, title=str(label))
        for k, (label, trace) in enumerate(traces.items())
        for step in range(steps)
    }
    return explore(frames, {"search": list(traces), "step": range(1, steps + 1)}, play="step")


def board(panels, captions, **options):
    """A training looked back upon: the board with one of its moments marked. Slider: step.

    Arguments as for `plots.board`, which is the still twin.
    """
    steps = sorted(captions)
    frames = {(k,): plots.board(panels, captions, step, **options) for k, step in enumerate(steps)}
    return explore(frames, {"step": steps}, play="step")
