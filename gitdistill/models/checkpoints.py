"""GIT checkpoints: transformers' layout read and written, Microsoft's layout read, every key accounted for.

Microsoft's files: https://github.com/microsoft/GenerativeImage2Text. No code that a checkpoint may hold is run. What
cannot be read is a FileNotFoundError or a ValueError in one line.
"""

import json
import re
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path

import torch
import yaml
from huggingface_hub import constants, model_info, snapshot_download
from huggingface_hub.errors import GatedRepoError, LocalEntryNotFoundError, RepositoryNotFoundError
from torch import Tensor, nn
from torch.nn.modules.module import register_module_module_registration_hook
from transformers import GitConfig

from gitdistill.models import storage

# How parameters and modules are called here, by transformers and by Microsoft: stems, and below each the leaves. `*`
# stands for a number. Microsoft stacks the image encoder's queries, keys and values; `_unstack` names its parts.
_NAMES = {
    ("", "", ""): """
        temporal.*            git.img_temporal_embedding.*                    img_temperal_embedding.*
        projection.*          git.visual_projection.visual_projection.*       textual.visual_projection.*
        embedding.words       git.embeddings.word_embeddings                  textual.embedding.words
        embedding.positions   git.embeddings.position_embeddings              textual.embedding.positions
        embedding.norm        git.embeddings.LayerNorm                        textual.embedding.layer_norm
        head                  output                                          textual.output""",
    ("image_encoder.", "git.image_encoder.vision_model.", "image_encoder."): """
        class_embedding       embeddings.class_embedding                      class_embedding
        positions             embeddings.position_embedding.weight            positional_embedding
        patches               embeddings.patch_embedding                      conv1
        norm_in               pre_layrnorm                                    ln_pre
        norm_out              post_layernorm                                  ln_post
        layers.*.norm_1       encoder.layers.*.layer_norm1                    transformer.resblocks.*.ln_1
        layers.*.norm_2       encoder.layers.*.layer_norm2                    transformer.resblocks.*.ln_2
        layers.*.attention.query   encoder.layers.*.self_attn.q_proj          transformer.resblocks.*.attn.in_proj.q
        layers.*.attention.key     encoder.layers.*.self_attn.k_proj          transformer.resblocks.*.attn.in_proj.k
        layers.*.attention.value   encoder.layers.*.self_attn.v_proj          transformer.resblocks.*.attn.in_proj.v
        layers.*.attention.output  encoder.layers.*.self_attn.out_proj        transformer.resblocks.*.attn.out_proj
        layers.*.feed_forward.up   encoder.layers.*.mlp.fc1                   transformer.resblocks.*.mlp.c_fc
        layers.*.feed_forward.down encoder.layers.*.mlp.fc2                   transformer.resblocks.*.mlp.c_proj""",
    ("layers.*.", "git.encoder.layer.*.", "textual.transformer.encoder.layer.*."): """
        attention.query       attention.self.query                            attention.self.query
        attention.key         attention.self.key                              attention.self.key
        attention.value       attention.self.value                            attention.self.value
        attention.output      attention.output.dense                          attention.output.dense
        norm_1                attention.output.LayerNorm                      attention.output.LayerNorm
        feed_forward.up       intermediate.dense                              intermediate.dense
        feed_forward.down     output.dense                                    output.dense
        norm_2                output.LayerNorm                                output.LayerNorm""",
}
_ROWS = [
    [stem + leaf for stem, leaf in zip(stems, line.split())]
    for stems, table in _NAMES.items()
    for line in table.strip().splitlines()
]
_LAYOUTS = {"here": 0, "transformers": 1, "microsoft": 2}

# In files, but no weights of the model: counters that older versions stored, and CLIP's unused projection.
_IGNORED = re.compile(r"git\.(image_encoder\.vision_model\.)?embeddings\.position_ids|image_encoder\.proj")
_PATCH_SIZES = {"CLIPViT_B_16": 16, "CLIPViT_L_14": 14}


def rename(name: str, source: str, target: str) -> str | None:
    """A parameter's name in another layout ("here", "transformers", "microsoft"); None when it has none."""
    for row in _ROWS:
        pattern = re.escape(row[_LAYOUTS[source]]).replace(r"\*", r"(\d+)") + r"(\.weight|\.bias)?"
        if match := re.fullmatch(pattern, name):
            *numbers, leaf = match.groups(default="")
            return row[_LAYOUTS[target]].replace("*", "{}").format(*numbers) + leaf
    return None


def embedded(name: str) -> Path:
    """The folder of a model that ships with the repository, `data/<name>`; FileNotFoundError if it is absent."""
    folder = Path(__file__).resolve().parents[2] / "data" / name
    if not folder.is_dir():
        raise FileNotFoundError(f"no embedded {name} at {folder}: install a clone of gitdistill with -e")
    return folder


def resolve(source, weights: bool = True) -> Path:
    """The local folder that `source` means: a folder, `"toybox"` (the embedded teacher), or a hub id.

    A hub id is downloaded once: safetensors if the hub has them, or without `weights` only the small files. Raises
    FileNotFoundError saying what to do when there is nothing to read.
    """
    if source == "toybox":
        return embedded("teacher")
    if folder := local(source):
        return folder
    folder = download(str(source), ["*.json", "*.txt", *(["*.safetensors"] if weights else [])])
    if weights and not any(folder.glob("*.safetensors")):
        folder = download(str(source), ["*.json", "*.txt", "pytorch_model*.bin"])
    return folder


def local(source) -> Path | None:
    """The folder `source`; None if it has the form of a hub id, FileNotFoundError if it is neither."""
    name = str(source)
    with suppress(RuntimeError, OSError):  # ~ of a user whom nobody knows, a name that is too long
        folder = Path(source).expanduser()
        if name.strip() and folder.is_dir():
            return folder
        if name.strip() and folder.exists():
            name += " (it is a file: give the checkpoint's folder)"
    if len(name) > 200 or not re.fullmatch(r"[\w-][\w.-]*(/[\w-][\w.-]*)?", name):
        shown = name[:300] if name.strip() and name.isprintable() else repr(name)
        raise FileNotFoundError(f"no folder {shown}")
    return None


def download(name: str, patterns: list[str]) -> Path:
    """The hub's files of repository `name` that match; what was downloaded before is found without network.

    A hub that does not answer is given up after HF_HUB_ETAG_TIMEOUT seconds, by default 10.
    """
    try:
        try:  # `snapshot_download` would wait for ever
            model_info(name, timeout=constants.HF_HUB_ETAG_TIMEOUT)
        except Exception:
            with suppress(LocalEntryNotFoundError):
                return Path(snapshot_download(name, allow_patterns=patterns, local_files_only=True))
            raise
        return Path(snapshot_download(name, allow_patterns=patterns))
    except GatedRepoError:
        advice = f"ask for access at https://huggingface.co/{name}, then log in with `hf auth login`"
        raise FileNotFoundError(f"{name} is gated: {advice}") from None
    except RepositoryNotFoundError:
        problem = f"{name} is no folder, and the hub shows no such repository"
        advice = "check the spelling, or log in with `hf auth login` if it is private"
        raise FileNotFoundError(f"{problem}: {advice}") from None
    except Exception as error:  # httpx, the hub's client and the system each have their own
        problem = f"{name} is no folder and could not be downloaded ({storage.first_line(error)})"
        advice = 'check the network, or give a checkpoint\'s folder or "toybox" (embedded)'
        raise FileNotFoundError(f"{problem}: {advice}") from None


def load_git(kind: Callable[[GitConfig], nn.Module], source) -> nn.Module:
    """The network that `kind` makes of a checkpoint's configuration, with its weights; see `check_fit` for errors."""
    config, weights, layout = load(source)

    def spell(name: str) -> str:
        spelt = rename(name, "here", layout) or name
        return re.sub(r"\.in_proj\.[qkv]\.", ".in_proj_", spelt)

    if config.tie_word_embeddings and "embedding.words.weight" in weights:
        weights.setdefault("head.weight", weights["embedding.words.weight"])
    if (frames := config.num_image_with_embedding or 0) > len(weights):
        raise ValueError(f"{source} is for {frames} frames but has {len(weights)} weights")
    return build(partial(kind, config), weights, source, spell)


def load(source) -> tuple[GitConfig, dict[str, Tensor], str]:
    """A checkpoint's configuration, its weights by the names used here, and its layout, see `rename`."""
    folder = resolve(source)
    try:
        if (folder / "snapshot" / "model.pt").is_file():
            config, tensors, layout = *_read_microsoft(folder), "microsoft"
        elif (folder / "config.json").is_file():
            config, tensors, layout = _read_config(folder), _read_tensors(folder), "transformers"
        else:
            neither = "neither config.json (transformers) nor snapshot/model.pt (Microsoft)"
            raise FileNotFoundError(f"{folder} is no checkpoint: it has {neither}")
        weights = _translate(tensors, layout)
        words, head = weights.get("embedding.words.weight"), weights.get("head.weight")
        if words is not None and head is not None and not torch.equal(words, head):
            config.tie_word_embeddings = False  # two matrices that differ are not tied; transformers agrees
        return config, weights, layout
    except (ValueError, OSError, MemoryError):
        raise
    except Exception as error:  # values of types that nobody writes
        raise ValueError(f"{folder} is no checkpoint of GIT: {storage.first_line(error)}") from error


def build(make: Callable[[], nn.Module], weights: dict[str, Tensor], source, spell=str) -> nn.Module:
    """The module that `make` builds from what a file says, with `weights`; `spell` is as for `check_fit`.

    It is built without memory first: sizes and numbers of layers that the weights do not have cost nothing. A
    ValueError in one line.
    """
    left = 20_000 + 10 * len(weights)  # timm builds parts that it then leaves out

    def count(*_):
        nonlocal left
        left -= 1
        if left < 0:
            raise ValueError("it has more layers than there are weights")

    hook = register_module_module_registration_hook(count)
    try:
        with torch.device("meta"):
            sketch = make()
    except Exception as error:  # sizes that are wrong show in many ways
        raise ValueError(f"{source} describes no network: {storage.first_line(error)}") from error
    finally:
        hook.remove()
    check_fit(sketch, weights, source, spell)
    module = make()
    module.load_state_dict(weights)
    return module


def check_fit(module: nn.Module, weights: dict[str, Tensor], source, spell=str) -> None:
    """A ValueError naming the keys of `weights` that do not fit, as the file `spell`s them."""
    own = module.state_dict()
    shapes = {key: (list(weights[key].shape), list(own[key].shape)) for key in own if key in weights}
    wrong = {
        "missing": [spell(key) for key in own if key not in weights],
        "unexpected": [spell(key) for key in weights if key not in own],
        "misshapen": [f"{spell(key)} {a} instead of {b}" for key, (a, b) in shapes.items() if a != b],
    }
    complaints = [f"{kind}: {storage.shorten(keys)}" for kind, keys in wrong.items() if keys]
    if complaints:
        raise ValueError(f"the weights of {source} do not fit; " + "; ".join(complaints))


def _translate(tensors: dict[str, Tensor], layout: str) -> dict[str, Tensor]:
    """Tensors by the names used here; unknown ones keep theirs, so that `build` reports them."""
    weights = {}
    for name, tensor in tensors.items():
        modern = name.replace("git.img_temperal_embedding.", "git.img_temporal_embedding.")
        ours = rename(modern, layout, "here") or name
        if ours in weights:
            raise ValueError(f"the checkpoint holds {name} twice, under two spellings")
        if not _IGNORED.fullmatch(name):
            weights[ours] = tensor
    return weights


def _read_config(folder: Path) -> GitConfig:
    path, fields = folder / "config.json", storage.read_config(folder)
    if fields.get("model_type") != "git":
        hint = ": give it as the student" if fields.get("architecture") == "StudentCandidateV1" else ""
        raise ValueError(f"{path} describes {storage.kind_of(fields)}, not a GIT{hint}")
    try:
        config = GitConfig.from_dict(fields)
    except Exception as error:  # the strict configuration classes raise several kinds
        raise ValueError(f"{path} is no valid GIT configuration: {storage.first_line(error)}") from None
    vision = config.vision_config
    for part, field in ((vision, "image_size"), (vision, "patch_size"), (config, "eos_token_id")):
        value = getattr(part, field)
        numbers = set(value) if isinstance(value, list | tuple) else {value}
        if len(numbers) != 1:
            raise ValueError(f"{path}: {field} is {value}, but one number is needed")
        setattr(part, field, numbers.pop())
    return config


def _read_tensors(folder: Path) -> dict[str, Tensor]:
    for name in ("model.safetensors", "pytorch_model.bin"):
        index = folder / f"{name}.index.json"
        if (folder / name).is_file():
            return storage.read_weights(folder / name)
        if index.is_file():
            parts = set(storage.parse_metadata(index.read_bytes(), index).get("weight_map", {}).values())
            shards = [storage.read_weights(folder / Path(part).name) for part in sorted(parts)]
            return {key: tensor for shard in shards for key, tensor in shard.items()}
    neither = "neither model.safetensors nor pytorch_model.bin"
    raise FileNotFoundError(f"{folder} holds a config.json but {neither}")


def save(model: nn.Module, folder, dtype: torch.dtype | None = None) -> None:
    """Write model.safetensors (of type `dtype`) and config.json (asking for float32) as transformers lays them out."""
    weights = {rename(name, "here", "transformers"): tensor for name, tensor in model.state_dict().items()}
    if model.config.tie_word_embeddings:
        del weights["output.weight"]  # the word embedding
    fields = {"architectures": ["GitForCausalLM"], "dtype": "float32"}
    storage.write_folder(folder, json.loads(model.config.to_json_string()) | fields, weights, dtype)


def _read_microsoft(folder: Path) -> tuple[GitConfig, dict[str, Tensor]]:
    path, parameters = folder / "snapshot" / "model.pt", _read_parameters(folder / "parameter.yaml")
    tensors = {name.removeprefix("module."): tensor for name, tensor in storage.read_weights(path).items()}
    tensors = _unstack(tensors)
    try:
        config = _microsoft_config(tensors)
    except KeyError as error:
        raise ValueError(f"{path} is no GIT: {error.args[0]} is missing") from None
    _apply_parameters(config, parameters, path)
    return config, tensors


def _unstack(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Tensors with the stacked queries, keys and values of the image encoder split in three."""
    split = {}
    for name, tensor in tensors.items():
        if match := re.fullmatch(r"(image_encoder\..*\.attn)\.in_proj_(weight|bias)", name):
            stem, leaf = match.groups()
            for part, chunk in zip("qkv", tensor.tensor_split(3)):  # uneven parts: `build` complains
                split[f"{stem}.in_proj.{part}.{leaf}"] = chunk
        else:
            split[name] = tensor
    return split


def _read_parameters(path: Path) -> dict:
    if not path.is_file():
        return {}
    try:
        fields = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not readable YAML: {storage.first_line(error)}") from None
    if not isinstance(fields, dict):
        raise ValueError(f"{path} must hold names and values")
    return fields


def _microsoft_config(tensors: dict[str, Tensor]) -> GitConfig:
    """The sizes of tensors; a KeyError with the name of one that is missing."""
    eye, text = "image_encoder.transformer.resblocks", "textual.transformer.encoder.layer"
    width, _, patch, _ = tensors["image_encoder.conv1.weight"].shape
    side = round((len(tensors["image_encoder.positional_embedding"]) - 1) ** 0.5)
    words, head = tensors["textual.embedding.words.weight"], tensors.get("textual.output.weight")
    return GitConfig(
        vision_config={
            "hidden_size": width,
            "intermediate_size": len(tensors[f"{eye}.0.mlp.c_fc.weight"]),
            "num_hidden_layers": _count(tensors, eye),
            "num_attention_heads": max(1, width // 64),
            "image_size": side * patch,
            "patch_size": patch,
        },
        vocab_size=len(words),
        hidden_size=words.shape[1],
        intermediate_size=len(tensors[f"{text}.0.intermediate.dense.weight"]),
        num_hidden_layers=_count(tensors, text),
        num_attention_heads=max(1, words.shape[1] // 64),
        max_position_embeddings=len(tensors["textual.embedding.positions.weight"]),
        num_image_with_embedding=_count(tensors, "img_temperal_embedding") or None,
        tie_word_embeddings=head is not None and torch.equal(head, words),
    )


def _count(names, stem: str) -> int:
    """How many numbered entries `stem.0`, `stem.1`, … there are."""
    found = [re.match(re.escape(stem) + r"\.(\d+)", name) for name in names]
    return 1 + max((int(match.group(1)) for match in found if match), default=-1)


def _apply_parameters(config: GitConfig, parameters: dict, path: Path) -> None:
    """Add what parameter.yaml says to the configuration; a ValueError where it contradicts the tensors."""
    vision, kind = config.vision_config, parameters.get("image_encoder_type")
    size = parameters.get("test_crop_size", vision.image_size)
    patch, width = vision.patch_size, vision.hidden_size
    for what, stated, found in [
        ("image_encoder_type's patch size", _PATCH_SIZES.get(kind, patch), patch),
        ("visual_feature_size", parameters.get("visual_feature_size", width), width),
        ("test_crop_size in patches", size // patch, vision.image_size // patch),
    ]:
        if stated != found:
            raise ValueError(f"{path} does not fit its parameter.yaml: {what} is {stated}, not {found}")
    vision.image_size = size
    frames = parameters.get("num_image_with_embedding", config.num_image_with_embedding)
    config.num_image_with_embedding = frames or None
    if "test_respect_ratio_max" in parameters:  # how long, in pixels, the longer side of a VQA image may be
        config.test_respect_ratio_max = parameters["test_respect_ratio_max"]
