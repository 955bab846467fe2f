"""Captions made for training, beside those of the batch.

Pseudo-captions are decoded by the teacher, for sequence-level distillation (Kim and Rush 2016,
https://arxiv.org/abs/1606.07947). The student's own are drawn by it and graded by the teacher: a student that only
ever reads good captions never learns to go on after its own mistakes (on-policy distillation, GKD, Agarwal et al.
2023, https://arxiv.org/abs/2306.13649).
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from gitdistill.decoding import beam, sample
from gitdistill.decoding.loop import Prefilled
from gitdistill.distillation.losses import TopK

BEAMS = 4


@torch.no_grad()
def pseudo_captions(teacher, frames, count: int, max_length: int, dtype=torch.float32, visual_features=None):
    """The teacher's `count` best captions of each clip by beam search, and their quality; see also `teacher_targets`.

    Returns tokens long [B, count, T] and quality float [B, count, 3]: confidence (mean log-probability of a token),
    repetition (share of trigrams that occurred earlier in the caption), and agreement (mean F1 of its words with
    those of the other beams).
    """
    beams = max(BEAMS, count)
    with torch.autocast(frames.device.type, dtype, enabled=dtype != torch.float32):
        if visual_features is not None:
            teacher = Prefilled(teacher, frames, teacher.model.read_image(visual_features))
        found = beam(teacher, frames, beams=beams, max_length=max_length, num_return=beams)
    special = {teacher.pad_token_id, teacher.bos_token_id, teacher.eos_token_id}
    quality = []
    for captions, scores in zip(found.tokens.tolist(), found.scores.tolist()):
        words = [[word for word in caption if word not in special] for caption in captions]
        for i in range(count):
            others = [word_f1(words[i], words[k]) for k in range(beams) if k != i]
            quality.append([scores[i], repetition(words[i]), sum(others) / len(others)])
    quality = torch.tensor(quality, device=frames.device).unflatten(0, (len(frames), count))
    return found.tokens[:, :count], quality


def repetition(words: list) -> float:
    """The share of trigrams that occurred before; 0 for a caption of fewer words."""
    triples = list(zip(words, words[1:], words[2:]))
    return 1 - len(set(triples)) / len(triples) if triples else 0.0


def word_f1(a: list, b: list) -> float:
    """F1 of two captions' words, each counted as often as it occurs; 1 for two empty captions."""
    if not a and not b:
        return 1.0
    shared = sum(min(a.count(word), b.count(word)) for word in set(a))
    return 2 * shared / (len(a) + len(b))


@dataclass(frozen=True)
class CaptionFilter:
    """Thresholds on the quality of pseudo-captions (see `pseudo_captions`); by default every caption passes."""

    confidence: float = -math.inf
    repetition: float = 1.0
    agreement: float = 0.0

    def __call__(self, quality: Tensor) -> Tensor:
        """True where a caption of `quality` [..., 3] passes."""
        confidence, repetition, agreement = quality.unbind(-1)
        passes = (confidence >= self.confidence) & (repetition <= self.repetition)
        return passes & (agreement >= self.agreement)

    def apply(self, tokens: Tensor, quality: Tensor, pad_id: int) -> Tensor:
        """`tokens` [..., T] with captions that do not pass reduced to their start token."""
        tokens = tokens.clone()
        tokens[..., 1:].masked_fill_(~self(quality)[..., None], pad_id)
        return tokens


def join_captions(a: Tensor, b: Tensor, pad_id: int) -> Tensor:
    """Captions [B, K, T] and [B, L, T'] of the same clips together, [B, K+L, max(T, T')].

    Or what belongs to their tokens, [B, K, T, ...] and [B, L, T', ...].
    """
    longest, inner = max(a.shape[2], b.shape[2]), (0, 0) * (a.dim() - 3)
    return torch.cat([F.pad(x, (*inner, 0, longest - x.shape[2]), value=pad_id) for x in (a, b)], dim=1)


def draw_captions(
    student, frames: Tensor, share: float, temperature: float, max_length: int, seed: int
) -> Tensor:
    """One caption for a share of the clips, drawn from the student without gradient, long [B, 1, T].

    Which clips those are is random, too; where `share` * B is no whole number, it is met on average. The other clips
    get only a start token. The captions are those of `sample` with the same seed for the chosen clips in ascending
    order.
    """
    generator = torch.Generator().manual_seed(seed)
    count = int(share * len(frames) + torch.rand((), generator=generator))
    chosen = torch.randperm(len(frames), generator=generator)[:count].sort().values.to(frames.device)
    drawn = chosen.new_zeros(0, 1, 1)
    if count:
        drawn = sample(student, frames[chosen], max_length, temperature, seed=seed).tokens
    captions = torch.full((len(frames), 1, drawn.shape[2]), student.pad_token_id, device=frames.device)
    captions[:, :, 0] = student.bos_token_id
    return captions.index_copy(0, chosen, drawn)


def join_targets(first: dict, second: dict, clips: int) -> dict:
    """Targets of K captions a clip, and of L others of the same clips in `second`, as those of K+L captions."""

    def join(a, b):
        if isinstance(a, TopK):
            return TopK(*(join(getattr(a, key), getattr(b, key)) for key in ("log_p", "words", "log_rest")))
        a, b = (x.unflatten(0, (clips, -1)) for x in (a, b))
        return join_captions(a, b, 0).flatten(0, 1)

    return first | {name: join(first[name], value) for name, value in second.items()}
