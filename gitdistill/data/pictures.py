"""Pictures from files, upright and in RGB, read by Pillow; still ones and moving ones (animated WebP, PNG, AVIF)."""

import io
import math
import os
import stat
import warnings
from collections.abc import Callable
from contextlib import contextmanager
from itertools import accumulate

import numpy as np
import torch
from PIL import Image, ImageOps, ImageSequence, UnidentifiedImageError
from torch import Tensor

from gitdistill.models.storage import first_line

IMAGES = {
    *(".avif", ".bmp", ".heic", ".heif", ".jfif", ".jp2", ".jpe", ".jpeg", ".jpg", ".mpo", ".pgm", ".png"),
    *(".ppm", ".tga", ".tif", ".tiff", ".webp"),
}
# The formats that are tried, whatever a file is called: none of them needs another program, or another file.
FORMATS = "AVIF", "BMP", "GIF", "HEIF", "JPEG", "JPEG2000", "PNG", "PPM", "TIFF", "WEBP"
MOVING = "AVIF", "PNG", "WEBP"  # where several pictures are a video, read here; PyAV reads GIF better
MANY_PIXELS, STRIP = 16_000_000, 256  # what is larger is reduced first; rows that are copied at a time
MOST_PIXELS = 100_000_000  # of a picture; a larger one is refused before any memory is taken for it


class BrokenFile(ValueError):
    """A file that is no readable picture or video; the message names it and says why."""


def check_size(width: int, height: int) -> None:
    """A ValueError for a picture of more than `MOST_PIXELS`, or of none."""
    if not 0 < width * height <= MOST_PIXELS:
        raise ValueError(f"it has {width} x {height} pixels; 1 to {MOST_PIXELS:,} are read")


def check_regular(path) -> None:
    """An OSError for what is no regular file, or no link to one: a pipe or a device may never end."""
    if not stat.S_ISREG(os.stat(path).st_mode):
        raise OSError("it is no regular file")


@contextmanager
def opened(path, content: bytes | None = None):
    """Pillow's picture, of which only the header has been read; UnidentifiedImageError if it is none."""
    if content is None:
        check_regular(path)
    Image.init()  # registers the formats
    formats = [name for name in FORMATS if name in Image.OPEN]
    if os.fspath(path).lower().endswith(".tga"):  # nothing in the file says so
        formats.append("TGA")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # `check_size` is the limit here
        picture = Image.open(path if content is None else io.BytesIO(content), formats=formats)
    with picture as image:
        check_size(*image.size)
        yield image


def as_tensor(image: Image.Image) -> Tensor:
    """A picture that Pillow opened as uint8 [3, H, W]: turned as its EXIF orientation says, grey to RGB, transparency
    on white, 16 bits to 8; see `upright`."""
    return pixels_of(upright(image))


def pixels_of(rgb: Image.Image) -> Tensor:
    """A picture in RGB as uint8 [3, H, W]."""
    if rgb.height <= STRIP:
        return torch.from_numpy(np.array(rgb)).permute(2, 0, 1)
    pixels = np.empty((rgb.height, rgb.width, 3), np.uint8)
    for top in range(0, rgb.height, STRIP):  # Pillow copies what it hands over
        pixels[top : top + STRIP] = rgb.crop((0, top, rgb.width, min(top + STRIP, rgb.height)))
    return torch.from_numpy(pixels).permute(2, 0, 1)


def upright(image: Image.Image) -> Image.Image:
    """A picture that Pillow opened in RGB, its EXIF orientation applied; one of more than `MANY_PIXELS` at a half, a
    third, ... of its size."""
    factor = math.ceil((image.width * image.height / MANY_PIXELS) ** 0.5)
    if factor > 1:
        image.draft("RGB", (image.width // factor, image.height // factor))  # JPEG decodes no more than that
        factor = math.ceil((image.width * image.height / MANY_PIXELS) ** 0.5)
    ImageOps.exif_transpose(image, in_place=True)
    return as_rgb(image.reduce(factor) if factor > 1 and image.mode in ("L", "RGB") else image)


def as_rgb(image: Image.Image) -> Image.Image:
    """Any picture of Pillow's in RGB; ValueError for one of numbers whose scale nobody knows."""
    if image.mode == "F":
        raise ValueError("it holds floating-point numbers, without a scale")
    if image.mode.startswith("I"):  # 16 bits, whatever they are kept in
        numbers = np.asarray(image)
        if numbers.min() < 0 or numbers.max() > 65535:
            raise ValueError("it holds whole numbers of more than 16 bits, without a scale")
        return Image.fromarray((numbers / 257).round().astype(np.uint8)).convert("RGB")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    return image if image.mode == "RGB" else image.convert("RGB")  # no copy


def moves(image: Image.Image) -> bool:
    """Whether a picture is a video that `read_moving` reads."""
    return image.format in MOVING and getattr(image, "is_animated", False)


def read_moving(image: Image.Image, choose: Callable[[np.ndarray, float], np.ndarray]) -> Tensor:
    """Frames [F, 3, H, W] of an animated picture: those whose numbers `choose` gives for their times and the end."""
    lasting = []
    for frame in ImageSequence.Iterator(image):
        frame.load()  # WebP and AVIF tell how long a frame lasts only then
        lasting.append(frame.info.get("duration") or 100)
    *times, end = accumulate(lasting, initial=0)
    chosen = choose(np.array(times), end).tolist()
    frames = enumerate(ImageSequence.Iterator(image))
    found = {number: as_tensor(frame.copy()) for number, frame in frames if number in chosen}
    return torch.stack([found[number] for number in chosen])


def reason(error: BaseException) -> str:
    """An error's reason, in one line, without the file's name."""
    if isinstance(error, UnidentifiedImageError):  # whose own words name the file again, or an object
        return "what is in it is of no known format"
    return getattr(error, "strerror", None) or first_line(error)
