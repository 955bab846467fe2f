"""One GIT in float32, bfloat16, ONNX and ONNX int8 against transformers' `generate`: time, tokens and size of files.

    python benchmarks/formats.py                writes benchmarks/formats.json and the README's table
    python benchmarks/formats.py --out runs     writes elsewhere and leaves the README alone

GIT of git-base's size for videos, with random weights, captions random pixels of one clip, with 20 new tokens. ONNX
files are what `python -m gitdistill onnx` writes, in a temporary folder. In each turn `generate` and all forms caption
the same pixels one after another. Seconds are of one thread and of the processor (`time.process_time`), so that other
work on the machine changes them little; ratios are of medians. float32 and ONNX must choose the tokens of `generate`;
of bfloat16 and int8 the share of equal tokens is counted, over other pixels in each turn.
"""

import argparse
import json
import statistics
import sys
import tempfile
import time
from copy import deepcopy
from pathlib import Path

import torch
from decoding import NEW, ROOT, fill_readme, machine, ours, theirs, twins
from transformers import BertTokenizerFast, GitConfig

from gitdistill import GenerativeImageTextTeacher
from gitdistill.models.storage import write_whole
from gitdistill.use.captioner import Captioner
from gitdistill.use.onnx import ENCODER, STEP, WEIGHTS, OnnxNetwork
from gitdistill.use.onnx_export import export

sys.path.append(str(ROOT / "experiments"))  # scripts, in no package
from smaller import processor  # noqa: E402

GENERATE, FULL, HALF = "`generate`, float32", "float32", "bfloat16"
ONNX = {"ONNX, float32": False, "ONNX, int8": True}  # name -> int8
EXACT = (FULL, "ONNX, float32")
CASES = {"1 frame, greedy": (1, 1), "1 frame, 4 beams": (1, 4), "6 frames, greedy": (6, 1)}  # frames, beams


def dummy_tokenizer(config: GitConfig) -> BertTokenizerFast:
    """A word for every number of `config`: an export needs a tokenizer, and random weights have none."""
    words = [f"word{number}" for number in range(config.vocab_size)]
    special = {"[PAD]": config.pad_token_id, "[CLS]": config.bos_token_id, "[SEP]": config.eos_token_id}
    for name, number in special.items():
        words[number] = name
    left = [number for number in range(config.vocab_size) if number not in special.values()]
    words[left[0]], words[left[1]] = "[UNK]", "[MASK]"
    return BertTokenizerFast(vocab={word: number for number, word in enumerate(words)})


def forms(model, folder: Path) -> tuple[dict, dict]:
    """The networks and the megabytes of their files, both by name; ONNX files go to `folder`, each weight once."""
    weights = sum(parameter.nbytes for parameter in model.parameters())
    networks, megabytes = {FULL: model, HALF: deepcopy(model).bfloat16()}, {FULL: weights, HALF: weights / 2}
    tokenizer = dummy_tokenizer(model.config)
    captioner = Captioner(GenerativeImageTextTeacher(model, tokenizer), tokenizer)
    for name, int8 in ONNX.items():
        export(captioner, folder / name, int8)
        sizes = {file: (folder / name / file).stat().st_size for file in (ENCODER, STEP, WEIGHTS)}
        if sizes[WEIGHTS] > 1.05 * weights:
            raise AssertionError(f"{name}: {sizes[WEIGHTS]:,} bytes of weights, not {weights:,}")
        networks[name], megabytes[name] = OnnxNetwork(folder / name), sum(sizes.values())
    return networks, {name: size / 1e6 for name, size in megabytes.items()}


def compare(port, networks: dict, frames: int, beams: int, repeats: int) -> dict:
    """Medians in seconds, how much faster than `generate`, and the share of its tokens, each by name."""
    runs = {GENERATE: (theirs, port)} | {name: (ours, network) for name, network in networks.items()}
    seconds, same = ({name: [] for name in runs} for _ in range(2))
    side = port.config.vision_config.image_size
    for turn in range(repeats):
        pixels = torch.randn(1, frames, 3, side, side, generator=torch.Generator().manual_seed(turn))
        expected = None
        for name, (caption, network) in runs.items():
            start = time.process_time()
            found = caption(network, pixels, beams)[:, 1:]  # without the start token
            seconds[name].append(time.process_time() - start)
            expected = found if expected is None else expected
            if name in EXACT and not torch.equal(found, expected):
                raise AssertionError(f"{name}, {beams} beams: {found.tolist()}, not {expected.tolist()}")
            same[name].append((found == expected).float().mean().item())
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    return {
        "seconds": medians,
        "all_seconds": seconds,
        "faster": {name: medians[GENERATE] / value for name, value in medians.items()},
        "same": {name: statistics.mean(values) for name, values in same.items()},
    }


def run(config: GitConfig, repeats: int, progress=print) -> dict:
    """What goes into the JSON file."""
    port, model = twins(config)
    about = {"machine": machine() | {"processor": processor()}, "new_tokens": NEW, "repeats": repeats}
    with tempfile.TemporaryDirectory() as folder:
        networks, megabytes = forms(model, Path(folder))
        rows = []
        for case, (frames, beams) in CASES.items():
            rows.append({"case": case} | compare(port, networks, frames, beams, repeats))
            faster = ", ".join(f"{name} {value:.2f} x" for name, value in rows[-1]["faster"].items())
            progress(f"{case}: {faster}")
    return about | {"megabytes": megabytes, "cases": rows}


def table(result: dict) -> list[str]:
    """The README's lines: seconds, how much faster than `generate`, and the share of equal tokens."""
    cases, about = result["cases"], result["machine"]
    heading = f"{result['new_tokens']} tokens on one core of {about['processor']}"
    lines = [
        f"| {heading} | MB | {' | '.join(row['case'] for row in cases)} | same tokens |",
        "|---|---|" + "---|" * len(cases) + "---|",
    ]
    for name in cases[0]["seconds"]:
        times = [f"{row['seconds'][name]:.2f} s ({row['faster'][name]:.1f}×)" for row in cases]
        size = result["megabytes"].get(name, result["megabytes"][FULL])
        same = statistics.mean(row["same"][name] for row in cases)
        lines.append(f"| {name} | {size:.0f} | {' | '.join(times)} | {same:.0%} |")
    return lines


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--repeats", type=int, default=5, help="runs of each, of which the median counts")
    parser.add_argument("--out", type=Path, help="folder, in place of benchmarks/ and the README's table")
    options = parser.parse_args()
    torch.set_num_threads(1)
    result = run(GitConfig(num_image_with_embedding=6), options.repeats)
    text = json.dumps(result, indent=1) + "\n"
    write_whole(options.out or ROOT / "benchmarks", {"formats.json": lambda path: path.write_text(text)})
    print("\n".join(table(result)))
    if options.out is None:
        fill_readme()
    return 0


if __name__ == "__main__":
    sys.exit(main())
