"""Small files for the tests: crops of a photograph that matplotlib ships, and videos encoded from them."""

from fractions import Fraction

import av
import matplotlib
import numpy as np
from PIL import Image


def photo(width=64, height=48) -> Image.Image:
    """Grace Hopper, in RGB."""
    path = matplotlib.get_data_path() + "/sample_data/grace_hopper.jpg"
    return Image.open(path).convert("RGB").resize((width, height))


def grey(value, width=64, height=48):
    return np.full((height, width, 3), value, dtype=np.uint8)


def shades(count) -> list:
    """Frames that get lighter, 10 levels a frame: which one it is can be read off its mean."""
    return [grey(10 * i) for i in range(count)]


def video(path, frames, rate=10, times=None, codec="libx264", gap=4, rotation=0):
    """Encode frames [H, W, 3], one each 1/rate seconds or at `times` (seconds), a key frame every `gap`."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=rate)
        stream.height, stream.width = frames[0].shape[:2]
        stream.pix_fmt = "yuv420p"
        stream.codec_context.gop_size = gap
        stream.codec_context.time_base = Fraction(1, 1000)
        if rotation:
            stream.set_display_rotation(rotation)
        for number, frame in enumerate(frames):
            picture = av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")
            seconds = number / rate if times is None else times[number]
            picture.pts, picture.time_base = round(seconds * 1000), Fraction(1, 1000)
            container.mux(stream.encode(picture))
        container.mux(stream.encode())
    return path
