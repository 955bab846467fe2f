"""What distillation gains: runs all variants of an experiment with several seeds, into a table and a picture.

    python experiments/run.py losses               every loss alone beside the captions, left out, and added
    python experiments/run.py labels               100, 1,000 and all captioned clips, with and without uncaptioned ones
    python experiments/run.py sizes                width and depth of the student against its time
    python experiments/run.py temperature          temperature and weights
    python experiments/run.py losses --draw        no runs: prints the table and draws the picture of those that exist

A run is a row of data/experiments/<experiment>.csv, written when it is done. Runs that are in the table are skipped, so
an interrupted experiment continues. All variants learn from the same pool of clips, with a frozen backbone
(`seen.py`), the same `TeacherCache`, the same number of steps and, for each seed, the same initial weights and order.
"""

import argparse
import logging
import statistics
import sys
import time
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import pytorch_lightning as pl
import torch
from report import draw, read_rows, table, write_rows
from seen import SeenBackbone, SeenClips, SeenData, SeenDistillation

from gitdistill import GenerativeImageTextTeacher, StudentCandidateV1, TinyVIT
from gitdistill.distillation.cache import TeacherCache
from gitdistill.distillation.targets import TargetSpec, layer_pairs
from gitdistill.distillation.trainer import CaptionTrainer
from gitdistill.world import GlyphData

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
RECIPE = ("cross_entropy", "kl", "features")
"""The losses of the recipe. `visual` is in no variant: it compares the backbone, which is frozen."""


@dataclass(frozen=True)
class Variant:
    """One way to train a student.

    name: its name in table and picture. against: name of the variant it is compared with.
    weights: loss -> weight, all others 0. student, options: of `StudentCandidateV1`, of `DistillationTrainer`.
    labelled: number of captioned clips; None: all. only: train on captioned clips alone. share: fraction of the steps.
    """

    name: str
    against: str
    weights: dict[str, float]
    student: dict = field(default_factory=dict)
    options: dict = field(default_factory=dict)
    labelled: int | None = None
    only: bool = False
    share: float = 1.0


def weigh(*names: str) -> dict[str, float]:
    return {name: WEIGHTS[name] for name in names}


def losses(_) -> Iterator[Variant]:
    """Each loss beside cross-entropy, without it where that works, left out of the recipe, and added to it."""
    alone, recipe = "cross_entropy alone", "recipe: " + " + ".join(RECIPE)
    yield Variant(alone, alone, weigh("cross_entropy"))
    for name in list(WEIGHTS)[1:]:
        yield Variant(f"cross_entropy + {name}", alone, weigh("cross_entropy", name))
    for name in ("kl", "sequence"):
        yield Variant(f"{name} alone", alone, weigh(name))
    yield Variant(recipe, alone, weigh(*RECIPE))
    yield Variant("recipe - cross_entropy", recipe, weigh(*RECIPE[1:]))
    for name in WEIGHTS:
        if name not in RECIPE:
            yield Variant(f"recipe + {name}", recipe, weigh(*RECIPE, name))


def labels(pool: int) -> Iterator[Variant]:
    """Few captions: targets of the teacher for captioned and uncaptioned clips, as captions and as distributions."""
    own = {"teacher_captions": 1}
    for count in (*(n for n in (100, 1000) if n < pool), pool):
        few = {"labelled": count}
        alone = f"{count:,} captioned: captions alone"
        yield Variant(alone, alone, weigh("cross_entropy"), **few, only=True)
        short = f"{count:,} captioned: captions alone, a third of the steps"
        yield Variant(short, alone, weigh("cross_entropy"), **few, only=True, share=1 / 3)
        yield Variant(f"{count:,} captioned: recipe on these clips", alone, weigh(*RECIPE), **few, only=True)
        if count == pool:
            continue  # no clip is without
        for name, weights, options in (
            ("pseudo-captions of all clips", weigh("cross_entropy", "sequence"), {}),
            ("KL, also on pseudo-captions of all clips", weigh("cross_entropy", "kl"), own),
            ("recipe, also on pseudo-captions of all clips", weigh(*RECIPE), own),
        ):
            yield Variant(f"{count:,} captioned: {name}", alone, weights, options=options, **few)


def sizes(_) -> Iterator[Variant]:
    """Width and layers of decoder and mixer, one at a time."""
    base = {"embed_dim": 128, "layers": 2, "mixer_layers": 1}
    change = [
        {},
        {"embed_dim": 64},
        {"embed_dim": 96},
        {"embed_dim": 192},
        {"embed_dim": 256},
        {"layers": 1},
        {"layers": 4},
    ]
    for one in (*change, {"mixer_layers": 0}, {"mixer_layers": 2}):
        yield Variant(shape(base | one), shape(base), weigh(*RECIPE), base | one)


def shape(student: dict) -> str:
    """A size as its name."""
    return "width {embed_dim}, layers {layers}, mixer {mixer_layers}".format(**student)


def temperature(_) -> Iterator[Variant]:
    """Temperature, then one weight of the recipe at a time."""
    recipe = weigh(*RECIPE)
    yield Variant("recipe", "recipe", recipe)
    for value in (0.5, 2.0, 4.0):
        yield Variant(f"temperature {value:g}", "recipe", recipe, options={"temperature": value})
    for name, values in {"kl": (0.3, 3.0, 10.0), "features": (3.0, 10.0, 30.0, 300.0)}.items():
        for value in values:
            yield Variant(f"{name} weighs {value:g}", "recipe", {**recipe, name: value})


EXPERIMENTS = {function.__name__: function for function in (losses, labels, sizes, temperature)}


@dataclass
class Bench:
    """What all runs share: networks, clips and training settings. folder: for maps and targets, computed once."""

    folder: Path
    clips: int = 3000
    steps: int = 450
    scored: int = 500
    batch: int = 32
    captions: int = 2
    lr: float = 8e-3
    teacher: GenerativeImageTextTeacher | None = None
    backbone: TinyVIT | None = None
    max_length: int = 24
    image: dict = field(default_factory=dict)
    student: dict = field(default_factory=dict)

    def __post_init__(self):
        self.teacher = self.teacher or GenerativeImageTextTeacher.from_pretrained("glyphs")
        self.backbone = SeenBackbone.copy_of(self.backbone or TinyVIT.from_pretrained("glyphs"))
        self.known = {name: value.clone() for name, value in self.backbone.state_dict().items()}

    @property
    def sizes(self) -> dict:
        """Of the splits, for `GlyphData`."""
        scored = {"test_clips": self.scored, "unseen_clips": self.scored, "val_clips": 1}
        return {"train_clips": self.clips, "batch_size": self.batch, **scored, **self.image}

    @cached_property
    def maps(self) -> dict[str, SeenClips]:
        plain = GlyphData(**self.sizes)
        sets = (plain.train_set, plain.test_set, plain.unseen_set)
        return {clips.split: SeenClips(clips, self.backbone, self.folder) for clips in sets}

    @cached_property
    def cache(self) -> TeacherCache:
        """The teacher's targets for all variants."""
        pairs = layer_pairs(self.teacher, self.new_student({}), None)
        pairs = [pair for pair in pairs if pair.term in WEIGHTS]
        spec = TargetSpec(
            image_features=tuple(dict.fromkeys(pair.teacher for pair in pairs if pair.of_image)),
            text_features=tuple(dict.fromkeys(pair.teacher for pair in pairs if not pair.of_image)),
            attention=True,
            pseudo_captions=1,
        )
        data = GlyphData(**self.sizes, fresh_captions=False, max_tokens=self.max_length)
        return TeacherCache.build(self.folder / "teacher", self.teacher, data, spec)

    def new_student(self, options: dict) -> StudentCandidateV1:
        """A new student over the frozen backbone, whose weights are reset to the pretrained ones."""
        self.backbone.load_state_dict(self.known)
        options = {"num_frames": self.image.get("num_frames", 4), **self.student, **options}
        return StudentCandidateV1.like(self.teacher, backbone=self.backbone, **options)

    def data(self, variant: Variant, seed: int) -> SeenData:
        only = variant.labelled if variant.only else None
        own = {
            "labelled": variant.labelled,
            "captions_per_clip": self.captions,
            "max_tokens": self.max_length,
        }
        return SeenData(self.maps, only, seed, **self.sizes, **own)

    def settings(self) -> dict:
        """Columns that are the same in all rows of a table."""
        return {"clips": self.clips, "steps": self.steps, "scored": self.scored}


def train(bench: Bench, variant: Variant, seed: int, timed: bool = False) -> dict:
    """One run: the row of the table, scores on test clips and on clips with unseen pairs; `timed`: see `latency`."""
    pl.seed_everything(seed, verbose=False)
    student = bench.new_student(variant.student)
    steps = max(1, round(variant.share * bench.steps))
    weights = dict.fromkeys((*WEIGHTS, "visual"), 0.0) | variant.weights
    module = SeenDistillation(
        bench.teacher,
        student,
        **weights,
        **variant.options,
        cache=bench.cache,
        lr=bench.lr,
        freeze=steps,
        max_length=bench.max_length,
    )
    data = bench.data(variant, seed)
    trainer = quiet(max_steps=steps, gradient_clip_val=1.0, limit_val_batches=0)
    start = time.perf_counter()
    trainer.fit(module, data)
    seconds = time.perf_counter() - start
    row = {"name": variant.name, "against": variant.against, "seed": seed, **bench.settings()}
    row |= {"parameters": count(student), "seconds": seconds}
    if timed:
        row |= latency(bench, student)
    return row | scores(trainer, module, data)


def score_teacher(bench: Bench) -> dict:
    """The teacher's row."""
    module = CaptionTrainer(bench.teacher.model, bench.teacher.tokenizer, max_length=bench.max_length)
    row = {"name": "teacher", "against": "", "seed": 0, **bench.settings()}
    row |= {"parameters": count(bench.teacher.model), "seconds": 0.0}
    return row | scores(quiet(), module, GlyphData(**bench.sizes))


def quiet(**options) -> pl.Trainer:
    """A trainer that writes nothing anywhere."""
    silent = dict.fromkeys(
        ("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False
    )
    return pl.Trainer(**silent, **options)


def scores(trainer: pl.Trainer, module: pl.LightningModule, data: pl.LightningDataModule) -> dict[str, float]:
    """Everything that `trainer.test` logs of both splits, the progress bar's copies left out."""
    found = trainer.test(module, data, verbose=False)
    return {name: value for part in found for name, value in part.items() if "/" in name}


def count(module: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def latency(bench: Bench, student: StudentCandidateV1, clips: int = 16) -> dict[str, float]:
    """Median milliseconds of a greedy caption, one clip at a time and all at once, of student and teacher.

    The two take turns, so that other work on the machine slows down both.
    """
    test = GlyphData(**bench.sizes).test_set
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
        rows.append(row)
        rows.sort(
            key=lambda row: (order.index(row["name"]) if row["name"] in order else len(order), row["seed"])
        )
        write_rows(path, rows)
        say(
            f"{number} of {len(todo)}: {variant.name}, seed {seed}: CIDEr {row['test/cider']:.2f}, "
            f"motions right {row['test/motion_precision']:.2f}, {row['seconds']:.0f} s"
        )
    return rows


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("experiment", choices=EXPERIMENTS)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--only", default="", metavar="TEXT", help="variants with this in their name")
    parser.add_argument("--steps", type=int, default=Bench.steps)
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
            bench = Bench(folder, options.clips, options.steps, options.scored)
            run(bench, options.experiment, options.seeds, options.out, options.only)
        print(table(options.out, options.experiment))
        draw(options.out, options.experiment)
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
