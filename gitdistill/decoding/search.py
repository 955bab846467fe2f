"""Caption search: greedy, sampling and beams (`beams.py`), over any model that can prefill and decode a step.

The protocol, which all networks of this package satisfy:
- ``bos_token_id``, ``eos_token_id``, ``pad_token_id``, ``max_positions``, ``vocab_size``: int attributes;
- ``cache = model.prefill(frames)`` encodes the B clips once, whatever the number of captions;
- ``logits, cache = model.decode_step(tokens, cache)`` appends tokens [B*K, t] to the captions and returns logits
  [B*K, t, V]; those at position i predict the token after i;
- ``cache = cache.reorder(rows)`` makes new caption j continue old caption ``rows[j]``. The captions of a clip stay
  together, and their number may change: one a clip becomes K after the first step.

What all searches share:
- ``max_length`` and ``min_length`` count all tokens of a caption, start token and prefix included. A caption is cut
  at the first and cannot end before the second.
- ``prefix`` is what the captions begin with, start token first: [P] for all clips, or [B, P] with one for each. Those
  of different lengths are padded on the right or given as lists. Each clip's result is the one it has alone.
- ``processors`` are transformers' `LogitsProcessor` objects, or functions of (tokens [B*K, t], scores [B*K, V]) that
  return new scores. As in `generate` they change logits in greedy search and sampling (after `min_length`, before
  temperature, top-k and top-p), and log-probabilities in beam search.
- ``trace=True`` adds a table of the search, a dict of equally long 1-d CPU tensors with one row for each candidate of
  a clip that is still searched: `step`, `clip`, `parent` (the beam it extends), `token`, `log_prob` (of the token),
  `score` (cumulative), `kept`, `beam` (its place in the next step, -1 if not kept), `finished`, and `final` (the
  score after the penalty where finished, otherwise NaN).
- The model runs in eval mode without gradient and is left as it was. A ValueError names an empty batch, a malformed
  prefix, a `max_length` that does not fit, NaN among the logits, and processors that forbid every token.
"""

import math
from inspect import signature

import torch
from transformers import (
    NoRepeatNGramLogitsProcessor,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from gitdistill.counts import check_counts
from gitdistill.decoding.beams import MicrosoftBeamSearch, TransformersBeamSearch
from gitdistill.decoding.loop import Decoded, Search

BEAM_SEARCHES = {"transformers": TransformersBeamSearch, "gnmt": MicrosoftBeamSearch}
STOPS = ("current", "never", "first")
COLDEST = 1e-6  # temperature; below, logits overflow


def greedy(model, frames, max_length=20, prefix=None, trace=False, min_length=0, processors=()):
    """The likeliest next token at every step, until all captions end or reach `max_length`."""
    return GreedySearch(model, frames, 1, max_length, prefix, trace, min_length, processors).run()


def sample(model, frames, max_length=20, temperature=1.0, top_k=None, top_p=None, num_return=1, seed=None,
           prefix=None, trace=False, min_length=0, processors=()):  # fmt: skip
    """Captions drawn at random, token by token: `num_return` independent ones for each clip.

    Args:
        temperature: divides the logits; below 1 likely tokens become likelier still.
        top_k: draw among the k likeliest tokens only (https://arxiv.org/abs/1805.04833).
        top_p: draw among the fewest tokens that together have probability p (https://arxiv.org/abs/1904.09751).
        seed: an int, or a `torch.Generator` on the model's device. The same seed gives the same captions, those of
            transformers' `generate` after `torch.manual_seed`. None uses torch's global state.
    """
    if not temperature >= COLDEST:
        raise ValueError(
            f"temperature must be at least {COLDEST}, got {temperature}: greedy search is its limit"
        )
    check_counts(num_return=num_return)
    processors = [*processors, TemperatureLogitsWarper(float(temperature))]
    processors += [] if top_k is None else [TopKLogitsWarper(top_k)]
    processors += [] if top_p is None else [TopPLogitsWarper(top_p)]
    shared = (model, frames, num_return, max_length, prefix, trace, min_length, processors)
    return Sampling(*shared, seed=seed).run()


def beam(model, frames, beams=4, max_length=20, length_penalty=1.0, penalty="transformers", stop=None,
         num_return=1, prefix=None, trace=False, min_length=0, processors=()):  # fmt: skip
    """Beam search: the best `num_return` captions for each clip, from its `beams` likeliest ones at every step.

    Args:
        beams: 1 is greedy search; with "gnmt" it is Microsoft's, which looks beyond the first end token.
        length_penalty: the exponent a of the score; above 0 favours longer captions.
        penalty: "transformers" or "gnmt", two searches that differ in more than the score (see `beams.py`).
        stop: when a clip is done. "current": when no beam, at its current length, beats the worst finished caption.
            "never": when none could even at `max_length`. "first": when enough captions have finished. None:
            "current" for transformers and "never" for gnmt, as in the originals.
    """
    check_counts(beams=beams, num_return=num_return)
    if beams > model.vocab_size:
        raise ValueError(f"beams must be from 1 to the vocabulary's {model.vocab_size}, got {beams}")
    if num_return > beams:
        raise ValueError(f"num_return must be from 1 to beams ({beams}), got {num_return}")
    if not math.isfinite(length_penalty):
        raise ValueError(f"length_penalty must be a finite number, got {length_penalty}")
    if penalty not in BEAM_SEARCHES:
        raise ValueError(f"unknown penalty {penalty!r}: use one of {', '.join(BEAM_SEARCHES)}")
    if stop not in (None, *STOPS):
        raise ValueError(f"unknown stop {stop!r}: use one of {', '.join(STOPS)}")
    shared = (model, frames, beams, max_length, prefix, trace, min_length, processors)
    if beams == 1 and penalty == "transformers":
        return GreedySearch(*shared, length_penalty=length_penalty).run()
    search = BEAM_SEARCHES[penalty]
    return search(*shared, length_penalty=length_penalty, stop=stop, num_return=num_return).run()


# Options that a single search has. Naming one of them chooses that search.
DISTINCTIVE = {
    beam: {"beams", "length_penalty", "penalty", "stop"},
    sample: {"temperature", "top_k", "top_p", "seed"},
}

# Options of every search, and what they make of the next token's scores.
PROCESSORS = {
    "repetition_penalty": lambda penalty: RepetitionPenaltyLogitsProcessor(float(penalty)),
    "no_repeat_ngram": NoRepeatNGramLogitsProcessor,
}


def decode(model, frames, defaults: dict | None = None, **options) -> Decoded:
    """Run `beam`, `sample` or `greedy`, whichever the options belong to.

    `beams=3` or `length_penalty=0.6` chooses beam search, `temperature=0.7` or `top_p=0.9` chooses sampling. When
    no option decides, `defaults` decide in the same way; when they do not either, the search is greedy. `options`
    override `defaults`, and those `defaults` that the chosen search does not have are ignored.

    Every search takes `repetition_penalty` (above 1, words that were said become less likely;
    https://arxiv.org/abs/1909.05858) and `no_repeat_ngram=3` (no three tokens come again in this order).

    Raises ValueError for options of two searches at once, for an option that the search does not have, and for what
    the search itself refuses.
    """
    defaults = defaults or {}
    search = _chosen_by(options) or _chosen_by(defaults) or greedy
    accepted = signature(search).parameters
    if unknown := [name for name in options if name not in [*accepted, *PROCESSORS]]:
        advice = f"choose among {', '.join(accepted)}"
        raise ValueError(f"{search.__name__} has no option {', '.join(unknown)}: {advice}")
    given = defaults | options
    made = [make(given[name]) for name, make in PROCESSORS.items() if given.get(name) is not None]
    chosen = {name: value for name, value in given.items() if name in accepted}
    return search(model, frames, **chosen | {"processors": [*chosen.get("processors", ()), *made]})


def _chosen_by(options: dict):
    """The search that has these options; None when every search has them."""
    found = {search: [name for name in options if name in own] for search, own in DISTINCTIVE.items()}
    if all(found.values()):
        both = f"{', '.join(found[beam])} belongs to beam search and {', '.join(found[sample])} to sampling"
        raise ValueError(f"{both}: give options of one search")
    return next((search for search, names in found.items() if names), None)


class GreedySearch(Search):
    """The likeliest token at every step; the score is sum(log p) / n^length_penalty with the model's own p."""

    def __init__(self, *shared, length_penalty=1.0):
        super().__init__(*shared)
        self.length_penalty = length_penalty
        self.total = torch.zeros(self.tokens.shape[:2], device=self.device)  # sums of log-probabilities
        self.count = torch.zeros_like(self.total)  # tokens generated

    def choose(self, scores):
        """Tokens [B, K] by their scores [B, K, V]."""
        return scores.argmax(-1)  # of the logits: the softmax may round two of them together

    def advance(self, logits, log_probs):
        token = self.choose(self.edit(logits))
        log_prob = log_probs.gather(2, token[:, :, None])[:, :, 0]
        grows = self.alive & ~self.forced
        self.total += log_prob.masked_fill(~grows, 0.0)
        self.count += grows
        ended = grows & (token == self.model.eos_token_id)
        self.tokens[:, :, self.length] = token.masked_fill(~self.alive, self.model.pad_token_id)
        caption = torch.arange(token.shape[1], device=self.device).expand_as(token)
        if self.trace is not None:
            finished = ended | (self.length + 1 == self.max_length)
            beam, parent = caption.masked_fill(finished, -1), caption * (self.steps > 0)
            self.record(grows, parent, token, log_prob, self.total, beam, finished, self.scores())
        self.alive = self.alive & ~ended
        return caption if self.steps == 0 and token.shape[1] > 1 else None

    def scores(self):
        return self.total / self.count**self.length_penalty

    def best(self):
        longest = (self.prefix_lengths + self.count).max().long()
        return self.tokens[:, :, :longest], self.scores()


class Sampling(GreedySearch):
    """Tokens drawn at random."""

    def __init__(self, *shared, seed):
        super().__init__(*shared)
        seeded = hasattr(seed, "__index__")
        self.generator = torch.Generator(self.device).manual_seed(int(seed)) if seeded else seed

    def choose(self, scores):
        # torch.multinomial's numbers, but that reads from the device (after https://github.com/meta-pytorch/gpt-fast)
        probabilities = scores.flatten(0, 1).softmax(-1)
        waiting = torch.empty_like(probabilities).exponential_(generator=self.generator)
        return (probabilities / waiting).argmax(-1).view(scores.shape[:2])
