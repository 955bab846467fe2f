"""What a distillation asks of a teacher about clips and captions, and how the teacher answers.

`ask` reads distributions and activations off one forward pass, `speak` lets the teacher say captions of its own.
`gitdistill.cache` keeps both on disk.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from gitdistill.decoding import beam
from gitdistill.hooks import record

BEAMS = 4  # of the teacher's own captions


@dataclass(frozen=True)
class Wants:
    """What a distillation wants to know of the teacher.

    logits: the next word's distribution, for each token of each caption.
    cells: module paths of the teacher; what they make of the image, cell by cell.
    rows: module paths of the teacher; what they make of the captions, token by token.
    attention: where each token looks in the image, averaged over heads and layers.
    captions: how many captions of the teacher's own for each clip.
    """

    logits: bool = True
    cells: tuple[str, ...] = ()
    rows: tuple[str, ...] = ()
    attention: bool = False
    captions: int = 0

    def names(self) -> list[str]:
        """The parts of `ask`'s answer: "logits", "cells/<path>", "rows/<path>", "attention"."""
        flags = [name for name in ("logits", "attention") if getattr(self, name)]
        return flags + [f"cells/{path}" for path in self.cells] + [f"rows/{path}" for path in self.rows]


ATTENTION = "model.layers.*.attention.softmax"


def parse_dtype(name: str) -> torch.dtype:
    """What a teacher computes in, by name; ValueError for another one."""
    if name not in ("float32", "bfloat16", "float16"):
        raise ValueError(f"teacher_dtype must be float32, bfloat16 or float16, not {name!r}")
    return getattr(torch, name)


@torch.no_grad()
def ask(teacher, frames: Tensor, tokens: Tensor, wants: Wants, dtype: torch.dtype = torch.float32) -> dict:
    """The teacher's answer on a batch, by the names of `wants`.

    "logits" [B*K, T, V]; "cells/…" [B*F, h, w, D], class tokens left out; "rows/…" [B*K, T, D]; "attention"
    [B*K, T, F*h*w], the share of each cell in what goes to cells at all. `dtype` bfloat16 computes under
    autocast, faster on hardware that knows it.
    """
    paths = [*wants.cells, *wants.rows, *([ATTENTION] if wants.attention else [])]
    half = dtype != torch.float32
    with record(teacher, paths) as seen, torch.autocast(frames.device.type, dtype, enabled=half):
        output = teacher(frames, tokens)
    count = len(frames) * (frames.shape[1] if frames.dim() == 5 else 1)
    answer = {"logits": output.logits} if wants.logits else {}
    if wants.attention:
        # In every layer the text reads last.
        layers = [calls[-1] for path, calls in seen.items() if path.endswith(".attention.softmax")]
        answer["attention"] = text_to_cells(
            torch.stack(layers).float().mean((0, 2)), tokens, count, output.visual_features.shape[1]
        )
    answer |= {f"cells/{path}": as_cells(seen[path][0], count) for path in wants.cells}
    answer |= {f"rows/{path}": seen[path][-1].reshape(*tokens.shape, -1) for path in wants.rows}
    return {name: value.float() for name, value in answer.items()}


def as_cells(activation: Tensor, frames: int) -> Tensor:
    """An image activation of either network as cells [B*F, h, w, D], `frames` = B*F.

    Takes maps [B*F, C, h, w], tokens of single frames [B*F, S, D] and of whole clips [B, F*S, D]. A class token
    that leads each frame is dropped: it is there when S is one more than a square number.
    """
    if activation.dim() == 5:
        activation = activation.flatten(0, 1)
    if activation.dim() == 4:
        return activation.permute(0, 2, 3, 1)
    if activation.dim() != 3 or activation.shape[0] * activation.shape[1] % frames:
        raise ValueError(f"an activation of shape {list(activation.shape)} is not a map over {frames} frames")
    tokens = activation.reshape(frames, -1, activation.shape[-1])
    side = math.isqrt(tokens.shape[1])
    if side**2 + 1 == tokens.shape[1]:
        tokens = tokens[:, 1:]
    elif side**2 != tokens.shape[1]:
        raise ValueError(
            f"{tokens.shape[1]} tokens a frame are no square grid, with or without a class token"
        )
    return tokens.unflatten(1, (side, side))


def text_to_cells(attention: Tensor, tokens: Tensor, frames: int, image: int) -> Tensor:
    """How a text's attention spreads over the cells of a clip: [B*K, T, F*h*w], rows summing to one.

    attention: [B, K*T, S], its first `image` columns the image tokens, frame by frame; the others, the text of a
    prefix decoder, are left out like the class tokens. frames: B*F.
    """
    per_token = attention[..., :image].transpose(1, 2)  # (B, N, K*T)
    cells = as_cells(per_token, frames).flatten(1, 2)  # (B*F, h*w, K*T)
    cells = cells.reshape(len(attention), -1, cells.shape[-1]).transpose(1, 2)  # (B, K*T, F*h*w)
    cells = cells.reshape(*tokens.shape, -1)
    return cells / cells.sum(-1, keepdim=True).clamp(min=1e-12)


@torch.no_grad()
def speak(teacher, frames: Tensor, count: int, max_length: int, dtype: torch.dtype = torch.float32):
    """The teacher's own `count` best captions of each clip, by beam search, and what is to be thought of them.

    Returns tokens long [B, count, T], and float [B, count, 3]: confidence, the mean log-probability of a token;
    repetition, the share of three-word sequences that were said before in the same caption; agreement, how many
    words a caption shares with the other beams' (F1, averaged over them).
    """
    beams = max(BEAMS, count)
    half = dtype != torch.float32
    with torch.autocast(frames.device.type, dtype, enabled=half):
        found = beam(teacher, frames, beams=beams, max_length=max_length, num_return=beams)
    special = {teacher.pad_token_id, teacher.bos_token_id, teacher.eos_token_id}
    judged = []
    for captions, scores in zip(found.tokens.tolist(), found.scores.tolist()):
        words = [[word for word in caption if word not in special] for caption in captions]
        for mine in range(count):
            others = [shared_words(words[mine], words[k]) for k in range(beams) if k != mine]
            judged.append([scores[mine], repetition(words[mine]), sum(others) / len(others)])
    judged = torch.tensor(judged, device=frames.device).unflatten(0, (len(frames), count))
    return found.tokens[:, :count], judged


def repetition(words: list) -> float:
    """The share of three-word sequences that occurred before; 0 for a caption of fewer words."""
    triples = list(zip(words, words[1:], words[2:]))
    return 1 - len(set(triples)) / len(triples) if triples else 0.0


def shared_words(a: list, b: list) -> float:
    """F1 of two captions' words, each counted as often as it occurs; 1 for two empty ones."""
    if not a and not b:
        return 1.0
    shared = sum(min(a.count(word), b.count(word)) for word in set(a))
    return 2 * shared / (len(a) + len(b))


@dataclass(frozen=True)
class CaptionFilter:
    """Which of the teacher's own captions are good enough to learn from; see `speak` for what is measured.

    The least confidence and agreement and the most repetition; by default all captions pass.
    """

    confidence: float = -math.inf
    repetition: float = 1.0
    agreement: float = 0.0

    def __call__(self, judged: Tensor) -> Tensor:
        """True where a caption of `judged` [..., 3] passes."""
        confidence, repetition, agreement = judged.unbind(-1)
        return (
            (confidence >= self.confidence) & (repetition <= self.repetition) & (agreement >= self.agreement)
        )

    def apply(self, tokens: Tensor, judged: Tensor, pad_id: int) -> Tensor:
        """`tokens` [..., T] with nothing but the start token in captions that do not pass."""
        tokens = tokens.clone()
        tokens[..., 1:].masked_fill_(~self(judged)[..., None], pad_id)
        return tokens


def beside(a: Tensor, b: Tensor, pad_id: int) -> Tensor:
    """Captions [B, K, T] and [B, L, T'] of the same clips together, [B, K+L, max(T, T')]."""
    longest = max(a.shape[-1], b.shape[-1])
    return torch.cat([F.pad(x, (0, longest - x.shape[-1]), value=pad_id) for x in (a, b)], dim=1)
