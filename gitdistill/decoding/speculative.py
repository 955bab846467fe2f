"""Speculative captioning: a small model drafts, a large one checks whole drafts at once.

After Leviathan et al. 2023, https://arxiv.org/abs/2211.17192, for greedy search: the caption is the large model's
own, word for word; the small one only saves it steps. How often a drafted word stands tells how well the small
one was distilled.

Both models follow the protocol of `gitdistill.decoding`, and their states can also be shortened:
``state = state.truncate(length)`` forgets all but the first `length` tokens of every row.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from gitdistill.decoding.search import Decoded, _begin, _inference, _log_probs


@dataclass
class Speculated(Decoded):
    """What `speculative` found: tokens and scores as `greedy` gives them; steps: passes of the teacher.

    judged: long [B], the student's own words that the teacher looked at: up to the first wrong one of a draft and
        up to the caption's end. accepted: long [B], those of them that were the teacher's choice, too.
    passes: for each pass the words drafted [B, d] and those by which the captions grew [B, g], padding after their
        end.
    """

    judged: Tensor | None = None
    accepted: Tensor | None = None
    passes: list[tuple[Tensor, Tensor]] | None = None

    @property
    def acceptance(self) -> float:
        """The share of judged words that were accepted, over all clips; NaN if none was judged."""
        return float(self.accepted.sum() / self.judged.sum())


def speculative(teacher, student, frames, max_length=20, draft=4, prefix=None):
    """The teacher's greedy captions, for which the student drafts `draft` words at a time.

    Args:
        teacher, student: see above; they share a vocabulary. Both run in eval mode without gradient.
        frames, max_length, prefix: as in `gitdistill.decoding.greedy`; prefixes must be of one length.
        draft: words drafted before the teacher looks at them; more are worth it where the student is good.

    In a batch all clips advance by what the slowest one gained; what another one gained beyond that begins its
    next draft.

    Returns: `Speculated`. Raises ValueError as `greedy` does; also for a draft below 1, models that differ in
    vocabulary or special tokens, and prefixes of different lengths.
    """
    if draft < 1:
        raise ValueError(f"draft must be at least 1, got {draft}")
    for name in ("vocab_size", "bos_token_id", "eos_token_id", "pad_token_id"):
        one, other = getattr(teacher, name), getattr(student, name)
        if one != other:
            raise ValueError(f"teacher and student must share a vocabulary: {name} is {one} and {other}")
    with _inference(teacher), _inference(student):
        seen, _ = _begin(student, frames, prefix, max_length)
        frames, start = _begin(teacher, frames, prefix, max_length)
        if start.rest.shape[1]:
            raise ValueError("speculative captioning needs prefixes of one length")
        drafter = _Drafter(student, seen)
        return _speculate(teacher, drafter, frames, start.common, max_length, draft)


class _Drafter:
    """The student and how far it has read."""

    def __init__(self, student, frames):
        self.student, self.state, self.read, self.device = student, student.prefill(frames), 0, frames.device

    def draft(self, text, size, known):
        """Words [B, size] after text [B, L], and where they are its own.

        known: [B, a], what a row has got already, which the draft repeats; -1 where there is nothing.
        """
        fed, words = text[:, self.read :].to(self.device), [text[:, :0]]
        for i in range(size):
            logits, self.state = self.student.decode_step(fed, self.state)
            self.read += fed.shape[1]
            word = logits[:, -1].argmax(-1, keepdim=True).to(text.device)
            if i < known.shape[1]:
                word = known[:, i, None].where(known[:, i, None] >= 0, word)
            words.append(word)
            fed = word.to(self.device)
        own = torch.ones(len(text), size, dtype=torch.bool, device=text.device)
        overlap = min(size, known.shape[1])
        own[:, :overlap] = known[:, :overlap] < 0
        return torch.cat(words, 1), own

    def cut(self, length):
        """Forget what was read beyond `length` tokens."""
        if self.read > length:
            self.state, self.read = self.state.truncate(length), length


def _speculate(teacher, drafter, frames, text, max_length, draft):
    state, read, passes, prefix = teacher.prefill(frames), 0, [], text.shape[1]
    known, live = text[:, :0], torch.ones(len(text), dtype=torch.bool, device=text.device)
    total = torch.zeros(len(text), device=text.device)  # sums of log-probabilities
    count, judged, accepted = (torch.zeros_like(text[:, 0]) for _ in range(3))
    while live.any() and text.shape[1] < max_length:
        size = min(draft, max_length - text.shape[1] - 1)
        words, own = drafter.draft(text, size, known)
        logits, state = teacher.decode_step(torch.cat([text[:, read:], words], 1), state)
        logits = logits[:, -size - 1 :].float()
        choice = logits.argmax(-1)  # [B, size + 1]: what the teacher says after 0, 1, … drafted words
        right = words == choice[:, :-1]
        won, ended = _won(choice, right, live, teacher.eos_token_id)

        looked_at = own & won[:, :-1]
        judged, accepted = judged + looked_at.sum(1), accepted + (looked_at & right).sum(1)

        gain = int(won.sum(1).masked_fill(ended, size + 1).min())  # of the slowest clip not at its end
        new, mine = choice[:, :gain], won[:, :gain]
        log_probs = _log_probs(logits[:, :gain].flatten(0, 1), text.shape[1] - prefix, mine.flatten(), gain)
        log_probs = log_probs.gather(1, new.reshape(-1, 1)).view_as(new)
        total, count = total + log_probs.masked_fill(~mine, 0.0).sum(1), count + mine.sum(1)
        known = choice[:, gain:].masked_fill(~won[:, gain:], -1)
        live = live & ~((new == teacher.eos_token_id) & mine).any(1)
        new = new.masked_fill(~mine, teacher.pad_token_id)
        passes.append((words, new))
        text = torch.cat([text, new], 1)
        read = text.shape[1] - 1  # the last word may not be the one that was drafted and read
        state = state.truncate(read)
        drafter.cut(read)
    scores, longest = (total / count)[:, None], prefix + int(count.max())  # a last draft may outrun all ends
    return Speculated(text[:, None, :longest], scores, len(passes), None, judged, accepted, passes)


def _won(choice, right, live, end):
    """Which of the teacher's words [B, S] continue a row's caption, and which rows [B] are at their end.

    right: [B, S-1], the drafted word was the teacher's. A word counts while all drafted ones before it were right,
    none of them the end token.
    """
    first = torch.ones_like(choice[:, :1], dtype=torch.bool)
    going_on = torch.cat([first, right & (choice[:, :-1] != end)], 1)
    won = going_on.long().cumprod(1).bool() & live[:, None]
    return won, ~live | (won & (choice == end)).any(1)
