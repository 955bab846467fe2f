"""Pictures for sliders, painted in a few milliseconds: PNG bytes out, in the same style as the figures.

Matplotlib takes a tenth of a second for a grid of images; a slider should answer within a twentieth. So these
are painted with numpy and Pillow. Each is a function of the sliders' positions and of what does not change.
"""

import io
from functools import cache
from pathlib import Path

import matplotlib as mpl
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from gitdistill.escape import one_line
from gitdistill.viz.plots import style
from gitdistill.viz.plots.attention import frame_shares, model_blocks
from gitdistill.viz.plots.features import strongest_channels

SIDE = 128  # pixels of an ordinary tile
THUMB = 56  # of a small one
LARGE = 280  # of an enlarged one


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
        self.pen.text((x, y), one_line(str(text)), fill=colour, font=_font(size, bold), anchor=anchor)

    def tilted(self, x, y, text, bold):
        """A word that ends below the point (x, y), turned by 45 degrees."""
        font, text = _font(12, bold), one_line(text)
        _, _, right, bottom = font.getbbox(text)
        label = Image.new("L", (right + 2, bottom + 2))
        ImageDraw.Draw(label).text((0, 0), text, fill=255, font=font)
        label = label.rotate(45, expand=True, resample=Image.Resampling.BICUBIC)
        self.image.paste("black", (round(x - label.width + 4), round(y)), label)

    def box(self, left, top, width, height, thickness=2):
        """A black line around a place, with a white one outside it."""
        inner = [round(v) for v in (left, top, left + width - 1, top + height - 1)]
        outer = [inner[0] - 1, inner[1] - 1, inner[2] + 1, inner[3] + 1]
        self.pen.rectangle(outer, outline="white", width=thickness + 2)
        self.pen.rectangle(inner, outline="black", width=thickness)

    def outline(self, mask, left, top, width, height):
        """A black line around a mask [H, W] that fills the place, a white one outside it."""
        rings = [np.pad(style.resized(mask, round(height), round(width)), 3)]
        for _ in range(3):
            last = rings[-1]
            moved = [np.roll(last, step, axis) for axis in (0, 1) for step in (1, -1)]
            rings.append(np.any([last, *moved], axis=0))
        for ring, colour in ((rings[3] & ~rings[2], "white"), (rings[2] & ~rings[1], "black")):
            ring = Image.fromarray(ring[3:-3, 3:-3])
            self.image.paste(colour, (round(left), round(top)), ring)

    def peak(self, values, left, top, width, height):
        """A square around the strongest cell of a map [h, w] that fills the place."""
        r, c = style.strongest(values)
        high, wide = height / values.shape[0], width / values.shape[1]
        self.box(left + c * wide, top + r * high, wide, high)

    def signs(self, values, scale, left, top, width, height):
        """The sign of each strong cell of a difference [h, w] that fills the place."""
        for r, c in zip(*np.nonzero(np.abs(values) > 0.4 * scale.norm.vmax)):
            x, y = left + (c + 0.5) * width / values.shape[1], top + (r + 0.5) * height / values.shape[0]
            self.text(x, y, style.sign(values[r, c]), 12, True, "mm", "white")

    def colour_bar(self, scale, left, top, height, label=""):
        """A colour bar with the numbers of its ends."""
        low, high = scale.norm.vmin, scale.norm.vmax
        self.tile(scale.to_rgba(np.linspace(high, low, 64))[:, None, :3], left, top, 12, height)
        self.text(left + 16, top, style.number(high, 2), 11)
        self.text(left + 16, top + height, style.number(low, 2), 11, anchor="ls")
        self.text(left + 16, top + height / 2, label, 11, anchor="lm", colour=style.GREY)

    def png(self):
        out = io.BytesIO()
        self.image.save(out, format="PNG", compress_level=3)
        return out.getvalue()


def _small(frame, side):
    """A frame [H, W, 3] whose longer side has at most `side` pixels."""
    shrink = min(1.0, side / max(frame.shape[:2]))
    return style.resized(frame, round(shrink * frame.shape[0]), round(shrink * frame.shape[1]))


def word_card(frames, word, maps, notes=None, difference=True, mask=None):
    """One word of a caption in full: a row for each model, a column for each frame, and their difference below.

    Each row has its own scale, up to its largest value, which stands beside it.

    frames: [F, 3, H, W]. maps: label -> attention [F, h, w]. notes: label -> a text below its name.
    difference: first minus second, when there are exactly two maps on one grid; + and - mark its strong cells.
    mask: boolean [F, H, W], the thing that the word names, outlined in the rows of the models.
    """
    frames = style.photos(frames)
    alike = len(maps) == 2 and len({np.shape(values) for values in maps.values()}) == 1
    rows = model_blocks(maps, (len(frames), "h", "w"), difference and alike)
    if mask is not None:
        mask = style.array(mask, "mask", frames.shape[:3]) > 0
    high = SIDE * frames.shape[1] / frames.shape[2]
    columns = [150 + (SIDE + 8) * f for f in range(len(frames))]
    canvas = Canvas(150 + (SIDE + 8) * len(frames) + 90, 64 + (high + 12) * len(rows))
    canvas.text(8, 8, f"\u201c{word}\u201d", 20, bold=True)
    for f, x in enumerate(columns):
        canvas.text(x + SIDE / 2, 56, f"frame {f + 1}", 12, anchor="ms")
    for k, (label, values, scale) in enumerate(rows):
        y = 62 + k * (high + 12)
        canvas.text(8, y + 4, "difference" if style.is_signed(scale) else label, 14, bold=True)
        canvas.text(8, y + 26, (notes or {}).get(label, ""), 12)
        _word_row(canvas, frames, values, scale, mask, columns, y, high)
    return canvas.png()


def _word_row(canvas, frames, values, scale, mask, columns, y, high):
    signed = style.is_signed(scale)
    for f, (frame, x) in enumerate(zip(frames, columns)):
        canvas.tile(style.overlay(_small(frame, SIDE), values[f], scale), x, y, SIDE, high)
        if signed:
            canvas.signs(values[f], scale, x, y, SIDE, high)
        elif mask is not None:
            canvas.outline(mask[f], x, y, SIDE, high)
    if not signed:
        f = values.max((1, 2)).argmax()
        canvas.peak(values[f], columns[f], y, SIDE, high)
    canvas.colour_bar(scale, columns[-1] + SIDE + 12, y, high, "" if signed else "\u221a scale")


def head_card(frame, word, maps, layer, head, note=""):
    """Every head for one word as thumbnails, one of them enlarged; below each a bar, its share on this frame.

    frame: [3, H, W]. maps: [L, H, h, w], not renormalised, one scale for all. layer, head: the enlarged one.
    note: a text above it.
    """
    frame = style.photos(frame, "frame", "3 H W")
    maps = style.array(maps, "maps", "L H h w")
    layers, heads = maps.shape[:2]
    thumb = min(THUMB, 460 // heads)
    scale, small = style.amounts(maps), _small(frame, thumb)
    columns, end = [80 + c * (thumb + 8) for c in range(heads)], 84 + heads * (thumb + 8)
    left = end + 86
    canvas = Canvas(left + 400, max(70 + (thumb + 14) * layers, 400))
    canvas.text(8, 8, f"\u201c{word}\u201d", 20, bold=True)
    canvas.text(left, 30, note, 13, anchor="ls", colour=style.GREY)
    share = maps.sum((2, 3))
    for r in range(layers):
        y = 62 + r * (thumb + 14)
        canvas.text(8, y + thumb / 2, f"layer {r}", 12, bold=r == layer, anchor="lm")
        for c, x in enumerate(columns):
            canvas.tile(style.overlay(small, maps[r, c], scale), x, y, thumb)
            canvas.pen.rectangle([x, y + thumb + 1, x + thumb - 1, y + thumb + 4], fill="#DDDDDD")
            canvas.pen.rectangle([x, y + thumb + 1, x + thumb * share[r, c], y + thumb + 4], fill="black")
            if (r, c) == (layer, head):
                around = [x - 5, y - 5, x + thumb + 4, y + thumb + 4]
                canvas.pen.rectangle(around, outline=style.ACCENT, width=3)
        canvas.text(end, y + thumb / 2, f"{share[r].mean():.0%}", 12, anchor="lm")
    for c, x in enumerate(columns):
        canvas.text(x + thumb / 2, 56, c, 12, bold=c == head, anchor="ms")
    canvas.text(end, 56, "mean", 11, anchor="ls", colour=style.GREY)
    text = f"layer {layer}, head {head}: {share[layer, head]:.0%} on this frame"
    canvas.text(left, 56, text, 13, True, "ls")
    _enlarged(canvas, frame, maps[layer, head], scale, left)
    canvas.colour_bar(scale, left + LARGE + 12, 62, LARGE, "\u221a scale")
    return canvas.png()


def _enlarged(canvas, frame, values, scale, left):
    canvas.tile(style.overlay(_small(frame, LARGE), values, scale), left, 62, LARGE)
    canvas.peak(values, left, 62, LARGE, LARGE)


def frame_word_card(frames, words, maps, word, frame):
    """How the words of a caption divide over the frames, and one word's attention on one frame, enlarged.

    frames: [F, 3, H, W]. words: T texts. maps: [T, F, h, w]. word, frame: the chosen cell of the table. Columns of
    the table add up to one, values above 0.3 are printed; above each its entropy in bits, 0 for a single frame.
    """
    frames = style.photos(frames)
    share = frame_shares(maps, (len(words), len(frames), "h", "w"))
    entropy = -(share * np.log2(np.maximum(share, 1e-12))).sum(1)
    scale = style.shares(share.max())
    cell, high = min(62, 560 // len(words)), 64
    left, bottom = 150 + cell * len(words), 62 + high * len(frames)
    canvas = Canvas(left + 320, max(bottom + 80, 370))
    canvas.text(8, 56, "entropy, bits", 11, anchor="ls", colour=style.GREY)
    for t in range(len(words)):
        x = 130 + t * cell
        canvas.text(x + cell / 2, 56, f"{entropy[t]:.1f}", 11, anchor="ms", colour=style.GREY)
        canvas.tilted(x + cell / 2, bottom + 4, words[t], t == word)
        for f, value in enumerate(share[t]):
            y = 62 + f * high
            canvas.tile(np.array(scale.to_rgba(value)[:3])[None, None], x, y, cell - 2, high - 2)
            if value > 0.3:
                ink = style.ink(scale.norm(value))
                canvas.text(x + cell / 2, y + high / 2, f"{value:.2f}", 11, anchor="mm", colour=ink)
    for f, picture in enumerate(frames):
        canvas.tile(_small(picture, 60), 66, 62 + f * high, 60)
        canvas.text(60, 62 + f * high + 30, f"frame {f + 1}", 11, f == frame, "rm")
    canvas.box(130 + word * cell - 2, 60 + frame * high, cell + 2, high + 2, 3)
    values = style.array(maps[word], "maps", "F h w")
    text = f"\u201c{words[word]}\u201d, frame {frame + 1}: {share[word, frame]:.0%}"
    canvas.text(left, 56, text, 14, True, "ls")
    _enlarged(canvas, frames[frame], values[frame], style.amounts(values), left)
    return canvas.png()


def module_card(frame, table, chosen, values, page=0):
    """One module's output on one frame, beside the table of all modules.

    frame: [3, H, W]. table: a (name, shape, mean, standard deviation, share of zeros, milliseconds) each.
    chosen: its line in the table. values: [C, h, w], its output. page: 0 shows the eight strongest channels
        (by mean square), 1 the eight after them, and so on; the sign behind a channel is its strongest cell's.
    """
    frame = style.photos(frame, "frame", "3 H W")
    values = style.array(values, "values", "C h w")
    canvas = Canvas(1100, 372)
    _module_table(canvas, table, chosen)
    left, side = 500, 152
    canvas.text(left, 24, "frame", 11, True, "ls")
    canvas.tile(_small(frame, side), left, 30, side)
    norm = np.linalg.norm(values, axis=0)
    canvas.text(left, 204, f"norm, 0 to {style.number(norm.max(), 2)}", 11, True, "ls")
    canvas.tile(style.shares(max(norm.max(), 1e-9)).to_rgba(norm)[..., :3], left, 210, side)
    channels = strongest_channels(values, 8, 8 * page)
    if not len(channels):
        return canvas.png()
    scale = style.differences(values[channels])
    for k, channel in enumerate(channels):
        x, y = left + 166 + 108 * (k % 4), 30 + 180 * (k // 4)
        canvas.text(x, y - 6, f"channel {channel} {style.sign(values[channel])}", 11, anchor="ls")
        canvas.tile(scale.to_rgba(values[channel])[..., :3], x, y, 102)
        if values.shape[1] <= 8:
            canvas.signs(values[channel], scale, x, y, 102, 102)
    canvas.colour_bar(scale, left + 166, 326, 36)
    return canvas.png()


def _module_table(canvas, table, chosen, lines=17):
    start = min(max(0, chosen - lines // 2), max(0, len(table) - lines))
    places = (8, 216, 318, 366, 412, 452)
    for x, head in zip(places, ("module", "output", "mean", "std", "zeros", "ms")):
        canvas.text(x, 24, head, 11, True, "ls")
    for k, row in enumerate(table[start : start + lines]):
        y, bold = 34 + 19 * k, start + k == chosen
        if bold:
            canvas.pen.rectangle([2, y - 2, 488, y + 16], fill=style.TINT, outline="black")
        name, shape, mean, std, zeros, ms = row
        cells = name, shape, f"{mean:.2f}", f"{std:.2f}", f"{zeros:.0%}", style.number(ms, 2)
        for x, text in zip(places, cells):
            canvas.text(x, y, style.minus_sign(text), 11, bold)
