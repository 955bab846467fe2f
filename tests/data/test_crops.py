"""Square crops: the bytes of the whole picture, resized and cut, without the whole picture."""

import math

import numpy as np
import pytest
import torch
from torchvision.transforms.v2 import functional as tv

from gitdistill.data import crops
from gitdistill.models.preprocessing import CLIP_MEAN, CLIP_STD, resize, to_pixels


def test_a_long_picture_is_cropped_before_it_is_resized(monkeypatch):
    """The same bytes as the centre of the whole picture, resized by Pillow; and nothing for what is cut off."""
    draw = np.random.RandomState(0)
    for _ in range(60):
        size, short = int(draw.choice([16, 48, 96])), draw.randint(1, 100)
        sides = short, int(short * draw.uniform(4.1, 15)) + 1
        shape = 2, 3, *sides[:: draw.choice([-1, 1])]
        frames = torch.from_numpy(draw.randint(0, 256, shape, dtype=np.uint8))
        whole = resize(frames, size, math.inf)
        expected = tv.center_crop(whole, [size, size])
        assert torch.equal(crops.center_crop(frames, size), expected), shape
    asked = []
    monkeypatch.setattr(crops, "resize", lambda frames, *_: asked.append(len(frames)) or frames)
    long = torch.zeros(1, 3, 1, 10**7, dtype=torch.uint8)
    assert crops.center_crop(long, 224).shape[-2:] == (224, 224)
    still = torch.zeros(1, 3, 48, 48, dtype=torch.uint8).expand(6, -1, -1, -1)
    assert crops.center_crop(still, 48).shape == (6, 3, 48, 48) and asked == [1]


@pytest.mark.parametrize("height, width, tall, wide", [(30, 60, 16, 32), (90, 64, 32, 23), (7, 5000, 1, 32)])
def test_a_padded_picture_is_whole_between_bars_that_networks_read_as_zero(height, width, tall, wide):
    frames = torch.full((2, 3, height, width), 200, dtype=torch.uint8)
    frames[1] = 0
    square = crops.pad_to_square(frames, 32)
    assert square.shape == (2, 3, 32, 32)
    for frame, value in zip(square, (200, 0)):
        inside = (frame == value).all(0)
        assert inside.any(1).sum() == tall and inside.any(0).sum() == wide and inside.sum() == tall * wide
        top, left = inside.nonzero()[0].tolist()
        assert abs(32 - tall - 2 * top) <= 1 and abs(32 - wide - 2 * left) <= 1
        bars = to_pixels(frame[None], 32, CLIP_MEAN, CLIP_STD)[0, 0][:, ~inside]
        assert bars.abs().max() < 0.01
