"""The example terms against numbers worked out by hand or by enumeration, and terms of one's own in the trainer."""

import itertools
import math
from pathlib import Path

import pytest
import terms
import tiny
import torch
from fits import NONE, distillation

from gitdistill.distillation import losses
from gitdistill.distillation.cache import TeacherCache
from gitdistill.distillation.checks import check_gradients
from gitdistill.distillation.custom_terms import View, named_terms, uses


@pytest.fixture
def batch():
    return next(iter(tiny.data().train_dataloader()))


def module(**options):
    return distillation(**NONE | options)


def views(ours, theirs, tokens, drawn=(False,)):
    """Two views of one clip with one caption."""
    shared = torch.tensor(tokens)[None, None], torch.tensor(tokens)[None, None] != 0, torch.tensor(drawn)
    return (View(*shared, logits=torch.tensor(x)[None, None]) for x in (ours, theirs))


def test_decoupled_is_the_divergence_of_two_parts():
    """Next word 1 of three; the student gives it 0.5 and the others 0.25 each, the teacher 0.6, 0.3 and 0.1."""
    q, p = [0.25, 0.5, 0.25], [0.3, 0.6, 0.1]
    logits = ([[math.log(x) for x in row], [0.0] * 3] for row in (q, p))
    value = terms.decoupled(*views(*logits, [2, 1]), alpha=1.0, beta=2.0)
    target = 0.6 * math.log(0.6 / 0.5) + 0.4 * math.log(0.4 / 0.5)
    others = 0.75 * math.log(0.75 / 0.5) + 0.25 * math.log(0.25 / 0.5)
    assert float(value) == pytest.approx(target + 2 * others, abs=1e-6)


def test_dist_is_one_minus_the_correlations():
    """Two tokens, two words: within a token the order agrees; between the tokens it is reversed for both words."""
    q, p = [[0.6, 0.4], [0.8, 0.2]], [[0.9, 0.1], [0.7, 0.3]]
    logits = ([*([math.log(x) for x in row] for row in rows), [0.0, 0.0]] for rows in (q, p))
    assert float(terms.dist(*views(*logits, [1, 1, 1]))) == pytest.approx((1 - 1) + (1 + 1), abs=1e-5)


def test_standardised_forgets_scale_and_shift():
    ours, theirs = [[1.0, 2.0, 4.0], [0.0] * 3], [[12.0, 14.0, 18.0], [0.0] * 3]
    assert float(terms.standardised(*views(ours, theirs, [2, 1]))) == pytest.approx(0, abs=1e-5)
    z = torch.tensor([-1.0, 0.0, 1.0]) / math.sqrt(2 / 3)  # of 1, 2, 3
    q, p = (z / 2).softmax(0), (-z / 2).softmax(0)
    value = terms.standardised(*views([[1.0, 2.0, 3.0], [0.0] * 3], [[3.0, 2.0, 1.0], [0.0] * 3], [2, 1]))
    assert float(value) == pytest.approx(float(4 * (p * (p / q).log()).sum()), rel=1e-4)


def features(*clips):
    """A view whose clips have one frame with one image token."""
    return View(None, None, None, image_features=torch.tensor(clips)[:, None, None])


def test_relational_compares_distances_in_units_of_their_mean():
    ours = features([0.0, 0.0], [3.0, 0.0], [0.0, 4.0])  # distances 3, 4, 5
    assert float(terms.relational(ours, features([0.0], [30.0], [40.0]))) > 0
    assert float(terms.relational(ours, features([0.0, 0.0], [6.0, 0.0], [0.0, 8.0]))) == pytest.approx(0)
    theirs = features([0.0], [1.0], [2.0])  # distances 1, 2, 1
    expected = [(a / 4 - b / (4 / 3)) ** 2 / 2 for a, b in zip((3, 4, 5), (1, 2, 1))]
    assert float(terms.relational(ours, theirs)) == pytest.approx(sum(expected) / 3, rel=1e-5)


def test_activation_maps_compare_where_not_what():
    ours = View(None, None, None, image_features=torch.tensor([[[[1.0, 2.0], [2.0, 1.0], [0.0, 0.0]]]]))
    same = View(None, None, None, image_features=torch.tensor([[[[7.0], [-7.0], [0.0]]]]))
    other = View(None, None, None, image_features=torch.tensor([[[[0.0], [0.0], [3.0]]]]))
    assert float(terms.activation_maps(ours, same)) == pytest.approx(0, abs=1e-6)
    assert float(terms.activation_maps(ours, other)) == pytest.approx(2, rel=1e-5)


def test_contrastive_is_the_cross_entropy_of_finding_ones_own_clip():
    term = terms.Contrastive(2, 2, 2, temperature=0.5)
    for head in term.heads:
        head.weight.data, head.bias.data = torch.eye(2), torch.zeros(2)
    one = features([1.0, 0.0], [0.0, 1.0])
    assert float(term(one, one)) == pytest.approx(math.log(1 + math.exp(-2)), rel=1e-5)


def test_self_critical_has_the_gradient_of_the_expected_reward():
    """Two clips, captions of two of the words 1 and 2: all 16 pairs of captions, weighed by their probability."""
    logits = torch.randn(2, 2, 3, dtype=torch.double, generator=torch.Generator().manual_seed(0))
    logits[:, :, 0] = -1e9  # padding is never drawn
    logits.requires_grad_()
    worth = {(1, 1): 0.3, (1, 2): 1.0, (2, 1): -0.5, (2, 2): 0.1}
    term = terms.SelfCritical(lambda drawn, others: [worth[tuple(row[1:].tolist())] for row in drawn])
    log_q, captions = logits.log_softmax(-1), list(worth)

    def log_probability(clip, caption):
        return log_q[clip, 0, caption[0]] + log_q[clip, 1, caption[1]]

    total = 0.0
    for pair in itertools.product(captions, captions):
        tokens = torch.tensor([[[5, 1, 0], [5, *caption]] for caption in pair])
        rows = torch.cat([logits, logits.new_zeros(2, 1, 3)], dim=1)[:, None].expand(-1, 2, -1, -1)
        view = View(tokens, tokens != 0, torch.tensor([False, True]), logits=rows)
        chance = sum(log_probability(clip, caption) for clip, caption in enumerate(pair)).exp().detach()
        total = total + chance * term(view, None)
    (found,) = torch.autograd.grad(total, logits, retain_graph=True)
    expected = sum(log_probability(clip, c).exp() * worth[c] for clip in range(2) for c in captions) / 2
    (exact,) = torch.autograd.grad(-expected, logits)
    torch.testing.assert_close(found, exact)


EXAMPLES = terms.decoupled, terms.dist, terms.standardised, terms.relational, terms.activation_maps
examples = pytest.mark.parametrize("term", EXAMPLES, ids=lambda term: term.__name__)


@examples
def test_gradients_are_those_of_finite_differences(term):
    generator = torch.Generator().manual_seed(2)
    tokens = torch.tensor([[[3, 1, 2, 0], [3, 2, 0, 0]]] * 3)
    used = getattr(term, "uses", ("logits",))[0]
    shape = {"logits": (3, 2, 4, 5), "image_features": (3, 1, 4, 6)}[used]
    ours, theirs = (torch.randn(*shape, generator=generator, dtype=torch.double) for _ in range(2))
    shared = tokens, tokens != 0, torch.zeros(2, dtype=torch.bool)

    def value(x):
        return term(View(*shared, **{used: x}), View(*shared, **{used: theirs}))

    assert torch.autograd.gradcheck(value, ours.requires_grad_())


@examples
def test_an_example_trains_the_student(batch, term):
    found = module(terms={"example": (term, 0.5)})
    check_gradients(found, batch)
    value = found.loss_terms(batch)["example"]
    torch.testing.assert_close(value, 0.5 * found.unweighted_terms(batch)["example"])
    value.backward()
    assert all(p.grad is not None for p in found.student.backbone.net.stages_2.parameters())
    assert all(p.grad is None for p in found.teacher.parameters())


def test_a_term_with_parameters_trains_them(batch):
    found = module(terms={"contrastive": (terms.Contrastive(32, 32), 1.0)})
    found.loss_terms(batch)["contrastive"].backward()
    assert all(p.grad is not None for name, p in found.named_parameters() if "contrastive" in name)
    assert any("contrastive" in name for name in found.state_dict())


def test_self_critical_in_the_trainer(batch):
    """Random captions all score 0, so the reward of a word that they have stands in for CIDEr."""
    cider = terms.cider_reward(tiny.teacher().tokenizer)

    def reward(drawn, others):
        assert len(cider(drawn, others)) == len(batch["frames"])
        return (drawn % 2).float().mean(-1)

    found = module(terms={"self_critical": (terms.SelfCritical(reward), 1.0)}, own_captions=1.0)
    found.unweighted_terms(batch)["self_critical"].backward()
    assert found.model.words.weight.grad.abs().sum() > 0


def test_a_term_sees_what_it_uses_in_the_shapes_of_the_table(batch):
    seen = {}

    @uses("logits", "image_features", "text_features", "attention")
    def look(student, teacher):
        seen.update(student=student, teacher=teacher)
        return student.logits.mean() + student.image_features.mean()

    found = module(terms={"look": (look, 1.0)}, own_captions=1.0)
    found.unweighted_terms(batch)
    student, teacher = seen["student"], seen["teacher"]
    clips, captions, length = student.tokens.shape
    assert (clips, captions) == (4, 3) and student.drawn.tolist() == [False, False, True]
    words, grid = found.model.vocab_size, 4
    for view in (student, teacher):
        assert view.logits.shape == (4, 3, length, words)
        assert view.text_features.shape == (4, 3, length, 32)
        assert view.image_features.shape == (4, tiny.FRAMES, grid, 32)
        assert view.attention.shape == (4, 3, length, tiny.FRAMES * grid)
        torch.testing.assert_close(view.attention.sum(-1), torch.ones(4, 3, length))
    expected = found.teacher(batch["frames"], student.tokens.flatten(0, 1)).logits
    torch.testing.assert_close(teacher.logits.flatten(0, 1), expected)


def test_with_a_cache_the_logits_are_log_probabilities_of_the_stored_words(batch, tmp_path):
    seen = []

    def look(student, teacher):
        seen.append(teacher.logits)
        return student.logits.mean()

    cached, live = (module(terms={"look": (look, 1.0)}) for _ in range(2))
    options = {"k": 5, "say": lambda _: None}
    cached._cache = TeacherCache.build(tmp_path, cached.teacher, tiny.data(), cached.spec, **options)
    for found in (cached, live):
        found.unweighted_terms(batch)
    stored, full = (x[:, :, :-1].double().softmax(-1) for x in seen)
    top = full.topk(5).indices
    torch.testing.assert_close(stored.gather(-1, top), full.gather(-1, top), rtol=1e-2, atol=1e-4)
    assert stored.sum(-1).allclose(torch.ones(()).double())


def test_expand_gives_words_outside_the_subset_no_place():
    logits = torch.randn(1, 3, 10, generator=torch.Generator().manual_seed(1))
    subset = torch.tensor([0, 2, 4, 6])  # the second one is the unknown word
    cut = losses.restrict_vocabulary(losses.top_k(logits, 5), subset, 1)
    full = losses.expand(cut, 4)
    assert full.shape == (1, 2, 4)
    torch.testing.assert_close(full.exp().sum(-1), torch.ones(1, 2), rtol=1e-4, atol=1e-4)


def test_terms_by_where_they_lie(monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1]))
    ((name, (function, weight)),) = named_terms({"experiments.terms.dist": 0.5}).items()
    assert (name, weight, function.__name__) == ("dist", 0.5, "dist")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"no.such.place": 1.0}, "there is no loss term no.such.place"),
        ({"math.nothing": 1.0}, "there is no loss term math.nothing"),
        ({"kl": (terms.dist, 1.0)}, "kl is a term already"),
    ],
)
def test_terms_that_are_none(given, message):
    with pytest.raises(ValueError, match=message):
        module(terms=given)


def test_a_term_must_be_a_scalar_that_reaches_the_student(batch):
    with pytest.raises(ValueError, match="pairs must give a scalar tensor"):
        module(terms={"pairs": (lambda s, t: s.logits, 1.0)}).unweighted_terms(batch)
    with pytest.raises(ValueError, match="the loss idle does not reach the student's backbone"):
        check_gradients(module(terms={"idle": (lambda s, t: t.logits.mean(), 1.0)}), batch)
    with pytest.raises(ValueError, match="can use logits, .* not gradients"):
        uses("gradients")


def test_a_weight_of_zero_leaves_a_term_out(batch):
    found = module(cross_entropy=1.0, terms={"dist": (terms.dist, 0.0)})
    assert list(found.unweighted_terms(batch)) == ["cross_entropy"]
