"""Work on several ranks, started by Lightning, torchrun or SLURM: rank and world size, gathering, shared errors."""

from contextlib import contextmanager

import torch
from torch import distributed


def rank_and_world() -> tuple[int, int]:
    """This process's rank and the number of ranks; (0, 1) without a process group."""
    if distributed.is_available() and distributed.is_initialized():
        return distributed.get_rank(), distributed.get_world_size()
    return 0, 1


def on_any_rank(flag: bool, device) -> bool:
    """Is `flag` true on any rank? All must call it; `device` must be one that the process group's backend supports."""
    if rank_and_world()[1] == 1:
        return flag
    found = torch.tensor(float(flag), device=device)
    distributed.all_reduce(found, distributed.ReduceOp.MAX)
    return bool(found)


def gather(value) -> list:
    """The `value` of each rank, in their order; all must call it."""
    parts = [value] * rank_and_world()[1]
    if len(parts) > 1:
        distributed.all_gather_object(parts, value)
    return parts


@contextmanager
def together():
    """A block that all ranks leave together. An error on one is raised on all, so that none waits in vain.

    The rank that failed raises its own error, the others an OSError that quotes it.
    """
    error = None
    try:
        yield
    except Exception as caught:
        error = caught
    reports = gather(error and f"{type(error).__name__}: {error}")
    if error:
        raise error
    for rank, report in enumerate(reports):
        if report:
            raise OSError(f"rank {rank} failed: {report}")
