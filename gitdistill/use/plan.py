"""`python -m gitdistill plan --config configs/….yaml`: size, work and memory of a distillation before it runs.

It takes the options of `fit` and loads no weights: both networks are built on torch's "meta" device, where tensors
have shapes and no numbers. The step has two losses, cross-entropy and KL; the others add little work, and more memory
where they read attention weights. Validation, reading of files and the teacher's temporary memory are left out.
"""

from pathlib import Path

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode
from transformers import GitConfig

from gitdistill.distillation import losses
from gitdistill.models import checkpoints, storage
from gitdistill.models.backbone import TinyVIT
from gitdistill.models.git import GenerativeImageTextModel
from gitdistill.models.student import StudentCandidateV1
from gitdistill.use.fit import FitCLI, run

TOKENS = 20  # of a caption


class PlanCLI(FitCLI):
    """The options of `fit`, parsed; nothing is instantiated."""

    def add_arguments_to_parser(self, parser):
        super().add_arguments_to_parser(parser)
        for name in ("--ckpt_path", "--weights_only"):  # a run saves them with its configuration
            parser.add_argument(name)

    def parse_arguments(self, parser, args):
        self.config = parser.parse_args(args)

    def instantiate_classes(self):
        pass


def main(arguments: list[str]) -> None:
    """Print the estimate. ValueError or OSError for wrong arguments."""
    print("\n".join(table(arguments)))


def table(arguments: list[str]) -> list[str]:
    """The estimate as lines of Markdown."""
    rows = [f"| {name} | {a:,.1f} | {b:,.1f} |" for name, (a, b) in estimate(arguments).items()]
    return ["| | teacher | student |", "|---|---|---|", *rows]


def estimate(arguments: list[str]) -> dict[str, tuple[float, float]]:
    """Numbers of (teacher, student) by what they count. ValueError unless `arguments` describe a distillation."""
    config = run(PlanCLI, args=arguments, run=False).config
    model, data = config.model.init_args, config.data.init_args
    if not model.get("student") or not model.student.class_path.endswith("StudentCandidateV1"):
        raise ValueError(f"{config.model.class_path} configures no distillation of a StudentCandidateV1")
    if not isinstance(model.teacher, str):
        raise ValueError(
            "plan reads the teacher's configuration: name its folder or hub id instead of a class"
        )
    teacher, student = networks(model.teacher, model.student.init_args.as_dict())
    theirs, ours = (sum(p.numel() for p in net.parameters()) / 1e6 for net in (teacher, student))
    frames = min(data.get("num_frames") or student.num_frames, student.num_frames)
    clips = data.get("batch_size", 1), frames, data.get("captions_per_clip", 1)
    if "16" in str(config.trainer.precision):
        student.bfloat16()
    step, activations = measure(student, *clips, training=True)
    return {
        "million parameters": (theirs, ours),
        "GFLOPs of a caption": tuple(measure(net, 1, clips[1], 1)[0] for net in (teacher, student)),
        "GFLOPs of a training step": (0 if model.get("cache") else measure(teacher, *clips)[0], step),
        "MB of weights": (4 * theirs, 4 * ours),
        "MB of gradients and AdamW's state": (0, 12 * ours),
        "MB of activations": (0, activations),
    }


def networks(teacher: str, student: dict) -> tuple[GenerativeImageTextModel, StudentCandidateV1]:
    """Both on the meta device. student: options of `StudentCandidateV1`."""
    source, options = student["backbone"], {}
    if isinstance(source, dict):  # a configuration names the class, or a function that loads one
        options, name = {**source.get("init_args", {})}, source["class_path"].rpartition(".")[2]
        if name not in ("TinyVIT", "cached_backbone"):
            raise ValueError(
                f"plan cannot tell what backbone {source['class_path']} makes: name TinyVIT's options"
            )
        source = options.pop("name", options.pop("source", "toybox"))
    folder = checkpoints.embedded("backbone") if source == "toybox" else Path(source).expanduser()
    with torch.device("meta"):
        if folder.is_dir():
            backbone = TinyVIT.from_config(storage.read_config(folder), folder)
        else:
            backbone = TinyVIT(source, **options | {"pretrained": False, "weights": None})
        teacher = GenerativeImageTextModel(teacher_config(teacher)).eval()
        return teacher, StudentCandidateV1.like(teacher, **student | {"backbone": backbone}).train()


def teacher_config(source: str) -> GitConfig:
    """A teacher's configuration; of a published GIT by its name, without network."""
    if source == "toybox" or Path(source).expanduser().is_dir():
        return checkpoints.load(source)[0]
    name = source.rpartition("/")[2]
    if not name.startswith(("git-base", "git-large")):
        raise ValueError(f"teacher {source!r} is no folder, no published GIT (microsoft/git-…), not toybox")
    vision = {"image_size": (420 if "large" in name else 480) if "vqa" in name else 224}
    if "large" in name:
        vision |= {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24}
        vision |= {"num_attention_heads": 16, "patch_size": 14}
    frames = 6 if "vatex" in name or "msrvtt" in name else None
    return GitConfig(vision_config=vision, num_image_with_embedding=frames)


def measure(model: nn.Module, clips: int, frames: int, captions: int, training: bool = False) -> tuple:
    """GFLOPs of reading clips and their captions once, which is also what decoding with a cache takes.

    With `training`, of the losses and the backward pass, too, and the megabytes that autograd saves for it.
    """
    side = model.backbone.image_size if hasattr(model, "backbone") else model.config.vision_config.image_size
    parameters, saved = [p.untyped_storage() for p in model.parameters()], {}
    tokens = torch.zeros(clips * captions, min(TOKENS, model.max_positions), device="meta", dtype=torch.long)
    pixels = torch.zeros(clips, frames, 3, side, side, device="meta", dtype=next(model.parameters()).dtype)

    def save(tensor: Tensor) -> Tensor:
        saved[id(tensor.untyped_storage())] = tensor.untyped_storage()
        return tensor

    hooks = torch.autograd.graph.saved_tensors_hooks(save, lambda tensor: tensor)
    with FlopCounterMode(display=False) as counter, hooks, torch.set_grad_enabled(training):
        output = model(pixels, tokens)
        if training:
            logits, pad = output.subset_logits, model.pad_token_id
            kl = losses.kl(logits, torch.zeros_like(logits), tokens, pad)
            (losses.cross_entropy(logits, tokens, pad) + kl).backward()
    activations = saved.keys() - {id(storage) for storage in parameters}
    return counter.get_total_flops() / 1e9, sum(saved[key].nbytes() for key in activations) / 1e6
