"""What all plots share. A plot takes arrays and returns a `figure`, under the decorator `plot`:

    @style.plot
    def histogram(values, title=None):
        values = style.array(values, "values", "n")
        figure = style.figure(6.0, 3.0, "Histogram", title)
        figure.subplots().hist(values, **style.bar(0))
        return figure

Matplotlib lays out axes made by `subplots`. With `layout=None` a figure holds axes at places in inches: `axes_at`.
"""

import io
from functools import wraps
from textwrap import fill

import matplotlib as mpl
import matplotlib.style
import numpy as np
from matplotlib.cm import ScalarMappable
from matplotlib.colors import LinearSegmentedColormap, Normalize, PowerNorm
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import LogLocator, NullFormatter
from PIL import Image, ImageFilter

DPI = 80
WIDTH = 11.0  # inches, the widest picture
AMOUNT, DIFFERENCE = "cividis", "PuOr"
PINK = (1.0, 0.0, 0.55)  # of attention over a clip, as in `gitdistill.viz.explorers`
HEAT = LinearSegmentedColormap.from_list("heat", ["white", "#D80078"])  # darker than any photo below it
# Without their yellow, which is too pale for lines on white.
OKABE_ITO = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
DASHES = ("-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)), (0, (1, 3)), (0, (8, 2)), (0, (3, 1)))
MARKS = ("o", "s", "^", "D", "v", "P", "X", "*")
HATCHES = ("", "///", "...", "\\\\\\", "xxx", "---", "ooo", "+++")
ACCENT, TINT, GREY = OKABE_ITO[1], "#FCE4D2", "#777777"  # what is pointed at, its background, what is faint
LUMA = np.array([0.299, 0.587, 0.114])
# Networks look the same in all pictures, whatever stands beside them: label -> place in the lists above.
NETWORKS = {"teacher": 0}
NETWORKS |= dict.fromkeys(("student", "distilled", "distilled student", "with a teacher"), 1)
NETWORKS |= dict.fromkeys(("captions only", "captions alone", "same student without a teacher"), 2)
NETWORKS |= {"same student without distillation": 2, "untrained": 3, "student, untrained": 3}
NETWORKS |= {"distilled for longer": 4, "teacher, shuffled weights": 5}
LETTER = 1233 / 2048  # how wide a letter of DejaVu Sans Mono is, of its size
CENTRE = {"ha": "center", "va": "center"}
OURS = {
    "font.size": 10,
    "text.parse_math": False,  # captions may hold a $
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
STYLE = ["default", OURS]  # whatever the reader's settings are


class Picture(Figure):
    """A figure that a notebook shows as a small PNG with alternative text, whichever backend is active."""

    alt = ""
    top = 0.0  # inches that the title takes

    @property
    def shown_as(self) -> dict:
        """What a notebook should know of its PNG: alternative text, and the size on the page, half that of the PNG."""
        width, height = (round(inches * self.dpi) for inches in self.get_size_inches())
        return {"image/png": {"alt": self.alt, "width": width, "height": height}}

    def _ipython_display_(self):
        from IPython.display import display

        display({"image/png": png(self), "text/plain": repr(self)}, metadata=self.shown_as, raw=True)


def png(figure: Figure, scale: int = 2) -> bytes:
    """The figure as PNG bytes, `scale` pixels for each of its own; the same figure gives the same bytes.

    A palette of 256 colours makes them smaller.
    """
    small = io.BytesIO()
    few_colours(pixels(figure, scale)).save(small, format="png", optimize=True)
    return small.getvalue()


def pixels(figure: Figure, scale: int) -> Image.Image:
    full = io.BytesIO()
    with mpl.style.context(STYLE):
        figure.savefig(full, format="png", dpi=scale * figure.dpi, metadata={"Software": None})
    return Image.open(full).convert("RGB")


def few_colours(image: Image.Image) -> Image.Image:
    """The picture in 256 colours."""
    image = image.quantize(256, Image.Quantize.FASTOCTREE, dither=Image.Dither.NONE)
    image.putpalette([255 if level > 250 else level for level in image.getpalette()])  # white stays white
    return image


def animation(figures, milliseconds=900) -> bytes:
    """Figures of one size as an endless animated PNG; the last one stays three times as long as the others."""
    images = [np.asarray(pixels(figure, 1)) for figure in some(figures, "figures")]
    height, width = images[0].shape[:2]
    column = few_colours(Image.fromarray(np.concatenate(images)))  # all pictures must share a palette
    images = [column.crop((0, k * height, width, (k + 1) * height)) for k in range(len(images))]
    out, times = io.BytesIO(), [milliseconds] * (len(images) - 1) + [3 * milliseconds]
    images[0].save(out, "PNG", save_all=True, append_images=images[1:], duration=times, loop=0)
    return out.getvalue()


def plot(function):
    """Decorator: draw in this style, whatever the reader's settings, and lay the figure out once."""

    @wraps(function)
    def draw(*args, **kwargs):
        with mpl.style.context(STYLE):
            drawn = function(*args, **kwargs)
            drawn.draw_without_rendering()  # lays out; a second time would move things by a pixel
            drawn.set_layout_engine("none")
            return drawn

    return draw


def figure(width, height, kind, title, layout="constrained"):
    """An empty picture of width x height inches below its title; `kind` and `title` are its alternative text."""
    width = min(width, WIDTH)
    text = None if title is None else fill(title, int(width * 10.5))
    top = 0.0 if title is None else 0.18 + 0.18 * (text.count("\n") + 1)
    drawn = Picture(figsize=(width, height + top), dpi=DPI, layout=layout)
    drawn.alt, drawn.top = kind if title is None else f"{kind}: {title}", top
    if title is not None:
        place = {} if layout else {"y": 1 - 0.08 / (height + top), "va": "top"}
        drawn.suptitle(text, x=0.08 / width, ha="left", **place)
    return drawn


def axes_at(figure, left, top, width, height):
    """Axes at a place in inches, counted from the upper left corner below the title."""
    whole, high = figure.get_size_inches()
    bottom = 1 - (figure.top + top + height) / high
    return figure.add_axes((left / whole, bottom, width / whole, height / high))


def text_at(figure, left, bottom, text):
    """A text at a place in inches, counted from the lower left corner."""
    figure.text(left / figure.get_figwidth(), bottom / figure.get_figheight(), text)


def bare(axes):
    """No ticks, no frame: the axes of an image."""
    axes.tick_params(length=0)
    axes.set_xticks([])
    axes.set_yticks([])
    axes.spines[:].set_visible(False)


def array(values, name, shape):
    """`values` as a finite numpy array of a shape such as "T F h w" or (T, 4, "h", "w"): numbers are checked."""
    if hasattr(values, "detach"):
        values = values.detach().cpu()
        values = (values.float() if values.is_floating_point() else values).numpy()
    values, wanted = np.asarray(values), shape.split() if isinstance(shape, str) else [str(n) for n in shape]
    fits = [not size.isdigit() or int(size) == given for size, given in zip(wanted, values.shape)]
    if values.ndim != len(wanted) or not all(fits):
        raise ValueError(f"{name} must be [{', '.join(wanted)}], got {list(values.shape)}")
    if not np.isfinite(values).all():
        raise ValueError(f"{name} holds NaN or infinite values")
    return values


def photos(frames, name="frames", shape="F 3 H W"):
    """Frames as floats in [0, 1], channels last."""
    frames = array(frames, name, shape)
    if frames.dtype == np.uint8:
        frames = frames / 255.0
    elif frames.min() < 0 or frames.max() > 1:
        raise ValueError(f"{name} must be uint8 or between 0 and 1: show raw frames, not normalised pixels")
    return np.moveaxis(frames, -3, -1)


def some(values, name):
    """`values`, which must not be empty."""
    if len(values) == 0:
        raise ValueError(f"{name} is empty: nothing to draw")
    return values


def one_each(values, name, count):
    """`values` (or None), which must be `count`."""
    if values is not None and len(values) != count:
        raise ValueError(f"{name} must hold {count} entries, got {len(values)}")
    return values


def amounts(*arrays):
    """One scale from 0 for all arrays, to the power 0.7, so that a faint map still shows beside a sharp one."""
    return ScalarMappable(PowerNorm(0.7, 0.0, max(max(float(a.max()) for a in arrays), 1e-9)), HEAT)


def shares(limit=1.0):
    """An even scale from 0 to `limit`."""
    return ScalarMappable(Normalize(0, limit), AMOUNT)


def differences(*arrays):
    """One scale around zero for all arrays."""
    limit = max(max(float(np.abs(a).max()) for a in arrays), 1e-9)
    return ScalarMappable(Normalize(-limit, limit), DIFFERENCE)


def is_signed(scale):
    return scale.norm.vmin < 0


def colour_bar(figure, scale, label, **place):
    """The legend of a scale; one to a power has ticks that are evenly spread."""
    bar = figure.colorbar(scale, label=label, **place)
    bar.outline.set_linewidth(0.5)
    if isinstance(scale.norm, PowerNorm):
        ticks = [scale.norm.vmax * part for part in (0, 0.05, 0.2, 0.5, 1)]
        bar.set_ticks(ticks, labels=[number(tick, 2) for tick in ticks])


def matrices(figure, maps, scale, rows, columns, label, turn=0):
    """Arrays [R, C] by name side by side, as cells, beside the legend of their scale; their axes.

    rows, columns: names; the latter are turned by so many degrees.
    """
    grid = figure.subplots(1, len(maps), squeeze=False, sharey=True)[0]
    leaning = {"rotation": turn, "ha": "right", "rotation_mode": "anchor"} if turn else {}
    for axes, (name, values) in zip(grid, maps.items()):
        axes.imshow(values, cmap=scale.cmap, norm=scale.norm, aspect="auto")
        axes.set_title(name)
        axes.set_xticks(range(len(columns)), columns, **leaning)
        axes.tick_params(length=0)
    grid[0].set_yticks(range(len(rows)), rows)
    colour_bar(figure, scale, label, ax=list(grid), aspect=20, fraction=0.05)
    return grid


def plain_log_ticks(axis, subs):
    """Plain numbers on a logarithmic axis, at `subs` times the powers of ten."""
    axis.set_major_locator(LogLocator(subs=subs))
    axis.set_major_formatter(lambda value, _: number(value))
    axis.set_minor_formatter(NullFormatter())


def cell_size(values, photo):
    """Height and width of a map's cell in pixels: tiles as fine as the photo, but at most about 128 pixels."""
    shrink = min(1.0, 128 / max(photo.shape[:2]))
    return [max(1, round(shrink * pixels / cells)) for pixels, cells in zip(photo.shape, values.shape[-2:])]


def overlay(photo, values, scale):
    """A map [h, w] as cells over a photo [H, W, 3]; RGB in [0, 1].

    Opacity grows with the value. What is large is dark: below it a photo is pale, and grey below differences.
    """
    size = cell_size(values, photo)
    photo = resized(photo, values.shape[0] * size[0], values.shape[1] * size[1])
    position = np.asarray(scale.norm(values), dtype=float)
    if is_signed(scale):
        photo = 0.55 + 0.45 * (photo @ LUMA)[..., None]
        colours, opacity = scale.cmap(position)[..., :3], 0.15 + 0.7 * np.sqrt(np.abs(2 * position - 1))
    else:
        photo = 0.45 + 0.55 * photo
        colours, opacity = scale.cmap(np.ones_like(position))[..., :3], 0.92 * position
    cells = np.ones((*size, 1))
    alpha = np.kron(opacity[..., None], cells)
    return alpha * np.kron(colours, cells) + (1 - alpha) * photo


def resized(photo, height, width):
    """[H, W, 3] to [height, width, 3], nearest neighbours."""
    rows, columns = ((np.arange(n) * old) // n for n, old in zip((height, width), photo.shape))
    return photo[rows][:, columns]


def show_tiles(axes, tiles, gap, columns=(), rows=()):
    """Draw a `mosaic`, with the names of its columns above and of its rows at the left."""
    height, width = tiles[0][0].shape[:2]
    bare(axes)
    axes.imshow(mosaic(tiles, gap), interpolation="antialiased")
    axes.xaxis.tick_top()
    axes.set_xticks(centres(len(columns), width, gap), columns)
    axes.set_yticks(centres(len(rows), height, gap), rows)


def mosaic(tiles, gap):
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


def centres(count, size, gap):
    """The middles of a mosaic's tiles, in pixels."""
    return np.arange(count) * (size + gap) + (size - 1) / 2


def strongest(values):
    """The place of a map's largest value."""
    return np.unravel_index(values.argmax(), values.shape)


def square(axes, left, top, size):
    """A black and white line around one cell of `size` [height, width]."""
    for colour, thickness in (("black", 2.4), ("white", 1.0)):
        place = (left - 0.5, top - 0.5), size[1], size[0]
        axes.add_patch(Rectangle(*place, fill=False, edgecolor=colour, linewidth=thickness))


def outline(axes, mask, left, top=0, margin=2, thin=1.0):
    """A line around a mask [H, W], `margin` pixels outside it so that thin shapes stay visible; thin: its scale."""
    if not mask.any():
        return
    wide = Image.fromarray(255 * mask.astype(np.uint8)).filter(ImageFilter.MaxFilter(2 * margin + 1))
    wide = np.pad(np.asarray(wide) / 255, 1)  # padding closes lines at the border
    y, x = (np.arange(n) - 1 for n in wide.shape)
    for colour, thickness in (("white", 2.6), ("black", 1.0)):
        axes.contour(x + left, y + top, wide, [0.5], colors=colour, linewidths=thin * thickness)


def slots(labels):
    """Label -> its place in the lists of colours and marks: a network's own, or the next that is free.

    Beside a network, nothing else looks like another one.
    """
    found = {}
    for label in labels:
        if NETWORKS.get(label, -1) not in (-1, *found.values()):
            found[label] = NETWORKS[label]
    taken = set(NETWORKS.values()) if found else set()
    free = (k for k in range(2 * len(OKABE_ITO) + len(labels)) if k not in taken)
    return {label: found[label] if label in found else next(free) for label in labels}


def colour(k):
    return OKABE_ITO[k % len(OKABE_ITO)]


def mark(k):
    """Colour and marker of the k-th category."""
    return {"color": colour(k), "marker": MARKS[k % len(MARKS)]}


def line(k):
    """Colour, marker and dashes of the k-th category."""
    return mark(k) | {"linestyle": DASHES[k % len(DASHES)]}


def bar(k):
    """Colour and hatch of the k-th category."""
    return {"facecolor": colour(k), "edgecolor": "white", "hatch": HATCHES[k % len(HATCHES)], "linewidth": 0}


def ink(level):
    """The colour of a text on a cell, whose amount is `level` of the largest."""
    return "black" if level > 0.5 else "white"


def number(value, digits=3):
    return minus_sign(f"{value:,.0f}" if abs(value) >= 100 else f"{value:.{digits}g}")


def minus_sign(text):
    return text.replace("-", "\u2212")


def sign(values):
    """The sign of the strongest of the values."""
    return "+" if values.max() >= -values.min() else "\u2212"


def count(value):
    for unit, name in ((1e9, " G"), (1e6, " M"), (1e3, " k")):
        if value >= unit:
            return f"{value / unit:.3g}{name}"
    return str(int(value))


def short(text, letters):
    return text if len(text) <= letters else text[: letters - 1] + "\u2026"
