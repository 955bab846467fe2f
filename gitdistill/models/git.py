"""GIT, the teacher's network: a CLIP image encoder whose tokens prefix a causal text transformer.

Wang et al. 2022, https://arxiv.org/abs/2205.14100; gives the numbers of Microsoft's code
(https://github.com/microsoft/GenerativeImage2Text) and of its port in transformers. Image tokens never see the text,
so they pass the decoder once, and their keys and values are kept for all captions of the clip.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import GitConfig
from transformers.activations import ACT2FN

from gitdistill.models import checkpoints
from gitdistill.models.attention import Attention, EncoderLayer, FeedForward, KeysValues, KVCache, read_text
from gitdistill.models.preprocessing import CLIP_MEAN, CLIP_STD, to_pixels


class ImageEncoder(nn.Module):
    """CLIP's vision transformer without its final projection."""

    def __init__(self, config):
        super().__init__()
        width, eps = config.hidden_size, config.layer_norm_eps
        sizes = (width, config.num_attention_heads, config.intermediate_size)
        self.side = config.image_size // config.patch_size
        self.class_embedding = nn.Parameter(torch.randn(width) * 0.02)
        self.patches = nn.Conv2d(3, width, config.patch_size, config.patch_size, bias=False)
        self.positions = nn.Parameter(torch.randn(1 + self.side**2, width) * 0.02)
        self.norm_in = nn.LayerNorm(width, eps=eps)
        self.layers = nn.ModuleList(
            EncoderLayer(*sizes, activation=ACT2FN[config.hidden_act], eps=eps)
            for _ in range(config.num_hidden_layers)
        )
        self.norm_out = nn.LayerNorm(width, eps=eps)

    def grid_positions(self, height: int, width: int) -> Tensor:
        """Position embeddings [1 + height*width, Dv] of a grid of patches, interpolated if it is not CLIP's."""
        if (height, width) == (self.side, self.side):
            return self.positions
        grid = self.positions[1:].unflatten(0, (self.side, self.side)).permute(2, 0, 1)[None]
        grid = F.interpolate(grid, (height, width), mode="bicubic", align_corners=False)
        return torch.cat([self.positions[:1], grid[0].flatten(1).T])

    def forward(self, pixels: Tensor) -> Tensor:
        """Pixels [B, 3, H, W] -> all tokens [B, 1 + patches, Dv], class token first."""
        patches = self.patches(pixels)
        x = patches.flatten(2).transpose(1, 2)
        x = torch.cat([self.class_embedding.expand(x.shape[0], 1, -1), x], dim=1)
        x = self.norm_in(x + self.grid_positions(*patches.shape[-2:]))
        for layer in self.layers:
            x = layer(x)
        return self.norm_out(x)


class TextEmbedding(nn.Module):
    """Word plus learned position embedding, layer norm, dropout; positions count from 0 at the start token."""

    def __init__(self, config: GitConfig):
        super().__init__()
        self.words = nn.Embedding(config.vocab_size, config.hidden_size)
        self.positions = nn.Embedding(config.max_position_embeddings, config.hidden_size)
        self.norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(self, tokens: Tensor, start: int) -> Tensor:
        """Tokens [R, T], the first at position `start` -> [R, T, D]."""
        time = torch.arange(start, start + tokens.shape[1], device=tokens.device)
        return self.dropout(self.norm(self.words(tokens) + self.positions(time)))


class DecoderLayer(nn.Module):
    """One post-norm BERT block. Text tokens attend to image and earlier text, image tokens to the image only."""

    def __init__(self, config: GitConfig):
        super().__init__()
        width = config.hidden_size
        self.attention = Attention(width, config.num_attention_heads, config.attention_probs_dropout_prob)
        self.norm_1 = nn.LayerNorm(width, eps=config.layer_norm_eps)
        self.feed_forward = FeedForward(width, config.intermediate_size, ACT2FN[config.hidden_act])
        self.norm_2 = nn.LayerNorm(width, eps=config.layer_norm_eps)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(self, x: Tensor, image: KeysValues, append=None, mask: Tensor | None = None) -> Tensor:
        """Tokens [B, S, D] -> the same shape; `append` and `mask` are `read_text`'s, None for image tokens."""
        memories = [image] if append is None else [image, append(self.attention.keys_values(x))]
        x = self.norm_1(x + self.dropout(self.attention(x, *memories, mask=mask)))
        return self.norm_2(x + self.dropout(self.feed_forward(x)))


@dataclass
class GitOutput:
    logits: Tensor  # [B*K, T, V], of the text positions
    visual_features: Tensor  # [B, N, Dv]
    hidden_states: tuple[Tensor, ...]  # L+1 times [B*K, T, D]


class GenerativeImageTextModel(nn.Module):
    """GIT with transformers' `GitConfig`; `model(frames, tokens)` returns a `GitOutput`.

    Frames [B, F, 3, H, W] (uint8: raw; floating: pixels), tokens long [B*K, T] with K captions a clip, start token
    first. A batch of images [B, 3, H, W] gets no temporal embedding, as in transformers.
    """

    def __init__(self, config: GitConfig):
        super().__init__()
        self.config, vision = config, config.vision_config
        self.vocab_size, self.max_positions = config.vocab_size, config.max_position_embeddings
        self.bos_token_id, self.eos_token_id = config.bos_token_id, config.eos_token_id
        self.pad_token_id = config.pad_token_id
        self.image_encoder = ImageEncoder(vision)
        times = [torch.zeros(1, 1, vision.hidden_size) for _ in range(config.num_image_with_embedding or 0)]
        self.temporal = nn.ParameterList(times)
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

    @staticmethod
    def _initialise(module: nn.Module) -> None:
        if isinstance(module, nn.Linear | nn.Embedding | nn.Conv2d):
            nn.init.normal_(module.weight, std=0.02)
        if isinstance(module, nn.Linear):
            nn.init.zeros_(module.bias)

    @classmethod
    def from_pretrained(cls, source, dtype: torch.dtype = torch.float32) -> "GenerativeImageTextModel":
        """Load a hub id, a folder in transformers' or Microsoft's layout, or `"toybox"`, in eval mode, as `dtype`.

        Raises FileNotFoundError when there is no checkpoint, ValueError naming keys that do not fit.
        """
        return checkpoints.load_git(cls, source).to(dtype).eval()

    def save_pretrained(self, folder, dtype: torch.dtype | None = None) -> None:
        """Write config.json and model.safetensors as transformers lays them out, both or neither."""
        checkpoints.save(self, folder, dtype)

    def encode(self, frames: Tensor) -> Tensor:
        """Visual features [B, N, Dv]: the image encoder's tokens of all frames plus temporal embeddings."""
        # Checkpoints for question answering do not crop; they limit the longer side instead.
        longest = getattr(self.config, "test_respect_ratio_max", None)
        pixels = to_pixels(frames, self.config.vision_config.image_size, CLIP_MEAN, CLIP_STD, longest)
        clips, count = pixels.shape[:2]
        pixels = pixels.flatten(0, 1).to(self.image_encoder.patches.weight.dtype)
        features = self.image_encoder(pixels).unflatten(0, (clips, count))
        known = len(self.temporal) if frames.dim() == 5 else 0
        if count > max(known, 1):
            raise ValueError(f"{count} frames, but this checkpoint has {known} temporal embeddings")
        if known:
            features = features + torch.cat(list(self.temporal))[:count]
        return features.flatten(1, 2)

    def read_image(self, features: Tensor) -> KVCache:
        """The cache before any text, from visual features [B, N, Dv]."""
        x, shared = self.projection(features), []
        for layer in self.layers:
            # contiguous, or every decoding step would copy them when there are several clips
            shared.append(tuple(part.contiguous() for part in layer.attention.keys_values(x)))
            if layer is not self.layers[-1]:  # no text reads the last layer's output for the image
                x = layer(x, shared[-1])
        return KVCache(shared, [])

    def _read_text(self, tokens: Tensor, cache: KVCache):
        return read_text(self, tokens, cache, visible_image=cache.shared[0][0].shape[2])

    def prefill(self, frames: Tensor) -> KVCache:
        """The cache before any text: every layer's keys and values of the clips."""
        return self.read_image(self.encode(frames))

    def decode_step(self, tokens: Tensor, cache: KVCache) -> tuple[Tensor, KVCache]:
        """Append tokens [B*K, t] to every caption: their logits [B*K, t, V] and the longer cache."""
        hidden, cache = self._read_text(tokens, cache)
        return self.head(hidden[-1]), cache

    def forward(self, frames: Tensor, tokens: Tensor, visual_features: Tensor | None = None) -> GitOutput:
        """`visual_features` [B, N, Dv] of these frames spare the image encoder; see `encode`."""
        features = (
            self.encode(frames) if visual_features is None else visual_features.to(self.head.weight.dtype)
        )
        hidden, _ = self._read_text(tokens, self.read_image(features))
        return GitOutput(self.head(hidden[-1]), features, hidden)
