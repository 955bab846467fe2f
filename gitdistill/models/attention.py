"""Multi-head attention whose weights can be watched, and the cache that decoding grows.

One module serves GIT's image encoder, its text decoder and the student: the queries come from `x`, the
keys and values from any number of memories laid side by side. The softmax is a *named child*, so that a
forward hook on `….softmax` sees the weights (the idea of vit-pytorch's recorder,
https://github.com/lucidrains/vit-pytorch); nobody listening, the fused kernel is used instead.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

KeysValues = tuple[Tensor, Tensor]


def has_listeners(module: nn.Module) -> bool:
    """True when a forward hook would see this module's input or output."""
    return bool(module._forward_hooks or module._forward_pre_hooks)


class Attention(nn.Module):
    """Scaled dot-product attention over `heads` heads (Vaswani et al. 2017, https://arxiv.org/abs/1706.03762).

    Hook `softmax` to see the weights, [B, H, Q, S] for Q queries and S keys; they sum to one over S.
    """

    # Up to this many query rows the keys are read where they lie: joining two memories would cost more.
    FEW_QUERIES = 16

    def __init__(self, embed_dim: int, heads: int, dropout: float = 0.0):
        super().__init__()
        if embed_dim % heads:
            raise ValueError(f"embed_dim {embed_dim} is not divisible by {heads} heads")
        self.heads = heads
        self.dropout = dropout
        self.query = nn.Linear(embed_dim, embed_dim)
        self.key = nn.Linear(embed_dim, embed_dim)
        self.value = nn.Linear(embed_dim, embed_dim)
        self.softmax = nn.Softmax(dim=-1)
        self.output = nn.Linear(embed_dim, embed_dim)

    def split(self, x: Tensor) -> Tensor:
        """[B, S, D] -> [B, H, S, D/H]."""
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)

    def keys_values(self, x: Tensor) -> KeysValues:
        """Keys and values of `x` [B, S, D], each [B, H, S, D/H]."""
        return self.split(self.key(x)), self.split(self.value(x))

    def forward(self, x: Tensor, *memories: KeysValues, mask: Tensor | None = None) -> Tensor:
        """Let the rows of `x` [B, Q, D] look at all `memories`, side by side; [B, Q, D].

        `mask` is boolean, [Q, S] or broadcastable to [B, H, Q, S] with S the joint length; True may be seen.
        """
        queries = self.split(self.query(x))
        dropout = self.dropout if self.training else 0.0
        if has_listeners(self.softmax) or (len(memories) > 1 and x.shape[1] <= self.FEW_QUERIES):
            mixed = self._visible(queries, memories, mask, dropout)
        else:
            keys, values = (torch.cat(part, dim=2) if len(part) > 1 else part[0] for part in zip(*memories))
            mixed = F.scaled_dot_product_attention(queries, keys, values, attn_mask=mask, dropout_p=dropout)
        return self.output(mixed.transpose(1, 2).flatten(2))

    def _visible(self, queries, memories, mask, dropout) -> Tensor:
        queries = queries * queries.shape[-1] ** -0.5
        scores = torch.cat([queries @ keys.transpose(-1, -2) for keys, _ in memories], dim=-1)
        if mask is not None:
            scores = scores.masked_fill(~mask, float("-inf"))
        weights = F.dropout(self.softmax(scores), dropout).split([k.shape[2] for k, _ in memories], dim=-1)
        return sum(part @ values for part, (_, values) in zip(weights, memories))


def packed_causal_mask(rows: int, new: int, total: int, image: int, device=None) -> Tensor:
    """Who may see whom when `rows` captions of one clip lie side by side; boolean [rows*new, image+rows*total].

    Queries are the last `new` of `total` tokens of each caption. Every query sees all `image` tokens and its
    own caption up to itself; captions never see each other.
    """
    row = torch.arange(rows, device=device)
    time = torch.arange(total, device=device)
    same = row[:, None, None, None] == row[None, None, :, None]
    past = time[-new:][None, :, None, None] >= time[None, None, None, :]
    text = (same & past).reshape(rows * new, rows * total)
    return F.pad(text, (image, 0), value=True)


@dataclass
class KVCache:
    """What a decoder remembers between steps, per layer.

    shared: keys and values of the image, [B, H, N, d]; one copy a clip, whatever the number of captions.
    text: keys and values of the text so far, [B, K, H, t, d], or empty before the first token.
    """

    shared: list[KeysValues]
    text: list[KeysValues]

    @property
    def clips(self) -> int:
        return self.shared[0][0].shape[0]

    @property
    def length(self) -> int:
        """Text tokens read so far."""
        return self.text[0][0].shape[3] if self.text else 0

    def reorder(self, rows: Tensor) -> "KVCache":
        """Let new row j continue old row `rows[j]`; rows [B*K'], grouped by clip. The image is not copied."""

        def pick(cached: Tensor) -> Tensor:
            return cached.flatten(0, 1)[rows].unflatten(0, (self.clips, -1))

        return KVCache(self.shared, [(pick(k), pick(v)) for k, v in self.text])

    def truncate(self, length: int) -> "KVCache":
        """Forget all but the first `length` tokens of every caption."""
        return KVCache(self.shared, [(k[..., :length, :], v[..., :length, :]) for k, v in self.text])

    def append(self, layer: int, new: KeysValues, rows: int) -> KeysValues:
        """The text's keys and values of `layer` with `new` ones, [B, H, K*t, d] each, appended: [B, K, H, t', d]."""
        new = tuple(part.unflatten(2, (rows, -1)).transpose(1, 2) for part in new)
        if not self.text:
            return new
        return tuple(torch.cat([old, part], dim=3) for old, part in zip(self.text[layer], new))


def side_by_side(text: KeysValues) -> KeysValues:
    """[B, K, H, t, d] -> [B, H, K*t, d]: a clip's captions as one row of keys."""
    return tuple(part.transpose(1, 2).flatten(2, 3) for part in text)


def check_tokens(tokens: Tensor, state: KVCache, max_positions: int) -> tuple[int, int]:
    """Captions per clip and the length they reach with `tokens` [B*K, t]; a ValueError when they do not fit."""
    if tokens.dtype != torch.long or tokens.dim() != 2:
        raise ValueError(f"tokens must be long [B, T], not {tokens.dtype} {list(tokens.shape)}")
    if tokens.shape[0] == 0 or tokens.shape[0] % state.clips:
        raise ValueError(f"{tokens.shape[0]} captions do not divide among {state.clips} clips")
    total = state.length + tokens.shape[1]
    if total > max_positions:
        raise ValueError(f"a caption of {total} tokens is longer than the model's {max_positions} positions")
    return tokens.shape[0] // state.clips, total
