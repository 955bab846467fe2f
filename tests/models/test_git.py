"""GenerativeImageTextModel against transformers' port, Microsoft's numbers, and itself."""

import pytest
import torch
from tiny_git import REFERENCE, git_config, random_git, random_inputs, random_port, shake
from torch.testing import assert_close
from transformers import GitForCausalLM

from gitdistill.hooks import record
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


def test_visual_features_are_the_encoders_output_plus_time(twins):
    port, ours = twins(frames=3)
    pixels, tokens = random_inputs(clips=2, frames=3)
    with torch.no_grad():
        encoded = [port.git.image_encoder(frame).last_hidden_state for frame in pixels.unbind(1)]
        expected = [frame + time for frame, time in zip(encoded, port.git.img_temporal_embedding)]
        assert_close(ours(pixels, tokens).visual_features, torch.cat(expected, dim=1), **EXACT)


@pytest.mark.parametrize("kind", ["image", "video"])
def test_equals_microsoft(kind):
    model = GenerativeImageTextModel.from_pretrained(REFERENCE / kind)
    expected = torch.load(REFERENCE / kind / "expected.pt", weights_only=True)
    with torch.no_grad():
        output = model(expected["pixels"], expected["tokens"])
    assert_close(output.visual_features, expected["visual_features"], **EXACT)
    assert_close(output.logits, expected["logits"], **EXACT)


@pytest.mark.parametrize("frames", [None, 3], ids=["image", "video"])
@pytest.mark.parametrize("captions", [1, 3])
def test_steps_equal_the_whole_text(frames, captions):
    model = random_git(frames=frames)
    pixels, tokens = random_inputs(clips=2, frames=frames, length=9, captions=captions)
    with torch.no_grad():
        whole = model(pixels, tokens).logits
        cache = model.prefill(pixels)
        steps = []
        for part in tokens.split([1, 1, 3, 1, 2, 1], dim=1):
            logits, cache = model.decode_step(part, cache)
            steps.append(logits)
    assert_close(torch.cat(steps, dim=1), whole, atol=1e-5, rtol=0)
    assert cache.length == 9


def test_a_cache_grows_with_its_reordered_beams():
    model = random_git(frames=2)
    pixels, tokens = random_inputs(clips=2, frames=2, length=3)
    rows, order = torch.tensor([0, 0, 0, 1, 1, 1]), torch.tensor([2, 0, 0, 4, 5, 3])
    words, last = torch.arange(5, 11)[:, None], torch.arange(11, 17)[:, None]
    with torch.no_grad():
        _, cache = model.decode_step(tokens, model.prefill(pixels))
        _, cache = model.decode_step(words, cache.reorder(rows))
        shared = [keys.data_ptr() for keys, _ in cache.shared]
        cache = cache.reorder(order)
        logits, _ = model.decode_step(last, cache)
        text = torch.cat([torch.cat([tokens[rows], words], dim=1)[order], last], dim=1)
        expected = model(pixels, text).logits[:, -1:]
    assert_close(logits, expected, atol=1e-5, rtol=0)
    assert shared == [keys.data_ptr() for keys, _ in cache.shared]  # the image was not copied


def test_captions_of_a_clip_do_not_see_each_other():
    model = random_git(frames=2)
    pixels, tokens = random_inputs(clips=2, frames=2, captions=3, length=5)
    with torch.no_grad():
        packed = model(pixels, tokens)
        for row, caption in enumerate(tokens):
            alone = model(pixels[row // 3][None], caption[None])
            assert_close(packed.logits[row][None], alone.logits, atol=1e-5, rtol=0)
            for mine, expected in zip(packed.hidden_states, alone.hidden_states):
                assert_close(mine[row][None], expected, atol=1e-5, rtol=0)


def test_padding_changes_nothing():
    model = random_git()
    pixels, tokens = random_inputs(length=5)
    padded = torch.nn.functional.pad(tokens, (0, 4), value=model.pad_token_id)
    with torch.no_grad():
        assert_close(model(pixels, padded).logits[:, :5], model(pixels, tokens).logits, atol=1e-5, rtol=0)


def test_hooked_attention_equals_the_fused_one():
    model = random_git(frames=2)
    pixels, tokens = random_inputs(clips=2, frames=2, captions=2)
    with torch.no_grad():
        fused = model(pixels, tokens)
        with record(model, "*.softmax") as seen:
            hooked = model(pixels, tokens)
    assert_close(hooked.logits, fused.logits, atol=1e-5, rtol=0)
    # the image encoder's two layers, the decoder's image tokens (not in its last layer), its text tokens
    assert len(seen) == 5 and sum(map(len, seen.values())) == 2 + 2 + 3
    for weights in (call for calls in seen.values() for call in calls):
        assert_close(weights.sum(-1), torch.ones(weights.shape[:-1]))


@torch.no_grad()
@pytest.mark.parametrize("length", [3, 11])
def test_joined_and_separate_memories_give_the_same(length):
    """Few queries read the image's and the text's keys where they lie; many read a joined copy."""
    model = random_git(frames=2)
    assert 3 < model.config.hidden_size // model.config.num_attention_heads < 11
    pixels, tokens = random_inputs(frames=2, length=length)
    cache, logits = model.prefill(pixels), []
    for token in tokens.split(1, dim=1):
        step, cache = model.decode_step(token, cache)
        logits.append(step)
    assert_close(torch.cat(logits, 1), model(pixels, tokens).logits, atol=1e-5, rtol=0)


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
    "frames, tokens, message",
    [
        (torch.zeros(1, 3, 16, 16, dtype=torch.int32), None, "uint8 .* or floating .*not torch.int32"),
        (torch.zeros(1, 16, 16, 3), None, r"\[B, F, 3, H, W\] .* not \[1, 16, 16, 3\]"),
        (torch.zeros(3, 16, 16), None, r"not \[3, 16, 16\]"),
        (torch.zeros(0, 3, 16, 16), None, r"not \[0, 3, 16, 16\]"),
        ([[0.0]], None, "tensor, not .*list"),
        (torch.zeros(1, 3, 3, 16, 16), None, "3 frames, but .* 2 temporal embeddings"),
        (None, torch.zeros(1, 13, dtype=torch.long), "13 tokens is longer than the model's 12 positions"),
        (None, torch.zeros(1, 4), r"tokens must be long \[B, T\], not torch.float32"),
        (None, torch.zeros(4, dtype=torch.long), r"tokens must be long \[B, T\]"),
        (torch.zeros(2, 3, 16, 16), torch.zeros(3, 4, dtype=torch.long), "3 captions .* among 2 clips"),
    ],
)
def test_bad_input_is_one_clear_line(frames, tokens, message):
    model = random_git(frames=2)
    frames = torch.zeros(1, 3, 16, 16) if frames is None else frames
    tokens = torch.full((1, 4), 2) if tokens is None else tokens
    with pytest.raises(ValueError, match=message) as caught:
        model(frames, tokens)
    assert "\n" not in str(caught.value)


def test_a_clip_needs_temporal_embeddings():
    with pytest.raises(ValueError, match="2 frames, but .* 0 temporal embeddings"):
        random_git()(*random_inputs(frames=2))
    one, tokens = random_inputs(frames=1)
    model = random_git()
    with torch.no_grad():
        assert_close(model(one, tokens).logits, model(one[:, 0], tokens).logits)


def test_steps_beyond_the_positions_are_refused():
    model = random_git()
    pixels, tokens = random_inputs(length=12)
    with torch.no_grad():
        _, cache = model.decode_step(tokens, model.prefill(pixels))
        with pytest.raises(ValueError, match="13 tokens is longer"):
            model.decode_step(tokens[:, :1], cache)


def test_transformers_generates_what_our_steps_choose(tmp_path):
    """The start, end and padding ids that `save_pretrained` writes are the ones `generate` uses."""
    model = random_git(seed=3)
    model.save_pretrained(tmp_path)
    port = GitForCausalLM.from_pretrained(tmp_path).eval()
    pixels, _ = random_inputs(clips=4)
    expected = port.generate(pixel_values=pixels, max_length=8, do_sample=False)
    assert (expected[:, 0] == 2).all()
    with torch.no_grad():
        tokens, cache = torch.full((4, 1), 2), model.prefill(pixels)
        text = tokens
        while text.shape[1] < expected.shape[1]:
            logits, cache = model.decode_step(tokens, cache)
            tokens = logits[:, -1:].argmax(-1)
            text = torch.cat([text, tokens], dim=1)
    for mine, reference in zip(text.tolist(), expected.tolist()):
        end = reference.index(3) + 1 if 3 in reference else len(reference)
        assert mine[:end] == reference[:end]
