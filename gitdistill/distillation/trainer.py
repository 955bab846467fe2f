"""Training a captioner with or without a teacher, as Lightning modules.

`CaptionTrainer` trains on captions by cross-entropy. `DistillationTrainer` adds the teacher: one function gives the
outputs of both networks for a batch, and a flat list of `LossTerm`s compares them.

A batch is a dict: "frames" uint8 [B, F, 3, H, W], "tokens" long [B*K, T], for scoring "references" (B lists of
captions), and optionally "clip" (their numbers) and "scenes" (their ground truth).
"""

import os
from contextlib import nullcontext
from functools import partial

import pytorch_lightning as pl
import torch
from pytorch_lightning.strategies import DDPStrategy
from torch import Tensor, nn

from gitdistill.decoding.loop import evaluation
from gitdistill.distillation import losses, terms
from gitdistill.distillation.cache import TeacherCache
from gitdistill.distillation.checks import LossWatch, check_gradients, frozen
from gitdistill.distillation.optim import optimizer_and_schedule
from gitdistill.distillation.pseudo_captions import CaptionFilter, join_captions, pseudo_captions
from gitdistill.distillation.scoring import Predictions
from gitdistill.distillation.targets import (
    TargetSpec,
    layer_pairs,
    parse_dtype,
    teacher_targets,
    total_frames,
)
from gitdistill.distillation.terms import LossTerm, Outputs, student_outputs, subset_logits, to_vocab_subset
from gitdistill.models.teacher import GenerativeImageTextTeacher
from gitdistill.models.tokenizer import check_same_vocabulary, load_tokenizer


class CaptionTrainer(pl.LightningModule):
    """Trains `model` on captions by cross-entropy, and scores the captions that it decodes.

    Args:
        model: a network of this package, or any that takes (frames, tokens) and follows the protocol of
            `gitdistill.decoding`.
        tokenizer: decodes token ids; or where to load it from, as for `GenerativeImageTextTeacher`.
        lr, weight_decay: peak learning rate and decay of the optimiser.
        warmup: steps of linear warm-up, before a cosine down to 1 % at the last step.
        muon: Muon for the inner matrices instead of AdamW throughout (see `gitdistill.distillation.optim`).
        freeze: steps during which the vision encoder is frozen, batch-norm statistics included.
        label_smoothing: as in GIT's own training (0.1 there).
        max_length: maximum tokens of a decoded caption, start token included.

    Raises ValueError unless model and tokenizer have the same vocabulary and special tokens.
    """

    def __init__(
        self,
        model: nn.Module,
        tokenizer,
        lr: float = 2e-3,
        weight_decay: float = 0.01,
        warmup: int = 50,
        muon: bool = True,
        freeze: int = 0,
        label_smoothing: float = 0.0,
        max_length: int = 24,
    ):
        super().__init__()
        self.model = model
        self.tokenizer = load_tokenizer(tokenizer) if isinstance(tokenizer, str | os.PathLike) else tokenizer
        check_same_vocabulary(self.tokenizer, model)
        self.lr, self.weight_decay, self.warmup, self.muon = lr, weight_decay, warmup, muon
        self.freeze, self.label_smoothing, self.max_length = freeze, label_smoothing, max_length
        self.predictions, self.loss_watch = Predictions(), LossWatch()

    def configure_optimizers(self):
        return optimizer_and_schedule(self, self.trainer, self.lr, self.weight_decay, self.warmup, self.muon)

    def setup(self, stage: str) -> None:
        """Tell DistributedDataParallel not to wait for parameters that are frozen or that no loss reaches."""
        if isinstance(self.trainer.strategy, DDPStrategy):
            # Private, because Lightning takes this option only where the strategy is made.
            self.trainer.strategy._ddp_kwargs.setdefault("find_unused_parameters", True)

    def loss_terms(self, batch: dict) -> dict[str, Tensor]:
        """The weighted terms of the loss by name; their sum is minimised."""
        output = self.model(batch["frames"], batch["tokens"])
        tokens, pad = to_vocab_subset(self.model, batch["tokens"])
        loss = losses.cross_entropy(subset_logits(output), tokens, pad, self.label_smoothing)
        return {"cross_entropy": loss}

    @property
    def vision_encoder(self) -> nn.Module:
        """The student's backbone, or GIT's image encoder."""
        return self.model.backbone if hasattr(self.model, "backbone") else self.model.image_encoder

    def on_train_start(self) -> None:
        self.model.train()  # a loaded network is in eval mode, and Lightning leaves it so

    def training_step(self, batch: dict, batch_idx: int) -> Tensor:
        with frozen(self.vision_encoder) if self.global_step < self.freeze else nullcontext():
            terms = self.loss_terms(batch)
        total = sum(terms.values())
        self.log_dict({f"train/{name}": value.detach() for name, value in terms.items()})
        self.log("train/loss", total.detach(), prog_bar=True)
        where = f"step {self.global_step}, epoch {self.current_epoch}, batch {batch_idx}"
        self.loss_watch.check(total, terms, where, batch.get("clip"))
        return total

    def on_train_end(self) -> None:
        self.loss_watch.finish()

    def validation_step(self, batch: dict, batch_idx: int, dataloader_idx: int = 0) -> None:
        self.predict("val", dataloader_idx, batch)

    def test_step(self, batch: dict, batch_idx: int, dataloader_idx: int = 0) -> None:
        self.predict("test", dataloader_idx, batch)

    def predict(self, stage: str, dataloader_idx: int, batch: dict) -> None:
        """Decode a batch's captions for `log_scores`.

        Splits are called as `val_names` or `test_names` of the data module say, or "test", "test_1" and so on.
        """
        names = getattr(self.trainer.datamodule, f"{stage}_names", (stage,))
        split = names[dataloader_idx] if dataloader_idx < len(names) else f"{stage}_{dataloader_idx}"
        self.predictions.add(split, self.model, batch, self.tokenizer, self.max_length)

    def log_scores(self) -> None:
        """Log the scores of all predictions since the last call, of all ranks together."""
        score_scenes = getattr(self.trainer.datamodule, "caption_scores", None)
        for split, scores in self.predictions.scores(score_scenes).items():
            self.log_dict({f"{split}/{name}": float(value) for name, value in scores.items()})
            self.log(f"{split}_cider", float(scores["cider"]), prog_bar=split == "val", logger=False)
        self.predictions = Predictions()

    on_validation_epoch_end = on_test_epoch_end = log_scores


class DistillationTrainer(CaptionTrainer):
    """Trains `student` on captions and on the outputs of `teacher` for the same clips and captions.

    The loss is the sum of all terms whose weight is not 0, each times its weight in `loss_weights`. A clip without
    captions (only a start token and padding) adds nothing to the cross-entropy; the teacher's terms still apply.

    Args:
        teacher: a `GenerativeImageTextTeacher`, or where to load it from. It is not part of this module: no
            checkpoint holds it, no optimiser sees it, and it stays in eval mode.
        student: a `StudentCandidateV1`, what `load_student` returned, or any network with the same protocol.
        cross_entropy: weight of the captions' cross-entropy.
        kl: weight of KL(teacher || student) of the next token's distribution, at `temperature`. beta: 1 for
            KL(student || teacher); between 0 and 1 for a Jensen-Shannon divergence, see `losses.kl`.
        features: weight of the distance of image features, averaged over `feature_pairs`.
        hidden: weight of the distance of the last decoder states, token by token.
        visual: weight of the distance of the vision encoders' last features, frame by frame.
        attention: weight of the KL of the attention from text to image, averaged over heads and layers.
        relations: weight of the relations among queries, keys and values of the text in both last layers, and among
            the values of the image that the text reads there.
        sequence: weight of the cross-entropy of the teacher's own captions (sequence-level distillation, Kim and
            Rush 2016, https://arxiv.org/abs/1606.07947).
        temperature: of `kl`.
        feature_pairs: student's module path -> teacher's. The first output of each is compared over the image's
            grid, after a linear projector to the teacher's width. By default the student's mixed memory with the
            image features that the teacher's last decoder layer reads. "stages": see `targets.stage_pairs`.
        feature_kind: "mse" or "cosine"; see `losses.feature`.
        teacher_captions: how many pseudo-captions per clip join the batch's captions; 1 if `sequence` is on,
            otherwise 0. All of the teacher's terms apply to them.
        caption_filter: which pseudo-captions are left out; see `CaptionFilter`.
        cache: a `TeacherCache`, or its folder: then the teacher is not run during training. A folder without a
            finished cache is filled when the fit starts.
        teacher_dtype: what the teacher computes in; "bfloat16" is faster on hardware that supports it.
        options: as for `CaptionTrainer`; the tokenizer is the teacher's.

    Raises ValueError when the vocabularies or special tokens differ, when the cache was made by another teacher or
    from other data, and when a loss does not reach the student.
    """

    def __init__(
        self,
        teacher,
        student: nn.Module,
        cross_entropy: float = 1.0,
        kl: float = 1.0,
        features: float = 1.0,
        hidden: float = 0.0,
        visual: float = 0.0,
        attention: float = 0.0,
        relations: float = 0.0,
        sequence: float = 0.0,
        temperature: float = 1.0,
        beta: float = 0.0,
        feature_pairs: dict[str, str] | str | None = None,
        feature_kind: str = "mse",
        teacher_captions: int | None = None,
        caption_filter: CaptionFilter | None = None,
        cache: str | os.PathLike | TeacherCache | None = None,
        teacher_dtype: str = "float32",
        **options,
    ):
        if isinstance(teacher, str | os.PathLike):
            teacher = GenerativeImageTextTeacher.from_pretrained(teacher)
        student = student if isinstance(student, nn.Module) else student.model  # as `load_student` holds it
        super().__init__(student, teacher.tokenizer, **options)
        self._teacher = (teacher,)  # a tuple hides it from nn.Module
        self._dtype, self._cache, self._gradients_checked = parse_dtype(teacher_dtype), cache, False
        self.teacher_dtype, self.caption_filter = teacher_dtype, caption_filter or CaptionFilter()
        weights = {"cross_entropy": cross_entropy, "sequence": sequence, "kl": kl, "attention": attention}
        weights |= {"features": features, "visual": visual, "hidden": hidden, "relations": relations}
        self.loss_weights, self.projectors = weights, nn.ModuleDict()
        self.terms = self._active_terms(feature_pairs, feature_kind, temperature=temperature, beta=beta)
        self.spec = self._target_spec(int(bool(sequence)) if teacher_captions is None else teacher_captions)
        self._build_projectors()

    def _active_terms(self, feature_pairs, feature_kind: str, **divergence) -> list[LossTerm]:
        """The terms whose weight is not 0."""
        captions = partial(terms.caption_loss, smoothing=self.label_smoothing)
        known = [
            LossTerm("cross_entropy", partial(captions, pseudo=False)),
            LossTerm("sequence", partial(captions, pseudo=True)),
            LossTerm("kl", partial(terms.kl_loss, **divergence), needs=("logits",)),
            LossTerm("attention", terms.attention_loss, needs=("attention",)),
        ]
        pairs = layer_pairs(self._teacher[0], self.model, feature_pairs)
        for name in dict.fromkeys(pair.term for pair in pairs):
            group = tuple(pair for pair in pairs if pair.term == name)
            loss = partial(terms.pairs_loss, pairs=group, projectors=self.projectors, kind=feature_kind)
            known.append(LossTerm(name, loss, group))
        return [term for term in known if self.loss_weights[term.name]]

    def _target_spec(self, captions: int) -> TargetSpec:
        """All that the active terms need of the teacher."""
        if self.loss_weights["sequence"] and not captions:
            raise ValueError("sequence trains on the teacher's captions: teacher_captions must be at least 1")
        image = dict.fromkeys(pair.teacher for pair in self.pairs if pair.of_image)
        text = dict.fromkeys(pair.teacher for pair in self.pairs if not pair.of_image)
        needs = {need for term in self.terms for need in term.needs}
        return TargetSpec("logits" in needs, tuple(image), tuple(text), "attention" in needs, captions)

    def _build_projectors(self) -> None:
        """A linear layer from the student's width to the teacher's for each projected pair, as one frame shows."""
        teacher, side = self._teacher[0], self._teacher[0].config.vision_config.image_size
        frames = torch.zeros(1, 1, 3, side, side, dtype=torch.uint8)
        tokens = torch.tensor([[teacher.bos_token_id]])
        here, there = device_of(self.model), device_of(teacher)
        with evaluation(self.model):
            _, features, _ = student_outputs(self.model, frames.to(here), tokens.to(here), self.pairs)
        targets = teacher_targets(teacher, frames.to(there), tokens.to(there), self.spec)
        for pair in self.pairs:
            if pair.projected:
                width = features[pair].shape[-1], targets[pair.target].shape[-1]
                self.projectors[pair.name] = nn.Linear(*width).to(here)

    student = property(lambda self: self.model)
    pairs = property(lambda self: [pair for term in self.terms for pair in term.pairs])

    @property
    def teacher(self) -> GenerativeImageTextTeacher:
        """The teacher, on the student's device."""
        teacher, device = self._teacher[0], device_of(self.model)
        return teacher if device_of(teacher) == device else teacher.to(device)

    def setup(self, stage: str) -> None:
        """Open the cache, or fill it, before training."""
        super().setup(stage)
        self._teacher_device = device_of(self._teacher[0])
        if stage == "fit" and self._cache is not None:
            # Lightning moves this module later; the teacher fills the cache on the device of the fit already.
            teacher = self._teacher[0].to(self.trainer.strategy.root_device)
            self._cache = TeacherCache.open(
                self._cache, teacher, self.trainer.datamodule, self.spec, self.teacher_dtype
            )

    def teardown(self, stage: str) -> None:
        """Move the teacher back to its first device, as Lightning does with the student."""
        super().teardown(stage)
        self._teacher[0].to(self._teacher_device)

    def on_train_start(self) -> None:
        super().on_train_start()
        self._gradients_checked = False

    def training_step(self, batch: dict, batch_idx: int) -> Tensor:
        if not self._gradients_checked:
            check_gradients(self, batch)
            self._gradients_checked = True
        return super().training_step(batch, batch_idx)

    def loss_terms(self, batch: dict) -> dict[str, Tensor]:
        values = self.unweighted_terms(batch)
        self.log_dict({f"train/unweighted/{name}": value.detach() for name, value in values.items()})
        return {name: self.loss_weights[name] * value for name, value in values.items()}

    def unweighted_terms(self, batch: dict) -> dict[str, Tensor]:
        """The active terms by name, before their weights."""
        outputs = self.outputs(batch)
        return {term.name: term.compute(outputs) for term in self.terms}

    def outputs(self, batch: dict) -> Outputs:
        """The outputs of student and teacher for a batch, pseudo-captions included."""
        clips, frames = len(batch["frames"]), batch["frames"]
        num_captions = len(batch["tokens"]) // clips
        batch = self._add_pseudo_captions(batch) if self.spec.pseudo_captions else batch
        logits, features, attention = student_outputs(
            self.model, frames, batch["tokens"], self.pairs, self.spec.attention
        )
        targets = self._teacher_outputs(batch) if self.spec.names() else {}
        if "logits" in targets and getattr(self.model, "vocab_subset", None) is not None:
            subset, unknown = self.model.vocab_subset, self.model.subset_unk_token_id
            targets["logits"] = losses.restrict_vocabulary(targets["logits"], subset, unknown)
        tokens, pad = to_vocab_subset(self.model, batch["tokens"])
        tokens, logits = (x.unflatten(0, (clips, -1)) for x in (tokens, logits))
        per_clip = total_frames(frames) // clips
        return Outputs(tokens, num_captions, pad, logits, features, attention, targets, per_clip)

    def _add_pseudo_captions(self, batch: dict) -> dict:
        """The batch with the teacher's captions after each clip's own."""
        clips, count, pad = len(batch["frames"]), self.spec.pseudo_captions, self.model.pad_token_id
        if self._cache is None:
            found = pseudo_captions(self.teacher, batch["frames"], count, self.max_length, self._dtype)
            captions = self.caption_filter.apply(*found, pad)
        else:
            captions, numbers = self.cache.pseudo_captions(batch["clip"], count, self.caption_filter)
            numbers = torch.cat([batch["caption"].unflatten(0, (clips, -1)), numbers], dim=1)
            batch = {**batch, "caption": numbers.flatten()}
        tokens = join_captions(batch["tokens"].unflatten(0, (clips, -1)), captions, pad)
        return {**batch, "tokens": tokens.flatten(0, 1)}

    def _teacher_outputs(self, batch: dict) -> dict:
        """The teacher's targets for a batch, from the cache if there is one."""
        if self._cache is None:
            return teacher_targets(self.teacher, batch["frames"], batch["tokens"], self.spec, self._dtype)
        return self.cache.read(batch["clip"], batch["caption"], batch["tokens"], self.spec)

    @property
    def cache(self) -> TeacherCache:
        """The open cache; ValueError before `fit` has opened it."""
        if not isinstance(self._cache, TeacherCache):
            raise ValueError(f"the cache in {self._cache} is opened by `fit`; or give TeacherCache(folder)")
        return self._cache


def device_of(module: nn.Module) -> torch.device:
    return next(module.parameters()).device
