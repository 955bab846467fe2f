"""GIT checkpoints: transformers' layout read and written, Microsoft's layout read, every key accounted for.

Microsoft's files: https://github.com/microsoft/GenerativeImage2Text. Nothing here runs code that a checkpoint
brings along: tensors come from safetensors or from `torch.load(weights_only=True)`.
"""

import copy
import json
import os
import re
from pathlib import Path

import torch
import yaml
from huggingface_hub import snapshot_download
from huggingface_hub.errors import LocalEntryNotFoundError, RepositoryNotFoundError
from torch import Tensor, nn
from transformers import GitConfig

from gitdistill.models import storage

_EYE, _MS_EYE = "git.image_encoder.vision_model", "image_encoder"
_LAYER, _MS_LAYER = "git.encoder.layer.*", "textual.transformer.encoder.layer.*"

# One row a parameter or module: here | transformers | Microsoft; `*` stands for a number. Microsoft stacks
# the image encoder's queries, keys and values; `_unstack` gives the three parts the names listed here.
_NAMES = [
    ("image_encoder.class_embedding", f"{_EYE}.embeddings.class_embedding", f"{_MS_EYE}.class_embedding"),
    (
        "image_encoder.positions",
        f"{_EYE}.embeddings.position_embedding.weight",
        f"{_MS_EYE}.positional_embedding",
    ),
    ("image_encoder.patches", f"{_EYE}.embeddings.patch_embedding", f"{_MS_EYE}.conv1"),
    ("image_encoder.norm_in", f"{_EYE}.pre_layrnorm", f"{_MS_EYE}.ln_pre"),
    ("image_encoder.norm_out", f"{_EYE}.post_layernorm", f"{_MS_EYE}.ln_post"),
    *(
        (
            f"image_encoder.layers.*.{ours}",
            f"{_EYE}.encoder.layers.*.{hub}",
            f"{_MS_EYE}.transformer.resblocks.*.{ms}",
        )
        for ours, hub, ms in [
            ("norm_1", "layer_norm1", "ln_1"),
            ("norm_2", "layer_norm2", "ln_2"),
            ("attention.query", "self_attn.q_proj", "attn.in_proj.q"),
            ("attention.key", "self_attn.k_proj", "attn.in_proj.k"),
            ("attention.value", "self_attn.v_proj", "attn.in_proj.v"),
            ("attention.output", "self_attn.out_proj", "attn.out_proj"),
            ("feed_forward.up", "mlp.fc1", "mlp.c_fc"),
            ("feed_forward.down", "mlp.fc2", "mlp.c_proj"),
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
            ("feed_forward.up", "intermediate.dense"),
            ("feed_forward.down", "output.dense"),
            ("norm_2", "output.LayerNorm"),
        ]
    ),
    ("head", "output", "textual.output"),
]
_LAYOUTS = {"here": 0, "transformers": 1, "microsoft": 2}

# In files, but no weights of the model: counters that older versions stored, and CLIP's unused projection.
_IGNORED = re.compile(r"git\.(image_encoder\.vision_model\.)?embeddings\.position_ids|image_encoder\.proj")
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
    """The folder of a model that ships with the repository, `data/<name>`; FileNotFoundError if it is absent."""
    folder = Path(__file__).resolve().parents[2] / "data" / name
    if not folder.is_dir():
        raise FileNotFoundError(
            f"no embedded {name} at {folder}: use a clone of gitdistill, installed with -e"
        )
    return folder


def resolve(source: str | os.PathLike, weights: bool = True) -> Path:
    """The local folder that `source` means: a folder, `"glyphs"` (the embedded teacher), or a hub id.

    A hub id is downloaded once (safetensors if the hub has them; no `weights`, if so asked) and then found without
    network. Raises FileNotFoundError saying what to do when there is nothing to read.
    """
    folder = Path(source).expanduser()
    if source == "glyphs":
        return embedded("teacher")
    if folder.is_dir():
        return folder
    if folder.exists():
        raise FileNotFoundError(f"{source} is a file: give the checkpoint's folder")
    if not is_repository(str(source)):
        raise FileNotFoundError(f"no folder {source}")
    folder = download(str(source), ["*.json", "*.txt", *(["*.safetensors"] if weights else [])])
    if weights and not any(folder.glob("*.safetensors")):
        folder = download(str(source), ["*.json", "*.txt", "pytorch_model*.bin"])
    return folder


def is_repository(name: str) -> bool:
    """Could this be the name of a repository of the hub?"""
    return re.fullmatch(r"[\w-][\w.-]*(/[\w-][\w.-]*)?", name) is not None


def download(name: str, patterns: list[str]) -> Path:
    """The hub's files of repository `name` that match; what was downloaded before is found without network."""
    advice = 'give a checkpoint\'s folder or "glyphs" (embedded), or load it once with network'
    try:
        return Path(snapshot_download(name, allow_patterns=patterns))
    except RepositoryNotFoundError:
        problem, advice = f"no folder and no repository of the hub is called {name}", "check its spelling"
    except LocalEntryNotFoundError:
        problem = f"there is no folder {name}, and the hub cannot be reached to download it"
    except Exception as error:  # httpx, the hub's client and the system each have their own
        problem = f"{name} could not be downloaded ({storage.first_line(error)})"
    raise FileNotFoundError(f"{problem}: {advice}")


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
        f"{folder} is no checkpoint: it has neither config.json (transformers) nor snapshot/model.pt (Microsoft)"
    )


def fill(model: nn.Module, weights: Weights, source) -> None:
    """Copy `weights` into `model`, all or none; a ValueError names keys missing, left over or misshapen."""

    layout = getattr(weights, "layout", "here")

    def spell(name: str) -> str:
        spelt = rename(name, "here", layout) or name
        return re.sub(r"\.in_proj\.[qkv]\.", ".in_proj_", spelt)

    full = dict(weights)
    if model.config.tie_word_embeddings and "embedding.words.weight" in full:
        full.setdefault("head.weight", full["embedding.words.weight"])
    storage.fill(model, full, source, spell)


def _translate(tensors: dict[str, Tensor], layout: str) -> Weights:
    """Tensors by the names used here; what has no name here keeps its own, for `fill` to complain about."""
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
    config, weights = _read_config(folder), _translate(_read_tensors(folder), "transformers")
    words, head = weights.get("embedding.words.weight"), weights.get("head.weight")
    if words is not None and head is not None and not torch.equal(words, head):
        config.tie_word_embeddings = False  # two copies that differ are two matrices; transformers agrees
    return config, weights


def _read_config(folder: Path) -> GitConfig:
    fields = storage.read_config(folder)
    path = folder / "config.json"
    if fields.get("model_type") != "git":
        raise ValueError(f"{path} describes a model of type {fields.get('model_type')!r}, not 'git'")
    try:
        config = GitConfig.from_dict(fields)
    except Exception as error:  # the strict configuration classes raise several kinds
        raise ValueError(f"{path} is no valid GIT configuration: {storage.first_line(error)}") from None
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
            return storage.read_weights(folder / name)
        index = folder / f"{name}.index.json"
        if index.is_file():
            return _read_shards(index)
    raise FileNotFoundError(
        f"{folder} holds a config.json but neither model.safetensors nor pytorch_model.bin"
    )


def _read_shards(index: Path) -> dict[str, Tensor]:
    try:
        parts = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
    except (ValueError, KeyError, TypeError, AttributeError):
        raise ValueError(f"{index} does not list the checkpoint's files") from None
    tensors = {}
    for part in sorted(parts):
        tensors.update(storage.read_weights(index.parent / Path(part).name))
    return tensors


def save(model: nn.Module, folder: str | os.PathLike, dtype: torch.dtype | None = None) -> None:
    """Write `config.json` and `model.safetensors` as transformers lays them out; both whole, or none.

    `dtype` (say torch.float16) is how the tensors are stored; the configuration still asks for float32, which
    is what transformers then loads. Raises OSError in one line when the disk is full.
    """
    weights = {
        rename(name, "here", "transformers"): tensor
        for name, tensor in model.state_dict().items()
        if not (name == "head.weight" and model.config.tie_word_embeddings)  # the word embedding is the head
    }
    config = copy.deepcopy(model.config)
    config.architectures, config.dtype = ["GitForCausalLM"], "float32"
    storage.write_folder(folder, json.loads(config.to_json_string()), weights, dtype)


# Microsoft's layout


def _load_microsoft(folder: Path) -> tuple[GitConfig, Weights]:
    path = folder / "snapshot" / "model.pt"
    tensors = {name.removeprefix("module."): tensor for name, tensor in storage.read_weights(path).items()}
    tensors = _unstack(tensors)
    config = _microsoft_config(tensors, _read_parameters(folder / "parameter.yaml"), path)
    return config, _translate(tensors, "microsoft")


def _unstack(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Tensors with the stacked queries, keys and values of the image encoder split in three."""
    split = {}
    for name, tensor in tensors.items():
        if match := re.fullmatch(r"(image_encoder\..*\.attn)\.in_proj_(weight|bias)", name):
            stem, leaf = match.groups()
            for part, chunk in zip("qkv", tensor.tensor_split(3)):  # uneven parts: `fill` complains
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
        raise ValueError(f"{path} is not readable YAML: {storage.first_line(error)}") from None
    if not isinstance(fields, dict):
        raise ValueError(f"{path} must hold names and values")
    for name in (
        "visual_feature_size",
        "num_image_with_embedding",
        "test_crop_size",
        "test_respect_ratio_max",
    ):
        if not isinstance(fields.get(name, 0), int):
            raise ValueError(f"{path}: {name} must be a whole number, not {fields[name]!r}")
    return fields


def _microsoft_config(tensors: dict[str, Tensor], parameters: dict, path: Path) -> GitConfig:
    """Sizes are read off the tensors; what parameter.yaml says about them must agree."""
    eye, text = "image_encoder.transformer.resblocks", "textual.transformer.encoder.layer"

    def shape(name: str, dimensions: int) -> tuple[int, ...]:
        if name not in tensors or tensors[name].dim() != dimensions:
            raise ValueError(f"{path} is no GIT: {name} is {'misshapen' if name in tensors else 'missing'}")
        return tuple(tensors[name].shape)

    width, _, patch, _ = shape("image_encoder.conv1.weight", 4)
    side = round((shape("image_encoder.positional_embedding", 2)[0] - 1) ** 0.5)
    vocabulary, text_width = shape("textual.embedding.words.weight", 2)
    kind = parameters.get("image_encoder_type")
    if kind is not None and kind not in _PATCH_SIZES:
        raise ValueError(f"{path}: image_encoder_type {kind} is unknown; known are {', '.join(_PATCH_SIZES)}")
    image_size = parameters.get("test_crop_size", side * patch)
    frames = parameters.get("num_image_with_embedding", _count(tensors, "img_temperal_embedding"))
    for what, said, found in [
        ("image_encoder_type's patch size", _PATCH_SIZES.get(kind, patch), patch),
        ("visual_feature_size", parameters.get("visual_feature_size", width), width),
        ("test_crop_size in patches", image_size // patch, side),
    ]:
        if said != found:
            raise ValueError(f"{path} does not fit its parameter.yaml: {what} is {said}, not {found}")
    words, head = tensors["textual.embedding.words.weight"], tensors.get("textual.output.weight")
    config = GitConfig(
        vision_config={
            "hidden_size": width,
            "intermediate_size": shape(f"{eye}.0.mlp.c_fc.weight", 2)[0],
            "num_hidden_layers": _count(tensors, eye),
            "num_attention_heads": max(1, width // 64),
            "image_size": image_size,
            "patch_size": patch,
        },
        vocab_size=vocabulary,
        hidden_size=text_width,
        intermediate_size=shape(f"{text}.0.intermediate.dense.weight", 2)[0],
        num_hidden_layers=_count(tensors, text),
        num_attention_heads=max(1, text_width // 64),
        max_position_embeddings=shape("textual.embedding.positions.weight", 2)[0],
        num_image_with_embedding=frames or None,
        tie_word_embeddings=head is not None and torch.equal(head, words),
    )
    if "test_respect_ratio_max" in parameters:  # how long, in pixels, the longer side of a VQA image may be
        config.test_respect_ratio_max = parameters["test_respect_ratio_max"]
    return config


def _count(names, stem: str) -> int:
    """How many numbered entries `stem.0`, `stem.1`, … there are."""
    found = [re.match(re.escape(stem) + r"\.(\d+)", name) for name in names]
    return 1 + max((int(match.group(1)) for match in found if match), default=-1)
