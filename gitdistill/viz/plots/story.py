"""One clip, captioned word by word by several networks: the pictures of an animation."""

import numpy as np

from gitdistill.viz.plots import style

WRONG = "#C00000"
POINTS = 10
ADVANCE = POINTS * style.LETTER  # points, of a letter


def story(frames, models, title=None, repeats=2):
    """Pictures for `animation`: the clip plays, and each network writes its caption with its attention on the clip.

    frames: [F, 3, H, W]. models: label -> (T words, attention [T, F, h, w], T booleans: is the word false?). A false
    word is red and underlined. Each word is shown in `repeats` frames; each map is on its own scale.
    """
    frames, shown = style.photos(frames), {}
    for label, (words, attention, wrong) in style.some(models, "models").items():
        maps = style.array(attention, f"attention of {label}", (len(words), len(frames), "h", "w"))
        shown[label] = words, maps, style.one_each(list(wrong), f"wrong words of {label}", len(words))
    longest = max(len(words) for words, _, _ in shown.values())
    moments = [(word, word * repeats + k) for word in range(longest) for k in range(repeats)]
    return [_moment(frames, shown, word, at, title) for word, at in [*moments, (longest, longest * repeats)]]


@style.plot
def _moment(frames, models, word, at, title):
    """The picture at one word; after the last one without a map."""
    side, frame = 2.6, frames[at % len(frames)]
    width = (side + 0.35) * len(models) + 0.1
    figure = style.figure(width, side + 0.95, "Captions word by word", title, None)
    for k, (label, (words, maps, wrong)) in enumerate(models.items()):
        left = 0.2 + k * (side + 0.35)
        axes = style.axes_at(figure, left, 0.28, side, side)
        style.bare(axes)
        writes = word < len(words)
        axes.imshow(heated(frame, maps[word, at % len(frames)], maps[word].max()) if writes else frame)
        axes.set_title(label, loc="left")
        axes = style.axes_at(figure, left, side + 0.33, side, 0.6)
        axes.set(xlim=(0, side * 72), ylim=(0.6 * 72, 0))
        axes.axis("off")
        _write(axes, words[: word + 1], wrong, int(side * 72 / ADVANCE))
    return figure


def heated(frame, values, top):
    """A map [h, w] with largest value `top` over a frame [H, W, 3]: the more, the less of the frame is seen."""
    alpha = 0.85 * style.resized(np.clip(values / max(top, 1e-9), 0, 1), *frame.shape[:2])[..., None]
    return np.clip(alpha * np.array(style.PINK) + (1 - alpha) * frame, 0, 1)


def _write(axes, words, wrong, letters):
    """Words in letters of one width, wrapped; false ones red and underlined."""
    row = column = 0
    for word, false in zip(words, wrong):
        if column and column + len(word) > letters:
            row, column = row + 1, 0
        x, y = ADVANCE * column, 12 + 14 * row
        look = {"color": WRONG, "weight": "bold"} if false else {}
        axes.text(x, y, word, family="monospace", fontsize=POINTS, **look)
        if false:
            axes.plot([x, x + ADVANCE * len(word)], [y + 2.5, y + 2.5], color=WRONG, linewidth=1.2)
        column += len(word) + 1
