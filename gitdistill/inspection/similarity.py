"""What do two layers share? Rank correlation, CKA, probes, a common basis for colours, similarities as a map."""

import torch
from torch import Tensor
from torch.nn import functional as F

from gitdistill.decoding.loop import evaluation
from gitdistill.distillation.targets import as_feature_grid, total_frames
from gitdistill.hooks import record


def features(model, names: str | list[str], frames: Tensor, pooled: bool = False, batch: int = 64) -> dict:
    """Image features by module path: [n * F, h, w, D], class tokens left out.

    names: paths or patterns as for `record`. frames: [n, F, 3, H, W]. pooled: each image's mean over its grid,
    [n * F, D], as `cka_map` takes them. batch: clips that are computed at a time.
    """
    parts, device = [], next(model.parameters()).device
    length = max(3, total_frames(frames) // len(frames) + 1)  # tokens of text that fit no grid of all frames
    for some in frames.split(batch):
        start = torch.full((len(some), length), model.bos_token_id, device=device)
        with evaluation(model), record(model, names) as seen:
            model(some.to(device), start)
        found = {path: as_feature_grid(calls[0], total_frames(some)) for path, calls in seen.items()}
        parts.append({path: x.mean((1, 2)) if pooled else x for path, x in found.items()})
    return {path: torch.cat([part[path] for part in parts]) for path in parts[0]}


def rank_correlation(x: Tensor, y: Tensor) -> float:
    """Spearman's correlation of two tensors' entries, equal entries sharing their mean rank; NaN for a constant."""

    def ranks(values):
        _, which, count = as_double(values).flatten().unique(return_inverse=True, return_counts=True)
        return (count.cumsum(0).double() - (count - 1) / 2)[which]

    return float(torch.corrcoef(torch.stack([ranks(x), ranks(y)]))[0, 1])


def cka(x: Tensor, y: Tensor) -> float:
    """Debiased linear CKA of features x [n, D] and y [n, D'] of the same n images: 1 alike, about 0 unrelated.

    Kornblith et al. 2019 (https://arxiv.org/abs/1905.00414) with the unbiased HSIC of Song et al. 2012, as in
    Nguyen et al. 2021 (https://arxiv.org/abs/2010.15327). The plain form calls any two wide layers alike when there
    are fewer images than channels. Scale and rotation do not matter.
    """
    return float(cka_map([x], [y])[0, 0])


def cka_map(xs: list[Tensor], ys: list[Tensor]) -> Tensor:
    """`cka` of all pairs, [len(xs), len(ys)]; features [n, D_i], all of the same images."""
    sizes = {len(x) for x in (*xs, *ys)}
    if len(sizes) != 1 or min(sizes) < 4:
        raise ValueError(f"CKA needs the same images for all layers, at least 4; got {sorted(sizes)}")
    return centred_grams(xs) @ centred_grams(ys).T


def centred_grams(layers: list[Tensor]) -> Tensor:
    """Gram matrices [len, n * n], U-centred and of length one: their inner products are debiased CKA."""
    n = len(layers[0])
    rows = []
    for layer in map(as_double, layers):
        gram = layer @ layer.T
        gram.fill_diagonal_(0)
        sums = gram.sum(0) / (n - 2)
        gram = gram - sums[:, None] - sums + sums.sum() / (n - 1)
        rows.append(gram.fill_diagonal_(0).flatten())
    return F.normalize(torch.stack(rows), dim=1)


def ridge(x: Tensor, y: Tensor, strength: float = 0.01):
    """The linear map from x [n, D] to y [n, D'] with the least squared error; a function of [..., D].

    strength: of the penalty on large weights, in units of x's mean variance.
    """
    x, y = as_double(x), as_double(y)
    mean, target = x.mean(0), y.mean(0)
    moments = (x - mean).T @ (x - mean)
    spread = moments.diagonal().mean().clamp(min=1e-12)  # of x that never changes: the map is then y's mean
    penalty = strength * spread * torch.eye(len(moments), dtype=x.dtype)
    weight = torch.linalg.solve(moments + penalty, (x - mean).T @ (y - target))
    return lambda features: ((as_double(features) - mean) @ weight + target).to(features.dtype)


def linear_probe(known: Tensor, labels: list[str], asked: Tensor) -> list[str]:
    """Labels of features `asked` [m, D] by a `ridge` regression from `known` [n, D] to their n labels, one-hot.

    What it gets right can be read from a layer linearly. Alain and Bengio 2016, https://arxiv.org/abs/1610.01644
    ValueError unless each of the known features has a label.
    """
    if not len(known) == len(labels) > 0:
        raise ValueError(f"give each known feature a label: got {len(known)} features, {len(labels)} labels")
    names = sorted(set(labels))
    targets = F.one_hot(torch.tensor([names.index(label) for label in labels]))
    return [names[place] for place in ridge(known, targets)(asked).argmax(-1).tolist()]


def joint_pca(fit: dict[str, Tensor], shown: dict[str, Tensor], count: int = 3):
    """Features of several networks in one basis, so that equal colours mean equal features.

    The basis is the first `count` principal components of the first network, features standardised. The others are
    mapped into its space by a ridge regression on `fit`. After DINOv2 (https://arxiv.org/abs/2304.07193).

    fit: name -> [n, D], features of the same n cells in all networks. shown: name -> [..., D], any cells; best of
    other images, since a regression looks better on those that it was fitted to.

    Returns name -> [..., count] between 0 and 1, from the 2nd to the 98th percentile of all that is shown, and each
    component's share of the reference's variance. A component's sign makes its largest loading positive.
    """
    (reference, base), *others = fit.items()
    if {len(x) for x in fit.values()} != {len(base)} or list(shown) != list(fit):
        raise ValueError("fit and shown must name the same networks, and fit hold the same cells of each")
    known = as_double(base)
    mean, spread = known.mean(0), known.std(0).clamp(min=1e-9)
    _, sizes, axes = torch.linalg.svd((known - mean) / spread, full_matrices=False)
    explained = (sizes**2 / (sizes**2).sum())[:count]
    axes = axes[:count]
    axes = axes * axes.gather(1, axes.abs().argmax(1, keepdim=True)).sign()
    into = {reference: lambda x: x} | {name: ridge(x, base) for name, x in others}
    found = {name: ((as_double(into[name](x)) - mean) / spread) @ axes.T for name, x in shown.items()}
    together = torch.cat([x.reshape(-1, count) for x in found.values()])
    low, high = together.quantile(torch.tensor([0.02, 0.98], dtype=together.dtype), dim=0)
    scaled = {name: ((x - low) / (high - low).clamp(min=1e-9)).clamp(0, 1) for name, x in found.items()}
    return scaled, explained


def scaling(similarities: Tensor, count: int = 2) -> tuple[Tensor, float]:
    """Points [n, count] that lie close together where `similarities` [n, n] are large, and the share that they keep.

    Classical multidimensional scaling (Torgerson 1952, https://doi.org/10.1007/BF02288916): the distance of two
    things is the largest similarity minus theirs. NaN, what is not known, becomes the mean; the diagonal does not
    count. The share is that of the positive eigenvalues. An axis' sign makes its largest entry positive.
    """
    given = as_double(similarities).clone().fill_diagonal_(float("nan"))
    given = given.nan_to_num(float(given.nanmean()))
    squared = (given.max() - given).fill_diagonal_(0) ** 2
    inner = -(squared - squared.mean(0) - squared.mean(1, keepdim=True) + squared.mean()) / 2
    sizes, axes = torch.linalg.eigh(inner)
    sizes, axes = sizes.flip(0).clamp(min=0), axes.flip(1)[:, :count]
    axes = axes * axes.gather(0, axes.abs().argmax(0, keepdim=True)).sign()
    return axes * sizes[:count].sqrt(), float(sizes[:count].sum() / sizes.sum().clamp(min=1e-300))


def procrustes(points: Tensor, target: Tensor) -> Tensor:
    """Points [n, D], moved, turned, mirrored and resized so that they lie over those of `target` [n, D] best.

    Schönemann 1966, https://doi.org/10.1007/BF02289451; the size becomes that of the target, whatever they share.
    """
    points, middle = points - points.mean(0), target.mean(0)
    left, _, right = torch.linalg.svd(points.T @ (target - middle))
    return points @ left @ right * ((target - middle).norm() / points.norm()) + middle


def as_double(x: Tensor) -> Tensor:
    """For statistics: in double precision, on the CPU, since not every device has it."""
    return x.detach().cpu().double()
