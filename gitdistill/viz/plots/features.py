"""Features of layers: maps, similarity, and principal components as colours; and words as a map."""

import numpy as np

from gitdistill.viz.plots import style


def strongest_channels(maps, count):
    """Indices of the `count` channels of [C, h, w] with the largest mean square, the strongest first."""
    return np.argsort(-np.square(maps).mean((1, 2)), kind="stable")[:count]


@style.plot
def feature_maps(frame, maps, channels=4, title=None):
    """Feature maps of several layers: the norm of their feature vectors, and their strongest channels.

    A row a layer: the norm over channels of each cell, and the `channels` with the largest mean square, around zero.
    A - marks strongly negative cells; the sign behind a channel's name is that of its strongest cell.

    frame: [3, H, W]. maps: name -> [C, h, w].
    """
    frame = style.photos(frame, "frame", "3 H W")
    maps = {name: style.array(values, name, "C h w") for name, values in style.some(maps, "maps").items()}
    channels = min(channels, min(len(values) for values in maps.values()))
    tile = min(1.6, (style.WIDTH - 2.4) / (channels + 2))
    size = max(2.4 + tile * (channels + 2), 5.0), len(maps) * (tile + 0.3) + 0.1
    figure = style.figure(*size, "Feature maps", title)
    grid = figure.subplots(len(maps), channels + 2, squeeze=False)
    for axes in grid.flat:
        style.bare(axes)
    grid[0, 0].imshow(frame)
    grid[0, 0].set_title("frame")
    for row, (name, values) in zip(grid, maps.items()):
        label = f"{name}\n{' x '.join(map(str, values.shape))}"
        row[0].set_ylabel(label, rotation=0, ha="right", va="center")
        _feature_row(figure, row[1:], values, channels)
    return figure


def _feature_row(figure, row, values, channels):
    norm = np.linalg.norm(values, axis=0)
    scale = style.shares(max(norm.max(), 1e-9))
    row[0].imshow(norm, cmap=scale.cmap, norm=scale.norm)
    row[0].set_title("norm", fontsize=9)
    style.colour_bar(figure, scale, "norm", ax=row[0], aspect=14, fraction=0.08)
    strongest = strongest_channels(values, channels)
    scale = style.differences(values[strongest])
    for axes, channel in zip(row[1:], strongest):
        axes.imshow(values[channel], cmap=scale.cmap, norm=scale.norm)
        axes.set_title(f"channel {channel} {style.sign(values[channel])}", fontsize=9)
        r, c = np.nonzero(values[channel] < -0.5 * scale.norm.vmax)
        axes.scatter(c, r, s=9, marker="_", color="white", linewidths=1)
    style.colour_bar(figure, scale, "activation", ax=list(row[1:]), aspect=14, fraction=0.02)


@style.plot
def similarity(values, rows, columns, labels=("", ""), title=None):
    """How alike the layers of two networks are: a row and a column a layer, 0 unrelated, 1 alike.

    Values above a half are printed, a ring marks the best match of each row. Debiased measures can fall a little
    below zero; such cells look like zero.

    values: [R, C], or label -> such an array for several states side by side. rows, columns: names of the layers.
    labels: what stands down the side and along the bottom.
    """
    maps = style.some(values if isinstance(values, dict) else {"": values}, "values")
    maps = {label: style.array(v, "values", (len(rows), len(columns))) for label, v in maps.items()}
    cell = min(0.55, (style.WIDTH - 2.6) / (len(columns) * len(maps)))
    size = max(2.6 + cell * len(columns) * len(maps), 5.0), 1.5 + 0.45 * len(rows)
    figure = style.figure(*size, "Similarity of layers", title)
    grid = style.matrices(figure, maps, style.shares(), rows, columns, "CKA", turn=45)
    for axes, v in zip(grid, maps.values()):
        for r, c in zip(*np.nonzero(v > 0.5)):
            text = f"{v[r, c]:.2f}"[1:] if v[r, c] < 0.995 else "1"
            axes.text(c, r, text, color="black" if v[r, c] > 0.6 else "white", fontsize=8, **style.CENTRE)
        for colour, thickness in (("white", 1.6), ("black", 0.6)):
            ring = {"s": 420, "facecolors": "none", "edgecolors": colour, "linewidths": thickness}
            axes.scatter(v.argmax(1), np.arange(len(rows)), **ring)
        axes.set_xlabel(labels[1])
    grid[0].set_ylabel(labels[0])
    return figure


@style.plot
def components(frames, maps, explained=None, first=False, title=None):
    """Features as colours: a row a network or layer, a column a frame, components as red, green and blue.

    Equal colours mean equal features only if all maps share a basis (`gitdistill.inspection.joint_pca`).

    frames: [n, 3, H, W]. maps: name -> [n, h, w, 3] between 0 and 1, grids may differ.
    explained: the share of the variance of each component; printed.
    first: the first component alone as amounts, for readers and printers that do not tell hues apart.
    """
    frames = style.photos(frames, shape="n 3 H W")
    rows = {"frame": frames}
    for name, values in maps.items():
        values = style.array(values, f"map of {name}", (len(frames), "h", "w", "k"))
        rows[name] = (style.shares().cmap(values[..., 0]) if first else values)[..., :3]
    tile = min(1.35, (style.WIDTH - 1.7) / len(frames) - 0.06, 9.0 / len(rows))
    height = tile * frames.shape[1] / frames.shape[2]
    below = 0.3 if explained is None else 0.5
    size = max(1.6 + (tile + 0.06) * len(frames), 5.0), (height + 0.06) * len(rows) + below
    figure = style.figure(*size, "Principal components of features", title, None)
    for k, (name, images) in enumerate(rows.items()):
        for n, image in enumerate(images):
            left, top = 1.5 + n * (tile + 0.06), 0.1 + k * (height + 0.06)
            axes = style.axes_at(figure, left, top, tile, height)
            axes.imshow(image, interpolation="nearest", vmin=0, vmax=1)
            style.bare(axes)
            axes.set_ylabel(name if n == 0 else "", rotation=0, ha="right", va="center")
    if explained is not None:
        shares = style.array(explained, "explained", "k")[: 1 if first else 3]
        names = ("",) if first else ("red ", "green ", "blue ")
        text = ", ".join(f"{name}{share:.0%}" for name, share in zip(names, shares))
        style.text_at(figure, 1.5, 0.08, f"variance explained: {text}")
    return figure


@style.plot
def word_map(maps, words, title=None):
    """Words as points of a plane, a panel a network: what lies close together is alike; the axes mean nothing.

    A word is written where there is room for it in every panel, so that all show the same words; first words first.

    maps: network -> [n, 2], turned to lie over one another (`gitdistill.inspection.procrustes`). words: n of them.
    """
    count = len(style.some(words, "words"))
    maps = {name: style.array(x, name, (count, 2)) for name, x in style.some(maps, "maps").items()}
    side, looks = min(5.3, style.WIDTH / len(maps) - 0.2), style.slots(maps)
    figure = style.figure(max(5.0, (side + 0.1) * len(maps)), side + 0.2, "Map of words", title)
    panels = figure.subplots(1, len(maps), squeeze=False)[0]
    together = np.concatenate(list(maps.values()))
    low, high = together.min(0), together.max(0)
    ends = (low + high) / 2 + (high - low).max() * np.array([[-0.56], [0.56]])  # [2, x and y]
    for axes, (name, points) in zip(panels, maps.items()):
        axes.scatter(*points.T, s=14, **style.mark(looks[name]))
        axes.set(title=name, xlim=ends[:, 0], ylim=ends[:, 1], aspect="equal", xticks=[], yticks=[])
        axes.spines[:].set(visible=True, color=style.GREY)
    figure.draw_without_rendering()  # settles the layout, so that it is known what a word covers
    taken = [[] for _ in maps]
    for k, word in enumerate(words):
        places = zip(panels, maps.values(), taken)
        written = [_with_room(axes, points, k, word, boxes) for axes, points, boxes in places]
        for text, boxes in zip(written, taken):
            if all(written):
                boxes.append(text.get_window_extent())
            elif text:
                text.remove()
    return figure


def _with_room(axes, points, k, word, boxes):
    """The word beside its point, where it covers no other point and none of the boxes; None where it cannot."""
    others = axes.transData.transform(np.delete(points, k, 0))
    for x, y, ha, va in ((5, 0, "left", "center"), (-5, 0, "right", "center"), (0, 4, "center", "bottom")):
        place = {"xytext": (x, y), "textcoords": "offset points", "ha": ha, "va": va, "fontsize": 10}
        text = axes.annotate(word, points[k], **place)
        box = text.get_window_extent().padded(2)
        inside = axes.bbox.containsx(box.x0) and axes.bbox.containsx(box.x1) and axes.bbox.containsy(box.y1)
        if inside and not box.count_contains(others) and not box.count_overlaps(boxes):
            return text
        text.remove()
    return None
