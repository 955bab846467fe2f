"""Which device to compute on, and whether it computes what the CPU does."""

import os
from contextlib import suppress
from pathlib import Path

import torch

from gitdistill.decoding import greedy
from gitdistill.models import GenerativeImageTextModel, StudentCandidateV1, TinyVIT
from gitdistill.world.pretrain import toybox_git_config

VARIABLE = "GITDISTILL_DEVICE"
QUOTA = Path("/sys/fs/cgroup/cpu.max")  # of version 2


def choose_device(asked: str | None = None) -> torch.device:
    """The device asked for, by the argument or else by the variable GITDISTILL_DEVICE; otherwise the best there is.

    That is CUDA, then MPS if it passes `self_test`, then the CPU. ValueError for a device that this machine lacks.
    """
    asked, found = asked or os.environ.get(VARIABLE), found_devices()
    if not asked:
        return found[-1] if found[-1].type != "mps" or self_test(found[-1]) is None else found[0]
    try:
        device = torch.device(asked)
    except RuntimeError:
        raise ValueError(f"{asked!r} is no device: use cpu, cuda, cuda:1 or mps") from None
    count = torch.cuda.device_count() if device.type == "cuda" else 1
    if device.type not in {other.type for other in found} or (device.index or 0) >= count:
        raise ValueError(f"there is no device {asked} here, only {', '.join(map(str, found))}")
    return device


def usable_cores() -> int:
    """How many cores this process may use: not those that its affinity or the quota of its control group excludes."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    with suppress(OSError, ValueError):  # no Linux, or "max"
        quota, period = map(int, QUOTA.read_text().split())
        cores = min(cores, max(1, round(quota / period)))
    return cores


def free_cores() -> int:
    """Of the usable cores, at most as many as the other work of the last minute has left, and at least one."""
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0  # none on Windows
    return max(1, min(usable_cores(), (os.cpu_count() or 1) - round(load)))


def found_devices() -> list[torch.device]:
    """The CPU, then MPS and CUDA where this machine has them."""
    there = {"cpu": True, "mps": torch.backends.mps.is_available(), "cuda": torch.cuda.is_available()}
    return [torch.device(name) for name, found in there.items() if found]


@torch.no_grad()
def self_test(device, tolerance: float = 1e-2) -> str | None:
    """How a small random GIT and a student differ on `device` from the CPU, in words; None if they do not.

    Logits may differ by `tolerance` times their standard deviation, greedy captions not at all.
    """
    for name, model, frames, tokens in samples():
        expected, captions = model(frames, tokens).logits, greedy(model, frames, max_length=8).tokens
        try:
            model, frames, tokens = model.to(device), frames.to(device), tokens.to(device)
            logits, there = model(frames, tokens).logits.cpu(), greedy(model, frames, max_length=8).tokens
        except (RuntimeError, NotImplementedError) as error:
            return f"{name} does not run: {str(error).splitlines()[0]}"
        off = ((logits - expected).abs().max() / expected.std()).item()
        if not off <= tolerance:
            return f"{name}'s logits are off by {off:.2g} standard deviations"
        if not torch.equal(there.cpu(), captions):
            return f"{name}'s captions differ"
    return None


def samples():
    """(name, model, raw frames, tokens) of a small random GIT and student; the same ones each time."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        git = GenerativeImageTextModel(toybox_git_config(2, 32, 16, 32, 2, 2))
        sizes = {"embed_dims": [8, 16], "depths": [1, 1], "num_heads": [1, 2], "window_sizes": [4, 4]}
        backbone = TinyVIT(image_size=32, out_indices=[0, 1], **sizes)
        student = StudentCandidateV1(git.vocab_size, backbone, embed_dim=32, num_frames=2)
        frames = torch.randint(0, 256, (2, 2, 3, 32, 32), dtype=torch.uint8)
        tokens = torch.randint(5, git.vocab_size, (2, 6))
    tokens[:, 0] = git.bos_token_id
    return [("GIT", git.eval(), frames, tokens), ("the student", student.eval(), frames, tokens)]
