"""Losses as pure functions: tensors in, scalar out.

`cross_entropy`, `kl` and `kl_top` compare distributions over the vocabulary, `feature` compares activations,
`attention` and `relation` compare what attention makes of them; `align_grid` and `align_attention` bring two
networks' image tokens to one grid first, `trim` their words to one vocabulary. Each averages over what is real
and leaves out padding, so that padding a batch further changes nothing. Halves are computed in float32, under
autocast, too.
"""

import math
from contextlib import nullcontext
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from gitdistill.models.preprocessing import area_means


def cross_entropy(logits: Tensor, tokens: Tensor, pad_id: int, smoothing: float = 0.0) -> Tensor:
    """Cross-entropy of captions, each token predicted from those before it; nats per token.

    With q the one-hot target mixed with the uniform distribution, q = (1 - ε) δ + ε / V, it is
    -Σ_v q(v) log p(v), averaged over all targets of the batch that are not `pad_id`, the end token included;
    0 if there is none. Label smoothing: Szegedy et al. 2016 (https://arxiv.org/abs/1512.00567).

    Args:
        logits: [B*K, T, V]; position t predicts token t + 1, so the last position is not used.
        tokens: long [B*K, T], start token first, padded on the right.
        pad_id: the padding token.
        smoothing: ε, in [0, 1]; GIT was trained with 0.1.
    """
    _check_logits(logits, tokens)
    targets = tokens[:, 1:].flatten()
    predicted = _wide(logits[:, :-1]).flatten(0, 1)
    total = F.cross_entropy(
        predicted, targets, ignore_index=pad_id, label_smoothing=smoothing, reduction="sum"
    )
    return total / (targets != pad_id).sum().clamp(min=1)


def kl(
    student_logits: Tensor, teacher_logits: Tensor, tokens: Tensor, pad_id: int, temperature: float = 1.0
) -> Tensor:
    """How far the student's next-token distribution is from the teacher's; nats per token, times T².

    T² Σ_v p(v) (log p(v) - log q(v)) with p = softmax(teacher / T) and q = softmax(student / T) over the
    vocabulary, averaged over the positions whose next token is not `pad_id`; 0 if there is none. T² keeps
    the size of the gradient when T changes. No gradient reaches the teacher.
    Hinton, Vinyals and Dean 2015 (https://arxiv.org/abs/1503.02531).

    Args:
        student_logits, teacher_logits: [B*K, T, V], the same vocabulary in the same order.
        tokens: long [B*K, T], the captions both were given.
        pad_id: the padding token.
        temperature: T > 0; a higher one lets the unlikely words count for more.
    """
    if student_logits.shape != teacher_logits.shape:
        raise ValueError(
            f"student logits {list(student_logits.shape)} against teacher logits {list(teacher_logits.shape)}"
            ": both need the same captions and the same vocabulary"
        )
    if temperature <= 0:
        raise ValueError(f"temperature must be above 0, not {temperature}")
    _check_logits(student_logits, tokens)
    log_q = (_wide(student_logits[:, :-1]) / temperature).log_softmax(dim=-1)
    log_p = (_wide(teacher_logits[:, :-1].detach()) / temperature).log_softmax(dim=-1)
    per_token = (log_p.exp() * (log_p - log_q)).sum(dim=-1)  # [B*K, T-1]
    return temperature**2 * _masked_mean(per_token, tokens[:, 1:] != pad_id)


LOG_ZERO = (
    -60.0
)  # logarithm of what counts as no probability at all; float16 holds it, and 0 * log 0 is no NaN


@dataclass
class TopK:
    """Next-token distributions, their k likeliest words kept and the mass of all others as one number.

    Row t is about token t + 1, so that T tokens have T - 1 rows.
    log_p: [B*K, T-1, k], logarithms, likeliest first. words: long [B*K, T-1, k]. log_rest: [B*K, T-1].
    trimmed: words that the student does not know are numbered V, one beyond its last (see `trim`).
    """

    log_p: Tensor
    words: Tensor
    log_rest: Tensor
    trimmed: bool = False


def top_k(logits: Tensor, k: int) -> TopK:
    """The k likeliest next words of logits [B*K, T, V] (all of them if V is smaller) and the remaining mass."""
    every = _wide(logits[:, :-1]).log_softmax(-1)
    log_p, words = every.topk(min(k, every.shape[-1]))
    log_rest = every.scatter(-1, words, float("-inf")).logsumexp(-1).clamp(min=LOG_ZERO)
    return TopK(log_p, words, log_rest)


def trim(teacher: Tensor | TopK, kept: Tensor, unknown: int) -> Tensor | TopK:
    """A teacher's distribution for a student that knows only the words `kept`, numbered in that order.

    The mass of all other words goes to one, the student's word number `unknown`: what is returned for logits
    [B*K, T, V] are logits over the kept words. In a `TopK`, that word is in the bucket with the rest.

    Args:
        kept: long [V'], the teacher's numbers of the student's words.
    """
    if isinstance(teacher, TopK):
        size = int(max(kept.max(), teacher.words.max())) + 1
        own = torch.full((size,), len(kept), device=kept.device)
        own[kept] = torch.arange(len(kept), device=kept.device)
        own[kept[unknown]] = len(kept)
        words = own[teacher.words]
        lost = words == len(kept)
        rest = torch.cat([teacher.log_p.masked_fill(~lost, LOG_ZERO), teacher.log_rest[..., None]], dim=-1)
        return TopK(teacher.log_p.masked_fill(lost, LOG_ZERO), words, rest.logsumexp(-1), trimmed=True)
    log_p = _wide(teacher).log_softmax(-1)
    lost = log_p.index_fill(-1, kept, float("-inf")).logsumexp(-1).clamp(min=LOG_ZERO)
    log_p = log_p[..., kept]
    log_p[..., unknown] = torch.logaddexp(log_p[..., unknown], lost)
    return log_p


def kl_top(
    student_logits: Tensor, teacher: TopK, tokens: Tensor, pad_id: int, temperature: float = 1.0
) -> Tensor:
    """`kl` against a teacher of whom the likeliest words are known; nats per token, times T².

    T² Σ_v p(v) (log p(v) - log q(v)) where v runs over the k kept words and one bucket with all others,
    student's and teacher's alike, each raised to 1 / T and normalised. At T = 1 it is at most `kl`, the gap
    being what the two say within the bucket; with k = V it is `kl` at every T. Mask, reduction and T² as
    there. Top-k targets with a remainder: Tan et al. 2019 (https://arxiv.org/abs/1902.10461) keep the k
    largest; the bucket makes of them a distribution again, so that the student's other words are not free.

    Args:
        student_logits: [B*K, T, V].
        teacher: see `TopK`; what it holds beyond the T - 1 rows of a caption's batch must be cut off.
        tokens, pad_id, temperature: as in `kl`.
    """
    if temperature <= 0:
        raise ValueError(f"temperature must be above 0, not {temperature}")
    _check_logits(student_logits, tokens)
    if teacher.words.shape[:2] != (len(tokens), tokens.shape[1] - 1):
        raise ValueError(f"{list(teacher.words.shape)} likeliest words for tokens {list(tokens.shape)}")
    log_q = _wide(student_logits[:, :-1]).log_softmax(dim=-1)
    log_p = _wide(teacher.log_p.detach())
    if teacher.trimmed:
        log_q = F.pad(log_q, (0, 1), value=LOG_ZERO)
    kept = log_q.gather(-1, teacher.words)
    if teacher.trimmed or teacher.words.shape[-1] < log_q.shape[-1]:
        others = log_q.scatter(-1, teacher.words, float("-inf")).logsumexp(-1, keepdim=True)
        kept = torch.cat([kept, others], dim=-1)
        log_p = torch.cat([log_p, _wide(teacher.log_rest.detach())[..., None]], dim=-1)
    log_q, log_p = ((x / temperature).log_softmax(dim=-1) for x in (kept, log_p))
    per_token = (log_p.exp() * (log_p - log_q)).sum(dim=-1)  # [B*K, T-1]
    return temperature**2 * _masked_mean(per_token, tokens[:, 1:] != pad_id)


def feature(student: Tensor, teacher: Tensor, kind: str = "mse", mask: Tensor | None = None) -> Tensor:
    """How far the student's features are from the teacher's, token by token; without unit.

    `"mse"`: every token is brought to mean 0 and variance 1 over its D channels, on both sides, and the
    squares of the differences are averaged over tokens and channels. With r the correlation of the two
    tokens that is 2 (1 - r): 0 equal, 2 unrelated, 4 opposite, whatever the scale of the teacher's layer.
    Hints: Romero et al. 2015 (FitNets, https://arxiv.org/abs/1412.6550); standardised targets: Wei et al.
    2022 (https://arxiv.org/abs/2205.14141).
    `"cosine"`: 1 - cos(student, teacher), averaged over tokens: 0 same direction, 1 at right angles, 2
    opposite. Sanh et al. 2019 (DistilBERT, https://arxiv.org/abs/1910.01108).
    No gradient reaches the teacher.

    Args:
        student, teacher: [..., N, D], equal shapes (a projector and `align_grid` make them so).
        kind: "mse" or "cosine".
        mask: boolean [..., N], true where a token counts; all do by default.
    """
    if student.shape != teacher.shape:
        raise ValueError(
            f"student features {list(student.shape)} against teacher features {list(teacher.shape)}:"
            " project the width and align the grid first"
        )
    if mask is not None and mask.shape != student.shape[:-1]:
        raise ValueError(f"mask {list(mask.shape)} does not fit features {list(student.shape)}")
    student, teacher = _wide(student), _wide(teacher.detach())
    if kind == "mse":
        per_token = (_standardise(student) - _standardise(teacher)).square().mean(dim=-1)
    elif kind == "cosine":
        per_token = 1 - F.cosine_similarity(student, teacher, dim=-1)
    else:
        raise ValueError(f'kind must be "mse" or "cosine", not {kind!r}')
    return per_token.mean() if mask is None else _masked_mean(per_token, mask)


def attention(student: Tensor, teacher: Tensor, mask: Tensor | None = None) -> Tensor:
    """How far the student's text looks from where the teacher's looks; nats per token.

    Σ_c p(c) (log p(c) - log q(c)), p and q the shares of the image's cells in each network's attention,
    averaged over the tokens that count. Attention transfer: Wang et al. 2020 (MiniLM,
    https://arxiv.org/abs/2002.10957); there head by head, here after averaging over heads (and layers, if the
    caller wants), so that their numbers need not agree, nor need one decoder carry the image as a prefix where
    the other looks across at it. No gradient reaches the teacher.

    Args:
        student, teacher: [B*K, T, cells], rows summing to one, the same cells in the same order.
        mask: boolean [B*K, T], true where a token counts; all do by default.
    """
    if student.shape != teacher.shape:
        raise ValueError(
            f"student attention {list(student.shape)} against teacher attention {list(teacher.shape)}"
        )
    p, q = (_wide(x).clamp(min=1e-8) for x in (teacher.detach(), student))
    per_token = (p * (p.log() - q.log())).sum(dim=-1)
    return per_token.mean() if mask is None else _masked_mean(per_token, mask)


def align_attention(shares: Tensor, frames: int, cells: int) -> Tensor:
    """Shares of attention [R, T, F*h*w] on square grids of `cells` cells a frame instead, still summing to one."""
    per_frame = shares.unflatten(-1, (frames, -1)).permute(0, 2, 3, 1)  # (R, F, h*w, T)
    if per_frame.shape[2] == cells:
        return shares
    sides = [(math.isqrt(count),) * 2 for count in (per_frame.shape[2], cells)]
    aligned = align_grid(per_frame.flatten(0, 1), *sides).unflatten(0, per_frame.shape[:2])
    aligned = aligned.permute(0, 3, 1, 2).flatten(2)
    return aligned / aligned.sum(-1, keepdim=True).clamp(min=1e-12)


def relation(student: Tensor, teacher: Tensor, heads: int, mask: Tensor | None = None) -> Tensor:
    """How far the relations among the student's vectors are from those among the teacher's; nats per vector.

    The channels are cut into `heads` relation heads, whatever number of heads either attention has. In each,
    R = softmax(X Xᵀ / √d) says how near every vector is to every other one; the loss is
    Σ_j R_t(i, j) (log R_t(i, j) - log R_s(i, j)), averaged over heads and over the vectors i that count, and
    only those appear among the j. X are an attention's queries, keys or values; widths may differ, so there is
    no projector. Wang et al. 2021 (MiniLMv2, https://arxiv.org/abs/2012.15828). No gradient reaches the teacher.

    Args:
        student, teacher: [R, N, Ds] and [R, N, Dt], both widths divisible by `heads`.
        mask: boolean [R, N]; all count by default.
    """
    for x in (student, teacher):
        if x.dim() != 3 or x.shape[:2] != student.shape[:2] or x.shape[2] % heads:
            raise ValueError(
                f"{list(student.shape)} and {list(teacher.shape)} are not [R, N, D] for {heads} relation heads"
            )
    if mask is None:
        mask = torch.ones(student.shape[:2], dtype=torch.bool, device=student.device)

    def log_relations(x: Tensor) -> Tensor:
        x = _wide(x).unflatten(-1, (heads, -1)).transpose(1, 2)  # (R, h, N, d)
        scores = x @ x.transpose(-1, -2) / x.shape[-1] ** 0.5
        return scores.masked_fill(~mask[:, None, None], -1e4).log_softmax(-1)

    with _without_autocast(student.device):  # which would make halves of the products again
        log_p, log_q = log_relations(teacher.detach()), log_relations(student)
    pairs = (log_p.exp() * (log_p - log_q)).masked_fill(~mask[:, None, None], 0)
    return _masked_mean(pairs.sum(-1).mean(1), mask)


def relation_heads(student: int, teacher: int, least: int = 16) -> int:
    """As many relation heads as divide both widths and leave `least` channels in each: more relations, finer ones."""
    common = math.gcd(student, teacher)
    return max(
        h for h in range(1, common + 1) if common % h == 0 and (h == 1 or min(student, teacher) >= least * h)
    )


def align_grid(features: Tensor, grid_from: tuple[int, int], grid_to: tuple[int, int]) -> Tensor:
    """Resample image tokens from one grid to another: [B, N, D] with N = h*w to [B, h'*w', D].

    A direction that shrinks is averaged over areas, one that grows is interpolated bilinearly. Tokens are in
    row order and spatial only: no class token, one frame an item of the batch.
    """
    height, width = grid_from
    if features.dim() != 3 or features.shape[1] != height * width:
        raise ValueError(
            f"features {list(features.shape)} are not [B, {height * width}, D], a {height}x{width} grid"
        )
    if tuple(grid_from) == tuple(grid_to):
        return features
    maps = _wide(features).transpose(1, 2).unflatten(2, grid_from)  # [B, D, h, w]
    shrunk = (min(height, grid_to[0]), min(width, grid_to[1]))
    maps = area_means(maps, shrunk)
    maps = F.interpolate(maps, size=tuple(grid_to), mode="bilinear", align_corners=False)
    return maps.flatten(2).transpose(1, 2)


def _check_logits(logits: Tensor, tokens: Tensor) -> None:
    if logits.dim() != 3 or logits.shape[:2] != tokens.shape:
        raise ValueError(f"logits {list(logits.shape)} are not [B*K, T, V] for tokens {list(tokens.shape)}")


def _wide(x: Tensor) -> Tensor:
    """Half precision to float32; sums over a vocabulary lose too much in halves."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def _without_autocast(device: torch.device):
    """Operations inside compute in the type they are given; "meta" has no autocast to switch off."""
    return nullcontext() if device.type == "meta" else torch.autocast(device.type, enabled=False)


def _standardise(x: Tensor) -> Tensor:
    # the smallest eps that float32 bears: a larger one would count faint layers as nearly constant
    return F.layer_norm(x, x.shape[-1:], eps=1e-6)


def _masked_mean(values: Tensor, mask: Tensor) -> Tensor:
    return values.masked_fill(~mask, 0).sum() / mask.sum().clamp(min=1)
