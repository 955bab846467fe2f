"""Interventions: change something inside a captioner that reads a caption, and see what becomes of each word.

What a network attends to need not be what it uses. Here attention is cut, heads are silenced and features exchanged,
and the words' log-probabilities [T-1] show the effect. As in `attention`, a caption of T tokens has T - 1 of them.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import product

import torch
from torch import Tensor

from gitdistill.decoding.loop import evaluation
from gitdistill.distillation.targets import total_frames
from gitdistill.hooks import edit, record
from gitdistill.inspection.attention import log_probs, prepared, text_attention


@dataclass(frozen=True)
class Cut:
    """What the text may not attend to: image cells, earlier words, or anything at all.

    cells: boolean [F, h, w], true where the image may not be attended to. words: boolean [T], likewise for the caption
    (in a student that is the self-attention). With neither, the heads that read the image are silent. layers, heads:
    where the cut is made; by default everywhere.
    """

    cells: Tensor | None = None
    words: Tensor | None = None
    layers: tuple[int, ...] | None = None
    heads: tuple[int, ...] | None = None


def with_cuts(model, frames: Tensor, tokens: Tensor, cuts: list[Cut]) -> Tensor:
    """Log-probabilities [R, T-1] of a caption's words under each of R cuts; `Cut(heads=())` cuts nothing.

    Attention that is left is scaled up to sum to one again. frames [F, 3, H, W] or [3, H, W], tokens [T]. The clip is
    encoded once: the cuts are R captions of it. After Geva et al. 2023 (attention knockout,
    https://arxiv.org/abs/2304.14767); silent heads: Michel et al. 2019 (https://arxiv.org/abs/1905.10650).
    """
    model, clip, caption = prepared(model, frames, tokens)
    watched, prefix = text_attention(model)
    count, length = total_frames(clip), len(tokens)
    check_exist("layer", {layer for one in cuts for layer in one.layers or ()}, len(watched))

    def editor(layer: int, reads_image: bool, reads_text: bool):
        def cut(weights: Tensor) -> Tensor:
            rows, columns = weights.shape[2:]
            if prefix and rows == columns:  # GIT's own pass over the image
                return weights
            image = columns - rows * reads_text
            check_exist("head", {head for one in cuts for head in one.heads or ()}, weights.shape[1])
            keep = torch.ones(len(cuts), weights.shape[1], length, columns, dtype=torch.bool)
            for number, one in enumerate(cuts):
                if (one.layers is None or layer in one.layers) and (reads_image or one.words is not None):
                    heads = slice(None) if one.heads is None else list(one.heads)
                    keep[number, heads] &= kept(one, image, columns, number, count)
            left = weights * keep.transpose(0, 1).flatten(1, 2).to(weights.device)  # (H, R*T, S)
            return left / left.sum(-1, keepdim=True).clamp(min=1e-12)

        return cut

    edits = {path: editor(layer, True, prefix) for layer, path in enumerate(watched)}
    if not prefix:
        self_attention = (path.replace("cross_attention", "self_attention") for path in watched)
        edits |= {path: editor(layer, False, True) for layer, path in enumerate(self_attention)}
    with evaluation(model), edit(model, edits):
        return log_probs(model, clip, caption.expand(len(cuts), -1))


def check_exist(what: str, numbers: set[int], count: int) -> None:
    """A ValueError naming a layer or head that a network with `count` of them does not have."""
    if missing := [number for number in numbers if not 0 <= number < count]:
        raise ValueError(f"there is no {what} {missing[0]} to cut: there are {count}, counted from 0")


def kept(cut: Cut, image: int, columns: int, number: int, frames: int) -> Tensor:
    """Boolean [S]: the columns that a cut leaves, of `image` image tokens and of the text of all captions."""
    keep = torch.ones(columns, dtype=torch.bool)
    if cut.cells is None and cut.words is None:
        return ~keep
    if cut.cells is not None and image:
        cells = cut.cells.flatten(1)  # (F, h*w)
        classes = image // frames - cells.shape[1]
        if len(cells) != frames or classes not in (0, 1):
            tokens = f"{frames} frames of {image // frames} image tokens"
            raise ValueError(f"cells {list(cut.cells.shape)} do not fit {tokens}")
        keep[:image] = ~torch.nn.functional.pad(cells, (classes, 0)).flatten()
    if cut.words is not None and columns > image:
        start = image + number * len(cut.words)
        keep[start : start + len(cut.words)] = ~cut.words
    return keep


def head_effects(model, frames: Tensor, tokens: Tensor) -> Tensor:
    """How much each word's log-probability falls when one head is silent: [L, H, T-1]."""
    inner = getattr(model, "model", model)
    watched, _ = text_attention(inner)
    heads = inner.get_submodule(watched[0].removesuffix(".softmax")).heads
    cuts = [Cut(layers=(layer,), heads=(head,)) for layer in range(len(watched)) for head in range(heads)]
    found = with_cuts(model, frames, tokens, [Cut(heads=()), *cuts])
    return (found[:1] - found[1:]).unflatten(0, (len(watched), heads))


def cell_effects(model, frames: Tensor, tokens: Tensor, grid: tuple[int, int], reach: int = 1) -> Tensor:
    """How much each word's log-probability falls when it may not attend to a place, in all frames: [T-1, *grid].

    A place is a cell and its neighbours, `reach` cells to each side.
    """
    count = 1 if frames.dim() == 3 else len(frames)
    cuts = [Cut(heads=())]
    for row, column in product(*map(range, grid)):
        cells = torch.zeros(count, *grid, dtype=torch.bool)
        cells[:, max(0, row - reach) : row + reach + 1, max(0, column - reach) : column + reach + 1] = True
        cuts.append(Cut(cells=cells))
    found = with_cuts(model, frames, tokens, cuts)
    return (found[:1] - found[1:]).T.unflatten(1, grid)


@contextmanager
def patched(model, source: Tensor, path: str, places: Tensor | None = None) -> Iterator[None]:
    """While this context lasts, a module returns what it returns for the clip `source`: activation patching.

    source: [F, 3, H, W], a clip; the network then reads one clip of as many frames. path: a module that sees the
    image alone, such as "image_encoder" or "memory_norm".
    places: boolean, true where image tokens are exchanged, in the shape of the module's output without its channels;
    all by default. Meng et al. 2022 (https://arxiv.org/abs/2202.05262).
    """
    model, clip, start = prepared(model, source, torch.tensor([model.bos_token_id] * 2))
    with evaluation(model), record(model, path) as seen:
        model(clip, start)
    stored = seen[path][0]

    def exchange(output):
        return stored if places is None else torch.where(places.to(output.device)[..., None], stored, output)

    with edit(model, {path: exchange}):
        yield


def logit_lens(model, frames: Tensor, tokens: Tensor) -> Tensor:
    """Logits [L+1, T-1, V] that the head reads off the text after each layer, the embedded words first.

    nostalgebraist 2020, https://www.lesswrong.com/posts/AcKRB8wDpdaN6v6ru. Belrose et al. 2023 discuss its limits
    (https://arxiv.org/abs/2303.08112).
    """
    model, clip, caption = prepared(model, frames, tokens)
    with evaluation(model):
        *early, last = model(clip, caption).hidden_states
        norm = getattr(model, "norm", torch.nn.Identity())  # GIT's layers end with a norm of their own
        logits = model.head(torch.cat([norm(torch.cat(early)), last])[:, :-1])
        return model._expand(logits) if hasattr(model, "_expand") else logits
