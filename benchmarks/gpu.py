"""What one NVIDIA card makes of this package: parity with the CPU, captions, training, compiling and CUDA graphs.

    python benchmarks/gpu.py                        writes runs/gpu.json and gpu.md after each case
    python benchmarks/gpu.py --minutes 3 --out DIR  cases that no longer fit are named as skipped
    python benchmarks/gpu.py --small                tiny networks, also on a CPU: shows that every case runs

All weights and pixels are random, nothing is downloaded. Times are medians of whole calls after two to warm up, with
the card idle before and after. `share of peak` compares the floating-point operations that torch counts with those of
a large matrix product, measured here. A case that fails is reported with its error, and the others run.
"""

import argparse
import copy
import gc
import json
import statistics
import sys
import tempfile
import time
import warnings
from contextlib import nullcontext
from functools import cache, partial
from importlib.util import find_spec
from itertools import product
from pathlib import Path
from unittest.mock import MagicMock, patch

import pytorch_lightning as pl
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import GitConfig

sys.path.append(str(Path(__file__).resolve().parents[1]))  # where gitdistill is not installed

# What draws figures and scores captions is imported with the rest but not used here: a machine may lack it.
for unused in ("matplotlib.figure", *(f"pycocoevalcap.{x}.{x}" for x in ("bleu", "cider", "rouge"))):
    if find_spec(unused.split(".")[0]) is None:
        sys.modules[unused] = MagicMock()

# ruff: noqa: E402
from decoding import BEAMS, FRAMES, NEW, ROOT, machine, ours, twins

from gitdistill import DistillationTrainer, GenerativeImageTextTeacher, StudentCandidateV1, TinyVIT
from gitdistill.decoding import loop
from gitdistill.models.storage import first_line, write_whole
from gitdistill.use.device import samples, self_test
from gitdistill.world import ToyboxData
from gitdistill.world.module import toybox_tokenizer
from gitdistill.world.pretrain import toybox_git_config

LARGE = {"patch_size": 14, "hidden_size": 1024, "intermediate_size": 4096}
LARGE |= {"num_hidden_layers": 24, "num_attention_heads": 16}  # CLIP ViT-L/14; the decoder is git-base's
FULL, HALF, _ = TYPES = torch.float32, torch.bfloat16, torch.float16


class Bench:
    """The sizes of a run; each method below `timed` measures one case and returns its numbers."""

    def __init__(self, device: torch.device, small: bool):
        self.device, self.small, self.repeats, self.peak = device, small, 1 if small else 5, {}
        self.batches = (2,) if small else (1, 16, 64)
        large = GitConfig(vision_config=LARGE, num_image_with_embedding=6)
        sizes = {"base": GitConfig(num_image_with_embedding=6), "large": large}
        self.configs = {"tiny": toybox_git_config(6, 32, 16, 32, 2, 2)} if small else sizes
        self.pair, self.reference = cache(self.pair), cache(self.reference)

    def cases(self):
        """(part, case, seconds that it may take, function)."""
        first = next(iter(self.configs))
        for dtype in TYPES:
            yield "peak", str(dtype), 5, partial(self.matmul, dtype)
        yield "parity", "self-test", 10, lambda: {"differs": self_test(self.device) or "no"}
        for number, network in enumerate(("GIT", "student")):
            for dtype in TYPES:
                yield "parity", f"{network}, {dtype}", 30, partial(self.parity, number, dtype)
            yield "parity", f"{network}, float32 without TF32", 10, partial(self.parity, number, FULL, False)
        for every in (1, 4, NEW):
            yield "captions", f"a look every {every} steps", 10, partial(self.looks, first, every)
        for size, (kind, frames), batch in product(self.configs, FRAMES.items(), self.batches):
            case = partial(self.captions, size, frames, batch)
            yield "captions", f"{size}, {kind}, batch {batch}", 20, case
        for precision, cached in product(("32-true", "bf16-mixed"), (False, True)):
            yield "training", f"{precision}, {cached=}", 45, partial(self.training, precision, cached)
        card = self.device.type == "cuda"
        hows = ["CUDA graph", "compile", "compile, reduce-overhead"] if card else ["compile"]
        for how, what, batch in product(hows, ("encoder", "step", "caption"), self.batches[::2]):
            if (
                what != "caption" or how == "CUDA graph"
            ):  # its steps differ in shape: compiling all takes minutes
                case = partial(self.faster, first, what, how, batch)
                yield "faster", f"{what}, batch {batch}, {how}", 60, case

    def pair(self, size: str):
        """transformers' GIT and ours with the same weights, in bfloat16 on the device."""
        return [network.to(self.device, HALF) for network in twins(self.configs[size])]

    def pixels(self, size: str, frames: int | None, batch: int):
        side = self.configs[size].vision_config.image_size
        return torch.randn(batch, *([frames] if frames else []), 3, side, side).to(self.device, HALF)

    def timed(self, function) -> float:
        """Milliseconds of a call."""
        spent = []
        for _ in range(2 + self.repeats):
            start = idle_time(self.device)
            function()
            spent.append(idle_time(self.device) - start)
        return 1000 * statistics.median(spent[2:])

    def share(self, function, milliseconds: float):
        with FlopCounterMode(display=False) as counter:
            function()
        return counter.get_total_flops() / milliseconds / 1e9 / self.peak.get(HALF, float("nan"))

    def matmul(self, dtype):
        side = 128 if self.small else 8192
        matrix = torch.randn(side, side, device=self.device).to(dtype)
        self.peak[dtype] = 2 * side**3 / self.timed(lambda: matrix @ matrix) / 1e9
        return {"TFLOP/s": self.peak[dtype]}

    def reference(self, number: int):
        """A network and its inputs on the CPU, and what they give in float32."""
        if self.small:
            _, model, frames, tokens = samples()[number]
        else:
            git = twins(self.configs["base"])[1]
            model = (
                git if number == 0 else StudentCandidateV1.like(git, backbone=TinyVIT(), num_frames=6).eval()
            )
            frames, tokens = torch.randn(2, 6, 3, 224, 224), torch.randint(1000, 30000, (2, 12))
        return model, frames, tokens, results(model, frames, tokens)

    def parity(self, number: int, dtype, tf32: bool = True):
        """The difference of logits in standard deviations, and shares of equal words, against the CPU."""
        model, frames, tokens, (expected, *captions) = self.reference(number)
        there = copy.deepcopy(model).to(self.device, dtype)
        exact = torch.backends.cudnn.flags(enabled=True, allow_tf32=False)  # convolutions use TF32 otherwise
        with nullcontext() if tf32 else exact:
            found, *others = results(there, frames.to(self.device), tokens.to(self.device))
        row = {"logits off by": off(found, expected)}
        row["same next words"] = same(found.argmax(-1), expected.argmax(-1))
        return row | {f"same, beams {k}": same(a, b) for k, a, b in zip(BEAMS, captions, others)}

    def captions(self, size: str, frames: int | None, batch: int):
        """Greedy captions here and by `generate`, in milliseconds, and the share of their words that are equal."""
        (port, model), pixels = self.pair(size), self.pixels(size, frames, batch)
        start = torch.full((batch, 1), model.bos_token_id, device=self.device)
        length = {"max_length": NEW + 1, "min_length": NEW + 1, "do_sample": False}
        mine, theirs = (
            partial(ours, model, pixels, 1),
            partial(port.generate, start, pixel_values=pixels, **length),
        )
        tokens, row = mine(), {"ms": self.timed(mine)}
        row["share of peak"] = self.share(mine, row["ms"])
        for name, call in {
            "generate": theirs,
            "static": partial(theirs, cache_implementation="static"),
        }.items():
            try:
                row |= {f"{name}: same": same(call(), tokens), f"{name}: ms": self.timed(call)}
                row[f"{name}: times"] = row[f"{name}: ms"] / row["ms"]
            except Exception as error:  # whatever it lacks for GIT
                row[f"{name}: error"] = first_line(error)
        return row

    def looks(self, size: str, every: int):
        """What looking at results costs: milliseconds, and how often torch sees the host wait for the card."""
        mine = partial(ours, self.pair(size)[1], self.pixels(size, None, self.batches[0]), 1)
        with (
            patch.dict(loop.CHECK_EVERY, {self.device.type: every}),
            warnings.catch_warnings(record=True) as seen,
        ):
            row = {"ms": self.timed(mine)}
            if self.device.type == "cuda":
                warnings.simplefilter("always")
                torch.cuda.set_sync_debug_mode("warn")
                try:
                    mine()
                finally:
                    torch.cuda.set_sync_debug_mode("default")
                row["waits"] = sum("synchroniz" in str(warning.message) for warning in seen)
        return row

    def training(self, precision: str, cached: bool):
        """Milliseconds of a step, by Lightning, of a student that learns from a GIT of git-base's size."""
        side, batch, steps = (32, 2, 2) if self.small else (224, 32, 6)
        config = toybox_git_config(2, side, 16, *((32, 2, 2) if self.small else (768, 12, 6)))
        teacher = GenerativeImageTextTeacher(twins(config)[1], toybox_tokenizer())
        backbone = samples()[1][1].backbone if self.small else TinyVIT()
        student = StudentCandidateV1.like(teacher, backbone=backbone)
        options = {"batch_size": batch, "num_frames": 2, "image_size": side, "fresh_captions": False}
        data, clock = ToyboxData(batch * steps, **options), Clock(self.device)
        quiet = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar"), False)
        quiet |= {"enable_model_summary": False, "limit_val_batches": 0, "devices": 1, "callbacks": [clock]}
        with tempfile.TemporaryDirectory() as folder, torch.enable_grad():
            cache = Path(folder) / "cache" if cached else None
            module = DistillationTrainer(teacher, student, teacher_dtype="auto", cache=cache)
            kind = "gpu" if self.device.type == "cuda" else "cpu"
            pl.Trainer(accelerator=kind, max_steps=steps, precision=precision, **quiet).fit(module, data)
        return {"ms": 1000 * statistics.median(clock.spent[1:]), "clips": batch}

    def faster(self, size: str, what: str, how: str, batch: int):
        """A part as it is, and compiled or as one CUDA graph: milliseconds, and how far its result moves."""
        model, pixels = self.pair(size)[1], self.pixels(size, None, batch)
        start = torch.full((batch, 1), model.bos_token_id, device=self.device)
        halfway = model.decode_step(start.expand(-1, NEW // 2), model.prefill(pixels))[1]

        def caption():
            cache, word = model.prefill(pixels), start
            for _ in range(NEW):
                logits, cache = model.decode_step(word, cache)
                word = logits[:, -1:].argmax(-1)
            return logits

        parts = {"encoder": lambda: model.image_encoder(pixels), "caption": caption}
        eager = (parts | {"step": lambda: model.decode_step(start, halfway)[0]})[what]
        expected, began = eager(), time.perf_counter()
        if how == "CUDA graph":
            quick = graphed(eager)
        else:
            torch.compiler.reset()
            mode = "reduce-overhead" if "reduce" in how else None
            quick = torch.compile(eager, backend="eager" if self.small else "inductor", mode=mode)
        row = {"off by": off(quick(), expected), "made in s": time.perf_counter() - began}
        row |= {"eager ms": self.timed(eager), "ms": self.timed(quick)}
        return row | {"times": row["eager ms"] / row["ms"], "share of peak": self.share(eager, row["ms"])}


class Clock(pl.Callback):
    """Seconds of each training step, without the reading of data."""

    def __init__(self, device):
        self.device, self.spent = device, []

    def on_train_batch_start(self, *_):
        self.start = idle_time(self.device)

    def on_train_batch_end(self, *_):
        self.spent.append(idle_time(self.device) - self.start)


def idle_time(device) -> float:
    """The time in seconds, once the device has nothing left to do."""
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def results(model, frames, tokens):
    """Logits, greedy captions and those of beams."""
    return [
        model(frames, tokens).logits.float().cpu(),
        *(ours(model, frames, beams).cpu() for beams in BEAMS),
    ]


def off(found, expected) -> float:
    """The largest difference, in standard deviations of what is expected."""
    return ((found.float() - expected).abs().max() / expected.float().std()).item()


def same(one, other) -> float:
    return (one == other).float().mean().item()


def graphed(function):
    """`function` as one CUDA graph, which the card runs without the host."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):  # what is set up at a first call cannot be captured
        function()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        result = function()
    return lambda: (graph.replay(), result)[1]


def run(cases, device, minutes: float, save) -> list[dict]:
    """A row for each case: its numbers, its error, or that no time was left; `save` gets all rows after each."""
    rows, end = [], time.monotonic() + 60 * minutes
    for part, case, seconds, function in cases:
        row, began = {"part": part, "case": case}, time.monotonic()
        if began + seconds > end:
            row["skipped"] = "no time left"
        else:
            gc.collect()
            torch.cuda.empty_cache()  # nothing without a card
            torch.cuda.reset_peak_memory_stats() if device.type == "cuda" else None
            try:
                with torch.no_grad():
                    row |= function()
            except Exception as error:  # the others still run
                row["error"] = f"{type(error).__name__}: {first_line(error)}"
            row |= {"MB": torch.cuda.max_memory_allocated() / 2**20} if device.type == "cuda" else {}
        rows.append(row)
        save(rows)
    return rows


def line(row: dict) -> str:
    cells = (f"{k} {v:.4g}" if isinstance(v, float) else f"{k} {v}" for k, v in list(row.items())[2:])
    return f"| {row['part']} | {row['case']} | {' · '.join(cells)} |"


def main(arguments=None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=8)
    parser.add_argument("--small", action="store_true")
    parser.add_argument("--out", type=Path, default=ROOT / "runs")
    options = parser.parse_args(arguments)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if device.type == "cpu" and not options.small:
        parser.error("there is no NVIDIA card; --small runs on a CPU")
    known = machine() | {"card": torch.cuda.get_device_name() if device.type == "cuda" else None}
    heading = f"{known}\n\n| part | case | result |\n|---|---|---|"

    def save(rows):
        text = json.dumps({"machine": known, "rows": rows}, indent=1) + "\n"
        write_whole(options.out, {"gpu.json": lambda path: path.write_text(text)})
        page = "\n".join([heading, *map(line, rows)]) + "\n"
        write_whole(options.out, {"gpu.md": lambda path: path.write_text(page)})
        print(line(rows[-1]), flush=True)

    print(heading)
    run(Bench(device, options.small).cases(), device, options.minutes, save)
    return 0


if __name__ == "__main__":
    sys.exit(main())
