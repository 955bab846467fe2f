"""Clips as film strips."""

from textwrap import fill

import numpy as np

from gitdistill.viz.plots.style import (
    DPI,
    WIDTH,
    _array,
    _bare,
    _figure,
    _frames,
    _mosaic,
    _place,
    _same,
    _some,
    _styled,
)


@_styled
def film(frames, titles=None, captions=None, masks=None, columns=None, title=None):
    """Film strips: a clip a row, its frames from left to right, its caption below.

    frames: one clip [F, 3, H, W], or a list of clips (or [C, F, 3, H, W]); uint8, or floats in [0, 1].
    titles, captions: a text for each clip, above and below it; long captions wrap, line breaks are kept.
    masks: for each clip None or boolean [O, F, H, W] (or [F, H, W]), outlined in black on white: O objects.
    columns: clips side by side; by default one, and up to six for single frames.
    """
    single = getattr(frames, "ndim", 0) == 4
    clips = [_frames(clip) for clip in _some([frames] if single else frames, "frames")]
    titles, captions, masks = ([v] if single and v is not None else v for v in (titles, captions, masks))
    for name, values in (("titles", titles), ("captions", captions), ("masks", masks)):
        if values is not None and len(values) != len(clips):
            raise ValueError(f"{name} must hold one entry for each of {len(clips)} clips, got {len(values)}")
    length = max(map(len, clips))
    columns = columns or (min(6, len(clips)) if length == 1 else 1)
    rows = -(-len(clips) // columns)
    tile = min(1.6, (WIDTH - 0.1) / (length * columns) - 0.1 / length)
    texts = [_wrapped(text or "", max(12, int(tile * length * 12))) for text in captions or [""] * len(clips)]
    lines = max(text.count("\n") + 1 for text in texts) if captions else 0
    width, height = tile * length, tile * clips[0].shape[1] / clips[0].shape[2]
    above, below = (0.3 if titles else 0.08), (0.12 + 0.165 * lines if captions else 0.0)
    size = max((width + 0.1) * columns + 0.1, 4.0), rows * (above + height + below) + 0.08
    figure = _figure(*size, "Film strips", title, layout=None)
    figure.exact = True
    for k, clip in enumerate(clips):
        row, column = divmod(k, columns)
        left, top = 0.1 + column * (width + 0.1), above + row * (above + height + below)
        axes = _place(figure, left, top, width, height)
        smoothing = "nearest" if tile * DPI > clip.shape[2] else "antialiased"
        _strip(axes, clip, length, None if masks is None else masks[k], smoothing)
        axes.set_xlabel(texts[k], fontsize=9)
        axes.set_title(titles[k] if titles else "", fontsize=10)
    return figure


def _wrapped(text, letters):
    return "\n".join(fill(line, letters) for line in text.split("\n"))


def _strip(axes, clip, length, mask, smoothing):
    width = clip.shape[2]
    gap = max(2, width // 24)
    _bare(axes)
    axes.imshow(_mosaic([[*clip, *[None] * (length - len(clip))]], gap), interpolation=smoothing)
    if mask is None:
        return
    mask = _array(mask, "mask", "O F H W" if getattr(mask, "ndim", 4) == 4 else "F H W")
    mask = mask.reshape(-1, *mask.shape[-3:]) > 0
    _same(mask.shape[1:], clip.shape[:3], "mask")
    for thing in mask:
        for f, shape in enumerate(thing):
            _outline(axes, shape, f * (width + gap))


def _outline(axes, mask, left, top=0, margin=2, thin=1.0):
    """A line around a mask [H, W], `margin` pixels outside it so that thin shapes stay visible; thin: its scale."""
    if not mask.any():
        return
    side = 2 * margin + 1
    wide = np.pad(mask, 2 * margin)
    wide = np.lib.stride_tricks.sliding_window_view(wide, (side, side)).any((2, 3))
    wide = np.pad(wide[margin:-margin, margin:-margin], 1).astype(float)  # padding closes lines at the border
    y, x = (np.arange(n) - 1 for n in wide.shape)
    for colour, thickness in (("white", 2.6), ("black", 1.0)):
        axes.contour(x + left, y + top, wide, [0.5], colors=colour, linewidths=thin * thickness)
