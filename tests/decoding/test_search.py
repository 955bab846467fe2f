"""Greedy search, beam search and sampling against transformers' `generate`, Microsoft's numbers, and brute force."""

import itertools
from pathlib import Path

import pytest
import torch
from fakes import TableModel, clips
from tiny_git import lively_git, random_inputs
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

from gitdistill.decoding import beam, greedy, sample

REFERENCE = Path(__file__).parents[1] / "reference" / "microsoft_git"
SEEDS = (3, 7, 10, 20)  # of tiny models whose captions end early, late, and not at all
STOPS = {"current": False, "never": "never", "first": True}  # here -> transformers' early_stopping


# --- against transformers ---------------------------------------------------------------------------------


class Uncached:
    """transformers' GIT behind our protocol: every step runs the images and the whole text again."""

    pad_token_id, bos_token_id, eos_token_id, vocab_size, max_positions = 0, 1, 2, 40, 24

    def __init__(self, model):
        self.model = model

    def prefill(self, pixels):
        return Text(pixels, torch.empty(len(pixels), 0, dtype=torch.long))

    def decode_step(self, tokens, state):
        text = torch.cat([state.tokens, tokens], 1)
        pixels = state.pixels.repeat_interleave(len(tokens) // len(state.pixels), 0)
        logits = self.model(input_ids=text, pixel_values=pixels, use_cache=False).logits
        return logits[:, -tokens.shape[1] :], Text(state.pixels, text)


class Text:
    def __init__(self, pixels, tokens):
        self.pixels, self.tokens = pixels, tokens

    def reorder(self, rows):
        return Text(self.pixels, self.tokens[rows])


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
    options = {"do_sample": False} | options | {"max_length": max_length}
    options |= {"output_scores": True, "return_dict_in_generate": True}
    with torch.no_grad():
        out = model.generate(pixel_values=pixels, input_ids=start, **options)
    tokens = out.sequences  # with pad 0 its beam search fills up with the end token instead
    ended = (tokens[:, start.shape[1] :] == 2).cumsum(1)
    after = nn.functional.pad(ended, (start.shape[1] + 1, 0))[:, :-1] > 0
    return tokens.masked_fill(after, 0), out.get("sequences_scores"), len(out.scores)


@pytest.mark.parametrize("seed", SEEDS)
def test_greedy_equals_transformers(seed):
    model, pixels = tiny_git(seed)
    expected, _, steps = generate(model, pixels, 14)
    out = greedy(Uncached(model), pixels, max_length=14)
    assert torch.equal(out.tokens[:, 0], expected) and out.steps == steps


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("stop", STOPS)
@pytest.mark.parametrize("beams", [3, 4, 5])
def test_beam_equals_transformers(beams, stop, seed):
    model, pixels = tiny_git(seed)
    for length_penalty in (0.6, 1.0, 2.0):
        options = {"num_beams": beams, "num_return_sequences": 3, "early_stopping": STOPS[stop]}
        expected, scores, steps = generate(model, pixels, 12, length_penalty=length_penalty, **options)
        out = beam(Uncached(model), pixels, beams, 12, length_penalty, stop=stop, num_return=3)
        assert torch.equal(out.tokens.flatten(0, 1), expected), length_penalty
        torch.testing.assert_close(out.scores.flatten(), scores, atol=1e-4, rtol=0)
        assert out.steps == steps


def test_one_beam_equals_transformers():
    model, pixels = tiny_git(5)
    expected, _, steps = generate(model, pixels, 12, num_beams=1)
    out = beam(Uncached(model), pixels, 1, 12)
    assert torch.equal(out.tokens[:, 0], expected) and out.steps == steps


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
        expected, scores, steps = generate(
            model, pixels, 12, logits_processor=LogitsProcessorList(processors), **options
        )
        out = beam(Uncached(model), pixels, beams, 12, processors=processors, min_length=6)
        assert torch.equal(out.tokens[:, 0], expected) and out.steps == steps
        if beams > 1:
            torch.testing.assert_close(out.scores[:, 0], scores, atol=1e-4, rtol=0)
        plain = beam(Uncached(model), pixels, beams, 12, min_length=6).tokens[:, 0]
        changed += not torch.equal(plain, out.tokens[:, 0])
        ends = (plain == 2).int().argmax(1)
        assert all(end == 0 or end >= 6 for end in ends.tolist())
    assert changed >= 2


SAMPLING = [
    {},
    {"temperature": 0.6},
    {"top_k": 4},
    {"top_p": 0.7},
    {"temperature": 1.5, "top_k": 8, "top_p": 0.9},
]


@pytest.mark.parametrize("options", SAMPLING, ids=str)
@pytest.mark.parametrize("num_return", [1, 3])
def test_sampling_equals_transformers(num_return, options):
    captions = set()
    for seed in SEEDS[:3]:
        model, pixels = tiny_git(seed)
        torch.manual_seed(seed)
        expected, _, steps = generate(
            model,
            pixels,
            12,
            do_sample=True,
            num_return_sequences=num_return,
            min_length=3,
            **({"top_k": 0} | options),
        )
        out = sample(Uncached(model), pixels, 12, num_return=num_return, seed=seed, min_length=3, **options)
        assert torch.equal(out.tokens.flatten(0, 1), expected) and out.steps == steps
        captions |= {tuple(row) for row in expected.tolist()}
    assert len(captions) > 6 * num_return


def test_the_comparisons_have_something_to_compare():
    """Captions end early, late and not at all, and the stop rules lead to different steps and captions."""
    lengths, steps, captions = set(), dict.fromkeys(STOPS, 0), {stop: [] for stop in STOPS}
    for seed in SEEDS:
        model, pixels = tiny_git(seed)
        tokens = greedy(Uncached(model), pixels, max_length=14).tokens[:, 0]
        lengths |= {int((row == 2).nonzero()[0]) if (row == 2).any() else 0 for row in tokens}
        for stop in STOPS:
            out = beam(Uncached(model), pixels, 4, 12, 2.0, stop=stop, num_return=3)
            steps[stop] += out.steps
            captions[stop] += out.tokens.flatten().tolist()
    assert len(lengths) >= 6 and 0 in lengths
    assert steps["first"] < steps["current"] < steps["never"]
    assert captions["first"] != captions["current"] != captions["never"]


# --- against Microsoft's search ---------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["image", "video"])
def test_microsoft_beams(kind):
    """Tokens and scores computed by Microsoft's implementation with these weights."""
    from gitdistill import GenerativeImageTextModel

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


# --- against brute force ----------------------------------------------------------------------------------


def sentences(model, clip, max_length, text=(1,), total=0.0):
    """All plausible captions of a clip: (text, sum of log-probabilities)."""
    gains = model.logits(clip, torch.tensor([text])).log_softmax(-1)[0]
    for word in (gains > -20).nonzero().flatten().tolist():
        longer, score = (*text, word), total + gains[word].item()
        if word == model.eos_token_id or len(longer) == max_length:
            yield longer, score
        else:
            yield from sentences(model, clip, max_length, longer, score)


@pytest.mark.parametrize("length_penalty", [0.0, 0.6, 1.0, 2.0])
@pytest.mark.parametrize("penalty", ["transformers", "gnmt"])
def test_a_beam_as_wide_as_the_tree_finds_the_best(penalty, length_penalty):
    """3 plausible words a step, so at most 24 candidates in 4 steps: a beam of 30 prunes nothing."""
    frames, greedy_is_worse = clips(3), 0
    for seed in range(6):
        model = TableModel(vocab_size=40, seed=seed, branching=3, sharpness=1.0).eval()
        out = beam(model, frames, 30, 5, length_penalty, penalty, stop="never", num_return=3)
        first = greedy(model, frames, 5).tokens[:, 0].tolist()
        for i, clip in enumerate(model.prefill(frames).clips):
            ranked = []
            for text, total in sentences(model, clip[None], 5):
                if penalty == "transformers":
                    ranked.append((total / (len(text) - 1) ** length_penalty, text))
                else:
                    text = (*text[:-1], 2)  # a caption cut off at the limit ends all the same
                    ranked.append((total / ((4 + len(text)) / 6) ** length_penalty, text))
            ranked = sorted(ranked, reverse=True)[:3]
            found = [
                (score.item(), tuple(text.tolist())) for score, text in zip(out.scores[i], out.tokens[i])
            ]
            for (score, text), (expected, best) in zip(found, ranked):
                assert text[: len(best)] == best and not any(text[len(best) :])
                assert score == pytest.approx(expected, abs=1e-4)
            greedy_is_worse += tuple(w for w in first[i] if w) != tuple(w for w in found[0][1] if w)
    assert greedy_is_worse  # otherwise the test says nothing


# --- what a search must keep to ---------------------------------------------------------------------------


def test_one_beam_is_greedy():
    for seed in range(20):
        model, frames = TableModel(seed=seed, eos_bias=1.0), clips(4, seed)
        expected = greedy(model, frames, 12)
        for stop in STOPS:
            out = beam(model, frames, 1, 12, stop=stop)
            assert torch.equal(out.tokens, expected.tokens) and torch.equal(out.scores, expected.scores)


@torch.no_grad()
def test_cached_equals_uncached_and_one_beam_is_greedy_on_200_random_models():
    """What the search found step by step is what one pass over its captions says, the image read anew."""
    captions = set()
    for seed in range(200):
        frames = (None, 2)[seed % 2]
        model = lively_git(seed, frames=frames)
        pixels, _ = random_inputs(clips=1 + seed % 3, frames=frames, seed=seed)
        found = greedy(model, pixels, 7)
        one = beam(model, pixels, 1, 7)
        assert torch.equal(found.tokens, one.tokens) and torch.equal(found.scores, one.scores)
        text = found.tokens[:, 0]
        words = model(pixels, text[:, :-1]).logits.argmax(-1)
        assert torch.equal(words.masked_fill(text[:, 1:] == 0, 0), text[:, 1:])
        best = beam(model, pixels, 3, 7, num_return=3)
        text = best.tokens.flatten(0, 1)
        log_probs = model(pixels, text[:, :-1]).logits.log_softmax(-1).gather(2, text[:, 1:, None])[:, :, 0]
        real = text[:, 1:] != 0
        scores = (log_probs * real).sum(1) / real.sum(1)
        torch.testing.assert_close(scores, best.scores.flatten(), atol=1e-4, rtol=0)
        captions |= {tuple(caption) for caption in text.tolist()}
    assert len(captions) > 800


def draw(model, frames, **more):
    return sample(model, frames, 12, temperature=0.7, top_k=8, num_return=2, seed=1, **more)


def searches():
    """Every kind of search for the best captions, by name."""
    yield "greedy", lambda model, frames, **more: greedy(model, frames, 12, **more)
    for penalty, stop in itertools.product(("transformers", "gnmt"), STOPS):
        options = {"beams": 4, "max_length": 12, "penalty": penalty, "stop": stop, "num_return": 2}
        yield f"{penalty}-{stop}", lambda model, frames, o=options, **more: beam(model, frames, **o, **more)


SEARCHES = [pytest.param(run, id=name) for name, run in searches()]
best_first = pytest.mark.parametrize("search", SEARCHES)
every_search = pytest.mark.parametrize("search", [*SEARCHES, pytest.param(draw, id="sample")])


@best_first
def test_finished_rows_are_frozen(search):
    """Padding alone after the end token, and a clip's captions do not depend on its neighbours."""
    ends = set()
    for seed in range(5):
        model, frames = TableModel(seed=seed, eos_bias=1.0), clips(4, seed)
        out = search(model, frames)
        for i in range(4):
            alone = search(model, frames[i : i + 1])
            length = alone.tokens.shape[2]
            assert (
                torch.equal(out.tokens[i, :, :length], alone.tokens[0])
                and not out.tokens[i, :, length:].any()
            )
            torch.testing.assert_close(out.scores[i], alone.scores[0])
        for row in out.tokens.flatten(0, 1):
            end = int((row == 2).nonzero()[0]) if (row == 2).any() else len(row)
            assert not row[end + 1 :].any()
            ends.add(end)
    assert len(ends) >= 4


@best_first
def test_prefixes_of_different_lengths_are_continued_as_if_alone(search):
    """Tokens, scores and the trace of each clip are those of a batch of one."""
    prefixes = [[1, 5, 4, 7], [1], [1, 2, 6], [1, 9]]  # an end token inside a prefix ends nothing
    for seed in range(4):
        model, frames = TableModel(seed=seed, eos_bias=1.0), clips(4, seed)
        out = search(model, frames, prefix=prefixes, trace=True)
        for i, prefix in enumerate(prefixes):
            alone = search(model, frames[i : i + 1], prefix=prefix, trace=True)
            mine = out.trace["clip"] == i
            for name in set(out.trace) - {"clip"}:
                torch.testing.assert_close(out.trace[name][mine], alone.trace[name], equal_nan=True)
            length = alone.tokens.shape[2]
            assert torch.equal(out.tokens[i, :, :length], alone.tokens[0])
            assert not out.tokens[i, :, length:].any()
            torch.testing.assert_close(out.scores[i], alone.scores[0])


@every_search
def test_prefixes_of_different_lengths_may_be_padded(search):
    model, frames = TableModel(seed=1, eos_bias=1.0), clips(3)
    padded = torch.tensor([[1, 5, 4, 7], [1, 0, 0, 0], [1, 2, 6, 0]])
    out = search(model, frames, prefix=padded)
    assert torch.equal(search(model, frames, prefix=[[1, 5, 4, 7], [1], [1, 2, 6]]).tokens, out.tokens)
    for tokens, prefix in zip(out.tokens, padded):
        words = prefix[prefix != 0]
        assert (tokens[:, : len(words)] == words).all() and (tokens[:, len(words)] != 0).all()


@every_search
def test_the_model_is_left_as_it_was(search):
    class Caching(TableModel):
        """Keeps something in eval mode that is stale once training has gone on, as timm's TinyViT does."""

        cache = None

        def __init__(self):
            super().__init__()
            self.shared = nn.Sequential(self.norm)  # a second way to reach the same module

        def train(self, mode=True):
            self.cache = None if mode else self.cache
            return super().train(mode)

        def decode_step(self, tokens, state):
            self.cache = "biases"
            return super().decode_step(tokens, state)

    frames, expected = clips(2), search(TableModel().eval(), clips(2))
    model = Caching().train()
    model.norm.eval()
    calls = []
    model.dropout.register_forward_hook(lambda *_: calls.append(1))
    hooks, statistics = dict(model.dropout._forward_hooks), model.norm.running_mean.clone()
    out = search(model, frames)
    assert torch.equal(out.tokens, expected.tokens)  # dropout was off
    assert (model.training, model.dropout.training, model.norm.training) == (True, True, False)
    assert model.dropout._forward_hooks == hooks and len(calls) == out.steps
    assert torch.equal(model.norm.running_mean, statistics) and model.cache is None
    assert not model.grad and torch.is_grad_enabled()
    model.norm.train()
    with pytest.raises(ValueError):
        search(model, frames[:0])
    assert model.training and model.dropout.training


@every_search
def test_images_are_encoded_once_and_the_first_step_has_one_row_a_clip(search):
    model = TableModel()
    out = search(model, clips(3))
    assert model.starts == 1 and len(model.rows) == out.steps and model.rows[0] == 3
    assert set(model.rows[1:]) in ({3}, {6}, {12})


@best_first
def test_trace_tells_the_whole_search(search):
    """The best caption can be read off the trace, and every score adds up."""
    model, frames = TableModel(seed=3, eos_bias=1.0), clips(3)
    out = search(model, frames, trace=True)
    assert search(model, frames).trace is None
    rows = [dict(zip(out.trace, values)) for values in zip(*(c.tolist() for c in out.trace.values()))]
    kept = {(r["step"], r["clip"], r["beam"]): r for r in rows if r["kept"]}
    assert len(kept) == sum(r["kept"] for r in rows)
    assert len({(r["step"], r["clip"], r["parent"], r["token"]) for r in rows}) == len(rows)
    for row in rows:
        before = kept[row["step"] - 1, row["clip"], row["parent"]]["score"] if row["step"] else 0.0
        assert row["score"] == pytest.approx(before + row["log_prob"], abs=1e-4)
        assert not (row["kept"] and row["finished"]) and row["log_prob"] <= 0
    for clip in range(3):
        row = best = max((r for r in rows if r["clip"] == clip and r["finished"]), key=lambda r: r["final"])
        words = [row["token"]]
        while row["step"]:
            row = kept[row["step"] - 1, clip, row["parent"]]
            words.insert(0, row["token"])
        caption = out.tokens[clip, 0].tolist()
        if len(words) == 11 and caption[-1] == 2:
            words[-1] = 2  # Microsoft's search drops the last word at the limit
        assert caption[: len(words) + 1] == [1, *words]
        assert best["final"] == pytest.approx(out.scores[clip, 0].item(), abs=1e-5)


# --- mistakes ---------------------------------------------------------------------------------------------


class Broken(TableModel):
    """NaN for clip 1 from the third word on."""

    def decode_step(self, tokens, state):
        logits, state = super().decode_step(tokens, state)
        if state.tokens.shape[1] == 3:
            rows = len(tokens) // len(state.clips)
            logits[rows : 2 * rows, :, 4] = torch.nan
        return logits, state


@pytest.mark.parametrize(
    "options, message",
    [
        ({"beams": 0}, "beams must be from 1 to the vocabulary's 12, got 0"),
        ({"beams": 13}, "beams must be from 1 to the vocabulary's 12, got 13"),
        ({"num_return": 5}, r"num_return must be from 1 to beams \(4\), got 5"),
        ({"penalty": "google"}, "unknown penalty 'google': use one of transformers, gnmt"),
        ({"stop": "soon"}, "unknown stop 'soon': use one of current, never, first"),
        ({"max_length": 33}, "max_length 33 is above the model's 32 positions"),
        ({"max_length": 1}, "max_length 1 leaves no room after a prefix of 1 tokens"),
        ({"max_length": 2, "prefix": [1, 5, 6]}, "max_length 2 leaves no room after a prefix of 3 tokens"),
        ({"prefix": [1] * 40}, "a prefix of 40 tokens is longer than the model's 32 positions"),
        ({"prefix": [5, 6]}, "every prefix must begin with the start token 1"),
        ({"prefix": [1, 99]}, "prefix holds tokens outside the vocabulary of 12 words"),
        ({"prefix": [[1, 5, 0, 6], [1, 5, 6, 7]]}, "padded on the right: found a word after padding"),
        (
            {"max_length": 3, "prefix": [[1], [1, 5, 6]]},
            "max_length 3 leaves no room after a prefix of 3 tokens",
        ),
        ({"prefix": [[1, 5]] * 3}, r"prefix must be long \[P\] or \[2, P\]"),
        ({"prefix": [1.0]}, r"prefix must be long .* got torch.float32 \[2, 1\]"),
    ],
)
def test_mistakes_are_named(options, message):
    with pytest.raises(ValueError, match=message) as error:
        beam(TableModel(), clips(2), **options)
    assert "\n" not in str(error.value)
    if set(options) <= {"max_length", "prefix"}:
        with pytest.raises(ValueError, match=message):
            greedy(TableModel(), clips(2), **options)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"temperature": 0}, "temperature must be above 0, got 0; greedy search is its limit"),
        ({"top_k": 0}, "top_k must be at least 1, got 0"),
        ({"top_p": 0.0}, "top_p must be above 0 and at most 1, got 0.0"),
        ({"top_p": 1.1}, "top_p must be above 0 and at most 1, got 1.1"),
        ({"num_return": 0}, "num_return must be at least 1, got 0"),
        ({"max_length": 33}, "max_length 33 is above the model's 32 positions"),
    ],
)
def test_mistakes_in_sampling_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        sample(TableModel(), clips(2), **options)


@every_search
def test_processors_that_forbid_everything_are_named(search):
    def forbid(tokens, scores):
        rows = len(tokens) // 3
        if tokens.shape[1] == 4:
            scores[2 * rows :] = -torch.inf
        return scores

    with pytest.raises(ValueError, match="^the processors leave clip 2 no word at step 3$"):
        search(TableModel(eos_bias=-9.0), clips(3), processors=[forbid])


def test_a_seed_repeats_a_sample():
    model, frames = TableModel(eos_bias=-2.0), clips(3)
    tokens = [sample(model, frames, 12, seed=seed).tokens for seed in (0, 0, 1)]
    assert torch.equal(tokens[0], tokens[1]) and not torch.equal(tokens[0], tokens[2])
    generator = torch.Generator().manual_seed(0)
    assert torch.equal(sample(model, frames, 12, seed=generator).tokens, tokens[0])
    assert not torch.equal(sample(model, frames, 12, seed=generator).tokens, tokens[0])  # it has moved on
    torch.manual_seed(0)
    assert torch.equal(sample(model, frames, 12).tokens, tokens[0])


def test_a_sample_scores_what_the_model_thinks_of_it():
    """The mean of the model's own log-probabilities, whatever the temperature and the processors."""
    model, frames = TableModel(seed=2).eval(), clips(2)
    out = sample(model, frames, 6, temperature=3.0, top_k=5, num_return=2, seed=0, min_length=6)
    for clip, texts, scores in zip(model.prefill(frames).clips, out.tokens, out.scores):
        for text, score in zip(texts, scores):
            gains = [
                model.logits(clip[None], text[None, :i]).log_softmax(-1)[0, text[i]] for i in range(1, 6)
            ]
            torch.testing.assert_close(score, torch.stack(gains).mean())


@every_search
def test_an_empty_batch_and_nan_are_named(search):
    with pytest.raises(ValueError, match="the batch is empty"):
        search(TableModel(), clips(0))
    with pytest.raises(ValueError, match="NaN among the logits of clip 1 at step 2"):
        search(Broken(eos_bias=-9.0), clips(3))


def test_logits_of_finished_rows_do_not_matter():
    """A finished row is fed padding; what the model says then is never looked at."""

    class Brittle(TableModel):
        def logits(self, clip, tokens):
            ended = (tokens == self.eos_token_id).any(1, keepdim=True)
            return super().logits(clip, tokens).masked_fill(ended, torch.nan)

    frames = clips(4)
    out = greedy(Brittle(eos_bias=1.0), frames, 12)
    assert torch.equal(out.tokens, greedy(TableModel(eos_bias=1.0), frames, 12).tokens)
    assert len(set((out.tokens[:, 0] != 0).sum(1).tolist())) > 1
