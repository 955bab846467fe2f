"""How small and fast networks get after their training, without training them further: float16, pruning, ONNX, int8.

    python experiments/smaller.py              data/student and the embedded teacher: writes
                                               data/experiments/smaller.csv and the README's table
    python experiments/smaller.py FOLDER --out runs/smaller     another student; the README stays as it is

Pruning (`torch.nn.utils.prune`) sets the smallest weights of all linear layers and convolutions to zero, except those
of the head, which is tied to the embedding. Zeros are stored and multiplied like other numbers, so that only a
compressed file gets smaller. ONNX is what `python -m gitdistill onnx` writes, run by onnxruntime; int8 is its `--int8`:
the matrices of products and embeddings are stored in int8, and the other factor is rounded at run time; convolutions
and norms stay float32.

Scores are of greedy captions of the first test clips of the embedded world. Times are of greedy decoding from raw
frames to tokens, one clip at a time and 16 at once. All variants caption the same clips in turn; times are medians.
"""

import argparse
import os
import platform
import statistics
import sys
import tempfile
import time
import zlib
from copy import deepcopy
from pathlib import Path

import torch
from report import write_rows
from torch import nn
from torch.nn.utils import prune

from gitdistill import load_student, metrics
from gitdistill.decoding import greedy
from gitdistill.models.tokenizer import to_text
from gitdistill.use.captioner import Captioner, Student, load_teacher
from gitdistill.use.export import as_stored
from gitdistill.use.onnx import ENCODER, STEP, WEIGHTS, OnnxNetwork
from gitdistill.use.onnx_export import export
from gitdistill.world.facts import facts_scores
from gitdistill.world.scenes import Clips

ROOT = Path(__file__).resolve().parents[1]
PRUNED = (0.1, 0.3, 0.5)
SCORES = ("cider", "facts_precision", "all_right")
BATCHES = (1, 16)


def rounded(network: nn.Module) -> nn.Module:
    """A copy whose weights are rounded to float16."""
    copy = deepcopy(network).eval()
    as_stored(copy)
    return copy


def pruned(network: nn.Module, share: float) -> nn.Module:
    """A copy whose smallest weights are zero: a `share` of those of linear layers and convolutions without the head."""
    copy = rounded(network).to(memory_format=torch.contiguous_format)  # as torch's pruning wants it
    weights = [
        (module, "weight")
        for name, module in copy.named_modules()
        if isinstance(module, nn.Linear | nn.Conv2d) and name != "head"
    ]
    prune.global_unstructured(weights, prune.L1Unstructured, amount=share)
    for module, name in weights:
        prune.remove(module, name)
    copy.backbone.net.to(memory_format=torch.channels_last)
    return copy


def variants(captioner: Captioner) -> dict[str, tuple]:
    """Name -> (the network, the bytes of its files)."""
    network, half = getattr(captioner.model, "model", captioner.model), torch.float16
    found = {"float32": (network, weights(network))}
    if isinstance(captioner, Student):
        found["float16"] = rounded(network), weights(network, half)
        for share in PRUNED:
            sparse = pruned(network, share)
            found[f"{share:.0%} pruned, float16"] = sparse, weights(sparse, half)
    for name, int8 in (("ONNX, float32", False), ("ONNX, int8", True)):
        with tempfile.TemporaryDirectory() as folder:
            export(captioner, folder, int8)
            written = b"".join((Path(folder) / name).read_bytes() for name in (ENCODER, STEP, WEIGHTS))
            found[name] = OnnxNetwork(folder), written
    return found


def weights(network: nn.Module, dtype: torch.dtype | None = None) -> bytes:
    """The file of weights that `save_pretrained` writes."""
    with tempfile.TemporaryDirectory() as folder:
        network.save_pretrained(folder, dtype)
        return (Path(folder) / "model.safetensors").read_bytes()


def greedy_captions(network, clips, tokenizer, max_length: int) -> list[str]:
    captions = []
    for start in range(0, len(clips), 16):
        frames = torch.stack([clip.frames for clip in clips[start : start + 16]])
        captions += to_text(greedy(network, frames, max_length).tokens[:, 0], tokenizer)
    return captions


def scores(captions: list[str], clips) -> dict[str, float]:
    found = metrics.caption_scores(captions, [clip.captions for clip in clips])
    found |= facts_scores(captions, [clip.scene for clip in clips])
    return {name: found[name] for name in SCORES}


def times(
    networks: dict, frames: torch.Tensor, batch: int, repeats: int, max_length: int
) -> dict[str, float]:
    """Median milliseconds a clip by name; in each turn all caption the same clips."""
    spent = {name: [] for name in networks}
    for turn in range(repeats + 1):
        chosen = frames[torch.arange(turn * batch, (turn + 1) * batch) % len(frames)]
        for name, network in networks.items():
            start = time.perf_counter()
            greedy(network, chosen, max_length)
            if turn:  # the first one warms up
                spent[name].append((time.perf_counter() - start) / batch * 1000)
    return {name: statistics.median(values) for name, values in spent.items()}


def processor() -> str:
    """The processor's name, and which instructions for products of int8 it has."""
    known = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    found = [name for name in ("avx_vnni", "avx512_vnni", "amx_int8") if known.get(name)]
    return f"{known.get('cpu_name', platform.processor())}, {' and '.join(found) or 'no int8 instructions'}"


def run(captioner: Captioner, kind: str, clips, repeats: int) -> list[dict]:
    """One row for each variant of a network of this kind."""
    found, length = variants(captioner), captioner.decoding["max_length"]
    networks = {name: network for name, (network, _) in found.items()}
    frames = torch.stack([clip.frames for clip in clips[:64]])
    spent = {batch: times(networks, frames, batch, max(3, repeats // batch), length) for batch in BATCHES}
    rows, first = [], None  # the captions of the network as it is
    for name, (network, written) in found.items():
        row = {
            "network": kind,
            "variant": name,
            "clips": len(clips),
            "processor": processor(),
            "mb": len(written) / 1e6,
            "mb_packed": len(zlib.compress(written, 9)) / 1e6,
        }
        row |= {f"ms_batch_{batch}": spent[batch][name] for batch in BATCHES}
        captions = greedy_captions(network, clips, captioner.tokenizer, length)
        first = first or captions
        row["same"] = sum(a == b for a, b in zip(captions, first)) / len(clips)
        rows.append(row | scores(captions, clips))
    return rows


def table(rows: list[dict]) -> list[str]:
    """The README's lines; rows are as measured or as read from the file."""
    measured = f"{rows[0]['clips']} test clips; {rows[0]['processor']}"
    lines = [
        f"| {measured} | MB | packed | ms, one clip | ms a clip of 16 | same captions | CIDEr | facts right |",
        "|---|---|---|---|---|---|---|---|",
    ]
    shown = {"mb": ".2f", "mb_packed": ".2f", "ms_batch_1": ".1f", "ms_batch_16": ".1f"}
    shown |= {"same": ".1%", "cider": ".2f", "facts_precision": ".1%"}
    for row in rows:
        name = f"{row['network']}, {row['variant']}"
        cells = [format(float(row[name]), digits) for name, digits in shown.items()]
        lines.append("| " + " | ".join([name, *cells]) + " |")
    return lines


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("student", nargs="?", default=ROOT / "data" / "student", help="a student's folder")
    parser.add_argument("--clips", type=int, default=500, help="test clips that are scored")
    parser.add_argument("--repeats", type=int, default=64, help="clips whose time counts, at least 3 batches")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="of torch and onnxruntime")
    parser.add_argument(
        "--out", type=Path, help="folder, in place of data/experiments and the README's table"
    )
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    pool = Clips("test", options.clips)
    clips = [pool.clip(number, masks=False) for number in range(len(pool))]
    networks = {"student": load_student(options.student), "teacher": load_teacher("toybox")}
    rows = [row for name, one in networks.items() for row in run(one, name, clips, options.repeats)]
    write_rows((options.out or ROOT / "data" / "experiments") / "smaller.csv", rows)
    print("\n".join(table(rows)))
    if options.out is None:
        sys.path.append(str(ROOT / "tools"))
        from readme import fill  # which reads the table above

        fill()
    return 0


if __name__ == "__main__":
    sys.exit(main())
