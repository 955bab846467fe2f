"""Small inputs for pictures, and what a picture shows, read back."""

import io

import matplotlib as mpl
import numpy as np
import torch
from PIL import Image

from gitdistill.viz import plots

WORDS = ["a", "red", "bell"]
VOCABULARY = ["[PAD]", "[CLS]", "[SEP]", "bell", "wheel", "star", "exclamation"]


def frames(count=4, size=24):
    return torch.randint(0, 256, (count, 3, size, size), generator=torch.manual_seed(0), dtype=torch.uint8)


def black(count=4, size=24):
    return torch.zeros(count, 3, size, size, dtype=torch.uint8)


def pointer(shape, at):
    """A map that is 0 but for 1 in one cell."""
    values = np.zeros(shape)
    values[at] = 1.0
    return values


def attention(words=3, count=4, cells=6, seed=1):
    values = torch.rand(words, count, cells, cells, generator=torch.manual_seed(seed)) ** 4
    return values / values.sum((1, 2, 3), keepdim=True)


def trace():
    """Two beams, two steps, by hand: token 3 leads at first, but 4 then 2 (the end) wins after the penalty."""
    rows = [  # step, parent, token, score, beam, kept, finished, final
        (0, 0, 3, -0.5, 0, True, False, np.nan),
        (0, 0, 4, -0.9, 1, True, False, np.nan),
        (0, 0, 5, -2.0, -1, False, False, np.nan),
        (0, 0, 6, -3.0, -1, False, False, np.nan),
        (1, 1, 2, -1.0, -1, False, True, -0.50),
        (1, 0, 2, -1.2, -1, False, True, -0.60),
        (1, 1, 5, -4.0, 0, True, False, np.nan),
    ]
    names = ("step", "parent", "token", "score", "beam", "kept", "finished", "final")
    table = {name: torch.tensor(column) for name, column in zip(names, zip(*rows))}
    return table | {"clip": torch.zeros(len(rows), dtype=torch.long)}


def texts(figure):
    return [text.get_text() for text in figure.findobj(mpl.text.Text) if text.get_text()]


def pixels(picture, mode="RGB"):
    """A figure, card or explorer as an array of whole numbers."""
    if hasattr(picture, "picture"):
        picture = bytes(picture.picture.value)
    data = picture if isinstance(picture, bytes) else plots.png(picture, scale=1)
    return np.asarray(Image.open(io.BytesIO(data)).convert(mode), dtype=int)
