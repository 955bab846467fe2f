"""GIT, the teacher's network: a CLIP image encoder whose tokens prefix a causal text transformer.

Paper: Wang et al. 2022, https://arxiv.org/abs/2205.14100. Follows the numbers of Microsoft's code
(https://github.com/microsoft/GenerativeImage2Text) and of its port in transformers.

In GIT an image token sees all image tokens and never the text. So the image runs through the decoder by
itself, once, and leaves its keys and values behind; any number of captions of the clip then read them.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import GitConfig
from transformers.activations import ACT2FN

from gitdistill.models import checkpoints
from gitdistill.models.attention import (
    Attention,
    KVCache,
    check_tokens,
    packed_causal_mask,
    side_by_side,
)
from gitdistill.models.preprocessing import CLIP_MEAN, CLIP_STD, to_pixels

# Microsoft's question answering does not crop its images: the most pixels of their longer side. Its files say
# so; transformers' of the same checkpoints do not, but `model.config` can be told.
RESPECT_RATIO = "test_respect_ratio_max"


class EncoderLayer(nn.Module):
    """One pre-norm block of the image encoder."""

    def __init__(self, config):
        super().__init__()
        width = config.hidden_size
        self.norm_1 = nn.LayerNorm(width, eps=config.layer_norm_eps)
        self.attention = Attention(width, config.num_attention_heads)
        self.norm_2 = nn.LayerNorm(width, eps=config.layer_norm_eps)
        self.up = nn.Linear(width, config.intermediate_size)
        self.activation = ACT2FN[config.hidden_act]
        self.down = nn.Linear(config.intermediate_size, width)

    def forward(self, x: Tensor) -> Tensor:
        normed = self.norm_1(x)
        x = x + self.attention(normed, self.attention.keys_values(normed))
        return x + self.down(self.activation(self.up(self.norm_2(x))))


class ImageEncoder(nn.Module):
    """CLIP's vision transformer without its final projection: all tokens, class token first."""

    def __init__(self, config):
        super().__init__()
        self.image_size, self.patch = config.image_size, config.patch_size
        grid = config.image_size // config.patch_size
        self.class_embedding = nn.Parameter(torch.randn(config.hidden_size) * 0.02)
        self.patches = nn.Conv2d(3, config.hidden_size, config.patch_size, config.patch_size, bias=False)
        self.positions = nn.Parameter(torch.randn(1 + grid**2, config.hidden_size) * 0.02)
        self.norm_in = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.layers = nn.ModuleList(EncoderLayer(config) for _ in range(config.num_hidden_layers))
        self.norm_out = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)

    def grid_positions(self, height: int, width: int) -> Tensor:
        """Position embeddings for a grid of patches, [1 + height*width, Dv], resized bicubically if need be."""
        side = self.image_size // self.patch
        if (height, width) == (side, side):
            return self.positions
        grid = self.positions[1:].unflatten(0, (side, side)).permute(2, 0, 1)[None]
        grid = F.interpolate(grid, (height, width), mode="bicubic", align_corners=False)
        return torch.cat([self.positions[:1], grid[0].flatten(1).T])

    def forward(self, pixels: Tensor) -> Tensor:
        """Pixels [B, 3, H, W] -> tokens [B, 1 + patches, Dv]."""
        patches = self.patches(pixels)
        x = patches.flatten(2).transpose(1, 2)
        x = torch.cat([self.class_embedding.expand(len(x), 1, -1), x], dim=1)
        x = self.norm_in(x + self.grid_positions(*patches.shape[-2:]))
        for layer in self.layers:
            x = layer(x)
        return self.norm_out(x)


class TextEmbedding(nn.Module):
    """Word plus learned position, normed; positions count from 0 at the start token."""

    def __init__(self, config: GitConfig):
        super().__init__()
        self.words = nn.Embedding(config.vocab_size, config.hidden_size)
        self.positions = nn.Embedding(config.max_position_embeddings, config.hidden_size)
        self.norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(self, tokens: Tensor, start: int) -> Tensor:
        """Tokens [R, T] whose first one stands at position `start` -> [R, T, D]."""
        time = torch.arange(start, start + tokens.shape[1], device=tokens.device)
        return self.dropout(self.norm(self.words(tokens) + self.positions(time)))


class DecoderLayer(nn.Module):
    """One post-norm BERT block; what its rows may look at, the caller lays out."""

    def __init__(self, config: GitConfig):
        super().__init__()
        width = config.hidden_size
        self.attention = Attention(width, config.num_attention_heads, config.attention_probs_dropout_prob)
        self.norm_1 = nn.LayerNorm(width, eps=config.layer_norm_eps)
        self.up = nn.Linear(width, config.intermediate_size)
        self.activation = ACT2FN[config.hidden_act]
        self.down = nn.Linear(config.intermediate_size, width)
        self.norm_2 = nn.LayerNorm(width, eps=config.layer_norm_eps)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(self, x: Tensor, *memories, mask: Tensor | None = None) -> Tensor:
        x = self.norm_1(x + self.dropout(self.attention(x, *memories, mask=mask)))
        return self.norm_2(x + self.dropout(self.down(self.activation(self.up(x)))))


@dataclass
class GitOutput:
    """logits [B*K, T, V] of the text positions; visual_features [B, N, Dv]; hidden_states L+1 times [B*K, T, D]."""

    logits: Tensor
    visual_features: Tensor
    hidden_states: tuple[Tensor, ...]


def check_dtype(dtype: torch.dtype) -> torch.dtype:
    """A ValueError unless a network can be computed in `dtype`."""
    if dtype not in (torch.float32, torch.bfloat16, torch.float16):
        raise ValueError(f"dtype must be torch.float32, torch.bfloat16 or torch.float16, not {dtype!r}")
    return dtype


class GenerativeImageTextModel(nn.Module):
    """GIT with transformers' `GitConfig`; reads and writes transformers' and reads Microsoft's checkpoints.

    `model(frames, tokens)`: frames [B, F, 3, H, W] (uint8: raw; floating: pixels), tokens [B*K, T] long, K
    captions a clip, start token first. A four-dimensional batch of images gets no temporal embedding, as in
    transformers.
    """

    def __init__(self, config: GitConfig):
        super().__init__()
        self.config = config
        vision = config.vision_config
        self.image_encoder = ImageEncoder(vision)
        self.temporal = nn.ParameterList(
            nn.Parameter(torch.zeros(1, 1, vision.hidden_size))
            for _ in range(config.num_image_with_embedding or 0)
        )
        self.projection = nn.Sequential(
            nn.Linear(vision.hidden_size, config.hidden_size),
            nn.LayerNorm(config.hidden_size, eps=vision.layer_norm_eps),
        )
        self.embedding = TextEmbedding(config)
        self.layers = nn.ModuleList(DecoderLayer(config) for _ in range(config.num_hidden_layers))
        self.head = nn.Linear(config.hidden_size, config.vocab_size)
        self.apply(self._initialise)
        if config.tie_word_embeddings:
            self.head.weight = self.embedding.words.weight

    @classmethod
    def from_pretrained(cls, source, dtype: torch.dtype = torch.float32) -> "GenerativeImageTextModel":
        """Load a hub id, a folder in transformers' or Microsoft's layout, or `"glyphs"`, strictly.

        `dtype`: what weights are kept and computed in; torch.bfloat16 halves the memory, on CUDA and on CPUs that
        know it also the time, torch.float16 does on CUDA and MPS. Logits move a little.

        Raises FileNotFoundError when there is no checkpoint, ValueError naming keys that are missing, left over
        or of another shape.
        """
        config, weights = checkpoints.load(source)
        model = cls(config)
        checkpoints.fill(model, weights, source)
        return model.to(check_dtype(dtype)).eval()

    def save_pretrained(self, folder, dtype: torch.dtype | None = None) -> None:
        """Write config.json and model.safetensors as transformers lays them out; whole or not at all."""
        checkpoints.save(self, folder, dtype)

    @staticmethod
    def _initialise(module: nn.Module) -> None:
        if isinstance(module, nn.Linear | nn.Embedding | nn.Conv2d):
            nn.init.normal_(module.weight, std=0.02)
        if isinstance(module, nn.Linear) and module.bias is not None:
            nn.init.zeros_(module.bias)

    bos_token_id = property(lambda self: self.config.bos_token_id)
    eos_token_id = property(lambda self: self.config.eos_token_id)
    pad_token_id = property(lambda self: self.config.pad_token_id)
    vocab_size = property(lambda self: self.config.vocab_size)
    max_positions = property(lambda self: self.config.max_position_embeddings)

    def encode(self, frames: Tensor) -> Tensor:
        """Visual features [B, N, Dv]: each frame through the image encoder, temporal embedding added."""
        size, longest = self.config.vision_config.image_size, getattr(self.config, RESPECT_RATIO, None)
        pixels = to_pixels(frames, size, CLIP_MEAN, CLIP_STD, longest)
        clips, count = pixels.shape[:2]
        pixels = pixels.flatten(0, 1).to(self.image_encoder.patches.weight.dtype)
        features = self.image_encoder(pixels).unflatten(0, (clips, count))
        if frames.dim() == 5 and len(self.temporal):
            if count > len(self.temporal):
                raise ValueError(
                    f"{count} frames, but this checkpoint has {len(self.temporal)} temporal embeddings"
                )
            features = features + torch.stack([t[0] for t in self.temporal[:count]])
        elif count > 1:
            raise ValueError(
                f"{count} frames, but this checkpoint has no temporal embeddings: give it one image"
            )
        return features.flatten(1, 2)

    def prefill(self, frames: Tensor) -> KVCache:
        """Read the clips: their keys and values in every layer, before any text."""
        return self.read_image(self.encode(frames))

    def decode_step(self, tokens: Tensor, state: KVCache) -> tuple[Tensor, KVCache]:
        """Append tokens [B*K, t] to every caption: logits [B*K, t, V] and the grown state."""
        hidden, state = self._read_text(tokens, state)
        return self.head(hidden[-1]), state

    def forward(self, frames: Tensor, tokens: Tensor) -> GitOutput:
        features = self.encode(frames)
        hidden, _ = self._read_text(tokens, self.read_image(features))
        return GitOutput(self.head(hidden[-1]), features, hidden)

    def read_image(self, features: Tensor) -> KVCache:
        """The state before any text, of visual features [B, N, Dv] as `encode` gives them."""
        x = self.projection(features)
        shared = []
        for layer in self.layers:
            # every step reads them: as they lie, bmm would copy them first when there are several clips
            shared.append(tuple(part.contiguous() for part in layer.attention.keys_values(x)))
            if layer is not self.layers[-1]:  # after the last layer no text row looks at the image any more
                x = layer(x, shared[-1])
        return KVCache(shared, [])

    def _read_text(self, tokens: Tensor, state: KVCache) -> tuple[tuple[Tensor, ...], KVCache]:
        rows, total = check_tokens(tokens, state, self.max_positions)
        x = self.embedding(tokens, state.length)
        shape, hidden, text = x.shape, [x], []
        x = x.reshape(state.clips, -1, shape[-1])  # (B, K*t, D)
        image = state.shared[0][0].shape[2]
        one = rows == tokens.shape[1] == 1  # a last word sees everything
        mask = None if one else packed_causal_mask(rows, tokens.shape[1], total, image, x.device)
        for index, layer in enumerate(self.layers):
            text.append(state.append(index, layer.attention.keys_values(x), rows))
            x = layer(x, state.shared[index], side_by_side(text[-1]), mask=mask)
            hidden.append(x.reshape(shape))
        return tuple(hidden), KVCache(state.shared, text)
