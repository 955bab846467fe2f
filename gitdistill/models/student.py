"""The student: a TinyVIT, a small mixer over the tokens of all frames, and a transformer decoder.

GIT lets image tokens travel through its whole decoder beside the text. The student reads them once, mixes
them a little across space and time, and lets its text look at the result (Vaswani et al. 2017,
https://arxiv.org/abs/1706.03762; pre-norm as in Xiong et al. 2020, https://arxiv.org/abs/2002.04745).
"""

import math
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gitdistill.models import storage
from gitdistill.models import tokenizer as text
from gitdistill.models.attention import (
    Attention,
    KVCache,
    check_tokens,
    packed_causal_mask,
    side_by_side,
)
from gitdistill.models.backbone import TinyVIT

MASKED_LOGIT = -1e4  # of words outside `vocab_subset`; finite also in float16, so that no sum of them is NaN
# Arguments that version 0.1 wrote into config.json under other names.
_FORMER = {"width": "embed_dim", "expand": "mlp_ratio", "frames": "num_frames", "keep": "vocab_subset"}


class PositionalEncoding(nn.Module):
    """Adds sines and cosines of the position, wavelengths from 2 pi to 10,000 * 2 pi (Vaswani et al. 2017).

    Nothing is learned, so every position up to `max_length` is as good as any other; beyond, a ValueError.
    """

    def __init__(self, embed_dim: int, max_length: int, dropout: float = 0.0):
        super().__init__()
        self.max_length = max_length
        self.dropout = nn.Dropout(dropout)
        rates = 10_000 ** (-torch.arange(0, embed_dim, 2) / embed_dim)
        angles = torch.arange(max_length)[:, None] * rates
        table = torch.stack([angles.sin(), angles.cos()], dim=-1).flatten(1)[:, :embed_dim]
        self.register_buffer("table", table, persistent=False)

    def forward(self, x: Tensor, start: int = 0) -> Tensor:
        """x [B, T, D], its first row at position `start` -> x plus its positions, dropout applied."""
        end = start + x.shape[1]
        if end > self.max_length:
            raise ValueError(f"a sequence of {end} is longer than the {self.max_length} positions encoded")
        return self.dropout(x + self.table[start:end].to(x.dtype))


class FeedForward(nn.Module):
    """Linear, GELU, linear; `mlp_ratio` times as wide inside."""

    def __init__(self, embed_dim: int, mlp_ratio: int):
        super().__init__()
        self.up = nn.Linear(embed_dim, mlp_ratio * embed_dim)
        self.down = nn.Linear(mlp_ratio * embed_dim, embed_dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(F.gelu(self.up(x)))


class MixerLayer(nn.Module):
    """One pre-norm encoder layer: every token of every frame sees all others."""

    def __init__(self, embed_dim: int, heads: int, mlp_ratio: int, dropout: float):
        super().__init__()
        self.norm_1 = nn.LayerNorm(embed_dim)
        self.attention = Attention(embed_dim, heads, dropout)
        self.norm_2 = nn.LayerNorm(embed_dim)
        self.feed_forward = FeedForward(embed_dim, mlp_ratio)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        """Memory tokens [B, M, D] -> the same shape."""
        normed = self.norm_1(x)
        x = x + self.dropout(self.attention(normed, self.attention.keys_values(normed)))
        return x + self.dropout(self.feed_forward(self.norm_2(x)))


class StudentLayer(nn.Module):
    """One pre-norm decoder layer: the text so far, then the memory, then a feed-forward block."""

    def __init__(self, embed_dim: int, heads: int, mlp_ratio: int, dropout: float):
        super().__init__()
        self.norm_1 = nn.LayerNorm(embed_dim)
        self.self_attention = Attention(embed_dim, heads, dropout)
        self.norm_2 = nn.LayerNorm(embed_dim)
        self.cross_attention = Attention(embed_dim, heads, dropout)
        self.norm_3 = nn.LayerNorm(embed_dim)
        self.feed_forward = FeedForward(embed_dim, mlp_ratio)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, state: KVCache, grown: list, rows: int, mask: Tensor | None) -> Tensor:
        """x [B, K*t, D], new tokens of `rows` captions a clip -> the same shape.

        `grown` holds the text's keys and values in the layers below; this one appends its own.
        """
        normed, layer = self.norm_1(x), len(grown)
        grown.append(state.append(layer, self.self_attention.keys_values(normed), rows))
        x = x + self.dropout(self.self_attention(normed, side_by_side(grown[layer]), mask=mask))
        x = x + self.dropout(self.cross_attention(self.norm_2(x), state.shared[layer]))
        return x + self.dropout(self.feed_forward(self.norm_3(x)))


@dataclass
class StudentOutput:
    """What `StudentCandidateV1` gives.

    logits: [B*K, T, V]; of words that the student does not know, `MASKED_LOGIT`.
    subset_logits: [B*K, T, V'], those of the words it knows; the same tensor when it knows them all.
    feature_maps: the backbone's, one [B, F, C, h, w] per stage.
    memory: [B, M, D], the M = F*h*w cells of the last stage, frame by frame, as the decoder sees them.
    hidden_states: L+1 times [B*K, T, D]: the embedded words, then each layer's output, the last one normed.
    """

    logits: Tensor
    subset_logits: Tensor
    feature_maps: list[Tensor]
    memory: Tensor
    hidden_states: tuple[Tensor, ...]


class StudentCandidateV1(nn.Module):
    """Captions clips of up to `num_frames` frames; an image is a clip of one.

    Args:
        vocab_size: words; the teacher's own number where logits are distilled (see `like`).
        backbone: a `TinyVIT`; or "glyphs", a folder that `TinyVIT.save_pretrained` wrote, or a timm name
            ("tiny_vit_5m_224.dist_in22k_ft_in1k"), whose weights are then fetched.
        embed_dim, layers, heads: of the decoder.
        mixer_layers: encoder layers over the tokens of all frames; without one, motion is hardly learned.
        mlp_ratio: how many times wider the feed-forward blocks are inside.
        num_frames: most frames of a clip.
        max_positions: longest token sequence.
        dropout: in mixer and decoder.
        tie: one matrix for the words coming in and going out.
        freeze_norm: batch norms keep their statistics in training, too; for small batches, whose own are noise.
        vocab_subset: the words to know, as token numbers (`TeacherCache.words`); embedding and head have rows for these
            alone and for the special tokens. Any other word is read as `unk_token_id` and never said. Token
            numbers and `vocab_size` stay the tokenizer's.
        bos_token_id, eos_token_id, pad_token_id, unk_token_id: by default those of the embedded world's tokenizer.

    `model(frames, tokens)`: frames [B, F, 3, H, W] or [B, 3, H, W] (uint8: raw; floating: pixels), tokens
    long [B*K, T], K captions a clip, start token first, padded on the right. Attention weights pass through
    `mixer.*.attention.softmax` [B, H, M, M], `layers.*.self_attention.softmax` [B, H, K*T, K*T] and
    `layers.*.cross_attention.softmax` [B, H, K*T, M] when these are hooked.
    """

    def __init__(
        self,
        vocab_size: int,
        backbone: str | TinyVIT = "glyphs",
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
        super().__init__()
        if min(vocab_size, layers, num_frames, max_positions) < 1:
            raise ValueError("vocab_size, layers, num_frames and max_positions must be at least 1")
        special = {"bos": bos_token_id, "eos": eos_token_id, "pad": pad_token_id}
        if vocab_subset is not None:
            special["unk"] = unk_token_id
        for name, token in special.items():
            if not 0 <= token < vocab_size:
                raise ValueError(f"{name}_token_id {token} is outside the vocabulary of {vocab_size} words")
        self.bos_token_id, self.eos_token_id, self.pad_token_id = bos_token_id, eos_token_id, pad_token_id
        self.vocab_size, self.max_positions, self.num_frames, self.tie = (
            vocab_size,
            max_positions,
            num_frames,
            tie,
        )
        self.embed_dim = embed_dim
        self.backbone = backbone if isinstance(backbone, TinyVIT) else load_backbone(backbone)
        self.grid = self.backbone.grids[-1]

        self.projection = nn.Sequential(
            nn.Linear(self.backbone.channels[-1], embed_dim), nn.LayerNorm(embed_dim)
        )
        # As loud as half of what they are added to: marked faintly, where and when are not learned in time.
        self.spatial = nn.Parameter(0.5 * torch.randn(self.grid[0] * self.grid[1], embed_dim))
        self.temporal = nn.Parameter(0.5 * torch.randn(num_frames, embed_dim))
        self.mixer = nn.ModuleList(
            MixerLayer(embed_dim, heads, mlp_ratio, dropout) for _ in range(mixer_layers)
        )
        self.memory_norm = nn.LayerNorm(embed_dim)

        self.freeze_norm, self.unk_token_id = freeze_norm, unk_token_id
        self._trim(vocab_subset, special.values())
        known = vocab_size if vocab_subset is None else len(self.vocab_subset)
        self.words = nn.Embedding(known, embed_dim)
        self.positions = PositionalEncoding(embed_dim, max_positions, dropout)
        self.layers = nn.ModuleList(StudentLayer(embed_dim, heads, mlp_ratio, dropout) for _ in range(layers))
        self.norm = nn.LayerNorm(embed_dim)
        self.head = nn.Linear(embed_dim, known)
        self._initialise()
        # What builds this network again, the backbone aside.
        self.config = {
            "vocab_size": vocab_size,
            "embed_dim": embed_dim,
            "layers": layers,
            "heads": heads,
            "mixer_layers": mixer_layers,
            "mlp_ratio": mlp_ratio,
            "num_frames": num_frames,
            "max_positions": max_positions,
            "dropout": dropout,
            "tie": tie,
            "freeze_norm": freeze_norm,
            "vocab_subset": vocab_subset is not None,  # which ones, the weights say
            **{f"{name}_token_id": token for name, token in special.items()},
        }

    def _trim(self, vocab_subset: list[int] | None, special) -> None:
        """Buffers: `vocab_subset` [V'], the known words' numbers, and `subset_index` [V], a word's place among them."""
        self.register_buffer("vocab_subset", None)
        self.register_buffer("subset_index", None, persistent=False)
        if vocab_subset is None:
            return
        vocab_subset = sorted({*vocab_subset, *special})
        if vocab_subset[0] < 0 or vocab_subset[-1] >= self.vocab_size:
            raise ValueError(
                f"vocab_subset has words outside the vocabulary of {self.vocab_size}: "
                f"{vocab_subset[0]} to {vocab_subset[-1]}"
            )
        self.vocab_subset = torch.tensor(vocab_subset)
        self.subset_index = torch.full((self.vocab_size,), vocab_subset.index(self.unk_token_id))
        self.subset_index[self.vocab_subset] = torch.arange(len(vocab_subset))
        self.subset_pad_token_id, self.subset_unk_token_id = map(
            vocab_subset.index, (self.pad_token_id, self.unk_token_id)
        )

    def _initialise(self) -> None:
        for part in (self.projection, self.mixer, self.layers, self.head):
            for module in part.modules():
                if isinstance(module, nn.Linear):
                    nn.init.xavier_uniform_(module.weight)
                    nn.init.zeros_(module.bias)
        nn.init.normal_(self.words.weight, std=self.embed_dim**-0.5)  # scaled up to 1 on the way in
        if self.tie:
            self.head.weight = self.words.weight

    @classmethod
    def like(cls, teacher, **options) -> "StudentCandidateV1":
        """A student with `teacher`'s vocabulary and special tokens; `options` as for the class."""
        names = ("vocab_size", "bos_token_id", "eos_token_id", "pad_token_id")
        same = {name: getattr(teacher, name) for name in names}
        if options.get("vocab_subset") is not None:
            same["unk_token_id"] = teacher.tokenizer.unk_token_id
        return cls(**same | options)

    @classmethod
    def from_pretrained(cls, folder: str | Path) -> "StudentCandidateV1":
        """Load what `save_pretrained` wrote, strictly, in eval mode; needs no network.

        Raises FileNotFoundError when `folder` is no checkpoint, ValueError naming keys that are missing, left
        over or of another shape.
        """
        config = {_FORMER.get(name, name): value for name, value in storage.read_config(folder).items()}
        if config.pop("architecture", None) != cls.__name__ or not isinstance(config.get("backbone"), dict):
            raise ValueError(f"{folder}/config.json does not describe a {cls.__name__}")
        weights = storage.read_weights(Path(folder) / "model.safetensors")
        if "kept" in weights:  # the name in folders written by version 0.1
            weights["vocab_subset"] = weights.pop("kept")
        if config.pop("vocab_subset", False):
            if "vocab_subset" not in weights:
                raise ValueError(f"the weights of {folder} do not fit; missing: kept")
            config["vocab_subset"] = weights["vocab_subset"].tolist()
        try:
            student = cls(**{**config, "backbone": TinyVIT(**config["backbone"])})
        except TypeError as error:
            raise ValueError(f"{folder}/config.json does not fit: {storage.first_line(error)}") from None
        if student.tie and "words.weight" in weights:
            weights.setdefault("head.weight", weights["words.weight"])
        storage.fill(student, weights, folder)
        return student.eval()

    def save_pretrained(self, folder, dtype: torch.dtype | None = None) -> None:
        """Write config.json and model.safetensors, backbone included; both whole, or none.

        `dtype` (float16, say) is what weights are stored as. A tied matrix is stored once.
        """
        config = {"architecture": type(self).__name__, **self.config, "backbone": self.backbone.config}
        weights = self.state_dict()
        if self.tie:
            del weights["head.weight"]
        storage.write_folder(folder, config, weights, dtype)

    def encode(self, frames: Tensor) -> tuple[list[Tensor], Tensor]:
        """The backbone's feature maps and the memory [B, M, D] mixed from the last of them."""
        maps = self.backbone(frames)
        count, grid = maps[-1].shape[1], tuple(maps[-1].shape[-2:])
        if count > self.num_frames:
            raise ValueError(f"{count} frames a clip, but this student reads at most {self.num_frames}")
        if grid != self.grid:
            side, *sizes = self.backbone.image_size, *frames.shape[-2:]
            raise ValueError(f"pixels of {sizes[0]} x {sizes[1]}, but this student reads {side} x {side}")
        cells = self.projection(maps[-1].flatten(3).transpose(2, 3))  # (B, F, h*w, D)
        x = (cells + self.spatial + self.temporal[:count, None]).flatten(1, 2)
        for layer in self.mixer:
            x = layer(x)
        return maps, self.memory_norm(x)

    def prefill(self, frames: Tensor) -> KVCache:
        """Read the clips: the memory's keys and values in every layer, before any text."""
        return self._read_memory(self.encode(frames)[1])

    def decode_step(self, tokens: Tensor, state: KVCache) -> tuple[Tensor, KVCache]:
        """Append tokens [B*K, t] to every caption: logits [B*K, t, V] and the grown state."""
        hidden, state = self._read_text(tokens, state)
        return self._spread(self.head(hidden[-1])), state

    def forward(self, frames: Tensor, tokens: Tensor) -> StudentOutput:
        maps, memory = self.encode(frames)
        hidden, _ = self._read_text(tokens, self._read_memory(memory))
        logits = self.head(hidden[-1])
        return StudentOutput(self._spread(logits), logits, maps, memory, hidden)

    def _spread(self, logits: Tensor) -> Tensor:
        """Logits of the known words [..., V'] as logits of all, [..., V]."""
        if self.vocab_subset is None:
            return logits
        every = logits.new_full((*logits.shape[:-1], self.vocab_size), MASKED_LOGIT)
        return every.index_copy(-1, self.vocab_subset, logits)

    def train(self, mode: bool = True) -> "StudentCandidateV1":
        """As always, but with `freeze_norm` the batch norms stay in eval mode."""
        super().train(mode)
        if self.freeze_norm:
            for module in self.modules():
                if isinstance(module, nn.modules.batchnorm._BatchNorm):
                    module.eval()
        return self

    def _read_memory(self, memory: Tensor) -> KVCache:
        return KVCache([layer.cross_attention.keys_values(memory) for layer in self.layers], [])

    def _read_text(self, tokens: Tensor, state: KVCache) -> tuple[tuple[Tensor, ...], KVCache]:
        rows, total = check_tokens(tokens, state, self.max_positions)
        own = tokens if self.subset_index is None else self.subset_index[tokens]
        x = self.positions(self.words(own) * math.sqrt(self.embed_dim), state.length)
        shape, hidden, grown = x.shape, [x], []
        x = x.reshape(state.clips, -1, self.embed_dim)  # (B, K*t, D)
        one = rows == tokens.shape[1] == 1  # a last word sees everything
        mask = None if one else packed_causal_mask(rows, tokens.shape[1], total, 0, x.device)
        for layer in self.layers:
            x = layer(x, state, grown, rows, mask)
            hidden.append(x.reshape(shape))
        hidden[-1] = self.norm(hidden[-1])
        return tuple(hidden), KVCache(state.shared, grown)

    def caption(self, frames: Tensor, tokenizer, **decoding) -> list[str]:
        """One caption a clip: greedy, or `beams=4, ...` for beam search; see `gitdistill.models.tokenizer.caption`.

        Raises ValueError when `tokenizer` has another vocabulary or other special tokens.
        """
        text.check_vocabulary(self, tokenizer)
        return text.caption(self, frames, tokenizer, **decoding)


def load_backbone(source: str) -> TinyVIT:
    """A pretrained `TinyVIT`: "glyphs", a folder, or one of timm's names."""
    if source == "glyphs" or Path(source).is_dir():
        return TinyVIT.from_pretrained(source)
    return TinyVIT(source, pretrained=True)
