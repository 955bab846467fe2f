"""Square frames cut out of pictures and videos, without work for what is cut off."""

import math
from collections.abc import Callable
from functools import partial, wraps

import numpy as np
import PIL
import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms.v2 import functional as tv

from gitdistill.data.pictures import pixels_of, upright
from gitdistill.data.video import FrameRule, read_clip
from gitdistill.models.preprocessing import CLIP_MEAN, fitted, resize, resize_to

PILLOW = int(PIL.__version__.partition(".")[0])
LONG = 4  # pictures that are this many times as long as they are wide are cropped before they are resized


def once_for_stills(crop: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Let `crop(frames [F, 3, H, W], ...)` crop a still that stands for all frames once."""

    @wraps(crop)
    def cropped(frames: Tensor, *options) -> Tensor:
        if len(frames) == 1 or frames.stride(0):
            return crop(frames, *options)
        return crop(frames[:1], *options).expand(len(frames), -1, -1, -1).contiguous()

    return cropped


@once_for_stills
def center_crop(frames: Tensor, size: int) -> Tensor:
    """Frames [F, 3, H, W] as [F, 3, size, size]: the shorter side resized, the centre cut out, as networks do.

    Of a long picture the rest is not computed.
    """
    height, width = frames.shape[-2:]
    if max(height, width) <= LONG * min(height, width):
        return tv.center_crop(resize(frames, size, math.inf), [size, size])
    tall, wide = fitted(height, width, size, math.inf)
    order = [(3, wide), (2, tall)]
    if PILLOW >= 13 and width < height and tall < height:  # the dimension that such a version begins with
        order.reverse()
    for dim, whole in order:
        frames = resample(frames, dim, whole, round((whole - size) / 2), size)
    return frames


@once_for_stills
def pad_to_square(frames: Tensor, size: int) -> Tensor:
    """Frames [F, 3, H, W] as [F, 3, size, size]: the longer side resized, bars of CLIP's mean colour beside the rest,
    which networks normalise to about zero."""
    tall, wide = inscribed(*frames.shape[-2:], size)
    colour = torch.tensor(CLIP_MEAN).mul(255).round().byte().view(3, 1, 1)
    square, top, left = colour.repeat(len(frames), 1, size, size), (size - tall) // 2, (size - wide) // 2
    square[..., top : top + tall, left : left + wide] = resize_to(frames, tall, wide)
    return square


def inscribed(height: int, width: int, size: int) -> tuple[int, int]:
    """Height and width after scaling the longer side to `size`; at least 1."""
    return tuple(max(1, round(side * size / max(height, width))) for side in (height, width))


def to_square(frames: Tensor, size: int, fit: str) -> Tensor:
    """Frames [F, 3, H, W] as [F, 3, size, size], as the `fit` of a `FrameRule` says."""
    return pad_to_square(frames, size) if fit == "pad" else center_crop(frames, size)


def shrunk(image: Image.Image, size: int, fast: bool = False, fit: str = "crop") -> Tensor:
    """A picture that Pillow opened as uint8 [3, H, W], its shorter side `size` (to pad: its longer side), from which
    `to_square` makes what it makes of the whole picture; one that is too long to crop so as it is. fast: other bytes,
    sooner: libjpeg decodes a JPEG at a half, a quarter or an eighth of its size if three quarters of `size` are left,
    and torch's bilinear filter does the rest."""
    if fast:
        image.draft("RGB", (3 * size // 4, 3 * size // 4))
    picture = upright(image)
    if fit == "crop" and max(picture.size) > LONG * min(picture.size):
        return pixels_of(picture)
    sides = picture.height, picture.width
    height, width = inscribed(*sides, size) if fit == "pad" else fitted(*sides, size, math.inf)
    if fast:
        return tv.resize(pixels_of(picture), [height, width])
    return pixels_of(picture.resize((width, height), Image.Resampling.BICUBIC))


def read_square(path, rule: FrameRule, size: int, draw=None, content=None, fast: bool = False) -> Tensor:
    """A file as uint8 [F, 3, size, size], as the rule and its fit say: `read_clip`, `shrunk` and `to_square` in one."""
    still = partial(shrunk, size=size, fast=fast, fit=rule.fit)
    return to_square(read_clip(path, rule, draw, content, still), size, rule.fit)


def resample(frames: Tensor, dim: int, whole: int, first: int, count: int) -> Tensor:
    """Pillow's bicubic resize of uint8 `frames` along `dim` to `whole` pixels, of which `count` from `first` on.

    The same bytes: Pillow's weights are whole numbers of 22 bits, and it rounds after each dimension.
    """
    length = frames.shape[dim]
    scale, parts = length / whole, []
    stretch = max(scale, 1.0)
    for center in (np.arange(first, first + count) + 0.5) * scale:
        start, stop = max(0, int(center - 2 * stretch + 0.5)), min(length, int(center + 2 * stretch + 0.5))
        x = np.abs((np.arange(start, stop) - center + 0.5) / stretch)
        near, far = (1.5 * x - 2.5) * x * x + 1, ((2.5 - 0.5 * x) * x - 4) * x + 2
        weights = np.where(x < 1, near, np.where(x < 2, far, 0))
        weights = np.trunc(weights / weights.sum() * 2**22 + np.copysign(0.5, weights)).astype(np.int64)
        found = np.tensordot(frames.narrow(dim, start, stop - start).numpy(), weights, (dim, 0))
        parts.append(torch.from_numpy(np.clip((found + 2**21) >> 22, 0, 255).astype(np.uint8)))
    return torch.stack(parts, dim)


@once_for_stills
def random_resized_crop(frames: Tensor, size: int, draw: np.random.RandomState) -> Tensor:
    """A random rectangle of frames [F, 3, H, W], the same in all, as [F, 3, size, size].

    Half of the area or more, if a rectangle of this shape has room for it, with sides 3 : 4 to 4 : 3 (Szegedy et al.
    2015, https://arxiv.org/abs/1409.4842, whose crops may be far smaller: these are still to show what the captions
    state). Never mirrored, since captions say left and right."""
    height, width = frames.shape[-2:]
    area, stretch = draw.uniform(0.5, 1) * height * width, (4 / 3) ** draw.uniform(-0.5, 0.5)
    tall, wide = area**0.5 / stretch, area**0.5 * stretch
    fits = min(1, height / tall, width / wide)
    tall, wide = max(1, round(fits * tall)), max(1, round(fits * wide))
    top, left = draw.randint(height - tall + 1), draw.randint(width - wide + 1)
    return tv.resized_crop(frames, top, left, tall, wide, [size, size], tv.InterpolationMode.BICUBIC, True)
