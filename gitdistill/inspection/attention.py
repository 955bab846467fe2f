"""Attention of a captioner while it reads a caption: a map over the image for each word, and attention rollout."""

from dataclasses import dataclass

import torch
from torch import Tensor

from gitdistill import decoding
from gitdistill.decoding.loop import Prefilled, evaluation
from gitdistill.distillation.targets import STUDENT_ATTENTION, as_feature_grid, total_frames
from gitdistill.hooks import paths, record
from gitdistill.models.tokenizer import to_text


@dataclass
class AttentionMaps:
    """Attention of a model that reads one caption of one clip.

    maps: [L, H, T-1, F, h, w], over the image grid. What is missing to 1 went to class tokens and text.
    log_probs: [T-1], of the words that follow.
    mixing: [n, S, S], every attention of the network in the order of computation, each as a matrix over all tokens,
        heads averaged; rows sum to one. For `rollout`. An `OnnxNetwork` or a given cache has none: n is 0.
    logits: [T-1, V], at the places of these words.
    """

    maps: Tensor
    log_probs: Tensor
    mixing: Tensor
    logits: Tensor

    def by_word(self) -> Tensor:
        """[T-1, F, h, w]: averaged over layers and heads; each word's map sums to 1."""
        return normalised(self.maps.mean((0, 1)))

    def rollout(self, first: int = 0) -> Tensor:
        """[T-1, F, h, w]: attention rollout that begins at attention `first`; each word's map sums to 1."""
        frames, positions = self.maps.shape[3], self.maps.shape[2] + 1
        image = self.mixing.shape[-1] - positions
        return normalised(on_grid(rollout(self.mixing, first)[image:-1, :image], frames))


def attention_maps(model, frames: Tensor, tokens: Tensor, cache=None) -> AttentionMaps:
    """Record attention while `model` reads the caption `tokens` [T] of a clip [F, 3, H, W] or image [3, H, W].

    cache: what the network's `prefill` made of this clip, which spares a second look at it. An `OnnxNetwork` looks
        again.
    """
    mixing = torch.empty(0, 0, 0)
    if hasattr(model, "read_caption"):  # an `OnnxNetwork`: it gives its attention, and has no modules to hook
        check_clip(frames, tokens)
        clip, caption = frames[None], tokens[None]
        logits, text = model.read_caption(clip, caption)
        text = text[:, 0]
    else:
        model, clip, caption = prepared(model, frames, tokens)
        watched, prefix = text_attention(model)
        every = [name for name in ("mixer.*.softmax", "layers.*attention.softmax") if paths(model, name)]
        with evaluation(model), record(model, watched if cache else every) as seen:
            logits = model.decode_step(caption, cache)[0] if cache else model(clip, caption).logits
        text = torch.stack([seen[path][-1][0] for path in watched])  # (L, H, T, S); (L, H, T, N) of a student
        text = text[..., : text.shape[-1] - (len(tokens) if prefix else 0)]
        mixing = mixing if cache else mixing_steps(seen, text.shape[-1], len(tokens))
    maps, logits = on_grid(text[:, :, :-1], total_frames(clip)), logits[0, :-1]
    words = logits.log_softmax(-1).gather(-1, caption[0, 1:, None])[:, 0]
    return AttentionMaps(maps, words, mixing, logits)


@torch.no_grad()
def told(model, tokenizer, frames, temperature: float = 0.0, seed: int = 0, likeliest: int = 4) -> dict:
    """What a network says of a clip [F, 3, H, W], and where it looks: what `viz.explorers.words` shows of it.

    temperature: of sampling with `seed`; 0 is greedy decoding. Returns the `text`, its `words`, the `heads`
    [L, H, T, F, h, w], and for each word its `probabilities` and the `likeliest` candidates at its place.
    """
    network, clip, cache = getattr(model, "model", model), torch.as_tensor(frames), None
    longest = min(20, model.max_positions)
    with evaluation(network):
        if isinstance(network, torch.nn.Module):
            clip = clip.to(next(network.parameters()).device)
            network = Prefilled(network, clip[None])
            cache = network.cache
        if temperature:
            found = decoding.sample(network, clip[None], longest, temperature=temperature, seed=seed)
        else:
            found = decoding.greedy(network, clip[None], longest)
        tokens = found.tokens[0, 0]
    text = to_text(tokens[None], tokenizer)[0]
    tokens = tokens[tokens != network.pad_token_id]
    found = attention_maps(model, clip, tokens, cache)
    sure, ids = found.logits.softmax(-1).topk(min(likeliest, model.vocab_size))
    names = [tokenizer.convert_ids_to_tokens(row) for row in ids.tolist()]
    candidates = [list(zip(row, numbers)) for row, numbers in zip(names, sure.tolist())]
    words = tokenizer.convert_ids_to_tokens(tokens[1:].tolist())
    known = {"text": text, "words": words, "heads": found.maps, "candidates": candidates}
    return known | {"probabilities": found.log_probs.exp()}


def rollout(mixing: Tensor, first: int = 0) -> Tensor:
    """Attention rollout [S, S] over mixing [n, S, S] from `first` on: which tokens each last token is made of.

    Half of a token goes round each attention unchanged, as in Abnar and Zuidema 2020
    (https://arxiv.org/abs/2005.00928): the product of all (A + 1) / 2.
    """
    if not len(mixing):
        raise ValueError("there is no mixing to roll out: an OnnxNetwork or a given cache has none")
    if not 0 <= first < len(mixing):
        raise ValueError(f"first must be one of the {len(mixing)} steps, 0 to {len(mixing) - 1}; got {first}")
    total = torch.eye(mixing.shape[-1], dtype=mixing.dtype, device=mixing.device)
    for step in mixing[first:]:
        total = 0.5 * (step @ total + total)
    return total


def normalised(maps: Tensor) -> Tensor:
    """Maps [T, F, h, w], each divided by its sum."""
    return maps / maps.sum((1, 2, 3), keepdim=True).clamp(min=1e-12)


def text_attention(model) -> tuple[list[str], bool]:
    """Module paths of the attention from text to image; True if it covers the text as well, as GIT's does."""
    cross = paths(model, STUDENT_ATTENTION)
    return (cross, False) if cross else (paths(model, "layers.*.attention.softmax"), True)


def prepared(model, frames: Tensor, tokens: Tensor) -> tuple:
    """The network (a teacher's own, which has gradients), one clip and one caption as a batch on its device."""
    check_clip(frames, tokens)
    if not isinstance(model, torch.nn.Module):
        raise ValueError(f"a {type(model).__name__} has no modules to look into: give the checkpoint itself")
    device = next(model.parameters()).device
    return getattr(model, "model", model), frames[None].to(device), tokens[None].to(device)


def check_clip(frames: Tensor, tokens: Tensor) -> None:
    """A ValueError unless they are one clip or image and one caption."""
    if frames.dim() not in (3, 4) or tokens.dim() != 1 or len(tokens) < 2:
        shapes = f"{list(frames.shape)} and {list(tokens.shape)}"
        raise ValueError(f"give one clip [F, 3, H, W] (or image) and one caption [T], T > 1; got {shapes}")


def log_probs(model, clips: Tensor, tokens: Tensor) -> Tensor:
    """Log-probabilities [R, T-1] of the words of captions [R, T] of clips [B, ...], R a multiple of B."""
    return model(clips, tokens).logits[:, :-1].log_softmax(-1).gather(-1, tokens[:, 1:, None])[..., 0]


def on_grid(rows: Tensor, frames: int) -> Tensor:
    """Attention to image tokens [..., N] as maps [..., F, h, w]; class tokens are left out."""
    flat = rows.reshape(-1, rows.shape[-1])
    return as_feature_grid(flat.T[None], frames).permute(3, 0, 1, 2).unflatten(0, rows.shape[:-1])


def mixing_steps(seen: dict, image: int, text: int) -> Tensor:
    """Recorded attention as matrices [n, S, S] over all tokens; tokens that a layer does not update stay themselves.

    A GIT layer attends twice, from the image to itself and from the text to all; its last one has no image rows.
    """
    device = next(iter(seen.values()))[0].device
    steps = torch.eye(image + text, device=device).repeat(len(seen), 1, 1)
    for step, (path, calls) in zip(steps, seen.items()):
        for number, weights in enumerate(calls, start=1):
            of_text = path.startswith("layers.") and number == len(calls)
            rows = slice(image, None) if of_text else slice(image)
            start = image if ".self_attention." in path else 0
            step[rows] = 0
            step[rows, start : start + weights.shape[-1]] = weights[0].mean(0)
    return steps
