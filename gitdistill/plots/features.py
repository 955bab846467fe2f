"""What a network computes inside."""

import numpy as np
from matplotlib.colors import Normalize

from gitdistill.plots.style import (
    AMOUNT,
    DIFFERENCE,
    WIDTH,
    _around_zero,
    _array,
    _bar,
    _bare,
    _figure,
    _frames,
    _some,
    _styled,
)


@_styled
def feature_maps(frame, maps, channels=4, title=None):
    """What each stage computes: the length of its feature vectors, and its strongest channels.

    A row a stage. First the frame under the norm over channels of each cell (amounts), then the `channels`
    with the largest mean square (signed, around zero; - marks strongly negative cells).

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
        axes.set_title(f"channel {channel}", fontsize=9)
        r, c = np.nonzero(values[channel] < -0.5 * scale.vmax)
        axes.scatter(c, r, s=9, marker="_", color="white", linewidths=1)
    _bar(figure, scale, DIFFERENCE, "activation", ax=list(row[1:]), aspect=14, fraction=0.02)
