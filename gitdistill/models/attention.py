"""Attention whose weights a hook can see, transformer layers, and the key/value cache of decoding.

The softmax is a *named child module*, so that a forward hook on `….softmax` sees the weights (the idea of vit-pytorch's
recorder, https://github.com/lucidrains/vit-pytorch). Without such a hook the fused kernel runs.
"""

from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

KeysValues = tuple[Tensor, Tensor]


def has_listeners(module: nn.Module) -> bool:
    """True if a hook is registered on the module. Reads private attributes: torch has no public query."""
    forward, backward = ("_forward_hooks", "_forward_pre_hooks"), ("_backward_hooks", "_backward_pre_hooks")
    return any(getattr(module, hooks) for hooks in forward + backward)


class Attention(nn.Module):
    """Scaled dot-product attention over `heads` heads (Vaswani et al. 2017, https://arxiv.org/abs/1706.03762).

    Hook `softmax` to see the weights, [B, H, Q, S] for Q queries and S keys; they sum to one over S.
    """

    def __init__(self, embed_dim: int, heads: int, dropout: float = 0.0):
        super().__init__()
        if heads < 1 or embed_dim % heads:
            raise ValueError(f"embed_dim {embed_dim} is not divisible by {heads} heads")
        self.heads, self.dropout = heads, dropout
        self.query = nn.Linear(embed_dim, embed_dim)
        self.key = nn.Linear(embed_dim, embed_dim)
        self.value = nn.Linear(embed_dim, embed_dim)
        self.softmax = nn.Softmax(dim=-1)
        self.output = nn.Linear(embed_dim, embed_dim)

    def split(self, x: Tensor) -> Tensor:
        """[B, S, D] -> [B, H, S, d] with d = D/H."""
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)

    def keys_values(self, x: Tensor) -> KeysValues:
        """Keys and values of `x` [B, S, D], each [B, H, S, d]."""
        return self.split(self.key(x)), self.split(self.value(x))

    def forward(self, x: Tensor, *memories: KeysValues, mask: Tensor | None = None) -> Tensor:
        """Attend from `x` [B, Q, D] to the keys and values of all `memories` together; returns [B, Q, D].

        `mask` broadcasts to [B, H, Q, S] with S the memories' joint length; True means visible.
        """
        queries, dropout = self.split(self.query(x)), self.dropout if self.training else 0.0
        # The fused kernel needs one memory. With fewer queries than d, the Q x S weights are smaller than a joined
        # copy of the keys, and computing them here is cheaper.
        few = len(memories) > 1 and queries.shape[2] < queries.shape[3]
        if has_listeners(self.softmax) or few:
            mixed = self._explicit(queries, memories, mask, dropout)
        else:
            keys, values = (torch.cat(part, dim=2) if len(part) > 1 else part[0] for part in zip(*memories))
            mixed = F.scaled_dot_product_attention(queries, keys, values, attn_mask=mask, dropout_p=dropout)
        return self.output(mixed.transpose(1, 2).flatten(2))

    def _explicit(self, queries, memories, mask, dropout) -> Tensor:
        queries = queries * queries.shape[-1] ** -0.5
        scores = torch.cat([queries @ keys.transpose(-1, -2) for keys, _ in memories], dim=-1)
        if mask is not None:
            scores = scores.masked_fill(~mask, float("-inf"))
        weights = F.dropout(self.softmax(scores), dropout).split([k.shape[2] for k, _ in memories], dim=-1)
        return sum(part @ values for part, (_, values) in zip(weights, memories))


class FeedForward(nn.Module):
    """Linear, activation, linear, with `hidden` channels inside."""

    def __init__(self, embed_dim: int, hidden: int, activation=F.gelu):
        super().__init__()
        self.up = nn.Linear(embed_dim, hidden)
        self.activation = activation
        self.down = nn.Linear(hidden, embed_dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(self.activation(self.up(x)))


class EncoderLayer(nn.Module):
    """One pre-norm transformer layer: every token of [B, S, D] sees all others."""

    def __init__(self, embed_dim, heads, hidden, dropout=0.0, activation=F.gelu, eps=1e-5):
        super().__init__()
        self.norm_1 = nn.LayerNorm(embed_dim, eps=eps)
        self.attention = Attention(embed_dim, heads, dropout)
        self.norm_2 = nn.LayerNorm(embed_dim, eps=eps)
        self.feed_forward = FeedForward(embed_dim, hidden, activation)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        normed = self.norm_1(x)
        x = x + self.dropout(self.attention(normed, self.attention.keys_values(normed)))
        return x + self.dropout(self.feed_forward(self.norm_2(x)))


def packed_causal_mask(rows: int, new: int, total: int, image: int, device=None) -> Tensor:
    """The mask of `rows` captions of one clip in one sequence; boolean [rows*new, image + rows*total].

    The last `new` of `total` tokens of each caption see all `image` tokens and their own caption up to themselves.
    """
    same = torch.eye(rows, dtype=torch.bool, device=device)
    causal = torch.ones(new, total, dtype=torch.bool, device=device).tril(total - new)
    # not torch.kron, whose sizes torch.export takes for constants
    text = (same[:, None, :, None] & causal[:, None]).reshape(rows * new, rows * total)
    return F.pad(text, (image, 0), value=True)


@dataclass
class KVCache:
    """Keys and values of every decoder layer, kept between decoding steps."""

    shared: list[KeysValues]  # of the image, [B, H, N, d]; all captions of a clip share one copy
    text: list[KeysValues]  # of the text so far, [B, K, H, t, d]; empty before the first token

    @property
    def clips(self) -> int:
        return self.shared[0][0].shape[0]

    @property
    def length(self) -> int:
        """Number of text tokens read so far."""
        return self.text[0][0].shape[3] if self.text else 0

    def reorder(self, rows: Tensor) -> "KVCache":
        """A cache whose caption j continues caption `rows[j]`; rows [B*K'] are grouped by clip."""
        text = [[x.flatten(0, 1)[rows].unflatten(0, (self.clips, -1)) for x in pair] for pair in self.text]
        return KVCache(self.shared, text)

    def truncate(self, length: int) -> "KVCache":
        """A cache of the first `length` tokens of every caption."""
        return KVCache(self.shared, [(k[..., :length, :], v[..., :length, :]) for k, v in self.text])

    def append(self, layer: int, captions: int, new: KeysValues) -> KeysValues:
        """Add `new` [B, H, K*t, d] to the text of `layer`, in place; returns all of it, [B, H, K*t', d]."""
        grown = tuple(part.unflatten(2, (captions, -1)).transpose(1, 2) for part in new)
        if layer < len(self.text):
            grown = tuple(torch.cat(parts, dim=3) for parts in zip(self.text[layer], grown))
        self.text[layer : layer + 1] = [grown]
        return tuple(part.transpose(1, 2).flatten(2, 3) for part in grown)


def check_tokens(tokens: Tensor, cache: KVCache, max_positions: int) -> tuple[int, int]:
    """Captions per clip and their length after `tokens` [B*K, t]; a ValueError when these do not fit."""
    if tokens.dtype != torch.long or tokens.dim() != 2:
        raise ValueError(f"tokens must be long [B, T], not {tokens.dtype} {list(tokens.shape)}")
    if tokens.shape[0] == 0 or tokens.shape[0] % cache.clips:
        raise ValueError(f"{tokens.shape[0]} captions do not divide among {cache.clips} clips")
    captions, total = tokens.shape[0] // cache.clips, cache.length + tokens.shape[1]
    if cache.text and captions != cache.text[0][0].shape[1]:
        raise ValueError(f"{captions} captions a clip, but the cache has {cache.text[0][0].shape[1]}")
    if total > max_positions:
        raise ValueError(f"a caption of {total} tokens is longer than the model's {max_positions} positions")
    return captions, total


def read_text(model, tokens: Tensor, cache: KVCache, visible_image: int = 0):
    """Run new tokens [B*K, t] through the decoder layers of `model`, K captions of a clip as one sequence.

    Returns L+1 hidden states [B*K, t, D], from the embedded tokens on, and the longer cache. Layers are called as
    `layer(x, image, append, mask)`: `append(new)` stores the keys and values of new text and returns those
    of the whole text. `visible_image` image tokens stand before the text in the self-attention.
    """
    captions, total = check_tokens(tokens, cache, model.max_positions)
    x = model.embedding(tokens, cache.length)
    shape, hidden, grown = x.shape, [x], KVCache(cache.shared, list(cache.text))
    mask = None  # a single new token sees everything
    if not captions == tokens.shape[1] == 1:
        mask = packed_causal_mask(captions, tokens.shape[1], total, visible_image, x.device)
    x = x.reshape(cache.clips, -1, shape[-1])  # (B, K*t, D)
    for index, layer in enumerate(model.layers):
        x = layer(x, cache.shared[index], partial(grown.append, index, captions), mask)
        hidden.append(x.reshape(shape))
    return tuple(hidden), grown
