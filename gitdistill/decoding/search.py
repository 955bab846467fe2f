"""Caption search: greedy, beam and sampling, as pure functions over any model that can start and step.

The protocol (both networks of this package satisfy it, and so can a ten-line fake):

- ``model.bos_token_id``, ``eos_token_id``, ``pad_token_id``, ``max_positions``, ``vocab_size``: int;
- ``state = model.prefill(frames)`` encodes the B clips once;
- ``logits, state = model.decode_step(tokens, state)`` appends tokens [B*K, t] to every row and returns
  logits [B*K, t, V], those at position i predicting the token after i;
- ``state = state.reorder(rows)`` makes new row j continue old row ``rows[j]``; the rows of one clip stay
  together, and their number may change (one row a clip becomes K beams after the first step).

So the image is encoded once a clip whatever the number of beams, and the search itself is tensor
arithmetic over clips x beams: the only Python loop is the one over steps.

Two published beam searches are followed exactly. ``penalty="transformers"`` is `generate` of
https://github.com/huggingface/transformers (5.x): a caption scores sum(log p) / n^a, n counting the
generated tokens with the end token. ``penalty="gnmt"`` is the search of
https://github.com/microsoft/GenerativeImage2Text with the length penalty of
https://arxiv.org/abs/1609.08144: sum(log p) / ((5 + n) / 6)^a, n counting start and prefix but not the end.

What all searches share:

- ``max_length`` and ``min_length`` count all tokens of a caption, start token and prefix included: beyond
  the first it is cut, before the second it cannot end.
- ``prefix`` is what the captions begin with, start token first: [P] for all clips, or [B, P], one for each,
  of different lengths where padded on the right (or given as lists). Each clip's result is the one it has
  alone: a longer prefix is fed word by word where the others already choose theirs.
- ``processors`` are transformers' `LogitsProcessor` objects or any function of (tokens [rows, t], scores
  [rows, V]) that gives new scores. As in `generate` they change logits in greedy search and sampling, after
  `min_length` and before temperature, top-k and top-p, and log-probabilities in beam search.
- The model runs in eval mode without gradient and is left as it was.
"""

from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from transformers import (
    LogitsProcessorList,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

PENALTIES = ("transformers", "gnmt")
STOPS = ("current", "never", "first")
NEG_INF = -1e9  # added to what must not be chosen; finite as in transformers, so that sums stay comparable


@dataclass
class Decoded:
    """What a search found.

    tokens: long [B, num_return, T], start token first, best caption first (sampled ones as they came), the end
        token kept and padding after it; T is the longest caption's length.
    scores: float [B, num_return], log-probability after the length penalty; for greedy search and sampling the
        mean over the tokens of the model's own log-probabilities, before processors, temperature and the like.
    steps: how often the model was stepped.
    trace: None, or a table of all candidates (see `beam`).
    """

    tokens: Tensor
    scores: Tensor
    steps: int
    trace: dict[str, Tensor] | None = None


def greedy(model, frames, max_length=20, prefix=None, trace=False, min_length=0, processors=()):
    """The likeliest next token at every step, until each clip has ended or has `max_length` tokens.

    Args:
        model: see the protocol above.
        frames: B clips, as the model accepts them.
        max_length, min_length, prefix, processors: see above.
        trace: also return the table of chosen tokens, in the columns of `beam`.

    Returns: `Decoded` with one caption a clip. ValueError: see `beam`.
    """
    with _inference(model):
        frames, start = _begin(model, frames, prefix, max_length)
        edit = _processors(model, min_length, processors)
        return _follow(model, frames, start, max_length, edit, _likeliest, trace=trace)


def sample(model, frames, max_length=20, temperature=1.0, top_k=None, top_p=None, num_return=1, seed=None,
           prefix=None, trace=False, min_length=0, processors=()):  # fmt: skip
    """Captions drawn at random, word by word: `num_return` independent ones for each clip.

    Args:
        model, frames, max_length, min_length, prefix, processors, trace: as in `greedy`.
        temperature: divides the logits; below 1 likely words become likelier still.
        top_k: draw among the k likeliest words only (Fan et al. 2018, https://arxiv.org/abs/1805.04833).
        top_p: draw among the fewest words that together have probability p (Holtzman et al. 2020,
            https://arxiv.org/abs/1904.09751).
        seed: an int, or a `torch.Generator` on the model's device; the same seed, the same captions, those of
            transformers' `generate` after `torch.manual_seed`. None: torch's global state.

    Returns: `Decoded`. ValueError: see `beam`; also a temperature, top_k or top_p outside its range.
    """
    if not temperature > 0:
        raise ValueError(f"temperature must be above 0, got {temperature}; greedy search is its limit at 0")
    if top_k is not None and top_k < 1:
        raise ValueError(f"top_k must be at least 1, got {top_k}")
    if top_p is not None and not 0 < top_p <= 1:
        raise ValueError(f"top_p must be above 0 and at most 1, got {top_p}")
    if num_return < 1:
        raise ValueError(f"num_return must be at least 1, got {num_return}")
    with _inference(model):
        frames, start = _begin(model, frames, prefix, max_length)
        edit = _processors(model, min_length, processors)
        edit += [TemperatureLogitsWarper(float(temperature))] if temperature != 1 else []
        edit += [TopKLogitsWarper(top_k)] if top_k else []
        edit += [TopPLogitsWarper(top_p)] if top_p is not None and top_p < 1 else []
        if isinstance(seed, int):
            seed = torch.Generator(frames.device).manual_seed(seed)

        def draw(scores):
            return torch.multinomial(scores.softmax(-1), 1, generator=seed)

        return _follow(model, frames, start, max_length, edit, draw, rows=num_return, trace=trace)


def beam(model, frames, beams=4, max_length=20, length_penalty=1.0, penalty="transformers", stop=None,
         num_return=1, prefix=None, trace=False, min_length=0, processors=()):  # fmt: skip
    """Beam search: keep the `beams` likeliest unfinished captions, and the best finished ones aside.

    Args:
        model, frames, max_length, min_length, prefix, processors: as in `greedy`.
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
    or exceeds the model's positions, NaN among the logits (step and clip named), processors that forbid every
    word.
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
        edit = _processors(model, min_length, processors)
        if beams == 1 and penalty == "transformers":
            return _follow(model, frames, start, max_length, edit, _likeliest, 1, length_penalty, trace)
        search = _Search(model, start, beams, max_length, length_penalty, penalty == "gnmt", stop, num_return)
        return _beam(model, frames, start, search, edit, trace)


def _likeliest(scores):
    return scores.argmax(-1, keepdim=True)  # of the logits: the softmax may round two of them together


def _follow(model, frames, start, max_length, edit, choose, rows=1, length_penalty=1.0, trace=False):
    """Let `choose` pick word after word of `rows` captions a clip from the edited logits.

    The score is sum(log p) / n^length_penalty with the model's own p.
    """
    clips, device = len(frames), frames.device
    each = torch.arange(clips, device=device).repeat_interleave(rows)
    fed, text, state = start.common, start.common[each], model.prefill(frames)
    total = torch.zeros(clips * rows, 1, device=device)  # sum of log-probabilities
    count = torch.zeros_like(total)  # tokens generated
    live = torch.ones_like(total, dtype=torch.bool)
    table, steps = [], max_length - text.shape[1]
    for step in range(steps):
        logits, state = model.decode_step(fed, state)
        logits = logits[:, -1].float()  # [B, V] at first, then [B*rows, V]
        if step == 0 and rows > 1:
            logits, state = logits[each], state.reorder(each)
        log_probs = _log_probs(logits, step, live[:, 0], rows)
        if edit:
            logits = _edited(edit, text, logits, step, live[:, 0], rows)
        word, forced = start.force(choose(logits), step, each)
        free = live if forced is None else live & ~forced
        log_prob = log_probs.gather(1, word)
        total, count = total + log_prob.masked_fill(~free, 0.0), count + free
        ended = (word == model.eos_token_id) & free
        fed = word.masked_fill(~live, model.pad_token_id)  # frozen: only padding after the end
        text = torch.cat([text, fed], 1)
        if trace:
            finished, final = ended | (step + 1 == steps), total / count**length_penalty
            origin = torch.arange(clips * rows, device=device)[:, None] % rows
            place = origin.masked_fill(finished, -1)
            columns = (free, origin * (step > 0), word, log_prob, total, place, finished, final)
            columns = (column.view(clips, rows) for column in columns)
            table.append(_rows(start.own_step(step), *columns))
        live = live & ~ended
        if not live.any():
            break
    scores = (total / count**length_penalty).view(clips, rows)
    return Decoded(text.unflatten(0, (clips, rows)), scores, step + 1, _table(table) if trace else None)


def _beam(model, frames, start, search, edit, trace):
    """Step the model and the search in turn until no clip is open."""
    clips, beams = len(frames), search.beams
    each = torch.arange(clips, device=frames.device)
    fed, state, table = start.common, model.prefill(frames), []
    for step in range(search.max_length - search.length):
        logits, state = model.decode_step(fed, state)
        rows = len(logits) // clips  # of a clip: 1 at first, then K
        live = search.open.repeat_interleave(rows)
        log_probs = _log_probs(logits[:, -1].float(), step, live, rows)
        if edit:
            if rows < beams:  # processors expect all beams, [B*K, V]
                log_probs = log_probs.repeat_interleave(beams, 0)
            text, live = (
                search.tokens[:, :, : search.length].flatten(0, 1),
                search.open.repeat_interleave(beams),
            )
            log_probs = _edited(edit, text, log_probs, step, live, beams)
        words, forced = start.force(None, step, each)
        parent, columns = search.advance(log_probs.unflatten(0, (clips, -1)), words, forced)
        if trace:
            table.append(_rows(start.own_step(step), *columns))
        if not search.open.any():
            break
        state = state.reorder((each[:, None] * rows + parent.clamp(max=rows - 1)).flatten())
        fed = search.tokens[:, :, search.length - 1].reshape(-1, 1)
    tokens, scores = search.best()
    return Decoded(tokens, scores, step + 1, _table(table) if trace else None)


class _Search:
    """The tensors of a beam search and one step of it, by transformers' rules or (gnmt) Microsoft's."""

    def __init__(self, model, start, beams, max_length, length_penalty, gnmt, stop, num_return):
        clips, self.length = start.common.shape
        self.prefixes, self.beams, self.max_length = start.lengths.double()[:, None], beams, max_length
        self.length_penalty, self.gnmt, self.stop = length_penalty, gnmt, stop
        self.num_return, self.eos = num_return, model.eos_token_id
        self.tokens = start.common.new_full((clips, beams, max_length), model.pad_token_id)  # unfinished
        self.tokens[:, :, : self.length] = start.common[:, None]
        self.scores = self.tokens.new_full(
            (clips, beams), NEG_INF, dtype=torch.float
        )  # sums of log-probabilities
        self.scores[:, 0] = 0.0  # all beams begin alike: only the first one counts
        kept = num_return if gnmt else beams
        self.done_tokens = self.tokens[:, :1].repeat(1, kept, 1)  # finished captions, best first
        self.done_scores = torch.full_like(self.scores[:, :1], NEG_INF).repeat(1, kept)
        self.done_lengths = self.tokens.new_zeros((clips, kept))  # 0: nothing there yet
        self.open = self.scores[:, 0] == 0  # clips still searched: all

    def divisor(self, length):
        """The length penalty [B, 1] of captions finished when `length` tokens stand before their last."""
        size = (5 + length) / 6 + 0 * self.prefixes if self.gnmt else length + 1 - self.prefixes
        return (size.clamp(min=1 / 6) ** self.length_penalty).to(self.scores)  # no size while in a prefix

    def advance(self, log_probs, words, forced):
        """Extend all beams by one token.

        log_probs: [B, K or 1, V]; clips where `forced` [B, 1] get `words` [B, 1] instead, free of charge. (None:
        there is no such clip.)
        Returns the beam each new beam continues [B, K] and the trace's columns.
        """
        if forced is not None:
            given = torch.full_like(log_probs, NEG_INF).scatter(
                2, words[:, :, None].expand(-1, len(log_probs[0]), 1), 0
            )
            log_probs = given.where(forced[:, :, None], log_probs)
        length, full = self.length, self.length + 1 == self.max_length
        best, words = log_probs.topk(min(2 * self.beams, log_probs.shape[-1]))  # of each beam
        total = best + self.scores[:, :, None]  # [B, K, W]
        words = words.expand_as(total).flatten(1)
        score, index = total.flatten(1).topk(
            min(2 * self.beams, words.shape[1])
        )  # [B, C]: enough if all beams end
        parent, chosen = index // total.shape[2], words.gather(1, index)
        token, closed, live = chosen, (chosen == self.eos) | full, self.open[:, None]
        shown = live
        if forced is not None:
            closed, shown = closed & ~forced, live & ~forced
        if self.gnmt:
            self.judge(score[:, :1])
            finished = closed & ((~closed).cumsum(1) < self.beams)  # met before the beam is full again
            token = token.masked_fill(closed, self.eos)  # at the limit the end replaces the last word
        else:
            finished = closed & (torch.arange(closed.shape[1], device=closed.device) < self.beams)
        final = score / self.divisor(length)
        words = self.take(self.tokens, parent)  # [B, C, L]
        words[:, :, length] = token
        self.collect(words, final, finished & live)
        log_prob = score - self.scores.gather(1, parent)
        self.scores, order = (score + NEG_INF * closed).topk(self.beams)
        self.tokens, self.length = self.take(words, order), length + 1
        if not self.gnmt:
            self.judge(self.scores[:, :1])
        self.open = self.open & (not full)
        place = torch.arange(self.beams, device=token.device).expand_as(order)
        place = torch.full_like(token, -1).scatter(1, order, place).masked_fill(closed, -1)
        columns = (shown, parent, chosen, log_prob, score, place, finished, final)
        return parent.gather(1, order), columns

    def take(self, words, rows):
        """Rows [B, R] out of each clip's captions [B, K, L]."""
        return words.gather(1, rows[..., None].expand(-1, -1, self.max_length))

    def collect(self, words, final, finished):
        """Let the finished candidates [B, C] compete with the finished captions kept so far."""
        scores = torch.cat([self.done_scores, final + NEG_INF * ~finished], 1)
        self.done_scores, order = scores.topk(self.done_scores.shape[1])
        lengths = torch.cat([self.done_lengths, finished * (self.length + 1)], 1)
        self.done_lengths = lengths.gather(1, order)
        self.done_tokens = self.take(torch.cat([self.done_tokens, words], 1), order)

    def judge(self, best):
        """Close the clips whose best unfinished caption, of log-probability [B, 1], cannot enter the kept ones.

        Microsoft's search asks before it sorts the new candidates out, transformers' after.
        """
        farthest = self.stop == "never" and self.length_penalty > 0
        divisor = self.divisor(self.max_length - 1 if farthest else self.length - (not self.gnmt))
        self.open = self.open & (best / divisor > self.done_scores.amin(1, keepdim=True))[:, 0]
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


@dataclass
class _Start:
    """What the captions begin with.

    common: long [B, P], the first tokens of all prefixes, as many as the shortest has; rest: long [B, R], what
    longer ones go on with, -1 where there is nothing; lengths: long [B] on the CPU, of the whole prefixes.
    """

    common: Tensor
    rest: Tensor
    lengths: Tensor

    def force(self, chosen, step, clips):
        """Words [R, 1] for the next position of rows of `clips` [R], and where they are a prefix's own, if anywhere."""
        if step >= self.rest.shape[1]:
            return chosen, None
        words = self.rest[clips, step, None]
        forced = words >= 0
        return words.where(forced, words.clamp(min=0) if chosen is None else chosen), forced

    def own_step(self, step):
        """The step as each clip [B, 1] counts it, from the end of its own prefix."""
        return (self.common.shape[1] + step - self.lengths).to(self.common.device)[:, None]


def _begin(model, frames, prefix, max_length):
    """The frames on the model's device and what the captions begin with, checked."""
    if isinstance(model, nn.Module):
        frames = frames.to(next((p.device for p in model.parameters()), frames.device))
    clips = frames.shape[0]
    if clips == 0:
        raise ValueError("the batch is empty: frames must hold at least one clip")
    start = _as_tensor([model.bos_token_id] if prefix is None else prefix, model.pad_token_id)
    start = start.expand(clips, -1) if start.ndim == 1 else start
    if start.dtype != torch.long or start.ndim != 2 or start.shape[0] != clips or start.shape[1] == 0:
        got = f"{start.dtype} {list(start.shape)}"
        raise ValueError(f"prefix must be long [P] or [{clips}, P] with P > 0, got {got}")
    if (start[:, 0] != model.bos_token_id).any():
        raise ValueError(f"every prefix must begin with the start token {model.bos_token_id}")
    if start.min() < 0 or start.max() >= model.vocab_size:
        raise ValueError(f"prefix holds tokens outside the vocabulary of {model.vocab_size} words")
    words = start[:, 1:] != model.pad_token_id
    if (words & (words.cumprod(1) == 0)).any():
        raise ValueError("prefixes are padded on the right: found a word after padding")
    lengths = 1 + words.sum(1)
    shortest, longest, positions = int(lengths.min()), int(lengths.max()), model.max_positions
    if longest > positions:
        raise ValueError(f"a prefix of {longest} tokens is longer than the model's {positions} positions")
    if max_length <= longest:
        raise ValueError(f"max_length {max_length} leaves no room after a prefix of {longest} tokens")
    if max_length > positions:
        raise ValueError(f"max_length {max_length} is above the model's {positions} positions")
    rest = start[:, shortest:longest].masked_fill(~words[:, shortest - 1 : longest - 1], -1)
    return frames, _Start(start[:, :shortest].to(frames.device), rest.to(frames.device), lengths)


def _as_tensor(prefix, padding):
    """Tokens [P] or [B, P] on the CPU, of lists of different lengths, too."""
    if isinstance(prefix, Tensor):
        return prefix.cpu()
    rows = [torch.as_tensor(row) for row in prefix]
    if rows and all(row.ndim == 1 for row in rows):
        return pad_sequence(rows, batch_first=True, padding_value=padding)
    return torch.as_tensor(prefix)


def _processors(model, min_length, processors):
    """What changes the scores of the next word, in the order of `generate`."""

    def go_on(tokens, scores):
        if tokens.shape[1] < min_length:
            scores = scores.clone()
            scores[:, model.eos_token_id] = -torch.inf
        return scores

    return LogitsProcessorList([*([go_on] if min_length > 0 else []), *processors])


def _edited(edit, text, scores, step, live, rows):
    """The processors' scores [R, V]; a ValueError where they leave a `live` [R] row no word."""
    scores = edit(text, scores)
    best = scores.amax(-1)
    bad = (best.isnan() | (best == -torch.inf)) & live
    if bad.any():
        clip = int(bad.nonzero()[0]) // rows
        raise ValueError(f"the processors leave clip {clip} no word at step {step}")
    return scores


def _log_probs(logits, step, live, rows):
    """Log-probabilities of logits [R, V], `rows` a clip; rows that are not `live` [R] may hold anything."""
    log_probs = logits.log_softmax(-1)
    bad = log_probs[:, 0].isnan() & live  # one NaN, or infinity, makes its whole row NaN
    if bad.any():
        clip = int(bad.nonzero()[0]) // rows
        raise ValueError(f"NaN among the logits of clip {clip} at step {step}: nothing to decode")
    return log_probs


def _rows(step, live, parent, token, log_prob, score, beam, finished, final):
    """One step's candidates [B, C] as rows of the trace: only live ones, and only those of real beams."""
    real = live & (score > NEG_INF / 2)
    clip = torch.arange(len(real), device=real.device)[:, None].expand_as(real)
    rows = {"step": step.expand_as(real), "clip": clip, "parent": parent, "token": token}
    rows |= {"log_prob": log_prob, "score": score, "kept": beam >= 0, "beam": beam}
    rows |= {"finished": finished, "final": final.where(finished, torch.nan)}
    return {name: values[real].cpu() for name, values in rows.items()}


def _table(steps):
    return {name: torch.cat([rows[name] for rows in steps]) for name in steps[0]}
