"""Pictures and videos from files, upright and in RGB: Pillow reads the first, PyAV (https://pyav.org) the second.

Letters in shapes: F frames, H and W of the file.
"""

import io
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

IMAGES = {".bmp", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"}
VIDEOS = {".avi", ".gif", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".webm"}
SAMPLINGS = ("uniform", "random", "every")


class BrokenFile(ValueError):
    """A file that is no readable picture or video; the message names it and says why."""


@dataclass(frozen=True)
class FrameRule:
    """Which frames of a video make a clip.

    frames: F, how many. A video with fewer gives some of them twice; a picture is a still video.
    sampling: "uniform": those shown in the middles of F equally long parts; "random": in each part at a random
        moment (Wang et al. 2016, https://arxiv.org/abs/1608.00859); "every": the first and then each `step`th,
        the last one repeated where the video ends too soon. The first two go by time, so that a variable frame
        rate changes nothing.
    step: of "every".
    """

    frames: int = 6
    sampling: str = "uniform"
    step: int = 1

    def __post_init__(self):
        if self.frames < 1 or self.step < 1:
            raise ValueError(f"frames and step must be at least 1, not {self.frames} and {self.step}")
        if self.sampling not in SAMPLINGS:
            raise ValueError(f"unknown sampling {self.sampling!r}: use one of {', '.join(SAMPLINGS)}")

    def choose(self, times: np.ndarray, end: float, draw: np.random.RandomState | None = None) -> np.ndarray:
        """Numbers [F] of the chosen frames of a video whose frames are shown from `times` (sorted) on to `end`.

        `draw` is what "random" draws from.
        """
        if self.sampling == "every":
            return np.minimum(np.arange(self.frames) * self.step, len(times) - 1)
        places = np.full(self.frames, 0.5)
        if self.sampling == "random":
            places = (draw or np.random.RandomState()).random_sample(self.frames)
        wanted = times[0] + (np.arange(self.frames) + places) / self.frames * (end - times[0])
        return np.maximum(np.searchsorted(times, wanted, side="right") - 1, 0)


def is_image(path) -> bool:
    return Path(path).suffix.lower() in IMAGES


def read_clip(
    path, rule: FrameRule, draw: np.random.RandomState | None = None, content: bytes | None = None
) -> Tensor:
    """A picture or video as uint8 [F, 3, H, W], from the file or from what was in it; `BrokenFile` when it cannot
    be read."""
    if is_image(path):
        return read_image(path, content).expand(rule.frames, -1, -1, -1)
    return read_video(path, rule, draw, content)


def read_image(path, content: bytes | None = None) -> Tensor:
    """A picture as uint8 [3, H, W]: turned as its EXIF orientation says, grey to RGB, transparency on white,
    16 bits to 8. `BrokenFile` when it cannot be read."""
    try:
        with Image.open(path if content is None else io.BytesIO(content)) as image:
            return torch.from_numpy(np.array(as_rgb(ImageOps.exif_transpose(image)))).permute(2, 0, 1)
    except Exception as error:  # Pillow's formats raise whatever their damage leads to
        raise BrokenFile(f"{path} is no readable picture: {_reason(error)}") from None


def as_rgb(image: Image.Image) -> Image.Image:
    """Any picture of Pillow's in RGB; ValueError for one of floating-point numbers, whose scale nobody knows."""
    if image.mode == "F":
        raise ValueError("it holds floating-point numbers, without a scale")
    if image.mode.startswith("I"):  # 16 bits, whatever they are kept in
        return Image.fromarray((np.asarray(image).clip(0, 65535) / 257).round().astype(np.uint8)).convert(
            "RGB"
        )
    if image.has_transparency_data:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    return image.convert("RGB")


def read_video(
    path, rule: FrameRule, draw: np.random.RandomState | None = None, content: bytes | None = None
) -> Tensor:
    """Frames of a video as uint8 [F, 3, H, W], upright; `BrokenFile` when it cannot be read to the end."""
    import av

    try:
        with av.open(str(path) if content is None else io.BytesIO(content)) as container:
            stream = video_stream(container)
            times, keys, end = timetable(container, stream)
            chosen = rule.choose(times, end, draw)
            return torch.stack(_decode(container, stream, times, keys, chosen))
    except (av.error.FFmpegError, ValueError, OSError) as error:
        raise BrokenFile(f"{path} is no readable video: {_reason(error)}") from None


def video_stream(container):
    """The first stream of moving pictures; ValueError when there is none."""
    if not container.streams.video:
        raise ValueError("it has no video stream")
    stream = container.streams.video[0]
    stream.thread_type = "NONE"  # loaders run several processes already
    return stream


def timetable(container, stream) -> tuple[np.ndarray, np.ndarray, float]:
    """When each frame is shown (sorted), which of them are key frames, and when the last one ends.

    All in the stream's own units, read without decoding. ValueError for a file that was cut off.
    """
    every = [packet for packet in container.demux() if packet.size]
    packets = [packet for packet in every if packet.stream.index == stream.index]
    if not packets:
        raise ValueError("it holds no frames")
    if any(packet.is_corrupt for packet in packets):
        raise ValueError("it was cut off or is damaged")
    check_length(container, every)
    # Some containers (AVI) know only the order.
    known = all(packet.pts is not None for packet in packets)
    times = np.array([packet.pts for packet in packets] if known else range(len(packets)), dtype=np.int64)
    keys = np.array([packet.is_keyframe for packet in packets])
    order = np.argsort(times, kind="stable")
    times, keys = times[order], keys[order]
    last = packets[order[-1]].duration if known else 1
    end = times[-1] + (last or (int(np.median(np.diff(times))) if len(times) > 1 else 1))
    return times, keys if known else np.zeros(len(times), dtype=bool), float(end)


def check_length(container, packets) -> None:
    """A ValueError for a file whose packets, sound included, end long before the duration that it states."""
    timed = [packet for packet in packets if packet.pts is not None]
    if not container.duration or not timed:
        return
    starts = min(packet.pts * packet.time_base for packet in timed)
    ends = max((packet.pts + (packet.duration or 0)) * packet.time_base for packet in timed)
    share = float(ends - starts) / (container.duration / 1e6)
    if share < 0.9:
        raise ValueError(f"it ends after {share:.0%} of its duration")


def _decode(container, stream, times, keys, chosen) -> list[Tensor]:
    """The frames with these numbers (ascending), each [3, H, W]; jumps over what no chosen frame needs."""
    container.seek(int(times[0]), stream=stream)
    source, found, number = container.decode(stream), {}, -1
    for wanted in sorted(set(chosen.tolist())):
        starts = np.flatnonzero(keys[: wanted + 1])
        if len(starts) and starts[-1] > number + 1:  # a later key frame: what lies before need not be decoded
            container.seek(int(times[starts[-1]]), stream=stream)
            source, number = container.decode(stream), starts[-1] - 1
        for frame in source:
            number = int(np.searchsorted(times, frame.pts)) if keys.any() else number + 1
            if number >= wanted:
                break
        if number < wanted:
            raise ValueError(f"frame {wanted + 1} of {len(times)} cannot be decoded")
        if frame.is_corrupt:
            raise ValueError(f"frame {wanted + 1} of {len(times)} is damaged")
        found[wanted] = upright(frame)
    return [found[wanted] for wanted in chosen.tolist()]


def upright(frame) -> Tensor:
    """A decoded frame as uint8 [3, H, W], turned as the file says it is to be shown, transparency on white."""
    turns = round(frame.rotation / 90)  # counter-clockwise, as in numpy
    if any(component.is_alpha for component in frame.format.components):
        pixels = np.array(as_rgb(Image.fromarray(frame.to_ndarray(format="rgba"))))
    else:
        pixels = frame.to_ndarray(format="rgb24")
    pixels = np.rot90(pixels, turns)
    return torch.from_numpy(np.ascontiguousarray(pixels)).permute(2, 0, 1)


def _reason(error: BaseException) -> str:
    text = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return text.splitlines()[0]
