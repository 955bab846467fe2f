"""GIT checkpoints: transformers' layout read and written, Microsoft's layout read, every key accounted for.

Microsoft's files: https://github.com/microsoft/GenerativeImage2Text. Nothing here runs code that a checkpoint
brings along: tensors come from safetensors or from `torch.load(weights_only=True)`.
"""

import copy
import json
import os
import pickle
import re
from collections.abc import Callable
from pathlib import Path

import torch
import yaml
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError, RepositoryNotFoundError
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import GitConfig

_EYE, _MS_EYE = "git.image_encoder.vision_model", "image_encoder"
_LAYER, _MS_LAYER = "git.encoder.layer.*", "textual.transformer.encoder.layer.*"

# One row a parameter or module: here | transformers | Microsoft; `*` stands for a number. Microsoft stacks the
# image encoder's queries, keys and values; `_unstack` gives the three parts the names listed here.
_NAMES = [
    ("image_encoder.class_embedding", f"{_EYE}.embeddings.class_embedding", f"{_MS_EYE}.class_embedding"),
    ("image_encoder.positions", f"{_EYE}.embeddings.position_embedding.weight", f"{_MS_EYE}.positional_embedding"),
    ("image_encoder.patches", f"{_EYE}.embeddings.patch_embedding", f"{_MS_EYE}.conv1"),
    ("image_encoder.norm_in", f"{_EYE}.pre_layrnorm", f"{_MS_EYE}.ln_pre"),
    ("image_encoder.norm_out", f"{_EYE}.post_layernorm", f"{_MS_EYE}.ln_post"),
    *(
        (f"image_encoder.layers.*.{ours}", f"{_EYE}.encoder.layers.*.{hub}", f"{_MS_EYE}.transformer.resblocks.*.{ms}")
        for ours, hub, ms in [
            ("norm_1", "layer_norm1", "ln_1"),
            ("norm_2", "layer_norm2", "ln_2"),
            ("attention.query", "self_attn.q_proj", "attn.in_proj.q"),
            ("attention.key", "self_attn.k_proj", "attn.in_proj.k"),
            ("attention.value", "self_attn.v_proj", "attn.in_proj.v"),
            ("attention.output", "self_attn.out_proj", "attn.out_proj"),
            ("up", "mlp.fc1", "mlp.c_fc"),
            ("down", "mlp.fc2", "mlp.c_proj"),
        ]
    ),
    ("temporal.*", "git.img_temporal_embedding.*", "img_temperal_embedding.*"),
    ("projection.*", "git.visual_projection.visual_projection.*", "textual.visual_projection.*"),
    ("embedding.words", "git.embeddings.word_embeddings", "textual.embedding.words"),
    ("embedding.positions", "git.embeddings.position_embeddings", "textual.embedding.positions"),
    ("embedding.norm", "git.embeddings.LayerNorm", "textual.embedding.layer_norm"),
    *(
        (f"layers.*.{ours}", f"{_LAYER}.{theirs}", f"{_MS_LAYER}.{theirs}")
        for ours, theirs in [
            ("attention.query", "attention.self.query"),
            ("attention.key", "attention.self.key"),
            ("attention.value", "attention.self.value"),
            ("attention.output", "attention.output.dense"),
            ("norm_1", "attention.output.LayerNorm"),
            ("up", "intermediate.dense"),
            ("down", "output.dense"),
            ("norm_2", "output.LayerNorm"),
        ]
    ),
    ("head", "output", "textual.output"),
]
_LAYOUTS = {"here": 0, "transformers": 1, "microsoft": 2}

# In files, but no weights of the model: counters that older versions stored, and CLIP's unused projection.
_IGNORED = re.compile(
    r"git\.embeddings\.position_ids|git\.image_encoder\.vision_model\.embeddings\.position_ids"
    r"|textual\.embedding\.position_ids|image_encoder\.proj"
)
_PATCH_SIZES = {"CLIPViT_B_16": 16, "CLIPViT_L_14": 14}


class Weights(dict):
    """Tensors by the names they have here; `layout` remembers how their file spells names."""

    layout = "here"


def rename(name: str, source: str, target: str) -> str | None:
    """A parameter's name in another layout ("here", "transformers", "microsoft"); None when it has none."""
    for row in _NAMES:
        pattern = re.escape(row[_LAYOUTS[source]]).replace(r"\*", r"(\d+)") + r"(\.weight|\.bias)?"
        if match := re.fullmatch(pattern, name):
            *numbers, leaf = match.groups()
            for number in numbers:
                row = [column.replace("*", number, 1) for column in row]
            return row[_LAYOUTS[target]] + (leaf or "")
    return None


def embedded(name: str) -> Path:
    """The folder of a model that ships with the repository, `data/<name>`; FileNotFoundError when it is absent."""
    folder = Path(__file__).resolve().parents[2] / "data" / name
    if not folder.is_dir():
        raise FileNotFoundError(f"no embedded {name} at {folder}: use a clone of gitdistill, installed with -e")
    return folder


def resolve(source: str | os.PathLike) -> Path:
    """The local folder that `source` means: a folder, `"glyphs"` (the embedded teacher), or a hub id.

    A hub id is downloaded once (safetensors if the hub has them) and then found without network. Raises
    FileNotFoundError saying what to do when there is nothing to read.
    """
    folder = Path(source).expanduser()
    if source == "glyphs":
        return embedded("teacher")
    if folder.is_dir():
        return folder
    if folder.exists():
        raise FileNotFoundError(f"{source} is a file: give the checkpoint's folder")
    if not re.fullmatch(r"[\w-][\w.-]*(/[\w-][\w.-]*)?", str(source)):
        raise FileNotFoundError(f"no folder {source}")
    folder = download(str(source), ["*.json", "*.txt", "*.safetensors"])
    if not any(folder.glob("*.safetensors")):
        folder = download(str(source), ["*.json", "*.txt", "pytorch_model*.bin"])
    return folder


def download(name: str, patterns: list[str]) -> Path:
    """The hub's files of repository `name` that match; what was downloaded before is found without network."""
    try:
        return Path(snapshot_download(name, allow_patterns=patterns))
    except RepositoryNotFoundError:
        problem = f"neither a folder here nor a repository of the hub is called {name}"
    except (LocalEntryNotFoundError, HfHubHTTPError, OSError):
        problem = f"there is no folder {name}, and the hub cannot be reached to download it"
    raise FileNotFoundError(
        f'{problem}: give a checkpoint\'s folder or "glyphs" (embedded), or load a hub id once with network'
    ) from None


def load(source: str | os.PathLike) -> tuple[GitConfig, Weights]:
    """Configuration and weights of a checkpoint, for `fill`; see `resolve` for what `source` may be.

    Raises FileNotFoundError when there is no checkpoint, ValueError when it cannot be read or is no GIT.
    """
    folder = resolve(source)
    if (folder / "snapshot" / "model.pt").is_file():
        return _load_microsoft(folder)
    if (folder / "config.json").is_file():
        return _load_transformers(folder)
    raise FileNotFoundError(
        f"{folder} is no checkpoint: it holds neither config.json (transformers) nor snapshot/model.pt (Microsoft)"
    )


def fill(model: nn.Module, weights: Weights, source) -> None:
    """Copy `weights` into `model`, all of them or none; a ValueError names what is missing, left over, misshapen."""
    wanted = model.state_dict()
    if model.config.tie_word_embeddings:
        weights = _tied(weights)
    problems = {
        "missing": [name for name in wanted if name not in weights],
        "unexpected": [name for name in weights if name not in wanted],
        "misshapen": [name for name in wanted if name in weights and weights[name].shape != wanted[name].shape],
    }
    if any(problems.values()):
        told = [_tell(kind, names, weights, wanted) for kind, names in problems.items() if names]
        raise ValueError(f"{source} does not fit: " + "; ".join(told))
    model.load_state_dict(weights)


def _tied(weights: Weights) -> Weights:
    """`weights` with the head's copy of the word embedding added where the file leaves it out."""
    full = Weights(weights)
    full.layout = getattr(weights, "layout", "here")
    if "embedding.words.weight" in full:
        full.setdefault("head.weight", full["embedding.words.weight"])
    return full


def _tell(kind: str, names: list[str], weights: Weights, wanted: dict[str, Tensor], most: int = 4) -> str:
    layout = getattr(weights, "layout", "here")
    spelt = {}
    for name in names:
        file_name = rename(name, "here", layout) or name
        file_name = re.sub(r"in_proj\.[qkv]\.", "in_proj_", file_name)
        shapes = f" {list(weights[name].shape)} instead of {list(wanted[name].shape)}" if kind == "misshapen" else ""
        spelt[file_name] = shapes
    shown = [name + shapes for name, shapes in spelt.items()][:most]
    more = f" and {len(spelt) - most} more" if len(spelt) > most else ""
    return f"{len(spelt)} {kind} ({', '.join(shown)}{more})"


def _translate(tensors: dict[str, Tensor], layout: str) -> Weights:
    """Tensors under the names used here; what has no name here keeps its own, for `fill` to complain about."""
    weights = Weights()
    weights.layout = layout
    for name, tensor in tensors.items():
        if _IGNORED.fullmatch(name):
            continue
        modern = name.replace("git.img_temperal_embedding.", "git.img_temporal_embedding.")
        ours = rename(modern, layout, "here") or name
        if ours in weights:
            raise ValueError(f"the checkpoint holds {name} twice, under two spellings")
        weights[ours] = tensor
    return weights


# transformers' layout


def _load_transformers(folder: Path) -> tuple[GitConfig, Weights]:
    return _read_config(folder / "config.json"), _translate(_read_tensors(folder), "transformers")


def _read_config(path: Path) -> GitConfig:
    try:
        fields = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        raise ValueError(f"{path} is not readable JSON: {_line(error)}") from None
    kind = fields.get("model_type") if isinstance(fields, dict) else None
    if kind != "git":
        raise ValueError(f"{path} describes a model of type {kind!r}, not 'git'")
    try:
        config = GitConfig.from_dict(fields)
    except Exception as error:  # the strict configuration classes raise several kinds
        raise ValueError(f"{path} is no valid GIT configuration: {_line(error)}") from None
    vision = config.vision_config
    for field in ("image_size", "patch_size"):
        setattr(vision, field, _one(getattr(vision, field), f"{path}: {field}"))
    config.eos_token_id = _one(config.eos_token_id, f"{path}: eos_token_id")
    return config


def _one(value, what: str):
    """A single number that may come as a list of equal ones."""
    values = set(value) if isinstance(value, list | tuple) else {value}
    if len(values) != 1:
        raise ValueError(f"{what} is {value}, but one number is needed")
    return values.pop()


def _read_tensors(folder: Path) -> dict[str, Tensor]:
    for name in ("model.safetensors", "pytorch_model.bin"):
        if (folder / name).is_file():
            return _read_file(folder / name)
        index = folder / f"{name}.index.json"
        if index.is_file():
            parts = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
            tensors = {}
            for part in parts:
                tensors.update(_read_file(folder / Path(part).name))
            return tensors
    raise FileNotFoundError(f"{folder} holds a config.json but neither model.safetensors nor pytorch_model.bin")


def _read_file(path: Path) -> dict[str, Tensor]:
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing, though the checkpoint's index lists it")
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        return torch.load(path, map_location="cpu", weights_only=True)
    except (SafetensorError, pickle.UnpicklingError, RuntimeError, EOFError, OSError) as error:
        raise ValueError(f"{path} cannot be read as a file of tensors: {_line(error)}") from None


def _line(error: Exception) -> str:
    return str(error).strip().split("\n")[0] or type(error).__name__


def save(model: nn.Module, folder: str | os.PathLike, dtype: torch.dtype | None = None) -> None:
    """Write `config.json` and `model.safetensors` as transformers lays them out; both whole, or none.

    `dtype` (say torch.float16) is how the tensors are stored; the configuration still asks for float32, which
    is what transformers then loads. Raises OSError in one line when the disk is full.
    """
    tensors = {}
    for name, tensor in model.state_dict().items():
        if name == "head.weight" and model.config.tie_word_embeddings:
            continue  # the word embedding is the head
        tensor = tensor.detach().to("cpu", dtype or tensor.dtype).contiguous()
        tensors[rename(name, "here", "transformers")] = tensor
    config = copy.deepcopy(model.config)
    config.architectures, config.dtype = ["GitForCausalLM"], "float32"
    text = config.to_json_string()
    write_whole(
        folder,
        {
            "config.json": lambda path: path.write_text(text, encoding="utf-8"),
            "model.safetensors": lambda path: save_file(tensors, path, metadata={"format": "pt"}),
        },
    )


def write_whole(folder: str | os.PathLike, writers: dict[str, Callable[[Path], object]]) -> None:
    """Write several files of a folder, all or none: each under a temporary name first, then all renamed.

    `writers` maps a file's name to a function that writes to the path it is given. Whatever goes wrong, an
    interrupt included, older files stay as they were and nothing partial is left; a full disk is an OSError
    in one line.
    """
    folder = Path(folder)
    if folder.exists() and not folder.is_dir():
        raise FileExistsError(f"cannot save to {folder}: a file of that name is in the way")
    new = not folder.exists()
    temporary = {name: folder / f".{name}.{os.getpid()}.tmp" for name in writers}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, write in writers.items():
            write(temporary[name])
        for name, path in temporary.items():
            path.replace(folder / name)
    except BaseException as error:
        for path in temporary.values():
            path.unlink(missing_ok=True)
        if new and folder.is_dir() and not any(folder.iterdir()):
            folder.rmdir()
        if isinstance(error, OSError | SafetensorError):
            raise OSError(f"could not save to {folder}, nothing was written: {_line(error)}") from error
        raise


# Microsoft's layout


def _load_microsoft(folder: Path) -> tuple[GitConfig, Weights]:
    path = folder / "snapshot" / "model.pt"
    content = _read_file(path)
    content = content.get("model", content) if isinstance(content, dict) else None
    if not isinstance(content, dict) or not all(isinstance(value, Tensor) for value in content.values()):
        raise ValueError(f"{path} holds no state dict under 'model'")
    tensors = _unstack({name.removeprefix("module."): tensor for name, tensor in content.items()})
    return _microsoft_config(tensors, _read_parameters(folder / "parameter.yaml"), path), _translate(
        tensors, "microsoft"
    )


def _unstack(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Split the stacked attention inputs of the image encoder in three."""
    split = {}
    for name, tensor in tensors.items():
        if match := re.fullmatch(r"(image_encoder\..*\.attn)\.in_proj_(weight|bias)", name):
            stem, leaf = match.groups()
            for part, chunk in zip("qkv", tensor.tensor_split(3)):
                split[f"{stem}.in_proj.{part}.{leaf}"] = chunk
        else:
            split[name] = tensor
    return split


def _read_parameters(path: Path) -> dict:
    if not path.is_file():
        return {}
    try:
        fields = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    except yaml.YAMLError as error:
        raise ValueError(f"{path} is not readable YAML: {_line(error)}") from None
    if not isinstance(fields, dict):
        raise ValueError(f"{path} must hold names and values")
    return fields


def _microsoft_config(tensors: dict[str, Tensor], parameters: dict, path: Path) -> GitConfig:
    """Sizes are read off the tensors; what parameter.yaml says about them must agree."""
    shape = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    eye, text = "image_encoder.transformer.resblocks", "textual.transformer.encoder.layer"
    needed = [
        "image_encoder.conv1.weight",
        "image_encoder.positional_embedding",
        f"{eye}.0.mlp.c_fc.weight",
        "textual.embedding.words.weight",
        "textual.embedding.positions.weight",
        f"{text}.0.intermediate.dense.weight",
    ]
    if missing := [name for name in needed if name not in shape]:
        raise ValueError(f"{path} is no GIT: it lacks {', '.join(missing)}")
    width, _, patch, _ = shape["image_encoder.conv1.weight"]
    vocabulary, text_width = shape["textual.embedding.words.weight"]
    side = round((shape["image_encoder.positional_embedding"][0] - 1) ** 0.5)
    frames = _count(shape, "img_temperal_embedding")
    image_size = parameters.get("test_crop_size", side * patch)
    _agree(path, "visual_feature_size", parameters.get("visual_feature_size", width), width)
    _agree(path, "patch size by image_encoder_type", _patch_size(parameters, patch, path), patch)
    _agree(path, "patches a side by test_crop_size", image_size // patch, side)
    _agree(path, "num_image_with_embedding", parameters.get("num_image_with_embedding") or frames, frames)
    words, head = tensors["textual.embedding.words.weight"], tensors.get("textual.output.weight")
    config = GitConfig(
        vision_config={
            "hidden_size": width,
            "intermediate_size": shape[f"{eye}.0.mlp.c_fc.weight"][0],
            "num_hidden_layers": _count(shape, eye),
            "num_attention_heads": max(1, width // 64),
            "image_size": image_size,
            "patch_size": patch,
        },
        vocab_size=vocabulary,
        hidden_size=text_width,
        intermediate_size=shape[f"{text}.0.intermediate.dense.weight"][0],
        num_hidden_layers=_count(shape, text),
        num_attention_heads=max(1, text_width // 64),
        max_position_embeddings=shape["textual.embedding.positions.weight"][0],
        num_image_with_embedding=frames or None,
        tie_word_embeddings=head is None or torch.equal(head, words),
    )
    if "test_respect_ratio_max" in parameters:
        config.test_respect_ratio_max = parameters["test_respect_ratio_max"]  # longer side of a VQA image, pixels
    return config


def _count(names, stem: str) -> int:
    """How many numbered entries `stem.0`, `stem.1`, … there are."""
    found = [re.match(re.escape(stem) + r"\.(\d+)", name) for name in names]
    return 1 + max((int(match.group(1)) for match in found if match), default=-1)


def _patch_size(parameters: dict, default: int, path: Path) -> int:
    kind = parameters.get("image_encoder_type")
    if kind is not None and kind not in _PATCH_SIZES:
        raise ValueError(f"{path}: image_encoder_type {kind} is unknown; known are {', '.join(_PATCH_SIZES)}")
    return _PATCH_SIZES.get(kind, default)


def _agree(path: Path, what: str, said: int, found: int) -> None:
    if said != found:
        raise ValueError(f"{path} does not fit its parameter.yaml: {what} is {said}, the tensors have {found}")
