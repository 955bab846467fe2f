"""What distillation gains: runs all variants of an experiment with several seeds, into a table and a picture.

    python experiments/run.py losses               each loss of the recipe left out, each other one added
    python experiments/run.py own_captions         captions that the student draws: how many, by which divergence
    python experiments/run.py labels               100 to 5,000 captioned clips, with and without a teacher
    python experiments/run.py controls             a teacher without training, a teacher that sees other clips
    python experiments/run.py sizes                width and depth of the student against its time
    python experiments/run.py losses --draw        no runs: prints the table and draws the picture of those that exist

A run is a row of data/experiments/<experiment>.csv, written when it is done. Runs that are in the table are skipped, so
an interrupted experiment continues; two processes can share one if they take other seeds. All variants learn from the
same pool of clips, with a frozen backbone (`gitdistill.world.features`), the same `TeacherCache` and, for each seed,
the same initial weights and order. Each run is scored with the parameters that were best in validation; one that
trains for longer than the others ends after as many steps without a gain as the others have.
"""

import argparse
import copy
import json
import logging
import math
import statistics
import sys
import time
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import pytorch_lightning as pl
import terms
import torch
from report import FACTS, draw, read_rows, table, write_rows
from torch import Tensor

from gitdistill import (
    DistillationTrainer,
    GenerativeImageTextModel,
    GenerativeImageTextTeacher,
    StudentCandidateV1,
    TinyVIT,
)
from gitdistill.distillation.cache import TeacherCache
from gitdistill.distillation.caption_trainer import CaptionTrainer
from gitdistill.distillation.targets import FeaturePair, TargetSpec, layer_pairs, layers
from gitdistill.models.storage import write_whole
from gitdistill.world import ToyboxData
from gitdistill.world.features import CachedBackbone, FeatureData

ROOT = Path(__file__).resolve().parents[1]
WEIGHTS = {
    "cross_entropy": 1.0,
    "kl": 1.0,
    "features": 100.0,
    "hidden": 10.0,
    "attention": 10.0,
    "relations": 10.0,
    "sequence": 1.0,
}
"""Weight of each loss where it is on; at first all gradients are as large as cross-entropy's, features' larger."""
CUSTOM = {
    "decoupled": 0.5,
    "dist": 10.0,
    "standardised": 1.0,
    "relational": 30.0,
    "activation_maps": 1000.0,
    "contrastive": 1.0,
}
"""Weights of the losses of `terms.py`: at first their gradients are about as large as KL's, those of activation maps
smaller."""
RECIPE = ("cross_entropy", "kl", "features")
"""The losses of the recipe. `visual` is in no variant: it compares the backbone, which is frozen."""


@dataclass(frozen=True)
class Variant:
    """One way to train a student.

    name: its name in table and picture. against: name of the variant it is compared with.
    weights: loss -> weight, all others 0; a name that `DistillationTrainer` does not know is one of `terms.py`.
    student, options: of `StudentCandidateV1`, of `DistillationTrainer`.
    labelled: number of captioned clips; None: all. only: train on captioned clips alone. share: of the usual steps.
    author: name of the variant whose student, of the same seed, captions the clips that nobody captioned.
    untrained: image features are those of a teacher with random weights. mixed_up: the student sees each clip in the
    place of the next one, so captions and the teacher's outputs belong to another clip.
    """

    name: str
    against: str
    weights: dict[str, float]
    student: dict = field(default_factory=dict)
    options: dict = field(default_factory=dict)
    labelled: int | None = None
    only: bool = False
    share: float = 1.0
    author: str | None = None
    untrained: bool = False
    mixed_up: bool = False


def weigh(*names: str) -> dict[str, float]:
    return {name: (WEIGHTS | CUSTOM)[name] for name in names}


def losses(pool: int) -> Iterator[Variant]:
    """Each loss of the recipe left out, each other loss added or in the place of KL. 300 clips are captioned."""
    few = {"labelled": min(300, pool), "options": {"teacher_captions": 1}}
    name = "recipe: " + " + ".join(RECIPE)
    yield Variant(name, name, weigh(*RECIPE), **few)
    for left in RECIPE:
        yield Variant(f"recipe - {left}", name, weigh(*(loss for loss in RECIPE if loss != left)), **few)
    for added in (
        *(loss for loss in WEIGHTS if loss not in RECIPE),
        "relational",
        "activation_maps",
        "contrastive",
    ):
        yield Variant(f"recipe + {added}", name, weigh(*RECIPE, added), **few)
    for other in ("sequence", "decoupled", "dist", "standardised"):
        rest = (loss for loss in RECIPE if loss != "kl")
        yield Variant(f"{other} instead of kl", name, weigh(*rest, other), **few)


def own_captions(pool: int) -> Iterator[Variant]:
    """The divergence of KL, and captions that the student draws. 300 clips are captioned.

    Where the networks are near each other, the Jensen-Shannon divergence at beta 0.5 is a quarter of KL: it weighs four
    times as much."""
    few, name = {"labelled": min(300, pool)}, "recipe"
    for share, beta in ((0, 0), (0, 0.5), (0, 1), (0.25, 0), (1, 0), (1, 0.5), (1, 1)):
        own, divergence = f"{share:.0%} own captions", {0.5: "Jensen-Shannon", 1: "reverse KL"}.get(beta)
        words = [own] * (share > 0) + [divergence] * (beta > 0)
        weights = weigh(*RECIPE) | {"kl": 4.0 if beta == 0.5 else 1.0}
        options = {"teacher_captions": 1, "own_captions": float(share), "beta": float(beta)}
        yield Variant(", ".join([name, *words]), name, weights, options=options, **few)


def controls(pool: int) -> Iterator[Variant]:
    """What remains of the gain if the teacher knows nothing, or speaks of another clip. 300 clips are captioned."""
    few, name = {"labelled": min(300, pool), "options": {"teacher_captions": 1}}, "recipe - features"
    yield Variant(name, name, weigh("cross_entropy", "kl"), **few)
    yield Variant("recipe", name, weigh(*RECIPE), **few)
    yield Variant("features of an untrained teacher", name, weigh(*RECIPE), **few, untrained=True)
    yield Variant("teacher sees another clip", name, weigh(*RECIPE), **few, mixed_up=True)


def labels(pool: int) -> Iterator[Variant]:
    """Few captions, with and without a teacher. Alone, a student trains three times as long, and against overfitting.

    With 300 captions, two controls: the teacher's distributions on these clips alone, and self-training: a student
    whose teacher is the one that 300 captions made."""
    alone = {"options": {"label_smoothing": 0.1, "weight_decay": 0.1}, "student": {"dropout": 0.1}}
    for count in (*(n for n in (100, 300, 1000) if n < pool), pool):
        few, name = {"labelled": count}, f"{count:,} captioned: "
        captions = weigh("cross_entropy")
        yield Variant(
            name + "captions alone", name + "captions alone", captions, **alone, **few, only=True, share=3.0
        )
        if count == 300:
            yield Variant(
                name + "teacher, these clips", name + "captions alone", weigh(*RECIPE), **few, only=True
            )
            own = {"author": name + "captions alone"}
            yield Variant(name + "self-training", name + "captions alone", captions, **few, **own)
        options = {"teacher_captions": 1}
        yield Variant(name + "teacher", name + "captions alone", weigh(*RECIPE), options=options, **few)


def sizes(_) -> Iterator[Variant]:
    """Width and layers of decoder and mixer, one at a time."""
    base = {"embed_dim": 64, "layers": 2, "mixer_layers": 1}
    change = [
        {},
        {"embed_dim": 32},
        {"embed_dim": 96},
        {"embed_dim": 128},
        {"layers": 1},
        {"layers": 4},
    ]
    for one in (*change, {"mixer_layers": 0}, {"mixer_layers": 2}):
        yield Variant(shape(base | one), shape(base), weigh(*RECIPE), base | one)


def shape(student: dict) -> str:
    """A size as its name."""
    return "width {embed_dim}, layers {layers}, mixer {mixer_layers}".format(**student)


EXPERIMENTS = {function.__name__: function for function in (losses, own_captions, labels, controls, sizes)}


class OtherFeatures(TeacherCache):
    """The cache of a folder, but with the image features of `other`, a cache of the same clips."""

    def __init__(self, folder: Path, other: TeacherCache):
        super().__init__(folder, verify=False)
        self.other = other

    def read(self, clips: Tensor, captions: Tensor, tokens: Tensor, spec: TargetSpec) -> dict:
        start, none = tokens.unflatten(0, (len(clips), -1))[:, 0, :1], torch.full_like(clips, -1)
        own, image = replace(spec, image_features=()), TargetSpec(False, spec.image_features)
        return super().read(clips, captions, tokens, own) | self.other.read(clips, none, start, image)


@dataclass
class Bench:
    """What all runs share: networks, clips and training settings. folder: for maps, targets and captions."""

    folder: Path
    clips: int = 5000
    steps: int = 1000
    scored: int = 500
    batch: int = 32
    captions: int = 2
    lr: float = 8e-3
    teacher: GenerativeImageTextTeacher | None = None
    backbone: TinyVIT | None = None
    max_length: int = 24
    image: dict = field(default_factory=dict)
    student: dict = field(default_factory=lambda: {"embed_dim": 64})

    def __post_init__(self):
        self.teacher = self.teacher or GenerativeImageTextTeacher.from_pretrained("toybox")
        self.backbone = CachedBackbone.copy_of(self.backbone or TinyVIT.from_pretrained("toybox"))
        self.known = {name: value.clone() for name, value in self.backbone.state_dict().items()}

    @property
    def sizes(self) -> dict:
        """Of the splits, for `ToyboxData`."""
        scored = dict.fromkeys(("test_clips", "unseen_clips", "lookalike_clips"), self.scored)
        return {
            "train_clips": self.clips,
            "batch_size": self.batch,
            **scored,
            "val_clips": min(200, self.scored),
            **self.image,
        }

    @cached_property
    def cache(self) -> TeacherCache:
        """The teacher's targets for all variants."""
        pairs = [pair for pair in self.pairs if pair.term in WEIGHTS]
        spec = TargetSpec(True, *layers(pairs, "teacher"), True, pseudo_captions=1, visual_features=True)
        return TeacherCache.build(self.folder / "teacher", self.teacher, self.pixels, spec)

    @cached_property
    def untrained_cache(self) -> TeacherCache:
        """As `cache`, but for image features of a teacher with random weights."""
        torch.manual_seed(0)
        network = GenerativeImageTextModel(self.teacher.config)
        teacher = GenerativeImageTextTeacher(network, self.teacher.tokenizer)
        image, _ = layers([pair for pair in self.pairs if pair.term == "features"], "teacher")
        spec = TargetSpec(False, image)
        other = TeacherCache.build(self.folder / "untrained", teacher, self.pixels, spec)
        return OtherFeatures(self.cache.folder, other)

    @property
    def pairs(self) -> list[FeaturePair]:
        """All layers that can be compared."""
        return layer_pairs(self.teacher, self.new_student({}), None)

    @property
    def pixels(self) -> ToyboxData:
        """The pool, for a teacher."""
        return ToyboxData(**self.sizes, fresh_captions=False, max_tokens=self.max_length)

    def new_student(self, options: dict) -> StudentCandidateV1:
        """A new student over the frozen backbone, whose weights are reset to the pretrained ones."""
        self.backbone.load_state_dict(self.known)
        options = {"num_frames": self.image.get("num_frames", 4), **self.student, **options}
        return StudentCandidateV1.like(self.teacher, backbone=self.backbone, **options)

    def data(self, variant: Variant, seed: int) -> FeatureData:
        own = {"captions_per_clip": self.captions, "max_tokens": self.max_length}
        own["labelled"] = None if variant.author else variant.labelled
        only = variant.labelled if variant.only else None
        data = FeatureData(self.folder, self.backbone, only, seed, **self.sizes, **own)
        if variant.author:
            captions = json.loads(self.captions_file(variant.author, seed).read_text(encoding="utf-8"))
            clips = range(variant.labelled, self.clips)
            data.train_maps.captions = {clip: [captions[clip]] * self.captions for clip in clips}
        if variant.mixed_up:
            data.train_maps.maps = np.roll(data.train_maps.maps, 1, axis=0)
        return data

    def captions_file(self, author: str, seed: int) -> Path:
        """What the student of a run says of each clip of the pool."""
        return self.folder / f"captions_{author.partition(' ')[0]}_{self.steps}_{seed}.json"

    def write_captions(self, student: StudentCandidateV1, variant: Variant, seed: int) -> None:
        maps = self.data(variant, seed).train_maps
        captions, longest = [], self.max_length - 1  # one that does not end gets an end token
        for start in range(0, len(maps), 64):
            frames = torch.stack([maps.clip(n).frames for n in range(start, min(start + 64, len(maps)))])
            captions += student.eval().caption(frames, self.teacher.tokenizer, max_length=longest)
        path = self.captions_file(variant.name, seed)
        write_whole(path.parent, {path.name: lambda target: target.write_text(json.dumps(captions), "utf-8")})

    def term(self, name: str, student: StudentCandidateV1):
        """A loss of `terms.py`."""
        if name == "contrastive":
            return terms.Contrastive(len(student.memory_norm.weight), self.teacher.config.hidden_size)
        return getattr(terms, name)

    def settings(self) -> dict:
        """Columns that are the same in all rows of a table."""
        return {"clips": self.clips, "steps": self.steps, "scored": self.scored}


class Best(pl.Callback):
    """Keeps the parameters that were best in validation, and puts them back at the end.

    Ends the run after `patience` steps without a gain. facts: of each validation, step -> facts that are right."""

    score, step, state = -math.inf, 0, None

    def __init__(self, patience: int):
        self.patience, self.facts = patience, {}

    def on_validation_end(self, trainer, module) -> None:
        score = float(trainer.callback_metrics["val_cider"])
        self.facts[trainer.global_step] = float(trainer.callback_metrics["val/facts_precision"])
        if score > self.score:
            self.score, self.step = score, trainer.global_step
            self.state = copy.deepcopy(module.model.state_dict())
        trainer.should_stop = trainer.global_step - self.step >= self.patience

    def on_train_end(self, trainer, module) -> None:
        if self.state is not None:
            module.model.load_state_dict(self.state)


def train(bench: Bench, variant: Variant, seed: int, timed: bool = False) -> dict:
    """One run: the row of the table, scores on all test splits; `timed`: see `latency`."""
    alone = set(variant.weights) == {"cross_entropy"}
    known = "untrained_cache" if variant.untrained else "cache"
    cache = None if alone else getattr(bench, known)  # before the seed: whoever fills it draws random numbers
    pl.seed_everything(seed, verbose=False)
    student = bench.new_student(variant.student)
    steps = max(1, round(variant.share * bench.steps))
    settings = {"lr": bench.lr, "freeze": steps, "max_length": bench.max_length, **variant.options}
    if alone:
        module = CaptionTrainer(student, bench.teacher.tokenizer, **settings)
    else:
        named = [name for name in CUSTOM if name in variant.weights]
        custom = {name: (bench.term(name, student), variant.weights[name]) for name in named}
        weights = {name: variant.weights.get(name, 0.0) for name in (*WEIGHTS, "visual")}
        module = DistillationTrainer(bench.teacher, student, **weights, **settings, terms=custom, cache=cache)
    data = bench.data(variant, seed)
    often = {"val_check_interval": max(1, min(250, steps)), "check_val_every_n_epoch": None}
    best = Best(patience=bench.steps)
    trainer = quiet(max_steps=steps, gradient_clip_val=1.0, num_sanity_val_steps=0, callbacks=[best], **often)
    start = time.perf_counter()
    trainer.fit(module, data)
    seconds = time.perf_counter() - start
    if any(other.author == variant.name for other in labels(bench.clips)):
        bench.write_captions(student, variant, seed)
    row = {"name": variant.name, "against": variant.against, "seed": seed, **bench.settings()}
    row |= {"parameters": count(student), "seconds": seconds}
    if timed:
        row |= latency(bench, student)
    row |= {f"val/facts_precision@{step}": value for step, value in best.facts.items()}
    return row | scores(trainer, module, data)


def score_teacher(bench: Bench) -> dict:
    """The teacher's row."""
    module = CaptionTrainer(bench.teacher.model, bench.teacher.tokenizer, max_length=bench.max_length)
    row = {"name": "teacher", "against": "", "seed": 0, **bench.settings()}
    row |= {"parameters": count(bench.teacher.model), "seconds": 0.0}
    return row | scores(quiet(), module, ToyboxData(**bench.sizes))


def quiet(**options) -> pl.Trainer:
    """A trainer that writes nothing anywhere."""
    silent = dict.fromkeys(
        ("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False
    )
    return pl.Trainer(**silent, **options)


def scores(trainer: pl.Trainer, module: pl.LightningModule, data: pl.LightningDataModule) -> dict[str, float]:
    """Everything that `trainer.test` logs of all splits, the progress bar's copies left out."""
    found = trainer.test(module, data, verbose=False)
    return {name: value for part in found for name, value in part.items() if "/" in name}


def count(module: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def latency(bench: Bench, student: StudentCandidateV1, clips: int = 16) -> dict[str, float]:
    """Median milliseconds of a greedy caption, one clip at a time and all at once, of student and teacher.

    The two take turns, so that other work on the machine slows down both.
    """
    test = ToyboxData(**bench.sizes).test_set
    frames = torch.stack([test.clip(n % len(test), masks=False).frames for n in range(clips)])
    spent = {"ms": [], "teacher_ms": [], "batch_ms": [], "teacher_batch_ms": []}
    student.eval()

    def measure(name: str, model, frames) -> None:
        start = time.perf_counter()
        model.caption(frames, *([] if model is bench.teacher else [bench.teacher.tokenizer]))
        spent[name].append(1000 * (time.perf_counter() - start) / len(frames))

    for one in frames.split(1):
        measure("ms", student, one)
        measure("teacher_ms", bench.teacher, one)
    for _ in range(3):
        measure("batch_ms", student, frames)
        measure("teacher_batch_ms", bench.teacher, frames)
    return {name: statistics.median(values) for name, values in spent.items()}


def run(bench: Bench, experiment: str, seeds: list[int], folder: Path, only="", say=print) -> list[dict]:
    """Run what an experiment's table in `folder` lacks, if `only` is in its name; returns all rows.

    ValueError when rows of the table come from another pool, number of steps or number of scored clips.
    """
    path = folder / f"{experiment}.csv"
    rows, settings = read_rows(path), bench.settings()
    for row in rows:
        if any(row[name] != value for name, value in settings.items()):
            found = {name: row[name] for name in settings}
            raise ValueError(
                f"{path} has runs with {found}, not {settings}: delete it, or give another --out"
            )
    done = {(row["name"], row["seed"]) for row in rows}
    variants = list(EXPERIMENTS[experiment](bench.clips))
    order = ["teacher", *(variant.name for variant in variants)]
    todo = [(variant, seed) for seed in seeds for variant in variants if only in variant.name]
    todo = [(variant, seed) for variant, seed in todo if (variant.name, seed) not in done]
    if ("teacher", 0) not in done:
        rows.append(score_teacher(bench))
        write_rows(path, rows)
    for number, (variant, seed) in enumerate(todo, 1):
        row = train(bench, variant, seed, timed=experiment == "sizes")
        rows = [*read_rows(path), row]  # another process may have added to it
        rows.sort(
            key=lambda row: (order.index(row["name"]) if row["name"] in order else len(order), row["seed"])
        )
        write_rows(path, rows)
        say(
            f"{number} of {len(todo)}: {variant.name}, seed {seed}: facts right {row[FACTS]:.3f}, "
            f"CIDEr {row['test/cider']:.2f}, {row['seconds']:.0f} s"
        )
    return rows


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("experiment", choices=EXPERIMENTS)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--only", default="", metavar="TEXT", help="variants with this in their name")
    parser.add_argument("--steps", type=int, help="of a run; by default 1,000 for labels, otherwise 500")
    parser.add_argument("--clips", type=int, default=Bench.clips, help="in the pool")
    parser.add_argument("--scored", type=int, default=Bench.scored, help="clips of each test split")
    parser.add_argument("--out", type=Path, default=ROOT / "data" / "experiments", help="folder of the table")
    parser.add_argument("--draw", action="store_true", help="only print the table and draw the picture")
    options = parser.parse_args()
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)  # it prints a page for each run
    warnings.filterwarnings("ignore", module="pytorch_lightning")
    try:
        if not options.draw:
            # the caches of another pool lie elsewhere
            folder = ROOT / "runs" / "experiments" / f"pool_{options.clips}"
            steps = options.steps or (1000 if options.experiment == "labels" else 500)
            bench = Bench(folder, options.clips, steps, options.scored)
            run(bench, options.experiment, options.seeds, options.out, options.only)
        print(table(options.out, options.experiment))
        draw(options.out, options.experiment)
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
