"""The networks as boxes: what goes in, what comes out, and where a teacher and its student are compared."""

import numpy as np
from matplotlib.colors import to_rgba
from matplotlib.patches import Arc, FancyBboxPatch, Rectangle

from gitdistill.viz.plots import style

IMAGE, WORDS = style.colour(5), style.colour(4)
DASHED = {"color": style.ACCENT, "linewidth": 1.6, "linestyle": (0, (5, 2))}  # a loss
HATCH = {IMAGE: "////", WORDS: ""}
LEFT, RIGHT, GAP = 2.55, 1.75, 0.1  # inches: the image's column, the words' column, between them
WIDE = LEFT + GAP + RIGHT
MIDDLE = 2.1  # inches between teacher and student
HIGH, STEP = 0.44, 0.72  # inches: a box, and from one to the next
END = 1.35 + HIGH  # inches: the decoder


@style.plot
def architecture(teacher, student=None, losses=False, title=None):
    """GIT from frames to the next word; beside it a student, and what is compared when it is distilled.

    teacher: a `GenerativeImageTextTeacher` or `GenerativeImageTextModel`; student: a `StudentCandidateV1`. Only their
        shapes are read, so that a model on the `meta` device will do.
    losses: draw the terms of the loss: cross-entropy, KL, features and hidden, as `DistillationTrainer` has them.

    Arrows carry shapes without the batch: frames x tokens x channels, T tokens of text.
    """
    if losses and student is None:
        raise ValueError("losses compare a teacher and a student: give a student, too")
    kind = "GIT's parts and shapes" if student is None else "Teacher and student, parts and shapes"
    width = 0.1 + WIDE if student is None else 0.1 + 2 * WIDE + (MIDDLE if losses else 0.5)
    height = _row(6) + END + (1.98 if losses else 1.4)
    figure = style.figure(width, height, kind, title, None)
    axes = style.axes_at(figure, 0, 0, width, height)
    axes.set(xlim=(0, width), ylim=(height, 0))
    axes.set_axis_off()
    _teacher(axes, 0.05, getattr(teacher, "model", teacher), losses)
    if student is not None:
        right = width - WIDE - 0.05
        _student(axes, right, student)
        if losses:
            _losses(axes, 0.05 + WIDE, right)
    return figure


def _teacher(axes, x, model, frozen):
    config, vision = model.config, model.config.vision_config
    side, frames = vision.image_size, max(1, len(model.temporal))
    cells, wide, width = (side // vision.patch_size) ** 2, vision.hidden_size, config.hidden_size
    layers = _plural(vision.num_hidden_layers, "layer")
    encoder = f"image encoder (ViT)\n{layers}, {_size(model.image_encoder)}"
    time = f"+ which frame: {_size(model.temporal)}" if len(model.temporal) else "(one image: no time)"
    boxes = [
        (1, _plural(frames, "frame"), (frames, 3, side, side)),
        (1, f"patches of {vision.patch_size} × {vision.patch_size} pixels", (frames, cells, wide)),
        (1, encoder, (frames, 1 + cells, wide)),
        (1, time, (frames, 1 + cells, wide)),
        (1, f"projection: {_size(model.projection)}", (frames * (1 + cells), width)),
    ]
    _heading(axes, x, "Teacher: GIT", model, frozen)
    _image_column(axes, x, boxes)
    _caption(axes, x, model.embedding, width)
    y, top = _row(5), _row(6)
    _tokens(axes, x, y, LEFT + GAP / 2, 10, IMAGE, f"{frames * (1 + cells)} image tokens: the prefix")
    _tokens(axes, x + LEFT + GAP / 2, y, RIGHT + GAP / 2, 5, WORDS, "T words")
    _prefix_decoder(axes, x, model, y, top)
    _head(axes, x, model, width)
    note = "In boxes: parameters.\nBeside arrows: the shape of\none clip; T tokens of text."
    axes.text(x, top + END + 0.45, note, va="top", fontsize=9)


def _prefix_decoder(axes, x, model, y, top):
    """The decoder under image tokens and words, and the mask of its attention."""
    count, size = len(model.layers), _size(model.layers)
    first = {1: "decoder", 2: "decoder, layer 0"}.get(count, f"decoder, layers 0 to {count - 2}")
    _box(axes, x, top, WIDE, 1.05, "", "white")
    axes.text(x + 0.1, top + 0.12, first, weight="bold", va="top")
    note = "One row of tokens: every word\nlooks at the image and at the\nwords before it."
    axes.text(x + 0.1, top + 0.36, note, va="top", fontsize=9)
    _mask(axes, x + WIDE - 1.2, top + 0.19, 4)
    for centre in (x + LEFT / 2, x + LEFT + GAP + RIGHT / 2):
        _down(axes, centre, y + HIGH, top)
        _down(axes, centre, top + 1.05, top + 1.35)
    last = f"decoder, layer {count - 1} (all {count}: {size})" if count > 1 else f"its only layer: {size}"
    _box(axes, x, top + 1.35, WIDE, HIGH, last, "white")


def _student(axes, x, model):
    maps, frames, width = model.backbone, model.num_frames, model.embed_dim
    cells = model.grid[0] * model.grid[1]
    stages = "\n".join(f"{a} × {b} × {c}" for (a, b), c in zip(maps.grids, maps.channels))
    encoder = f"image encoder (TinyViT), {_size(maps)}\nits stages, cells × channels:\n{stages}"
    places = style.count(model.spatial.numel() + model.temporal.numel())
    projection = f"projection: {_size(model.projection)}\n+ which cell, which frame: {places}"
    mixer = f"mixer: {_plural(len(model.mixer), 'layer')}, {_size(model.mixer)}"
    boxes = [
        (1, _plural(frames, "frame"), (frames, 3, maps.image_size, maps.image_size)),
        (2, encoder, (frames, cells, maps.channels[-1])),
        (1, projection, (frames * cells, width)),
        (1, mixer, (frames * cells, width)),
    ]
    _heading(axes, x, "Student", model)
    _image_column(axes, x, boxes)
    _caption(axes, x, model.words, width)
    y, top = _row(5), _row(6)
    _tokens(axes, x, y, LEFT - 0.1, 9, IMAGE, f"{frames * cells} image tokens: the memory")
    _tokens(axes, x + LEFT + GAP, y, RIGHT, 5, WORDS, "T words")
    _cross_attention(axes, x, model, y, top)
    _head(axes, x, model, width)


def _image_column(axes, x, boxes):
    """The way of the image: boxes as (rows that it takes, text, shape of what it gives), one below the other."""
    row = 0
    for rows, text, shape in boxes:
        _box(axes, x, _row(row), LEFT, STEP * (rows - 1) + HIGH, text, IMAGE)
        row += rows
        _down(axes, x + LEFT / 2, _row(row - 1) + HIGH, _row(row), shape)


def _cross_attention(axes, x, model, y, top):
    """The decoder under the words, and the memory that its cross-attention reads."""
    left, layers = x + LEFT + GAP, _plural(len(model.layers), "layer")
    _down(axes, left + RIGHT / 2, y + HIGH, top)
    _box(axes, left, top, RIGHT, END, "", "white")
    axes.text(left + 0.1, top + 0.12, f"decoder, {layers}", weight="bold", va="top")
    axes.text(left + 0.1, top + 0.32, f"{_size(model.layers)}, in each:", va="top", fontsize=9)
    parts = {"words before it": WORDS, "cross-attention": IMAGE, "feed-forward": "white"}
    for k, (text, colour) in enumerate(parts.items()):
        _box(axes, left + 0.1, top + 0.58 + 0.4 * k, RIGHT - 0.2, 0.3, text, colour)
    bend = top + 1.13
    axes.plot([x + 0.4, x + 0.4, left], [y + HIGH, bend, bend], color="black", linewidth=1.2)
    _arrow(axes, (left, bend), (left + 0.1, bend))
    note = "The memory is no part of the\nrow: words look across at it."
    axes.text(x + 0.5, top + 1.18, note, va="top", fontsize=9)
    _mask(axes, x + 1.2, top + 0.35, 0)


def _caption(axes, x, embedding, width):
    """The way of the words: the caption so far and its embedding."""
    left = x + LEFT + GAP
    _box(axes, left, _row(0), RIGHT, HIGH, "caption so far", WORDS)
    _down(axes, left + RIGHT / 2, _row(0) + HIGH, _row(1), ("T",))
    _box(axes, left, _row(1), RIGHT, HIGH, f"word + position\n{_size(embedding)}", WORDS)
    _down(axes, left + RIGHT / 2, _row(1) + HIGH, _row(5), ("T", width))


def _head(axes, x, model, width):
    """The way out: last hidden states, head, next word."""
    words = model.words if hasattr(model, "words") else model.embedding.words
    left, tied = x + LEFT + GAP, model.head.weight is words.weight
    y, text = _row(6) + END, "head = words' table" if tied else f"head: {_size(model.head)}"
    _down(axes, left + RIGHT / 2, y, y + 0.34, ("T", width))
    _box(axes, left, y + 0.34, RIGHT, HIGH - 0.1, text, WORDS)
    _down(axes, left + RIGHT / 2, y + 0.24 + HIGH, y + 0.58 + HIGH, ("T", model.vocab_size))
    _box(axes, left, y + 0.58 + HIGH, RIGHT, HIGH - 0.1, "next word", WORDS, weight="bold")


def _losses(axes, left, right):
    """The dashed arrows between a teacher that ends at `left` and a student that begins at `right`."""
    middle, top, words = (left + right) / 2, _row(6), right + LEFT + GAP
    out = top + END + 0.34 + HIGH + 0.24
    rows = [(left - WIDE + LEFT / 2, top + 1.2), (middle, top + 1.2), (middle, _row(5) + 0.45)]
    axes.plot(*zip(*rows), **DASHED)
    label = "features: the memory\nagainst the image rows\nbefore the last layer"
    _loss(axes, [(middle + 0.55, _row(5) + 0.1), (right, _row(5) + 0.1)], (middle, top + 0.72), label)
    _loss(axes, [(left, top + 1.62), (words, top + 1.62)], (middle, top + 1.33), "hidden: last states")
    _loss(axes, [(left, out + 0.1), (words, out + 0.1)], (middle, out + 0.1), "KL: both outputs")
    turn = words + RIGHT / 2
    bend = [(middle + 0.95, out + 0.55), (turn, out + 0.55), (turn, out + HIGH - 0.1)]
    _loss(axes, bend, (words - 0.8, out + 0.55), "cross-entropy")
    _projector(axes, middle, _row(5) - 0.1)
    _projector(axes, middle, top + 1.45)
    _box(axes, middle - 0.95, out + 0.4, 1.9, 0.3, "the caption's next word", WORDS)


def _loss(axes, points, place, text):
    """A dashed arrow through points, with a label in a white box at `place`."""
    xs, ys = zip(*points)
    axes.plot(xs[:-1], ys[:-1], **DASHED)
    _arrow(axes, points[-2], points[-1], **DASHED)
    box = {"boxstyle": "square,pad=0.15", "facecolor": "white", "edgecolor": "none"}
    axes.text(*place, text, weight="bold", fontsize=9, bbox=box, **style.CENTRE)


def _projector(axes, x, y):
    look = {"facecolor": "white", "edgecolor": "black", "linestyle": "--", "zorder": 3}
    axes.add_patch(Rectangle((x - 0.55, y), 1.1, 0.4, **look))
    axes.text(x, y + 0.2, "projector,\ntraining only", fontsize=9, zorder=4, **style.CENTRE)


def _heading(axes, x, name, model, frozen=False):
    axes.text(x, 0.02, f"{name}, {_size(model)} parameters", fontsize=11, weight="bold", va="top")
    if frozen:
        lock = x + WIDE - 0.75
        axes.add_patch(Arc((lock, 0.08), 0.12, 0.18, theta1=180, theta2=360, linewidth=1.6))  # y points down
        axes.add_patch(Rectangle((lock - 0.1, 0.08), 0.2, 0.14, color="black"))
        axes.text(lock + 0.16, 0.02, "frozen", fontsize=11, va="top")


def _row(k):
    """The upper edge of the k-th row of boxes."""
    return 0.35 + STEP * k


def _size(part):
    return style.count(sum(p.numel() for p in part.parameters()))


def _plural(count, name):
    return f"{count} {name}{'s' * (count != 1)}"


def _box(axes, x, y, width, height, text, colour, **options):
    face = "white" if colour == "white" else to_rgba(colour, 0.25)
    look = {"boxstyle": "round,pad=0,rounding_size=0.05", "facecolor": face, "edgecolor": "black"}
    axes.add_patch(FancyBboxPatch((x, y), width, height, **look))
    axes.text(x + width / 2, y + height / 2, text, **style.CENTRE, **options)


def _arrow(axes, start, end, **options):
    look = {"arrowstyle": "-|>", "shrinkA": 0, "shrinkB": 0, "color": "black", "linewidth": 1.2} | options
    axes.annotate("", end, start, arrowprops=look)


def _down(axes, x, top, bottom, shape=()):
    _arrow(axes, (x, top), (x, bottom))
    if shape:
        text = " × ".join(map(str, shape))
        axes.text(x + 0.08, min((top + bottom) / 2, top + 0.17), text, va="center", fontsize=9)


def _tokens(axes, x, y, width, count, colour, text):
    """A row of tokens as small squares, and what they are below."""
    side = width / count
    look = {"facecolor": to_rgba(colour, 0.45), "edgecolor": "black", "hatch": HATCH[colour]}
    for k in range(count):
        axes.add_patch(Rectangle((x + k * side, y), side, 0.2, linewidth=0.8, **look))
    axes.text(x + width / 2, y + 0.24, text, ha="center", va="top", fontsize=9)


def _mask(axes, x, y, image, words=4, memory=4, side=0.1):
    """An attention mask: `image` and `words` rows attend to `memory` and `words` columns."""
    sees = np.tri(image + words, memory + words, memory - image) > 0
    sees[:, :memory] = True
    for row, column in np.ndindex(sees.shape):
        colour = IMAGE if column < memory else WORDS
        look = {"facecolor": to_rgba(colour, 0.8) if sees[row, column] else "white", "edgecolor": style.GREY}
        place = (x + column * side, y + row * side)
        axes.add_patch(Rectangle(place, side, side, linewidth=0.6, **look))
    for text, start, end in (("image", 0, memory), ("words", memory, memory + words)):
        axes.text(x + (start + end) / 2 * side, y - 0.02, text, ha="center", va="bottom", fontsize=8)
    for text, start, end in (("image", 0, image), ("words", image, image + words)):
        if end > start:
            axes.text(x - 0.03, y + (start + end) / 2 * side, text, ha="right", va="center", fontsize=8)
