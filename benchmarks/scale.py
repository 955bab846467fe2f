"""What `FileData` takes of a set of COCO's size: seconds and memory to begin, memory of workers, clips a second.

    python benchmarks/scale.py                writes benchmarks/scale.json and prints the table
    python benchmarks/scale.py --clips 1000   a smaller set
    python benchmarks/scale.py --out runs     writes elsewhere

The set has the form of Karpathy's dataset_coco.json: 113,287 + 5,000 + 5,000 pictures, which are links to 200 JPEGs
of 640 x 480 pixels or so, each with five captions of random words. Each measure is taken in a process of its own. A
loader process counts with what it shares with no other, after it has handed out all clips of an epoch, whose frames
are not read for this. Rates are of one process and one thread, clips in a second of the processor, medians of rounds
in which the ways to read take turns: `FileData`; the bare loop of its operations, without captions; torchvision's
decoding and resizing. Linux alone tells the numbers of memory.
"""

import argparse
import json
import multiprocessing
import os
import re
import statistics
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torchvision.io import ImageReadMode, decode_jpeg, read_file
from torchvision.transforms.v2 import functional as tv

from gitdistill.data import FileData
from gitdistill.data.base import EpochSampler, Samples
from gitdistill.models.storage import write_whole
from gitdistill.world import toybox_tokenizer

PICTURES, SIZES = 200, ((640, 480), (640, 427), (480, 640), (500, 375))
CLIPS = {"train": 113_287, "val": 5_000, "test": 5_000}
CAPTIONS, WORDS = 5, (8, 14)  # of a clip, of a caption
SIDE, BATCH, WORKERS = 224, 32, 2


def write(folder: Path, clips: dict[str, int]) -> str:
    """The set, in `folder`; returns the path of its JSON file."""
    draw = np.random.RandomState(0)
    for number in range(PICTURES):
        width, height = SIZES[number % len(SIZES)]
        smooth = Image.fromarray(draw.randint(0, 256, (height // 16, width // 16, 3), np.uint8))
        pixels = smooth.resize((width, height)) + draw.normal(0, 16, (height, width, 1))
        image = Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))
        image.save(folder / f"{number}.original", "JPEG", quality=90)  # a suffix that is no picture's
    rows, splits = [], [split for split, count in clips.items() for _ in range(count)]
    vocabulary = np.array([word for word in toybox_tokenizer().get_vocab() if word.isalpha()])
    for number, split in enumerate(splits):
        place = "train2014" if split == "train" else "val2014"
        name = f"COCO_{place}_{number:012d}.jpg"
        (folder / place).mkdir(exist_ok=True)
        os.link(folder / f"{number % PICTURES}.original", folder / place / name)
        tokens = [draw.choice(vocabulary, draw.randint(*WORDS)).tolist() for _ in range(CAPTIONS)]
        numbers = range(number * CAPTIONS, (number + 1) * CAPTIONS)
        row = {"filepath": place, "filename": name, "imgid": number, "cocoid": number, "split": split}
        row["sentids"] = list(numbers)
        row["sentences"] = [
            {"tokens": words, "raw": " ".join(words), "imgid": number, "sentid": sentence}
            for words, sentence in zip(tokens, numbers)
        ]
        rows.append(row)
    (folder / "dataset_coco.json").write_text(json.dumps({"images": rows, "dataset": "coco"}))
    return str(folder / "dataset_coco.json")


def megabytes(field: str, process="self", file="status") -> float:
    """What Linux tells of a process, in MB."""
    text = Path(f"/proc/{process}/{file}").read_text()
    return sum(map(int, re.findall(rf"{field}:\s+(\d+) kB", text))) / 1024


def data(source: str, roles=tuple(CLIPS), **options) -> FileData:
    sizes = {"num_frames": 1, "image_size": SIDE, "batch_size": BATCH}
    return FileData(**dict.fromkeys(roles, source), tokenizer=toybox_tokenizer(), **sizes, **options)


def construct(source: str) -> dict:
    """Seconds, those of the processor, and MB that three roles take; MB beyond what the process had before."""
    toybox_tokenizer()
    before, start, spent = megabytes("VmRSS"), time.perf_counter(), time.process_time()
    made = data(source)
    seconds = {"seconds": time.perf_counter() - start, "cpu_seconds": time.process_time() - spent}
    peak, kept = megabytes("VmHWM"), megabytes("VmRSS")
    clips = {role: len(items) for role, items in made.sources.items()}
    return {"clips": clips, **seconds, "peak": peak, "beyond": peak - before, "kept": kept - before}


def workers(source: str) -> list[float]:
    """MB of each loader process's own after an epoch of unread clips."""
    multiprocessing.set_start_method("fork", force=True)  # as it is on Linux, in a process that was spawned
    made = data(source, workers=WORKERS)
    pool, count = made.pool, len(made.source("train"))
    pool.frames = lambda number, view=0: torch.zeros(1, 3, 1, 1, dtype=torch.uint8)
    loader = made.loader(Samples(pool.train, range(count)), EpochSampler(count, 0))
    seen = sum(len(batch["clip"]) for batch in loader)
    if seen != count:
        raise AssertionError(f"{seen} clips of {count}")
    processes = multiprocessing.active_children()
    return [megabytes("Private_(?:Clean|Dirty)", process.pid, "smaps_rollup") for process in processes]


def bare(paths: list[str]) -> torch.Tensor:
    """A batch of files: GIT's operations and no more."""
    frames = []
    for path in paths:
        with Image.open(path) as image:
            image = image.convert("RGB")
        short = min(image.size)
        image = image.resize([SIDE * side // short for side in image.size], Image.Resampling.BICUBIC)
        left, top = (round((side - SIDE) / 2) for side in image.size)
        pixels = np.array(image.crop((left, top, left + SIDE, top + SIDE)))
        frames.append(torch.from_numpy(pixels).permute(2, 0, 1))
    return torch.stack(frames)


def torchvisions(paths: list[str]) -> torch.Tensor:
    """The same with torchvision, whose resized pixels are others."""
    frames = (tv.resize(decode_jpeg(read_file(path), ImageReadMode.RGB), [SIDE]) for path in paths)
    return torch.stack([tv.center_crop(frame, [SIDE, SIDE]) for frame in frames])


def rates(source: str, batches: int, rounds: int) -> dict[str, float]:
    """Clips a second of each way to read."""
    torch.set_num_threads(1)
    made, fast = data(source, ["train"]), data(source, ["train"], resize="fast")
    paths = [item.path for item in made.source("train")]
    drawn = np.random.RandomState(0).randint(len(paths), size=(batches, BATCH))
    drawn = [[paths[number] for number in batch] for batch in drawn]
    ways = {
        "FileData": lambda: (batch["frames"] for batch in islice(made.train_dataloader(), batches)),
        'FileData, resize="fast"': lambda: (
            batch["frames"] for batch in islice(fast.train_dataloader(), batches)
        ),
        "bare loop": lambda: map(bare, drawn),
        "torchvision": lambda: map(torchvisions, drawn),
    }
    found = {name: [] for name in ways}
    for _ in range(1 + rounds):
        for name, way in ways.items():
            start = time.process_time()
            count = sum(len(frames) for frames in way())
            found[name].append(count / (time.process_time() - start))
    return {name: statistics.median(values[1:]) for name, values in found.items()}  # the first one warms up


def alone(function, *arguments):
    """What a function returns in a new process."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        return pool.submit(function, *arguments).result()


def run(folder: Path, clips: dict[str, int], batches: int, rounds: int) -> dict:
    """What goes into the JSON file."""
    from decoding import machine  # with transformers and plots, which the measured processes do without

    source = write(folder, clips)
    result = {"machine": machine(), "construct": alone(construct, source)}
    return result | {"workers": alone(workers, source), "rates": alone(rates, source, batches, rounds)}


def table(result: dict) -> list[str]:
    """The README's table."""
    made, rates = result["construct"], result["rates"]
    clips = " + ".join(f"{count:,}" for count in made["clips"].values())
    lines = [f"| {clips} clips on {result['machine']['cpu']} | |", "|---|---|"]
    lines.append(
        f"| all three roles are there after | {made['seconds']:.1f} s ({made['cpu_seconds']:.1f} s of the processor) |"
    )
    lines.append(f"| memory at the peak of that, beyond the imports | {made['beyond']:,.0f} MB |")
    own = ", ".join(f"{value:,.0f}" for value in result["workers"])
    lines.append(f"| own memory of loader processes after an epoch | {own} MB |")
    for name, rate in rates.items():
        lines.append(
            f"| clips a second, {name} | {rate:.0f} ({rate / rates['bare loop']:.0%} of the bare loop) |"
        )
    return lines


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--clips", type=int, default=CLIPS["train"], help="of training")
    parser.add_argument("--batches", type=int, default=3, help=f"of {BATCH} clips, read in a round")
    parser.add_argument(
        "--rounds", type=int, default=15, help="of each way to read, of which the median counts"
    )
    parser.add_argument("--folder", type=Path, help="an empty one for the set, which stays there")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent)
    options = parser.parse_args()
    clips = {split: -(-count * options.clips // CLIPS["train"]) for split, count in CLIPS.items()}
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.folder or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        result = run(folder, clips, options.batches, options.rounds)
    text = json.dumps(result, indent=1) + "\n"
    write_whole(options.out, {"scale.json": lambda path: path.write_text(text)})
    print("\n".join(table(result)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
