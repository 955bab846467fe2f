"""Several processes that work on one thing, started by Lightning, torchrun or SLURM: who am I, and are all here?"""

from contextlib import contextmanager

import torch
from torch import distributed


def rank_and_world() -> tuple[int, int]:
    """(this process's number, how many there are); (0, 1) for one that is alone."""
    if distributed.is_available() and distributed.is_initialized():
        return distributed.get_rank(), distributed.get_world_size()
    return 0, 1


def on_any(flag: bool, device) -> bool:
    """Is `flag` true in any process? All have to call it; `device` is one that their group can talk about."""
    if rank_and_world()[1] == 1:
        return flag
    found = torch.tensor(float(flag), device=device)
    distributed.all_reduce(found, distributed.ReduceOp.MAX)
    return bool(found)


def gather(value) -> list:
    """What each process gives, in the order of their numbers; all have to call it."""
    parts = [value] * rank_and_world()[1]
    if len(parts) > 1:
        distributed.all_gather_object(parts, value)
    return parts


@contextmanager
def together():
    """A block that all processes leave together. An error in one is an error in all, so that none waits in vain.

    The process that failed raises its own error, the others an OSError that quotes it.
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
            raise OSError(f"process {rank} failed: {report}")
