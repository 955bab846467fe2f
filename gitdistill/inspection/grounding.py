"""Does the model attend to what a word names? The pointing game (Zhang et al. 2016, https://arxiv.org/abs/1608.00507).

A map is a hit when its strongest cell lies on the named thing. The game needs clips with masks of the things.
"""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from gitdistill.inspection.attention import attention_maps
from gitdistill.models.preprocessing import area_means

COVERED = 0.04  # a cell shows a thing that covers at least this share of it


def mask_on_grid(mask: Tensor, grid: tuple[int, int]) -> Tensor:
    """Boolean [F, h, w]: the cells of the image grid that show the thing of mask [F, H, W]."""
    return area_means(mask.float(), grid) >= COVERED


def pointing_hit(attention: Tensor, cells: Tensor) -> float:
    """1 if the strongest cell of a map [F, h, w] is one of `cells`, else 0; among equals their share."""
    return float(cells[attention == attention.max()].float().mean())


def referents(words: list[str], scene) -> list[tuple[str, int] | None]:
    """For each word what it names: (kind of word, index of the thing); None if nothing, or several things.

    scene: has `toys`, each with `names`: kind of word ("object", "colour") -> words that name the thing.
    """
    found = []
    for word in words:
        things = enumerate(scene.toys)
        named = [(kind, k) for k, thing in things for kind, names in thing.names.items() if word in names]
        found.append(named[0] if len(named) == 1 else None)
    return found


def pointing_game(model, clips, tokenizer, maps=None) -> list[dict]:
    """Play the pointing game with each word of each clip's first caption that names one thing.

    clips: with `frames`, `masks`, `captions` and `scene`, as `Clips` gives them.
    maps: function of (model, frames, tokens) that gives the maps [T-1, F, h, w] to judge; by default attention,
        averaged over layers and heads.

    Returns a dict for each word: clip, word, kind (of `referents`), hit (see `pointing_hit`), other (the same for the
    clip's other things, without cells that also show the named one; None where there is no other), share (of the
    attention, on the thing), chance (share of all cells that show the thing, which is the mean hit and share of
    attention that does not depend on the image).
    """
    maps = maps or (lambda *clip: attention_maps(*clip).by_word())
    rows = []
    for number, clip in enumerate(clips):
        tokens = torch.tensor(tokenizer(clip.captions[0])["input_ids"])
        words = tokenizer.convert_ids_to_tokens(tokens[1:])
        found = maps(model, clip.frames, tokens).cpu()
        things = torch.stack([mask_on_grid(mask, tuple(found.shape[-2:])) for mask in clip.masks])
        for values, word, named in zip(found, words, referents(words, clip.scene)):
            if named is None:
                continue
            cells = things[named[1]]
            row = {"clip": number, "word": word, "kind": named[0], "hit": pointing_hit(values, cells)}
            row["other"] = pointing_hit(values, things.any(0) & ~cells) if len(things) > 1 else None
            row["share"] = float(values[cells].sum() / values.sum().clamp(min=1e-12))
            rows.append(row | {"chance": float(cells.float().mean())})
    return rows


def scores_by_kind(rows: list[dict], score: str = "hit") -> dict[str, tuple[float, float, float, int]]:
    """Kind of word -> (mean, low, high, number of words) of a score of `pointing_game`, with its 95 % interval.

    score: "hit", "other", "share" or "chance"; rows in which it is None are left out.
    """
    found, rows = {}, [row for row in rows if row[score] is not None]
    for kind in sorted({row["kind"] for row in rows}, reverse=True):
        chosen = [row for row in rows if row["kind"] == kind]
        interval = bootstrap([row[score] for row in chosen], [row["clip"] for row in chosen])
        found[kind] = (*interval, len(chosen))
    return found


def bootstrap(
    values, groups, statistic: Callable | None = None, repeats: int = 1000, seed: int = 0
) -> tuple[float, float, float]:
    """A statistic of `values` and its 95 % interval: (value, low, high).

    values: N numbers, or a tuple of several arrays of N numbers for a statistic of several (confidence and right).
    groups: for each value the clip it comes from. Whole clips are drawn again (Efron 1979; a cluster bootstrap),
        since the words of one clip are not independent.
    statistic: function of the values, of each array in turn; by default their mean.
    """
    values = values if isinstance(values, tuple) else (values,)
    values, statistic = [np.asarray(part, dtype=float) for part in values], statistic or np.mean
    if not len(values[0]):
        raise ValueError("values is empty: nothing to average")
    if any(len(part) != len(groups) for part in values):
        raise ValueError(f"{[len(part) for part in values]} values for {len(groups)} groups")
    _, which = np.unique(np.asarray(groups), return_inverse=True)
    members = np.split(np.argsort(which, kind="stable"), np.cumsum(np.bincount(which))[:-1])
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randint(len(members), (repeats, len(members)), generator=generator).tolist()
    rows = (np.concatenate([members[k] for k in row]) for row in drawn)
    low, high = np.quantile([statistic(*(part[row] for part in values)) for row in rows], [0.025, 0.975])
    return float(statistic(*values)), float(low), float(high)
