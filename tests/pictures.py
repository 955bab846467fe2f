"""Small files for the tests: crops of a photograph that matplotlib ships, and videos encoded from them."""

import json
from fractions import Fraction

import av
import matplotlib
import numpy as np
from PIL import Image

LAYOUTS = {3: "rgb24", 4: "rgba"}


def photo(width=64, height=48) -> Image.Image:
    """Grace Hopper, in RGB."""
    path = matplotlib.get_data_path() + "/sample_data/grace_hopper.jpg"
    return Image.open(path).convert("RGB").resize((width, height))


def captioned(folder, captions) -> str:
    """A folder of pictures "0.png", "1.png", no two alike, with these lists of captions."""
    folder.mkdir(exist_ok=True)
    for number in range(len(captions)):
        photo(64 + 8 * number, 48).save(folder / f"{number}.png")
    rows = [{"file": f"{number}.png", "captions": texts} for number, texts in enumerate(captions)]
    (folder / "captions.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return str(folder)


def grey(value, width=64, height=48):
    return np.full((height, width, 3), value, dtype=np.uint8)


def shades(count) -> list:
    """Frames that get lighter, 10 levels a frame: which one it is can be read off its mean."""
    return [grey(10 * i) for i in range(count)]


def video(
    path, frames, rate=10, times=None, codec="libx264", gap=4, rotation=0, pixels="yuv420p", units=1000,
    aspect=None, **how,
):  # fmt: skip
    """Encode frames [H, W, 3 or 4], one each 1/rate seconds or at `times` (seconds), a key frame every `gap`.

    pixels: how they are kept. aspect: of each of them. units: of time in a second. how: options of the container."""
    with av.open(str(path), "w", options=how) as container:
        stream = container.add_stream(codec, rate=rate)
        stream.height, stream.width = frames[0].shape[:2]
        stream.pix_fmt = pixels
        stream.codec_context.gop_size = gap
        stream.codec_context.time_base = Fraction(1, units)
        if aspect:
            stream.codec_context.sample_aspect_ratio = aspect
        if rotation:
            stream.set_display_rotation(rotation)
        for number, frame in enumerate(frames):
            picture = av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format=LAYOUTS[frame.shape[2]])
            seconds = number / rate if times is None else times[number]
            picture.pts, picture.time_base = round(seconds * units), Fraction(1, units)
            container.mux(stream.encode(picture))
        container.mux(stream.encode())
    return path
