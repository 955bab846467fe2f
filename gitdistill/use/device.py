"""Which device to compute on, and whether it computes what the CPU does."""

import os

import torch

from gitdistill.decoding import greedy

VARIABLE = "GITDISTILL_DEVICE"


def choose_device(asked: str | None = None) -> torch.device:
    """The device asked for, by the argument or else by the variable GITDISTILL_DEVICE; otherwise the best there is.

    That is CUDA, then MPS if it passes `self_test`, then the CPU. ValueError for one that is not there.
    """
    asked = asked or os.environ.get(VARIABLE)
    if not asked:
        best = found_devices()[-1]
        return best if best.type != "mps" or self_test(best) is None else torch.device("cpu")
    try:
        device = torch.device(asked)
    except RuntimeError:
        raise ValueError(f"{asked!r} is no device: use cpu, cuda, cuda:1 or mps") from None
    there = found_devices()
    if device.type not in {found.type for found in there} or (device.index or 0) >= count(device):
        raise ValueError(f"there is no device {asked} here, only {', '.join(map(str, there))}")
    return device


def found_devices() -> list[torch.device]:
    """The CPU, then MPS, then CUDA, as far as they are there."""
    there = {"cpu": True, "mps": torch.backends.mps.is_available(), "cuda": torch.cuda.is_available()}
    return [torch.device(name) for name, found in there.items() if found]


def count(device: torch.device) -> int:
    return torch.cuda.device_count() if device.type == "cuda" else 1


@torch.no_grad()
def self_test(device, tolerance: float = 1e-2) -> str | None:
    """What a small random GIT and a student do otherwise on `device` than on the CPU; None if nothing does.

    Logits may differ by `tolerance` times their spread, greedy captions not at all.
    """
    for name, model, frames, tokens in samples():
        expected, said = model(frames, tokens).logits, greedy(model, frames, max_length=8).tokens
        try:
            model, frames, tokens = model.to(device), frames.to(device), tokens.to(device)
            logits, there = model(frames, tokens).logits.cpu(), greedy(model, frames, max_length=8).tokens
        except (RuntimeError, NotImplementedError) as error:
            return f"{name} does not run: {str(error).splitlines()[0]}"
        off = ((logits - expected).abs().max() / expected.std()).item()
        if not off <= tolerance:
            return f"{name}'s logits are off by {off:.2g} of their spread"
        if not torch.equal(there.cpu(), said):
            return f"{name} says something else"
    return None


def samples():
    """(name, model, raw frames, tokens) of a small random GIT and student; the same ones each time."""
    from gitdistill.models import GenerativeImageTextModel, StudentCandidateV1
    from gitdistill.models.backbone import TinyVIT
    from gitdistill.world.pretrain import glyph_git_config

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        git = GenerativeImageTextModel(glyph_git_config(2, 32, 16, 32, 2, 2))
        sizes = {"embed_dims": [8, 16], "depths": [1, 1], "num_heads": [1, 2], "window_sizes": [4, 4]}
        student = StudentCandidateV1(
            git.vocab_size, TinyVIT(image_size=32, out_indices=[0, 1], **sizes), embed_dim=32, num_frames=2
        )
        frames = torch.randint(0, 256, (2, 2, 3, 32, 32), dtype=torch.uint8)
        tokens = torch.randint(5, git.vocab_size, (2, 6))
    tokens[:, 0] = git.bos_token_id
    return [("GIT", git.eval(), frames, tokens), ("the student", student.eval(), frames, tokens)]
