"""Which type a network computes in: the one that is asked for, or the fastest here that says the same."""

from copy import deepcopy
from functools import cache
from time import perf_counter

import torch
from torch import nn

from gitdistill.decoding import greedy
from gitdistill.decoding.loop import evaluation

NAMES = ("float32", "bfloat16", "float16", "auto")
UNDECIDED = 0.1  # nats between words that a network finds about equally likely


def chosen_dtype(name: str, network: nn.Module | None = None, stored: bool = False) -> str:
    """The name of a dtype, "auto" resolved for a network where it is: `fast_dtype` if `says_the_same`, otherwise
    "float32". ValueError for an unknown one."""
    if name not in NAMES:
        raise ValueError(f"dtype must be one of {', '.join(NAMES)}, not {name!r}")
    if name != "auto":
        return name
    fast = fast_dtype(next(network.parameters()).device.type)
    return fast if fast == "float32" or says_the_same(network, getattr(torch, fast), stored) else "float32"


@torch.no_grad()
def says_the_same(network: nn.Module, dtype: torch.dtype, stored: bool) -> bool:
    """Whether `dtype` chooses the words of float32 in greedy captions of four pictures of noise, always the same.

    Another word will do if float32 finds it less likely by no more than `UNDECIDED`. Weights are `stored` in `dtype`,
    or it computes under autocast.
    """
    device, draw = next(network.parameters()).device, torch.Generator().manual_seed(0)
    noise = torch.randint(0, 256, (4, 1, 3, 8, 8), dtype=torch.uint8, generator=draw).to(device)
    with torch.autocast(device.type, enabled=False):
        tokens = greedy(network, noise, min(8, network.max_positions)).tokens[:, 0]

    def logits(network: nn.Module, half: bool) -> torch.Tensor:
        with evaluation(network), torch.autocast(device.type, dtype, enabled=half):
            return network(noise, tokens).logits[:, :-1].float()

    exact = logits(network, False)
    chosen = logits(deepcopy(network).to(dtype) if stored else network, not stored).argmax(-1, keepdim=True)
    behind = exact.amax(-1) - exact.gather(-1, chosen)[..., 0]  # in nats
    return bool((behind <= UNDECIDED)[tokens[:, 1:] != network.pad_token_id].all())


@cache
def fast_dtype(device: str) -> str:
    """ "bfloat16" where matrices are multiplied faster in it than in float32, otherwise "float32".

    Processors that cannot multiply it themselves emulate it, several times more slowly. A trial of some milliseconds
    tells them apart.
    """
    if device != "cpu":
        native = device == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
        return "bfloat16" if native else "float32"
    seconds = {}
    for name in ("float32", "bfloat16"):
        matrix = torch.ones(512, 512, dtype=getattr(torch, name))
        times = []
        for _ in range(5):
            start = perf_counter()
            matrix @ matrix
            times.append(perf_counter() - start)
        seconds[name] = min(times)
    return min(seconds, key=seconds.get)
