"""Clips as film strips."""

from textwrap import fill

from gitdistill.viz.plots import style


@style.plot
def film(frames, titles=None, captions=None, masks=None, columns=None, title=None):
    """Film strips: a clip a row, its frames from left to right, its caption below.

    frames: one clip [F, 3, H, W], or a list of clips (or [B, F, 3, H, W]); uint8, or floats in [0, 1].
    titles, captions: a text for each clip, above and below it; long captions wrap, line breaks are kept.
    masks: for each clip None or boolean [O, F, H, W] (or [F, H, W]), outlined in black on white: O objects.
    columns: clips side by side; by default one, and up to six for single frames.
    """
    single = getattr(frames, "ndim", 0) == 4
    clips = [style.photos(clip) for clip in style.some([frames] if single else frames, "frames")]
    titles, captions, masks = ([v] if single and v is not None else v for v in (titles, captions, masks))
    for name, values in (("titles", titles), ("captions", captions), ("masks", masks)):
        style.one_each(values, name, len(clips))
    length = max(map(len, clips))
    columns = columns or (min(6, len(clips)) if length == 1 else 1)
    rows = -(-len(clips) // columns)
    tile = min(1.6, (style.WIDTH - 0.1) / (length * columns) - 0.1 / length)
    texts = [text or "" for text in captions or [""] * len(clips)]
    letters = max(12, int(tile * length * 12))  # in a line
    texts = ["\n".join(fill(line, letters) for line in text.split("\n")) for text in texts]
    lines = max(text.count("\n") + 1 for text in texts) if captions else 0
    width, height = tile * length, tile * clips[0].shape[1] / clips[0].shape[2]
    above, below = (0.3 if titles else 0.08), (0.12 + 0.165 * lines if captions else 0.0)
    size = max((width + 0.1) * columns + 0.1, 4.0), rows * (above + height + below) + 0.08
    figure = style.figure(*size, "Film strips", title, None)
    for k, clip in enumerate(clips):
        row, column = divmod(k, columns)
        left, top = 0.1 + column * (width + 0.1), above + row * (above + height + below)
        axes = style.axes_at(figure, left, top, width, height)
        smoothing = "nearest" if tile * style.DPI > clip.shape[2] else "antialiased"
        _strip(axes, clip, length, None if masks is None else masks[k], smoothing)
        axes.set_xlabel(texts[k], fontsize=9)
        axes.set_title(titles[k] if titles else "", fontsize=10)
    return figure


def _strip(axes, clip, length, mask, smoothing):
    width = clip.shape[2]
    gap = max(2, width // 24)
    style.bare(axes)
    axes.imshow(style.mosaic([[*clip, *[None] * (length - len(clip))]], gap), interpolation=smoothing)
    if mask is None:
        return
    size = clip.shape[:3]
    mask = style.array(mask, "mask", ("O", *size) if mask.ndim == 4 else size) > 0
    for thing in mask.reshape(-1, *size):
        for f, shape in enumerate(thing):
            style.outline(axes, shape, f * (width + gap))
