"""The student: a TinyVIT, a small mixer over the tokens of all frames, and a transformer decoder.

GIT's image tokens pass its decoder beside the text. The student mixes them across space and time once, and its text
cross-attends to the result (Vaswani et al. 2017, https://arxiv.org/abs/1706.03762; pre-norm as in Xiong et al. 2020,
https://arxiv.org/abs/2002.04745).
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from inspect import signature
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor, nn

from gitdistill.models import checkpoints, storage
from gitdistill.models.attention import Attention, EncoderLayer, FeedForward, KeysValues, KVCache, read_text
from gitdistill.models.backbone import TinyVIT
from gitdistill.models.tokenizer import generate_captions, load_tokenizer, vocabulary

# The logit of words outside `vocab_subset`: finite in float16, too, so that sums of it are never NaN.
MASKED_LOGIT = -1e4


class PositionalEncoding(nn.Module):
    """Adds sines and cosines of the position, wavelengths from 2 pi to 10,000 * 2 pi (Vaswani et al. 2017)."""

    def __init__(self, embed_dim: int, max_length: int, dropout: float = 0.0):
        super().__init__()
        if max_length < 1:
            raise ValueError(f"a sequence has at least 1 position, not {max_length}")
        self.dropout = nn.Dropout(dropout)
        rates = 10_000 ** (-torch.arange(0, embed_dim, 2) / embed_dim)
        angles = torch.arange(max_length)[:, None] * rates
        table = torch.stack([angles.sin(), angles.cos()], dim=-1).flatten(1)[:, :embed_dim]
        self.register_buffer("table", table, persistent=False)

    def forward(self, x: Tensor, start: int = 0) -> Tensor:
        """x [B, T, D], its first token at position `start`, plus its positions; then dropout."""
        end = start + x.shape[1]
        if end > len(self.table):
            raise ValueError(f"a sequence of {end} is longer than the {len(self.table)} positions encoded")
        return self.dropout(x + self.table[start:end].to(x.dtype))


class StudentLayer(nn.Module):
    """One pre-norm decoder layer: causal self-attention over the text, cross-attention to the memory."""

    def __init__(self, embed_dim: int, heads: int, hidden: int, dropout: float):
        super().__init__()
        self.norm_1 = nn.LayerNorm(embed_dim)
        self.self_attention = Attention(embed_dim, heads, dropout)
        self.norm_2 = nn.LayerNorm(embed_dim)
        self.cross_attention = Attention(embed_dim, heads, dropout)
        self.norm_3 = nn.LayerNorm(embed_dim)
        self.feed_forward = FeedForward(embed_dim, hidden)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, memory: KeysValues, append, mask: Tensor | None) -> Tensor:
        """Text tokens [B, K*t, D] -> the same shape; `append` and `mask` are `read_text`'s."""
        normed = self.norm_1(x)
        text = append(self.self_attention.keys_values(normed))
        x = x + self.dropout(self.self_attention(normed, text, mask=mask))
        x = x + self.dropout(self.cross_attention(self.norm_2(x), memory))
        return x + self.dropout(self.feed_forward(self.norm_3(x)))


@dataclass
class StudentOutput:
    logits: Tensor  # [B*K, T, V]; `MASKED_LOGIT` for words outside the vocabulary subset
    subset_logits: Tensor  # [B*K, T, V'], of the subset's words; `logits` itself without a subset
    feature_maps: list[Tensor]  # the backbone's, one [B, F, C, h, w] per stage
    memory: Tensor  # [B, M, D], the M = F*h*w image tokens that the decoder attends to, frame by frame
    hidden_states: tuple[Tensor, ...]  # L+1 times [B*K, T, D], embedded words first; the last one is normed


class StudentCandidateV1(nn.Module):
    """Captions clips of up to `num_frames` frames; an image is a clip of one. See `like` for a teacher's vocabulary.

    Args:
        backbone: a `TinyVIT`, or a source for `TinyVIT.from_pretrained`: "toybox", a folder, or a timm name.
        mixer_layers: encoder layers over the tokens of all frames; with 0, motion is hardly learned.
        mlp_ratio: hidden channels of feed-forward blocks, relative to `embed_dim`.
        tie: share one matrix between word embedding and output head.
        freeze_norm: batch norms use their running statistics in training too; for small batches.
        vocab_subset: token ids of the words that the student knows (`TeacherCache.words`); special tokens are added.
            Embedding and head have no other rows. Other words are read as `unk_token_id` and never generated.

    `model(frames, tokens)`: frames [B, F, 3, H, W] or [B, 3, H, W] (uint8: raw; floating: pixels), tokens
    long [B*K, T] with K captions a clip, start token first, padded on the right. Attention weights can be hooked:
    `mixer.*.attention.softmax` [B, H, M, M], `layers.*.self_attention.softmax` [B, H, K*T, K*T] and
    `layers.*.cross_attention.softmax` [B, H, K*T, M].
    """

    def __init__(
        self,
        vocab_size: int,
        backbone: str | TinyVIT = "toybox",
        embed_dim: int = 128,
        layers: int = 2,
        heads: int = 4,
        mixer_layers: int = 1,
        mlp_ratio: int = 2,
        num_frames: int = 4,
        max_positions: int = 40,
        dropout: float = 0.0,
        tie: bool = True,
        freeze_norm: bool = False,
        vocab_subset: list[int] | None = None,
        bos_token_id: int = 2,
        eos_token_id: int = 3,
        pad_token_id: int = 0,
        unk_token_id: int = 1,
    ):
        config = {name: value for name, value in locals().items() if name not in ("self", "__class__")}
        super().__init__()
        del config["backbone"]  # which saves its own; the ids of `vocab_subset` are saved as a buffer
        self.config = config | {"vocab_subset": vocab_subset is not None}
        self.vocab_size, self.embed_dim, self.num_frames = vocab_size, embed_dim, num_frames
        self.max_positions, self.tie, self.freeze_norm = max_positions, tie, freeze_norm
        self.bos_token_id, self.eos_token_id = bos_token_id, eos_token_id
        self.pad_token_id, self.unk_token_id = pad_token_id, unk_token_id
        sizes = (embed_dim, heads, mlp_ratio * embed_dim, dropout)
        self._build_encoder(backbone, mixer_layers, sizes)
        known = self._register_subset(vocab_subset)
        self.words = nn.Embedding(known, embed_dim)
        self.positions = PositionalEncoding(embed_dim, max_positions, dropout)
        self.layers = nn.ModuleList(StudentLayer(*sizes) for _ in range(layers))
        self.norm = nn.LayerNorm(embed_dim)
        self.head = nn.Linear(embed_dim, known)
        self._initialise()

    def _build_encoder(self, backbone: str | TinyVIT, mixer_layers: int, sizes: tuple) -> None:
        self.backbone = backbone if isinstance(backbone, TinyVIT) else TinyVIT.from_pretrained(backbone)
        self.grid, dim = self.backbone.grids[-1], self.embed_dim
        self.projection = nn.Sequential(nn.Linear(self.backbone.channels[-1], dim), nn.LayerNorm(dim))
        # Initialised at half the token scale; smaller positions learn too slowly.
        self.spatial = nn.Parameter(0.5 * torch.randn(math.prod(self.grid), dim))
        self.temporal = nn.Parameter(0.5 * torch.randn(self.num_frames, dim))
        self.mixer = nn.ModuleList(EncoderLayer(*sizes) for _ in range(mixer_layers))
        self.memory_norm = nn.LayerNorm(dim)

    def _register_subset(self, vocab_subset: list[int] | None) -> int:
        """Buffers `vocab_subset` [V'], token ids, and `subset_index` [V], their rows; returns the number of rows."""
        self.register_buffer("vocab_subset", None)
        self.register_buffer("subset_index", None, persistent=False)
        special = {self.bos_token_id, self.eos_token_id, self.pad_token_id, self.unk_token_id}
        ids = sorted(special.union(vocab_subset or []))
        if not 0 <= ids[0] <= ids[-1] < self.vocab_size:
            raise ValueError(
                f"token ids {ids[0]} to {ids[-1]} do not fit a vocabulary of {self.vocab_size} words"
            )
        if vocab_subset is None:
            return self.vocab_size
        self.subset_pad_token_id = ids.index(self.pad_token_id)
        self.subset_unk_token_id = ids.index(self.unk_token_id)
        self.vocab_subset = torch.tensor(ids)
        self.subset_index = torch.full((self.vocab_size,), self.subset_unk_token_id)
        self.subset_index[self.vocab_subset] = torch.arange(len(ids))
        return len(ids)

    def _initialise(self) -> None:
        for part in (self.projection, self.mixer, self.layers, self.head):
            for module in part.modules():
                if isinstance(module, nn.Linear):
                    nn.init.xavier_uniform_(module.weight)
                    nn.init.zeros_(module.bias)
        nn.init.normal_(self.words.weight, std=self.embed_dim**-0.5)  # `embedding` scales it to 1
        if self.tie:
            self.head.weight = self.words.weight

    @classmethod
    def like(cls, teacher, **options) -> "StudentCandidateV1":
        """A student with `teacher`'s vocabulary, special tokens and number of frames; `options` as for the class."""
        return cls(**shared_options(teacher) | options)

    @classmethod
    def from_pretrained(cls, folder: str | Path) -> "StudentCandidateV1":
        """Load what `save_pretrained` wrote, in eval mode; FileNotFoundError or ValueError in one line."""
        config, where = storage.read_config(folder), Path(folder) / "config.json"
        if config.get("architecture") != cls.__name__:
            hint = ": give it as the teacher" if config.get("model_type") == "git" else ""
            raise ValueError(f"{where} describes {storage.kind_of(config)}, not a {cls.__name__}{hint}")
        del config["architecture"]
        kinds = {name: option.annotation for name, option in signature(cls).parameters.items()}
        kinds |= {"backbone": dict, "vocab_subset": bool}
        storage.check_fields(config, kinds, where, optional=kinds.keys() - {"vocab_size", "backbone"})
        weights = storage.read_weights(Path(folder) / "model.safetensors")
        subset = weights.get("vocab_subset", torch.tensor(()))  # `check_fit` reports a missing one
        config["vocab_subset"] = subset.tolist() if config.get("vocab_subset") else None
        if config.get("tie", True) and "words.weight" in weights:
            weights.setdefault("head.weight", weights["words.weight"])

        def make() -> StudentCandidateV1:
            return cls(**config | {"backbone": TinyVIT.from_config(config["backbone"], where)})

        return checkpoints.build(make, weights, folder).eval()

    def save_pretrained(self, folder, dtype: torch.dtype | None = None) -> None:
        """Write config.json and model.safetensors, backbone included, both or neither; weights stored as `dtype`."""
        storage.write_whole(folder, self.files(dtype))

    def files(self, dtype: torch.dtype | None = None) -> dict[str, Callable]:
        """Writers of these files, by name."""
        config = {"architecture": type(self).__name__, **self.config, "backbone": self.backbone.config}
        weights = self.state_dict()
        if self.tie:
            del weights["head.weight"]
        return storage.network_files(config, weights, dtype)

    def encode(self, frames: Tensor) -> tuple[list[Tensor], Tensor]:
        """The backbone's feature maps, and the memory [B, M, D] that the mixer makes of the last one."""
        maps = self.backbone(frames)
        count, grid = maps[-1].shape[1], tuple(maps[-1].shape[-2:])
        if count > self.num_frames:
            raise ValueError(f"{count} frames a clip, but this student reads at most {self.num_frames}")
        if grid != self.grid:
            side, (height, width) = self.backbone.image_size, frames.shape[-2:]
            raise ValueError(f"pixels of {height} x {width}, but this student reads {side} x {side}")
        x = self.projection(maps[-1].flatten(3).transpose(2, 3))  # (B, F, h*w, D)
        x = (x + self.spatial + self.temporal[:count, None]).flatten(1, 2)
        for layer in self.mixer:
            x = layer(x)
        return maps, self.memory_norm(x)

    def embedding(self, tokens: Tensor, start: int) -> Tensor:
        """Word plus position embeddings [R, T, D] of tokens [R, T], the first at position `start`."""
        rows = tokens if self.subset_index is None else self.subset_index[tokens]
        return self.positions(self.words(rows) * math.sqrt(self.embed_dim), start)

    def _read_memory(self, memory: Tensor) -> KVCache:
        return KVCache([layer.cross_attention.keys_values(memory) for layer in self.layers], [])

    def _read_text(self, tokens: Tensor, cache: KVCache):
        (*hidden, last), cache = read_text(self, tokens, cache)
        return (*hidden, self.norm(last)), cache

    def _expand(self, logits: Tensor) -> Tensor:
        """Logits of the subset's words [..., V'] as logits of all words [..., V]."""
        if self.vocab_subset is None:
            return logits
        every = logits.new_full((*logits.shape[:-1], self.vocab_size), MASKED_LOGIT)
        return every.index_copy(-1, self.vocab_subset, logits)

    def prefill(self, frames: Tensor) -> KVCache:
        """The cache before any text: every layer's keys and values of the memory."""
        return self._read_memory(self.encode(frames)[1])

    def decode_step(self, tokens: Tensor, cache: KVCache) -> tuple[Tensor, KVCache]:
        """Append tokens [B*K, t] to every caption: their logits [B*K, t, V] and the longer cache."""
        hidden, cache = self._read_text(tokens, cache)
        return self._expand(self.head(hidden[-1])), cache

    def forward(self, frames: Tensor, tokens: Tensor) -> StudentOutput:
        maps, memory = self.encode(frames)
        hidden, _ = self._read_text(tokens, self._read_memory(memory))
        logits = self.head(hidden[-1])
        return StudentOutput(self._expand(logits), logits, maps, memory, hidden)

    def train(self, mode: bool = True) -> "StudentCandidateV1":
        """As for any module, but with `freeze_norm` the batch norms stay in eval mode."""
        super().train(mode)
        for module in self.modules():
            if self.freeze_norm and isinstance(module, nn.BatchNorm2d | nn.SyncBatchNorm):
                module.eval()
        return self

    def caption(self, frames: Tensor, tokenizer, **decoding) -> list[str]:
        """One caption a clip; arguments and errors as for `gitdistill.models.tokenizer.generate_captions`."""
        return generate_captions(self, frames, tokenizer, **decoding)


def shared_options(teacher, tokenizer=None) -> dict[str, int]:
    """What a student shares with its `teacher`: number of frames, vocabulary and special tokens.

    The last two are those of `tokenizer`, if it has other words than the teacher's.
    """
    own = getattr(teacher, "tokenizer", None)
    tokenizer = load_tokenizer(tokenizer or own) if tokenizer or own else None
    differs = own and tokenizer.get_vocab() != own.get_vocab()
    options = vocabulary(tokenizer if differs else teacher)
    options["num_frames"] = teacher.config.num_image_with_embedding or 1
    if (unknown := getattr(tokenizer, "unk_token_id", None)) is not None:
        options["unk_token_id"] = unknown
    return options


class StudentMaker(Protocol):
    """A student without its `shared_options`: `partial(StudentCandidateV1, ...)`, or a configuration without them."""

    def __call__(
        self, *, vocab_size, bos_token_id, eos_token_id, pad_token_id, unk_token_id=1, num_frames
    ) -> StudentCandidateV1: ...
