"""Caption search over any model that can prefill and decode a step; imports no model."""

from gitdistill.decoding.loop import Decoded
from gitdistill.decoding.search import beam, decode, greedy, sample
from gitdistill.decoding.speculative import Speculated, speculative

__all__ = ["Decoded", "Speculated", "beam", "decode", "greedy", "sample", "speculative"]
