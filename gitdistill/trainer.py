"""Training a captioner, with a teacher or without: Lightning modules and nothing else.

`CaptionTrainer` learns captions by cross-entropy; `DistillationTrainer` adds what a teacher can tell.
Batches are dicts as `gitdistill.data.GlyphData` makes them: "frames" uint8 [B, F, 3, H, W], "tokens" long
[B*K, T] and, for scoring, "references" (B lists of captions) and, in the embedded world, "scenes".
"""

import math

import pytorch_lightning as pl
import torch
from torch import Tensor, nn

from gitdistill import losses, metrics
from gitdistill.data.module import glyph_tokenizer
from gitdistill.decoding import greedy
from gitdistill.hooks import record
from gitdistill.model.teacher import GenerativeImageTextTeacher
from gitdistill.model.text import to_text
from gitdistill.optim import MuonAdamW, warmup_cosine


class CaptionTrainer(pl.LightningModule):
    """Trains `model` on captions by cross-entropy and scores the captions it decodes.

    Args:
        model: anything that takes (frames, tokens) and satisfies the decoding protocol.
        tokenizer: turns token ids into text; the embedded world's by default.
        lr, weight_decay: peak learning rate and decay of the optimiser.
        warmup: steps of linear warm-up, before a cosine down to 1 % at the run's last step.
        muon: Muon for the inner matrices instead of AdamW throughout (see `gitdistill.optim`).
        label_smoothing: as in GIT's own training (0.1 there).
        max_length: tokens of a decoded caption at most, start token included.
    """

    split_names = ("test", "unseen")

    def __init__(
        self,
        model: nn.Module,
        tokenizer=None,
        lr: float = 2e-3,
        weight_decay: float = 0.01,
        warmup: int = 50,
        muon: bool = True,
        label_smoothing: float = 0.0,
        max_length: int = 24,
    ):
        super().__init__()
        self.model = model
        self.tokenizer = tokenizer or glyph_tokenizer()
        self.lr, self.weight_decay, self.warmup, self.muon = lr, weight_decay, warmup, muon
        self.label_smoothing, self.max_length = label_smoothing, max_length
        self._heard = {}

    def configure_optimizers(self):
        if self.muon:
            optimizer = MuonAdamW(self, self.lr, self.weight_decay)
        else:
            trainable = [p for p in self.parameters() if p.requires_grad]
            optimizer = torch.optim.AdamW(trainable, self.lr, weight_decay=self.weight_decay)
        schedule = warmup_cosine(optimizer, self.warmup, int(self.trainer.estimated_stepping_batches))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def losses(self, batch: dict) -> dict[str, Tensor]:
        """The terms of the training loss by name; their sum is minimised."""
        logits = self.model(batch["frames"], batch["tokens"]).logits
        return {"cross_entropy": self.cross_entropy(logits, batch["tokens"])}

    def cross_entropy(self, logits: Tensor, tokens: Tensor) -> Tensor:
        return losses.cross_entropy(logits, tokens, self.model.pad_token_id, self.label_smoothing)

    def training_step(self, batch: dict, _) -> Tensor:
        terms = self.losses(batch)
        total = sum(terms.values())
        self.log_dict({f"train/{name}": value.detach() for name, value in terms.items()})
        self.log("train/loss", total.detach(), prog_bar=True)
        return total

    def validation_step(self, batch: dict, _) -> None:
        self.score_batch("val", batch)

    def test_step(self, batch: dict, _, dataloader_idx: int = 0) -> None:
        self.score_batch(self.split_names[dataloader_idx], batch)

    def score_batch(self, split: str, batch: dict) -> None:
        """Decode the batch's captions and keep them, with what they are to be held against."""
        captions = self.caption(batch["frames"])
        logits = self.model(batch["frames"], batch["tokens"]).logits
        heard = self._heard.setdefault(split, [])
        scenes = batch.get("scenes", [None] * len(captions))
        heard.extend(zip(captions, batch["references"], scenes, strict=True))
        loss = losses.cross_entropy(logits, batch["tokens"], self.model.pad_token_id)
        self.log(f"{split}/cross_entropy", loss, batch_size=len(captions), add_dataloader_idx=False)

    def caption(self, frames: Tensor) -> list[str]:
        """Greedy captions of a batch of clips."""
        return to_text(greedy(self.model, frames, max_length=self.max_length).tokens[:, 0], self.tokenizer)

    def on_validation_epoch_end(self) -> None:
        self.log_scores()

    def on_test_epoch_end(self) -> None:
        self.log_scores()

    def log_scores(self) -> None:
        for split, heard in self._heard.items():
            captions, references, scenes = zip(*heard, strict=True)
            scores = metrics.caption_scores(list(captions), list(references))
            if None not in scenes:
                scores |= metrics.facts_scores(list(captions), list(scenes))
            self.log_dict({f"{split}/{name}": float(value) for name, value in scores.items()})
            self.log(f"{split}_cider", float(scores["cider"]), prog_bar=split == "val", logger=False)
        self._heard.clear()


class DistillationTrainer(CaptionTrainer):
    """Trains `student` on captions and on what `teacher` makes of the same clips and captions.

    The loss is a weighted sum; a term of weight 0 is not computed.

    Args:
        teacher: a `GenerativeImageTextTeacher`, or where to load it from ("glyphs", a folder, a hub id). It is
            no part of this module: no checkpoint holds it, no optimiser sees it, and it stays in eval mode.
        student: a `StudentCandidateV1`, or anything that takes (frames, tokens) and has its logits.
        cross_entropy: weight of the captions' cross-entropy.
        kl: weight of KL(teacher || student) on the next token's distribution, at `temperature`.
        features: weight of the feature maps' distance, averaged over `feature_pairs`.
        hidden: weight of the distance of the last decoder states, token by token.
        feature_pairs: student's module path -> teacher's. The first tensor each hands out per batch is compared,
            cell by cell, after a linear projector to the teacher's width. By default the student's mixed memory
            with the image rows of the teacher's decoder before its last layer: what both decoders read from.
        options: as for `CaptionTrainer`.

    Raises ValueError when the two vocabularies differ.
    """

    def __init__(
        self,
        teacher,
        student: nn.Module,
        cross_entropy: float = 1.0,
        kl: float = 1.0,
        features: float = 1.0,
        hidden: float = 0.0,
        temperature: float = 1.0,
        feature_pairs: dict[str, str] | None = None,
        **options,
    ):
        teacher = GenerativeImageTextTeacher.from_pretrained(teacher) if isinstance(teacher, str) else teacher
        super().__init__(student, options.pop("tokenizer", None) or teacher.tokenizer, **options)
        if student.vocab_size != teacher.vocab_size:
            raise ValueError(
                f"the student's vocabulary has {student.vocab_size} words and the teacher's {teacher.vocab_size}: "
                "build the student with vocab_size=teacher.vocab_size"
            )
        self._teacher = (teacher,)  # a tuple hides it from nn.Module
        self.weights = {"cross_entropy": cross_entropy, "kl": kl, "features": features, "hidden": hidden}
        self.temperature = temperature
        layer = f"model.layers.{len(teacher.model.layers) - 2}"
        self.feature_pairs = (feature_pairs or {"memory_norm": layer}) if features else {}
        # Widths are read off one clip; the paths are checked on the way.
        self.projectors = nn.ModuleDict()
        if features or hidden:
            self._build_projectors()

    @property
    def student(self) -> nn.Module:
        return self.model

    @property
    def teacher(self) -> GenerativeImageTextTeacher:
        teacher = self._teacher[0]
        on = next(teacher.parameters()).device
        return teacher if on == self.device else teacher.to(self.device)

    @torch.no_grad()
    def _build_projectors(self) -> None:
        teacher = self._teacher[0]
        side = teacher.model.config.vision_config.image_size
        frames = torch.zeros(1, 1, 3, side, side, dtype=torch.uint8)
        training = self.model.training
        self.model.eval()
        student, teacher, pairs = self._look(frames, torch.tensor([[teacher.bos_token_id]]))
        self.model.train(training)
        for name, (ours, theirs) in pairs.items():
            self.projectors[name.replace(".", "/")] = nn.Linear(ours.shape[-1], theirs.shape[-1])
        if self.weights["hidden"]:
            widths = student.hidden_states[-1].shape[-1], teacher.hidden_states[-1].shape[-1]
            self.projectors["hidden"] = nn.Linear(*widths)

    def _look(self, frames: Tensor, tokens: Tensor):
        """Both outputs, and for each feature pair the cells [B*F, h, w, D] of both networks."""
        count = frames.shape[1] if frames.dim() == 5 else 1
        watched = list(self.feature_pairs)
        with (
            record(self.model, watched, detach=False) as ours,
            record(self.teacher, list(self.feature_pairs.values())) as theirs,
        ):
            student = self.model(frames, tokens)
            teacher = self.teacher(frames, tokens)
        batch = len(frames) * count
        pairs = {
            a: (as_cells(ours[a][0], batch), as_cells(theirs[b][0], batch))
            for a, b in self.feature_pairs.items()
        }
        return student, teacher, pairs

    def losses(self, batch: dict) -> dict[str, Tensor]:
        tokens, weights = batch["tokens"], self.weights
        student, teacher, pairs = self._look(batch["frames"], tokens)
        values = {}
        if weights["cross_entropy"]:
            values["cross_entropy"] = self.cross_entropy(student.logits, tokens)
        if weights["kl"]:
            pad = self.model.pad_token_id
            values["kl"] = losses.kl(student.logits, teacher.logits, tokens, pad, self.temperature)
        if pairs:
            distances = [self._distance(name, *pair) for name, pair in pairs.items()]
            values["features"] = sum(distances) / len(distances)
        if weights["hidden"]:
            mine = self.projectors["hidden"](student.hidden_states[-1])
            values["hidden"] = losses.feature(
                mine, teacher.hidden_states[-1], mask=tokens != self.model.pad_token_id
            )
        self.log_dict({f"train/unweighted/{name}": value.detach() for name, value in values.items()})
        return {name: weights[name] * value for name, value in values.items()}

    def _distance(self, name: str, student: Tensor, teacher: Tensor) -> Tensor:
        projected = self.projectors[name.replace(".", "/")](student)
        grids = student.shape[1:3], teacher.shape[1:3]
        projected = losses.align_grid(projected.flatten(1, 2), *grids)
        return losses.feature(projected, teacher.flatten(1, 2))


def as_cells(activation: Tensor, frames: int) -> Tensor:
    """An image activation of either network as cells [B*F, h, w, D], `frames` = B*F.

    Takes maps [B*F, C, h, w], tokens of single frames [B*F, S, D] and of whole clips [B, F*S, D]. A class token
    that leads each frame is dropped: it is there when S is one more than a square number.
    """
    if activation.dim() == 5:
        activation = activation.flatten(0, 1)
    if activation.dim() == 4:
        return activation.permute(0, 2, 3, 1)
    if activation.dim() != 3 or activation.shape[0] * activation.shape[1] % frames:
        raise ValueError(f"an activation of shape {list(activation.shape)} is not a map over {frames} frames")
    tokens = activation.reshape(frames, -1, activation.shape[-1])
    side = math.isqrt(tokens.shape[1])
    if side**2 + 1 == tokens.shape[1]:
        tokens = tokens[:, 1:]
    elif side**2 != tokens.shape[1]:
        raise ValueError(
            f"{tokens.shape[1]} tokens a frame are no square grid, with or without a class token"
        )
    return tokens.unflatten(1, (side, side))
