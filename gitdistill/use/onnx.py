"""`python -m gitdistill onnx STUDENT FOLDER`: a student as ONNX files, which need no torch to be computed.

`encoder.onnx` reads pixels, float [B, F, 3, S, S], and gives what the decoder remembers of them: for every layer
`memory_key_i` and `memory_value_i`, [B, H, M, d]. `step.onnx` appends `tokens`, long [B, K, t], to K captions a clip:
it also reads that memory and, as `text_key_i` and `text_value_i` [B, K, H, T, d], what it gave of the T tokens before
(T is 0 at first), and gives `logits` [B, K, t, V] and those of all T + t tokens. config.json says how raw frames
become pixels (`image_size`, `mean`, `std`), and which tokens start, end and pad a caption.

`OnnxStudent` runs both files behind the protocol of `gitdistill.decoding`, so that every search runs on it unchanged;
`python -m gitdistill caption PATH... --student FOLDER` takes such a folder, too.
"""

import argparse
import json
import warnings
from copy import deepcopy
from importlib.util import find_spec
from pathlib import Path

import torch
from torch import Tensor, nn

from gitdistill.models import storage
from gitdistill.models.attention import KVCache, check_tokens
from gitdistill.models.preprocessing import to_pixels
from gitdistill.models.student import StudentCandidateV1

ENCODER, STEP = "encoder.onnx", "step.onnx"
ARCHITECTURE = "OnnxStudent"
SAME = ("vocab_size", "max_positions", "num_frames", "bos_token_id", "eos_token_id", "pad_token_id")


def main(arguments: list[str]) -> int:
    """Write the files and say how large they are. ValueError or OSError in one line."""
    parser = argparse.ArgumentParser("gitdistill onnx", description=__doc__.partition("\n")[0])
    parser.add_argument("student", help="a student's folder, or a repository of the hub")
    parser.add_argument("folder", help="where to")
    options = parser.parse_args(arguments)
    need("onnx", "onnxscript")
    from gitdistill.use.captioner import load_student  # which reads what is written here, too

    export_student(load_student(options.student), options.folder)
    for name in (ENCODER, STEP):
        path = Path(options.folder) / name
        print(f"{path}: {path.stat().st_size / 1e6:.2f} MB")
    return 0


def need(*packages: str) -> None:
    """A ValueError that says what to install when one of these is not there."""
    missing = [package for package in packages if find_spec(package) is None]
    if missing:
        raise ValueError(f"{' and '.join(missing)} missing: pip install 'gitdistill[onnx]'")


def flat(pairs) -> list[Tensor]:
    """Keys and values of all layers as one list."""
    return [part for pair in pairs for part in pair]


def paired(parts) -> list[tuple[Tensor, Tensor]]:
    """The reverse of `flat`."""
    return list(zip(parts[::2], parts[1::2]))


def names(kind: str, layers: int) -> list[str]:
    return [f"{kind}_{part}_{layer}" for layer in range(layers) for part in ("key", "value")]


class Encoder(nn.Module):
    """Pixels -> memory, flat."""

    def __init__(self, student: StudentCandidateV1):
        super().__init__()
        self.student = student

    def forward(self, pixels: Tensor) -> list[Tensor]:
        return flat(self.student.prefill(pixels).shared)


class Step(nn.Module):
    """Tokens, memory and text, both flat -> logits and grown text."""

    def __init__(self, student: StudentCandidateV1):
        super().__init__()
        self.student = student

    def forward(self, tokens: Tensor, memory: list[Tensor], text: list[Tensor]) -> list[Tensor]:
        state = KVCache(paired(memory), paired(text))
        logits, state = self.student.decode_step(tokens.flatten(0, 1), state)
        return [logits.unflatten(0, tokens.shape[:2]), *flat(state.text)]


@torch.no_grad()
def programs(student: StudentCandidateV1) -> dict:
    """ONNX programs of encoder and step by file name; numbers of clips, captions and tokens stay free.

    So does the number of frames for a student of more than two. (torch.export tells no range from 2 to 2 from a
    number.)
    """
    from torch.export import Dim  # takes a while, and captions do without

    if student.max_positions < 9:
        raise ValueError(f"a student of {student.max_positions} positions is too short to export: 9 at least")
    student = deepcopy(student).eval()
    clips, layers = Dim("clips"), len(student.layers)
    encoder, step = Encoder(student).eval(), Step(student).eval()
    side, frames = student.backbone.image_size, min(2, student.num_frames)
    pixels = torch.zeros(3, frames, 3, side, side)
    shape = {0: clips, 1: Dim("frames", max=student.num_frames)} if student.num_frames > 2 else {0: clips}
    memory = encoder(pixels)
    # sizes that differ, or the exporter takes two of them for one
    text = step(torch.zeros(3, 2, 4, dtype=torch.long), memory, [])[1:]
    tokens = torch.zeros(3, 2, 5, dtype=torch.long)
    # no more than the exporter can know: it takes free sizes to be at least 2, which the graph does not need
    length = student.max_positions - 2
    free = {0: clips, 1: Dim("captions")}
    shapes = (
        free | {2: Dim("new", max=length)},
        [{0: clips, 2: Dim("cells")}] * len(memory),
        [free | {3: Dim("read", max=length)}] * len(text),
    )
    remembered = names("memory", layers)
    return {
        ENCODER: to_onnx(encoder, (pixels,), (shape,), ["pixels"], remembered),
        STEP: to_onnx(
            step,
            (tokens, memory, text),
            shapes,
            ["tokens", *remembered, *names("text", layers)],
            ["logits", *names("grown", layers)],
        ),
    }


def to_onnx(module: nn.Module, inputs: tuple, shapes: tuple, reads: list[str], gives: list[str]):
    program = torch.export.export(module, inputs, dynamic_shapes=shapes)
    told = {"input_names": reads, "output_names": gives, "dynamic_shapes": shapes}
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "# The axis name")  # several inputs share each of them
        return torch.onnx.export(program, **told, external_data=False, dynamo=True, verbose=False)


def export_student(student, folder) -> None:
    """Write `student`, as `gitdistill.load_student` gives it, to `folder`; the networks whole or not at all.

    ValueError when the packages are missing or when `folder` holds a student's own weights.
    """
    need("onnx", "onnxscript")
    folder, network = Path(folder).expanduser(), student.model
    if not isinstance(network, StudentCandidateV1):
        raise ValueError(f"only a StudentCandidateV1 becomes ONNX, not a {type(network).__name__}")
    if (folder / "model.safetensors").exists():
        raise ValueError(f"{folder} holds a network's weights: give another folder")
    backbone = network.backbone
    config = {"architecture": ARCHITECTURE, **{name: getattr(network, name) for name in SAME}}
    config |= {"image_size": backbone.image_size, "mean": backbone.mean, "std": backbone.std}
    text = json.dumps(config, indent=1) + "\n"
    writers = {name: program.save for name, program in programs(network).items()}
    student.tokenizer.save_pretrained(folder)
    storage.write_whole(
        folder,
        writers | {"config.json": lambda path: path.write_text(text), student.FILE: student.write_facts},
    )


class OnnxStudent:
    """A folder that `export_student` wrote, run by onnxruntime on the CPU, with as many threads as torch uses.

    Satisfies the protocol of `gitdistill.decoding`; frames are what every network of this package takes. Raises
    FileNotFoundError or ValueError in one line.
    """

    def __init__(self, folder):
        need("onnxruntime")
        folder, config = Path(folder), storage.read_config(folder)
        wanted = [*SAME, "image_size", "mean", "std"]
        lacking = [name for name in wanted if name not in config]
        if config.get("architecture") != ARCHITECTURE or lacking:
            raise ValueError(f"{folder}/config.json does not describe an {ARCHITECTURE}")
        for name in wanted:
            setattr(self, name, config[name])
        self.encoder, self.stepper = session(folder / ENCODER), session(folder / STEP)
        caches = [given for given in self.stepper.get_inputs() if given.name.startswith("text_")]
        self.layers, (_, _, self.heads, _, self.head_width) = len(caches) // 2, caches[0].shape
        self.exact = self.encoder.get_inputs()[0].shape[1]  # a number, or a name when it is free

    def to(self, device) -> "OnnxStudent":
        """Stays on the CPU."""
        return self

    def prefill(self, frames: Tensor) -> KVCache:
        """Read the clips; see `StudentCandidateV1.start`."""
        pixels = to_pixels(frames.cpu(), self.image_size, self.mean, self.std)
        count = pixels.shape[1]
        if count > self.num_frames or (isinstance(self.exact, int) and count != self.exact):
            most = "exactly" if isinstance(self.exact, int) else "at most"
            raise ValueError(f"{count} frames a clip, but this student reads {most} {self.num_frames}")
        if pixels.shape[-1] != self.image_size or pixels.shape[-2] != self.image_size:
            sizes, side = pixels.shape[-2:], self.image_size
            raise ValueError(f"pixels of {sizes[0]} x {sizes[1]}, but this student reads {side} x {side}")
        return KVCache(paired(run(self.encoder, [pixels])), [])

    def decode_step(self, tokens: Tensor, state: KVCache) -> tuple[Tensor, KVCache]:
        """Append tokens [B*K, t] to every caption: logits [B*K, t, V] and the grown state."""
        rows, _ = check_tokens(tokens, state, self.max_positions)
        nothing = torch.zeros(state.clips, rows, self.heads, 0, self.head_width)
        text = flat(state.text) or [nothing] * (2 * self.layers)
        logits, *grown = run(
            self.stepper, [tokens.unflatten(0, (state.clips, rows)), *flat(state.shared), *text]
        )
        return logits.flatten(0, 1), KVCache(state.shared, paired(grown))


def session(path: Path):
    """onnxruntime's session of a file; FileNotFoundError or ValueError in one line."""
    import onnxruntime

    if not path.is_file():
        raise FileNotFoundError(f"there is no {path}")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    # its threads would wait for the next call at full speed, on the cores that torch needs in between
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    try:
        return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's own, of many classes
        raise ValueError(f"{path} is not readable as ONNX: {storage.first_line(error)}") from None


def run(session, inputs: list[Tensor]) -> list[Tensor]:
    """A session's outputs as tensors, which share memory with what onnxruntime gave."""
    feed = {given.name: value.contiguous().numpy() for given, value in zip(session.get_inputs(), inputs)}
    return [torch.from_numpy(value) for value in session.run(None, feed)]
