"""Each loss against plain Python loops on a few numbers, and the known ways to get it wrong."""

import math

import pytest
import torch

from gitdistill.distillation import losses

PAD = 0
TOKENS = torch.tensor([[2, 4, 1, 3], [2, 1, 3, PAD]])  # start 2, end 3; the second caption is one shorter
REAL = [(0, 0), (0, 1), (0, 2), (1, 0), (1, 1)]  # positions that predict a real token
V = 5


def random_logits(seed):
    return 2 * torch.randn(2, 4, V, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.fixture
def student():
    return random_logits(0)


@pytest.fixture
def teacher():
    return random_logits(1)


def softmax(row):
    powers = [math.exp(x) for x in row]
    return [p / sum(powers) for p in powers]


def cross_entropy_by_loops(logits, smoothing):
    total = 0.0
    for row, i in REAL:
        target = TOKENS[row, i + 1].item()
        for word, p in enumerate(softmax(logits[row, i].tolist())):
            wanted = (1 - smoothing) * (word == target) + smoothing / V
            total -= wanted * math.log(p)
    return total / len(REAL)


# --- cross_entropy


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_cross_entropy_equals_loops(student, smoothing):
    found = losses.cross_entropy(student, TOKENS, PAD, smoothing)
    assert found.item() == pytest.approx(cross_entropy_by_loops(student, smoothing), rel=1e-12)


# --- kl


def divergence(p, q, beta):
    """KL(p || q) at beta 0, KL(q || p) at 1, the generalised Jensen-Shannon divergence between them."""
    if beta == 0:
        return sum(a * (math.log(a) - math.log(b)) for a, b in zip(p, q))
    if beta == 1:
        return divergence(q, p, 0)
    mixed = [beta * a + (1 - beta) * b for a, b in zip(p, q)]
    return beta * divergence(p, mixed, 0) + (1 - beta) * divergence(q, mixed, 0)


def tempered(p, temperature):
    powers = [x ** (1 / temperature) for x in p]
    return [x / sum(powers) for x in powers]


def kl_by_loops(student, teacher, k, temperature, beta):
    """Word by word; with k below V the teacher's k best words, and all others as one."""
    total = 0.0
    for row, i in REAL:
        p, q = softmax(teacher[row, i].tolist()), softmax(student[row, i].tolist())
        best = sorted(range(V), key=lambda v: -p[v])[:k]
        p, q = ([x[v] for v in best] + [1 - sum(x[v] for v in best)] * (k < V) for x in (p, q))
        total += divergence(tempered(p, temperature), tempered(q, temperature), beta)
    return temperature**2 * total / len(REAL)


@pytest.mark.parametrize("beta", [0.0, 0.1, 0.5, 0.9, 1.0])
@pytest.mark.parametrize("temperature", [1.0, 3.0])
@pytest.mark.parametrize("k", [1, 2, 4, V])
def test_kl_equals_loops(student, teacher, k, temperature, beta):
    expected = kl_by_loops(student, teacher, k, temperature, beta)
    for target in (losses.top_k(teacher, k), teacher)[: 1 + (k == V)]:

        def loss(x, target=target):
            return losses.kl(x, target, TOKENS, PAD, temperature, beta)

        assert loss(student).item() == pytest.approx(expected, rel=1e-9)
        assert torch.autograd.gradcheck(loss, student.clone().requires_grad_())


def test_a_certain_teacher_is_no_nan():
    logits = torch.tensor([[[1000.0, 0.0, 0.0], [0.0, 0.0, 0.0]]])
    student = torch.zeros(1, 2, 3, requires_grad=True)
    loss = losses.kl(student, losses.top_k(logits, 1), torch.tensor([[2, 1]]), pad_id=0)
    loss.backward()
    assert loss.item() == pytest.approx(math.log(3)) and student.grad.isfinite().all()


# --- both


def pad_more(tokens, logits, columns=3):
    """The same batch with more padding, and noise where the networks read it."""
    tokens = torch.nn.functional.pad(tokens, (0, columns), value=PAD)
    noise = 50 * torch.randn(len(logits), columns, logits.shape[2], dtype=logits.dtype)
    return tokens, torch.cat([logits, noise], dim=1)


def test_padding_changes_nothing(student, teacher):
    tokens, more_student = pad_more(TOKENS, student)
    _, more_teacher = pad_more(TOKENS, teacher)
    ce, kl, top = losses.cross_entropy, losses.kl, losses.top_k
    for found, expected in (
        (ce(more_student, tokens, PAD, 0.1), ce(student, TOKENS, PAD, 0.1)),
        (kl(more_student, more_teacher, tokens, PAD), kl(student, teacher, TOKENS, PAD)),
        (kl(more_student, top(more_teacher, 2), tokens, PAD), kl(student, top(teacher, 2), TOKENS, PAD)),
    ):
        torch.testing.assert_close(found, expected)


def test_no_gradient_reaches_the_teacher(student, teacher):
    student.requires_grad_()
    teacher.requires_grad_()
    total = losses.kl(student, teacher, TOKENS, PAD) + losses.relation(student, teacher, 1)
    total += sum(losses.feature(student, teacher, kind) for kind in ("mse", "cosine"))
    total += losses.attention(student.softmax(-1), teacher.softmax(-1))
    total.backward()
    assert teacher.grad is None and student.grad.abs().sum() > 0


def test_captions_without_a_target_cost_nothing(student, teacher):
    tokens = torch.tensor([[2, PAD, PAD, PAD]] * 2)
    student.requires_grad_()
    total = losses.cross_entropy(student, tokens, PAD) + losses.kl(student, teacher, tokens, PAD)
    total.backward()
    assert total.item() == 0 and student.grad.abs().sum() == 0


def test_mistakes_give_one_line(student, teacher):
    for wrong in (
        lambda: losses.cross_entropy(student[:, :-1], TOKENS, PAD),
        lambda: losses.kl(student, teacher[..., :-1], TOKENS, PAD),
        lambda: losses.kl(student, teacher, TOKENS[:, 1:], PAD),
        lambda: losses.kl(student, teacher, TOKENS, PAD, temperature=0),
        lambda: losses.kl(student, teacher, TOKENS, PAD, beta=1.1),
        lambda: losses.kl(student, losses.top_k(teacher, 2), TOKENS, PAD, temperature=0),
        lambda: losses.kl(student, losses.top_k(teacher[:, :-1], 2), TOKENS, PAD),
        lambda: losses.feature(student, teacher[..., :-1]),
        lambda: losses.feature(student, teacher, kind="l1"),
        lambda: losses.feature(student, teacher, mask=torch.ones(4, dtype=torch.bool)),
        lambda: losses.attention(student, teacher[:, 1:]),
        lambda: losses.relation(student, teacher, 2),
        lambda: losses.relation(student, teacher[:, 1:], 1),
        lambda: losses.align_grid(torch.zeros(1, 5, 2), (2, 2), (1, 1)),
    ):
        with pytest.raises(ValueError) as caught:
            wrong()
        assert "\n" not in str(caught.value)


# --- feature


def feature_by_loops(student, teacher, kind, mask):
    values = []
    for s, t, counts in zip(student.tolist(), teacher.tolist(), mask):
        if not counts:
            continue
        if kind == "cosine":
            dot = sum(a * b for a, b in zip(s, t))
            values.append(1 - dot / math.sqrt(sum(a * a for a in s) * sum(b * b for b in t)))
        else:
            s, t = standardised(s), standardised(t)
            values.append(sum((a - b) ** 2 for a, b in zip(s, t)) / len(s))
    return sum(values) / len(values)


def standardised(row):
    mean = sum(row) / len(row)
    variance = sum((x - mean) ** 2 for x in row) / len(row)
    return [(x - mean) / math.sqrt(variance + 1e-6) for x in row]


@pytest.mark.parametrize("kind", ["mse", "cosine"])
@pytest.mark.parametrize("mask", [[True, True], [True, False]])
def test_feature_equals_loops(kind, mask):
    student = torch.tensor([[1.0, -2.0, 0.5], [0.3, 4.0, 1.0]], dtype=torch.float64)
    teacher = torch.tensor([[2.0, -1.0, 3.0], [-1.0, 0.0, 2.5]], dtype=torch.float64)
    found = losses.feature(student, teacher, kind, torch.tensor(mask))
    assert found.item() == pytest.approx(feature_by_loops(student, teacher, kind, mask), rel=1e-9)
    if all(mask):
        assert losses.feature(student, teacher, kind).item() == pytest.approx(found.item())


@pytest.mark.parametrize("kind, unrelated", [("mse", 2.0), ("cosine", 1.0)])
def test_scale_of_feature(kind, unrelated):
    """Equal features cost 0 at any size, unrelated ones what the docstring says, opposite ones twice that."""
    a, b = torch.randn(2, 8, 64, 512, generator=torch.Generator().manual_seed(0))
    assert losses.feature(100 * a, a, kind).item() == pytest.approx(0, abs=1e-4)
    assert losses.feature(a, b, kind).item() == pytest.approx(unrelated, abs=0.05)
    assert losses.feature(-a, a, kind).item() == pytest.approx(2 * unrelated, rel=1e-3)


# --- attention


def attention_weights(seed, *shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).softmax(-1)


def test_attention_equals_loops():
    q, p = attention_weights(0, 2, 3, 4), attention_weights(1, 2, 3, 4)
    mask = torch.tensor([[True, True, False], [True, False, False]])
    values = [divergence(p[i, t].tolist(), q[i, t].tolist(), beta=0) for i, t in mask.nonzero().tolist()]
    found = losses.attention(q, p, mask)
    assert found.item() == pytest.approx(sum(values) / 3, rel=1e-9)
    assert losses.attention(p, p, mask).item() == pytest.approx(0, abs=1e-12)


def test_attention_of_zero_is_no_nan():
    weights = torch.tensor([[[1.0, 0.0]]], requires_grad=True)
    loss = losses.attention(weights, torch.tensor([[[0.0, 1.0]]]))
    loss.backward()
    assert loss.item() == pytest.approx(math.log(1e8), rel=1e-3) and weights.grad.isfinite().all()


def test_attention_moves_to_another_grid():
    weights = attention_weights(0, 2, 3, 2 * 16)
    found = losses.align_attention(weights, num_frames=2, image_tokens=4)
    blocks = weights.view(2, 3, 2, 2, 2, 2, 2).sum((4, 6))  # blocks of 2 x 2: (R, T, F, row, column)
    torch.testing.assert_close(found, blocks.flatten(2))
    assert losses.align_attention(weights, num_frames=2, image_tokens=16) is weights
    grown = losses.align_attention(found, num_frames=2, image_tokens=16)
    torch.testing.assert_close(grown.sum(-1), torch.ones(2, 3, dtype=torch.float64))


# --- relation


def relation_by_loops(student, teacher, heads, mask):
    values = []
    for r in range(len(student)):
        real = [i for i in range(student.shape[1]) if mask[r][i]]
        for h in range(heads):
            for i in real:
                rows = []
                for x in (teacher[r], student[r]):
                    width = x.shape[1] // heads
                    part = x[:, h * width : (h + 1) * width]
                    rows.append(softmax([(part[i] @ part[j]).item() / math.sqrt(width) for j in real]))
                values.append(sum(p * (math.log(p) - math.log(q)) for p, q in zip(*rows)))
    return sum(values) / len(values)


@pytest.mark.parametrize("heads", [1, 2])
def test_relation_equals_loops(heads):
    generator = torch.Generator().manual_seed(0)
    student, teacher = (torch.randn(2, 3, d, generator=generator, dtype=torch.float64) for d in (4, 6))
    mask = torch.tensor([[True, True, True], [True, True, False]])
    expected = relation_by_loops(student, teacher, heads, mask)
    assert losses.relation(student, teacher, heads, mask).item() == pytest.approx(expected, rel=1e-9)
    everything = relation_by_loops(student, teacher, heads, torch.ones_like(mask))
    assert losses.relation(student, teacher, heads).item() == pytest.approx(everything, rel=1e-9)
    assert abs(everything - expected) > 1e-3


@pytest.mark.parametrize("widths, heads", [((128, 192), 8), ((64, 768), 4), ((32, 32), 2), ((7, 9), 1)])
def test_relation_heads_divide_both_widths(widths, heads):
    assert losses.relation_heads(*widths) == heads


# --- restrict_vocabulary


def test_the_mass_of_unknown_words_moves_to_one(teacher):
    subset = torch.tensor([0, 2, 4])  # word 2 is the unknown one, number 1 among them
    p, found = teacher.softmax(-1), losses.restrict_vocabulary(teacher, subset, unknown=1).softmax(-1)
    torch.testing.assert_close(found[..., 0], p[..., 0])
    torch.testing.assert_close(found[..., 1], p[..., 1] + p[..., 2] + p[..., 3])
    torch.testing.assert_close(found[..., 2], p[..., 4])


@pytest.mark.parametrize("temperature", [1.0, 2.0])
@pytest.mark.parametrize("k", [1, 3, V])
def test_a_restricted_top_k_has_unknown_words_in_its_bucket(student, teacher, k, temperature):
    subset = torch.tensor([0, 2, 4])
    own, tokens = student[..., subset], torch.tensor([[1, 2, 1, 2], [1, 2, 2, 0]])
    total = 0.0
    for row, i in REAL:
        p, q = softmax(teacher[row, i].tolist()), softmax(own[row, i].tolist())
        best = [v for v in sorted(range(V), key=lambda v: -p[v])[:k] if v in (0, 4)]
        kept = [p[v] for v in best], [q[(0, 2, 4).index(v)] for v in best]
        p, q = (tempered([*row, 1 - sum(row)], temperature) for row in kept)
        total += divergence(p, q, beta=0)
    top = losses.restrict_vocabulary(losses.top_k(teacher, k), subset, unknown=1)
    found = losses.kl(own, top, tokens, 0, temperature)
    assert found.item() == pytest.approx(temperature**2 * total / len(REAL), rel=1e-6)
    if k == V:
        whole = losses.kl(own, losses.restrict_vocabulary(teacher, subset, unknown=1), tokens, 0, temperature)
        torch.testing.assert_close(found, whole)


# --- align_grid


def test_align_grid_interpolates():
    tokens = torch.tensor([[[0.0], [4.0]]])  # 1 x 2
    assert losses.align_grid(tokens, (1, 2), (1, 4)).flatten().tolist() == [0, 1, 3, 4]


def test_align_grid_shrinks_rows_while_columns_grow():
    """Each channel holds its row or its column: a swapped axis or a wrong order shows."""
    rows, columns = torch.meshgrid(torch.arange(4.0), torch.arange(6.0), indexing="ij")
    tokens = torch.stack([rows, columns], dim=-1).view(1, 24, 2)
    found = losses.align_grid(tokens, (4, 6), (2, 12))[0].view(2, 12, 2)
    assert found[:, :, 0].unique().tolist() == [0.5, 2.5]
    assert (found[0, 1:, 1] >= found[0, :-1, 1]).all()


@pytest.mark.parametrize("grid", [(14, 14), (16, 16), (28, 5), (1, 28)])
def test_align_grid_means_areas_without_adaptive_pooling(monkeypatch, grid):
    """Which MPS knows only for grids that divide each other."""
    tokens = torch.randn(2, 28 * 28, 3)
    maps = torch.nn.functional.adaptive_avg_pool2d(tokens.transpose(1, 2).unflatten(2, (28, 28)), grid)
    monkeypatch.setattr(torch.nn.functional, "adaptive_avg_pool2d", None)
    torch.testing.assert_close(losses.align_grid(tokens, (28, 28), grid), maps.flatten(2).transpose(1, 2))


# --- half precision


def every_loss(seed=0, dtype=torch.float32):
    """Name -> (loss of a student's tensor, the tensor)."""
    draw = torch.Generator().manual_seed(seed)

    def random(*shape):
        return 3 * torch.randn(*shape, generator=draw).to(dtype)

    tokens = torch.tensor([[2, 4, 1, 3], [2, 1, 3, PAD]])
    real, subset = tokens != PAD, torch.tensor([0, 1, 2, 4])
    logits, theirs, some = random(2, 4, V), random(2, 4, V), random(2, 4, 4)
    image, finer, text, other = random(2, 4, 32), random(2, 16, 32), random(2, 4, 32), random(2, 4, 64)
    weights, teacher_weights = random(2, 4, 4).softmax(-1), random(2, 4, 16).softmax(-1)
    top, aligned = losses.top_k(theirs, 2), losses.align_attention(teacher_weights, 1, 4)

    def restricted(target):
        return lambda x: losses.kl(x, losses.restrict_vocabulary(target, subset, 1), tokens % 3, PAD)

    return {
        "cross_entropy": (lambda x: losses.cross_entropy(x, tokens, PAD, 0.1), logits),
        "kl": (lambda x: losses.kl(x, theirs, tokens, PAD, 2.0), logits),
        "kl_top": (lambda x: losses.kl(x, top, tokens, PAD), logits),
        "kl_restricted": (restricted(theirs), some),
        "top_k_kl_restricted": (restricted(top), some),
        "mse": (lambda x: losses.feature(x, text, "mse", real), image),
        "cosine": (lambda x: losses.feature(x, text, "cosine", real), image),
        "grid": (lambda x: losses.feature(losses.align_grid(x, (4, 4), (2, 2)), text), finer),
        "attention": (lambda x: losses.attention(x, aligned, real), weights),
        "relation": (lambda x: losses.relation(x, other, 2, real), text),
        "relation_of_loud_ones": (lambda x: losses.relation(200 * x, 200 * other, 2, real), text),
    }


@pytest.mark.parametrize("name", every_loss())
def test_autocast_changes_no_loss(name):
    loss, x = every_loss()[name]
    found = []
    for half in (False, True):
        x = x.detach().clone().requires_grad_()
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            value = loss(x)
        value.backward()
        found.append((value.detach(), x.grad))
    torch.testing.assert_close(found[1], found[0], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", every_loss())
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_every_loss_of_halves_is_float32(name, dtype):
    (half, x), (_, plain) = every_loss(dtype=dtype)[name], every_loss()[name]
    found = half(x)
    assert found.dtype == torch.float32 and torch.isfinite(found)
    if name != "relation_of_loud_ones":  # whose inputs, rounded, are others
        torch.testing.assert_close(found, every_loss()[name][0](plain), rtol=0.1, atol=0.02)
