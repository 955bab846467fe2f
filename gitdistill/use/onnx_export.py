"""`python -m gitdistill onnx NETWORK FOLDER`: a student or a GIT as the files that `gitdistill.use.onnx` describes."""

import argparse
import hashlib
import json
import logging
import warnings
from collections.abc import Callable
from copy import deepcopy
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gitdistill.hooks import record
from gitdistill.inspection.attention import text_attention
from gitdistill.models import checkpoints, storage
from gitdistill.models.attention import KVCache
from gitdistill.models.git import GenerativeImageTextModel
from gitdistill.models.preprocessing import CLIP_MEAN, CLIP_STD
from gitdistill.models.student import StudentCandidateV1
from gitdistill.models.teacher import GenerativeImageTextTeacher
from gitdistill.use.captioner import Captioner, load_student, load_teacher
from gitdistill.use.onnx import ENCODER, GIT, SETTINGS, STEP, STUDENT, WEIGHTS, flat, paired, require

ALIGNED = 64  # bytes: where each tensor begins in the file of weights
HELD = (".safetensors", ".bin", ".pt", ".pth")  # suffixes of weights that need the config.json beside them
INLINE = 1024  # bytes: smaller tensors stay in the graph, where onnxruntime reads shapes from them


def main(arguments: list[str]) -> None:
    """Write the files and print their sizes. ValueError or OSError in one line."""
    parser = argparse.ArgumentParser("gitdistill onnx", description=__doc__.partition("\n")[0])
    add = parser.add_argument
    add("network", help='a student or a GIT: its folder, "toybox", or a repository of the hub')
    add("folder", help="where to write the files")
    add("--int8", action="store_true", help="weights of matrix products in int8: see experiments")
    options = parser.parse_args(arguments)
    folder = storage.output_folder(options.folder)
    source = checkpoints.resolve(options.network)
    has_config = (source / "config.json").is_file()
    student = has_config and storage.read_config(source).get("architecture") == StudentCandidateV1.__name__
    captioner = load_student(source) if student else load_teacher(source)
    export(captioner, folder, options.int8)
    for path in (folder / name for name in (ENCODER, STEP, WEIGHTS)):
        print(f"{path}: {path.stat().st_size / 1e6:.2f} MB")


def export(captioner: Captioner, folder, int8: bool = False) -> None:
    """Write a captioner's network as ONNX to `folder`, all files or none, in float32 or `int8`, see `quantised`.

    ValueError when packages are missing, when it is ONNX already, or when `folder` holds a network's weights.
    """
    require("onnx", "onnxscript", *(["onnxruntime"] if int8 else []))
    folder, network = storage.output_folder(folder).expanduser(), captioner.model
    network = network.model if isinstance(network, GenerativeImageTextTeacher) else network
    if not isinstance(network, StudentCandidateV1 | GenerativeImageTextModel):
        raise ValueError(f"only a StudentCandidateV1 or a GIT becomes ONNX, not a {type(network).__name__}")
    if any(there.suffix in HELD and there.name != WEIGHTS for there in folder.glob("*")):
        raise ValueError(f"{folder} holds a network's weights: give another folder")
    config = settings(network)
    models = programs(network, config)
    writers = files(quantised(models) if int8 else models)
    writers["config.json"] = partial(Path.write_text, data=json.dumps(config, indent=1) + "\n")
    storage.write_whole(folder, writers | captioner.companions())


def settings(network: nn.Module) -> dict:
    """What config.json holds."""
    if isinstance(network, GenerativeImageTextModel):
        config = {"architecture": GIT, "image_size": network.config.vision_config.image_size}
        config |= {"num_frames": network.config.num_image_with_embedding or 1}
        config |= {"mean": CLIP_MEAN, "std": CLIP_STD}
        if longest := getattr(network.config, "test_respect_ratio_max", None):
            config["longest"] = longest
    else:
        config = {"architecture": STUDENT, "num_frames": network.num_frames}
        config |= {name: getattr(network.backbone, name) for name in ("image_size", "mean", "std")}
    return config | {name: getattr(network, name) for name in SETTINGS if name not in config}


class Encoder(nn.Module):
    """Pixels -> the keys and values of what text attends to, flat."""

    def __init__(self, network: nn.Module):
        super().__init__()
        self.network = network

    def forward(self, pixels: Tensor) -> list[Tensor]:
        return flat(self.network.prefill(pixels).shared)


class Step(nn.Module):
    """Tokens, the memory's and the text's keys and values, both flat -> logits, the text's, grown, and attention."""

    def __init__(self, network: nn.Module):
        super().__init__()
        self.network, self.attention = network, text_attention(network)[0]

    def forward(self, tokens: Tensor, memory: list[Tensor], text: list[Tensor]) -> list[Tensor]:
        cache = KVCache(paired(memory), paired(text))
        with record(self.network, self.attention) as seen:
            logits, cache = self.network.decode_step(tokens.flatten(0, 1), cache)
        attention = [seen[path][-1] for path in self.attention]
        return [logits.unflatten(0, tokens.shape[:2]), *flat(cache.text), *attention]


@torch.no_grad()
def programs(network: nn.Module, config: dict) -> dict:
    """ONNX models of encoder and step by file name; numbers of clips, captions and tokens stay free.

    The number of frames stays free, too, unless the network reads at most two: torch.export takes a range from 2 to 2
    for a constant. So do height and width of what is not cropped.
    """
    from torch.export import Dim  # slow to import, and only an export needs it

    if (positions := config["max_positions"]) < 9:
        raise ValueError(f"a network of {positions} positions is too short to export: 9 at least")
    network = deepcopy(network).float().eval()
    encoder, step, side = Encoder(network).eval(), Step(network).eval(), config["image_size"]
    clips, most, count = Dim("clips"), config["num_frames"], len(network.layers)
    free_pixels = {0: clips} | ({1: Dim("frames", max=most)} if most > 2 else {})
    # All sizes differ: the exporter takes two equal ones for one.
    pixels = torch.zeros(3, min(2, most), 3, side, side)
    if "longest" in config:  # larger than the position embeddings, which are then interpolated
        patch = network.config.vision_config.patch_size
        free_pixels |= {3: Dim.DYNAMIC, 4: Dim.DYNAMIC}
        pixels = F.pad(pixels, (0, 2 * patch, 0, patch))
    memory = encoder(pixels)
    text = step(torch.zeros(3, 2, 4, dtype=torch.long), memory, [])[1 : 1 + 2 * count]
    tokens = torch.zeros(3, 2, 5, dtype=torch.long)
    # The exporter takes a free size to be at least 2, which bounds the other one; the graph runs with less, too.
    length, free = positions - 2, {0: clips, 1: Dim("captions")}
    shapes = (
        free | {2: Dim("new", max=length)},
        [{0: clips, 2: Dim("cells")}] * len(memory),
        [free | {3: Dim("read", max=length)}] * len(text),
    )
    layers = [f"{part}_{layer}" for layer in range(count) for part in ("key", "value")]
    read, past, grown = ([f"{kind}_{name}" for name in layers] for kind in ("memory", "text", "grown"))
    inputs, outputs = ["tokens", *read, *past], ["logits", *grown]
    outputs += [f"attention_{layer}" for layer in range(count)]
    return {
        ENCODER: to_onnx(encoder, (pixels,), (free_pixels,), ["pixels"], read),
        STEP: to_onnx(step, (tokens, memory, text), shapes, inputs, outputs),
    }


def to_onnx(module: nn.Module, arguments: tuple, shapes: tuple, inputs: list[str], outputs: list[str]):
    """An ONNX model; `shapes` are the free sizes of the arguments, the lists name inputs and outputs."""
    program = torch.export.export(module, arguments, dynamic_shapes=shapes)
    options = {"input_names": inputs, "output_names": outputs, "dynamic_shapes": shapes}
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "# The axis name")  # several inputs share each of them
        return torch.onnx.export(program, **options, dynamo=True, verbose=False).model


def quantised(models: dict) -> dict:
    """The models with the constant matrices of products and embeddings in int8.

    A matrix has one scale for each column, its other factor one that is found at run time. 7 bits are used: processors
    without VNNI or AMX add two products of 8 bits in 16 bits, which overflows
    (https://onnxruntime.ai/docs/performance/model-optimizations/quantization.html).
    """
    import onnx_ir
    from onnxruntime.quantization import QuantType, quantize_dynamic

    found, kinds = {}, ["MatMul", "Gemm", "Gather"]
    options = {"per_channel": True, "reduce_range": True, "op_types_to_quantize": kinds}
    options["extra_options"] = {"MatMulConstBOnly": True}
    for name, model in models.items():
        with TemporaryDirectory() as folder:
            before, after = (Path(folder) / part for part in ("before.onnx", "after.onnx"))
            onnx_ir.save(model, before)
            logging.disable(logging.WARNING)  # it advises what the exporter has done
            try:
                quantize_dynamic(before, after, weight_type=QuantType.QInt8, **options)
            finally:
                logging.disable(logging.NOTSET)
            found[name] = onnx_ir.load(after)
    return found


def files(models: dict) -> dict[str, Callable[[Path], None]]:
    """Writers of the models, whose weights lie in one file: the image tokens of a GIT and its text pass the same
    layers, so that both models hold them."""
    import onnx_ir

    places, weights, end = {}, [], 0
    for value in (value for model in models.values() for value in model.graph.initializers.values()):
        tensor = value.const_value
        if tensor.nbytes < INLINE:
            continue
        content = tensor.tobytes()
        key = hashlib.sha256(content).digest()
        if key not in places:
            places[key], end = end, -(-(end + len(content)) // ALIGNED) * ALIGNED
            weights.append((places[key], tensor))
        place = WEIGHTS, places[key], len(content)
        about = {"shape": tensor.shape, "name": value.name, "base_dir": ""}
        value.const_value = onnx_ir.ExternalTensor(*place, tensor.dtype, **about)

    def write_weights(path: Path) -> None:
        with path.open("wb") as file:
            for place, tensor in weights:
                file.seek(place)
                file.write(tensor.tobytes())

    writers = {name: partial(onnx_ir.save, model) for name, model in models.items()}
    return writers | {WEIGHTS: write_weights}
