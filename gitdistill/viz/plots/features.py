"""What a network computes inside."""

import matplotlib as mpl
import numpy as np
from matplotlib.colors import Normalize

from gitdistill.viz.plots.style import (
    AMOUNT,
    DIFFERENCE,
    WIDTH,
    _around_zero,
    _array,
    _bar,
    _bare,
    _figure,
    _frames,
    _place,
    _same,
    _sign,
    _some,
    _styled,
)


@_styled
def feature_maps(frame, maps, channels=4, title=None):
    """What each stage computes: the length of its feature vectors, and its strongest channels.

    A row a stage. First the frame under the norm over channels of each cell (amounts), then the `channels`
    with the largest mean square (signed, around zero; - marks strongly negative cells, and the sign behind a
    channel's name is its strongest cell's).

    frame: [3, H, W]. maps: name -> [C, h, w].
    """
    frame = _frames(frame, "frame", "3 H W")
    maps = {name: _array(values, name, "C h w") for name, values in _some(maps, "maps").items()}
    channels = min(channels, min(len(values) for values in maps.values()))
    tile = min(1.6, (WIDTH - 2.4) / (channels + 2))
    shape = 2.4 + tile * (channels + 2), len(maps) * (tile + 0.3) + 0.1
    figure = _figure(max(shape[0], 5.0), shape[1], "Feature maps", title)
    grid = figure.subplots(len(maps), channels + 2, squeeze=False)
    for axes in grid.flat:
        _bare(axes)
    for k, (row, (name, values)) in enumerate(zip(grid, maps.items())):
        if k == 0:
            row[0].imshow(frame)
        row[0].set_ylabel(
            f"{name}\n{' x '.join(map(str, values.shape))}", rotation=0, ha="right", va="center"
        )
        _feature_row(figure, row[1:], values, channels)
    grid[0, 0].set_title("frame")
    return figure


def _feature_row(figure, row, values, channels):
    norm = np.linalg.norm(values, axis=0)
    scale = Normalize(0, max(norm.max(), 1e-9))
    row[0].imshow(norm, cmap=AMOUNT, norm=scale)
    row[0].set_title("norm", fontsize=9)
    _bar(figure, scale, AMOUNT, "norm", ax=row[0], aspect=14, fraction=0.08)
    strongest = np.argsort(-np.square(values).mean((1, 2)), kind="stable")[:channels]
    scale = _around_zero(values[strongest])
    for axes, channel in zip(row[1:], strongest):
        axes.imshow(values[channel], cmap=DIFFERENCE, norm=scale)
        axes.set_title(f"channel {channel} {_sign(values[channel])}", fontsize=9)
        r, c = np.nonzero(values[channel] < -0.5 * scale.vmax)
        axes.scatter(c, r, s=9, marker="_", color="white", linewidths=1)
    _bar(figure, scale, DIFFERENCE, "activation", ax=list(row[1:]), aspect=14, fraction=0.02)


@_styled
def similarity(values, rows, columns, labels=("", ""), title=None):
    """How alike the layers of two networks are: a row and a column a layer, 0 unrelated, 1 alike.

    Values above a half are printed, a ring marks the best match of each row. Debiased measures can fall a little
    below zero; such cells look like zero.

    values: [R, C], or label -> such an array for several states side by side. rows, columns: names of the layers.
    labels: what stands down the side and along the bottom.
    """
    maps = values if isinstance(values, dict) else {"": values}
    maps = {label: _array(v, "values", "R C") for label, v in _some(maps, "values").items()}
    for v in maps.values():
        _same(v.shape, (len(rows), len(columns)), "values")
    cell = min(0.55, (WIDTH - 2.6) / (len(columns) * len(maps)))
    size = 2.6 + cell * len(columns) * len(maps), 1.5 + 0.45 * len(rows)
    figure = _figure(max(size[0], 5.0), size[1], "Similarity of layers", title)
    grid = figure.subplots(1, len(maps), squeeze=False, sharey=True)[0]
    for axes, (label, v) in zip(grid, maps.items()):
        axes.imshow(v, cmap=AMOUNT, vmin=0, vmax=1, aspect="auto")
        for r, c in zip(*np.nonzero(v > 0.5)):
            colour = "black" if v[r, c] > 0.6 else "white"
            axes.text(c, r, f"{v[r, c]:.2f}"[1:] if v[r, c] < 0.995 else "1", color=colour, **_MIDDLE)
        ring = {"s": 420, "facecolors": "none", "linewidths": 1.6}
        axes.scatter(v.argmax(1), np.arange(len(rows)), edgecolors="white", **ring)
        axes.scatter(v.argmax(1), np.arange(len(rows)), edgecolors="black", **ring | {"linewidths": 0.6})
        axes.set(title=label, xlabel=labels[1])
        axes.set_xticks(np.arange(len(columns)), columns, rotation=45, ha="right", rotation_mode="anchor")
        axes.tick_params(length=0)
    grid[0].set_yticks(np.arange(len(rows)), rows)
    grid[0].set_ylabel(labels[0])
    _bar(figure, Normalize(0, 1), AMOUNT, "CKA", ax=list(grid), aspect=20, fraction=0.05)
    return figure


_MIDDLE = {"ha": "center", "va": "center", "fontsize": 8}


@_styled
def components(frames, maps, explained=None, first=False, title=None):
    """Features as colours: a row a network or stage, a column a frame, components as red, green and blue.

    Equal colours mean equal features only if all maps share a basis (`gitdistill.inspection.analysis.joint_pca`).

    frames: [n, 3, H, W]. maps: name -> [n, h, w, 3] between 0 and 1, grids may differ.
    explained: the share of the variance of each component; printed.
    first: the first component alone as amounts, for eyes or printers that see no hues.
    """
    frames = _frames(frames, letters="n 3 H W")
    maps = {name: _array(values, name, "n h w k") for name, values in _some(maps, "maps").items()}
    for name, values in maps.items():
        _same(values.shape[:1], frames.shape[:1], f"the frames of {name}")
    tile = min(1.35, (WIDTH - 1.7) / len(frames) - 0.06, 9.0 / (len(maps) + 1))
    height = tile * frames.shape[1] / frames.shape[2]
    rows = {"frame": frames}
    for name, values in maps.items():
        rows[name] = mpl.colormaps[AMOUNT](values[..., 0])[..., :3] if first else values[..., :3]
    size = (
        1.6 + (tile + 0.06) * len(frames),
        (height + 0.06) * len(rows) + (0.3 if explained is None else 0.5),
    )
    figure = _figure(max(size[0], 5.0), size[1], "Principal components of features", title, None)
    figure.exact = not first
    for k, (name, images) in enumerate(rows.items()):
        for n, image in enumerate(images):
            axes = _place(figure, 1.5 + n * (tile + 0.06), 0.1 + k * (height + 0.06), tile, height)
            axes.imshow(image, interpolation="nearest", vmin=0, vmax=1)
            _bare(axes)
            if n == 0:
                axes.set_ylabel(name, rotation=0, ha="right", va="center")
    if explained is not None:
        shares = _array(explained, "explained", "k")[: 1 if first else 3]
        names = ("",) if first else ("red ", "green ", "blue ")
        text = ", ".join(f"{name}{share:.0%}" for name, share in zip(names, shares))
        figure.text(1.5 / figure.get_figwidth(), 0.08 / figure.get_figheight(), f"variance explained: {text}")
    return figure
