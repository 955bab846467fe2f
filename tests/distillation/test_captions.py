"""Captions made for training: the teacher's own, which of them are good enough, and those that the student draws."""

import pytest
import tiny
import torch
from fits import ALL, NONE, distillation, fit_quietly

from gitdistill import DistillationTrainer
from gitdistill.decoding import beam, sample
from gitdistill.distillation import trainer
from gitdistill.distillation.cache import TeacherCache
from gitdistill.distillation.captions import (
    CaptionFilter,
    draw_captions,
    pseudo_captions,
    repetition,
    word_f1,
)

WORDS = {**NONE, "kl": 1.0, "hidden": 1.0, "attention": 1.0, "relations": 1.0, "features": 1.0}
FRAMES = torch.randint(0, 256, (3, tiny.FRAMES, 3, tiny.SIDE, tiny.SIDE), dtype=torch.uint8)


def test_repetition_counts_trigrams_that_occurred_before():
    assert repetition([5, 6, 7, 8]) == 0
    assert repetition([5, 6, 7, 5, 6, 7]) == pytest.approx(1 / 4)  # 567 675 756 567
    assert repetition([5] * 6) == pytest.approx(3 / 4)
    assert repetition([5, 6]) == repetition([]) == 0


def test_word_f1_counts_words_as_often_as_they_occur():
    assert word_f1([5, 6], [6, 5]) == 1 and word_f1([], []) == 1
    assert word_f1([5, 6], [7]) == word_f1([5], []) == 0
    assert word_f1([5, 5, 6], [5, 7]) == pytest.approx(2 / 5)


def test_pseudo_captions_are_the_beams_and_their_quality_is_measured():
    teacher = tiny.teacher()
    tokens, quality = pseudo_captions(teacher, FRAMES, 2, max_length=8)
    expected = beam(teacher, FRAMES, beams=4, max_length=8, num_return=4)
    assert torch.equal(tokens, expected.tokens[:, :2]) and quality.shape == (3, 2, 3)
    torch.testing.assert_close(quality[..., 0], expected.scores[:, :2])
    words = [[w for w in row if w > 4] for row in expected.tokens[1].tolist()]
    agreement = sum(word_f1(words[1], words[k]) for k in (0, 2, 3)) / 3
    assert quality[1, 1, 2].item() == pytest.approx(agreement)
    assert quality[1, 1, 1].item() == pytest.approx(repetition(words[1]))


@pytest.mark.parametrize(
    "limits, passing",
    [
        ({}, [True, True, True]),
        ({"confidence": -0.5}, [True, False, True]),
        ({"repetition": 0.0}, [True, True, False]),
        ({"agreement": 0.6}, [False, True, True]),
    ],
)
def test_captions_are_filtered(limits, passing):
    quality = torch.tensor([[-0.1, 0.0, 0.5], [-0.9, 0.0, 0.9], [-0.3, 0.2, 0.9]])
    caption_filter = CaptionFilter(**limits)
    assert caption_filter(quality).tolist() == passing
    tokens = torch.tensor([[2, 5, 6, 3], [2, 7, 3, 0], [2, 8, 3, 0]])
    filtered = caption_filter.apply(tokens, quality, pad_id=0)
    assert (filtered[:, 0] == 2).all() and filtered[:, 1:].any(1).tolist() == passing
    assert torch.equal(filtered[passing], tokens[passing]) and tokens[:, 1:].any(1).all()


# on-policy distillation: the student draws captions, the teacher grades them


def test_the_captions_are_those_of_sample(batch):
    student, frames = tiny.student(), batch["frames"]
    drawn = draw_captions(student, frames, 1.0, 0.7, 8, seed=5)
    assert torch.equal(drawn, sample(student, frames, 8, temperature=0.7, seed=5).tokens)
    some = draw_captions(student, frames, 0.5, 1.0, 8, seed=5)
    chosen = (some[:, 0] != 0).sum(-1) > 1
    assert chosen.sum() == 2 and (some[:, 0, 0] == student.bos_token_id).all()
    expected = sample(student, frames[chosen], 8, seed=5).tokens
    assert torch.equal(some[chosen], expected) and not some[~chosen, 0, 1:].any()


def test_a_share_is_met_on_average(batch):
    student, frames = tiny.student(), batch["frames"][:3]
    drawn = (draw_captions(student, frames, 0.2, 1.0, 3, seed) for seed in range(50))
    counts = [int((tokens[..., 1:] != 0).any(-1).sum()) for tokens in drawn]
    assert set(counts) == {0, 1} and 0.4 < sum(counts) / 50 < 0.8


def test_every_term_of_the_teacher_is_computed_on_them(batch):
    torch.manual_seed(3)
    found = distillation(**WORDS, own_captions=1.0)
    outputs = found.outputs(batch)
    own = draw_captions(found.student, batch["frames"], 1.0, 1.0, 8, torch.initial_seed())
    assert (outputs.num_captions, outputs.num_own, outputs.tokens.shape[1]) == (2, 1, 3)
    drawn, padding = outputs.tokens[:, 2:].tensor_split([own.shape[2]], dim=2)
    assert torch.equal(drawn, own) and not padding.any()
    # as if they had been captions of the batch
    joined = {**batch, "tokens": outputs.tokens.flatten(0, 1)}
    expected, values = distillation(**WORDS).unweighted_terms(joined), found.unweighted_terms(batch)
    for name in set(expected) - {"cross_entropy"}:
        torch.testing.assert_close(values[name], expected[name])
    assert not torch.allclose(values["kl"], distillation(**WORDS).unweighted_terms(batch)["kl"])


def test_captions_and_sequence_learn_nothing_from_them(batch):
    settings = {**NONE, "cross_entropy": 1.0, "kl": 1.0, "sequence": 1.0}
    plain, own = (distillation(**settings, own_captions=share).unweighted_terms(batch) for share in (0, 1))
    for name in ("cross_entropy", "sequence"):
        torch.testing.assert_close(plain[name], own[name])


def test_no_captions_of_the_clips_are_needed(batch):
    batch["tokens"] = torch.full((8, 1), 2)
    found = distillation(**{**NONE, "kl": 1.0}, own_captions=1.0)
    found.loss_terms(batch)["kl"].backward()
    assert found.student.words.weight.grad.any()


def test_the_seed_and_the_step_decide(batch, monkeypatch):
    def tokens(seed, step):
        torch.manual_seed(seed)
        monkeypatch.setattr(DistillationTrainer, "global_step", step)
        return found.outputs(batch).tokens[:, -1].tolist()

    found = distillation(own_captions=1.0)
    assert tokens(0, 1) == tokens(0, 1) != tokens(0, 2)
    assert tokens(1, 1) != tokens(0, 1)


def test_batches_of_one_step_draw_other_captions(data, monkeypatch):
    seeds, draw = [], trainer.draw_captions
    monkeypatch.setattr(trainer, "draw_captions", lambda *given: seeds.append(given[-1]) or draw(*given))
    fit_quietly(distillation(own_captions=1.0), data, max_steps=2, accumulate_grad_batches=2)
    # the check of gradients draws as the first batch does
    assert len(seeds) == 5 and len(set(seeds)) == 4


def test_without_them_no_random_number_is_drawn(batch):
    found, state = distillation(own_captions=0.0), torch.get_rng_state()
    found.loss_terms(batch)
    assert torch.equal(torch.get_rng_state(), state)


def test_with_a_cache_the_image_encoder_does_not_run(batch, data, tmp_path, monkeypatch):
    settings = {**WORDS, "kl": 1.0, "own_captions": 1.0}
    live = distillation(**settings)
    exact = {"k": 10_000, "dtype": "float32", "feature_dtype": "float32", "say": lambda _: None}
    cached = distillation(**settings, cache=tmp_path)
    assert cached.spec.visual_features and not live.spec.visual_features
    cached._cache = TeacherCache.build(tmp_path, cached.teacher, data, cached.spec, **exact)
    monkeypatch.setattr(cached.teacher.model, "encode", None)
    torch.manual_seed(0)
    expected, found = live.unweighted_terms(batch), cached.unweighted_terms(batch)
    for name in expected:
        torch.testing.assert_close(found[name], expected[name], rtol=1e-4, atol=1e-5)


def test_a_fit_with_a_cache_that_lacks_visual_features_names_them(data, tmp_path):
    fit_quietly(distillation(cache=tmp_path), data, max_steps=1)
    with pytest.raises(ValueError, match="lacks visual_features: build another"):
        fit_quietly(distillation(cache=tmp_path, own_captions=0.5), data, max_steps=1)


def test_a_fit_with_every_term_and_a_vocab_subset(data, tmp_path):
    words = next(iter(data.train_dataloader()))["tokens"].unique().tolist()
    student = tiny.student(vocab_subset=words)
    before = student.words.weight.clone()
    found = distillation(student, **ALL, own_captions=0.5, beta=0.5, cache=tmp_path)
    fit_quietly(found, data, max_steps=2)
    assert not torch.equal(before, student.words.weight)
