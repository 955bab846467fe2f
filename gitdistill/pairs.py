"""Which activation of the student is compared with which of the teacher, by module path."""

from dataclasses import dataclass

from torch import Tensor, nn

from gitdistill.answers import as_cells
from gitdistill.model.teacher import GenerativeImageTextTeacher


@dataclass(frozen=True)
class Pair:
    """Two module paths whose first tensors are compared.

    term: the loss it belongs to. ours, theirs: the student's path, the teacher's. of_image: cells of the image
    are compared, otherwise tokens of the text.
    """

    term: str
    ours: str
    theirs: str
    of_image: bool

    @property
    def name(self) -> str:
        """A projector's name."""
        return self.ours.replace(".", "/") if self.term == "features" else self.term

    @property
    def part(self) -> str:
        """Where the teacher's side is in its answer."""
        return f"{'cells' if self.of_image else 'rows'}/{self.theirs}"

    @property
    def projected(self) -> bool:
        """Relations need no projector."""
        return self.term != "relations"

    def shaped(self, activation, frames: int, tokens: Tensor) -> Tensor:
        """The student's side as cells [B*F, h, w, D] or rows [B*K, T, D]; of several maps the last."""
        if isinstance(activation, list | tuple):
            activation = activation[-1]
        return as_cells(activation, frames) if self.of_image else activation.reshape(*tokens.shape, -1)


def stage_pairs(teacher: GenerativeImageTextTeacher, student: nn.Module) -> dict[str, str]:
    """Each stage of the student's backbone with the teacher's image layer at the same share of the depth.

    Stages whose grid is more than twice as fine as the teacher's are left out: they see edges, not things.
    """
    vision, net = teacher.config.vision_config, student.backbone.net
    side, layers = vision.image_size // vision.patch_size, vision.num_hidden_layers
    known = dict(net.named_modules())
    stages = [name if name in known else name.replace(".", "_", 1) for name in net.feature_info.module_name()]
    return {
        f"backbone.net.{stage}": f"model.image_encoder.layers.{round((i + 1) / len(stages) * layers) - 1}"
        for i, (stage, grid) in enumerate(zip(stages, student.backbone.grids))
        if max(grid) <= 2 * side
    }


def image_layer(git: nn.Module) -> str:
    """Module path of GIT's last layer whose image rows go anywhere: the last but one, or its only one."""
    return f"layers.{max(0, len(git.layers) - 2)}"


def pairs_of(teacher: GenerativeImageTextTeacher, student: nn.Module, features) -> list[Pair]:
    """What `DistillationTrainer` can compare; see its weights."""
    last, above = f"model.layers.{len(teacher.model.layers) - 1}", f"model.{image_layer(teacher.model)}"
    mine = f"layers.{len(getattr(student, 'layers', [])) - 1}"
    if features == "stages":
        features = stage_pairs(teacher, student)
    elif isinstance(features, str):
        raise ValueError(f'feature_pairs is a dict of module paths or "stages", not {features!r}')
    features = features or {"memory_norm": above}
    pairs = [Pair("features", ours, theirs, True) for ours, theirs in features.items()]
    pairs += [Pair("visual", "backbone", "model.image_encoder", True), Pair("hidden", "norm", last, False)]
    pairs += [
        Pair("relations", f"{mine}.self_attention.{part}", f"{last}.attention.{part}", False)
        for part in ("query", "key", "value")
    ]
    return [*pairs, Pair("relations", f"{mine}.cross_attention.value", f"{last}.attention.value", True)]
