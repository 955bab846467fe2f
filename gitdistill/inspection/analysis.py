"""What goes on inside a captioner, as numbers: where it looks, why, and how like another one it is.

Tensors in, tensors out; `gitdistill.viz.plots` draws them. `look`, `gradient_attention`, `occlusion`, `ground` and
`features` take either network, teacher or student; the other functions know no model.

Letters: F frames, h x w cells, L layers, H heads, T tokens, S all tokens of a network (image, then text), D width.
Where a map belongs to a word, it is that of the row that *predicts* the word: T tokens have T - 1 maps.
"""

from copy import deepcopy
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from gitdistill.distillation.targets import as_feature_grid
from gitdistill.hooks import paths, record
from gitdistill.models.preprocessing import area_means
from gitdistill.world.grammar import COLOURS, SYMBOLS

ON_THING = 0.04  # a cell shows a thing when at least this share of it does


# -- where a captioner looks -------------------------------------------------------------------------------------


@dataclass
class Looks:
    """How one caption was read off one clip.

    maps: [L, H, T-1, F, h, w], attention on the cells; what is missing to 1 went to class tokens and text.
    log_probs: [T-1], of the words that follow.
    mixing: [n, S, S], how each attention of the network mixes its tokens, heads averaged, from the first to the
        last; rows sum to one. For `rollout`.
    """

    maps: Tensor
    log_probs: Tensor
    mixing: Tensor

    def words(self) -> Tensor:
        """[T-1, F, h, w]: averaged over layers and heads, each word's map brought to sum 1."""
        return normalised(self.maps.mean((0, 1)))

    def rolled(self, first: int = 0) -> Tensor:
        """[T-1, F, h, w]: attention rollout from the step `first` on, each word's map brought to sum 1."""
        frames, rows = self.maps.shape[3], self.maps.shape[2] + 1
        image = self.mixing.shape[-1] - rows
        return normalised(_on_cells(rollout(self.mixing, first)[image:-1, :image], frames))


def normalised(maps: Tensor) -> Tensor:
    """Maps [T, F, h, w], each divided by its sum."""
    return maps / maps.sum((1, 2, 3), keepdim=True).clamp(min=1e-12)


def _on_cells(rows: Tensor, frames: int) -> Tensor:
    """What rows [..., N] give to the image tokens as maps [..., F, h, w], class tokens left out."""
    flat = rows.reshape(-1, rows.shape[-1])
    return as_feature_grid(flat.T[None], frames).permute(3, 0, 1, 2).unflatten(0, rows.shape[:-1])


def _names(model) -> tuple[str, list[str]]:
    """The attention of the text on the image, and all attention from the image tokens on, by module path."""
    if paths(model, "layers.*.cross_attention.softmax"):  # a student
        every = ["mixer.*.attention.softmax", "layers.*.self_attention.softmax"]
        return "layers.*.cross_attention.softmax", [p for p in every if paths(model, p)]
    return "layers.*.attention.softmax", []


def _network(model):
    """A teacher's network, which has gradients; any other model itself."""
    return model.model if paths(model, "model.image_encoder") else model


def _batch(model, frames: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
    """One clip and one caption as a batch, where the model is."""
    if frames.dim() not in (3, 4) or tokens.dim() != 1 or len(tokens) < 2:
        shapes = f"{list(frames.shape)} and {list(tokens.shape)}"
        raise ValueError(f"give one clip [F, 3, H, W] (or image) and one caption [T], T > 1; got {shapes}")
    device = _device(model)
    return frames[None].to(device), tokens[None].to(device)


def _device(model) -> torch.device:
    return next(model.parameters()).device


def _wide(x: Tensor) -> Tensor:
    """For statistics: on the CPU, since not every device has double precision."""
    return x.detach().cpu().double()


def _log_probs(logits: Tensor, tokens: Tensor) -> Tensor:
    """Of the words that follow, [B, T-1], from logits [B, T, V] and tokens [B, T]."""
    return logits[:, :-1].log_softmax(-1).gather(-1, tokens[:, 1:, None])[..., 0]


@torch.no_grad()
def look(model, frames: Tensor, tokens: Tensor) -> Looks:
    """Let `model` read the caption `tokens` [T] with the clip `frames` [F, 3, H, W], and watch its attention."""
    clip, caption = _batch(model, frames, tokens)
    model = _network(model)
    name, others = _names(model)
    with record(model, [name, *others]) as seen:
        output = model(clip, caption)
    count = 1 if frames.dim() == 3 else len(frames)
    layers = [calls for path, calls in seen.items() if path.endswith(name.rsplit("*")[-1])]
    text = torch.stack([calls[-1][0] for calls in layers])  # [L, H, T, S]
    image = text.shape[-1] if others else text.shape[-1] - len(tokens)
    mixing = _student_mixing(seen, image, len(tokens)) if others else _git_mixing(layers, image, len(tokens))
    maps = _on_cells(text[:, :, :-1, :image], count)
    return Looks(maps, _log_probs(output.logits, caption)[0], mixing)


def _git_mixing(layers: list, image: int, text: int) -> Tensor:
    """GIT's layers: image rows see the image, text rows all before them; the last layer has no image rows."""
    steps = torch.eye(image + text, device=layers[0][0].device).repeat(len(layers), 1, 1)
    for step, calls in zip(steps, layers):
        if len(calls) > 1:
            step[:image, :image] = calls[0][0].mean(0)
        step[image:] = calls[-1][0].mean(0)
    return steps


def _student_mixing(seen: dict, image: int, text: int) -> Tensor:
    """The student's attentions in the order in which they run: its mixer's, then each layer's two."""
    device = next(iter(seen.values()))[0].device
    steps = torch.eye(image + text, device=device).repeat(len(seen), 1, 1)
    for step, (path, calls) in zip(steps, seen.items()):
        weights = calls[0][0].mean(0)
        if path.startswith("mixer."):
            step[:image, :image] = weights
        elif ".self_attention." in path:
            step[image:, image:] = weights
        else:
            step[image:] = torch.cat([weights, weights.new_zeros(text, text)], 1)
    return steps


def rollout(mixing: Tensor, first: int = 0) -> Tensor:
    """Attention rollout [S, S] of steps [n, S, S] from `first` on: what each last token is made of.

    Half of a token goes round each attention unchanged, as in Abnar and Zuidema 2020
    (https://arxiv.org/abs/2005.00928): the product of all (A + 1) / 2.
    """
    if not 0 <= first < len(mixing):
        raise ValueError(f"first must be one of the {len(mixing)} steps, 0 to {len(mixing) - 1}; got {first}")
    total = torch.eye(mixing.shape[-1], dtype=mixing.dtype, device=mixing.device)
    for step in mixing[first:]:
        total = 0.5 * (step @ total + total)
    return total


def gradient_attention(model, frames: Tensor, tokens: Tensor) -> Tensor:
    """Gradient x attention [T-1, F, h, w]: cells whose weight, made larger, would make the word likelier.

    The positive part of (d log-probability / d weight) * weight, heads averaged and layers added, after Chefer et
    al. 2021 (https://arxiv.org/abs/2103.15679), whose relevance does not leave the row of the word here.
    """
    clip, caption = _batch(model, frames, tokens)
    model, weights, handles = _network(model), {}, []

    def keep(module, inputs, output):
        weights[module] = output if output.requires_grad else output.requires_grad_()

    for path in paths(model, _names(model)[0]):
        handles.append(model.get_submodule(path).register_forward_hook(keep))
    try:
        with torch.enable_grad():
            log_probs = _log_probs(model(clip, caption).logits, caption)[0].unbind()
    finally:
        for handle in handles:
            handle.remove()
    layers = list(weights.values())  # of GIT's two calls the text's stays
    image = layers[0].shape[-1] - (0 if _names(model)[1] else len(tokens))
    count = 1 if frames.dim() == 3 else len(frames)
    rows = []
    for t, value in enumerate(log_probs):
        slopes = torch.autograd.grad(value, layers, retain_graph=t + 1 < len(log_probs))
        rows.append(sum((slope * weight).relu()[0, :, t].mean(0) for slope, weight in zip(slopes, layers)))
    return _on_cells(torch.stack(rows).detach()[:, :image], count)


@torch.no_grad()
def occlusion(
    model, frames: Tensor, tokens: Tensor, grid: tuple[int, int], reach: int = 1, batch: int = 36
) -> Tensor:
    """How much each word's log-probability falls when a place is covered in all frames: [T-1, *grid].

    After Zeiler and Fergus 2014 (https://arxiv.org/abs/1311.2901). Covered are a cell and its neighbours, `reach`
    cells to each side, with the median colour of each frame.
    """
    clip, caption = _batch(model, frames, tokens)
    rows, columns = (
        [(max(0, k - reach) * size // n, min(n, k + reach + 1) * size // n) for k in range(n)]
        for n, size in zip(grid, frames.shape[-2:])
    )
    fill = clip[0].flatten(-2).median(-1).values[..., None, None]
    covered = []
    for top, bottom in rows:
        for left, right in columns:
            copy = clip[0].clone()
            copy[..., top:bottom, left:right] = fill
            covered.append(copy)
    before = _log_probs(model(clip, caption).logits, caption)[0]
    after = []
    for part in torch.stack(covered).split(batch):
        many = caption.expand(len(part), -1)
        after.append(_log_probs(model(part, many).logits, many))
    return (before - torch.cat(after)).T.unflatten(1, grid)


def explain(model, frames: Tensor, tokens: Tensor, first: int = 0) -> dict[str, Tensor]:
    """Four answers to "why this word?" by name, maps [T-1, h, w], frames added up.

    The last one, `occlusion`, is an experiment that the others can be held against. first: the mixing step at which
    rollout begins.
    """
    looks = look(model, frames, tokens)
    return {
        "raw attention": normalised(looks.maps[-1].mean(0)).sum(1),
        "rollout": looks.rolled(first).sum(1),
        "gradient × attention": gradient_attention(model, frames, tokens).sum(1),
        "occlusion": occlusion(model, frames, tokens, tuple(looks.maps.shape[-2:])),
    }


def rank_correlation(x: Tensor, y: Tensor) -> float:
    """Spearman's correlation of two tensors' entries, equal entries sharing their mean rank; NaN for a constant."""

    def ranks(values):
        _, which, count = values.detach().cpu().flatten().unique(return_inverse=True, return_counts=True)
        ends = count.cumsum(0).double()
        return (ends - (count - 1) / 2)[which]

    return float(torch.corrcoef(torch.stack([ranks(x), ranks(y)]))[0, 1])


def shuffled(model, seed: int = 0):
    """A copy of `model` whose weights are shuffled within each tensor: the same sizes and spread, nothing learned.

    The random-weights control of Adebayo et al. 2018 (https://arxiv.org/abs/1810.03292). A map that looks as good
    with it says nothing about what was learned.
    """
    generator = torch.Generator().manual_seed(seed)
    copy = deepcopy(model)
    with torch.no_grad():
        for parameter in copy.parameters():
            order = torch.randperm(parameter.numel(), generator=generator).to(parameter.device)
            parameter.copy_(parameter.flatten()[order].view_as(parameter))
    return copy.train().eval()  # timm's TinyViT drops the biases it has cached


# -- does it look at the right thing? ----------------------------------------------------------------------------


def cells_of(mask: Tensor, grid: tuple[int, int]) -> Tensor:
    """Boolean [F, h, w]: the cells that show a thing of mask [F, H, W]."""
    return area_means(mask.float(), grid) >= ON_THING


def pointing(attention: Tensor, cells: Tensor) -> float:
    """1 if the strongest cell of a map [F, h, w] is one of `cells`, else 0; among equals their share."""
    return float(cells[attention == attention.max()].float().mean())


def referents(words: list[str], scene) -> list[tuple[str, int] | None]:
    """For each word what it names: ("object" or "colour", the thing's index), None if nothing or not one thing.

    scene: of the embedded world, with `things`.
    """
    found = []
    for word in words:
        objects = [k for k, thing in enumerate(scene.things) if word in SYMBOLS[thing.symbol].names]
        colours = [k for k, thing in enumerate(scene.things) if word == thing.colour and word in COLOURS]
        kind, things = ("object", objects) if objects else ("colour", colours)
        found.append((kind, things[0]) if len(things) == 1 else None)
    return found


def ground(model, clips, tokenizer, maps=None) -> list[dict]:
    """Each object and colour word of each clip's first caption, and whether the model looked at what it names.

    clips: with `frames`, `masks`, `captions` and `scene`, as `GlyphClips` gives them.
    maps: what stands for the model's looks, a function of (model, frames, tokens) that gives [T-1, F, h, w];
        by default attention, averaged over layers and heads.

    Returns a dict for each word: clip, word, kind ("object" or "colour"), hit (see `pointing`), other (the same for
    the clip's other things, cells that also show the named one left out; None where there is no other), share (of
    the attention, on the thing), chance (share of all cells that the thing covers: what hit and share are on
    average for a model that looks anywhere).
    """
    rows = []
    for number, clip in enumerate(clips):
        tokens = torch.tensor(tokenizer(clip.captions[0])["input_ids"])
        seen = look(model, clip.frames, tokens).words() if maps is None else maps(model, clip.frames, tokens)
        words = tokenizer.convert_ids_to_tokens(tokens[1:])
        for values, word, named in zip(seen.cpu(), words, referents(words, clip.scene)):
            if named is None:
                continue
            things = torch.stack([cells_of(mask, tuple(values.shape[-2:])) for mask in clip.masks])
            cells = things[named[1]]
            other = pointing(values, things.any(0) & ~cells) if len(things) > 1 else None
            share = float(values[cells].sum() / values.sum().clamp(min=1e-12))
            row = {
                "clip": number,
                "word": word,
                "kind": named[0],
                "hit": pointing(values, cells),
                "other": other,
            }
            rows.append(row | {"share": share, "chance": float(cells.float().mean())})
    return rows


def bootstrap(values, groups, repeats: int = 1000, seed: int = 0) -> tuple[float, float, float]:
    """The mean of `values` and its 95 % interval: (mean, low, high).

    groups: for each value the clip it comes from. Whole clips are drawn again (Efron 1979; a cluster bootstrap),
    since the words of one clip are not independent.
    """
    values = torch.as_tensor(values, dtype=torch.float64)
    if len(values) == 0:
        raise ValueError("values is empty: nothing to average")
    _, which = torch.as_tensor(groups).unique(return_inverse=True)
    size = int(which.max()) + 1
    sums = torch.zeros(size, dtype=torch.float64).index_add(0, which, values)
    counts = torch.zeros(size, dtype=torch.float64).index_add(0, which, torch.ones_like(values))
    drawn = torch.randint(size, (repeats, size), generator=torch.Generator().manual_seed(seed))
    means = sums[drawn].sum(1) / counts[drawn].sum(1)
    low, high = means.quantile(torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
    return float(values.mean()), low, high


def scoreboard(rows: list[dict], score: str = "hit") -> dict[str, tuple[float, float, float, int]]:
    """Kind of word -> (mean, low, high, words) of the rows of `ground`.

    score: "hit", "other", "share" or "chance"; rows in which it is None are left out.
    """
    board, rows = {}, [row for row in rows if row[score] is not None]
    for kind in dict.fromkeys(row["kind"] for row in rows):
        chosen = [row for row in rows if row["kind"] == kind]
        interval = bootstrap([row[score] for row in chosen], [row["clip"] for row in chosen])
        board[kind] = (*interval, len(chosen))
    return dict(sorted(board.items(), reverse=True))


# -- how alike are two networks? ---------------------------------------------------------------------------------


@torch.no_grad()
def features(model, names: str | list[str], frames: Tensor, pooled: bool = False, batch: int = 64) -> dict:
    """What modules make of images: module path -> [n * F, h, w, D], class tokens left out.

    names: paths or patterns as for `record`. frames: [n, F, 3, H, W]. pooled: each image's mean over its cells,
    [n * F, D], as `cka_map` takes them. batch: clips that are computed at a time.
    """
    parts, device = [], _device(model)
    for some in frames.split(batch):
        start = torch.full((len(some), 1), model.bos_token_id, device=device)
        with record(model, names) as seen:
            model(some.to(device), start)
        found = {path: as_feature_grid(calls[0], len(some) * some.shape[1]) for path, calls in seen.items()}
        parts.append({path: x.mean((1, 2)) if pooled else x for path, x in found.items()})
    return {path: torch.cat([part[path] for part in parts]) for path in parts[0]}


def cka(x: Tensor, y: Tensor) -> float:
    """Debiased linear CKA of features x [n, D] and y [n, D'] of the same n images: 1 alike, about 0 unrelated.

    Kornblith et al. 2019 (https://arxiv.org/abs/1905.00414) with the unbiased HSIC of Song et al. 2012, as in
    Nguyen et al. 2021 (https://arxiv.org/abs/2010.15327): the plain form calls any two wide layers alike when
    there are fewer images than channels. Scale and rotation do not matter.
    """
    return float(cka_map([x], [y])[0, 0])


def cka_map(xs: list[Tensor], ys: list[Tensor]) -> Tensor:
    """`cka` of all pairs, [len(xs), len(ys)]; features [n, D_i], all of the same images."""
    sizes = {len(x) for x in (*xs, *ys)}
    if len(sizes) != 1 or min(sizes) < 4:
        raise ValueError(f"CKA needs the same images for all layers, at least 4; got {sorted(sizes)}")
    first, second = _centred_grams(xs), _centred_grams(ys)
    return first @ second.T


def _centred_grams(layers: list[Tensor]) -> Tensor:
    """Gram matrices [len, n * n], U-centred and of length one: their inner products are debiased CKA."""
    n = len(layers[0])
    rows = []
    for layer in layers:
        gram = _wide(layer) @ _wide(layer).T
        gram.fill_diagonal_(0)
        sums = gram.sum(0) / (n - 2)
        gram = gram - sums[:, None] - sums + sums.sum() / (n - 1)
        rows.append(gram.fill_diagonal_(0).flatten())
    return F.normalize(torch.stack(rows), dim=1)


def ridge(x: Tensor, y: Tensor, strength: float = 0.01):
    """The linear map from x [n, D] to y [n, D'] with the least center_crop error; a function of [..., D].

    strength: of the penalty on large weights, in units of x's mean variance.
    """
    x, y = _wide(x), _wide(y)
    mean, target = x.mean(0), y.mean(0)
    moments = (x - mean).T @ (x - mean)
    penalty = strength * moments.diagonal().mean() * torch.eye(len(moments), dtype=x.dtype)
    weight = torch.linalg.solve(moments + penalty, (x - mean).T @ (y - target))
    return lambda features: ((_wide(features) - mean) @ weight + target).to(features.dtype)


def joint_pca(fit: dict[str, Tensor], shown: dict[str, Tensor], count: int = 3):
    """Features of several networks in one basis, so that equal colours mean equal things.

    The first network is the reference: the basis is its `count` principal components, features standardised. The
    others are first brought into its space by a ridge regression on `fit`. (The idea of colouring features by
    their principal components is DINOv2's, https://arxiv.org/abs/2304.07193.)

    fit: name -> [n, D], features of the same n cells in all networks. shown: name -> [..., D], any cells; best of
    other images, since a regression flatters on its own.

    Returns name -> [..., count] between 0 and 1, from the 2nd to the 98th percentile of all that is shown, and each
    component's share of the reference's variance. A component's sign makes its largest loading positive.
    """
    (reference, base), *others = fit.items()
    if {len(x) for x in fit.values()} != {len(base)} or list(shown) != list(fit):
        raise ValueError("fit and shown must name the same networks, and fit hold the same cells of each")
    known = _wide(base)
    mean, spread = known.mean(0), known.std(0).clamp(min=1e-9)
    _, sizes, axes = torch.linalg.svd((known - mean) / spread, full_matrices=False)
    explained = (sizes**2 / (sizes**2).sum())[:count]
    axes = axes[:count]
    axes = axes * axes.gather(1, axes.abs().argmax(1, keepdim=True)).sign()
    into = {reference: lambda x: x} | {name: ridge(x, base) for name, x in others}
    found = {name: ((_wide(into[name](x)) - mean) / spread) @ axes.T for name, x in shown.items()}
    together = torch.cat([x.reshape(-1, count) for x in found.values()])
    low, high = together.quantile(torch.tensor([0.02, 0.98], dtype=together.dtype), dim=0)
    scaled = {name: ((x - low) / (high - low).clamp(min=1e-9)).clamp(0, 1) for name, x in found.items()}
    return scaled, explained
