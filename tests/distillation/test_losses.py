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


def softmax(row, temperature=1.0):
    powers = [math.exp(x / temperature) for x in row]
    return [p / sum(powers) for p in powers]


def cross_entropy_by_loops(logits, smoothing):
    total = 0.0
    for row, i in REAL:
        target = TOKENS[row, i + 1].item()
        for word, p in enumerate(softmax(logits[row, i].tolist())):
            wanted = (1 - smoothing) * (word == target) + smoothing / V
            total -= wanted * math.log(p)
    return total / len(REAL)


def kl_by_loops(student, teacher, temperature):
    total = 0.0
    for row, i in REAL:
        p = softmax(teacher[row, i].tolist(), temperature)
        q = softmax(student[row, i].tolist(), temperature)
        total += sum(a * (math.log(a) - math.log(b)) for a, b in zip(p, q))
    return temperature**2 * total / len(REAL)


# --- cross_entropy


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_cross_entropy_equals_loops(student, smoothing):
    found = losses.cross_entropy(student, TOKENS, PAD, smoothing)
    assert found.item() == pytest.approx(cross_entropy_by_loops(student, smoothing), rel=1e-12)


def test_cross_entropy_by_hand():
    """Half of the probability on the right word: log 2 nats."""
    logits = torch.zeros(1, 2, 2)
    assert losses.cross_entropy(logits, torch.tensor([[0, 1]]), pad_id=9).item() == pytest.approx(math.log(2))


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_traps_of_cross_entropy(student, smoothing):
    """Not shifted, padding counted, over the time axis, averaged by caption: another number each time."""
    right = losses.cross_entropy(student, TOKENS, PAD, smoothing)
    ce = torch.nn.functional.cross_entropy
    shifted = student[:, :-1].transpose(1, 2)
    over_time = student[:, :-1].log_softmax(1).gather(2, TOKENS[:, 1:, None])[..., 0]
    wrong = {
        "not shifted": ce(student.transpose(1, 2), TOKENS, ignore_index=PAD, label_smoothing=smoothing),
        "padding counted": ce(shifted, TOKENS[:, 1:], label_smoothing=smoothing),
        "wrong axis": -over_time[TOKENS[:, 1:] != PAD].mean(),
        "each caption the same weight": torch.stack(
            [losses.cross_entropy(student[i : i + 1], TOKENS[i : i + 1], PAD, smoothing) for i in range(2)]
        ).mean(),
    }
    for name, value in wrong.items():
        assert abs(value - right) > 1e-3, name


# --- kl


@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_kl_equals_loops(student, teacher, temperature):
    found = losses.kl(student, teacher, TOKENS, PAD, temperature)
    assert found.item() == pytest.approx(kl_by_loops(student, teacher, temperature), rel=1e-12)


@pytest.mark.parametrize("beta", [0.1, 0.5, 0.9, 1.0])
@pytest.mark.parametrize("k", [2, V])
def test_other_divergences_equal_loops(student, teacher, k, beta):
    """The definition, word by word; of the top words with all others as one."""
    total, count = 0.0, 0
    for row, words in enumerate(TOKENS.tolist()):
        for t, word in enumerate(words[1:]):
            if word == PAD:
                continue
            p, q = (x[row, t].softmax(-1).tolist() for x in (teacher, student))
            top = sorted(range(V), key=lambda v: -p[v])[:k]
            p, q = ([x[v] for v in top] + [sum(x) - sum(x[v] for v in top)] * (k < V) for x in (p, q))
            m = [beta * a + (1 - beta) * b for a, b in zip(p, q)] if beta < 1 else p
            total += sum(beta * a * math.log(a / c) for a, c in zip(p, m))
            total += sum((1 - beta if beta < 1 else 1) * b * math.log(b / c) for b, c in zip(q, m))
            count += 1
    target = losses.top_k(teacher, k) if k < V else teacher
    assert losses.kl(student, target, TOKENS, PAD, beta=beta).item() == pytest.approx(total / count, rel=1e-9)
    near = losses.kl(student, target, TOKENS, PAD, beta=1e-7) / 1e-7
    assert near.item() == pytest.approx(losses.kl(student, target, TOKENS, PAD).item(), rel=1e-4)
    assert losses.kl(student, student, TOKENS, PAD, beta=beta).item() == pytest.approx(0, abs=1e-12)
    leaf = student.clone().requires_grad_()
    assert torch.autograd.gradcheck(lambda x: losses.kl(x, target, TOKENS, PAD, 2.0, beta), leaf)


def test_kl_of_equal_logits_is_zero(student):
    assert losses.kl(student, student + 7, TOKENS, PAD, 2.0).item() == pytest.approx(0, abs=1e-12)


def test_traps_of_kl(student, teacher):
    """The time axis, unmasked padding, sums, T² forgotten, the two swapped: another number each time."""
    T = 2.0
    right = losses.kl(student, teacher, TOKENS, PAD, T)
    real = TOKENS[:, 1:] != PAD

    def loss(student, teacher, axis=-1):
        p, q = (teacher / T).softmax(axis), (student / T).softmax(axis)
        return T**2 * (p * (p.log() - q.log())).sum(axis)

    s, t = student[:, :-1], teacher[:, :-1]
    assert loss(s, t)[real].mean().item() == pytest.approx(right.item())  # the rest changes one thing
    wrong = {
        "time axis": loss(s, t, axis=1).mean(),
        "padding averaged": loss(s, t).mean(),
        "padding zeroed but counted": (loss(s, t) * real).mean(),
        "not shifted": loss(student, teacher)[TOKENS != PAD].mean(),
        "summed": loss(s, t)[real].sum(),
        "averaged over the vocabulary too": loss(s, t)[real].mean() / V,
        "T² forgotten": loss(s, t)[real].mean() / T**2,
        "student and teacher swapped": loss(t, s)[real].mean(),
    }
    for name, value in wrong.items():
        assert abs(value - right) > 1e-3, name


def test_temperature_keeps_the_size_of_the_gradient(student, teacher):
    """For large T the gradient tends to (student - teacher) / V, both centred: T² is what keeps it there."""
    sizes = []
    for temperature in (20.0, 200.0):
        leaf = student.clone().requires_grad_()
        losses.kl(leaf, teacher, TOKENS, PAD, temperature).backward()
        sizes.append(leaf.grad.norm().item())
    assert sizes[0] == pytest.approx(sizes[1], rel=0.1)


# --- kl with a TopK


@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_top_k_kl_with_all_words_is_kl(student, teacher, temperature):
    leaf, other = (student.clone().requires_grad_() for _ in range(2))
    found = losses.kl(leaf, losses.top_k(teacher, V), TOKENS, PAD, temperature)
    expected = losses.kl(other, teacher, TOKENS, PAD, temperature)
    torch.testing.assert_close(found, expected)
    found.backward()
    expected.backward()
    torch.testing.assert_close(leaf.grad, other.grad)


@pytest.mark.parametrize("temperature", [1.0, 3.0])
@pytest.mark.parametrize("k", [1, 2, 4])
def test_top_k_kl_equals_loops(student, teacher, k, temperature):
    total = 0.0
    for row, i in REAL:
        p, q = softmax(teacher[row, i].tolist()), softmax(student[row, i].tolist())
        best = sorted(range(V), key=lambda v: -p[v])[:k]
        rows = [[x[v] for v in best] + [1 - sum(x[v] for v in best)] for x in (p, q)]
        p, q = ([a ** (1 / temperature) for a in row] for row in rows)
        p, q = ([a / sum(row) for a in row] for row in (p, q))
        total += sum(a * (math.log(a) - math.log(b)) for a, b in zip(p, q))
    expected = temperature**2 * total / len(REAL)
    found = losses.kl(student, losses.top_k(teacher, k), TOKENS, PAD, temperature)
    assert found.item() == pytest.approx(expected, rel=1e-9)


def test_top_k_kl_approaches_kl_from_below(student, teacher):
    values = [losses.kl(student, losses.top_k(teacher, k), TOKENS, PAD).item() for k in range(1, V + 1)]
    assert values == sorted(values) and values[0] < values[-1]
    assert values[-1] == pytest.approx(losses.kl(student, teacher, TOKENS, PAD).item())


def test_the_bucket_is_what_holds_down_the_other_words(student, teacher):
    """Without it a student could say anything beyond the k words and pay nothing for it."""
    leaf = student.clone().requires_grad_()
    top = losses.top_k(teacher, 2)
    losses.kl(leaf, top, TOKENS, PAD).backward()
    others = torch.ones(2, 3, V, dtype=torch.bool).scatter(-1, top.words, False)
    real = TOKENS[:, 1:] != PAD
    assert (leaf.grad[:, :-1][real][others[real]] != 0).all()


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
    ce, kl = losses.cross_entropy, losses.kl
    torch.testing.assert_close(ce(more_student, tokens, PAD, 0.1), ce(student, TOKENS, PAD, 0.1))
    torch.testing.assert_close(kl(more_student, more_teacher, tokens, PAD), kl(student, teacher, TOKENS, PAD))
    more, top = losses.top_k(more_teacher, 2), losses.top_k(teacher, 2)
    torch.testing.assert_close(
        losses.kl(more_student, more, tokens, PAD), losses.kl(student, top, TOKENS, PAD)
    )


def test_gradient_reaches_real_positions_only(student, teacher):
    for loss in (
        lambda x: losses.cross_entropy(x, TOKENS, PAD, 0.1),
        lambda x: losses.kl(x, teacher, TOKENS, PAD),
        lambda x: losses.kl(x, losses.top_k(teacher, 2), TOKENS, PAD),
    ):
        leaf = student.clone().requires_grad_()
        loss(leaf).backward()
        touched = leaf.grad.abs().sum(-1) > 0
        assert {tuple(place) for place in touched.nonzero().tolist()} == set(REAL)


def test_no_gradient_reaches_the_teacher(student, teacher):
    student.requires_grad_()
    teacher.requires_grad_()
    total = losses.kl(student, teacher, TOKENS, PAD) + sum(
        losses.feature(student, teacher, kind) for kind in ("mse", "cosine")
    )
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


def test_masked_tokens_change_nothing():
    student, teacher = torch.randn(2, 2, 3, 8, generator=torch.Generator().manual_seed(0))
    mask = torch.tensor([[True, True, False], [True, False, False]])
    before = losses.feature(student, teacher, mask=mask)
    student[~mask] = 1e4
    assert losses.feature(student, teacher, mask=mask) == before
    assert losses.feature(student, teacher) != before


# --- attention


def attention_weights(seed, *shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).softmax(-1)


def test_attention_equals_loops():
    q, p = attention_weights(0, 2, 3, 4), attention_weights(1, 2, 3, 4)
    mask = torch.tensor([[True, True, False], [True, False, False]])
    values = [
        sum(b * (math.log(b) - math.log(a)) for a, b in zip(q[i, t].tolist(), p[i, t].tolist()))
        for i, t in mask.nonzero().tolist()
    ]
    found = losses.attention(q, p, mask)
    assert found.item() == pytest.approx(sum(values) / 3, rel=1e-9)
    assert losses.attention(p, p, mask).item() == pytest.approx(0, abs=1e-12)
    wrong = {
        "padding counted": losses.attention(q, p),
        "swapped": losses.attention(p, q, mask),
        "over the tokens": (p * (p.log() - q.log())).sum(1).mean(),
    }
    for name, value in wrong.items():
        assert abs(value - found) > 1e-3, name


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


def test_relation_sees_no_padding_and_trains_the_student_alone():
    student, teacher = torch.randn(2, 2, 3, 8, generator=torch.Generator().manual_seed(0))
    mask = torch.tensor([[True, True, False], [True, False, False]])
    before = losses.relation(student, teacher, 2, mask)
    student[~mask], teacher[~mask] = 30.0, -30.0
    student.requires_grad_(), teacher.requires_grad_()
    after = losses.relation(student, teacher, 2, mask)
    torch.testing.assert_close(after, before)
    after.backward()
    assert teacher.grad is None and student.grad[0, :2].any() and not student.grad[~mask].any()
    assert losses.relation(torch.ones(1, 2, 4), torch.ones(1, 2, 8), 1).item() == pytest.approx(0)


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
        rows = [[p[v] for v in best], [q[(0, 2, 4).index(v)] for v in best]]
        p, q = ([a ** (1 / temperature) for a in (*row, 1 - sum(row))] for row in rows)
        p, q = ([a / sum(row) for a in row] for row in (p, q))
        total += sum(a * (math.log(a) - math.log(b)) for a, b in zip(p, q))
    top = losses.restrict_vocabulary(losses.top_k(teacher, k), subset, unknown=1)
    found = losses.kl(own, top, tokens, 0, temperature)
    assert found.item() == pytest.approx(temperature**2 * total / len(REAL), rel=1e-6)
    if k == V:
        whole = losses.kl(own, losses.restrict_vocabulary(teacher, subset, unknown=1), tokens, 0, temperature)
        torch.testing.assert_close(found, whole)


# --- align_grid


def test_align_grid_averages_areas():
    tokens = torch.arange(16.0).view(1, 16, 1)  # 4 x 4 in row order
    found = losses.align_grid(tokens, (4, 4), (2, 2))
    assert found.flatten().tolist() == [2.5, 4.5, 10.5, 12.5]  # (0+1+4+5)/4, ...


def test_align_grid_interpolates():
    tokens = torch.tensor([[[0.0], [4.0]]])  # 1 x 2
    assert losses.align_grid(tokens, (1, 2), (1, 4)).flatten().tolist() == [0, 1, 3, 4]


def test_align_grid_keeps_rows_columns_and_channels():
    """Each channel holds its row or its column: a swapped axis or a wrong order shows."""
    rows, columns = torch.meshgrid(torch.arange(4.0), torch.arange(6.0), indexing="ij")
    tokens = torch.stack([rows, columns], dim=-1).view(1, 24, 2)
    found = losses.align_grid(tokens, (4, 6), (2, 3))[0]
    assert found.tolist() == [[0.5, 0.5], [0.5, 2.5], [0.5, 4.5], [2.5, 0.5], [2.5, 2.5], [2.5, 4.5]]
    both = losses.align_grid(tokens, (4, 6), (2, 12))[0].view(2, 12, 2)  # rows shrink while columns grow
    assert both[:, :, 0].unique().tolist() == [0.5, 2.5]
    assert (both[0, 1:, 1] >= both[0, :-1, 1]).all()


def test_align_grid_of_the_same_grid_changes_nothing():
    tokens = torch.randn(2, 6, 3)
    assert torch.equal(losses.align_grid(tokens, (2, 3), (2, 3)), tokens)


def test_align_grid_needs_no_adaptive_pooling(monkeypatch):
    """Which MPS knows only for grids that divide each other."""
    tokens = torch.randn(2, 28 * 28, 3)
    maps = torch.nn.functional.adaptive_avg_pool2d(tokens.transpose(1, 2).unflatten(2, (28, 28)), (16, 16))
    monkeypatch.setattr(torch.nn.functional, "adaptive_avg_pool2d", None)
    torch.testing.assert_close(losses.align_grid(tokens, (28, 28), (16, 16)), maps.flatten(2).transpose(1, 2))


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
    top = losses.top_k(theirs, 2)
    return {
        "cross_entropy": (lambda x: losses.cross_entropy(x, tokens, PAD, 0.1), logits),
        "kl": (lambda x: losses.kl(x, theirs, tokens, PAD, 2.0), logits),
        "kl_top": (lambda x: losses.kl(x, top, tokens, PAD), logits),
        "kl_restricted": (
            lambda x: losses.kl(x, losses.restrict_vocabulary(theirs, subset, 1), tokens % 3, PAD),
            some,
        ),
        "top_k_kl_restricted": (
            lambda x: losses.kl(x, losses.restrict_vocabulary(top, subset, 1), tokens % 3, PAD),
            some,
        ),
        "mse": (lambda x: losses.feature(x, text, "mse", real), image),
        "cosine": (lambda x: losses.feature(x, text, "cosine", real), image),
        "grid": (lambda x: losses.feature(losses.align_grid(x, (4, 4), (2, 2)), text), finer),
        "attention": (
            lambda x: losses.attention(x, losses.align_attention(teacher_weights, 1, 4), real),
            weights,
        ),
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
