"""Beam search: what two published searches share, and the rules of each."""

import torch

from gitdistill.decoding.loop import NEG_INF, Search


class BeamSearch(Search):
    """The likeliest unfinished captions of each clip, its beams in `tokens`, and the best R finished ones aside.

    scores: [B, K], the sums of the beams' log-probabilities. finished_tokens: [B, R, max_length], best caption first;
    finished_scores: [B, R]; finished_lengths: [B, R], 0 until a caption has finished.

    Subclasses define the rules. `default_stop`, and `num_finished`, which is R. `sizes(before)`: the length in the
    penalty when `before` tokens precede the last one. `finish(captions, totals, ended)`: which of the candidates
    [B, C, max_length], likeliest first, have finished; it also clears `alive` [B, 1] for clips that are done.
    """

    def __init__(self, *shared, length_penalty, stop, num_return):
        super().__init__(*shared)
        self.beams, self.num_return, self.stop = self.tokens.shape[1], num_return, stop or self.default_stop
        self.scores = torch.full(self.tokens.shape[:2], NEG_INF, device=self.device)
        self.scores[:, 0] = 0.0  # all beams begin alike: only the first one counts
        self.finished_tokens = self.tokens[:, :1].repeat(1, self.num_finished, 1)
        self.finished_scores = torch.full_like(self.scores[:, :1], NEG_INF).repeat(1, self.num_finished)
        self.finished_lengths = torch.zeros_like(self.finished_tokens[:, :, 0])
        sizes = self.sizes(torch.arange(self.max_length, dtype=torch.double)[:, None, None])
        self.divisors = (sizes**length_penalty).to(self.scores)  # [max_length, B or 1, 1]
        self.bound_at_limit = self.stop == "never" and length_penalty > 0

    def advance(self, logits, log_probs):
        totals = (self.edit(log_probs) + self.scores[:, :, None]).flatten(1)  # [B, K*V]
        # C = 2 * beams candidates are enough, even if every beam ends.
        totals, index = totals.topk(min(2 * self.beams, totals.shape[1]))
        parent, token = index // logits.shape[2], index % logits.shape[2]
        alive, log_prob = self.alive, totals - self.scores.gather(1, parent)
        captions = self.tokens.take_along_dim(parent[:, :, None], 1)
        captions[:, :, self.length] = token
        ended = ((token == self.model.eos_token_id) | (self.length + 1 == self.max_length)) & ~self.forced
        self.scores, order = (totals + NEG_INF * ended).topk(self.beams)
        self.tokens = captions.take_along_dim(order[:, :, None], 1)
        finished = self.finish(captions, totals, ended)
        if self.trace is not None:
            beam = torch.arange(self.beams, device=self.device).expand_as(order)
            beam = torch.full_like(token, -1).scatter(1, order, beam).masked_fill(ended, -1)
            final = totals / self.divisors[self.length]
            self.record(alive, parent, token, log_prob, totals, beam, finished, final)
        return parent.gather(1, order)

    def keep(self, captions, totals, finished):
        """Let the finished candidates compete with the captions that finished before."""
        scores = totals / self.divisors[self.length] + NEG_INF * ~finished
        scores = scores.where(self.alive, -torch.inf)  # below all that a clip had when it was done
        self.finished_scores, order = torch.cat([self.finished_scores, scores], 1).topk(self.num_finished)
        lengths = torch.cat([self.finished_lengths, finished * (self.length + 1)], 1)
        self.finished_lengths = lengths.gather(1, order)
        captions = torch.cat([self.finished_tokens, captions], 1)
        self.finished_tokens = captions.take_along_dim(order[:, :, None], 1)

    def can_improve(self, total):
        """Where [B, 1] a caption with log-probability `total` [B, 1] so far may still enter the finished ones."""
        divisor = self.divisors[self.max_length - 1 if self.bound_at_limit else self.length]
        possible = total / divisor > self.finished_scores.amin(1, keepdim=True)
        missing = (self.finished_lengths == 0).any(1, keepdim=True)
        return possible & missing if self.stop == "first" else possible

    def best(self):
        n = self.num_return
        return self.finished_tokens[:, :n, : self.finished_lengths[:, :n].max()], self.finished_scores[:, :n]


class TransformersBeamSearch(BeamSearch):
    """`generate` of https://github.com/huggingface/transformers (5.x).

    A caption scores sum(log p) / n^a, where n counts the generated tokens with the end token. It finishes if its end
    token ranks among the first `beams` candidates; `beams` captions are kept. At `max_length` it is left without an
    end token. A clip is done when the likeliest of its new beams cannot improve.
    """

    default_stop = "current"
    num_finished = property(lambda self: self.beams)

    def sizes(self, before):
        return (before + 1 - self.prefix_lengths.cpu()).clamp(min=1)  # at least 1 inside a prefix, too

    def finish(self, captions, totals, ended):
        finished = ended & (torch.arange(ended.shape[1], device=self.device) < self.beams)
        self.keep(captions, totals, finished)
        self.alive = self.alive & self.can_improve(self.scores[:, :1])
        return finished


class MicrosoftBeamSearch(BeamSearch):
    """The search of https://github.com/microsoft/GenerativeImage2Text.

    A caption scores sum(log p) / ((5 + n) / 6)^a (https://arxiv.org/abs/1609.08144), where n counts start token and
    prefix but not the end token. It finishes if its end token is met before the beams are full; `num_return` captions
    are kept. At `max_length` the end token replaces the last word, which still counts in the score. A clip is done
    when its likeliest candidate cannot improve on what had finished before this step.
    """

    default_stop = "never"
    num_finished = property(lambda self: self.num_return)

    def sizes(self, before):
        return (5 + before) / 6

    def finish(self, captions, totals, ended):
        finished = ended & ((~ended).cumsum(1) < self.beams)
        captions[:, :, self.length].masked_fill_(ended, self.model.eos_token_id)
        can_improve = self.can_improve(totals[:, :1])
        self.keep(captions, totals, finished)
        self.alive = self.alive & can_improve
        return finished
