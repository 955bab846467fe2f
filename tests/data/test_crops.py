"""Square crops: the bytes of the whole picture, resized and cut, without the whole picture."""

import math

import numpy as np
import torch
from torchvision.transforms.v2 import functional as tv

from gitdistill.data import crops
from gitdistill.models.preprocessing import resize


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
    assert crops.center_crop(torch.zeros(1, 3, 1, 10**7, dtype=torch.uint8), 224).shape[-2:] == (
        224,
        224,
    )
    still = torch.zeros(1, 3, 48, 48, dtype=torch.uint8).expand(6, -1, -1, -1)
    assert crops.center_crop(still, 48).shape == (6, 3, 48, 48) and asked == [1]
