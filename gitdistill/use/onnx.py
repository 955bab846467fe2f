"""A network that onnxruntime runs: the reader of what `python -m gitdistill onnx NETWORK FOLDER` writes.

`encoder.onnx` reads pixels, float [B, F, 3, S, S], and gives the keys and values of the image tokens (of a student:
of its memory) in every layer: `memory_key_i` and `memory_value_i`, [B, H, M, d]. `step.onnx` appends `tokens`, long
[B, K, t], to K captions a clip. It also reads the memory and the keys and values of the T tokens before, `text_key_i`
and `text_value_i` [B, K, H, T, d] (T is 0 at first). It gives `logits` [B, K, t, V], the keys and values of all T + t
tokens, and for whoever asks `attention_i`, the weights of the attention to the memory, [B, H, K*t, M] of a student,
[B, H, K*t, M + K*(T+t)] of a GIT, whose attention covers the text as well. `weights.bin` holds the weights of both.
config.json holds `image_size`, `mean` and `std`, which turn raw frames into pixels, and the special tokens; of a GIT
that does not crop its pictures also `longest`, see `to_pixels`: its encoder reads pixels [B, F, 3, H, W] of any shape.
"""

from importlib.util import find_spec
from pathlib import Path

import torch
from torch import Tensor

from gitdistill.models import storage
from gitdistill.models.attention import KVCache, check_tokens
from gitdistill.models.preprocessing import to_pixels

ENCODER, STEP, WEIGHTS = "encoder.onnx", "step.onnx", "weights.bin"
STUDENT, GIT = "OnnxStudent", "OnnxGit"
NAMES = {STUDENT: "student", GIT: "teacher"}
SETTINGS = dict.fromkeys(("vocab_size", "max_positions", "num_frames"), int)
SETTINGS |= dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id", "image_size"), int)
SETTINGS |= dict.fromkeys(("mean", "std"), list[float])
UNCROPPED = {"longest": int}  # a setting of networks that do not crop


def require(*packages: str) -> None:
    """A ValueError that says what to install when one of these packages is missing."""
    if missing := [package for package in packages if find_spec(package) is None]:
        raise ValueError(f"{' and '.join(missing)} missing: pip install 'gitdistill[onnx]'")


def flat(pairs) -> list[Tensor]:
    """Keys and values of all layers as one list."""
    return [part for pair in pairs for part in pair]


def paired(parts) -> list[tuple[Tensor, Tensor]]:
    """The reverse of `flat`."""
    return list(zip(parts[::2], parts[1::2]))


class OnnxNetwork:
    """Runs such a folder by onnxruntime on the CPU, with as many threads as torch uses.

    It satisfies the protocol of `gitdistill.decoding`, so that every search runs on it; frames are what every network
    of this package takes. `architecture` is what was exported, one of `kinds`. Raises FileNotFoundError or ValueError
    in one line.
    """

    def __init__(self, folder, *kinds: str):
        require("onnxruntime")
        folder, config = Path(folder), storage.read_config(folder)
        self.architecture = config.pop("architecture", None)
        if self.architecture not in NAMES:
            raise ValueError(f"{folder}/config.json does not describe an {' or '.join(NAMES)}")
        if kinds and self.architecture not in kinds:
            kind = NAMES[self.architecture]
            raise ValueError(f"{folder} holds a {kind}: give it as the {kind}")
        storage.check_fields(config, SETTINGS | UNCROPPED, folder / "config.json", optional=UNCROPPED)
        self.longest = config.get("longest")
        least = min(config["image_size"], config["max_positions"], config.get("longest", 1))
        if least < 1 or (len(config["mean"]), len(config["std"])) != (3, 3):
            raise ValueError(f"{folder}/config.json holds sizes that no network has")
        for name in SETTINGS:
            setattr(self, name, config[name])
        self.encoder, self.stepper = open_session(folder / ENCODER), open_session(folder / STEP)
        text = [value for value in self.stepper.get_inputs() if value.name.startswith("text_")]
        pixels = self.encoder.get_inputs()[0].shape
        if not text or len(text[0].shape) != 5 or len(pixels) != 5:
            raise ValueError(f"{folder / ENCODER} or {folder / STEP} is no part of a captioner")
        self.layers, (_, _, self.heads, _, self.head_dim) = len(text) // 2, text[0].shape
        exported = pixels[1]  # a number, or a name when it is free
        self.exact_frames = exported if isinstance(exported, int) else None

    def to(self, device) -> "OnnxNetwork":
        return self  # it stays on the CPU

    def prefill(self, frames: Tensor) -> KVCache:
        """Read the clips; see `StudentCandidateV1.prefill`."""
        pixels = to_pixels(frames.cpu(), self.image_size, self.mean, self.std, self.longest)
        count, sizes, side = pixels.shape[1], tuple(pixels.shape[-2:]), self.image_size
        if count > self.num_frames or self.exact_frames not in (None, count):
            limit = "at most" if self.exact_frames is None else "exactly"
            raise ValueError(f"{count} frames a clip, but this network reads {limit} {self.num_frames}")
        if self.architecture == GIT and self.num_frames > 1 and frames.dim() == 4:
            raise ValueError("this GIT reads videos: give frames [B, F, 3, H, W]")
        if self.longest is None and sizes != (side, side):
            raise ValueError(f"pixels of {sizes[0]} x {sizes[1]}, but this network reads {side} x {side}")
        return KVCache(paired(run_session(self.encoder, [pixels])), [])

    def decode_step(self, tokens: Tensor, cache: KVCache) -> tuple[Tensor, KVCache]:
        """Append tokens [B*K, t] to every caption: logits [B*K, t, V] and the grown cache."""
        logits, *grown = self._step(tokens, cache, 1 + 2 * self.layers)
        return logits.flatten(0, 1), KVCache(cache.shared, paired(grown))

    def read_caption(self, frames: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Logits [B, T, V] of one caption a clip, tokens [B, T], and its attention to the memory [L, B, H, T, M]."""
        cache = self.prefill(frames)
        logits, *others = self._step(tokens, cache, None)
        attention, cells = torch.stack(others[2 * self.layers :]), cache.shared[0][0].shape[2]
        return logits.flatten(0, 1), attention[..., :cells]

    def _step(self, tokens: Tensor, cache: KVCache, outputs: int | None) -> list[Tensor]:
        captions, _ = check_tokens(tokens, cache, self.max_positions)
        nothing = torch.zeros(cache.clips, captions, self.heads, 0, self.head_dim)
        text = flat(cache.text) or [nothing] * (2 * self.layers)
        inputs = [tokens.unflatten(0, (cache.clips, captions)), *flat(cache.shared), *text]
        return run_session(self.stepper, inputs, outputs)


def open_session(path: Path):
    """onnxruntime's session of a file; FileNotFoundError or ValueError in one line."""
    import onnxruntime

    if not path.is_file():
        raise FileNotFoundError(f"there is no {path}")
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4  # what it would log of an error is in the exception
    options.intra_op_num_threads = torch.get_num_threads()
    # Its threads would wait for the next call at full speed, on the cores that torch needs in between.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    try:
        return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime has many exception classes and no common base
        what = f"{path} is not readable as ONNX with its {WEIGHTS}"
        raise ValueError(f"{what}: {storage.first_line(error)}") from None


def run_session(session, inputs: list[Tensor], outputs: int | None = None) -> list[Tensor]:
    """A session's first `outputs` outputs, or all, as tensors, which share memory with onnxruntime's arrays."""
    feed = {value.name: tensor.contiguous().numpy() for value, tensor in zip(session.get_inputs(), inputs)}
    names = [value.name for value in session.get_outputs()][:outputs]
    return [torch.from_numpy(array) for array in session.run(names, feed)]
