"""Speculative captioning: the teacher's greedy captions exactly, whoever drafts."""

from itertools import takewhile

import pytest
import torch
from fakes import TableModel, clips
from tiny_git import lively_git, random_inputs
from torch.testing import assert_close

from gitdistill.decoding import greedy, speculative


def relative(model, seed, noise):
    """A copy whose weights are a little off, as a student's would be."""
    generator, other = torch.Generator().manual_seed(seed), lively_git(0)
    other.load_state_dict(model.state_dict())
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.add_(noise * torch.randn(parameter.shape, generator=generator))
    return other


def test_equals_greedy_on_random_pairs():
    """Twins, close and distant relatives and strangers draft, one to six words; one clip and batches."""
    rates, saved, lengths = torch.zeros(15, 4), 0, set()
    for seed in range(60):
        teacher, kind = lively_git(seed), seed % 4
        student = lively_git(seed + 1000) if kind == 3 else relative(teacher, seed, (0, 0.02, 0.1)[kind])
        pixels, _ = random_inputs(clips=1 + seed % 3, seed=seed)
        expected = greedy(teacher, pixels, 12)
        out = speculative(teacher, student, pixels, 12, draft=1 + seed % 6)
        assert torch.equal(out.tokens, expected.tokens), seed
        assert_close(out.scores, expected.scores)
        assert out.steps <= expected.steps and (out.accepted <= out.checked).all()
        rates[seed // 4, kind] = out.acceptance
        saved += expected.steps - out.steps
        lengths |= set((expected.tokens[:, 0] != 0).sum(1).tolist())
    assert saved > 90 and len(lengths) > 5
    twin, close, distant, stranger = rates.nanmean(0)
    assert twin == 1 > close > distant > stranger


@pytest.mark.parametrize("clip", range(3))
def test_the_passes_tell_how_a_caption_grew(clip):
    teacher, student = TableModel(seed=clip, eos_bias=1.0), TableModel(seed=clip, eos_bias=2.5)
    out = speculative(teacher, student, clips(1, clip), 14, draft=3)
    assert len(out.passes) == out.steps
    grown = torch.cat([gained for _, gained in out.passes], 1)
    grown = grown[grown != teacher.pad_token_id]
    assert grown.tolist() == out.tokens[0, 0, 1:].tolist()
    pairs = [zip(drafted[0].tolist(), gained[0].tolist()) for drafted, gained in out.passes]
    assert (
        sum(len(list(takewhile(lambda pair: pair[0] == pair[1], pass_))) for pass_ in pairs) == out.accepted
    )


@pytest.mark.parametrize("draft", [1, 2, 5, 30])
def test_captions_that_end_at_different_steps(draft):
    """Tables of words: next to no two texts go on alike. Half of the captions continue a prefix of their clip."""
    ends, prefixes = set(), torch.tensor([[1, 5, 7], [1, 2, 4], [1, 6, 6], [1, 4, 2], [1, 9, 3]])
    for seed in range(20):
        teacher, frames = TableModel(seed=seed, eos_bias=1.0), clips(5, seed)
        prefix = prefixes if seed % 2 else None
        expected = greedy(teacher, frames, 14, prefix)
        for drafter in (teacher, TableModel(seed=seed, eos_bias=2.5), TableModel(seed=seed + 100)):
            out = speculative(teacher, drafter, frames, 14, draft, prefix)
            assert torch.equal(out.tokens, expected.tokens)
            assert_close(out.scores, expected.scores)
        ends |= set((expected.tokens[:, 0] != 0).sum(1).tolist())
    assert len(ends) > 6


def test_acceptance_counts_each_word_once():
    class Sometimes(TableModel):
        """Wrong after every text of three, six or nine words."""

        def logits(self, clip, tokens):
            logits = super().logits(clip, tokens)
            return logits.roll(1, -1) if tokens.shape[1] % 3 == 0 else logits

    teacher, student = (kind(seed=1, eos_bias=-20.0).eval() for kind in (TableModel, Sometimes))
    for count in (1, 4):  # in a batch all rows stumble at the same words
        frames = clips(count)
        out = speculative(teacher, student, frames, 11, draft=4)
        assert torch.equal(out.tokens, greedy(teacher, frames, 11).tokens)
        # two words right and one wrong, three times; the tenth and last needs no draft
        assert out.steps == 4 and out.checked.tolist() == [9] * count and out.accepted.tolist() == [6] * count
        assert out.acceptance == pytest.approx(2 / 3)
    twin = speculative(teacher, teacher, frames, 11, draft=4)
    assert twin.steps == 2 and twin.checked.tolist() == twin.accepted.tolist() == [8] * 4  # 4 + 1 + 4 + 1


def test_a_clip_that_waits_for_another_is_not_checked_twice():
    class Unsure(TableModel):
        """Always wrong about all clips but one."""

        def logits(self, clip, tokens):
            logits = super().logits(clip, tokens)
            return logits.where((clip == clip.min())[:, None], logits.roll(1, -1))

    teacher, student = (kind(seed=1, eos_bias=-20.0).eval() for kind in (TableModel, Unsure))
    frames = clips(3)
    good = int(teacher.prefill(frames).clips.argmin())
    out = speculative(teacher, student, frames, 11, draft=3)
    assert torch.equal(out.tokens, greedy(teacher, frames, 11).tokens)
    assert out.steps == 10  # one word at a time
    checked, accepted = out.checked.tolist(), out.accepted.tolist()
    # three right words at first; all that follows the large model has said before, while it waited
    assert checked.pop(good) == accepted.pop(good) == 3
    assert checked == [9, 9] and accepted == [0, 0]


def test_the_models_are_left_as_they_were():
    teacher, student = TableModel().train(), TableModel(seed=1).train()
    speculative(teacher, student, clips(2))
    assert teacher.training and student.dropout.training
    assert not teacher.grad and not student.grad and teacher.starts == student.starts == 1


@pytest.mark.parametrize(
    "student, options, message",
    [
        (TableModel(), {"draft": 0}, "draft must be at least 1, a whole number, not 0"),
        (TableModel(), {"draft": 2.5}, "draft must be at least 1, a whole number, not 2.5"),
        (TableModel(13), {}, "must share a vocabulary: vocab_size is 12 and 13"),
        (TableModel(max_positions=10), {"max_length": 11}, "at most the model's 10 positions"),
        (TableModel(), {"max_length": 5.5}, "max_length must be at least 1, a whole number, not 5.5"),
        (TableModel(), {"prefix": [[1, 4], [1]]}, "prefixes of one length"),
    ],
)
def test_mistakes_are_named(student, options, message):
    with pytest.raises(ValueError, match=message):
        speculative(TableModel(), student, clips(2), **options)


def test_nan_is_named():
    class Broken(TableModel):
        def logits(self, clip, tokens):
            logits = super().logits(clip, tokens)
            return logits.masked_fill(torch.arange(len(logits))[:, None] == 1, torch.nan)

    with pytest.raises(ValueError, match="NaN .* clip 1 at step 0"):
        speculative(Broken(), TableModel(), clips(3))
