"""Which type a network computes in: the one that is asked for, or the fastest here."""

from functools import cache
from time import perf_counter

import torch
from torch import nn

NAMES = ("float32", "bfloat16", "float16", "auto")


def chosen_dtype(name: str, where: nn.Module | torch.device) -> str:
    """The name of a dtype, "auto" resolved for a device or that of a network; ValueError for an unknown one."""
    if name not in NAMES:
        raise ValueError(f"dtype must be one of {', '.join(NAMES)}, not {name!r}")
    if name != "auto":
        return name
    return fast_dtype((where if isinstance(where, torch.device) else next(where.parameters()).device).type)


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
