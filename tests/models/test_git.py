"""GenerativeImageTextModel against transformers' port, Microsoft's numbers, and itself."""

import pytest
import torch
from tiny_git import REFERENCE, git_config, random_git, random_inputs, random_port, shake
from torch.testing import assert_close

from gitdistill.models.git import GenerativeImageTextModel
from gitdistill.models.preprocessing import CLIP_MEAN, CLIP_STD

EXACT = {"atol": 1e-4, "rtol": 0}
SHAPES = {
    "small": {},
    "one layer": {"num_hidden_layers": 1, "vision_num_hidden_layers": 1},
    "wide text": {"hidden_size": 48, "num_attention_heads": 6, "intermediate_size": 20},
    "big patches": {"vision_image_size": 24, "vision_patch_size": 8, "vision_hidden_size": 18},
    "other epsilons": {"layer_norm_eps": 1e-2, "vision_layer_norm_eps": 3e-2},
    "other activations": {"hidden_act": "relu", "vision_hidden_act": "gelu"},
}


@pytest.fixture(scope="module")
def twins(tmp_path_factory):
    """A function that gives transformers' model and ours with the same random weights."""

    def make(**config):
        folder = tmp_path_factory.mktemp("port")
        port = random_port(**config)
        port.save_pretrained(folder)
        return port, GenerativeImageTextModel.from_pretrained(folder)

    return make


@torch.no_grad()
def compare(port, ours, pixels, tokens, **port_arguments):
    theirs = port(input_ids=tokens, pixel_values=pixels, output_hidden_states=True, **port_arguments)
    output = ours(pixels, tokens)
    length = tokens.shape[1]
    assert theirs.logits[:, -length:].std() > 0.3  # numbers this size make 1e-4 mean something
    assert_close(output.logits, theirs.logits[:, -length:], **EXACT)
    assert len(output.hidden_states) == len(theirs.hidden_states) == ours.config.num_hidden_layers + 1
    for mine, reference in zip(output.hidden_states, theirs.hidden_states):
        assert_close(mine, reference[:, -length:], **EXACT)


@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
@pytest.mark.parametrize("frames", [None, 3], ids=["image", "video"])
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_equals_transformers(twins, shape, frames, tied):
    port, ours = twins(frames=frames, tied=tied, seed=len(shape), **shape)
    assert (ours.head.weight is ours.embedding.words.weight) == tied
    size = ours.config.vision_config.image_size
    compare(port, ours, *random_inputs(clips=2, frames=frames, size=size, length=7))
    if frames:  # fewer frames than temporal embeddings, and an image to a video model
        compare(port, ours, *random_inputs(clips=1, frames=2, size=size, length=1))
        compare(port, ours, *random_inputs(clips=3, size=size, length=2))


@pytest.mark.parametrize("size", [8, 24, (16, 24), (20, 12), (8, 32), 18], ids=str)
@pytest.mark.parametrize("frames", [None, 2], ids=["image", "video"])
def test_other_image_sizes_resize_the_positions(twins, size, frames):
    port, ours = twins(frames=frames)
    compare(port, ours, *random_inputs(frames=frames, size=size), interpolate_pos_encoding=True)


@pytest.mark.parametrize("kind", ["image", "video"])
def test_equals_microsoft(kind):
    model = GenerativeImageTextModel.from_pretrained(REFERENCE / kind)
    expected = torch.load(REFERENCE / kind / "expected.pt", weights_only=True)
    with torch.no_grad():
        output = model(expected["pixels"], expected["tokens"])
    assert_close(output.visual_features, expected["visual_features"], **EXACT)
    assert_close(output.logits, expected["logits"], **EXACT)


def test_raw_frames_are_resized_and_normalised_by_the_model():
    model = random_git()
    grey = torch.full((1, 3, 40, 60), 128, dtype=torch.uint8)
    mean, std = torch.tensor(CLIP_MEAN), torch.tensor(CLIP_STD)
    pixels = ((128 / 255 - mean) / std).view(1, 3, 1, 1).expand(1, 3, 16, 16)
    with torch.no_grad():
        assert_close(model.encode(grey), model.encode(pixels), atol=1e-5, rtol=0)
        assert_close(model.encode(pixels.double()), model.encode(pixels))  # any floating type is pixels


def test_training_reaches_every_parameter():
    model = shake(GenerativeImageTextModel(git_config(frames=2))).train()
    pixels, tokens = random_inputs(frames=2)
    model(pixels, tokens).logits.logsumexp(-1).sum().backward()
    # keys' biases shift all scores of a row alike, which the softmax does not see
    idle = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert [name for name in idle if not name.endswith("key.bias")] == []


@pytest.mark.parametrize(
    "frames, message",
    [
        (torch.zeros(1, 3, 16, 16, dtype=torch.int32), "uint8 .* or floating .*not torch.int32"),
        (torch.zeros(1, 16, 16, 3), r"\[B, F, 3, H, W\] .* not \[1, 16, 16, 3\]"),
        (torch.zeros(3, 16, 16), r"not \[3, 16, 16\]"),
        (torch.zeros(0, 3, 16, 16), r"not \[0, 3, 16, 16\]"),
        ([[0.0]], "tensor, not .*list"),
        (torch.zeros(1, 3, 3, 16, 16), "3 frames, but .* 0 temporal embeddings"),
    ],
)
def test_bad_frames_are_one_clear_line(frames, message):
    with pytest.raises(ValueError, match=f"^[^\n]*{message}[^\n]*$"):
        random_git()(frames, torch.full((1, 4), 2))


def test_a_clip_of_one_frame_is_an_image():
    (one, tokens), model = random_inputs(frames=1), random_git()
    with torch.no_grad():
        assert_close(model(one, tokens).logits, model(one[:, 0], tokens).logits)
