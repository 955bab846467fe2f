"""From raw frames to what a network eats."""

import torch
from torch import Tensor
from torchvision.transforms.v2 import functional as tv

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)


def check_frames(frames: Tensor) -> Tensor:
    """`frames` as [B, F, 3, H, W]; a ValueError in one line when they are neither raw frames nor pixels."""
    if not isinstance(frames, Tensor):
        raise ValueError(f"frames must be a torch tensor, not {type(frames).__name__}")
    if frames.dtype != torch.uint8 and not frames.is_floating_point():
        raise ValueError(f"frames must be uint8 (raw) or floating (preprocessed pixels), not {frames.dtype}")
    if frames.dim() not in (4, 5) or frames.shape[-3] != 3:
        raise ValueError(f"frames must be [B, F, 3, H, W] or [B, 3, H, W], not {list(frames.shape)}")
    if 0 in frames.shape:
        raise ValueError(f"frames are empty: {list(frames.shape)}")
    return frames.unsqueeze(1) if frames.dim() == 4 else frames


def to_pixels(frames: Tensor, size: int, mean: tuple, std: tuple) -> Tensor:
    """Pixels [B, F, 3, size, size] for a network with its own statistics; floating frames pass as they are.

    Raw frames: shorter side resized to `size` (bicubic), centre crop, scaled to [0, 1], normalised.
    """
    frames = check_frames(frames)
    if frames.is_floating_point():
        return frames
    clips = frames.shape[:2]
    frames = frames.flatten(0, 1)
    if frames.shape[-2:] != (size, size):
        frames = tv.resize(frames, size, interpolation=tv.InterpolationMode.BICUBIC, antialias=True)
        frames = tv.center_crop(frames, [size, size])
    mean, std = (torch.tensor(x, device=frames.device).view(3, 1, 1) for x in (mean, std))
    return ((frames / 255 - mean) / std).unflatten(0, clips)
