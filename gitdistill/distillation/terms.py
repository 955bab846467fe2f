"""The terms of the distillation loss: small functions from the outputs of both networks to a scalar."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gitdistill.distillation import losses
from gitdistill.distillation.targets import (
    STUDENT_ATTENTION,
    FeaturePair,
    attention_over_image,
    total_frames,
)
from gitdistill.hooks import record


@dataclass
class Outputs:
    """What student and teacher make of one batch; every loss term is computed from it.

    Token ids and logits index the student's `vocab_subset`, if it has one.

    tokens: long [B, K, T]; of a clip's K captions the first `num_captions` are the batch's, the last `num_own` drawn
    by the student, those between them pseudo-captions of the teacher.
    pad_id: the padding token. logits: the student's, [B, K, T, V]. features, attention: the student's, as in
    `FeaturePair.student_features` and `attention_over_image`. targets: the teacher's, see `teacher_targets`.
    num_frames: frames per clip.
    """

    tokens: Tensor
    num_captions: int
    pad_id: int
    logits: Tensor
    features: dict[FeaturePair, Tensor]
    attention: Tensor | None
    targets: dict
    num_frames: int
    num_own: int = 0

    @property
    def is_word(self) -> Tensor:
        """True [B*K, T] where a token is not padding."""
        return self.tokens.flatten(0, 1) != self.pad_id


@dataclass(frozen=True)
class LossTerm:
    """One term of the loss: its name in `loss_weights`, its function, and what it needs.

    compute: from `Outputs` to a scalar. pairs: the layers whose features it compares. needs: what else it compares,
    "logits" or "attention".
    """

    name: str
    compute: Callable[[Outputs], Tensor]
    pairs: tuple[FeaturePair, ...] = ()
    needs: tuple[str, ...] = ()

    @property
    def image_only(self) -> bool:
        """True where it compares image features alone, and so does not reach the student's decoder."""
        return bool(self.pairs) and not self.needs and all(pair.of_image for pair in self.pairs)


def student_outputs(student: nn.Module, frames: Tensor, tokens: Tensor, pairs, attention: bool = False):
    """The student's logits, its features by pair, and, if asked for, its attention; see `Outputs`."""
    paths = [*{pair.student for pair in pairs}, *([STUDENT_ATTENTION] if attention else [])]
    with record(student, paths, detach=False) as seen:
        output = student(frames, tokens)
    count = total_frames(frames)
    features = {pair: pair.student_features(seen[pair.student][0], count, tokens) for pair in pairs}
    weights = None
    if attention:
        layers = [calls[0] for path, calls in seen.items() if path.endswith(".cross_attention.softmax")]
        mean = torch.stack(layers).float().mean((0, 2))  # (B, K*T, M)
        weights = attention_over_image(mean, tokens, count, mean.shape[-1])
    return subset_logits(output), features, weights


def caption_loss(x: Outputs, pseudo: bool, smoothing: float) -> Tensor:
    """Cross-entropy of the batch's captions or of the pseudo-captions.

    A caption with only a start token contributes 0 to the mean over captions.
    """
    pseudo_captions = slice(x.num_captions, x.tokens.shape[1] - x.num_own)
    chosen = pseudo_captions if pseudo else slice(x.num_captions)
    logits, tokens = x.logits[:, chosen].flatten(0, 1), x.tokens[:, chosen].flatten(0, 1)
    share = (tokens[:, 1:] != x.pad_id).any(1).float().mean()
    return share * losses.cross_entropy(logits, tokens, x.pad_id, smoothing)


def kl_loss(x: Outputs, temperature: float, beta: float) -> Tensor:
    logits, tokens = x.logits.flatten(0, 1), x.tokens.flatten(0, 1)
    return losses.kl(logits, x.targets["logits"], tokens, x.pad_id, temperature, beta)


def attention_loss(x: Outputs) -> Tensor:
    predicts_word = F.pad(x.is_word[:, 1:], (0, 1))
    image_tokens = x.attention.shape[-1] // x.num_frames
    target = losses.align_attention(x.targets["attention"], x.num_frames, image_tokens)
    return losses.attention(x.attention, target, predicts_word)


def pairs_loss(x: Outputs, pairs: tuple[FeaturePair, ...], projectors: nn.ModuleDict, kind: str) -> Tensor:
    """The distance of student and teacher, averaged over the pairs."""
    return sum(pair_loss(x, pair, projectors, kind) for pair in pairs) / len(pairs)


def pair_loss(x: Outputs, pair: FeaturePair, projectors: nn.ModuleDict, kind: str) -> Tensor:
    """The distance of one pair; the student's grid is resampled to the teacher's."""
    student, teacher = x.features[pair], x.targets[pair.target]
    student = projectors[pair.name](student) if pair.projected else student
    if pair.of_image:
        grids = student.shape[1:3], teacher.shape[1:3]
        student, teacher = losses.align_grid(student.flatten(1, 2), *grids), teacher.flatten(1, 2)
    mask = None if pair.of_image else x.is_word
    if pair.projected:
        return losses.feature(student, teacher, kind, mask)
    heads = losses.relation_heads(student.shape[-1], teacher.shape[-1])
    return losses.relation(student, teacher, heads, mask)


def subset_logits(output) -> Tensor:
    """A network's logits over its `vocab_subset`, if it has one, otherwise over the whole vocabulary."""
    return getattr(output, "subset_logits", output.logits)


def to_vocab_subset(model, tokens: Tensor) -> tuple[Tensor, int]:
    """Token ids and the padding id as indices into the model's `vocab_subset`, if it has one."""
    if getattr(model, "vocab_subset", None) is None:
        return tokens, model.pad_token_id
    return model.subset_index[tokens], model.subset_pad_token_id
