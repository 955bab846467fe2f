"""Training a captioner, with a teacher or without: Lightning modules and nothing else.

`CaptionTrainer` learns captions by cross-entropy; `DistillationTrainer` adds what a teacher can tell.
Batches are dicts as `gitdistill.data.GlyphData` makes them: "frames" uint8 [B, F, 3, H, W], "tokens" long
[B*K, T] and, for scoring, "references" (B lists of captions) and, in the embedded world, "scenes".
"""

from pathlib import Path

import pytorch_lightning as pl
import torch
from torch import Tensor, nn

from gitdistill import losses, metrics
from gitdistill.cache import TeacherCache, Wants, as_cells, ask
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
        cache: a `TeacherCache`, or a folder that has or will get one: then no training batch asks the teacher.
            A folder without a finished one is filled when the fit starts.
        teacher_dtype: what the teacher computes in; "bfloat16" halves its time on hardware that knows it.
        freeze: steps for which the student's backbone is left as it came, batch-norm statistics included, so
            that what is random around it learns to read it first.
        options: as for `CaptionTrainer`.

    Raises ValueError when the two vocabularies differ, or when the cache is another teacher's or other data's.
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
        cache: str | Path | TeacherCache | None = None,
        teacher_dtype: str = "float32",
        freeze: int = 0,
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
        self.temperature, self.teacher_dtype, self.freeze = temperature, teacher_dtype, freeze
        layers = len(teacher.model.layers)
        self.feature_pairs = (
            (feature_pairs or {"memory_norm": f"model.layers.{layers - 2}"}) if features else {}
        )
        self.last_layer = f"model.layers.{layers - 1}"
        self.wants = Wants(
            logits=bool(kl),
            cells=tuple(self.feature_pairs.values()),
            rows=(self.last_layer,) if hidden else (),
        )
        self._cache = cache
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
        tokens = torch.tensor([[teacher.bos_token_id]])
        training = self.model.training
        self.model.eval()
        student, cells = self._read(frames, tokens)
        self.model.train(training)
        answer = ask(teacher, frames, tokens, self.wants)
        for ours, theirs in self.feature_pairs.items():
            widths = cells[ours].shape[-1], answer[f"cells/{theirs}"].shape[-1]
            self.projectors[ours.replace(".", "/")] = nn.Linear(*widths)
        if self.weights["hidden"]:
            widths = student.hidden_states[-1].shape[-1], answer[f"rows/{self.last_layer}"].shape[-1]
            self.projectors["hidden"] = nn.Linear(*widths)

    def setup(self, stage: str) -> None:
        """Open the cache, or fill it, before training."""
        if stage == "fit" and self._cache is not None:
            data = self.trainer.datamodule
            if not isinstance(self._cache, TeacherCache):
                self._cache = self._open_cache(Path(self._cache), data)
            self._cache.check(self.teacher, data)
            if lacking := self._cache.lacks(self.wants):
                raise ValueError(
                    f"the cache in {self._cache.folder} lacks {', '.join(lacking)}: build another"
                )

    def _open_cache(self, folder: Path, data) -> TeacherCache:
        if data is None:
            return TeacherCache(folder)
        return TeacherCache.build(folder, self.teacher, data, self.wants, teacher_dtype=self.teacher_dtype)

    def on_train_batch_start(self, batch: dict, index: int) -> None:
        if self.freeze:
            thawed = self.global_step >= self.freeze
            self.model.backbone.requires_grad_(thawed).train(thawed)

    def on_train_end(self) -> None:
        if self.freeze:
            self.model.backbone.requires_grad_(True)

    def _read(self, frames: Tensor, tokens: Tensor):
        """The student's output, and its cells [B*F, h, w, D] for each of its paths in `feature_pairs`."""
        count = len(frames) * (frames.shape[1] if frames.dim() == 5 else 1)
        with record(self.model, list(self.feature_pairs), detach=False) as seen:
            student = self.model(frames, tokens)
        return student, {path: as_cells(seen[path][0], count) for path in self.feature_pairs}

    def _ask(self, batch: dict) -> dict:
        """What the teacher makes of a batch, from the cache if there is one; see `gitdistill.cache.ask`."""
        frames, tokens = batch["frames"], batch["tokens"]
        if self._cache is None:
            return ask(self.teacher, frames, tokens, self.wants, getattr(torch, self.teacher_dtype))
        if not isinstance(self._cache, TeacherCache):
            raise ValueError(f"the cache in {self._cache} is opened by `fit`, or give TeacherCache(folder)")
        return self._cache.read(batch["clip"], batch["caption"], tokens, self.wants)

    def losses(self, batch: dict) -> dict[str, Tensor]:
        tokens, weights, pad = batch["tokens"], self.weights, self.model.pad_token_id
        student, cells = self._read(batch["frames"], tokens)
        answer = self._ask(batch) if self.wants else {}
        values = {}
        if weights["cross_entropy"]:
            values["cross_entropy"] = self.cross_entropy(student.logits, tokens)
        if weights["kl"]:
            teacher = answer["logits"]
            kl = losses.kl_top if isinstance(teacher, losses.TopK) else losses.kl
            values["kl"] = kl(student.logits, teacher, tokens, pad, self.temperature)
        if self.feature_pairs:
            pairs = [(ours, cells[ours], answer[f"cells/{to}"]) for ours, to in self.feature_pairs.items()]
            values["features"] = sum(self._distance(*pair) for pair in pairs) / len(pairs)
        if weights["hidden"]:
            mine = self.projectors["hidden"](student.hidden_states[-1])
            values["hidden"] = losses.feature(mine, answer[f"rows/{self.last_layer}"], mask=tokens != pad)
        self.log_dict({f"train/unweighted/{name}": value.detach() for name, value in values.items()})
        return {name: weights[name] * value for name, value in values.items()}

    def _distance(self, name: str, student: Tensor, teacher: Tensor) -> Tensor:
        projected = self.projectors[name.replace(".", "/")](student)
        grids = student.shape[1:3], teacher.shape[1:3]
        projected = losses.align_grid(projected.flatten(1, 2), *grids)
        return losses.feature(projected, teacher.flatten(1, 2))
