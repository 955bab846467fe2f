"""TinyVIT: the student's image backbone, any timm model that gives feature maps.

TinyViT: Wu et al. 2022, https://arxiv.org/abs/2207.10666. timm: https://github.com/huggingface/pytorch-image-models
"""

import difflib
import re
from inspect import signature
from pathlib import Path

import timm
import torch
from timm.layers import Format
from timm.models import build_model_with_cfg, tiny_vit
from torch import Tensor, nn
from torch.nn import functional as F

from gitdistill.models import checkpoints, storage
from gitdistill.models.attention import has_listeners
from gitdistill.models.preprocessing import to_pixels

# What timm takes beside an architecture's sizes: files, addresses and how to read them.
_OTHER = {*signature(timm.create_model).parameters, *signature(build_model_with_cfg).parameters}
_OTHER |= {"weights", "features_only"}


class WindowAttention(nn.Module):
    """timm's TinyViT attention with a named softmax child, and position biases that are never stale.

    Takes over the parameters of `original`. Hook `softmax` to see the weights, [B*F*windows, H, n, n] for windows of n
    image features; without a hook the fused kernel runs. timm caches the gathered biases in eval mode, where they
    outlive a change of the weights; here every call gathers them.
    """

    def __init__(self, original: tiny_vit.Attention):
        super().__init__()
        self.num_heads, self.scale = original.num_heads, original.scale
        self.key_dim, self.val_dim = original.key_dim, original.val_dim
        self.attention_biases = original.attention_biases
        self.register_buffer("attention_bias_idxs", original.attention_bias_idxs, persistent=False)
        self.norm, self.qkv, self.proj = original.norm, original.qkv, original.proj
        self.softmax = nn.Softmax(dim=-1)

    def forward(self, x: Tensor) -> Tensor:
        """Image features of each window [B*F*windows, n, C] -> the same shape."""
        qkv = self.qkv(self.norm(x)).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
        query, key, value = qkv.split([self.key_dim, self.key_dim, self.val_dim], dim=-1)
        index = self.attention_bias_idxs
        biases = self.attention_biases.index_select(1, index.flatten()).unflatten(1, index.shape)
        if has_listeners(self.softmax):
            mixed = self.softmax((query * self.scale) @ key.transpose(-2, -1) + biases) @ value
        else:  # torch fuses only with masks of four dimensions
            mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=biases[None])
        return self.proj(mixed.transpose(1, 2).flatten(2))


def _is_size(value) -> bool:
    """Numbers, words such as "gelu", and lists of them."""
    if isinstance(value, list | tuple):
        return all(map(_is_size, value))
    return value is None or isinstance(value, int | float) or re.fullmatch(r"[\w.]+", str(value)) is not None


def _check_sizes(options: dict, source) -> None:
    if odd := [key for key, value in options.items() if key in _OTHER or not _is_size(value)]:
        raise ValueError(
            f"{source} is refused: {storage.shorten(odd)} of its backbone is no size of a network"
        )


def _fetched(name: str) -> dict:
    """Where timm finds the weights of `name`, fetched from the hub here: timm asks it for most of a minute in vain."""
    config = timm.get_pretrained_cfg(name)
    if not getattr(config, "hf_hub_id", None):  # timm fetches the weights from elsewhere
        return {}
    folder = checkpoints.download(config.hf_hub_id, ["model.safetensors"])
    return {"pretrained_cfg_overlay": {"file": str(folder / "model.safetensors")}}


class TinyVIT(nn.Module):
    """Feature maps of single frames, stage by stage, from any timm model with `features_only`.

    name: timm's, with or without a tag ("tiny_vit_5m_224.dist_in22k_ft_in1k").
    pretrained: fetch timm's own weights for that name and tag.
    weights: a local file with timm's names instead (.safetensors, or a PyTorch pickle), read strictly.
    image_size: side in pixels to which raw frames are resized; by default timm's for the name.
    timm_args: passed on (`out_indices`, `embed_dims`, ...). Per stage, `channels` and `grids` hold C and (h, w).
    """

    def __init__(self, name="tiny_vit_5m_224", pretrained=False, weights=None, image_size=None, **timm_args):
        super().__init__()
        timm_args = {key: value for key, value in timm_args.items() if value or key not in _OTHER}
        _check_sizes(timm_args, name)  # what could not be saved
        try:
            fetched = _fetched(name) if pretrained else {}
            self.net = timm.create_model(
                name, pretrained=pretrained, features_only=True, **fetched, **timm_args
            )
            self._adapt(image_size)
        except OSError as error:
            advice = "check the network, give a local file with weights=, or use the backbone 'toybox'"
            raise FileNotFoundError(f"timm's weights of {name} cannot be fetched: {advice}") from error
        except Exception as error:  # an unknown model, or arguments or a size that it does not accept
            near = difflib.get_close_matches(name.split(".")[0], timm.list_models())
            reason = f"{storage.first_line(error)} (nearest of timm's models: {near})"
            raise ValueError(f"timm cannot build {name}, {image_size=}, {timm_args}: {reason}") from error
        # `TinyVIT(**config)` builds this network again.
        self.config = {"name": name, "image_size": self.image_size, **timm_args}
        if weights is not None:
            found = self._rename(storage.read_weights(weights))
            checkpoints.check_fit(self.net, found, weights)
            self.net.load_state_dict(found)

    @torch.no_grad()
    def _adapt(self, image_size: int | None) -> None:
        for path, module in list(self.net.named_modules()):
            if isinstance(module, tiny_vit.Attention):
                self.net.set_submodule(path, WindowAttention(module))
        self.image_size = image_size or self.net.pretrained_cfg["input_size"][-1]
        self.mean, self.std = (tuple(self.net.pretrained_cfg[key]) for key in ("mean", "std"))
        self.channels = list(self.net.feature_info.channels())
        blank = torch.zeros(1, 3, self.image_size, self.image_size)
        self.grids = [tuple(stage.shape[-2:]) for stage in self.eval()(blank)]
        self.train()

    def _rename(self, weights: dict[str, Tensor]) -> dict[str, Tensor]:
        """A timm classifier's weights under the names of its `features_only` model, without the classifier itself."""
        own = self.net.state_dict()
        sizes = {k: v for k, v in self.config.items() if k not in ("name", "image_size", "out_indices")}
        whole = timm.create_model(self.config["name"], **sizes).state_dict()
        renamed = {}
        for key, value in weights.items():
            spellings = (key, key.replace(".", "_", 1), f"model.{key}")  # stages.0.x may be stages_0.x
            renamed[next((name for name in spellings if name in own), key)] = value
        return {key: value for key, value in renamed.items() if key in own or key not in whole}

    @classmethod
    def from_pretrained(cls, source="toybox") -> "TinyVIT":
        """Load `"toybox"` (this repository's), a folder by `save_pretrained`, or the weights of a timm name."""
        folder = checkpoints.embedded("backbone") if source == "toybox" else Path(source).expanduser()
        if not folder.is_dir():
            return cls(str(source), pretrained=True)
        config = storage.read_config(folder)
        if config.keys() & {"architecture", "model_type"}:
            raise ValueError(f"{folder} describes {storage.kind_of(config)}, not a {cls.__name__}")
        weights = storage.read_weights(folder / "model.safetensors")
        return checkpoints.build(lambda: cls.from_config(config, folder), weights, folder).eval()

    @classmethod
    def from_config(cls, config, source) -> "TinyVIT":
        """With random weights, from a `config` that `source` holds: a name of timm's and the architecture's sizes.

        ValueError for anything else, which timm might open or fetch.
        """
        name = config.get("name") if isinstance(config, dict) else None
        if not isinstance(name, str) or not re.fullmatch(r"[\w.]+", name) or not timm.is_model(name):
            raise ValueError(f"{source} names no architecture of timm: {name!r:.60}")
        _check_sizes(config, source)
        return cls(**config)

    def save_pretrained(self, folder, dtype: torch.dtype | None = None) -> None:
        """Write config.json and model.safetensors, both or neither; weights are stored as `dtype`."""
        storage.write_folder(folder, self.config, self.state_dict(), dtype)

    def forward(self, frames: Tensor) -> list[Tensor]:
        """One map [B, F, C, h, w] per stage; frames [B, F, 3, H, W] or [B, 3, H, W] (uint8: raw; floating: pixels)."""
        pixels = to_pixels(frames, self.image_size, self.mean, self.std)
        clips = pixels.shape[:2]
        pixels = pixels.flatten(0, 1).to(next(self.net.parameters()).dtype)
        maps = self.net(pixels.contiguous(memory_format=torch.channels_last))  # faster convolutions
        if getattr(self.net, "output_fmt", Format.NCHW) == Format.NHWC:
            maps = [stage.permute(0, 3, 1, 2) for stage in maps]
        return [stage.unflatten(0, clips) for stage in maps]
