"""What all pictures share: the style, PNG bytes, checks, and a map laid over a photo."""

import io
from functools import wraps
from textwrap import fill

import matplotlib as mpl
import numpy as np
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize, PowerNorm
from matplotlib.figure import Figure
from PIL import Image, ImageChops

DPI = 80
WIDTH = 11.0  # inches, the widest picture
AMOUNT, DIFFERENCE = "cividis", "PuOr"
# Without their yellow, which is too pale for lines on white.
OKABE_ITO = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
DASHES = ("-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)), (0, (1, 3)), (0, (8, 2)), (0, (3, 1)))
MARKS = ("o", "s", "^", "D", "v", "P", "X", "*")
HATCHES = ("", "///", "...", "\\\\\\", "xxx", "---", "ooo", "+++")
GREY = "#777777"
LUMA = np.array([0.299, 0.587, 0.114])
STYLE = {
    "font.size": 10,
    "font.family": "DejaVu Sans",
    "axes.titlesize": 10,
    "axes.labelsize": 10,
    "xtick.labelsize": 9,
    "ytick.labelsize": 9,
    "legend.fontsize": 9,
    "figure.titlesize": 11,
    "figure.titleweight": "bold",
    "figure.facecolor": "white",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "hatch.linewidth": 1.2,
    "lines.linewidth": 1.8,
    "image.interpolation": "nearest",
}
# Matplotlib's own values for all else, so that a picture does not depend on the reader's settings.
_DEFAULTS = {
    k: v for k, v in mpl.rcParamsDefault.items() if not k.startswith(("backend", "interactive", "toolbar"))
}


class Picture(Figure):
    """A figure that a notebook shows as a small PNG with alternative text, whichever backend is active."""

    alt = ""
    top = 0.0  # inches that the title takes
    exact = False  # keep every colour: a palette would turn the smooth backgrounds of frames into bands

    def _ipython_display_(self):
        from IPython.display import display

        data = {"image/png": png(self), "text/plain": repr(self)}
        display(data, metadata={"image/png": {"alt": self.alt}}, raw=True)


def png(figure: Figure) -> bytes:
    """The figure as PNG bytes; the same figure gives the same bytes.

    A palette of 256 colours makes them three times smaller. It is used unless the picture asks for exact colours
    or one of them would move visibly.
    """
    full, small = io.BytesIO(), io.BytesIO()
    with mpl.rc_context(_DEFAULTS | STYLE):
        figure.savefig(full, format="png", dpi=figure.dpi, metadata={"Software": None})
    if getattr(figure, "exact", False):
        return full.getvalue()
    image = Image.open(full).convert("RGB")
    fewer = image.quantize(256, method=Image.Quantize.MAXCOVERAGE, dither=0)
    if max(high for _, high in ImageChops.difference(image, fewer.convert("RGB")).getextrema()) > 16:
        return full.getvalue()
    fewer.save(small, format="png", optimize=True)
    return small.getvalue()


def animation(figures, milliseconds=900) -> bytes:
    """Figures of one size one after the other, for ever, as an animated PNG; the last one stays three times as long."""
    images = [Image.open(io.BytesIO(png(figure))).convert("RGB") for figure in _some(figures, "figures")]
    palette = images[-1].quantize(64, method=Image.Quantize.MAXCOVERAGE, dither=0)
    images = [image.quantize(palette=palette, dither=0) for image in images]
    out, times = io.BytesIO(), [milliseconds] * (len(images) - 1) + [3 * milliseconds]
    images[0].save(out, "PNG", save_all=True, append_images=images[1:], duration=times, loop=0)
    return out.getvalue()


def _styled(function):
    """Let `function` return a picture in this module's style, laid out once and for all."""

    @wraps(function)
    def draw(*args, **kwargs):
        with mpl.rc_context(_DEFAULTS | STYLE):
            figure = function(*args, **kwargs)
            figure.draw_without_rendering()  # lays out; a second time would move things by a pixel
            figure.set_layout_engine("none")
            return figure

    return draw


def _figure(width, height, kind, title, layout="constrained"):
    """An empty picture of width x height inches below its title; `kind` and `title` are its alternative text."""
    width = min(width, WIDTH)
    text = None if title is None else fill(title, int(width * 10.5))
    top = 0.0 if title is None else 0.18 + 0.18 * (text.count("\n") + 1)
    figure = Picture(figsize=(width, height + top), dpi=DPI, layout=layout)
    figure.alt, figure.top = kind if title is None else f"{kind}: {title}", top
    if title is not None:
        place = {} if layout else {"y": 1 - 0.08 / (height + top), "va": "top"}
        figure.suptitle(text, x=0.08 / width, ha="left", **place)
    return figure


def _place(figure, left, top, width, height):
    """Axes at a place in inches, counted from the upper left corner below the title."""
    whole, high = figure.get_size_inches()
    return figure.add_axes(
        (left / whole, 1 - (figure.top + top + height) / high, width / whole, height / high)
    )


def _array(values, name, letters):
    """`values` as a numpy array with as many dimensions as `letters` has words."""
    if hasattr(values, "detach"):
        values = values.detach().cpu()
        values = (values.float() if values.is_floating_point() else values).numpy()
    values = np.asarray(values)
    if values.ndim != len(letters.split()):
        raise ValueError(f"{name} must be [{letters.replace(' ', ', ')}], got {list(values.shape)}")
    if not np.isfinite(values).all():
        raise ValueError(f"{name} holds NaN or infinite values")
    return values


def _frames(frames, name="frames", letters="F 3 H W"):
    """Frames as floats in [0, 1], channels last."""
    frames = _array(frames, name, letters)
    if frames.shape[-3] != 3:
        raise ValueError(f"{name} must be [{letters.replace(' ', ', ')}], got {list(frames.shape)}")
    if frames.dtype == np.uint8:
        frames = frames / 255.0
    elif frames.min() < 0 or frames.max() > 1:
        raise ValueError(f"{name} must be uint8 or between 0 and 1: show raw frames, not normalised pixels")
    return np.moveaxis(frames, -3, -1)


def _same(got, expected, name):
    if tuple(got) != tuple(expected):
        raise ValueError(f"{name} must have shape {list(expected)}, got {list(got)}")


def _some(values, name):
    if len(values) == 0:
        raise ValueError(f"{name} is empty: nothing to draw")
    return values


def _amounts(*arrays):
    """One square-root scale from 0 for all arrays, so that a faint map still shows beside a sharp one."""
    return PowerNorm(0.5, 0.0, max(max(float(a.max()) for a in arrays), 1e-9))


def _around_zero(*arrays):
    limit = max(max(float(np.abs(a).max()) for a in arrays), 1e-9)
    return Normalize(-limit, limit)


def _cell(values, photo):
    """Height and width of a map's cell in pixels: tiles as fine as the photo, but at most about 128 pixels."""
    shrink = min(1.0, 128 / max(photo.shape[:2]))
    return [max(1, round(shrink * pixels / cells)) for pixels, cells in zip(photo.shape, values.shape[-2:])]


def _overlay(photo, values, norm, cmap):
    """A map [h, w] as cells over a grey photo [H, W, 3]; RGB in [0, 1].

    Opacity grows with the value. Under amounts, whose large values are bright, a bright photo is darkened and a dark
    one stays as it is; under differences, whose large values are dark, a photo keeps to the bright half.
    """
    size = _cell(values, photo)
    grey = _resized(photo, values.shape[0] * size[0], values.shape[1] * size[1]) @ LUMA
    position = np.asarray(norm(values), dtype=float)
    strength = np.abs(2 * position - 1) if cmap == DIFFERENCE else position
    grey = 0.55 + 0.45 * grey[..., None] if cmap == DIFFERENCE else _darkened(grey)[..., None]
    opacity = 0.15 + 0.7 * np.sqrt(strength) if cmap == DIFFERENCE else 0.9 * strength
    cells = np.ones((*size, 1))
    alpha = np.kron(opacity[..., None], cells)
    return alpha * np.kron(mpl.colormaps[cmap](position)[..., :3], cells) + (1 - alpha) * grey


def _darkened(grey):
    """A grey photo of a mean brightness of at most a quarter, unless it is nearly white."""
    return grey * np.clip(0.25 / max(grey.mean(), 1e-9), 0.4, 1.0)


def _resized(photo, height, width):
    """[H, W, 3] to [height, width, 3], nearest neighbours."""
    rows, columns = ((np.arange(n) * old) // n for n, old in zip((height, width), photo.shape))
    return photo[rows][:, columns]


def _mosaic(tiles, gap):
    """Rows of equally large RGB tiles (None: empty) as one image with white gaps between them."""
    height, width = next(t for row in tiles for t in row if t is not None).shape[:2]
    shape = (len(tiles) * (height + gap) - gap, max(map(len, tiles)) * (width + gap) - gap, 3)
    image = np.ones(shape)
    for r, row in enumerate(tiles):
        for c, tile in enumerate(row):
            if tile is not None:
                y, x = r * (height + gap), c * (width + gap)
                image[y : y + height, x : x + width] = tile
    return image


def _centres(count, size, gap):
    return np.arange(count) * (size + gap) + (size - 1) / 2


def _bare(axes):
    """No ticks, no frame: the axes of an image."""
    axes.tick_params(length=0)
    axes.set_xticks([])
    axes.set_yticks([])
    axes.spines[:].set_visible(False)


def _bar(figure, norm, cmap, label, **place):
    bar = figure.colorbar(ScalarMappable(norm, cmap), label=label, **place)
    bar.outline.set_linewidth(0.5)
    if isinstance(norm, PowerNorm):
        ticks = [norm.vmax * part for part in (0, 0.05, 0.2, 0.5, 1)]
        bar.set_ticks(ticks, labels=[_number(tick, 2) for tick in ticks])
    return bar


def _number(value, digits=3):
    return _minus_sign(f"{value:,.0f}" if abs(value) >= 100 else f"{value:.{digits}g}")


def _minus_sign(text):
    return text.replace("-", "\u2212")


def _sign(values):
    """The sign of the strongest of the values."""
    return "+" if values.max() >= -values.min() else "\u2212"


def _count(value):
    for unit, name in ((1e9, " G"), (1e6, " M"), (1e3, " k")):
        if value >= unit:
            return f"{value / unit:.3g}{name}"
    return str(int(value))


def _bars(k):
    colour, hatch = OKABE_ITO[k % len(OKABE_ITO)], HATCHES[k % len(HATCHES)]
    return {"facecolor": colour, "edgecolor": "white", "hatch": hatch, "linewidth": 0}
