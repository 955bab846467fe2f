"""Explorers: pictures of `gitdistill.viz.plots` under sliders, for notebooks.

A slider only swaps the PNG bytes of an image. `observe` is used rather than `interact`, so that nothing is drawn while
a slider moves, no output is captured, and an error in a picture is an error in the cell.
"""

from functools import cache
from itertools import product

import ipywidgets as widgets

from gitdistill.viz import plots
from gitdistill.viz.plots import style


class Explorer(widgets.VBox):
    """A picture under its sliders. `picture` is the `Image`; `sliders` maps an axis to its slider, whose `value` is
    the position (0, 1, ...). `player`, where there is one, moves the slider of the axis `play` by itself."""

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
        self.picture.value = self._draw(*(slider.value for slider in self.sliders.values()))


def _slider(name, labels):
    options = [(str(label), position) for position, label in enumerate(labels)]
    look = {"layout": {"width": "95%", "max_width": "640px"}, "style": {"description_width": "6em"}}
    return widgets.SelectionSlider(options=options, value=0, description=name, continuous_update=True, **look)


def explore(pictures, axes, play=None):
    """An `Explorer` with one picture for each combination of slider positions.

    axes: slider's name -> the labels of its positions. play: the axis that gets a play button.
    pictures: a picture (PNG bytes or a figure) for every tuple of positions, as a dict; or a function of the
        positions that draws it, which is called once for each combination, when it is first shown.

    ValueError when a slider has no positions or a combination has no picture.
    """
    for name, labels in axes.items():
        if len(labels) == 0:
            raise ValueError(f"slider {name!r} has no positions")
    if callable(pictures):
        return Explorer(cache(lambda *at: _bytes(pictures(*at))), axes, play)
    positions = list(product(*(range(len(labels)) for labels in axes.values())))
    missing = [at for at in positions if at not in pictures]
    if missing:
        raise ValueError(
            f"{len(missing)} of {len(positions)} pictures are missing, the first at {missing[0]}"
        )
    ready = {at: _bytes(pictures[at]) for at in positions}
    return Explorer(lambda *at: ready[at], axes, play)


def _bytes(picture):
    return picture if isinstance(picture, bytes) else plots.png(picture, scale=1)


# -- one explorer for each picture that moves --------------------------------------------------------------------
# The pictures of `plots.*_card` are painted when they are first shown, which takes a few milliseconds. Figures take
# longer: they are all drawn when the explorer is made.


def gaze(frames, words, rows, probabilities=None, difference=True, masks=None):
    """The attention of each model and their difference, a frame a column. Slider: word.

    frames: [F, 3, H, W]. words: T texts. rows: model -> attention [T, F, h, w]. probabilities: model -> T numbers.
    masks: for each word None or [F, H, W], what it names. The still twin is `plots.gaze`.
    """

    def draw(word):
        maps = {label: values[word] for label, values in rows.items()}
        notes = {label: f"p = {float(values[word]):.2f}" for label, values in (probabilities or {}).items()}
        return plots.word_card(frames, words[word], maps, notes, difference, masks and masks[word])

    return explore(draw, {"word": words}, play="word")


def heads(frames, words, maps):
    """Every head of every layer, on the frame that got most of the word's attention. Sliders: word, layer, head.

    maps: [L, H, T, F, h, w], not renormalised. The still twin is `plots.heads`.
    """
    chosen = [int(maps[:, :, word].sum((0, 1, 3, 4)).argmax()) for word in range(len(words))]

    def draw(word, layer, head):
        f = chosen[word]
        return plots.head_card(frames[f], words[word], maps[:, :, word, f], layer, head, f"frame {f + 1}")

    return explore(draw, {"word": words, "layer": range(maps.shape[0]), "head": range(maps.shape[1])})


def frame_words(frames, words, maps):
    """How each word's attention [T, F, h, w] divides over the frames, and its map on one of them. Sliders: word, frame.

    The still twin is `plots.frame_word_map`.
    """

    def draw(word, frame):
        return plots.frame_word_card(frames, words, maps, word, frame)

    return explore(draw, {"word": words, "frame": range(1, len(frames) + 1)})


def modules(frames, images, milliseconds=None):
    """The output of each module for each frame: a table of all, and the strongest channels of one. Sliders: module,
    frame, channels.

    frames: [F, 3, H, W]. images: module -> activations [F, C, h, w], in the order of execution. milliseconds: module
    -> time it took. The still twin is `plots.feature_maps`.
    """
    images = {name: style.array(values, name, "F C h w") for name, values in images.items()}
    names, table = list(images), []
    for name, values in images.items():
        shape, took = " x ".join(map(str, values.shape)), (milliseconds or {}).get(name, float("nan"))
        table.append((name, shape, values.mean(), values.std(), (values == 0).mean(), took))

    def draw(module, frame, page):
        values = images[names[module]][frame]
        return plots.module_card(frames[frame], table, module, values, min(page, (len(values) - 1) // 8))

    pages = ["1 to 8", "9 to 16"]
    return explore(draw, {"module": names, "frame": range(1, len(frames) + 1), "channels": pages})


def tree(traces, words, top=2, clip=0):
    """Beam searches step by step. Sliders: search, and step (of the longest search; a shorter one stays complete).

    traces: label (a number of beams, a length penalty) -> trace, see `plots.beam_tree`, which is the still twin.
    """
    steps = max(int(trace["step"][trace["clip"] == clip].max()) + 1 for trace in traces.values())
    pictures = {
        (k, step): plots.beam_tree(trace, words, top, clip, upto=step + 1, title=str(label))
        for k, (label, trace) in enumerate(traces.items())
        for step in range(steps)
    }
    return explore(pictures, {"search": list(traces), "step": range(1, steps + 1)}, play="step")


def board(panels, captions, **options):
    """A training in review: the board with one of its moments marked. Slider: step.

    Arguments as for `plots.board`, which is the still twin.
    """
    steps = sorted(captions)
    pictures = {(k,): plots.board(panels, captions, step, **options) for k, step in enumerate(steps)}
    return explore(pictures, {"step": steps}, play="step")
