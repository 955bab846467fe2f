"""How long a caption takes: transformers' `generate` against this package, same weights, same pixels, one run.

    python benchmarks/decoding.py               writes benchmarks/decoding.json and .png, and the README's table
    python benchmarks/decoding.py --out runs    writes elsewhere and leaves the README alone

GIT of git-base's size with random weights captions random pixels: an image, and a clip of six frames; greedy and
with four beams; one at a time and four at once; always 20 new tokens, since the captions of random weights end
nowhere. Both must choose the same tokens. Their runs alternate, and so do those of the floor, which no decoder of
this kind can go below: one pass of the image encoder, one of the image through the decoder, and the bare matrix
products of the text's steps. Ratios are of medians.

Then the embedded teacher, in half the precision: how far its logits move, and how many of its captions. And the image
encoder of git-base's size through `torch.compile`, which needs a C++ compiler (without one that row is missing).
"""

import argparse
import copy
import ctypes
import gc
import json
import os
import platform
import re
import statistics
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import torch
import transformers
from matplotlib.figure import Figure
from transformers import GitConfig, GitForCausalLM

from gitdistill import GenerativeImageTextTeacher
from gitdistill.decoding import beam
from gitdistill.models import checkpoints
from gitdistill.models.git import GenerativeImageTextModel
from gitdistill.models.storage import write_whole
from gitdistill.world.scenes import Clips

ROOT = Path(__file__).resolve().parents[1]

FRAMES, NEW, BEAMS = {"image": None, "6 frames": 6}, 20, (1, 4)
PARTS = {"encode": "#0072B2", "prefix": "#56B4E9", "steps": "#E69F00", "search": "#009E73"}


def twins(config: GitConfig) -> tuple[GitForCausalLM, GenerativeImageTextModel]:
    """transformers' model and ours with the same random weights."""
    torch.manual_seed(0)
    port = GitForCausalLM(config).eval()
    for name, parameter in port.named_parameters():
        if "temporal" in name:  # zeros at the start
            torch.nn.init.normal_(parameter, std=0.02)
    ours = GenerativeImageTextModel(port.config)
    weights = {checkpoints.rename(name, "transformers", "here"): t for name, t in port.state_dict().items()}
    ours.load_state_dict(weights)
    return port, ours.eval()


class Timed:
    """A model behind the protocol of `gitdistill.decoding` that measures its parts, in seconds."""

    def __init__(self, model):
        self.model, self.seconds = model, dict.fromkeys(PARTS, 0.0)

    def __getattr__(self, name):
        return getattr(self.model, name)

    @contextmanager
    def part(self, name):
        start = time.perf_counter()
        yield
        self.seconds[name] += time.perf_counter() - start

    def prefill(self, frames):
        with self.part("encode"):
            features = self.model.encode(frames)
        with self.part("prefix"):
            return self.model.read_image(features)

    def decode_step(self, tokens, cache):
        with self.part("steps"):
            return self.model.decode_step(tokens, cache)


def theirs(port, pixels, beams):
    """Tokens of `generate`."""
    start = torch.full((len(pixels), 1), port.config.bos_token_id)
    length = {"max_length": NEW + 1, "min_length": NEW + 1}
    return port.generate(pixel_values=pixels, input_ids=start, num_beams=beams, do_sample=False, **length)


def ours(model, pixels, beams):
    """Tokens found by this package."""
    return beam(model, pixels, beams, NEW + 1, min_length=NEW + 1).tokens[:, 0]


@torch.no_grad()
def floor(model, pixels, beams) -> None:
    """The work that is left when everything else costs nothing."""
    shared = model.read_image(model.encode(pixels)).shared
    clips, width = len(pixels), model.config.hidden_size
    for step in range(NEW):
        rows = 1 if step == 0 else beams
        x = torch.zeros(clips, rows, width)
        for layer, (keys, values) in zip(model.layers, shared):
            attention = layer.attention
            queries = attention.split(attention.query(x))
            attention.key(x), attention.value(x)
            scores = queries @ keys.transpose(-1, -2)
            text = queries.new_zeros(clips, attention.heads, rows * (step + 1), queries.shape[-1])
            (queries @ text.transpose(-1, -2)) @ text
            attention.output((scores @ values).transpose(1, 2).flatten(2))
            layer.feed_forward.down(layer.feed_forward.up(x))
        model.head(x)


def compare(port, model, pixels, beams, repeats) -> dict:
    """One row of the table: medians in seconds, ratios, the share of each part."""
    seconds = {"theirs": [], "ours": [], "floor": []}
    parts = {name: [] for name in PARTS}

    def measure(name, function, *arguments):
        start = time.perf_counter()
        result = function(*arguments, pixels, beams)
        seconds[name].append(time.perf_counter() - start)
        return result

    for _ in range(repeats):
        timed = Timed(model)
        expected, found = measure("theirs", theirs, port), measure("ours", ours, timed)
        measure("floor", floor, model)
        if not torch.equal(expected, found):
            raise AssertionError(f"different tokens with {beams} beams: {expected.tolist()} {found.tolist()}")
        timed.seconds["search"] = seconds["ours"][-1] - sum(timed.seconds.values())
        for name, value in timed.seconds.items():
            parts[name].append(value)
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    return {
        "seconds": medians,
        "all_seconds": seconds,
        "faster": medians["theirs"] / medians["ours"],
        "over_floor": medians["ours"] / medians["floor"],
        "parts": {name: statistics.median(values) for name, values in parts.items()},
    }


def memory(function, *arguments) -> float | None:
    """Megabytes that a call needs at its peak beyond what was there before; None where Linux does not tell.

    The less of two calls: the first one after others may also pay for what the allocator keeps.
    """
    status, clear = Path("/proc/self/status"), Path("/proc/self/clear_refs")

    def read(field):
        return int(re.search(rf"{field}:\s+(\d+) kB", status.read_text())[1]) / 1024

    found = []
    gc.collect()
    for _ in range(2):
        try:
            ctypes.CDLL("libc.so.6").malloc_trim(0)
            clear.write_text("5")  # the peak starts anew
            before = read("VmRSS")
        except OSError:
            return None
        function(*arguments)
        found.append(read("VmHWM") - before)
    return min(found)


def run(config: GitConfig, batches, repeats, progress=print) -> dict:
    """All comparisons, as they go into the JSON file."""
    port, model = twins(config)
    size, rows = config.vision_config.image_size, []
    for kind, frames in FRAMES.items():
        for batch in batches:
            shape = (batch, 3, size, size) if frames is None else (batch, frames, 3, size, size)
            pixels = torch.randn(shape, generator=torch.Generator().manual_seed(1))
            for beams in BEAMS:
                row = {"input": kind, "batch": batch, "beams": beams}
                row |= compare(port, model, pixels, beams, repeats)
                row["megabytes"] = {
                    "theirs": memory(theirs, port, pixels, beams),
                    "ours": memory(ours, model, pixels, beams),
                }
                rows.append(row)
                progress(
                    "{input}, batch {batch}, beams {beams}: {faster:.2f} x, {over_floor:.2f} floors".format(
                        **row
                    )
                )
    return {"machine": machine(), "new_tokens": NEW, "repeats": repeats, "rows": rows}


def precision(clips=200) -> list[dict]:
    """The embedded teacher in float32, bfloat16 and, on a GPU, float16, on test clips of the embedded world.

    drift, spread: mean change of the logits along float32's greedy captions, and their standard deviation.
    same_K: share of captions that stay word for word, with K beams. `formats.py` measures the time.
    """
    device = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    frames = torch.stack([clip.frames for clip in Clips("test", clips)]).to(device)
    rows, reference = [], {}
    for dtype in (torch.float32, torch.bfloat16, torch.float16)[: 2 if device == "cpu" else 3]:
        teacher = GenerativeImageTextTeacher.from_pretrained("toybox", device=device, dtype=dtype)
        row = {"dtype": str(dtype).removeprefix("torch."), "device": device}
        for beams in BEAMS:
            captions = teacher.caption(frames, beams=beams, max_length=teacher.max_positions)
            same = [one == other for one, other in zip(captions, reference.setdefault(beams, captions))]
            row[f"same_{beams}"] = sum(same) / clips
        tokens = teacher.tokenizer(reference[1], padding=True, return_tensors="pt").input_ids.to(device)
        logits = teacher(frames, tokens).logits.float()[tokens != teacher.pad_token_id]
        expected = reference.setdefault("logits", logits)
        row |= {"drift": (logits - expected).abs().mean().item(), "spread": expected.std().item()}
        rows.append(row)
    return rows


@torch.no_grad()
def compiled(config: GitConfig, batches, repeats, progress=print) -> list[dict]:
    """The image encoder as it is and compiled, in turn: seconds, how far the features move, seconds of compiling."""
    torch.manual_seed(0)
    eager, size = GenerativeImageTextModel(config).eval().image_encoder, config.vision_config.image_size
    faster = copy.deepcopy(eager)
    faster.compile()
    rows = []
    for batch in batches:
        pixels, spent = torch.randn(batch, 3, size, size), {"eager": [], "compiled": []}
        start = time.perf_counter()
        try:
            found = faster(pixels)
        except torch._dynamo.exc.TorchDynamoException as error:
            progress(f"nothing is compiled here: {str(error).splitlines()[0]}")
            return []
        row = {"batch": batch, "compiling": time.perf_counter() - start}
        for _ in range(1 + repeats):
            for name, model in (("eager", eager), ("compiled", faster)):
                start = time.perf_counter()
                model(pixels)
                spent[name].append(time.perf_counter() - start)
        expected = eager(pixels)
        row |= {"drift": (found - expected).abs().mean().item(), "spread": expected.std().item()}
        rows.append(row | {name: statistics.median(values[1:]) for name, values in spent.items()})
    return rows


def machine() -> dict:
    """What the numbers were measured on."""
    cpu = Path("/proc/cpuinfo")
    name = re.search(r"model name\s*: (.+)", cpu.read_text()) if cpu.exists() else None
    return {
        "cpu": name[1] if name else platform.processor(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }


def figure(result: dict) -> Figure:
    """Seconds a clip: `generate` in grey, this package's parts stacked beside it, the floor as a line."""
    rows = result["rows"]
    picture = Figure(figsize=(11, 4), dpi=80, layout="constrained")
    for axis, kind in zip(picture.subplots(1, len(FRAMES)), FRAMES):
        chosen = [row for row in rows if row["input"] == kind]
        for i, row in enumerate(chosen):
            batch, bottom = row["batch"], 0.0
            axis.bar(i - 0.2, row["seconds"]["theirs"] / batch, 0.38, color="#999999", label="generate")
            for name, color in PARTS.items():
                height = row["parts"][name] / batch
                axis.bar(i + 0.2, height, 0.38, bottom, color=color, label=name)
                bottom += height
            level = row["seconds"]["floor"] / batch
            axis.plot([i, i + 0.4], [level, level], color="black", label="floor")
            axis.text(i + 0.2, bottom, f"{row['faster']:.1f}×", ha="center", va="bottom")
        names = [f"{search(row)}\nbatch {row['batch']}" for row in chosen]
        axis.set(xticks=range(len(chosen)), xticklabels=names, ylabel="seconds per clip", title=kind)
        axis.spines[["top", "right"]].set_visible(False)
    handles, labels = axis.get_legend_handles_labels()
    axis.legend(*zip(*dict(zip(labels, zip(handles, labels))).values()), frameon=False)
    return picture


def cores(result: dict) -> str:
    """How many cores of which processor a result was measured on."""
    threads = result["machine"]["threads"]
    return f"{threads} core{'s' * (threads > 1)} of {result['machine']['cpu']}"


def search(row) -> str:
    return "greedy" if row["beams"] == 1 else f"{row['beams']} beams"


def table(result: dict) -> list[str]:
    """The README's lines."""
    lines = [
        f"| {result['new_tokens']} tokens on {cores(result)} | `generate` | gitdistill "
        "| faster | of the floor | encode · prefix · steps · search |",
        "|---|---|---|---|---|---|",
    ]
    for row in result["rows"]:
        seconds, parts = row["seconds"], row["parts"]
        shares = " · ".join(f"{parts[name] / sum(parts.values()):.0%}" for name in PARTS)
        cells = [
            f"{row['input']}, {search(row)}, batch {row['batch']}",
            f"{seconds['theirs']:.2f} s",
            f"{seconds['ours']:.2f} s",
            f"{row['faster']:.1f}×",
            f"{row['over_floor']:.2f}×",
            shares,
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return lines


def precision_table(rows: list[dict]) -> list[str]:
    """The README's lines on half precision."""
    lines = [
        f"| embedded teacher on {rows[0]['device']} | logits move by | greedy captions unchanged "
        "| with 4 beams |",
        "|---|---|---|---|",
    ]
    for row in rows[1:]:
        cells = [
            row["dtype"],
            f"{row['drift'] / row['spread']:.1%} of their spread",
            f"{row['same_1']:.1%}",
            f"{row['same_4']:.1%}",
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return lines


def compiled_table(result: dict) -> list[str]:
    """The README's lines on compiling."""
    title = f"| image encoder on {cores(result)} | as it is | compiled | ratio | compiling took |"
    lines = [title, "|---|---|---|---|---|"]
    for row in result["compiled"]:
        cells = [
            f"batch {row['batch']}",
            f"{1000 * row['eager']:.0f} ms",
            f"{1000 * row['compiled']:.0f} ms",
            f"{row['compiled'] / row['eager']:.2f}×",
            f"{row['compiling']:.0f} s",
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return lines


def tables(result: dict) -> dict[str, list[str]]:
    """The README's tables, by the name in their markers."""
    return {
        "decoding": table(result),
        "precision": precision_table(result["precision"]),
        "compiled": compiled_table(result),
    }


def write(result: dict, folder: Path) -> None:
    """decoding.json and decoding.png, both whole or neither."""
    writers = {
        "decoding.json": lambda path: path.write_text(json.dumps(result, indent=1) + "\n"),
        "decoding.png": lambda path: figure(result).savefig(path, format="png"),
    }
    write_whole(folder, writers)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="of torch; by default all cores")
    parser.add_argument("--repeats", type=int, default=5, help="runs of each, of which the median counts")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 4], help="clips at once")
    parser.add_argument("--out", type=Path, help="folder, in place of benchmarks/ and the README's table")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    result = run(GitConfig(num_image_with_embedding=6), options.batches, options.repeats)
    result["precision"] = precision()
    result["compiled"] = compiled(GitConfig(), options.batches, options.repeats)
    write(result, options.out or ROOT / "benchmarks")
    if options.out is None:
        fill_readme()
    return 0


def fill_readme() -> None:
    """Put the tables into the README files."""
    sys.path.append(str(ROOT / "tools"))
    from readme import fill  # which reads the tables above

    fill()


if __name__ == "__main__":
    sys.exit(main())
