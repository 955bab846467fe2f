"""Preprocessing against Pillow and torchvision's transforms of pictures, on a photograph."""

import pytest
import torch
from matplotlib.cbook import get_sample_data
from PIL import Image
from tiny_git import random_git
from torch.testing import assert_close
from torchvision import transforms

from gitdistill.models.preprocessing import CLIP_MEAN, CLIP_STD, fitted, to_pixels


@pytest.fixture(scope="module")
def photo():
    """A photograph that comes with Matplotlib, 512 x 600."""
    return Image.open(get_sample_data("grace_hopper.jpg", asfileobj=False)).convert("RGB")


VIEWS = {
    "as it is": lambda image: image,
    "wide": lambda image: image.crop((0, 100, 512, 347)),
    "tall": lambda image: image.crop((150, 0, 273, 600)),
    "small": lambda image: image.crop((100, 100, 231, 197)),
    "turned": lambda image: image.transpose(Image.Transpose.ROTATE_90),
    "ready": lambda image: image.crop((100, 50, 324, 274)),
}


def frames_of(image):
    return transforms.functional.pil_to_tensor(image)[None]


@pytest.mark.parametrize("view", VIEWS)
@pytest.mark.parametrize("size", [224, 480, 96])
def test_equals_microsofts_transforms(photo, view, size):
    image, bicubic = VIEWS[view](photo), transforms.InterpolationMode.BICUBIC
    steps = [transforms.Resize(size, bicubic), transforms.CenterCrop(size), transforms.ToTensor()]
    reference = transforms.Compose([*steps, transforms.Normalize(CLIP_MEAN, CLIP_STD)])
    pixels = to_pixels(frames_of(image), size, CLIP_MEAN, CLIP_STD)
    assert pixels.shape == (1, 1, 3, size, size)
    assert_close(pixels[0, 0], reference(image), atol=1e-6, rtol=0)


@pytest.mark.parametrize("view", VIEWS)
def test_without_cropping_equals_pillow(photo, view):
    image = VIEWS[view](photo)
    pixels = to_pixels(frames_of(image), 480, CLIP_MEAN, CLIP_STD, longest=640)
    height, width = pixels.shape[-2:]
    ratio, longest = max(image.size) / min(image.size), max(height, width)
    assert longest <= 640 and (min(height, width) == 480 or longest >= 639)
    assert longest / min(height, width) == pytest.approx(ratio, rel=5e-3)
    resized = transforms.functional.to_tensor(image.resize((width, height), Image.Resampling.BICUBIC))
    expected = transforms.functional.normalize(resized, CLIP_MEAN, CLIP_STD)
    assert_close(pixels[0, 0], expected, atol=1e-6, rtol=0)


@pytest.mark.parametrize(
    "shape, expected",  # height and width, worked out by hand from Microsoft's rules
    [
        ((480, 640), (480, 640)),
        ((500, 500), (480, 480)),
        ((426, 640), (426, 640)),  # 640 / 426 * 480 is 721: too long
        ((1000, 500), (640, 320)),
        ((300, 200), (640, 427)),  # round(426.67) and int(427 * 1.5)
        ((240, 250), (480, 500)),
        ((100, 3000), (21, 630)),  # round(21.33)
    ],
)
def test_sizes_without_cropping(shape, expected):
    assert fitted(*shape, 480, 640) == expected


def test_clips_are_resized_frame_by_frame(photo):
    frames = frames_of(photo).expand(2, 3, -1, -1, -1).clone()
    frames[0, 1] = 0
    pixels = to_pixels(frames, 64, CLIP_MEAN, CLIP_STD)
    assert pixels.shape == (2, 3, 3, 64, 64)
    assert_close(pixels[1, 2], to_pixels(frames_of(photo), 64, CLIP_MEAN, CLIP_STD)[0, 0])
    assert_close(pixels[0, 1, :, 0, 0], -torch.tensor(CLIP_MEAN) / torch.tensor(CLIP_STD))


@torch.no_grad()
def test_a_model_for_questions_sees_the_whole_image(photo, tmp_path):
    model = random_git()
    frames = frames_of(photo)
    assert model.encode(frames).shape[1] == 1 + 4 * 4
    model.config.test_respect_ratio_max = 20
    expected = model.encode(to_pixels(frames, 16, CLIP_MEAN, CLIP_STD, longest=20)[:, 0])
    assert expected.shape[1] == 1 + 4 * 4  # 18 x 16 pixels, patches of 4
    assert_close(model.encode(frames), expected)
    wide = frames_of(photo.crop((0, 0, 512, 384)))
    assert model.encode(wide).shape[1] == 1 + 3 * 5  # 15 x 20 pixels
    model.save_pretrained(tmp_path)
    assert_close(type(model).from_pretrained(tmp_path).encode(wide), model.encode(wide))
