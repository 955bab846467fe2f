"""On-policy distillation: the student draws captions, the teacher grades them."""

import pytest
import pytorch_lightning as pl
import tiny
import torch
from test_trainer import NONE, QUIET, TERMS, silent

from gitdistill import DistillationTrainer
from gitdistill.decoding import sample
from gitdistill.distillation import losses
from gitdistill.distillation import trainer as trainer_module
from gitdistill.distillation.cache import TeacherCache
from gitdistill.distillation.captions import draw_captions
from gitdistill.world.module import ToyboxData

LENGTH = 8
WORDS = {**NONE, "kl": 1.0, "hidden": 1.0, "attention": 1.0, "relations": 1.0, "features": 1.0}


@pytest.fixture
def data():
    sizes = {"train_clips": 8, "val_clips": 2, "test_clips": 2, "unseen_clips": 2, "batch_size": 4}
    images = {"num_frames": tiny.FRAMES, "image_size": tiny.SIDE}
    return ToyboxData(**sizes, **images, captions_per_clip=2, fresh_captions=False, max_tokens=20)


@pytest.fixture
def batch(data):
    return next(iter(data.train_dataloader()))


def module(**options):
    options = {"max_length": LENGTH, **options}
    return silent(DistillationTrainer(tiny.teacher(), tiny.student(), **options).eval())


def test_the_captions_are_those_of_sample(batch):
    student, frames = tiny.student(), batch["frames"]
    drawn = draw_captions(student, frames, 1.0, 0.7, LENGTH, seed=5)
    assert torch.equal(drawn, sample(student, frames, LENGTH, temperature=0.7, seed=5).tokens)
    some = draw_captions(student, frames, 0.5, 1.0, LENGTH, seed=5)
    chosen = (some[:, 0] != 0).sum(-1) > 1
    assert chosen.sum() == 2 and (some[:, 0, 0] == student.bos_token_id).all()
    expected = sample(student, frames[chosen], LENGTH, seed=5).tokens
    assert torch.equal(some[chosen], expected) and not some[~chosen, 0, 1:].any()


def test_a_share_is_met_on_average(batch):
    student, frames = tiny.student(), batch["frames"][:3]
    counts = [
        int((draw_captions(student, frames, 0.2, 1.0, 3, seed)[..., 1:] != 0).any(-1).sum())
        for seed in range(50)
    ]
    assert set(counts) == {0, 1} and 0.4 < sum(counts) / 50 < 0.8


def test_every_term_of_the_teacher_is_computed_on_them(batch):
    torch.manual_seed(3)
    found = module(**WORDS, own_captions=1.0)
    outputs = found.outputs(batch)
    own = draw_captions(found.student, batch["frames"], 1.0, 1.0, LENGTH, torch.initial_seed())
    assert (outputs.num_captions, outputs.num_own, outputs.tokens.shape[1]) == (2, 1, 3)
    assert (
        torch.equal(outputs.tokens[:, 2:, : own.shape[2]], own)
        and not outputs.tokens[:, 2:, own.shape[2] :].any()
    )
    # as if they had been captions of the batch
    joined = {**batch, "tokens": outputs.tokens.flatten(0, 1)}
    expected, values = module(**WORDS).unweighted_terms(joined), found.unweighted_terms(batch)
    for name in set(expected) - {"cross_entropy"}:
        torch.testing.assert_close(values[name], expected[name])
    assert not torch.allclose(values["kl"], module(**WORDS).unweighted_terms(batch)["kl"])


def test_captions_and_sequence_learn_nothing_from_them(batch):
    settings = {**NONE, "cross_entropy": 1.0, "kl": 1.0, "sequence": 1.0}
    plain, own = (module(**settings, own_captions=share).unweighted_terms(batch) for share in (0, 1))
    for name in ("cross_entropy", "sequence"):
        torch.testing.assert_close(plain[name], own[name])


def test_no_captions_of_the_clips_are_needed(batch):
    batch["tokens"] = torch.full((8, 1), 2)
    found = module(**{**NONE, "kl": 1.0}, own_captions=1.0)
    found.loss_terms(batch)["kl"].backward()
    assert found.student.words.weight.grad.any()


def test_the_seed_and_the_step_decide(batch, monkeypatch):
    def tokens(seed, step):
        torch.manual_seed(seed)
        monkeypatch.setattr(DistillationTrainer, "global_step", step)
        return found.outputs(batch).tokens[:, -1].tolist()

    found = module(own_captions=1.0)
    assert tokens(0, 1) == tokens(0, 1) != tokens(0, 2)
    assert tokens(1, 1) != tokens(0, 1)


def test_without_them_no_random_number_is_drawn_and_nothing_changes(batch):
    plain, none = module(), module(own_captions=0.0)
    state = torch.get_rng_state()
    values = [found.loss_terms(batch) for found in (plain, none)]
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(value, values[1][name]) for name, value in values[0].items())


def test_with_a_cache_the_image_encoder_does_not_run(batch, data, tmp_path, monkeypatch):
    settings = {**WORDS, "kl": 1.0, "own_captions": 1.0}
    live = module(**settings)
    exact = {"k": 10_000, "dtype": "float32", "feature_dtype": "float32", "say": lambda _: None}
    cached = module(**settings, cache=tmp_path)
    assert cached.spec.visual_features and not live.spec.visual_features
    cached._cache = TeacherCache.build(tmp_path, cached.teacher, data, cached.spec, **exact)
    monkeypatch.setattr(cached.teacher.model, "encode", None)
    torch.manual_seed(0)
    expected, found = live.unweighted_terms(batch), cached.unweighted_terms(batch)
    for name in expected:
        torch.testing.assert_close(found[name], expected[name], rtol=1e-4, atol=1e-5)


def test_a_fit_with_a_cache_that_lacks_visual_features_names_them(data, tmp_path):
    short = {"max_length": LENGTH, "cache": tmp_path}
    pl.Trainer(**QUIET, fast_dev_run=1).fit(
        DistillationTrainer(tiny.teacher(), tiny.student(), **short), data
    )
    found = DistillationTrainer(tiny.teacher(), tiny.student(), **short, own_captions=0.5)
    with pytest.raises(ValueError, match="lacks visual_features: build another"):
        pl.Trainer(**QUIET, fast_dev_run=1).fit(found, data)


def test_a_fit_with_every_term_and_a_vocab_subset(data, tmp_path):
    words = next(iter(data.train_dataloader()))["tokens"].unique().tolist()
    student = tiny.student(vocab_subset=words)
    options = dict.fromkeys(TERMS, 1.0) | {"own_captions": 0.5, "beta": 0.5, "max_length": LENGTH}
    found = DistillationTrainer(tiny.teacher(), student, **options, cache=tmp_path)
    before = student.words.weight.clone()
    pl.Trainer(**QUIET, max_steps=2).fit(found, data)
    assert not torch.equal(before, student.words.weight)


@pytest.mark.parametrize(
    "options", [{"own_captions": 1.1}, {"own_captions": -1}, {"own_captions": 0.5, "kl": 0}]
)
def test_shares_that_make_no_sense(options):
    with pytest.raises(ValueError, match="own_captions must be between 0 and 1"):
        module(**options)


@pytest.mark.parametrize("beta", [0.0, 0.3, 1.0])
def test_the_gradient_of_kl_on_drawn_captions_is_that_of_finite_differences(batch, beta):
    found = module(**{**NONE, "kl": 1.0}, own_captions=1.0, beta=beta)
    outputs = found.outputs(batch)
    logits = outputs.student["logits"].detach().double()[-2:, :4]
    tokens = outputs.tokens.flatten(0, 1)[-2:, :4]
    target = outputs.teacher["logits"][-2:, :4].double()
    assert torch.autograd.gradcheck(
        lambda x: losses.kl(x, target, tokens, 0, 1.0, beta), logits.requires_grad_(), eps=1e-5, atol=1e-6
    )


def test_batches_of_one_step_draw_other_captions(data, monkeypatch):
    seeds, draw = [], trainer_module.draw_captions

    def watched(student, frames, share, temperature, max_length, seed):
        seeds.append(seed)
        return draw(student, frames, share, temperature, max_length, seed)

    monkeypatch.setattr(trainer_module, "draw_captions", watched)
    distillation = DistillationTrainer(tiny.teacher(), tiny.student(), own_captions=1.0, max_length=LENGTH)
    pl.Trainer(max_steps=2, accumulate_grad_batches=2, **QUIET).fit(distillation, data)
    # the check of gradients draws as the first batch does
    assert len(seeds) == 5 and len(set(seeds)) == 4
