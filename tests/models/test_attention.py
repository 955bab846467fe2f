"""Attention, and decoding with a cache: the same for GIT and the student."""

import pytest
import tiny
import torch
from tiny_git import random_git, random_inputs
from torch import nn
from torch.testing import assert_close

from gitdistill.models.student import StudentCandidateV1

CLOSE = {"atol": 1e-5, "rtol": 1e-4}


def random_student():
    torch.manual_seed(0)
    sizes = {"embed_dim": 16, "heads": 2, "num_frames": 2, "max_positions": 12}
    student = StudentCandidateV1(30, tiny.backbone(), **sizes)
    nn.init.normal_(student.head.bias)
    return student.eval()


@pytest.fixture(scope="module", params=["git", "student"])
def model(request):
    return random_git(frames=2) if request.param == "git" else random_student()


@pytest.fixture(autouse=True)
def no_grad():
    with torch.no_grad():
        yield


def inputs(model, **options):
    return random_inputs(frames=2, size=32 if isinstance(model, StudentCandidateV1) else 16, **options)


@pytest.mark.parametrize("captions", [1, 3])
def test_steps_equal_the_whole_text(model, captions):
    """Few new tokens read the image's and the text's keys where they lie, many a joined copy."""
    pixels, tokens = inputs(model, length=11, captions=captions)
    whole = model(pixels, tokens).logits
    for pieces in ([1] * 11, [1, 1, 3, 1, 2, 3], [10, 1]):
        cache, steps = model.prefill(pixels), []
        for piece in tokens.split(pieces, dim=1):
            logits, cache = model.decode_step(piece, cache)
            steps.append(logits)
        assert_close(torch.cat(steps, dim=1), whole, **CLOSE)
        assert cache.length == 11


def test_a_cache_grows_is_reordered_and_truncated(model):
    pixels, tokens = inputs(model, length=5)
    rows, order = torch.tensor([0, 0, 0, 1, 1, 1]), torch.tensor([2, 0, 0, 4, 5, 3])
    words, last = torch.arange(5, 11)[:, None], torch.arange(11, 17)[:, None]
    start = model.prefill(pixels)
    _, cache = model.decode_step(tokens, start)
    _, cache = model.decode_step(words, cache.truncate(3).reorder(rows))
    logits, cache = model.decode_step(last, cache.reorder(order))
    text = torch.cat([torch.cat([tokens[rows, :3], words], dim=1)[order], last], dim=1)
    assert_close(logits, model(pixels, text).logits[:, -1:], **CLOSE)
    assert start.length == 0 and cache.length == 5
    assert all(a is b for a, b in zip(start.shared, cache.shared, strict=True))  # the image was not copied


def test_captions_of_a_clip_do_not_see_each_other(model):
    pixels, tokens = inputs(model, captions=3, length=5)
    packed = model(pixels, tokens)
    for row, caption in enumerate(tokens):
        alone = model(pixels[row // 3][None], caption[None])
        assert_close(packed.logits[row][None], alone.logits, **CLOSE)
        for mine, expected in zip(packed.hidden_states, alone.hidden_states, strict=True):
            assert_close(mine[row][None], expected, **CLOSE)


def test_the_text_sees_the_past_only(model):
    pixels, tokens = inputs(model, length=5)
    before = model(pixels, tokens).logits
    padded = nn.functional.pad(tokens, (0, 4), value=model.pad_token_id)
    assert_close(model(pixels, padded).logits[:, :5], before, **CLOSE)
    after = model(pixels, torch.cat([tokens[:, :3], (tokens[:, 3:] + 1) % 30], 1)).logits
    assert_close(after[:, :3], before[:, :3], **CLOSE)
    assert not torch.allclose(after[:, 3:], before[:, 3:], atol=1e-2)


@pytest.mark.parametrize("kind", ["forward", "forward_pre", "full_backward", "full_backward_pre"])
def test_every_kind_of_hook_sees_the_weights_and_changes_nothing(model, kind):
    pixels, tokens = inputs(model, captions=2)
    fused = model(pixels, tokens).logits
    softmaxes = [module for name, module in model.named_modules() if name.endswith("softmax")]
    calls = []
    handles = [getattr(module, f"register_{kind}_hook")(lambda *_: calls.append(1)) for module in softmaxes]
    with torch.enable_grad():
        hooked = model(pixels, tokens).logits
        hooked.sum().backward()
    assert_close(hooked.detach(), fused, **CLOSE)
    assert len(calls) >= len(softmaxes)
    for handle in handles:
        handle.remove()


@pytest.mark.parametrize(
    "tokens, message",
    [
        (torch.full((2, 13), 2), "13 tokens is longer than the model's 12 positions"),
        (torch.full((3, 4), 2), "3 captions do not divide among 2 clips"),
        (torch.full((2, 4), 2.0), "tokens must be long .* not torch.float32"),
        (torch.full((4,), 2), "tokens must be long"),
    ],
)
def test_tokens_that_do_not_fit(model, tokens, message):
    pixels, text = inputs(model, length=12)
    with pytest.raises(ValueError, match=f"^[^\n]*{message}[^\n]*$"):
        model(pixels, tokens)
    _, cache = model.decode_step(text, model.prefill(pixels))
    with pytest.raises(ValueError, match="13 tokens is longer"):
        model.decode_step(text[:, :1], cache)
