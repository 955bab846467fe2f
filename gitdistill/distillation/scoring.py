"""Predicted captions of the validation and test splits, collected clip by clip and scored over all ranks."""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from gitdistill import metrics
from gitdistill.decoding import greedy
from gitdistill.distillation.distributed import gather, rank_and_world
from gitdistill.distillation.terms import to_vocab_subset
from gitdistill.models.tokenizer import to_text


@dataclass
class Prediction:
    """A clip's predicted caption, what it is compared with, and the loss of its reference caption.

    nats: summed over the caption's `num_tokens` tokens. scene: the clip's ground truth, if its data have one.
    """

    caption: str
    references: list[str]
    nats: float
    num_tokens: float
    scene: object = None


class Predictions:
    """Predictions by split and clip. A clip that several ranks or batches predicted counts once."""

    def __init__(self):
        self.splits: dict[str, dict] = {}

    def add(self, split: str, model, batch: dict, tokenizer, max_length: int) -> None:
        """Decode a batch greedily. Each clip's first caption gives the loss; the clips are encoded once for both."""
        frames, tokens = batch["frames"], batch["tokens"]
        cache = model.prefill(frames)
        logits, _ = model.decode_step(tokens, cache)
        found = greedy(_Prefilled(model, cache), frames, max_length=max_length)
        captions = to_text(found.tokens[:, 0], tokenizer)
        losses = token_losses(model, logits, tokens).tolist()
        clips = self.splits.setdefault(split, {})
        rank = rank_and_world()[0]
        # Clips without numbers are counted by rank, so that two ranks' clips are not taken for one.
        numbers = (
            batch["clip"].tolist()
            if "clip" in batch
            else [(rank, len(clips) + i) for i in range(len(captions))]
        )
        scenes = batch.get("scenes", [None] * len(captions))
        for number, caption, references, loss, scene in zip(
            numbers, captions, batch["references"], losses, scenes, strict=True
        ):
            clips[number] = Prediction(caption, references, *loss, scene)

    def scores(self, score_scenes=None) -> dict[str, dict[str, float]]:
        """Scores by split, over the predictions of all ranks; all ranks must call it.

        score_scenes: what scores captions beyond n-grams, a function of (captions, scenes) that returns scores by
            name; used where every clip has a scene.
        """
        found = {}
        for split, predictions in merge(gather(self.splits)).items():
            captions = [p.caption for p in predictions]
            num_tokens = sum(p.num_tokens for p in predictions)
            scores = {"cross_entropy": sum(p.nats for p in predictions) / max(1, num_tokens)}
            scores |= metrics.caption_scores(captions, [p.references for p in predictions])
            scenes = [p.scene for p in predictions]
            if score_scenes is not None and None not in scenes:
                scores |= score_scenes(captions, scenes)
            found[split] = scores
        return found


class _Prefilled:
    """A model whose clips are encoded already."""

    def __init__(self, model, cache):
        self.model, self.cache = model, cache

    def __getattr__(self, name: str):
        return getattr(self.model, name)

    def prefill(self, frames: Tensor):
        return self.cache


def token_losses(model, logits: Tensor, tokens: Tensor) -> Tensor:
    """[B*K, 2]: the summed cross-entropy of each caption in nats, and its number of tokens."""
    if getattr(model, "vocab_subset", None) is not None:
        logits = logits[..., model.vocab_subset]
    tokens, pad = to_vocab_subset(model, tokens)
    targets = tokens[:, 1:]
    nats = F.cross_entropy(
        logits[:, :-1].float().transpose(1, 2), targets, ignore_index=pad, reduction="none"
    )
    return torch.stack([nats.sum(1), (targets != pad).sum(1)], dim=1)


def merge(parts: list[dict[str, dict]]) -> dict[str, list]:
    """Split -> the predictions of all ranks in the order of the clips; the first rank's where several have one."""
    merged = {split: {} for part in parts for split in part}
    for part in reversed(parts):
        for split, predictions in part.items():
            merged[split] |= predictions
    return {split: [clips[number] for number in sorted(clips)] for split, clips in merged.items()}
