"""What every search keeps to: captions independent of their neighbours, the model as it was, a true trace."""

import itertools

import pytest
import torch
from fakes import TableModel, clips
from tiny_git import lively_git, random_inputs
from torch import nn

from gitdistill.decoding import beam, greedy, sample

STOPS = ("current", "never", "first")


@torch.no_grad()
def test_cached_equals_uncached_and_one_beam_is_greedy_on_random_models():
    """What the search found step by step is what one pass over its captions says, the image read anew."""
    captions = set()
    for seed in range(60):
        frames = (None, 2)[seed % 2]
        model = lively_git(seed, frames=frames)
        pixels, _ = random_inputs(clips=1 + seed % 3, frames=frames, seed=seed)
        found, one = greedy(model, pixels, 7), beam(model, pixels, 1, 7)
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
    assert len(captions) > 240


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


def same_captions(batch, clip, alone):
    """A clip's captions and scores in a batch are those it has alone, padding aside."""
    length = alone.tokens.shape[2]
    assert torch.equal(batch.tokens[clip, :, :length], alone.tokens[0])
    assert not batch.tokens[clip, :, length:].any()
    torch.testing.assert_close(batch.scores[clip], alone.scores[0])


@best_first
def test_finished_captions_are_frozen(search):
    """Padding alone after the end token, and a clip's captions do not depend on its neighbours."""
    ends = set()
    for seed in range(5):
        model, frames = TableModel(seed=seed, eos_bias=1.0), clips(4, seed)
        out = search(model, frames)
        for i in range(4):
            same_captions(out, i, search(model, frames[i : i + 1]))
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
            same_captions(out, i, alone)
        padded = torch.tensor([[1, 5, 4, 7], [1, 0, 0, 0], [1, 2, 6, 0], [1, 9, 0, 0]])
        assert torch.equal(search(model, frames, prefix=padded).tokens, out.tokens)


@every_search
def test_the_model_is_left_as_it_was(search):
    class Caching(TableModel):
        """Keeps something in eval mode that is stale once training has gone on, as timm's TinyViT does."""

        biases = None

        def __init__(self):
            super().__init__()
            self.shared = nn.Sequential(self.norm)  # a second way to reach the same module

        def train(self, mode=True):
            self.biases = None if mode else self.biases
            return super().train(mode)

        def decode_step(self, tokens, cache):
            self.biases = "kept"
            return super().decode_step(tokens, cache)

    frames, expected = clips(2), search(TableModel().eval(), clips(2))
    model, calls = Caching().train(), []
    model.norm.eval()
    model.dropout.register_forward_hook(lambda *_: calls.append(1))
    out = search(model, frames)
    assert torch.equal(out.tokens, expected.tokens)  # dropout was off
    assert (model.training, model.dropout.training, model.norm.training) == (True, True, False)
    assert not model.norm.running_mean.any() and model.biases is None
    assert len(calls) == out.steps and search(model, frames).steps == len(calls) / 2  # the hook stays
    assert not model.grad and torch.is_grad_enabled()
    with pytest.raises(ValueError):
        search(model, frames, processors=[lambda tokens, scores: scores - torch.inf])
    assert model.training and model.dropout.training and not model.norm.training


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


@pytest.mark.parametrize(
    "search, options, message",
    [
        (greedy, {"max_length": 33}, "at most .* 32 positions, got 33"),
        (beam, {"max_length": 3, "prefix": [[1], [1, 5, 6]]}, "above the 3 tokens of the prefix"),
        (sample, {"prefix": [5, 6]}, "start token 1"),
        (greedy, {"prefix": [1, 99]}, r"words of the vocabulary.* got \[1, 99\]"),
        (beam, {"prefix": [[1, 5, 0, 6], [1, 5, 6, 7]]}, r"padding.* got \[1, 5, 0, 6\]"),
        (greedy, {"prefix": [[1, 5]] * 3}, r"prefix must be long \[P\] or \[2, P\]"),
        (beam, {"prefix": []}, "prefix must be long"),
        (beam, {"beams": 13}, "beams must be from 1 to the vocabulary's 12, got 13"),
        (beam, {"num_return": 5}, r"num_return must be from 1 to beams \(4\), got 5"),
        (beam, {"penalty": "google"}, "unknown penalty 'google': use one of transformers, gnmt"),
        (beam, {"stop": "soon"}, "unknown stop 'soon': use one of current, never, first"),
        (sample, {"temperature": 0}, "temperature must be above 0, got 0"),
        (sample, {"top_k": 0}, "top_k.* 0"),
        (sample, {"top_p": 1.1}, "top_p.* 1.1"),
        (sample, {"num_return": 0}, "num_return must be at least 1, a whole number, not 0"),
        (greedy, {"max_length": 5.5}, "max_length must be at least 1, a whole number, not 5.5"),
        (sample, {"num_return": 1.5}, "num_return must be at least 1, a whole number, not 1.5"),
        (beam, {"beams": 2.5}, "beams must be at least 1, a whole number, not 2.5"),
        (beam, {"num_return": "2"}, "num_return must be at least 1, a whole number, not '2'"),
    ],
)
def test_mistakes_are_named(search, options, message):
    with pytest.raises(ValueError, match=message) as error:
        search(TableModel(), clips(2), **options)
    assert "\n" not in str(error.value)


@every_search
def test_an_empty_batch_nan_and_processors_that_forbid_everything_are_named(search):
    class Broken(TableModel):
        def logits(self, clip, tokens):
            logits, third = super().logits(clip, tokens), len(tokens) // 3
            if tokens.shape[1] == 3:
                logits[third : 2 * third, 4] = torch.nan
            return logits

    def forbid(tokens, scores):
        if tokens.shape[1] == 4:
            scores[2 * len(tokens) // 3 :] = -torch.inf
        return scores

    with pytest.raises(ValueError, match="the batch is empty"):
        search(TableModel(), clips(0))
    with pytest.raises(ValueError, match="NaN .* clip 1 at step 2"):
        search(Broken(eos_bias=-9.0), clips(3))
    with pytest.raises(ValueError, match="processors .* clip 2 .* step 3"):
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
            log_probs = [model.logits(clip[None], text[None, :i]).log_softmax(-1) for i in range(1, 6)]
            torch.testing.assert_close(score, torch.cat(log_probs).gather(1, text[1:, None]).mean())


def test_logits_of_finished_captions_do_not_matter():
    """A finished caption is fed padding; what the model predicts then is never read."""

    class Brittle(TableModel):
        def logits(self, clip, tokens):
            ended = (tokens == self.eos_token_id).any(1, keepdim=True)
            return super().logits(clip, tokens).masked_fill(ended, torch.nan)

    frames = clips(4)
    out = greedy(Brittle(eos_bias=1.0), frames, 12)
    assert torch.equal(out.tokens, greedy(TableModel(eos_bias=1.0), frames, 12).tokens)
    assert len(set((out.tokens[:, 0] != 0).sum(1).tolist())) > 1
