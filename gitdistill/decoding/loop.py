"""What all searches share: checked inputs, and the loop in which the model steps and the search chooses tokens."""

from collections import defaultdict
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from transformers import LogitsProcessorList, MinLengthLogitsProcessor

from gitdistill.counts import check_counts

NEG_INF = -1e9  # added to what must not be chosen; finite as in transformers, so that sums stay comparable
# Steps between two looks at what was computed, by kind of device. A look costs nothing on a CPU; other devices must
# finish all their work for it. Steps after the last caption's end change no result.
CHECK_EVERY = defaultdict(lambda: 4, cpu=1)


@dataclass
class Decoded:
    """What a search found.

    tokens: long [B, num_return, T], start token first, best caption first (samples in the order drawn). Padding
        follows the end token; T is the longest caption's length.
    scores: float [B, num_return], log-probability after the length penalty. For greedy search and sampling it is the
        mean over the tokens of the model's own log-probabilities, before processors and temperature.
    steps: how often the model was stepped (see `CHECK_EVERY`). trace: None, or a table of all candidates.
    """

    tokens: Tensor
    scores: Tensor
    steps: int
    trace: dict[str, Tensor] | None = None


@contextmanager
def eval_mode(model):
    """Eval mode inside; whatever ends it, an interrupt included, every submodule is in its own mode again."""
    modes = {m: m.training for m in model.modules()} if isinstance(model, nn.Module) else {}
    try:
        if any(modes.values()):
            model.eval()
        yield
    finally:
        if any(modes.values()):
            model.train()  # not the flags alone: timm's TinyViT drops its cached biases here
        for module, mode in modes.items():
            module.training = mode


@contextmanager
def evaluation(model):
    """Eval mode and no gradient inside; not inference_mode, so that what a hook records can be used in training."""
    with eval_mode(model), torch.no_grad():
        yield


def prepare(model, frames, prefix, max_length):
    """The frames on the model's device, the prefixes [B, P] padded on the right, their lengths [B] on the CPU."""
    if isinstance(model, nn.Module):
        frames = frames.to(next((p.device for p in model.parameters()), frames.device))
    check_counts(max_length=max_length)
    clips = len(frames)
    if clips == 0:
        raise ValueError("the batch is empty: frames must hold at least one clip")
    prefix = [model.bos_token_id] if prefix is None else prefix
    if not isinstance(prefix, Tensor) and len(prefix) and torch.as_tensor(prefix[0]).ndim == 1:
        prefix = pad_sequence([torch.as_tensor(row) for row in prefix], True, model.pad_token_id)
    tokens = torch.as_tensor(prefix, device="cpu")
    tokens = tokens.expand(clips, -1) if tokens.ndim == 1 else tokens
    if tokens.dtype != torch.long or tokens.ndim != 2 or len(tokens) != clips or tokens.shape[1] == 0:
        got = f"{tokens.dtype} {list(tokens.shape)}"
        raise ValueError(f"prefix must be long [P] or [{clips}, P] with P > 0, got {got}")
    words, outside = tokens[:, 1:] != model.pad_token_id, (tokens < 0) | (tokens >= model.vocab_size)
    wrong = (tokens[:, 0] != model.bos_token_id) | outside.any(1) | (words[:, 1:] & ~words[:, :-1]).any(1)
    if wrong.any():
        rule = f"the start token {model.bos_token_id}, words of the vocabulary, padding, in this order"
        raise ValueError(f"a prefix must hold {rule}; got {tokens[wrong][0].tolist()}")
    lengths = 1 + words.sum(1)
    longest, positions = int(lengths.max()), model.max_positions
    if not longest < max_length <= positions:
        limits = f"above the {longest} tokens of the prefix and at most the model's {positions} positions"
        raise ValueError(f"max_length must be {limits}, got {max_length}")
    return frames, tokens[:, :longest].to(frames.device), lengths


def log_probabilities(logits, step, alive):
    """Log-probabilities of logits [B, K, V], and NaN in a caption that is `alive` [B, 1 or K] as a fault."""
    log_probs = logits.log_softmax(-1)
    where = log_probs[:, :, 0].isnan() & alive  # one NaN makes its whole row NaN
    return log_probs, (where, f"NaN among the logits of clip {{}} at step {step}")


def check(faults) -> None:
    """A ValueError for the first of `faults`: where among the captions [B, K], and what is wrong with clip {}."""
    found = torch.stack([where for where, _ in faults]).nonzero()
    if len(found):
        fault, clip, _ = found[0].tolist()
        raise ValueError(faults[fault][1].format(clip))


class Prefilled:
    """A model that has read its clips: all that decodes them shares one `prefill`, or the `cache` of one."""

    def __init__(self, model, frames: Tensor, cache=None):
        self.model, self.cache = model, cache or model.prefill(frames)

    def __getattr__(self, name: str):
        return getattr(self.model, name)

    def prefill(self, frames: Tensor):
        return self.cache


class Search:
    """K captions of each of B clips, which grow by one token a step. Subclasses decide how.

    `advance(logits, log_probs)`, both [B, K, V], writes the token at position `length` of every caption and clears
    `alive` [B, 1 or K] where the search has ended. It returns which caption each new one continues, [B, K], or None
    where each continues itself. `best()` returns the tokens and scores of `Decoded`.
    """

    def __init__(self, model, frames, count, max_length, prefix, trace, min_length, processors):
        self.model, self.max_length, self.steps = model, max_length, 0
        self.frames, prefix, lengths = prepare(model, frames, prefix, max_length)
        self.device, self.length, self.longest_prefix = prefix.device, int(lengths.min()), prefix.shape[1]
        self.tokens = prefix.new_full((len(prefix), count, max_length), model.pad_token_id)
        self.tokens[:, :, : self.longest_prefix] = prefix[:, None]
        self.prefix_lengths = lengths[:, None].to(self.device)
        self.alive, self.faults, self.trace = self.prefix_lengths > 0, [], [] if trace else None
        no_end = MinLengthLogitsProcessor(min_length, model.eos_token_id, device=self.device)
        self.processors = LogitsProcessorList([no_end, *processors] if min_length else processors)

    def run(self) -> Decoded:
        """Step the model until the search has ended for all clips or the captions have `max_length` tokens."""
        with evaluation(self.model):
            clips, count, _ = self.tokens.shape
            clip = torch.arange(clips, device=self.device)[:, None]
            cache, new_tokens = self.model.prefill(self.frames), self.tokens[:, 0, : self.length]
            while True:
                self.forced = self.length < self.prefix_lengths  # where the next token belongs to the prefix
                logits, cache = self.model.decode_step(new_tokens, cache)
                rows = len(logits) // clips  # 1 in the first step, then K
                logits = logits[:, -1].float().unflatten(0, (clips, rows)).expand(-1, count, -1)
                log_probs, fault = log_probabilities(logits, self.steps, self.alive)
                self.faults.append(fault)
                parent = self.advance(logits, log_probs)
                self.length, self.steps = self.length + 1, self.steps + 1
                if self.has_ended():
                    break
                if parent is not None:
                    cache = cache.reorder((clip * rows + parent.clamp(max=rows - 1)).flatten())
                new_tokens = self.tokens[:, :, self.length - 1].reshape(-1, 1)
        if self.trace is not None:
            self.trace = {name: torch.cat([rows[name] for rows in self.trace]) for name in self.trace[0]}
        return Decoded(*self.best(), self.steps, self.trace)

    def has_ended(self) -> bool:
        """Whether the search is known to have ended for all clips; a ValueError for the faults of the last steps."""
        if self.length < self.max_length and self.steps % CHECK_EVERY[self.device.type]:
            return False
        check(self.faults)
        self.faults.clear()
        return self.length == self.max_length or not self.alive.any()

    def edit(self, scores):
        """The next token's scores [B, K, V] as the processors change them; a forced token has no rival."""
        if self.processors:
            scores = self.processors(self.tokens[:, :, : self.length].flatten(0, 1), scores.flatten(0, 1))
            scores = scores.unflatten(0, self.tokens.shape[:2])
            bad = ~(scores.amax(-1) > -torch.inf) & self.alive  # NaN is bad, too
            self.faults.append((bad, f"processors leave clip {{}} no token at step {self.steps}"))
        if self.length < self.longest_prefix:
            rivals = torch.arange(scores.shape[2], device=self.device) != self.tokens[:, :, self.length, None]
            scores = torch.where(self.forced[:, :, None], NEG_INF * rivals, scores)
        return scores

    def record(self, alive, parent, token, log_prob, score, beam, finished, final):
        """Add a step's candidates [B, C] to the trace: those of real beams, of clips that are still searched.

        Unlike all else in a step it waits for the device.
        """
        real = alive & ~self.forced & (score > NEG_INF / 2)
        step = self.length - self.prefix_lengths  # each clip counts from its own prefix
        clip = torch.arange(len(real), device=self.device)[:, None]
        rows = {"step": step, "clip": clip, "parent": parent, "token": token, "log_prob": log_prob}
        rows |= {"score": score, "kept": beam >= 0, "beam": beam, "finished": finished}
        rows["final"] = final.where(finished, torch.nan)
        self.trace.append({name: values.expand_as(real)[real].cpu() for name, values in rows.items()})
