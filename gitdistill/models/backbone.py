"""TinyVIT: the student's image backbone, any timm model that gives feature maps.

TinyViT is Wu et al. 2022, https://arxiv.org/abs/2207.10666; the network itself is timm's
(https://github.com/huggingface/pytorch-image-models).
"""

import difflib
from pathlib import Path

import timm
import torch
from timm.layers import Format
from timm.models import tiny_vit
from torch import Tensor, nn
from torch.nn import functional as F

from gitdistill.models import checkpoints, storage
from gitdistill.models.attention import has_listeners
from gitdistill.models.preprocessing import to_pixels

# The stand-in that ships with the repository: TinyViT at about 0.3 M parameters for 96-pixel frames, whose
# third and last stage is a 6 x 6 grid that attends globally (its window covers it).
EMBEDDED = {
    "name": "tiny_vit_5m_224",
    "image_size": 96,
    "embed_dims": [16, 48, 96],
    "depths": [1, 1, 2],
    "mbconv_expand_ratio": 2.0,
    "num_heads": [1, 2, 4],
    "window_sizes": [6, 6, 6],
    "out_indices": [0, 1, 2],
}


class WindowAttention(tiny_vit.Attention):
    """timm's TinyViT attention with a softmax that can be watched and position biases that are never stale.

    Hook the child `softmax` to see the weights, [B*F*windows, H, n, n] for windows of n cells; nobody
    listening, the fused kernel runs. Parameters and their names are timm's.

    timm keeps the gathered biases from one call in eval mode to the next. They then outlive a change of
    weights, and the graph or the inference mode they were made in; here they are gathered anew, in one flat copy.
    """

    @classmethod
    def adopt(cls, attention: tiny_vit.Attention) -> None:
        """Turn timm's module, in place, into this one."""
        attention.__class__ = cls
        attention.softmax = nn.Softmax(dim=-1)

    def train(self, mode: bool = True):
        super().train(mode)  # timm's returns nothing, so that `.eval()` on this module would too
        return self

    def get_attention_biases(self, device) -> Tensor:
        index = self.attention_bias_idxs
        return self.attention_biases.index_select(1, index.flatten()).unflatten(1, index.shape)

    def forward(self, x: Tensor) -> Tensor:
        """Cells of each window [B*F*windows, n, C] -> the same shape."""
        qkv = self.qkv(self.norm(x)).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
        query, key, value = qkv.split([self.key_dim, self.key_dim, self.val_dim], dim=-1)
        biases = self.get_attention_biases(x.device)
        if has_listeners(self.softmax):
            mixed = self.softmax((query * self.scale) @ key.transpose(-2, -1) + biases) @ value
        else:  # a mask of four dimensions, or the kernel is not the fused one
            mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=biases[None])
        return self.proj(mixed.transpose(1, 2).flatten(2))


class FoldedConvNorm(tiny_vit.ConvNorm):
    """timm's convolution and batch norm as one convolution, where the norm's statistics stand and nothing learns.

    The norm is then a factor and an offset for each channel: they go into the kernel, anew in each call, so that
    nothing is kept that could be stale. A hook on either part still sees it.
    """

    @classmethod
    def adopt(cls, pair: tiny_vit.ConvNorm) -> None:
        """Turn timm's module, in place, into this one."""
        pair.__class__ = cls

    def forward(self, x: Tensor) -> Tensor:
        conv, norm = self.conv, self.bn
        learns = torch.is_grad_enabled() or norm.training or norm.running_var is None
        if learns or has_listeners(conv) or has_listeners(norm):
            return super().forward(x)
        dtype = conv.weight.dtype  # in half precision the product is rounded once
        factor = norm.weight.float() * (norm.running_var.float() + norm.eps).rsqrt()
        kernel = (conv.weight * factor[:, None, None, None]).to(dtype)
        offset = (norm.bias - norm.running_mean * factor).to(dtype)
        return F.conv2d(x, kernel, offset, conv.stride, conv.padding, conv.dilation, conv.groups)


class TinyVIT(nn.Module):
    """Feature maps of single frames, stage by stage, from any timm model with `features_only`.

    name: timm's, with or without a tag ("tiny_vit_5m_224.dist_in22k_ft_in1k").
    pretrained: fetch timm's own weights for that name and tag.
    weights: a local file instead (.safetensors, or a PyTorch pickle), with timm's names; read strictly.
    image_size: side in pixels to which raw frames are resized; timm's own for the name unless given.
    timm_args: passed on (`out_indices`, `embed_dims`, `drop_path_rate`, ...).

    channels, reductions, grids: per stage, the channels C, pixels per cell, and the (h, w) at `image_size`.
    mean, std: timm's statistics for the name.
    """

    def __init__(self, name="tiny_vit_5m_224", pretrained=False, weights=None, image_size=None, **timm_args):
        super().__init__()
        if pretrained and weights is not None:
            raise ValueError("give either pretrained=True or weights=, not both")
        self.net = build(name, pretrained, timm_args)
        for module in self.net.modules():
            if isinstance(module, tiny_vit.Attention):
                WindowAttention.adopt(module)
            if type(module) is tiny_vit.ConvNorm:
                FoldedConvNorm.adopt(module)
        self.image_size = image_size or self.net.pretrained_cfg["input_size"][-1]
        self.mean, self.std = (tuple(self.net.pretrained_cfg[key]) for key in ("mean", "std"))
        self.channels = list(self.net.feature_info.channels())
        self.reductions = list(self.net.feature_info.reduction())
        # What `TinyVIT(**config)` needs to build this network again.
        self.config = {"name": name, "image_size": self.image_size, **timm_args}
        if weights is not None:
            storage.fill(self.net, self._rename(storage.read_weights(weights)), weights)
        self.net.to(memory_format=torch.channels_last)  # a quarter faster on a CPU
        self.grids = self._measure()

    @classmethod
    def from_pretrained(cls, source="glyphs") -> "TinyVIT":
        """Load a folder that `save_pretrained` wrote, or `"glyphs"`: the small backbone in the repository."""
        folder = checkpoints.embedded("backbone") if source == "glyphs" else Path(source)
        config = storage.read_config(folder)
        if "name" not in config:
            raise ValueError(f"{folder}/config.json is no backbone's: it names no timm model")
        backbone = cls(**config)
        storage.fill(backbone, storage.read_weights(folder / "model.safetensors"), folder)
        return backbone.eval()

    def save_pretrained(self, folder, dtype: torch.dtype | None = None) -> None:
        """Write config.json and model.safetensors, whole or not at all; weights are stored as `dtype`."""
        storage.write_folder(folder, self.config, self.state_dict(), dtype)

    def forward(self, frames: Tensor) -> list[Tensor]:
        """One map [B, F, C, h, w] a stage, of frames [B, F, 3, H, W] or [B, 3, H, W].

        uint8 frames are raw: resized and normalised here; floating ones are pixels, taken as they are.
        """
        pixels = to_pixels(frames, self.image_size, self.mean, self.std)
        clips = pixels.shape[:2]
        pixels = pixels.flatten(0, 1).to(next(self.net.parameters()).dtype)
        maps = self._maps(pixels.contiguous(memory_format=torch.channels_last))
        return [stage.unflatten(0, clips) for stage in maps]

    def _maps(self, pixels: Tensor) -> list[Tensor]:
        maps = self.net(pixels)
        if getattr(self.net, "output_fmt", Format.NCHW) == Format.NHWC:
            maps = [stage.permute(0, 3, 1, 2) for stage in maps]
        return maps

    @torch.no_grad()
    def _measure(self) -> list[tuple[int, int]]:
        """(h, w) of each stage's map, read off a blank image in eval mode (which leaves statistics alone)."""
        self.net.eval()
        try:
            maps = self._maps(torch.zeros(1, 3, self.image_size, self.image_size))
        except Exception as error:  # transformers with fixed positions insist on their own size
            raise ValueError(
                f"{self.config['name']} cannot read {self.image_size}-pixel images: {storage.first_line(error)}"
            ) from error
        finally:
            self.net.train()
        return [tuple(stage.shape[-2:]) for stage in maps]

    def _rename(self, weights: dict[str, Tensor]) -> dict[str, Tensor]:
        """Weights of the whole timm classifier under the names of its feature-map form.

        What the feature-map form leaves out (later stages, the head) is dropped; anything else stays, so that
        it will be reported.
        """
        own = self.net.state_dict()
        sizes = {k: v for k, v in self.config.items() if k not in ("name", "image_size", "out_indices")}
        whole = timm.create_model(self.config["name"], **sizes)
        left_out = {key for key in whole.state_dict() if feature_name(key, own) not in own}
        return {feature_name(key, own): value for key, value in weights.items() if key not in left_out}


def build(name: str, pretrained: bool, timm_args: dict) -> nn.Module:
    """timm's network in its feature-map form; a user's mistake gives one line."""
    known = timm.list_models()
    if name.split(".")[0] not in known:
        near = difflib.get_close_matches(name.split(".")[0], known, n=3)
        hint = f"; did you mean {', '.join(near)}?" if near else ""
        raise ValueError(f"timm has no model {name!r}{hint}")
    try:
        return timm.create_model(name, pretrained=pretrained, features_only=True, **timm_args)
    except OSError as error:
        raise FileNotFoundError(
            f"timm's weights of {name} cannot be fetched: connect to the network once, give a local file "
            "with weights=, or use TinyVIT.from_pretrained('glyphs')"
        ) from error
    except Exception as error:
        raise ValueError(f"timm cannot build {name} with {timm_args}: {storage.first_line(error)}") from error


def feature_name(key: str, own: dict) -> str:
    """A timm classifier's parameter name as its feature-map form spells it: stages.0.x -> stages_0.x."""
    return next((k for k in (key, key.replace(".", "_", 1), f"model.{key}") if k in own), key)
