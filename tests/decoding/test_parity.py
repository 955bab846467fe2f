"""Greedy search, beam search and sampling against transformers' `generate`, Microsoft's numbers, and its rules."""

import itertools
from pathlib import Path

import pytest
import torch
from fakes import FakeCache, TableModel, clips
from torch import nn
from transformers import (
    GitConfig,
    GitForCausalLM,
    LogitsProcessorList,
    NoRepeatNGramLogitsProcessor,
    PrefixConstrainedLogitsProcessor,
    RepetitionPenaltyLogitsProcessor,
    SuppressTokensLogitsProcessor,
)

from gitdistill import GenerativeImageTextModel
from gitdistill.decoding import beam, greedy, sample

REFERENCE = Path(__file__).parents[1] / "reference" / "microsoft_git"
SEEDS = (3, 7, 10, 20)  # of tiny models whose captions end early, late, and not at all
STOPS = {"current": False, "never": "never", "first": True}  # here -> transformers' early_stopping


class Uncached:
    """transformers' GIT behind our protocol: every step runs the images and the whole text again."""

    pad_token_id, bos_token_id, eos_token_id, vocab_size, max_positions = 0, 1, 2, 40, 24

    def __init__(self, model):
        self.model = model

    def prefill(self, pixels):
        return FakeCache(pixels, torch.empty(len(pixels), 0, dtype=torch.long))

    def decode_step(self, tokens, cache):
        text = torch.cat([cache.tokens, tokens], 1)
        pixels = cache.clips.repeat_interleave(len(tokens) // len(cache.clips), 0)
        logits = self.model(input_ids=text, pixel_values=pixels, use_cache=False).logits
        return logits[:, -tokens.shape[1] :], FakeCache(cache.clips, text)


def tiny_git(seed):
    """A random GIT with peaked distributions whose captions end at different steps."""
    torch.manual_seed(seed)
    size = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 2}
    vision = {**size, "num_hidden_layers": 1, "image_size": 16, "patch_size": 8}
    special = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    text = {**size, "num_hidden_layers": 2, "vocab_size": 40, "max_position_embeddings": 24, **special}
    config = GitConfig(vision_config=vision, **text)
    model = GitForCausalLM(config).eval()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "visual_projection" in name and weight.ndim == 1:
                weight.mul_(8)  # so that the captions of different images differ
            elif weight.ndim > 1 and "embedding" not in name:
                weight.mul_(6)
        model.git.embeddings.word_embeddings.weight.normal_()
        model.git.embeddings.position_embeddings.weight.normal_()
        model.git.image_encoder.vision_model.embeddings.class_embedding.normal_()
        model.output.weight.normal_(0, 0.3)
        model.output.bias[2] += 1 + 2 * (seed % 3)
    return model, torch.randn(3, 3, 16, 16) * 2


def generate(model, pixels, max_length, **options):
    """transformers' answer: tokens (only padding after the end token), scores (None if greedy), steps."""
    start = options.pop("input_ids", torch.ones(len(pixels), 1, dtype=torch.long))
    options = {"do_sample": False} | options
    options |= {"max_length": max_length, "output_scores": True, "return_dict_in_generate": True}
    out = model.generate(pixel_values=pixels, input_ids=start, **options)
    tokens = out.sequences  # with pad 0 its beam search fills up with the end token instead
    ended = (tokens[:, start.shape[1] :] == 2).cumsum(1)
    after = nn.functional.pad(ended, (start.shape[1] + 1, 0))[:, :-1] > 0
    return tokens.masked_fill(after, 0), out.get("sequences_scores"), len(out.scores)


def test_greedy_equals_transformers_and_a_beam_of_one():
    lengths = set()
    for seed in SEEDS:
        model, pixels = tiny_git(seed)
        expected, _, steps = generate(model, pixels, 14)
        out = greedy(Uncached(model), pixels, max_length=14)
        assert torch.equal(out.tokens[:, 0], expected) and out.steps == steps
        one = beam(Uncached(model), pixels, beams=1, max_length=14)
        assert torch.equal(one.tokens, out.tokens) and torch.equal(one.scores, out.scores)
        lengths |= {int((row == 2).nonzero()[0]) if (row == 2).any() else 0 for row in expected}
    assert len(lengths) >= 6 and 0 in lengths  # captions end early, late and not at all


@pytest.mark.parametrize("beams", [3, 4, 5])
def test_beam_equals_transformers(beams):
    total, models = dict.fromkeys(STOPS, 0), [tiny_git(seed) for seed in SEEDS]
    for (model, pixels), stop, length_penalty in itertools.product(models, STOPS, (0.6, 1.0, 2.0)):
        options = {"num_beams": beams, "num_return_sequences": 3, "early_stopping": STOPS[stop]}
        expected, scores, steps = generate(model, pixels, 12, length_penalty=length_penalty, **options)
        out = beam(Uncached(model), pixels, beams, 12, length_penalty, stop=stop, num_return=3)
        assert torch.equal(out.tokens.flatten(0, 1), expected), (stop, length_penalty)
        torch.testing.assert_close(out.scores.flatten(), scores, atol=1e-4, rtol=0)
        assert out.steps == steps
        total[stop] += steps
    assert total["first"] < total["current"] < total["never"]


@pytest.mark.parametrize("beams", [1, 4])
def test_prefix_equals_transformers(beams):
    model, pixels = tiny_git(9)
    prefix = torch.tensor([[1, 7, 9], [1, 30, 2], [1, 12, 12]])  # an end token inside a prefix ends nothing
    expected, scores, _ = generate(model, pixels, 12, input_ids=prefix, num_beams=beams)
    out = beam(Uncached(model), pixels, beams, 12, prefix=prefix)
    assert torch.equal(out.tokens[:, 0], expected) and out.tokens.shape[2] > 4
    if beams > 1:
        torch.testing.assert_close(out.scores[:, 0], scores, atol=1e-4, rtol=0)


PROCESSORS = {
    "repetition": lambda beams: [RepetitionPenaltyLogitsProcessor(1.4), NoRepeatNGramLogitsProcessor(2)],
    "suppressed": lambda beams: [SuppressTokensLogitsProcessor([5, 9, 17, 30])],
    "constrained": lambda beams: [
        PrefixConstrainedLogitsProcessor(lambda clip, text: [2, *range(10 + clip, 35, 1 + clip)], beams)
    ],
}


@pytest.mark.parametrize("kind", PROCESSORS)
@pytest.mark.parametrize("beams", [1, 4])
def test_processors_and_min_length_equal_transformers(beams, kind):
    changed = 0
    for seed in SEEDS:
        model, pixels = tiny_git(seed)
        processors = PROCESSORS[kind](beams)
        options = {"num_beams": beams, "min_length": 6}
        options["logits_processor"] = LogitsProcessorList(processors)
        expected, scores, steps = generate(model, pixels, 12, **options)
        out = beam(Uncached(model), pixels, beams, 12, processors=processors, min_length=6)
        assert torch.equal(out.tokens[:, 0], expected) and out.steps == steps
        if beams > 1:
            torch.testing.assert_close(out.scores[:, 0], scores, atol=1e-4, rtol=0)
        plain = beam(Uncached(model), pixels, beams, 12, min_length=6).tokens[:, 0]
        changed += not torch.equal(plain, out.tokens[:, 0])
        ends = (plain == 2).int().argmax(1)
        assert all(end == 0 or end >= 6 for end in ends.tolist())
    assert changed >= 2


MIXED = {"temperature": 1.5, "top_k": 8, "top_p": 0.9}
SAMPLING = [{}, {"temperature": 0.6}, {"top_k": 4}, {"top_p": 0.7}, MIXED]


@pytest.mark.parametrize("options", SAMPLING, ids=str)
@pytest.mark.parametrize("num_return", [1, 3])
def test_sampling_equals_transformers(num_return, options):
    captions = set()
    for seed in SEEDS[:3]:
        model, pixels = tiny_git(seed)
        torch.manual_seed(seed)
        theirs = {"do_sample": True, "top_k": 0, "num_return_sequences": num_return} | options
        expected, _, steps = generate(model, pixels, 12, min_length=3, **theirs)
        out = sample(Uncached(model), pixels, 12, num_return=num_return, seed=seed, min_length=3, **options)
        assert torch.equal(out.tokens.flatten(0, 1), expected) and out.steps == steps
        captions |= {tuple(row) for row in expected.tolist()}
    assert len(captions) > 6 * num_return


@pytest.mark.parametrize("kind", ["image", "video"])
def test_beams_equal_those_of_microsofts_implementation(kind):
    expected = torch.load(REFERENCE / kind / "expected.pt", weights_only=True)
    model = GenerativeImageTextModel.from_pretrained(REFERENCE / kind)
    out = beam(model, expected["pixels"], beams=4, max_length=10, length_penalty=0.6, penalty="gnmt")
    assert torch.equal(out.tokens[:, 0], expected["beam_tokens"])
    torch.testing.assert_close(out.scores[:, 0], expected["beam_scores"], atol=1e-4, rtol=0)


def one_by_one(model, clip, beams, max_length, length_penalty, start, keep):
    """Microsoft's rules (bound taken at the maximum length) with lists, for one clip: kept captions, steps."""
    running, kept = [(0.0, start)], []
    norm = lambda length: ((5 + length) / 6) ** length_penalty  # noqa: E731
    for length in range(len(start), max_length):
        candidates = []
        for total, text in running:
            gains = model.logits(clip, torch.tensor([text])).log_softmax(-1)[0]
            candidates += [(total + gain, text, word) for word, gain in enumerate(gains.tolist())]
        candidates = sorted(candidates, key=lambda c: c[0], reverse=True)[: 2 * beams]
        if len(kept) == keep and kept[-1][0] >= candidates[0][0] / norm(max_length - 1):
            break
        running = []
        for total, text, word in candidates:
            if word == model.eos_token_id or length + 1 == max_length:
                kept.append((total / norm(length), [*text, model.eos_token_id]))
                kept = sorted(kept, key=lambda k: k[0], reverse=True)[:keep]
            else:
                running.append((total, [*text, word]))
            if len(running) == beams:
                break
    return kept, length - len(start) + 1


@pytest.mark.parametrize("prefix", [[1], [1, 5, 4]])
@pytest.mark.parametrize("beams, keep", [(1, 1), (2, 1), (4, 1), (4, 3)])
def test_gnmt_follows_microsofts_rules(beams, keep, prefix):
    frames, lengths = clips(3), set()
    for seed, length_penalty in itertools.product(range(5), (0.6, 1.5)):
        model = TableModel(seed=seed, eos_bias=1.5).eval()
        out = beam(model, frames, beams, 9, length_penalty, "gnmt", num_return=keep, prefix=prefix)
        steps = 0
        for i, clip in enumerate(model.prefill(frames).clips):
            kept, needed = one_by_one(model, clip[None], beams, 9, length_penalty, prefix, keep)
            steps = max(steps, needed)
            for k, (score, text) in enumerate(kept):
                assert out.tokens[i, k].tolist() == text + [0] * (out.tokens.shape[2] - len(text))
                assert out.scores[i, k].item() == pytest.approx(score, abs=1e-4)
                lengths.add(len(text))
        assert out.steps == steps
    assert len(lengths) >= 4  # early ends, late ends
