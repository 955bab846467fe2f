"""Videos from files, upright and in RGB, read by PyAV (https://pyav.org); and clips from whatever a file holds."""

import io
import mmap
import os
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from functools import partial
from types import SimpleNamespace
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor
from torchvision.transforms.v2.functional import resize

from gitdistill.counts import check_counts
from gitdistill.data.pictures import (
    IMAGES,
    BrokenFile,
    as_rgb,
    as_tensor,
    check_regular,
    check_size,
    moves,
    opened,
    read_moving,
    reason,
)

VIDEOS = {
    *(".3gp", ".avi", ".flv", ".gif", ".m2ts", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".mts"),
    *(".ogv", ".vob", ".webm", ".wmv"),
}
# What FFmpeg may find in a file, whatever it is called, and what it may open: that file, no list of others, no address.
ALLOWED = {
    "format_whitelist": "asf,avi,flv,gif,h264,hevc,ivf,matroska,mov,mpeg,mpegts,mpegvideo,ogg,webm",
    "protocol_whitelist": "file",
}
CAMERA = "/dev/video"
EXACT = ("mov,", "matroska,")  # formats whose packets say when each frame is shown, and which are key frames
CLEAR = {"vp8": "libvpx", "vp9": "libvpx-vp9"}  # decoders of transparency, where the usual ones have none


@dataclass(frozen=True)
class FrameRule:
    """Which frames of a video make a clip, and how they become square.

    num_frames: F. A video with fewer gives some of them twice; a picture is a still video.
    sampling: "uniform": those shown in the middles of F equally long parts; "random": in each part at a random
        moment (Wang et al. 2016, https://arxiv.org/abs/1608.00859); "every": the first and then each `step`th,
        the last one repeated where the video ends too soon. The first two go by time, so that a variable frame
        rate changes nothing.
    fit: "crop": the centre of the frames; "pad": all of them, see `crops.pad_to_square`."""

    num_frames: int = 6
    sampling: str = "uniform"
    step: int = 1
    fit: str = "crop"

    def __post_init__(self):
        check_counts(num_frames=self.num_frames, step=self.step)
        if self.sampling not in ("uniform", "random", "every"):
            raise ValueError(f"unknown sampling {self.sampling!r}: use uniform, random or every")
        if self.fit not in ("crop", "pad"):
            raise ValueError(f'fit is "crop" or "pad", not {self.fit!r}')

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
    path,
    rule: FrameRule,
    draw: np.random.RandomState | None = None,
    content: bytes | None = None,
    still: Callable[[Image.Image], Tensor] = as_tensor,
) -> Tensor:
    """A picture or video as uint8 [F, 3, H, W], from the file or its content; `BrokenFile` if it cannot be read.
    `still` makes [3, H, W] of a picture that is no video.

    Which of them it is, its content says; the name only where that is damaged."""
    kind = "picture" if os.path.splitext(path)[1].lower() in IMAGES else "video"
    try:
        with opened(path, content) as image:
            if moves(image):
                return read_moving(image, lambda times, end: rule.choose(times, end, draw))
            if image.format != "GIF":
                return still(image).expand(rule.num_frames, -1, -1, -1)
    except UnidentifiedImageError as error:
        try:
            return read_video(path, rule, draw, content)
        except (BrokenFile, ImportError):
            if kind == "video":
                raise
        raise BrokenFile(f"{path} is no readable picture: {reason(error)}") from None
    except Exception as error:  # Pillow's formats raise whatever their damage leads to
        raise BrokenFile(f"{path} is no readable {kind}: {reason(error)}") from None
    return read_video(path, rule, draw, content)


def read_video(
    path, rule: FrameRule, draw: np.random.RandomState | None = None, content: bytes | None = None
) -> Tensor:
    """Frames of a video as uint8 [F, 3, H, W], upright; `BrokenFile` when it cannot be read to the end."""
    pyav()
    try:
        with _opened(path, content) as (container, stream):
            if container.format.name == "gif":
                check_gif(path, content)
            times, keys, end = timetable(container, stream)
            frames = None
            if container.format.name.startswith(EXACT):
                frames = _jump(container, stream, times, keys, rule.choose(times, end, draw))
        frames = frames or _watch(path, content, rule, draw)
        size = list(frames[0].shape[1:])  # a video may change it
        return torch.stack([f if list(f.shape[1:]) == size else resize(f, size) for f in frames])
    except Exception as error:  # as with pictures
        raise BrokenFile(f"{path} is no readable video: {reason(error)}") from None


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
    with _container(path, content) as container:
        stream = video_stream(container)
        stream.codec_context.options = {"err_detect": "explode"}
        yield container, stream


@contextmanager
def _container(path, content: bytes | None = None):
    """A file, or what was in it, as PyAV's container. FFmpeg is not told the name, which could be an address to it."""
    if content is None:
        check_regular(path)
    with open(path, "rb") if content is None else io.BytesIO(content) as file:
        nameless = SimpleNamespace(read=file.read, seek=file.seek, tell=file.tell)
        with pyav().open(nameless, options=ALLOWED) as container:
            yield container


def video_stream(container):
    """The first stream of moving pictures, not of a cover; ValueError when there is none."""
    cover = pyav().stream.Disposition.attached_pic
    streams = [stream for stream in container.streams.video if not stream.disposition & cover]
    if not streams:
        raise ValueError("it has no video stream")
    check_size(streams[0].width, streams[0].height)
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


class Packet(NamedTuple):
    """What the timetable needs of a packet: not what it holds, which may be gigabytes in all."""

    stream: int
    pts: int | None
    duration: int | None
    time_base: Fraction
    is_keyframe: bool
    is_corrupt: bool
    is_discard: bool

    @classmethod
    def of(cls, packet) -> "Packet":
        return cls(packet.stream.index, *(getattr(packet, name) for name in cls._fields[1:]))


def timetable(container, stream) -> tuple[np.ndarray, np.ndarray, float]:
    """When each frame is shown (sorted), which of them are key frames, and when the last one ends, in the stream's own
    units. Nothing is decoded. ValueError for a file that was cut off."""
    every = [Packet.of(packet) for packet in container.demux() if packet.size]
    packets = [packet for packet in every if packet.stream == stream.index and not packet.is_discard]
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


def check_gif(path, content: bytes | None = None) -> None:
    """A ValueError for a GIF that was cut off, which decoders pass over: its blocks must lead to its end mark, or to
    the end of the file, see https://www.w3.org/Graphics/GIF/spec-gif89a.txt"""
    if content is None:
        with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            return check_gif(path, content)

    def colours(flags):
        return 3 << (flags & 7) + 1 if flags & 0x80 else 0

    try:
        place = 13 + colours(content[10])
        while place < len(content) and content[place] != 0x3B:
            if not content[place]:  # padding between blocks
                place += 1
                continue
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
            found[wanted] = upright(frame, stream.sample_aspect_ratio)
    except pyav().error.FFmpegError:
        return None
    return [found[wanted] for wanted in chosen.tolist()]


def _watch(path, content, rule: FrameRule, draw) -> list[Tensor]:
    """The frames that the rule chooses, each [3, H, W], of a file that must be decoded to know what is in it."""
    with _opened(path, content) as (container, stream):
        times, last = [], None
        for frame in decoded(container, stream):
            times.append(frame.pts)
            last = frame.duration
    if not times:
        raise ValueError("no frame of it can be decoded")
    if None in times or np.diff(times).min(initial=1) < 1:  # then only their order is known
        times, last = range(len(times)), None
    times = np.array(times, dtype=np.int64)
    chosen = rule.choose(times, _end(times, last), draw).tolist()
    found = {}
    with _opened(path, content) as (container, stream):
        for number, frame in enumerate(decoded(container, stream)):
            if number in chosen:
                if frame.is_corrupt:
                    raise ValueError(f"frame {number + 1} of {len(times)} is damaged")
                found[number] = upright(frame, stream.sample_aspect_ratio)
            if number == max(chosen):
                break
    return [found[number] for number in chosen]


def play(path):
    """Yields (seconds since the first frame, a function that gives the frame as `upright` does) of a video file or
    camera; `BrokenFile` when it cannot go on."""
    av, first, count = pyav(), None, 0
    try:
        camera = str(path).startswith(CAMERA)
        with av.open(str(path), format="v4l2") if camera else _container(path) as container:
            stream = video_stream(container)
            for count, frame in enumerate(decoded(container, stream), 1):
                first = frame.pts if first is None else first
                rate = stream.average_rate or 25  # where a frame does not say when it is shown
                seconds = (count - 1) / rate if frame.pts is None else (frame.pts - first) * stream.time_base
                yield float(seconds), partial(upright, frame, stream.sample_aspect_ratio)
        if not count:
            raise ValueError("no frame of it can be decoded")
    except (av.error.FFmpegError, OSError, ValueError) as error:
        raise BrokenFile(f"{path} is no readable video: {reason(error)}") from None


def upright(frame, shape: Fraction | None = None) -> Tensor:
    """A decoded frame as uint8 [3, H, W], turned and mirrored as the file says it is to be shown, transparency on
    white; `shape` is the width of its pixels over their height."""
    clear = any(component.is_alpha for component in frame.format.components)
    # A converter of its own: one that a frame keeps may be freed in a forked process, where its threads are missing.
    converter = pyav().video.reformatter.VideoReformatter()
    pixels = converter.reformat(frame, format="rgba" if clear else "rgb24").to_ndarray()
    if clear:
        pixels = np.asarray(as_rgb(Image.fromarray(pixels)))
    if shape and shape != 1 and 0.1 < shape < 10:
        wide = round(frame.width * shape), frame.height
        pixels = np.asarray(Image.fromarray(pixels).resize(wide, Image.Resampling.BICUBIC))
    pixels = placed(pixels, display_matrix(frame))
    return torch.from_numpy(np.array(pixels)).permute(2, 0, 1)


def display_matrix(frame) -> np.ndarray:
    """The upper left [2, 2] of the matrix that takes (x, y) of a frame, as a row, to where it is shown."""
    data = frame.side_data.get("DISPLAYMATRIX")
    return np.frombuffer(data, np.int32).reshape(3, 3)[:2, :2] if data else np.eye(2)


def placed(pixels: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    """Pixels [H, W, 3] turned by quarters and mirrored as a display matrix says."""
    (a, b), (c, d) = matrix
    if abs(a) + abs(d) < abs(b) + abs(c):
        pixels, across, down = pixels.swapaxes(0, 1), c, b
    else:
        across, down = a, d
    return pixels[:: -1 if down < 0 else 1, :: -1 if across < 0 else 1]
