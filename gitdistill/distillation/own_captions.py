"""Captions that the student draws itself and the teacher grades: on-policy distillation.

A student that only ever reads good captions never learns to go on after its own mistakes. Agarwal et al. 2023 (GKD,
https://arxiv.org/abs/2306.13649).
"""

import torch
from torch import Tensor

from gitdistill.decoding import sample
from gitdistill.distillation.losses import TopK
from gitdistill.distillation.pseudo_captions import join_captions


def draw_captions(
    student, frames: Tensor, share: float, temperature: float, max_length: int, seed: int
) -> Tensor:
    """One caption for a share of the clips, drawn from the student without gradient, long [B, 1, T].

    Which clips those are is random, too; where `share` * B is no whole number, it is met on average. The other clips
    get only a start token. The captions are those of `sample` with the same seed for the chosen clips in ascending
    order.
    """
    generator = torch.Generator().manual_seed(seed)
    count = int(share * len(frames) + torch.rand((), generator=generator))
    chosen = torch.randperm(len(frames), generator=generator)[:count].sort().values.to(frames.device)
    drawn = chosen.new_zeros(0, 1, 1)
    if count:
        drawn = sample(student, frames[chosen], max_length, temperature, seed=seed).tokens
    captions = torch.full((len(frames), 1, drawn.shape[2]), student.pad_token_id, device=frames.device)
    captions[:, :, 0] = student.bos_token_id
    return captions.index_copy(0, chosen, drawn)


def join_targets(first: dict, second: dict, clips: int) -> dict:
    """Targets of K captions a clip, and of L others of the same clips in `second`, as those of K+L captions."""

    def join(a, b):
        if isinstance(a, TopK):
            return TopK(
                *(join(getattr(a, name), getattr(b, name)) for name in ("log_p", "words", "log_rest"))
            )
        a, b = (x.unflatten(0, (clips, -1)) for x in (a, b))
        return join_captions(a, b, 0).flatten(0, 1)

    return first | {name: join(first[name], value) for name, value in second.items()}
