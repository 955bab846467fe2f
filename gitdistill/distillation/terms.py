"""The terms of the distillation loss: small functions from the outputs of both networks to a scalar."""

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor, nn
from torch.nn import functional as F

from gitdistill.distillation import losses
from gitdistill.distillation.targets import STUDENT_ATTENTION, FeaturePair, TargetSpec, activations


@dataclass
class Outputs:
    """What student and teacher make of one batch; every loss term is computed from it.

    Token ids and logits index the student's `vocab_subset`, if it has one.

    tokens: long [B, K, T]; of a clip's K captions the first `num_captions` are the batch's, the last `num_own` drawn
    by the student, those between them pseudo-captions of the teacher. pad_id: the padding token.
    student, teacher: the outputs of each by name, see `teacher_targets`; attention lies over the student's grid.
    """

    tokens: Tensor
    num_captions: int
    pad_id: int
    student: dict[str, Tensor]
    teacher: dict
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
        return bool(self.pairs) and not self.of_words

    @property
    def of_words(self) -> bool:
        """True where it compares what both networks make of the same words."""
        return bool(self.needs) or any(not pair.of_image for pair in self.pairs)


def student_outputs(
    student: nn.Module, frames: Tensor, tokens: Tensor, spec: TargetSpec
) -> dict[str, Tensor]:
    """The student's side of a batch, with gradients, under the keys of `spec.names()`."""
    output, found = activations(student, frames, tokens, spec, STUDENT_ATTENTION, detach=False)
    return {"logits": subset_logits(output), **found}


def caption_loss(x: Outputs, pseudo: bool, smoothing: float) -> Tensor:
    """Cross-entropy of the batch's captions or of the pseudo-captions.

    A caption with only a start token contributes 0 to the mean over captions.
    """
    pseudo_captions = slice(x.num_captions, x.tokens.shape[1] - x.num_own)
    chosen = pseudo_captions if pseudo else slice(x.num_captions)
    logits = x.student["logits"].unflatten(0, x.tokens.shape[:2])
    logits, tokens = (each[:, chosen].flatten(0, 1) for each in (logits, x.tokens))
    share = (tokens[:, 1:] != x.pad_id).any(1).float().mean()
    return share * losses.cross_entropy(logits, tokens, x.pad_id, smoothing)


def kl_loss(x: Outputs, temperature: float, beta: float) -> Tensor:
    logits, tokens = x.student["logits"], x.tokens.flatten(0, 1)
    return losses.kl(logits, x.teacher["logits"], tokens, x.pad_id, temperature, beta)


def attention_loss(x: Outputs) -> Tensor:
    predicts_word = F.pad(x.is_word[:, 1:], (0, 1))
    return losses.attention(x.student["attention"], x.teacher["attention"], predicts_word)


def pairs_loss(x: Outputs, pairs: tuple[FeaturePair, ...], projectors: nn.ModuleDict, kind: str) -> Tensor:
    """The distance of student and teacher, averaged over the pairs."""
    return sum(pair_loss(x, pair, projectors, kind) for pair in pairs) / len(pairs)


def pair_loss(x: Outputs, pair: FeaturePair, projectors: nn.ModuleDict, kind: str) -> Tensor:
    """The distance of one pair."""
    ours, theirs = pair.keys
    student, teacher = x.student[ours], x.teacher[theirs]
    student = projectors[pair.name](student) if pair.projected else student
    if pair.of_image:
        student, teacher = on_one_grid(student, teacher)
    mask = None if pair.of_image else x.is_word
    if pair.projected:
        return losses.feature(student, teacher, kind, mask)
    heads = losses.relation_heads(student.shape[-1], teacher.shape[-1])
    return losses.relation(student, teacher, heads, mask)


def on_one_grid(student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    """Image features [B*F, h, w, D] of both as [B*F, N, D] over the teacher's grid."""
    grids = student.shape[1:3], teacher.shape[1:3]
    return losses.align_grid(student.flatten(1, 2), *grids), teacher.flatten(1, 2)


def subset_logits(output) -> Tensor:
    """A network's logits over its `vocab_subset`, if it has one, otherwise over the whole vocabulary."""
    return getattr(output, "subset_logits", output.logits)


def to_vocab_subset(model, tokens: Tensor) -> tuple[Tensor, int]:
    """Token ids and the padding id as indices into the model's `vocab_subset`, if it has one."""
    if getattr(model, "vocab_subset", None) is None:
        return tokens, model.pad_token_id
    return model.subset_index[tokens], model.subset_pad_token_id
