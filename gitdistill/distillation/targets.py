"""What is read off a network's forward pass, and which layers of student and teacher are compared.

`activations` reads either network, and `teacher_targets` all that is needed of the teacher;
`gitdistill.distillation.cache` keeps that on disk. `layer_pairs` lists the layers that can be compared.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from gitdistill.hooks import paths, record

TEACHER_ATTENTION = "model.layers.*.attention.softmax"
STUDENT_ATTENTION = "layers.*.cross_attention.softmax"


@dataclass(frozen=True)
class TargetSpec:
    """What a distillation reads of the teacher, or of the student.

    logits: the distribution of the next token, at each token of each caption.
    image_features, text_features: module paths, whose outputs are read over the image's grid or over the captions'
        tokens.
    attention: the attention from each token to the image, averaged over heads and layers.
    pseudo_captions: how many captions per clip the teacher decodes itself.
    visual_features: what its image encoder makes of the clip, from which it can read further captions.
    """

    logits: bool = True
    image_features: tuple[str, ...] = ()
    text_features: tuple[str, ...] = ()
    attention: bool = False
    pseudo_captions: int = 0
    visual_features: bool = False

    def names(self) -> list[str]:
        """Keys of the targets: "logits", "attention", "visual_features", "image_features/<path>" and so on."""
        flags = [name for name in ("logits", "attention", "visual_features") if getattr(self, name)]
        kinds = ("image_features", "text_features")
        return flags + [f"{kind}/{path}" for kind in kinds for path in getattr(self, kind)]


@torch.no_grad()
def teacher_targets(
    teacher,
    frames: Tensor,
    tokens: Tensor,
    spec: TargetSpec,
    dtype: torch.dtype = torch.float32,
    visual_features: Tensor | None = None,
) -> dict[str, Tensor]:
    """The teacher's targets for a batch, float32, under the keys of `spec.names()`.

    "logits" [B*K, T, V], "visual_features" [B, N, Dv], and what `activations` gives. With `dtype` bfloat16 or float16
    the teacher runs under autocast. If `visual_features` are given, its image encoder does not run.
    """
    given = [] if visual_features is None else [visual_features]
    with torch.autocast(frames.device.type, dtype, enabled=dtype != torch.float32):
        output, found = activations(teacher, frames, tokens, spec, TEACHER_ATTENTION, *given)
    found |= {"logits": output.logits, "visual_features": output.visual_features}
    return {name: found[name].float() for name in spec.names()}


def activations(
    network, frames: Tensor, tokens: Tensor, spec: TargetSpec, attention: str, *inputs, detach=True
):
    """The output of either network for a batch, and its activations that `spec` asks for, by name.

    "image_features/…" [B*F, h, w, D] without class tokens; "text_features/…" [B*K, T, D]; "attention"
    [B*K, T, F*h*w], normalised over the image. `attention` is the pattern of its softmaxes' paths.
    """
    softmaxes = paths(network, attention) if spec.attention else []
    watched = [*spec.image_features, *spec.text_features, *[attention] * spec.attention]
    with record(network, watched, detach) as seen:
        output = network(frames, tokens, *inputs)
    count, found = total_frames(frames), {}
    # What a network calls twice reads the image first and the text last.
    for path in spec.image_features:
        found[f"image_features/{path}"] = as_feature_grid(seen[path][0], count)
    for path in spec.text_features:
        found[f"text_features/{path}"] = seen[path][-1].reshape(*tokens.shape, -1)
    if softmaxes:
        mean = torch.stack([seen[path][-1] for path in softmaxes]).float().mean((0, 2))  # (B, K*T, S)
        if hasattr(output, "visual_features"):  # GIT's text attends to itself, too
            mean = mean[..., : output.visual_features.shape[1]]
        grid = as_feature_grid(mean.transpose(1, 2), count).flatten(1, 2)  # (B*F, h*w, K*T)
        grid = grid.reshape(len(mean), -1, grid.shape[-1]).transpose(1, 2)  # (B, K*T, F*h*w)
        grid = grid.reshape(*tokens.shape, -1)
        found["attention"] = grid / grid.sum(-1, keepdim=True).clamp(min=1e-12)
    return output, found


def total_frames(frames: Tensor) -> int:
    """All frames of a batch of clips [B, F, 3, H, W] or images [B, 3, H, W]: B*F."""
    return len(frames) * (frames.shape[1] if frames.dim() == 5 else 1)


def as_feature_grid(activation: Tensor, count: int) -> Tensor:
    """Image features of either network as a grid [B*F, h, w, D]; `count` = B*F.

    Takes maps [B*F, C, h, w] or [B, F, C, h, w], of a list the last one, tokens per frame [B*F, S, D] and tokens per
    clip [B, F*S, D]. A leading class token is recognised by S being one more than a square number, and dropped.
    """
    if isinstance(activation, list | tuple):
        activation = activation[-1]
    if activation.dim() == 5:
        activation = activation.flatten(0, 1)
    if activation.dim() == 4:
        return activation.permute(0, 2, 3, 1)
    if activation.dim() != 3 or activation.shape[0] * activation.shape[1] % count:
        raise ValueError(f"an activation of shape {list(activation.shape)} is not a map over {count} frames")
    tokens = activation.reshape(count, -1, activation.shape[-1])
    side = math.isqrt(tokens.shape[1])
    if side**2 + 1 == tokens.shape[1]:
        tokens = tokens[:, 1:]
    elif side**2 != tokens.shape[1]:
        raise ValueError(f"{tokens.shape[1]} tokens a frame are no square grid, even without a class token")
    return tokens.unflatten(1, (side, side))


@dataclass(frozen=True)
class FeaturePair:
    """One layer of the student and one of the teacher whose outputs are compared.

    term: the loss it belongs to. student, teacher: module paths. of_image: compared over the image's grid, otherwise
    over the captions' tokens.
    """

    term: str
    student: str
    teacher: str
    of_image: bool

    @property
    def name(self) -> str:
        """The name of its projector."""
        return self.student.replace(".", "/") if self.term == "features" else self.term

    @property
    def keys(self) -> tuple[str, str]:
        """The keys of the student's and the teacher's side; see `TargetSpec.names`."""
        kind = "image_features" if self.of_image else "text_features"
        return f"{kind}/{self.student}", f"{kind}/{self.teacher}"

    @property
    def projected(self) -> bool:
        """True where a linear layer projects the student's width to the teacher's."""
        return self.term in ("features", "visual", "hidden")


def layers(pairs: list[FeaturePair], side: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Module paths of the "student" or "teacher" whose image features, and whose text features, are compared."""
    image = dict.fromkeys(getattr(pair, side) for pair in pairs if pair.of_image)
    text = dict.fromkeys(getattr(pair, side) for pair in pairs if not pair.of_image)
    return tuple(image), tuple(text)


def layer_pairs(teacher, student: nn.Module, features: dict[str, str] | None) -> list[FeaturePair]:
    """Every pair that `DistillationTrainer` can compare; `features` as its argument `feature_pairs`."""
    count = len(teacher.model.layers)  # the last of them does not run on image tokens
    last = f"model.layers.{count - 1}"
    above = f"model.layers.{count - 2}" if count > 1 else "model.projection"
    decoder = f"layers.{len(getattr(student, 'layers', [])) - 1}"
    if not isinstance(features, dict | None):
        raise ValueError(f"feature_pairs is a dict of module paths, not {features!r}")
    features = features or {"memory_norm": above}
    if any(path == last or path.startswith(f"{last}.") for path in features.values()):
        raise ValueError(f"{last} of the teacher does not run on image tokens: compare with {above}")
    pairs = [FeaturePair("features", ours, theirs, True) for ours, theirs in features.items()]
    pairs.append(FeaturePair("visual", "backbone", "model.image_encoder", True))
    pairs.append(FeaturePair("hidden", "norm", last, False))
    for part in ("query", "key", "value"):
        sides = f"{decoder}.self_attention.{part}", f"{last}.attention.{part}"
        pairs.append(FeaturePair("relations", *sides, False))
    sides = f"{decoder}.cross_attention.value", f"{last}.attention.value"
    return [*pairs, FeaturePair("relations", *sides, True)]
