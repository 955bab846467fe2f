"""How much faster a student of real size is: a GIT as large as git-base and a TinyViT student, with random weights.

    python experiments/real_size.py                writes data/experiments/real_size.json and prints the table
    python experiments/real_size.py --threads 1    on one core

Both caption the same random 224-pixel images, greedily and with four beams, one at a time and four at once. All
captions have 20 new tokens, since the end token is made impossible. Their runs alternate; times are medians, ratios are
ratios of medians. The student's `vocab_subset` has 8,000 of the teacher's 30,522 words, typical of one data set.
"""

import argparse
import json
import os
import statistics
import sys
import time
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import GitConfig

from gitdistill import StudentCandidateV1, TinyVIT
from gitdistill.decoding import beam
from gitdistill.models.git import GenerativeImageTextModel
from gitdistill.models.storage import write_whole

ROOT = Path(__file__).resolve().parents[1]
sys.path.append(str(ROOT / "benchmarks"))
from decoding import cores, machine, memory  # noqa: E402  what the benchmark of decoding measures with

NEW, KNOWN, BEAMS = 20, 8000, (1, 4)


def networks(config: GitConfig, known: int, backbone: TinyVIT, **student) -> dict[str, nn.Module]:
    """A teacher and a student with random weights and the same vocabulary."""
    torch.manual_seed(0)
    special = {name: getattr(config, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    keep = list(range(known))
    options = {"vocab_subset": keep, "unk_token_id": 100, "num_frames": 1, **special, **student}
    student = StudentCandidateV1(config.vocab_size, backbone, **options)
    models = {"teacher": GenerativeImageTextModel(config).eval(), "student": student.eval()}
    for model, end in zip(models.values(), (config.eos_token_id, keep.index(config.eos_token_id))):
        model.head.bias.data[end] = -1e4
    return models


def caption(model: nn.Module, pixels: Tensor, beams: int) -> Tensor:
    return beam(model, pixels, beams, NEW + 1).tokens


def measure(models: dict[str, nn.Module], batches, repeats: int, size: int) -> list[dict]:
    """A row for each number of images at once and of beams: images a second, megabytes beyond the weights."""
    rows = []
    for batch in batches:
        pixels = torch.randn(batch, 3, size, size, generator=torch.Generator().manual_seed(1))
        for beams in BEAMS:
            spent = {name: [] for name in models}
            for turn in range(1 + repeats):
                for name, model in models.items():
                    start = time.perf_counter()
                    caption(model, pixels, beams)
                    if turn:  # the first one warms up
                        spent[name].append(time.perf_counter() - start)
            seconds = {name: statistics.median(values) for name, values in spent.items()}
            row = {"batch": batch, "beams": beams, "all_seconds": spent}
            row["images_per_second"] = {name: batch / value for name, value in seconds.items()}
            row["faster"] = seconds["teacher"] / seconds["student"]
            row["megabytes"] = {name: memory(caption, model, pixels, beams) for name, model in models.items()}
            rows.append(row)
    return rows


def weights(model: nn.Module) -> dict:
    """Number of parameters, and their size in megabytes."""
    number = sum(parameter.numel() for parameter in model.parameters())
    return {"parameters": number, "megabytes": sum(p.nbytes for p in model.parameters()) / 2**20}


def run(models: dict[str, nn.Module], batches, repeats: int, size: int) -> dict:
    """All measurements, as the JSON file holds them."""
    sizes = {name: weights(model) for name, model in models.items()}
    rows = measure(models, batches, repeats, size)
    return {"machine": machine(), "new_tokens": NEW, "repeats": repeats, "weights": sizes, "rows": rows}


def table(result: dict) -> str:
    """Side by side, as lines of Markdown."""
    teacher, student = (result["weights"][name] for name in ("teacher", "student"))
    lines = [
        f"| {result['new_tokens']} tokens on {cores(result)} | teacher | student | ratio |",
        "|---|---|---|---|",
        compared("parameters, millions", teacher["parameters"] / 1e6, student["parameters"] / 1e6),
        compared("weights, MB", teacher["megabytes"], student["megabytes"]),
    ]
    for row in result["rows"]:
        case = f"{'greedy' if row['beams'] == 1 else str(row['beams']) + ' beams'}, batch {row['batch']}"
        speed, room = row["images_per_second"], row["megabytes"]
        lines.append(compared(f"images a second, {case}", speed["teacher"], speed["student"], row["faster"]))
        if None not in room.values():
            lines.append(compared(f"memory beyond the weights, MB, {case}", room["teacher"], room["student"]))
    return "\n".join(lines)


def compared(what: str, teacher: float, student: float, ratio: float | None = None) -> str:
    if ratio is None:
        ratio = teacher / student if student else float("nan")
    return f"| {what} | {teacher:.3g} | {student:.3g} | {ratio:.1f}× |"


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="of torch; by default all cores")
    parser.add_argument("--repeats", type=int, default=9, help="runs of each, of which the median counts")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 4], help="images at once")
    parser.add_argument("--out", type=Path, default=ROOT / "data" / "experiments")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    models = networks(GitConfig(), KNOWN, TinyVIT("tiny_vit_5m_224"))
    result = run(models, options.batches, options.repeats, 224)
    text = json.dumps(result, indent=1) + "\n"
    write_whole(options.out, {"real_size.json": lambda path: path.write_text(text)})
    print(table(result))
    return 0


if __name__ == "__main__":
    sys.exit(main())
