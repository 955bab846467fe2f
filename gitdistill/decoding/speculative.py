"""Speculative captioning: a small model drafts, a large one checks whole drafts at once.

After https://arxiv.org/abs/2211.17192, for greedy search: the captions are the large model's own, token for token, and
the small one only saves it steps. The acceptance rate tells how well the small one was distilled. Each pass reads from
the device how far the captions have grown, since that decides the size of the next one.
Both follow the protocol of `gitdistill.decoding.search`, and their caches can also be shortened:
``cache = cache.truncate(length)`` forgets all but the first `length` tokens of every caption.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from gitdistill.counts import check_counts
from gitdistill.decoding.loop import Decoded, check, evaluation, log_probabilities, prepare


@dataclass
class Speculated(Decoded):
    """What `speculative` found: tokens and scores as `greedy` gives them; steps: passes of the teacher.

    checked: long [B], drafted tokens that were compared with the teacher's choice. Comparison stops at the first
        mismatch of a draft and at the end token. accepted: long [B], those of them that matched.
    passes: for each pass the drafted tokens [B, d] and those by which the captions grew [B, g].
    """

    checked: Tensor | None = None
    accepted: Tensor | None = None
    passes: list[tuple[Tensor, Tensor]] | None = None

    @property
    def acceptance(self) -> float:
        """The share of checked tokens that were accepted, over all clips; NaN if none was checked."""
        return float(self.accepted.sum() / self.checked.sum())


def speculative(teacher, student, frames, max_length=20, draft=4, prefix=None):
    """The teacher's greedy captions, for which the student drafts `draft` tokens at a time.

    The two share a vocabulary and special tokens, and prefixes have one length; else a ValueError says so. In a batch
    all clips advance by the smallest number of accepted tokens. A clip's surplus tokens begin its next draft.
    """
    check_counts(draft=draft)
    for name in ("vocab_size", "bos_token_id", "eos_token_id", "pad_token_id"):
        one, other = getattr(teacher, name), getattr(student, name)
        if one != other:
            raise ValueError(f"teacher and student must share a vocabulary: {name} is {one} and {other}")
    with evaluation(teacher), evaluation(student):
        student_frames, _, _ = prepare(student, frames, prefix, max_length)
        frames, text, lengths = prepare(teacher, frames, prefix, max_length)
        if lengths.min() < text.shape[1]:
            raise ValueError("speculative captioning needs prefixes of one length")
        return _speculate(Reader(teacher, frames), Reader(student, student_frames), text, max_length, draft)


class Reader:
    """A model, and how many tokens of the captions its cache holds."""

    def __init__(self, model, frames):
        self.model, self.device, self.cache, self.length = model, frames.device, model.prefill(frames), 0

    def read(self, text, new=1):
        """The logits [B, new, V] after each of the last `new` tokens of text [B, T]; only those before are cached."""
        cached = min(self.length, text.shape[1] - new)
        unread = text[:, cached:].to(self.device)
        logits, self.cache = self.model.decode_step(unread, self.cache.truncate(cached))
        self.length = text.shape[1]
        return logits[:, -new:].float().to(text.device)


def _speculate(teacher, student, text, max_length, draft):
    eos, passes = teacher.model.eos_token_id, []
    alive, total = text[:, 0] >= 0, torch.zeros(len(text), device=text.device)
    count, checked, accepted = (torch.zeros_like(text[:, 0]) for _ in range(3))
    known = text[:, :0]  # what clips have gained beyond the common length; -1 elsewhere
    while alive.any() and text.shape[1] < max_length:
        size = min(draft, max_length - text.shape[1] - 1)
        known, longer = F.pad(known, (0, size), value=-1)[:, :size], text
        for token in known.unbind(1):
            token = token.where(token >= 0, student.read(longer)[:, -1].argmax(-1))
            longer = torch.cat([longer, token[:, None]], 1)
        logits, drafted = teacher.read(longer, size + 1), longer[:, text.shape[1] :]
        choice = logits.argmax(-1)  # [B, size + 1], after 0, 1, ... drafted tokens
        # A choice continues the caption if all drafted tokens before it are right and none is the end.
        right = drafted == choice[:, :-1]
        valid = F.pad(right & (drafted != eos), (1, 0), value=True).cumprod(1).bool() & alive[:, None]
        compared = valid[:, :-1] & (known < 0)
        checked, accepted = checked + compared.sum(1), accepted + (compared & right).sum(1)
        gains, ended = valid.sum(1), ~alive | (valid & (choice == eos)).any(1)
        gain = int(min(gains.max(), gains.masked_fill(ended, size + 1).min()))  # of the slowest that goes on
        new, grows = choice[:, :gain], valid[:, :gain]
        log_probs, fault = log_probabilities(logits[:, :gain], len(passes), grows)
        check([fault])
        log_probs = log_probs.gather(2, new[:, :, None])[:, :, 0].masked_fill(~grows, 0.0)
        total, count = total + log_probs.sum(1), count + grows.sum(1)
        known = choice[:, gain:].masked_fill(~valid[:, gain:], -1)
        alive = alive & ~((new == eos) & grows).any(1)
        passes.append((drafted, new.masked_fill(~grows, teacher.model.pad_token_id)))
        text = torch.cat([text, passes[-1][1]], 1)
    scores = total / count
    return Speculated(text[:, None], scores[:, None], len(passes), None, checked, accepted, passes)
