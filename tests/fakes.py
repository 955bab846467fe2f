"""A model without weights, every kind of search, a full disk, and what users bring: a network, data."""

import itertools
import resource
import signal
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

import pytest
import pytorch_lightning as pl
import tiny
import torch
from torch import Tensor, nn

from gitdistill.decoding import beam, greedy, sample
from gitdistill.world import ToyboxData


@dataclass
class FakeCache:
    """What a `TableModel` remembers: the clips' fingerprints [B] and each caption's text so far [B*K, t]."""

    clips: Tensor
    tokens: Tensor

    def reorder(self, rows):
        """New caption j continues old caption rows[j]; the captions of a clip must stay together."""
        before, after = len(self.tokens) // len(self.clips), len(rows) // len(self.clips)
        assert torch.equal(rows // before, torch.arange(len(self.clips)).repeat_interleave(after))
        return FakeCache(self.clips, self.tokens[rows])

    def truncate(self, length):
        """Forget all but the first tokens."""
        return FakeCache(self.clips, self.tokens[:, :length])


class TableModel(nn.Module):
    """A pseudo-random next-word table over all (clip, text) pairs, deterministic by seed.

    Args:
        vocab_size: words; pad 0, start 1, end 2.
        seed: another seed, another table.
        branching: at any text only this many words (the end among them) are plausible; None: all are.
        sharpness: spread of the logits; eos_bias: added to the end token's.
    """

    pad_token_id, bos_token_id, eos_token_id = 0, 1, 2

    def __init__(self, vocab_size=12, seed=0, branching=None, sharpness=2.0, eos_bias=0.0, max_positions=32):
        super().__init__()
        self.vocab_size, self.max_positions = vocab_size, max_positions
        self.seed, self.branching, self.sharpness, self.eos_bias = seed, branching, sharpness, eos_bias
        self.dropout = nn.Dropout(0.5)  # spoils everything unless the model is in eval mode
        self.norm = nn.BatchNorm1d(vocab_size)  # moves its statistics unless the model is in eval mode
        self.starts, self.rows, self.grad = 0, [], False

    def logits(self, clip, tokens):
        """Logits [R, V] after texts [R, t] of clips [R]."""
        key = (clip * 7919 + self.seed * 104729 + 17) % 999983
        for word in tokens.unbind(1):
            key = (key * 31 + word * 1009 + 7) % 999983
        words = torch.arange(self.vocab_size)
        mixed = ((key[:, None] + 1) * (words + 3) * 48271) % 999983
        noise = torch.erfinv(mixed.double() / 999983 * 1.98 - 0.99).float() * 2**0.5
        logits = noise * self.sharpness
        logits[:, self.eos_token_id] += self.eos_bias
        if self.branching is not None:
            rank = mixed.index_fill(1, torch.tensor(self.eos_token_id), 10**7).argsort(1, True).argsort(1)
            logits = logits.masked_fill(rank >= self.branching, -60.0)
        return logits

    def prefill(self, frames):
        """One fingerprint for each clip: the sum of its pixels."""
        self.starts += 1
        return FakeCache(frames.flatten(1).long().sum(1), torch.empty(len(frames), 0, dtype=torch.long))

    def decode_step(self, tokens, cache):
        """Append tokens [R, t]; logits [R, t, V]."""
        self.rows.append(len(tokens))
        self.grad |= torch.is_grad_enabled()
        clips = cache.clips.repeat_interleave(len(tokens) // len(cache.clips))
        before, text = cache.tokens.shape[1], torch.cat([cache.tokens, tokens], 1)
        steps = [self.logits(clips, text[:, : before + i + 1]) for i in range(tokens.shape[1])]
        self.norm(steps[-1].detach().expand(max(2, len(tokens)), -1))
        return self.dropout(torch.stack(steps, 1)), FakeCache(cache.clips, text)


def clips(count, seed=0):
    """Raw frames [count, 1, 3, 4, 4] that differ from clip to clip."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (count, 1, 3, 4, 4), generator=generator, dtype=torch.uint8)


def searches(every, beams, draws):
    """Parameters of a test, each a search `(model, frames, **more)`: greedy, beam by every rule, sampling.

    `every` holds the options of all searches, `beams` those of the beam searches only, `draws` those of sampling.
    """
    found = [pytest.param(partial(greedy, **every), id="greedy")]
    for penalty, stop in itertools.product(("transformers", "gnmt"), ("current", "never", "first")):
        search = partial(beam, penalty=penalty, stop=stop, **every, **beams)
        found.append(pytest.param(search, id=f"{penalty}-{stop}"))
    return [*found, pytest.param(partial(sample, **every, **draws), id="sample")]


@contextmanager
def full_disk(limit):
    """The system refuses to write a file beyond so many bytes, as it does on a full disk."""
    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, old[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old)
        signal.signal(signal.SIGXFSZ, handler)


class WithoutFiles(torch.nn.Module):
    """A network of one's own that nobody can save."""

    vocab_size, bos_token_id, eos_token_id, pad_token_id, max_positions = 359, 2, 3, 0, 24


class TrainOnly(pl.LightningDataModule):
    """Data of one's own, without validation and test."""

    def train_dataloader(self):
        sizes = {"train_clips": 2, "batch_size": 2, "num_frames": tiny.FRAMES, "image_size": tiny.SIDE}
        return ToyboxData(**sizes).train_dataloader()
