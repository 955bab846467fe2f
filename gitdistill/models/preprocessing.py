"""From raw frames to the pixels that a network reads."""

import math

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms.v2 import functional as tv

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)


def check_frames(frames: Tensor) -> Tensor:
    """`frames` as [B, F, 3, H, W]; a ValueError in one line when they are neither raw frames nor pixels."""
    if not isinstance(frames, Tensor) or not (frames.dtype == torch.uint8 or frames.is_floating_point()):
        kind = getattr(frames, "dtype", type(frames))
        raise ValueError(f"frames must be a uint8 (raw) or floating (preprocessed pixels) tensor, not {kind}")
    if frames.dim() not in (4, 5) or frames.shape[-3] != 3 or 0 in frames.shape:
        raise ValueError(f"frames must be [B, F, 3, H, W] or [B, 3, H, W], not {list(frames.shape)}")
    return frames.unsqueeze(1) if frames.dim() == 4 else frames


def to_pixels(frames: Tensor, size: int, mean: tuple, std: tuple, longest: int | None = None) -> Tensor:
    """Pixels [B, F, 3, H, W] for a network with its own statistics; floating frames stay as they are.

    Raw frames are resized (bicubic, shorter side to `size`), cropped in the centre, scaled to [0, 1] and normalised.
    With `longest` they are not cropped; see `fitted`.
    """
    frames = check_frames(frames)
    if frames.is_floating_point():
        return frames
    clips = frames.shape[:2]
    frames = resize(frames.flatten(0, 1), size, longest or math.inf)
    if longest is None:
        frames = tv.center_crop(frames, [size, size])
    mean, std = (torch.tensor(x, device=frames.device).view(3, 1, 1) for x in (mean, std))
    return ((frames / 255 - mean) / std).unflatten(0, clips)


def resize(frames: Tensor, size: int, longest: float) -> Tensor:
    """Raw frames [R, 3, H, W] at the size that `fitted` gives; bicubic, on a CPU with Pillow, as GIT was trained.

    torch's filter, used on other devices, differs by up to three levels in some bytes.
    """
    return resize_to(frames, *fitted(*frames.shape[-2:], size, longest))


def resize_to(frames: Tensor, height: int, width: int) -> Tensor:
    """As `resize`, to a height and a width."""
    if frames.shape[-2:] == (height, width):
        return frames
    if frames.device.type != "cpu":
        return tv.resize(frames, [height, width], tv.InterpolationMode.BICUBIC, antialias=True)
    images = (Image.fromarray(frame) for frame in frames.permute(0, 2, 3, 1).contiguous().numpy())
    arrays = [np.asarray(image.resize((width, height), Image.Resampling.BICUBIC)) for image in images]
    return torch.from_numpy(np.stack(arrays)).permute(0, 3, 1, 2)


def fitted(height: int, width: int, size: int, longest: float) -> tuple[int, int]:
    """Height and width after scaling the shorter side to `size`, or the longer one to `longest` if it would exceed it.

    As Microsoft's `test_respect_ratio_max` (https://github.com/microsoft/GenerativeImage2Text).
    """
    short, long = min(height, width), max(height, width)
    if long / short * size > longest:
        size = round(longest * short / long)
    other = int(size * long / short)
    return (other, size) if width < height else (size, other)


def area_means(maps: Tensor, grid: tuple[int, int]) -> Tensor:
    """Maps [..., H, W] as [..., *grid]: each value is the mean of the pixels that its area covers or touches.

    Equals `adaptive_avg_pool2d`, which fails on MPS for some grids (https://github.com/pytorch/pytorch/issues/96056).
    """
    for dim, count in zip((-2, -1), grid):
        size = maps.shape[dim]
        spans = [(k * size // count, -(-(k + 1) * size // count)) for k in range(count)]
        maps = torch.stack([maps.narrow(dim, a, b - a).mean(dim) for a, b in spans], dim)
    return maps
