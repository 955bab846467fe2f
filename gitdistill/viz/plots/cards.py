"""Pictures for sliders, painted in a few milliseconds: PNG bytes out, in the same style as the figures.

Matplotlib takes a tenth of a second for a grid of images; a slider should answer within a twentieth. So these
are painted with numpy and Pillow. Each is a function of the slider's positions and of what does not change.
"""

import io
from functools import cache
from pathlib import Path

import matplotlib as mpl
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from gitdistill.viz.plots.style import (
    AMOUNT,
    DIFFERENCE,
    GREY,
    OKABE_ITO,
    _amounts,
    _around_zero,
    _array,
    _frames,
    _minus_sign,
    _number,
    _overlay,
    _resized,
    _same,
    _sign,
)

SIDE = 128  # pixels of an ordinary tile
THUMB = 56  # of a small one


@cache
def _font(size, bold):
    folder = Path(mpl.get_data_path()) / "fonts" / "ttf"
    return ImageFont.truetype(folder / f"DejaVuSans{'-Bold' if bold else ''}.ttf", size)


class Canvas:
    """A white image to lay tiles and texts on; all numbers are pixels from the upper left corner."""

    def __init__(self, width, height):
        self.image = Image.new("RGB", (round(width), round(height)), "white")
        self.pen = ImageDraw.Draw(self.image)

    def tile(self, values, left, top, width, height=None):
        """RGB [h, w, 3] in [0, 1], stretched to width x height, sharp."""
        picture = Image.fromarray((255 * np.clip(values, 0, 1)).astype(np.uint8))
        picture = picture.resize((round(width), round(height or width)), Image.Resampling.NEAREST)
        self.image.paste(picture, (round(left), round(top)))

    def text(self, x, y, text, size=12, bold=False, anchor="la", colour="black"):
        """Text whose `anchor` (Pillow's letters: l m r, a m s d) lies at (x, y)."""
        self.pen.text((x, y), str(text), fill=colour, font=_font(size, bold), anchor=anchor)

    def frame(self, left, top, width, height, thickness=2):
        """A black line around a place, with a white one outside it."""
        box = [round(v) for v in (left, top, left + width - 1, top + height - 1)]
        outer = [box[0] - 1, box[1] - 1, box[2] + 1, box[3] + 1]
        self.pen.rectangle(outer, outline="white", width=thickness + 2)
        self.pen.rectangle(box, outline="black", width=thickness)

    def outline(self, mask, left, top, width, height):
        """A black line around a mask [H, W] that fills the place, a white one outside it."""
        mask = np.pad(_resized(mask, round(height), round(width)), 3)
        rings = [mask]
        for _ in range(3):
            last = rings[-1]
            rings.append(
                last | np.roll(last, 1, 0) | np.roll(last, -1, 0) | np.roll(last, 1, 1) | np.roll(last, -1, 1)
            )
        for ring, colour in ((rings[3] & ~rings[2], "white"), (rings[2] & ~rings[1], "black")):
            ring = Image.fromarray(ring[3:-3, 3:-3])
            self.image.paste(colour, (round(left), round(top)), ring)

    def peak(self, values, left, top, width, height):
        """A square around the strongest cell of a map [h, w] that fills the place."""
        r, c = np.unravel_index(values.argmax(), values.shape)
        high, wide = height / values.shape[0], width / values.shape[1]
        self.frame(left + c * wide, top + r * high, wide, high)

    def bar(self, norm, cmap, left, top, height, label):
        """A colour bar with the numbers of its ends."""
        levels = np.linspace(norm.vmax, norm.vmin, 64)
        self.tile(mpl.colormaps[cmap](norm(levels))[:, None, :3], left, top, 12, height)
        self.text(left + 16, top, _number(norm.vmax, 2), 11)
        self.text(left + 16, top + height, _number(norm.vmin, 2), 11, anchor="ls")
        self.text(left + 16, top + height / 2, label, 11, anchor="lm", colour=GREY)

    def png(self):
        out = io.BytesIO()
        self.image.save(out, format="PNG", compress_level=3)
        return out.getvalue()


def _small(frame, side):
    """A frame [H, W, 3] whose longer side has at most `side` pixels."""
    shrink = min(1.0, side / max(frame.shape[:2]))
    return _resized(frame, round(shrink * frame.shape[0]), round(shrink * frame.shape[1]))


def word_card(frames, word, maps, notes=None, difference=True, mask=None):
    """One word of a caption in full: a row for each model, a column for each frame, and their difference below.

    Each row has a scale of its own, up to its largest value, which stands beside it.

    frames: [F, 3, H, W]. maps: label -> attention [F, h, w]. notes: label -> a text below its name.
    difference: first minus second, when there are exactly two maps on one grid; + and - mark its strong cells.
    mask: boolean [F, H, W], the thing that the word names, outlined in the rows of the models.
    """
    frames = _frames(frames)
    rows = {label: _array(values, f"attention of {label}", "F h w") for label, values in maps.items()}
    for label, values in rows.items():
        _same(values.shape[:1], frames.shape[:1], f"the frames of {label}")
    if mask is not None:
        mask = _array(mask, "mask", "F H W") > 0
        _same(mask.shape, frames.shape[:3], "mask")
    panels = [(label, values, _amounts(values), AMOUNT) for label, values in rows.items()]
    pair = list(rows.values())
    if difference and len(pair) == 2 and pair[0].shape == pair[1].shape:
        panels.append(("difference", pair[0] - pair[1], _around_zero(pair[0] - pair[1]), DIFFERENCE))
    high = SIDE * frames.shape[1] / frames.shape[2]
    canvas = Canvas(150 + (SIDE + 8) * len(frames) + 90, 64 + (high + 12) * len(panels))
    canvas.text(8, 8, f"\u201c{word}\u201d", 20, bold=True)
    for f in range(len(frames)):
        canvas.text(150 + (SIDE + 8) * f + SIDE / 2, 56, f"frame {f + 1}", 12, anchor="ms")
    for k, (label, values, norm, cmap) in enumerate(panels):
        y = 62 + k * (high + 12)
        canvas.text(8, y + 4, label, 14, bold=True)
        canvas.text(8, y + 26, (notes or {}).get(label, ""), 12)
        for f, frame in enumerate(frames):
            x = 150 + (SIDE + 8) * f
            canvas.tile(_overlay(_small(frame, SIDE), values[f], norm, cmap), x, y, SIDE, high)
            if cmap == DIFFERENCE:
                _plus_and_minus(canvas, values[f], norm.vmax, x, y, SIDE, high)
            elif mask is not None:
                canvas.outline(mask[f], x, y, SIDE, high)
        if cmap == AMOUNT:
            f = values.max((1, 2)).argmax()
            canvas.peak(values[f], 150 + (SIDE + 8) * f, y, SIDE, high)
        name = "\u221a scale" if cmap == AMOUNT else ""
        canvas.bar(norm, cmap, 150 + (SIDE + 8) * len(frames) + 4, y, high, name)
    return canvas.png()


def _plus_and_minus(canvas, values, limit, left, top, width, height):
    for r, c in zip(*np.nonzero(np.abs(values) > 0.4 * limit)):
        x, y = left + (c + 0.5) * width / values.shape[1], top + (r + 0.5) * height / values.shape[0]
        canvas.text(x, y, "+" if values[r, c] > 0 else "\u2212", 12, True, "mm", "white")


def head_card(frame, word, maps, layer, head, note=""):
    """Every head for one word as thumbnails, one of them enlarged; below each a bar, its share on this frame.

    frame: [3, H, W]. maps: [L, H, h, w], not renormalised, one scale for all. layer, head: the one in large.
    note: a text above it.
    """
    frame = _frames(frame, "frame", "3 H W")
    maps = _array(maps, "maps", "L H h w")
    layers, heads = maps.shape[:2]
    thumb = min(THUMB, 460 // heads)
    norm, small = _amounts(maps), _small(frame, thumb)
    width = 110 + (thumb + 8) * heads + 60
    canvas = Canvas(width + 400, max(70 + (thumb + 14) * layers, 400))
    canvas.text(8, 8, f"\u201c{word}\u201d", 20, bold=True)
    canvas.text(width, 30, note, 13, anchor="ls", colour=GREY)
    share = maps.sum((2, 3))
    for r in range(layers):
        y = 62 + r * (thumb + 14)
        canvas.text(8, y + thumb / 2, f"layer {r}", 12, bold=r == layer, anchor="lm")
        for c in range(heads):
            x = 80 + c * (thumb + 8)
            canvas.tile(_overlay(small, maps[r, c], norm, AMOUNT), x, y, thumb)
            canvas.pen.rectangle([x, y + thumb + 1, x + thumb - 1, y + thumb + 4], fill="#DDDDDD")
            canvas.pen.rectangle([x, y + thumb + 1, x + thumb * share[r, c], y + thumb + 4], fill="black")
            if (r, c) == (layer, head):
                canvas.pen.rectangle(
                    [x - 5, y - 5, x + thumb + 4, y + thumb + 4], outline=OKABE_ITO[1], width=3
                )
        canvas.text(84 + heads * (thumb + 8), y + thumb / 2, f"{share[r].mean():.0%}", 12, anchor="lm")
    for c in range(heads):
        canvas.text(80 + c * (thumb + 8) + thumb / 2, 56, c, 12, bold=c == head, anchor="ms")
    canvas.text(84 + heads * (thumb + 8), 56, "mean", 11, anchor="ls", colour=GREY)
    chosen, x = maps[layer, head], width
    canvas.tile(_overlay(_small(frame, 280), chosen, norm, AMOUNT), x, 62, 280)
    canvas.peak(chosen, x, 62, 280, 280)
    canvas.text(x, 56, f"layer {layer}, head {head}: {share[layer, head]:.0%} on this frame", 13, True, "ls")
    canvas.bar(norm, AMOUNT, x + 292, 62, 280, "\u221a scale")
    return canvas.png()


def frame_word_card(frames, words, maps, word, frame):
    """How the words of a caption divide over the frames, and one word's attention on one frame in large.

    frames: [F, 3, H, W]. words: T texts. maps: [T, F, h, w]. word, frame: the chosen cell of the table. Columns of
    the table add up to one, values above 0.3 are printed; above each its entropy in bits, 0 for a single frame.
    """
    frames = _frames(frames)
    values = _array(maps, "maps", "T F h w")
    _same(values.shape[:2], (len(words), len(frames)), "the words and frames of maps")
    mass = values.sum((2, 3))
    share = mass / np.maximum(mass.sum(1, keepdims=True), 1e-9)
    entropy = -(share * np.log2(np.maximum(share, 1e-12))).sum(1)
    cell, high = min(62, 560 // len(words)), 64
    width, bottom = 140 + cell * len(words), 62 + high * len(frames)
    canvas = Canvas(width + 330, max(bottom + 80, 370))
    canvas.text(8, 56, "entropy, bits", 11, anchor="ls", colour=GREY)
    for t in range(len(words)):
        x = 130 + t * cell
        canvas.text(x + cell / 2, 56, f"{entropy[t]:.1f}", 11, anchor="ms", colour=GREY)
        _tilted(canvas, x + cell / 2, bottom + 4, words[t], t == word)
        for f in range(len(frames)):
            value, y = share[t, f], 62 + f * high
            colour = np.array(mpl.colormaps[AMOUNT](value / share.max())[:3])
            canvas.tile(colour[None, None], x, y, cell - 2, high - 2)
            if value > 0.3:
                ink = "black" if value > 0.5 * share.max() else "white"
                canvas.text(x + cell / 2, y + high / 2, f"{value:.2f}", 11, anchor="mm", colour=ink)
    for f, picture in enumerate(frames):
        canvas.tile(_small(picture, 60), 66, 62 + f * high, 60)
        canvas.text(60, 62 + f * high + 30, f"frame {f + 1}", 11, f == frame, "rm")
    canvas.frame(130 + word * cell - 2, 60 + frame * high, cell + 2, high + 2, 3)
    large = values[word, frame]
    canvas.tile(
        _overlay(_small(frames[frame], 280), large, _amounts(values[word]), AMOUNT), width + 10, 62, 280
    )
    canvas.peak(large, width + 10, 62, 280, 280)
    text = f"\u201c{words[word]}\u201d, frame {frame + 1}: {share[word, frame]:.0%}"
    canvas.text(width + 10, 56, text, 14, True, "ls")
    return canvas.png()


def _tilted(canvas, x, y, text, bold):
    """A word that ends below the point (x, y), turned by 45 degrees."""
    font = _font(12, bold)
    left, top, right, bottom = font.getbbox(text)
    label = Image.new("L", (right + 2, bottom + 2))
    ImageDraw.Draw(label).text((0, 0), text, fill=255, font=font)
    label = label.rotate(45, expand=True, resample=Image.Resampling.BICUBIC)
    canvas.image.paste("black", (round(x - label.width + 4), round(y)), label)


def module_card(frame, table, chosen, values, page=0):
    """One module's output on one frame, beside the table of all modules.

    frame: [3, H, W]. table: a (name, shape, mean, standard deviation, share of zeros, milliseconds) each.
    chosen: its line in the table. values: [C, h, w], what it gave. page: 0 shows the eight strongest channels
        (by mean square), 1 the eight after them, and so on; the sign behind a channel is its strongest cell's.
    """
    frame = _frames(frame, "frame", "3 H W")
    values = _array(values, "values", "C h w")
    lines = 17
    start = min(max(0, chosen - lines // 2), max(0, len(table) - lines))
    canvas = Canvas(1100, 372)
    at = (8, 216, 318, 366, 412, 452)
    for x, head in zip(at, ("module", "output", "mean", "std", "zeros", "ms")):
        canvas.text(x, 24, head, 11, True, "ls")
    for k, row in enumerate(table[start : start + lines]):
        y, bold = 34 + 19 * k, start + k == chosen
        if bold:
            canvas.pen.rectangle([2, y - 2, 488, y + 16], fill="#FCE4D2", outline="black")
        name, shape, mean, std, zeros, ms = row
        cells = name, shape, f"{mean:.2f}", f"{std:.2f}", f"{zeros:.0%}", _number(ms, 2)
        for x, text in zip(at, cells):
            canvas.text(x, y, _minus_sign(text), 11, bold)
    left, side = 500, 152
    canvas.text(left, 24, "frame", 11, True, "ls")
    canvas.tile(_small(frame, side), left, 30, side)
    norm = np.linalg.norm(values, axis=0)
    canvas.text(left, 204, f"norm, 0 to {_number(norm.max(), 2)}", 11, True, "ls")
    canvas.tile(mpl.colormaps[AMOUNT](norm / max(norm.max(), 1e-9))[..., :3], left, 210, side)
    strongest = np.argsort(-np.square(values).mean((1, 2)), kind="stable")[8 * page : 8 * page + 8]
    if len(strongest):
        scale = _around_zero(values[strongest])
        for k, channel in enumerate(strongest):
            x, y = left + 166 + 108 * (k % 4), 30 + 180 * (k // 4)
            canvas.text(x, y - 6, f"channel {channel} {_sign(values[channel])}", 11, anchor="ls")
            canvas.tile(mpl.colormaps[DIFFERENCE](scale(values[channel]))[..., :3], x, y, 102)
            if values.shape[1] <= 8:
                _plus_and_minus(canvas, values[channel], scale.vmax, x, y, 102, 102)
        canvas.bar(scale, DIFFERENCE, left + 166, 326, 36, "")
    return canvas.png()
