"""Predicted captions of the validation and test splits, collected clip by clip and scored over all ranks."""

import torch
from pytorch_lightning.utilities import rank_zero_warn
from torch import Tensor
from torch.nn import functional as F

from gitdistill import metrics
from gitdistill.decoding import greedy
from gitdistill.decoding.loop import Prefilled
from gitdistill.distillation.distributed import gather, rank_and_world
from gitdistill.distillation.terms import to_vocab_subset
from gitdistill.models.tokenizer import to_text


class Predictions:
    """Predictions by split and clip, so that clips which a sampler repeats count once."""

    def __init__(self):
        # split -> clip -> (caption, references, scene or None, nats and tokens of its reference caption)
        self.splits: dict[str, dict] = {}

    def add(self, split: str, model, batch: dict, tokenizer, max_length: int) -> None:
        """Decode a batch greedily, and score its reference captions; the clips are encoded once for both."""
        frames = batch["frames"]
        tokens = batch["tokens"].unflatten(0, (len(frames), -1))[:, 0]  # the first caption gives the loss
        known = Prefilled(model, frames)
        logits, _ = model.decode_step(tokens, known.cache)
        found = greedy(known, frames, max_length=max_length).tokens[:, 0]
        clips, rank = self.splits.setdefault(split, {}), rank_and_world()[0]
        scenes = batch.get("scenes", [None] * len(frames))
        losses = token_losses(model, logits, tokens).tolist()
        rows = zip(to_text(found, tokenizer), batch["references"], scenes, losses, strict=True)
        if "clip" in batch:
            numbers = batch["clip"].tolist()
        else:  # counted by rank, so that the clips of two ranks are not taken for one
            numbers = [(rank, len(clips) + i) for i in range(len(frames))]
        clips.update(zip(numbers, rows, strict=True))

    def scores(self, score_scenes=None) -> dict[str, dict[str, float]]:
        """Scores by split, over the predictions of all ranks; all ranks must call it.

        score_scenes: scores captions beyond n-grams, (captions, scenes) -> scores by name; used where every clip has
            a scene. Clips whose references hold no word are left out; scores of no clips at all are NaN.
        """
        found = {}
        for split, every in merge(gather(self.splits)).items():
            rows = [row for row in every if any(map(metrics.normalise, row[1]))]
            if mute := len(every) - len(rows):
                rank_zero_warn(f"{split}: {mute} of {len(every)} clips have no caption to score against")
            if not rows:
                found[split] = dict.fromkeys(("cross_entropy", "cider", "bleu4", "rouge_l"), float("nan"))
                continue
            captions, references, scenes, losses = map(list, zip(*rows, strict=True))
            nats, num_tokens = map(sum, zip(*losses, strict=True))
            found[split] = {"cross_entropy": nats / max(1, num_tokens)}
            found[split] |= metrics.caption_scores(captions, references)
            if score_scenes is not None and None not in scenes:
                found[split] |= score_scenes(captions, scenes)
        return found


def token_losses(model, logits: Tensor, tokens: Tensor) -> Tensor:
    """[B*K, 2]: the summed cross-entropy of each caption in nats, and its number of tokens."""
    if getattr(model, "vocab_subset", None) is not None:
        logits = logits[..., model.vocab_subset]
    tokens, pad = to_vocab_subset(model, tokens)
    targets, predicted = tokens[:, 1:], logits[:, :-1].float().transpose(1, 2)
    nats = F.cross_entropy(predicted, targets, ignore_index=pad, reduction="none")
    return torch.stack([nats.sum(1), (targets != pad).sum(1)], dim=1)


def merge(parts: list[dict[str, dict]]) -> dict[str, list]:
    """Split -> the rows of all ranks in the order of the clips; the first rank's where several have one."""
    merged = {split: {} for part in parts for split in part}
    for part in reversed(parts):
        for split, clips in part.items():
            merged[split] |= clips
    return {split: [clips[number] for number in sorted(clips)] for split, clips in merged.items()}
