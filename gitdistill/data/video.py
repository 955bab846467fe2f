"""Pictures and videos from files, upright and in RGB: Pillow reads the first, PyAV (https://pyav.org) the second."""

import io
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor
from torchvision.transforms.v2.functional import resize

from gitdistill.models.storage import first_line

IMAGES = {
    *(".avif", ".bmp", ".heic", ".heif", ".jfif", ".jp2", ".jpe", ".jpeg", ".jpg", ".mpo", ".pgm", ".png"),
    *(".ppm", ".tga", ".tif", ".tiff", ".webp"),
}
VIDEOS = {
    *(".3gp", ".avi", ".flv", ".gif", ".m2ts", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".mts"),
    *(".ogv", ".vob", ".webm", ".wmv"),
}
EXACT = ("mov,", "matroska,")  # formats whose packets say when each frame is shown, and which are key frames
CLEAR = {"vp8": "libvpx", "vp9": "libvpx-vp9"}  # decoders of transparency, where the usual ones have none


class BrokenFile(ValueError):
    """A file that is no readable picture or video; the message names it and says why."""


@dataclass(frozen=True)
class FrameRule:
    """Which frames of a video make a clip.

    num_frames: F. A video with fewer gives some of them twice; a picture is a still video.
    sampling: "uniform": those shown in the middles of F equally long parts; "random": in each part at a random
        moment (Wang et al. 2016, https://arxiv.org/abs/1608.00859); "every": the first and then each `step`th,
        the last one repeated where the video ends too soon. The first two go by time, so that a variable frame
        rate changes nothing."""

    num_frames: int = 6
    sampling: str = "uniform"
    step: int = 1

    def __post_init__(self):
        if self.num_frames < 1 or self.step < 1:
            raise ValueError(f"num_frames and step must be at least 1, not {self.num_frames} and {self.step}")
        if self.sampling not in ("uniform", "random", "every"):
            raise ValueError(f"unknown sampling {self.sampling!r}: use uniform, random or every")

    def choose(self, times: np.ndarray, end: float, draw: np.random.RandomState | None = None) -> np.ndarray:
        """Numbers [F] of the chosen frames of a video whose frames are shown from `times` (sorted) on to `end`;
        `draw` is what "random" draws from."""
        if self.sampling == "every":
            return np.minimum(np.arange(self.num_frames) * self.step, len(times) - 1)
        places = np.full(self.num_frames, 0.5)
        if self.sampling == "random":
            places = (draw or np.random.RandomState()).random_sample(self.num_frames)
        wanted = times[0] + (np.arange(self.num_frames) + places) / self.num_frames * (end - times[0])
        return np.maximum(np.searchsorted(times, wanted, side="right") - 1, 0)


def read_clip(
    path, rule: FrameRule, draw: np.random.RandomState | None = None, content: bytes | None = None
) -> Tensor:
    """A picture or video as uint8 [F, 3, H, W], from the file or its content; `BrokenFile` if it cannot be read."""
    if Path(path).suffix.lower() in IMAGES:
        return read_image(path, content).expand(rule.num_frames, -1, -1, -1)
    return read_video(path, rule, draw, content)


def read_image(path, content: bytes | None = None) -> Tensor:
    """A picture as uint8 [3, H, W]: turned as its EXIF orientation says, grey to RGB, transparency on white, 16 bits
    to 8. `BrokenFile` when it cannot be read."""
    try:
        with Image.open(path if content is None else io.BytesIO(content)) as image:
            return torch.from_numpy(np.array(as_rgb(ImageOps.exif_transpose(image)))).permute(2, 0, 1)
    except Exception as error:  # Pillow's formats raise whatever their damage leads to
        raise BrokenFile(f"{path} is no readable picture: {_reason(error)}") from None


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
    return image.convert("RGB")


def read_video(
    path, rule: FrameRule, draw: np.random.RandomState | None = None, content: bytes | None = None
) -> Tensor:
    """Frames of a video as uint8 [F, 3, H, W], upright; `BrokenFile` when it cannot be read to the end."""
    pyav()
    try:
        with _opened(path, content) as (container, stream):
            if container.format.name == "gif":
                check_gif(Path(path).read_bytes() if content is None else content)
            times, keys, end = timetable(container, stream)
            frames = None
            if container.format.name.startswith(EXACT):
                frames = _jump(container, stream, times, keys, rule.choose(times, end, draw))
        frames = frames or _watch(path, content, rule, draw)
        size = list(frames[0].shape[1:])  # a video may change it
        return torch.stack([f if list(f.shape[1:]) == size else resize(f, size) for f in frames])
    except Exception as error:  # as with pictures
        raise BrokenFile(f"{path} is no readable video: {_reason(error)}") from None


def pyav():
    """PyAV; ImportError in one line where it is not installed."""
    try:
        import av
    except ImportError:
        raise ImportError("videos need PyAV: pip install -e '.[real]'") from None
    return av


@contextmanager
def _opened(path, content: bytes | None):
    """(container, stream) of a file or of what was in it; damage to a frame is an error, not painted over."""
    with pyav().open(str(path) if content is None else io.BytesIO(content)) as container:
        stream = video_stream(container)
        stream.codec_context.options = {"err_detect": "explode"}
        yield container, stream


def video_stream(container):
    """The first stream of moving pictures, not of a cover; ValueError when there is none."""
    cover = pyav().stream.Disposition.attached_pic
    streams = [stream for stream in container.streams.video if not stream.disposition & cover]
    if not streams:
        raise ValueError("it has no video stream")
    streams[0].thread_type = "NONE"  # loaders run several processes already
    return streams[0]


def decoded(container, stream):
    """The frames of a stream from where the container is, in the order in which they are shown."""
    library = CLEAR.get(stream.codec_context.name) if stream.metadata.get("alpha_mode") == "1" else None
    if library is None:
        return container.decode(stream)
    context = pyav().CodecContext.create(library, "r")
    packets = (packet if packet.size else None for packet in container.demux(stream))
    return (frame for packet in packets for frame in context.decode(packet))


def timetable(container, stream) -> tuple[np.ndarray, np.ndarray, float]:
    """When each frame is shown (sorted), which of them are key frames, and when the last one ends, in the stream's own
    units. Nothing is decoded. ValueError for a file that was cut off."""
    every = [packet for packet in container.demux() if packet.size]
    packets = [packet for packet in every if packet.stream.index == stream.index and not packet.is_discard]
    if not packets:
        raise ValueError("it holds no frames")
    if any(packet.is_corrupt for packet in packets):
        raise ValueError("it was cut off or is damaged")
    check_length(container, every, 1 / (stream.average_rate or 25))
    known = all(packet.pts is not None for packet in packets)
    times = np.array([packet.pts for packet in packets] if known else range(len(packets)), dtype=np.int64)
    keys = np.array([packet.is_keyframe for packet in packets])
    order = np.argsort(times, kind="stable")
    last = packets[order[-1]].duration if known else 1
    return times[order], keys[order], _end(times[order], last)


def _end(times: np.ndarray, last: int | None = None) -> float:
    """When the last frame ends: after its duration, or else after a usual one."""
    return float(times[-1] + (last or (int(np.median(np.diff(times))) if len(times) > 1 else 1)))


def check_length(container, packets, usual) -> None:
    """A ValueError for a file whose packets, sound included, end long before the duration that it states; `usual` is
    how many seconds a packet lasts that does not say so."""
    timed = [packet for packet in packets if packet.pts is not None]
    if not container.duration or not timed:
        return
    starts = min(packet.pts * packet.time_base for packet in timed)
    lasting = [packet.duration * packet.time_base if packet.duration else usual for packet in timed]
    ends = max(packet.pts * packet.time_base + seconds for packet, seconds in zip(timed, lasting))
    # Matroska and FLV count from zero, others from the first packet.
    share = float(max(ends - starts, ends)) / (container.duration / 1e6)
    if share < 0.9:
        raise ValueError(f"it ends after {share:.0%} of its duration")


def check_gif(content: bytes) -> None:
    """A ValueError for a GIF that was cut off, which decoders pass over: its blocks must lead to its end mark, see
    https://www.w3.org/Graphics/GIF/spec-gif89a.txt"""

    def colours(flags):
        return 3 << (flags & 7) + 1 if flags & 0x80 else 0

    try:
        place = 13 + colours(content[10])
        while content[place] != 0x3B:
            # a picture: its descriptor, colours and code size; else an extension: its mark and kind
            place += 11 + colours(content[place + 9]) if content[place] == 0x2C else 2
            while content[place]:
                place += 1 + content[place]
            place += 1
    except IndexError:
        raise ValueError("it was cut off") from None


def _jump(container, stream, times, keys, chosen) -> list[Tensor] | None:
    """The frames with these numbers (ascending), each [3, H, W]; jumps over what no chosen frame needs. None when
    anything is not as the packets promised."""
    found, number, source = {}, -2, iter(())
    try:
        for wanted in sorted(set(chosen.tolist())):
            starts = np.flatnonzero(keys[: wanted + 1])
            if not len(starts):
                return None
            if starts[-1] > number + 1:  # a later key frame: what lies before need not be decoded
                container.seek(int(times[starts[-1]]), stream=stream)
                source = decoded(container, stream)
            for frame in source:
                number = -1 if frame.pts is None else int(np.searchsorted(times, frame.pts))
                if number >= wanted:
                    break
            if number != wanted or times[number] != frame.pts or frame.is_corrupt:
                return None
            found[wanted] = upright(frame)
    except pyav().error.FFmpegError:
        return None
    return [found[wanted] for wanted in chosen.tolist()]


def _watch(path, content, rule: FrameRule, draw) -> list[Tensor]:
    """The frames that the rule chooses, each [3, H, W], of a file that must be decoded to know what is in it."""
    with _opened(path, content) as (container, stream):
        times = [frame.pts for frame in decoded(container, stream)]
    if not times:
        raise ValueError("no frame of it can be decoded")
    if None in times or np.diff(times).min(initial=1) < 1:  # then only their order is known
        times = range(len(times))
    times = np.array(times, dtype=np.int64)
    chosen = rule.choose(times, _end(times), draw).tolist()
    found = {}
    with _opened(path, content) as (container, stream):
        for number, frame in enumerate(decoded(container, stream)):
            if number in chosen:
                if frame.is_corrupt:
                    raise ValueError(f"frame {number + 1} of {len(times)} is damaged")
                found[number] = upright(frame)
            if number == max(chosen):
                break
    return [found[number] for number in chosen]


def play(path):
    """Yields (seconds since the first frame, frame) of a video file or camera; `BrokenFile` when it cannot go on."""
    av, first, count = pyav(), None, 0
    try:
        with av.open(str(path), format="v4l2" if str(path).startswith("/dev/video") else None) as container:
            stream = video_stream(container)
            for count, frame in enumerate(decoded(container, stream), 1):
                first = frame.pts if first is None else first
                rate = stream.average_rate or 25  # where a frame does not say when it is shown
                seconds = (count - 1) / rate if frame.pts is None else (frame.pts - first) * stream.time_base
                yield float(seconds), frame
        if not count:
            raise ValueError("no frame of it can be decoded")
    except (av.error.FFmpegError, OSError, ValueError) as error:
        raise BrokenFile(f"{path} is no readable video: {_reason(error)}") from None


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
    if isinstance(error, UnidentifiedImageError):  # whose own words name the file again, or an object
        return "what is in it is of no known format"
    return getattr(error, "strerror", None) or first_line(error)
