"""Caption search: greedy and beam, as pure functions over any model that can start and step.

The protocol (both networks of this package satisfy it, and so can a ten-line fake):

- ``model.bos_token_id``, ``eos_token_id``, ``pad_token_id``, ``max_positions``, ``vocab_size``: int;
- ``state = model.start(frames)`` encodes the B clips once;
- ``logits, state = model.step(tokens, state)`` appends tokens [B*K, t] to every row and returns
  logits [B*K, t, V], those at position i predicting the token after i;
- ``state = state.select(rows)`` makes new row j continue old row ``rows[j]``; the rows of one clip stay
  together, and their number may change (one row a clip becomes K beams after the first step).

So the image is encoded once a clip whatever the number of beams, and the search itself is tensor
arithmetic over clips x beams: the only Python loop is the one over steps.

Two published searches are followed exactly. ``penalty="transformers"`` is `generate` of
https://github.com/huggingface/transformers (5.x): a caption scores sum(log p) / n^a, n counting the
generated tokens with the end token. ``penalty="gnmt"`` is the search of
https://github.com/microsoft/GenerativeImage2Text with the length penalty of
https://arxiv.org/abs/1609.08144: sum(log p) / ((5 + n) / 6)^a, n counting start and prefix but not the end.
"""

from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

PENALTIES = ("transformers", "gnmt")
STOPS = ("current", "never", "first")
FLOOR = -1e9  # added to what must not be chosen; finite as in transformers, so that sums stay comparable


@dataclass
class Decoded:
    """What a search found.

    tokens: long [B, num_return, T], start token first, best caption first, the end token kept and padding
        after it; T is the longest caption's length.
    scores: float [B, num_return], log-probability after the length penalty (greedy: mean over the tokens).
    steps: how often the model was stepped.
    trace: None, or a table of all candidates (see `beam`).
    """

    tokens: Tensor
    scores: Tensor
    steps: int
    trace: dict[str, Tensor] | None = None


def greedy(model, frames, max_length=20, prefix=None, trace=False):
    """The likeliest next token at every step, until each clip has ended or has `max_length` tokens.

    Args:
        model: see the protocol above; runs in eval mode without gradient, and is left as it was.
        frames: B clips, as the model accepts them.
        max_length: most tokens of a caption, start token and prefix included.
        prefix: long [P] or [B, P], start token first: the caption continues it. None: the start token.
        trace: also return the table of chosen tokens, in the columns of `beam`.

    Returns: `Decoded` with one caption a clip. ValueError: see `beam`.
    """
    with _inference(model):
        frames, start = _begin(model, frames, prefix, max_length)
        return _greedy(model, frames, start, max_length, 1.0, trace)


def beam(model, frames, beams=4, max_length=20, length_penalty=1.0, penalty="transformers", stop=None,
         num_return=1, prefix=None, trace=False):  # fmt: skip
    """Beam search: keep the `beams` likeliest unfinished captions, and the best finished ones aside.

    Args:
        model, frames, max_length, prefix: as in `greedy`.
        beams: unfinished captions kept for each clip; 1 is greedy search (with "gnmt": Microsoft's search
            with one beam, which looks beyond the first end token).
        length_penalty: the exponent a of the score; above 0 favours longer captions.
        penalty: "transformers" or "gnmt", two searches that differ in more than the score. transformers
            finishes a caption whose end token ranks among the first `beams` candidates, keeps `beams` of
            them, and leaves what reaches `max_length` without an end token. Microsoft finishes every end
            token met before the beam is refilled, keeps `num_return`, and at `max_length` replaces the last
            word of each candidate (which still counts in its score) by the end token.
        stop: when a clip is done. "current": no unfinished caption would beat the worst kept one at its
            present length; "never": none could even at `max_length`; "first": as soon as enough are
            kept. None: the original's own, "current" for transformers and "never" for gnmt.
        num_return: captions returned for each clip.
        trace: also return every candidate as a table: a dict of equally long 1-d CPU tensors `step`,
            `clip`, `parent` (beam extended), `token`, `log_prob` (of the token), `score` (cumulative),
            `kept`, `beam` (its place in the next step, -1 if not kept), `finished`, and `final` (the
            score after the penalty where finished, otherwise NaN). Clips that are done have no rows.

    Raises ValueError, in one line: beams below 1 or above the vocabulary, num_return above beams, an unknown
    penalty or stop, an empty batch, a malformed prefix, a max_length that leaves no room after the prefix
    or exceeds the model's positions, NaN among the logits (step and clip named).
    """
    if not 1 <= beams <= model.vocab_size:
        raise ValueError(f"beams must be from 1 to the vocabulary's {model.vocab_size}, got {beams}")
    if not 1 <= num_return <= beams:
        raise ValueError(f"num_return must be from 1 to beams ({beams}), got {num_return}")
    if penalty not in PENALTIES:
        raise ValueError(f"unknown penalty {penalty!r}: use one of {', '.join(PENALTIES)}")
    if stop is None:
        stop = "never" if penalty == "gnmt" else "current"
    if stop not in STOPS:
        raise ValueError(f"unknown stop {stop!r}: use one of {', '.join(STOPS)}")
    with _inference(model):
        frames, start = _begin(model, frames, prefix, max_length)
        if beams == 1 and penalty == "transformers":
            return _greedy(model, frames, start, max_length, length_penalty, trace)
        search = _Search(model, start, beams, max_length, length_penalty, penalty == "gnmt", stop, num_return)
        return _beam(model, frames, start, search, trace)


def _greedy(model, frames, start, max_length, length_penalty, trace):
    """Greedy search on checked input; the score is sum(log p) / n^length_penalty."""
    tokens, table = [start], []
    total = torch.zeros(len(start), 1, device=start.device)  # sum of log-probabilities
    count = torch.zeros_like(total)  # tokens generated
    live = torch.ones_like(total, dtype=torch.bool)
    fed, state, steps = start, model.start(frames), max_length - start.shape[1]
    for step in range(steps):
        logits, state = model.step(fed, state)
        logits = logits[:, -1].float()  # [B, V]
        log_probs = _log_probs(logits[:, None], step, live[:, 0])[:, 0]
        word = logits.argmax(-1, keepdim=True)  # of the logits: the softmax may round two of them together
        log_prob = log_probs.gather(1, word)
        total, count = total + log_prob.masked_fill(~live, 0.0), count + live
        fed = word.masked_fill(~live, model.pad_token_id)  # frozen: only padding after the end
        tokens.append(fed)
        ended = word == model.eos_token_id
        if trace:
            finished, final = ended | (step + 1 == steps), total / count**length_penalty
            origin, place = torch.zeros_like(word), -finished.long()
            table.append(_rows(step, live[:, 0], origin, word, log_prob, total, place, finished, final))
        live = live & ~ended
        if not live.any():
            break
    scores = total / count**length_penalty
    return Decoded(torch.cat(tokens, 1)[:, None], scores, step + 1, _table(table) if trace else None)


def _beam(model, frames, start, search, trace):
    """Step the model and the search in turn until no clip is open."""
    first_row = torch.arange(len(start), device=start.device)[:, None]
    fed, state, table = start, model.start(frames), []
    for step in range(search.max_length - start.shape[1]):
        logits, state = model.step(fed, state)
        logits = logits[:, -1].float().unflatten(0, (len(start), -1))  # [B, 1, V] at first, then [B, K, V]
        parent, columns = search.advance(_log_probs(logits, step, search.open))
        if trace:
            table.append(_rows(step, *columns))
        if not search.open.any():
            break
        rows = logits.shape[1]  # of a clip
        state = state.select((first_row * rows + parent.clamp(max=rows - 1)).flatten())
        fed = search.tokens[:, :, search.length - 1].reshape(-1, 1)
    tokens, scores = search.best()
    return Decoded(tokens, scores, step + 1, _table(table) if trace else None)


class _Search:
    """The tensors of a beam search and one step of it, by transformers' rules or (gnmt) Microsoft's."""

    def __init__(self, model, start, beams, max_length, length_penalty, gnmt, stop, num_return):
        clips, self.length = start.shape
        self.prefix, self.beams, self.max_length = self.length, beams, max_length
        self.length_penalty, self.gnmt, self.stop = length_penalty, gnmt, stop
        self.num_return, self.eos = num_return, model.eos_token_id
        self.tokens = start.new_full((clips, beams, max_length), model.pad_token_id)  # unfinished captions
        self.tokens[:, :, : self.length] = start[:, None]
        self.scores = torch.full((clips, beams), FLOOR, device=start.device)  # sums of log-probabilities
        self.scores[:, 0] = 0.0  # all beams begin alike: only the first one counts
        kept = num_return if gnmt else beams
        self.done_tokens = self.tokens[:, :1].repeat(1, kept, 1)  # finished captions, best first
        self.done_scores = torch.full((clips, kept), FLOOR, device=start.device)
        self.done_lengths = start.new_zeros((clips, kept))  # 0: nothing there yet
        self.open = torch.ones(clips, dtype=torch.bool, device=start.device)  # clips still searched

    def divisor(self, length):
        """The length penalty of a caption finished when `length` tokens stand before its last."""
        size = (5 + length) / 6 if self.gnmt else length + 1 - self.prefix
        return size**self.length_penalty

    def advance(self, log_probs):
        """Extend all beams by one token.

        log_probs: [B, K or 1, V]. Returns the beam each new beam continues [B, K] and the trace's columns.
        """
        vocabulary, length, full = log_probs.shape[-1], self.length, self.length + 1 == self.max_length
        total = (log_probs + self.scores[:, :, None]).flatten(1)  # [B, K*V]
        score, index = total.topk(min(2 * self.beams, total.shape[1]))  # [B, C]: enough if all beams end
        parent, token = index // vocabulary, index % vocabulary
        closed = (token == self.eos) | full
        if self.gnmt:
            self.judge(score[:, 0])
            finished = closed & ((~closed).cumsum(1) < self.beams)  # met before the beam is full again
            token = token.masked_fill(closed, self.eos)  # at the limit the end replaces the last word
        else:
            finished = closed & (torch.arange(closed.shape[1], device=closed.device) < self.beams)
        live, final = self.open, score / self.divisor(length)
        words = self.take(self.tokens, parent)  # [B, C, L]
        words[:, :, length] = token
        self.collect(words, final, finished & live[:, None])
        log_prob = score - self.scores.gather(1, parent)
        self.scores, order = (score + FLOOR * closed).topk(self.beams)
        self.tokens, self.length = self.take(words, order), length + 1
        if not self.gnmt:
            self.judge(self.scores[:, 0])
        self.open = self.open & (not full)
        place = torch.arange(self.beams, device=token.device).expand_as(order)
        place = torch.full_like(token, -1).scatter(1, order, place).masked_fill(closed, -1)
        columns = (live, parent, index % vocabulary, log_prob, score, place, finished, final)
        return parent.gather(1, order), columns

    def take(self, words, rows):
        """Rows [B, R] out of each clip's captions [B, K, L]."""
        return words.gather(1, rows[..., None].expand(-1, -1, self.max_length))

    def collect(self, words, final, finished):
        """Let the finished candidates [B, C] compete with the finished captions kept so far."""
        scores = torch.cat([self.done_scores, final + FLOOR * ~finished], 1)
        self.done_scores, order = scores.topk(self.done_scores.shape[1])
        lengths = torch.cat([self.done_lengths, finished * (self.length + 1)], 1)
        self.done_lengths = lengths.gather(1, order)
        self.done_tokens = self.take(torch.cat([self.done_tokens, words], 1), order)

    def judge(self, best):
        """Close the clips whose best unfinished caption, of log-probability [B], cannot enter the kept ones.

        Microsoft's search asks before it sorts the new candidates out, transformers' after.
        """
        farthest = self.stop == "never" and self.length_penalty > 0
        divisor = self.divisor(self.max_length - 1 if farthest else self.length - (not self.gnmt))
        self.open = self.open & (best / divisor > self.done_scores.amin(1))
        if self.stop == "first":
            self.open = self.open & (self.done_lengths == 0).any(1)

    def best(self):
        """Tokens [B, num_return, T] and scores [B, num_return] of the best finished captions."""
        longest = int(self.done_lengths[:, : self.num_return].max())
        return self.done_tokens[:, : self.num_return, :longest], self.done_scores[:, : self.num_return]


@contextmanager
def _inference(model):
    """Eval mode and no gradient inside; every submodule's own mode restored after.

    Not `torch.inference_mode`: what a model caches here (timm's TinyViT keeps its biases) or a hook records
    must remain usable in training.
    """
    modules = list(model.modules()) if isinstance(model, nn.Module) else []
    modes = [module.training for module in modules]
    try:
        if any(modes):
            model.eval()
        with torch.no_grad():
            yield
    finally:
        if any(modes):
            for module, mode in zip(modules, modes, strict=True):
                module.train(mode)  # not the flag alone: timm's TinyViT drops its cached biases here
            for module, mode in zip(modules, modes, strict=True):
                module.training = mode


def _begin(model, frames, prefix, max_length):
    """The frames on the model's device and the tokens [B, P] that the captions begin with, checked."""
    if isinstance(model, nn.Module):
        frames = frames.to(next((p.device for p in model.parameters()), frames.device))
    clips = frames.shape[0]
    if clips == 0:
        raise ValueError("the batch is empty: frames must hold at least one clip")
    start = torch.as_tensor([model.bos_token_id] if prefix is None else prefix, device=frames.device)
    start = start.expand(clips, -1) if start.ndim == 1 else start
    if start.dtype != torch.long or start.ndim != 2 or start.shape[0] != clips or start.shape[1] == 0:
        got = f"{start.dtype} {list(start.shape)}"
        raise ValueError(f"prefix must be long [P] or [{clips}, P] with P > 0, got {got}")
    if (start[:, 0] != model.bos_token_id).any():
        raise ValueError(f"every prefix must begin with the start token {model.bos_token_id}")
    if (start[:, 1:] == model.pad_token_id).any():
        raise ValueError("prefixes in one batch must have the same length: found padding")
    if start.min() < 0 or start.max() >= model.vocab_size:
        raise ValueError(f"prefix holds tokens outside the vocabulary of {model.vocab_size} words")
    length, positions = start.shape[1], model.max_positions
    if length > positions:
        raise ValueError(f"a prefix of {length} tokens is longer than the model's {positions} positions")
    if max_length <= length:
        raise ValueError(f"max_length {max_length} leaves no room after a prefix of {length} tokens")
    if max_length > positions:
        raise ValueError(f"max_length {max_length} is above the model's {positions} positions")
    return frames, start


def _log_probs(logits, step, live):
    """Log-probabilities [B, K, V] of logits [B, K, V]; clips that are not `live` [B] may hold anything."""
    log_probs = logits.log_softmax(-1)
    bad = log_probs.amax(-1).amax(-1).isnan() & live  # one NaN, or infinity, makes its whole row NaN
    if bad.any():
        clip = int(bad.nonzero()[0])
        raise ValueError(f"NaN among the logits of clip {clip} at step {step}: nothing to decode")
    return log_probs


def _rows(step, live, parent, token, log_prob, score, beam, finished, final):
    """One step's candidates [B, C] as rows of the trace: only clips still searched, only real beams."""
    real = live[:, None] & (score > FLOOR / 2)
    clip = torch.arange(len(real), device=real.device)[:, None].expand_as(real)
    rows = {"step": torch.full_like(clip, step), "clip": clip, "parent": parent, "token": token}
    rows |= {"log_prob": log_prob, "score": score, "kept": beam >= 0, "beam": beam}
    rows |= {"finished": finished, "final": final.where(finished, torch.nan)}
    return {name: values[real].cpu() for name, values in rows.items()}


def _table(steps):
    return {name: torch.cat([rows[name] for rows in steps]) for name in steps[0]}
