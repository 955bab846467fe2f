"""How long a training step of distillation takes beside one of cross-entropy, with the teacher's targets in a cache.

    python benchmarks/step.py               writes benchmarks/step.json and prints the table
    python benchmarks/step.py --out runs    writes elsewhere

The embedded teacher trains a new student with the embedded backbone, on batches as in notebook 03. Each combination of
losses takes its step (forward, backward, optimiser) on the same batches in turn. Ratios are of medians. With the
backbone frozen, steps of both kinds are shorter and the ratio is larger.
"""

import argparse
import copy
import json
import statistics
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import torch
from decoding import cores, machine

from gitdistill import DistillationTrainer, GenerativeImageTextTeacher, StudentCandidateV1
from gitdistill.distillation.cache import TeacherCache
from gitdistill.distillation.caption_trainer import CaptionTrainer
from gitdistill.distillation.optim import MuonAdamW
from gitdistill.distillation.targets import TargetSpec
from gitdistill.models.storage import write_whole
from gitdistill.world import ToyboxData

ROOT = Path(__file__).resolve().parents[1]

RECIPE = ("kl", "features")
TERMS = ("kl", "features", "hidden", "visual", "attention", "relations", "sequence")
OFF = dict.fromkeys(TERMS, 0.0)
CASES = {
    "cross-entropy": None,
    "+ KL": ("kl",),
    "+ KL + features (the recipe)": ("kl", "features"),
    **{f"+ {name}": (name,) for name in TERMS[2:]},
    "all eight": TERMS,
    "the recipe, own captions for a quarter": (*RECIPE, 0.25),
    "the recipe, own captions for all": (*RECIPE, 1.0),
}


def all_targets(teacher, student) -> TargetSpec:
    """What all losses together need of a teacher."""
    return replace(
        DistillationTrainer(teacher, student, **dict.fromkeys(TERMS, 1.0)).spec, visual_features=True
    )


def step(module, optimizer, batch: dict) -> None:
    optimizer.zero_grad()
    sum(module.loss_terms(batch).values()).backward()
    torch.nn.utils.clip_grad_norm_(module.parameters(), 1.0)
    optimizer.step()


def measure(teacher, student, data: ToyboxData, folder: Path, batches: int, frozen: bool) -> list[dict]:
    """A row for each combination of losses: the median seconds of a step, and their ratio to cross-entropy alone."""
    cache = TeacherCache.build(folder, teacher, data, all_targets(teacher, student), say=lambda _: None)
    modules = {}
    for name, terms in CASES.items():
        own = copy.deepcopy(student)
        if terms is None:
            module = CaptionTrainer(own, teacher.tokenizer)
        else:
            *_, share = terms  # of own captions
            options = {"own_captions": share} if isinstance(share, float) else {}
            weights = OFF | {name: 1.0 for name in terms if name in TERMS}
            module = DistillationTrainer(teacher, own, **weights, **options, cache=cache)
        module.log_dict = lambda values: None  # there is no Trainer to log to
        if frozen:
            module.vision_encoder.requires_grad_(False).eval()
        modules[name] = module, MuonAdamW(module, 1e-3, 0.01)
    spent = {name: [] for name in modules}
    for number, batch in zip(range(1 + batches), data.train_dataloader()):
        for name, (module, optimizer) in modules.items():
            start = time.perf_counter()
            step(module, optimizer, batch)
            if number:  # the first one warms up
                spent[name].append(time.perf_counter() - start)
    seconds = {name: statistics.median(values) for name, values in spent.items()}
    alone = seconds["cross-entropy"]
    return [{"losses": name, "seconds": value, "times": value / alone} for name, value in seconds.items()]


def run(teacher, student, data: ToyboxData, batches: int) -> dict:
    """What goes into the JSON file."""
    with tempfile.TemporaryDirectory() as folder:
        rows = {
            name: measure(teacher, student, data, Path(folder) / "cache", batches, name == "frozen")
            for name in ("trained", "frozen")
        }
    return {"machine": machine(), "batch": data.batch_size, "batches": batches, "backbone": rows}


def table(result: dict) -> str:
    """Side by side, as lines of Markdown."""
    trained, frozen = (result["backbone"][name] for name in ("trained", "frozen"))
    title = f"| a step with a warm cache on {cores(result)} | all of the student learns | backbone frozen |"
    lines = [title, "|---|---|---|"]
    for one, other in zip(trained, frozen):
        cells = (f"{row['times']:.2f}× ({1000 * row['seconds']:.0f} ms)" for row in (one, other))
        lines.append(f"| {one['losses']} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--batches", type=int, default=20, help="steps of each, of which the median counts")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks")
    options = parser.parse_args()
    teacher = GenerativeImageTextTeacher.from_pretrained("toybox")
    torch.manual_seed(0)
    student = StudentCandidateV1.like(teacher, backbone="toybox").train()
    pool = 32 * (1 + options.batches)
    data = ToyboxData(train_clips=pool, fresh_captions=False, batch_size=32, captions_per_clip=2)
    result = run(teacher, student, data, options.batches)
    text = json.dumps(result, indent=1) + "\n"
    write_whole(options.out, {"step.json": lambda path: path.write_text(text)})
    print(table(result))
    return 0


if __name__ == "__main__":
    sys.exit(main())
