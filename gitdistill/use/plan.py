"""`python -m gitdistill plan --config configs/….yaml`: what a distillation will take, before it is run.

Parameters, operations and what autograd keeps are not guessed: both networks run once on torch's "meta" device,
where tensors have shapes and no numbers. Rules of thumb are the teacher's working memory, half precision (the
student's activations count two bytes) and time: operations divided by what a device sustains. Reading and
decoding of files, validation and communication are left out.
"""

import argparse
from contextlib import contextmanager
from dataclasses import dataclass, field, fields, replace
from pathlib import Path

import numpy as np
import torch
import yaml
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode
from transformers import GitConfig

from gitdistill.distillation import losses
from gitdistill.distillation.cache import KEPT_WORDS
from gitdistill.distillation.optim import split_parameters
from gitdistill.distillation.targets import as_feature_grid, image_layer
from gitdistill.hooks import record
from gitdistill.models import checkpoints, storage
from gitdistill.models.backbone import TinyVIT
from gitdistill.models.git import GenerativeImageTextModel
from gitdistill.models.student import StudentCandidateV1

FLOAT, HALF = 4, 2  # bytes


@dataclass(frozen=True)
class Run:
    """A distillation with the default losses: captions, distributions and features.

    teacher: "glyphs", a folder, or the name of a published GIT ("microsoft/git-large-vatex").
    student: options of `StudentCandidateV1`; of its backbone the name counts, no weights are fetched.
    frames, batch, captions, tokens: of a clip, a device's batch, a clip, a caption.
    mixed, teacher_half: student and teacher compute in half precision (under autocast).
    cached: the teacher's answers are on disk. muon: the optimiser is `MuonAdamW`, else AdamW.
    clips: in the pool, each with `told` captions. steps: of the run on one device; with n devices, n times fewer.
    devices: on all machines. tflops: what each sustains, in 10^12 operations a second (a multiplication and an
    addition are two); 40 % of a data sheet's number is a good run.
    """

    teacher: str = "microsoft/git-base"
    student: dict = field(default_factory=dict)
    frames: int = 1
    batch: int = 32
    captions: int = 1
    tokens: int = 20
    mixed: bool = False
    teacher_half: bool = False
    cached: bool = False
    muon: bool = True
    clips: int = 100_000
    told: int = 5
    steps: int = 10_000
    devices: int = 1
    tflops: float = 1.0


def main(arguments: list[str]) -> int:
    """Print the estimate. ValueError or OSError for wrong arguments."""
    print("\n".join(table(described(arguments))))
    return 0


def described(arguments: list[str]) -> Run:
    """The run that the command's arguments describe."""
    options = parser().parse_args(arguments)
    names = {known.name for known in fields(Run)}
    given = {k: v for k, v in vars(options).items() if k in names and v is not None}
    run = read_run(options.config, **given) if options.config else Run(**given)
    if options.backbone:
        run = replace(run, student=run.student | {"backbone": options.backbone})
    return run


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("gitdistill plan", description=__doc__.partition("\n")[0])
    parser.add_argument(
        "--config", type=Path, help="a configuration of `fit`, whose settings the others replace"
    )
    parser.add_argument("--teacher", help='"glyphs", a folder, or a published GIT: microsoft/git-large-vatex')
    parser.add_argument("--backbone", help="the student's: a timm name, a folder or glyphs")
    for name, what in {
        "frames": "of a clip",
        "batch": "clips a step and device",
        "captions": "of a clip in a step",
        "tokens": "of a caption (default: 20)",
        "clips": "to train on (default without a configuration: 100,000)",
        "told": "captions that a clip has (default: 5)",
        "steps": "as if on one device; with n devices there are n times fewer",
        "devices": "on all machines together",
    }.items():
        parser.add_argument(f"--{name}", type=int, help=what)
    parser.add_argument(
        "--tflops", type=float, help="10^12 operations a second that a device sustains (default: 1)"
    )
    for name, what in {
        "mixed": "the student trains in half precision",
        "teacher-half": "the teacher computes in half precision",
        "cached": "the teacher's answers are on disk",
    }.items():
        parser.add_argument(f"--{name}", action=argparse.BooleanOptionalAction, help=what)
    return parser


def read_run(path: Path, **given) -> Run:
    """What a configuration of `fit` says, but for what is `given`.

    ValueError unless it is a `DistillationTrainer`'s, and says or is given how many clips and steps there are.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"there is no configuration {path}")
    try:
        said = yaml.safe_load(path.read_text())
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not valid YAML: {storage.first_line(error)}") from None
    model = said.get("model") if isinstance(said, dict) else None
    if not isinstance(model, dict) or not str(model.get("class_path")).endswith("DistillationTrainer"):
        raise ValueError(f"{path} configures no DistillationTrainer")
    try:
        model, trainer = model["init_args"], said.get("trainer") or {}
        data = (said.get("data") or {}).get("init_args") or {}
        teacher, student = model["teacher"], model["student"]["init_args"]
    except (KeyError, TypeError) as error:
        raise ValueError(f"{path} tells teacher and student not as fit reads them: {error!r}") from None
    steps = trainer.get("max_steps")
    found = {
        "teacher": teacher,
        "student": student,
        "frames": data.get("num_frames", student.get("num_frames", 4)),
        "batch": data.get("batch_size", 32),
        "captions": data.get("captions_per_clip", 1),
        "clips": data.get("train_clips"),  # files do not say, and a stream has no end
        "steps": None if steps == -1 else steps,  # as Lightning writes it where epochs are counted
        "mixed": "mixed" in str(trainer.get("precision", "")),
        "teacher_half": model.get("teacher_dtype", "float32") != "float32",
        "cached": model.get("cache") is not None,  # what a run saved of itself says null
        "muon": model.get("muon", True),
    }
    found |= given
    for name in ("clips", "steps"):
        if found[name] is None:
            raise ValueError(f"{path} does not say how many {name} there are: give --{name}")
    return Run(**found)


def teacher_config(name: str) -> GitConfig:
    """The configuration of a teacher; of a published one by its name, without network."""
    if name == "glyphs" or Path(name).is_dir():
        return checkpoints.load(name)[0]
    size = name.rpartition("/")[2]
    if not size.startswith(("git-base", "git-large")):
        raise ValueError(f"teacher {name!r} is no folder, no published GIT (microsoft/git-…) and not glyphs")
    large, questions = "large" in size, "vqa" in size
    vision = {"image_size": (420 if large else 480) if questions else 224}
    if large:
        vision |= {"hidden_size": 1024, "intermediate_size": 4096, "patch_size": 14}
        vision |= {"num_hidden_layers": 24, "num_attention_heads": 16}
    video = any(kind in size for kind in ("vatex", "msrvtt"))
    return GitConfig(vision_config=vision, num_image_with_embedding=6 if video else None)


def networks(run: Run) -> tuple[GenerativeImageTextModel, StudentCandidateV1]:
    """Both networks of a run, on the meta device."""
    config, options = teacher_config(run.teacher), dict(run.student)
    source = options.pop("backbone", "glyphs")
    with torch.device("meta"):
        teacher = GenerativeImageTextModel(config)
    if source == "glyphs" or Path(source).is_dir():
        folder = checkpoints.embedded("backbone") if source == "glyphs" else source
        backbone = TinyVIT(**storage.read_config(folder))
    else:
        backbone = TinyVIT(source)
    special = {
        name: getattr(config, name) for name in ("vocab_size", "bos_token_id", "eos_token_id", "pad_token_id")
    }
    student = StudentCandidateV1(**special | options | {"backbone": backbone, "frames": run.frames})
    student = student.to("meta").train()
    if student.tie:  # which the move undid
        student.head.weight = student.words.weight
    return teacher.eval(), student


@contextmanager
def kept(model: nn.Module):
    """Collects the storages that autograd keeps for the way back, parameters aside, by identity."""
    own = {p.untyped_storage()._cdata for p in model.parameters()}
    found = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in own:
            found[storage._cdata] = storage  # held, so that no other gets the same address
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        yield found


def step(run: Run, teacher: nn.Module, student: nn.Module):
    """A step on the meta device: bytes kept for the way back, operations of the teacher and of the student."""
    side, frames = teacher.config.vision_config.image_size, (run.batch, run.frames, 3)
    tokens = torch.zeros(run.batch * run.captions, run.tokens, dtype=torch.long, device="meta")
    clips = torch.zeros(*frames, side, side, device="meta")
    path = image_layer(teacher)
    with torch.no_grad(), FlopCounterMode(display=False) as asked, record(teacher, [path]) as seen:
        logits = teacher(clips, tokens).logits
    cells = as_feature_grid(seen[path][0], run.batch * run.frames)
    student = student.bfloat16() if run.mixed else student
    side, pad = student.backbone.image_size, student.pad_token_id
    projector = nn.Linear(student.embed_dim, cells.shape[-1], device="meta", dtype=student.spatial.dtype)
    with FlopCounterMode(display=False) as learnt, kept(student) as storages:
        output = student(torch.zeros(*frames, side, side, device="meta"), tokens)
        mine = projector(as_feature_grid(output.memory, run.batch * run.frames))
        mine = losses.align_grid(mine.flatten(1, 2), mine.shape[1:3], cells.shape[1:3])
        known = output.subset_logits.shape[-1]
        terms = [
            losses.cross_entropy(output.subset_logits, tokens, pad),
            losses.kl(output.subset_logits, logits[..., :known], tokens, pad),
            losses.feature(mine, cells.flatten(1, 2)),
        ]
        sum(terms).backward()
    return sum(s.nbytes() for s in storages.values()), asked.get_total_flops(), learnt.get_total_flops()


def teacher_work(run: Run, config: GitConfig) -> int:
    """Bytes that the teacher needs beyond its weights: the larger of encoder and decoder, and the logits."""
    vision, size = config.vision_config, HALF if run.teacher_half else FLOAT
    image = run.batch * run.frames * ((vision.image_size // vision.patch_size) ** 2 + 1)
    encoder = 2 * vision.hidden_size + 3 * vision.intermediate_size  # of the widest moment, the activation
    decoder = 2 * config.hidden_size * (config.num_hidden_layers + 1) + 3 * config.intermediate_size
    logits = run.batch * run.captions * run.tokens * config.vocab_size * FLOAT
    return image * max(encoder, decoder) * size + 2 * logits


def cache_bytes(run: Run, config: GitConfig) -> int:
    """A teacher's cache on disk: words, distributions, and the image cells that features are compared with."""
    vision = config.vision_config
    word = np.min_scalar_type(config.vocab_size - 1).itemsize
    text = run.tokens * word + (run.tokens - 1) * (KEPT_WORDS * (word + HALF) + HALF)
    cells = run.frames * (vision.image_size // vision.patch_size) ** 2 * (config.hidden_size + HALF)
    return run.clips * (run.told * text + cells)


def estimate(run: Run) -> dict[str, float]:
    """Parameters of teacher and student, bytes on each device and on disk, operations a step and device, seconds."""
    counts = run.frames, run.batch, run.captions, run.devices, run.steps, run.clips, run.told
    if min(counts) < 1 or run.tokens < 2:
        raise ValueError("frames, batch, captions, devices, steps, clips and told are at least 1, tokens 2")
    if not run.tflops > 0:
        raise ValueError(f"tflops must be above 0, not {run.tflops}")
    teacher, student = networks(run)
    theirs, ours = (sum(p.numel() for p in net.parameters()) for net in (teacher, student))
    inner, _ = split_parameters(student)
    once = sum(p.numel() for p in inner) if run.muon else 0  # Muon keeps one number a weight, AdamW two
    activations, asked, learnt = step(run, teacher, student)
    seconds = (learnt + (0 if run.cached else asked)) / (run.tflops * 1e12)
    memory = {
        "teacher's weights": FLOAT * theirs,
        "teacher's work": 0 if run.cached else teacher_work(run, teacher.config),
        "student's weights": FLOAT * ours + (HALF * ours if run.mixed else 0),
        "gradients": FLOAT * ours * (2 if run.devices > 1 else 1),  # DDP sends copies
        "optimiser": FLOAT * (2 * ours - once),
        "activations": activations,
    }
    steps = -(-run.steps // run.devices)
    return {
        "parameters": (theirs, ours),
        "memory": memory,
        "bytes on a device": sum(memory.values()),
        "cache on disk": cache_bytes(run, teacher.config),
        "checkpoint": FLOAT * (3 * ours - once),
        "operations a step": learnt + (0 if run.cached else asked),
        "teacher's operations a step": asked,
        "seconds a step": seconds,
        "steps": steps,
        "hours": steps * seconds / 3600,
        "hours to fill the cache": asked / run.batch * run.clips / (run.tflops * 1e12) / 3600,
    }


def table(run: Run) -> list[str]:
    """The estimate as lines of Markdown."""
    found = estimate(run)
    theirs, ours = (count / 1e6 for count in found["parameters"])
    frames, devices = ("s" * (count > 1) for count in (run.frames, run.devices))
    rows = {
        "teacher, student": f"{theirs:.1f} M, {ours:.1f} M parameters",
        "a step, each device": f"{run.batch} clips of {run.frames} frame{frames}, {run.captions} × {run.tokens} tokens",
    }
    rows |= {f"memory: {name}": gigabytes(value) for name, value in found["memory"].items() if value}
    rows |= {
        "memory of each device": f"**{gigabytes(found['bytes on a device'])}**",
        "teacher's cache on disk": gigabytes(found["cache on disk"]) + ", if wanted" * (not run.cached),
        "a checkpoint": gigabytes(found["checkpoint"]),
        "operations a step, each device": f"{found['operations a step'] / 1e12:.3g} × 10¹²",
        f"a step at {run.tflops:g} × 10¹² a second": f"{found['seconds a step']:.3g} s",
        f"{found['steps']:,} steps on {run.devices} device{devices}": f"**{hours(found['hours'])}**",
    }
    if run.cached:
        rows["filling the cache first"] = hours(found["hours to fill the cache"])
    return ["| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in rows.items())]


def gigabytes(count: float) -> str:
    return f"{count / 1e9:.2f} GB" if count >= 1e8 else f"{count / 1e6:.1f} MB"


def hours(count: float) -> str:
    return f"{count:.1f} hours" if count >= 1 else f"{count * 60:.1f} minutes"
