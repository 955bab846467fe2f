"""`python -m gitdistill onnx STUDENT FOLDER`: a student as the ONNX files that `gitdistill.use.onnx` describes."""

import argparse
import json
import warnings
from copy import deepcopy
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from gitdistill.models.attention import KVCache
from gitdistill.models.storage import write_whole
from gitdistill.models.student import StudentCandidateV1
from gitdistill.use.captioner import Student, load_student
from gitdistill.use.onnx import ARCHITECTURE, ENCODER, SETTINGS, STEP, flat, paired, require


def main(arguments: list[str]) -> None:
    """Write the files and print their sizes. ValueError or OSError in one line."""
    parser = argparse.ArgumentParser("gitdistill onnx", description=__doc__.partition("\n")[0])
    parser.add_argument("student", help="a student's folder, or a repository of the hub")
    parser.add_argument("folder", help="where to write the files")
    options = parser.parse_args(arguments)
    export_student(load_student(options.student), options.folder)
    for path in (Path(options.folder) / name for name in (ENCODER, STEP)):
        print(f"{path}: {path.stat().st_size / 1e6:.2f} MB")


def export_student(student: Student, folder) -> None:
    """Write `student` as ONNX to `folder`, all files or none.

    ValueError when packages are missing, when the student is ONNX already or when `folder` holds a student's weights.
    """
    require("onnx", "onnxscript")
    folder, network = Path(folder).expanduser(), student.model
    if not isinstance(network, StudentCandidateV1):
        raise ValueError(f"only a StudentCandidateV1 becomes ONNX, not a {type(network).__name__}")
    if (folder / "model.safetensors").exists():
        raise ValueError(f"{folder} holds a network's weights: give another folder")
    owners = {name: network if hasattr(network, name) else network.backbone for name in SETTINGS}
    config = {"architecture": ARCHITECTURE, **{name: getattr(owner, name) for name, owner in owners.items()}}
    writers = {name: program.save for name, program in programs(network).items()}
    writers["config.json"] = partial(Path.write_text, data=json.dumps(config, indent=1) + "\n")
    write_whole(folder, writers | student.companions())


class Encoder(nn.Module):
    """Pixels -> the memory's keys and values, flat."""

    def __init__(self, student: StudentCandidateV1):
        super().__init__()
        self.student = student

    def forward(self, pixels: Tensor) -> list[Tensor]:
        return flat(self.student.prefill(pixels).shared)


class Step(nn.Module):
    """Tokens, the memory's and the text's keys and values, both flat -> logits and the text's, grown."""

    def __init__(self, student: StudentCandidateV1):
        super().__init__()
        self.student = student

    def forward(self, tokens: Tensor, memory: list[Tensor], text: list[Tensor]) -> list[Tensor]:
        cache = KVCache(paired(memory), paired(text))
        logits, cache = self.student.decode_step(tokens.flatten(0, 1), cache)
        return [logits.unflatten(0, tokens.shape[:2]), *flat(cache.text)]


@torch.no_grad()
def programs(student: StudentCandidateV1) -> dict:
    """ONNX programs of encoder and step by file name; numbers of clips, captions and tokens stay free.

    The number of frames stays free, too, unless the student reads at most two: torch.export takes a range from 2 to 2
    for a constant.
    """
    from torch.export import Dim  # slow to import, and only an export needs it

    if student.max_positions < 9:
        raise ValueError(f"a student of {student.max_positions} positions is too short to export: 9 at least")
    student = deepcopy(student).eval()
    encoder, step, side = Encoder(student).eval(), Step(student).eval(), student.backbone.image_size
    clips, most = Dim("clips"), student.num_frames
    frames = {1: Dim("frames", max=most)} if most > 2 else {}
    # All sizes differ: the exporter takes two equal ones for one.
    pixels = torch.zeros(3, min(2, most), 3, side, side)
    memory = encoder(pixels)
    text = step(torch.zeros(3, 2, 4, dtype=torch.long), memory, [])[1:]
    tokens = torch.zeros(3, 2, 5, dtype=torch.long)
    # The exporter takes a free size to be at least 2, which bounds the other one; the graph runs with less, too.
    length, free = student.max_positions - 2, {0: clips, 1: Dim("captions")}
    shapes = (
        free | {2: Dim("new", max=length)},
        [{0: clips, 2: Dim("cells")}] * len(memory),
        [free | {3: Dim("read", max=length)}] * len(text),
    )
    layers = [f"{part}_{layer}" for layer in range(len(student.layers)) for part in ("key", "value")]
    read, past, grown = ([f"{kind}_{name}" for name in layers] for kind in ("memory", "text", "grown"))
    inputs, outputs = ["tokens", *read, *past], ["logits", *grown]
    return {
        ENCODER: to_onnx(encoder, (pixels,), ({0: clips} | frames,), ["pixels"], read),
        STEP: to_onnx(step, (tokens, memory, text), shapes, inputs, outputs),
    }


def to_onnx(module: nn.Module, arguments: tuple, shapes: tuple, inputs: list[str], outputs: list[str]):
    """An ONNX program; `shapes` are the free sizes of the arguments, the lists name inputs and outputs."""
    program = torch.export.export(module, arguments, dynamic_shapes=shapes)
    options = {"input_names": inputs, "output_names": outputs, "dynamic_shapes": shapes}
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "# The axis name")  # several inputs share each of them
        return torch.onnx.export(program, **options, external_data=False, dynamo=True, verbose=False)
