"""Losses as pure functions: tensors in, scalar out.

`cross_entropy` and `kl` compare distributions over the vocabulary; `feature`, `attention` and `relation` compare
activations. `align_grid` and `align_attention` bring the image tokens of two networks to one grid;
`restrict_vocabulary` brings their words to one vocabulary. Every loss is averaged over real tokens only, so padding
a batch further changes nothing. No gradient reaches the teacher. Half precision is computed in float32, also under
autocast.
"""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from gitdistill.models.preprocessing import area_means

LOG_ZERO = -60.0  # log-probability that counts as zero: float16 holds it, and 0 * LOG_ZERO is not NaN


def cross_entropy(logits: Tensor, tokens: Tensor, pad_id: int, smoothing: float = 0.0) -> Tensor:
    """Cross-entropy of captions, each token predicted from those before it; nats per token.

    With q the one-hot target mixed with the uniform distribution, q = (1 - ε) δ + ε / V, it is
    -Σ_v q(v) log p(v), averaged over all targets that are not `pad_id`, the end token included; 0 if there is none.
    Label smoothing: Szegedy et al. 2016 (https://arxiv.org/abs/1512.00567).

    Args:
        logits: [B*K, T, V]; position t predicts token t + 1, so the last position is not used.
        tokens: long [B*K, T], start token first, padded on the right.
        pad_id: the padding token.
        smoothing: ε, in [0, 1]; GIT was trained with 0.1.
    """
    _check_logits(logits, tokens)
    targets = tokens[:, 1:].flatten()
    logits = _to_float(logits[:, :-1]).flatten(0, 1)
    total = F.cross_entropy(logits, targets, ignore_index=pad_id, label_smoothing=smoothing, reduction="sum")
    return total / (targets != pad_id).sum().clamp(min=1)


@dataclass
class TopK:
    """Next-token distributions reduced to their k likeliest words and the total mass of all others.

    Row t is about token t + 1, so T tokens have T - 1 rows.
    log_p: [B*K, T-1, k], log-probabilities, likeliest first. words: long [B*K, T-1, k]. log_rest: [B*K, T-1].
    restricted: after `restrict_vocabulary`; then words outside the student's vocabulary have the id V.
    """

    log_p: Tensor
    words: Tensor
    log_rest: Tensor
    restricted: bool = False


def kl(
    student_logits: Tensor,
    teacher: Tensor | TopK,
    tokens: Tensor,
    pad_id: int,
    temperature: float = 1.0,
    beta: float = 0,
) -> Tensor:
    """Divergence of the student's next-token distribution from the teacher's; nats per token, times T².

    T² Σ_v p(v) (log p(v) - log q(v)) with p = softmax(teacher / T) and q = softmax(student / T), averaged over the
    positions whose next token is not `pad_id`; 0 if there is none. T² keeps the size of the gradient when T changes.
    Hinton, Vinyals and Dean 2015 (https://arxiv.org/abs/1503.02531). For beta above 0 see `_divergence`.

    With a `TopK`, v runs over its k words and one bucket of all others, which keeps the student from giving these
    any probability for free. At T = 1 that is at most the full KL; with k = V it is the full KL. Top-k targets: Tan
    et al. 2019 (https://arxiv.org/abs/1902.10461).

    Args:
        student_logits: [B*K, T, V].
        teacher: logits [B*K, T, V] over the same vocabulary, or a `TopK` with T - 1 rows.
        tokens: long [B*K, T], the captions that both networks read.
        pad_id: the padding token.
        temperature: T > 0; a higher one gives unlikely words more weight.
        beta: in [0, 1]. 0 asks the student to cover all that the teacher finds likely, 1 to say nothing else.
    """
    if temperature <= 0 or not 0 <= beta <= 1:
        raise ValueError(f"temperature must be above 0 and beta in [0, 1], not {temperature} and {beta}")
    _check_logits(student_logits, tokens)
    student_logits = _to_float(student_logits[:, :-1])
    if isinstance(teacher, TopK):
        log_p, log_q = _top_k_pair(student_logits, teacher)
    elif teacher.shape[:2] == tokens.shape and teacher.shape[2] == student_logits.shape[2]:
        log_p, log_q = _to_float(teacher[:, :-1].detach()), student_logits
    else:
        size = [*tokens.shape, student_logits.shape[2]]
        raise ValueError(f"teacher logits {list(teacher.shape)} do not fit student logits {size}")
    log_p, log_q = ((x / temperature).log_softmax(dim=-1) for x in (log_p, log_q))
    per_token = _divergence(log_p, log_q, beta)  # [B*K, T-1]
    return temperature**2 * _masked_mean(per_token, tokens[:, 1:] != pad_id)


def _divergence(log_p: Tensor, log_q: Tensor, beta: float) -> Tensor:
    """Of log-probabilities [..., V], over V: KL(p || q) at beta = 0, KL(q || p) at 1.

    Between them β KL(p || m) + (1 - β) KL(q || m) with m = β p + (1 - β) q, the generalised Jensen-Shannon divergence
    of Agarwal et al. 2023 (https://arxiv.org/abs/2306.13649). Near its ends it becomes 0, and over β or 1 - β the KL.
    """
    if 0 < beta < 1:
        mixed = torch.logaddexp(log_p + math.log(beta), log_q + math.log(1 - beta))
        return beta * _divergence(log_p, mixed, 0) + (1 - beta) * _divergence(log_q, mixed, 0)
    log_p, log_q = (log_q, log_p) if beta == 1 else (log_p, log_q)
    return (log_p.exp() * (log_p - log_q)).sum(dim=-1)


def _top_k_pair(student_logits: Tensor, teacher: TopK) -> tuple[Tensor, Tensor]:
    """Teacher's and student's log-probabilities [B*K, T-1, k + 1] of the top words and of the bucket."""
    if teacher.words.shape[:2] != student_logits.shape[:2]:
        raise ValueError(f"{list(teacher.words.shape)} top words for logits {list(student_logits.shape)}")
    log_p, log_q = _to_float(teacher.log_p.detach()), student_logits.log_softmax(dim=-1)
    if teacher.restricted:
        log_q = F.pad(log_q, (0, 1), value=LOG_ZERO)
    top_q = log_q.gather(-1, teacher.words)
    if teacher.words.shape[-1] == log_q.shape[-1] and not teacher.restricted:
        return log_p, top_q  # nothing is left for the bucket
    rest = log_q.scatter(-1, teacher.words, float("-inf")).logsumexp(-1, keepdim=True)
    log_p = torch.cat([log_p, _to_float(teacher.log_rest.detach())[..., None]], dim=-1)
    return log_p, torch.cat([top_q, rest], dim=-1)


def top_k(logits: Tensor, k: int) -> TopK:
    """The k likeliest next words of logits [B*K, T, V] (all of them if V is smaller) and the mass of the rest."""
    full = _to_float(logits[:, :-1]).log_softmax(-1)
    log_p, words = full.topk(min(k, full.shape[-1]))
    log_rest = full.scatter(-1, words, float("-inf")).logsumexp(-1).clamp(min=LOG_ZERO)
    return TopK(log_p, words, log_rest)


def expand(teacher: TopK, size: int) -> Tensor:
    """Log-probabilities [B*K, T-1, V] of all `size` words; the bucket's mass is spread evenly over its words."""
    others = (size - (teacher.words < size).sum(-1)).clamp(min=1)
    rest = (teacher.log_rest - others.log())[..., None].expand(*others.shape, size + 1)
    return rest.scatter(-1, teacher.words, teacher.log_p)[..., :size]


def restrict_vocabulary(teacher: Tensor | TopK, subset: Tensor, unknown: int) -> Tensor | TopK:
    """A teacher's distribution over the student's `vocab_subset`; the mass of all other words goes to `unknown`.

    Logits [B*K, T, V] become log-probabilities [B*K, T, V'] in the subset's order. In a `TopK`, the unknown word
    joins the bucket of all others.

    Args:
        subset: long [V'], the teacher's ids of the student's words.
        unknown: the place of the unknown word in `subset`.
    """
    if isinstance(teacher, TopK):
        size = int(max(subset.max(), teacher.words.max())) + 1
        place = torch.full((size,), len(subset), device=subset.device)
        place[subset] = torch.arange(len(subset), device=subset.device)
        place[subset[unknown]] = len(subset)
        words = place[teacher.words]
        outside = words == len(subset)
        rest = torch.cat([teacher.log_p.masked_fill(~outside, LOG_ZERO), teacher.log_rest[..., None]], dim=-1)
        return TopK(teacher.log_p.masked_fill(outside, LOG_ZERO), words, rest.logsumexp(-1), restricted=True)
    log_p = _to_float(teacher).log_softmax(-1)
    outside = log_p.index_fill(-1, subset, float("-inf")).logsumexp(-1).clamp(min=LOG_ZERO)
    log_p = log_p[..., subset]
    log_p[..., unknown] = torch.logaddexp(log_p[..., unknown], outside)
    return log_p


def feature(student: Tensor, teacher: Tensor, kind: str = "mse", mask: Tensor | None = None) -> Tensor:
    """Distance of two feature maps, averaged over tokens; without unit.

    `"mse"`: each token is standardised over its D channels on both sides; then the mean squared difference. With r
    the correlation of the two tokens that is 2 (1 - r): 0 equal, 2 unrelated, 4 opposite, whatever the scale of the
    teacher's layer. Hints: Romero et al. 2015 (FitNets, https://arxiv.org/abs/1412.6550); standardised targets: Wei
    et al. 2022 (https://arxiv.org/abs/2205.14141).
    `"cosine"`: 1 - cos(student, teacher): 0 same direction, 1 orthogonal, 2 opposite. Sanh et al. 2019 (DistilBERT,
    https://arxiv.org/abs/1910.01108).

    Args:
        student, teacher: [..., N, D], equal shapes (a projector and `align_grid` make them so).
        kind: "mse" or "cosine".
        mask: boolean [..., N], true where a token counts; all do by default.
    """
    _check_shapes(student, teacher, mask)
    student, teacher = _to_float(student), _to_float(teacher.detach())
    if kind == "mse":
        per_token = (_standardise(student) - _standardise(teacher)).square().mean(dim=-1)
    elif kind == "cosine":
        per_token = 1 - F.cosine_similarity(student, teacher, dim=-1)
    else:
        raise ValueError(f'kind must be "mse" or "cosine", not {kind!r}')
    return _masked_mean(per_token, mask)


def attention(student: Tensor, teacher: Tensor, mask: Tensor | None = None) -> Tensor:
    """KL divergence of the student's attention over the image from the teacher's; nats per token.

    Attention transfer as in Wang et al. 2020 (MiniLM, https://arxiv.org/abs/2002.10957). There it is done head by
    head; here after averaging over heads (and layers), so that the numbers of heads need not agree.

    Args:
        student, teacher: [B*K, T, N], rows summing to one over the same N image tokens.
        mask: boolean [B*K, T], true where a token counts; all do by default.
    """
    _check_shapes(student, teacher, mask)
    p, q = (_to_float(x).clamp(min=1e-8) for x in (teacher.detach(), student))
    return _masked_mean((p * (p.log() - q.log())).sum(dim=-1), mask)


def relation(student: Tensor, teacher: Tensor, heads: int, mask: Tensor | None = None) -> Tensor:
    """KL divergence between the relations among the student's vectors and those among the teacher's; nats per vector.

    The channels are split into `heads` relation heads. In each, R = softmax(X Xᵀ / √d) holds how similar every
    vector is to every other one; the loss is Σ_j R_t(i, j) (log R_t(i, j) - log R_s(i, j)), averaged over heads and
    over the vectors i that count. X are an attention's queries, keys or values; widths may differ, so no projector
    is needed. Wang et al. 2021 (MiniLMv2, https://arxiv.org/abs/2012.15828).

    Args:
        student, teacher: [R, N, Ds] and [R, N, Dt], both widths divisible by `heads`.
        mask: boolean [R, N], true where a vector counts; all do by default.
    """
    if student.shape[:2] != teacher.shape[:2] or student.shape[2] % heads or teacher.shape[2] % heads:
        shapes = f"{list(student.shape)} and {list(teacher.shape)}"
        raise ValueError(f"{shapes} are not [R, N, D] for {heads} relation heads")
    if mask is None:
        mask = torch.ones(student.shape[:2], dtype=torch.bool, device=student.device)

    def log_relations(x: Tensor) -> Tensor:
        x = _to_float(x).unflatten(-1, (heads, -1)).transpose(1, 2)  # (R, h, N, d)
        scores = x @ x.transpose(-1, -2) / x.shape[-1] ** 0.5
        return scores.masked_fill(~mask[:, None, None], -1e4).log_softmax(-1)

    with torch.autocast(student.device.type, enabled=False):  # which would compute products in half precision
        log_p, log_q = log_relations(teacher.detach()), log_relations(student)
    pairs = (log_p.exp() * (log_p - log_q)).masked_fill(~mask[:, None, None], 0)
    return _masked_mean(pairs.sum(-1).mean(1), mask)


def relation_heads(student: int, teacher: int, min_width: int = 16) -> int:
    """The largest number of relation heads that divides both widths and leaves each head `min_width` channels."""
    common, narrow = math.gcd(student, teacher), min(student, teacher)
    return max(h for h in range(1, common + 1) if common % h == 0 and (h == 1 or narrow >= min_width * h))


def align_grid(features: Tensor, grid_from: tuple[int, int], grid_to: tuple[int, int]) -> Tensor:
    """Resample image tokens from one grid to another: [B, N, D] with N = h*w to [B, h'*w', D].

    A direction that shrinks is averaged over areas, one that grows is interpolated bilinearly. Tokens are in row
    order, one frame per batch item, without a class token.
    """
    height, width = grid_from
    if features.dim() != 3 or features.shape[1] != height * width:
        raise ValueError(
            f"features {list(features.shape)} are not [B, {height * width}, D], a {height}x{width} grid"
        )
    if tuple(grid_from) == tuple(grid_to):
        return features
    maps = _to_float(features).transpose(1, 2).unflatten(2, grid_from)  # [B, D, h, w]
    maps = area_means(maps, (min(height, grid_to[0]), min(width, grid_to[1])))
    maps = F.interpolate(maps, size=tuple(grid_to), mode="bilinear", align_corners=False)
    return maps.flatten(2).transpose(1, 2)


def align_attention(attention: Tensor, num_frames: int, image_tokens: int) -> Tensor:
    """Attention [R, T, F*h*w] resampled to square grids of `image_tokens` a frame, still summing to one."""
    per_frame = attention.unflatten(-1, (num_frames, -1)).permute(0, 2, 3, 1)  # (R, F, h*w, T)
    if per_frame.shape[2] == image_tokens:
        return attention
    grids = [(math.isqrt(count),) * 2 for count in (per_frame.shape[2], image_tokens)]
    aligned = align_grid(per_frame.flatten(0, 1), *grids).unflatten(0, per_frame.shape[:2])
    aligned = aligned.permute(0, 3, 1, 2).flatten(2)
    return aligned / aligned.sum(-1, keepdim=True).clamp(min=1e-12)


def _check_logits(logits: Tensor, tokens: Tensor) -> None:
    if logits.dim() != 3 or logits.shape[:2] != tokens.shape:
        raise ValueError(f"logits {list(logits.shape)} are not [B*K, T, V] for tokens {list(tokens.shape)}")


def _check_shapes(student: Tensor, teacher: Tensor, mask: Tensor | None) -> None:
    if student.shape != teacher.shape:
        shapes = f"student {list(student.shape)}, teacher {list(teacher.shape)}"
        raise ValueError(f"{shapes}: project the width and align the grid first")
    if mask is not None and mask.shape != student.shape[:-1]:
        raise ValueError(f"mask {list(mask.shape)} does not fit features {list(student.shape)}")


def _to_float(x: Tensor) -> Tensor:
    """Half precision to float32, in which sums over a vocabulary are exact enough."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def _standardise(x: Tensor) -> Tensor:
    # The smallest eps that float32 allows: a larger one would treat faint layers as nearly constant.
    return F.layer_norm(x, x.shape[-1:], eps=1e-6)


def _masked_mean(values: Tensor, mask: Tensor | None) -> Tensor:
    if mask is None:
        return values.mean()
    return values.masked_fill(~mask, 0).sum() / mask.sum().clamp(min=1)
