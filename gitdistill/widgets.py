"""Pictures with sliders for notebooks, around the figures of `gitdistill.plots`.

A slider only swaps PNG bytes in an image: no drawing while it moves, no captured output, no stray figures, and an
error in a picture is an error in the cell. `observe` is used rather than `interact` for that reason.
"""

from itertools import product

import ipywidgets as widgets

from gitdistill.plots import png

__all__ = ["Explorer", "explore", "png"]


class Explorer(widgets.VBox):
    """A picture under its sliders. `picture` is the `Image`; `sliders` maps an axis to its slider, whose `value` is
    the position (0, 1, ...); the arrow keys move a slider that has the focus."""

    def __init__(self, draw, axes):
        self.picture = widgets.Image(format="png", layout={"max_width": "100%", "object_fit": "contain"})
        self.sliders = {name: _slider(name, labels) for name, labels in axes.items()}
        self._draw = draw
        self._show()
        for slider in self.sliders.values():
            slider.observe(self._show, names="value")
        super().__init__([*self.sliders.values(), self.picture])

    def _show(self, _=None):
        self.picture.value = self._draw(tuple(slider.value for slider in self.sliders.values()))


def _slider(name, labels):
    options = [(str(label), position) for position, label in enumerate(labels)]
    width = {"layout": {"width": "95%", "max_width": "640px"}, "style": {"description_width": "6em"}}
    return widgets.SelectionSlider(
        options=options, value=0, description=name, continuous_update=True, **width
    )


def explore(frames, axes):
    """A widget that shows one picture for each combination of slider positions.

    axes: slider's name -> the labels of its positions.
    frames: a picture (PNG bytes or a figure) for every tuple of positions, as a dict; or a function of the
        positions that draws it, which is called once for each combination, when it is first shown.

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
        return Explorer({at: _bytes(frames[at]) for at in wanted}.__getitem__, axes)
    cache = {}

    def draw(at):
        if at not in cache:
            cache[at] = _bytes(frames(*at))
        return cache[at]

    return Explorer(draw, axes)


def _bytes(picture):
    return picture if isinstance(picture, bytes) else png(picture)
