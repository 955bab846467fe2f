"""Explanations of a word: which part of the image made the model write it? And a control, shuffled weights."""

from contextlib import ExitStack
from copy import deepcopy
from itertools import product

import torch
from torch import Tensor
from tqdm import tqdm

from gitdistill.counts import check_counts
from gitdistill.decoding.loop import evaluation
from gitdistill.distillation.targets import total_frames
from gitdistill.inspection import attention


def gradient_attention(model, frames: Tensor, tokens: Tensor) -> Tensor:
    """Gradient x attention [T-1, F, h, w]: where more attention would make the word likelier.

    The positive part of (d log-probability / d attention) * attention, heads averaged and layers added, after Chefer
    et al. 2021 (https://arxiv.org/abs/2103.15679), without their propagation of relevance between tokens.
    """
    model, clip, caption = attention.prepared(model, frames, tokens)
    watched, prefix = attention.text_attention(model)
    weights = {}

    def keep(module, inputs, output):  # unlike `record`, which copies: gradients need this very tensor
        weights[module] = output if output.requires_grad else output.requires_grad_()

    with evaluation(model), torch.enable_grad(), ExitStack() as hooks:
        for path in watched:
            hooks.callback(model.get_submodule(path).register_forward_hook(keep).remove)
        likelihoods = attention.log_probs(model, clip, caption)[0].unbind()
    layers = list(weights.values())  # GIT attends twice in a layer; the second time is the text's
    image = layers[0].shape[-1] - (len(tokens) if prefix else 0)
    rows = []
    for t, value in enumerate(likelihoods):
        slopes = torch.autograd.grad(value, layers, retain_graph=t + 1 < len(likelihoods))
        rows.append(sum((slope * weight).relu()[0, :, t].mean(0) for slope, weight in zip(slopes, layers)))
    return attention.on_grid(torch.stack(rows).detach()[:, :image], total_frames(clip))


def occlusion(
    model,
    frames: Tensor,
    tokens: Tensor,
    grid: tuple[int, int],
    reach: int = 1,
    batch: int = 36,
    stride: int = 1,
) -> Tensor:
    """How much each word's log-probability falls when a place is covered in all frames: [T-1, *grid].

    After Zeiler and Fergus 2014 (https://arxiv.org/abs/1311.2901). A cell and its neighbours, `reach` cells to each
    side, are covered with the median colour of each frame. A `stride` of 2 visits every second cell of each direction,
    in a quarter of the time; the map is then [T-1, ceil(h / stride), ceil(w / stride)]. On a terminal, a progress bar
    appears after five seconds.
    """
    check_counts(stride=stride, batch=batch, height=grid[0], width=grid[1])
    check_counts(0, reach=reach)
    model, clip, caption = attention.prepared(model, frames, tokens)
    places = [range(0, n, stride) for n in grid]
    spans = (
        [(max(0, k - reach) * size // n, min(n, k + reach + 1) * size // n) for k in cells]
        for n, size, cells in zip(grid, frames.shape[-2:], places)
    )
    fill = clip[0].flatten(-2).median(-1).values[..., None, None]
    shape = tuple(map(len, places))
    covered = clip.repeat(shape[0] * shape[1], *[1] * frames.dim())
    for copy, ((top, bottom), (left, right)) in zip(covered, product(*spans)):
        copy[..., top:bottom, left:right] = fill
    with evaluation(model):
        before = attention.log_probs(model, clip, caption)
        parts = tqdm(covered.split(batch), "occlusion", delay=5, leave=False, disable=None)
        after = [attention.log_probs(model, part, caption.expand(len(part), -1)) for part in parts]
    return (before - torch.cat(after)).T.unflatten(1, shape)


def explain(model, frames: Tensor, tokens: Tensor) -> dict[str, Tensor]:
    """Four explanations by name, maps [T-1, h, w] summed over frames; the last, occlusion, is an experiment."""
    seen = attention.attention_maps(model, frames, tokens)
    return {
        "raw attention": attention.normalised(seen.maps[-1].mean(0)).sum(1),
        "rollout": seen.rollout().sum(1),
        "gradient × attention": gradient_attention(model, frames, tokens).sum(1),
        "occlusion": occlusion(model, frames, tokens, tuple(seen.maps.shape[-2:])),
    }


def shuffled(model, seed: int = 0):
    """A copy of `model` with the weights of each tensor shuffled: the same sizes and spread, nothing learned.

    The randomisation test of Adebayo et al. 2018 (https://arxiv.org/abs/1810.03292): an explanation that looks as
    good with this copy says nothing about what was learned.
    """
    generator = torch.Generator().manual_seed(seed)
    copy = deepcopy(model)
    with torch.no_grad():
        for parameter in copy.parameters():
            order = torch.randperm(parameter.numel(), generator=generator).to(parameter.device)
            parameter.copy_(parameter.flatten()[order].view_as(parameter))
    return copy.train().eval()  # timm's TinyViT drops the biases it has cached
