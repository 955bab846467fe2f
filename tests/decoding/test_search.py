"""What every search keeps to: captions independent of their neighbours, the model as it was, a true trace."""

import pytest
import torch
from fakes import TableModel, clips, searches
from torch import nn

from gitdistill.decoding import beam, greedy, sample

SEARCHES = searches(
    every={"max_length": 12},
    beams={"beams": 4, "num_return": 2},
    draws={"temperature": 0.7, "top_k": 8, "num_return": 2, "seed": 1},
)
every_search = pytest.mark.parametrize("search", SEARCHES)
best_first = pytest.mark.parametrize("search", SEARCHES[:-1])  # no sampling


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
        (sample, {"temperature": 0}, "temperature must be at least 1e-06, got 0"),
        (sample, {"top_k": 0}, "top_k.* 0"),
        (sample, {"top_p": 1.1}, "top_p.* 1.1"),
        (sample, {"num_return": 0}, "num_return must be at least 1, a whole number, not 0"),
        (greedy, {"max_length": 5.5}, "max_length must be at least 1, a whole number, not 5.5"),
        (beam, {"num_return": "2"}, "num_return must be at least 1, a whole number, not '2'"),
    ],
)
def test_mistakes_are_named(search, options, message):
    with pytest.raises(ValueError, match=message) as error:
        search(TableModel(), clips(2), **options)
    assert "\n" not in str(error.value)


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
