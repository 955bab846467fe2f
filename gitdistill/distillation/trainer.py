"""Distillation as a Lightning module.

One function gives the outputs of student and teacher for a batch, and a flat list of `LossTerm`s compares them. For
batches see `caption_trainer`.
"""

import os
from dataclasses import replace
from functools import cached_property, partial

import torch
from torch import Tensor, nn

from gitdistill.decoding.loop import evaluation
from gitdistill.distillation import losses, terms
from gitdistill.distillation.cache import TeacherCache
from gitdistill.distillation.caption_trainer import CaptionTrainer
from gitdistill.distillation.captions import (
    CaptionFilter,
    draw_captions,
    join_captions,
    join_targets,
    pseudo_captions,
)
from gitdistill.distillation.checks import check_gradients
from gitdistill.distillation.custom_terms import custom_term, named_terms
from gitdistill.distillation.distributed import rank_and_world
from gitdistill.distillation.targets import TargetSpec, layer_pairs, layers, teacher_targets, total_frames
from gitdistill.distillation.terms import LossTerm, Outputs, student_outputs, to_vocab_subset
from gitdistill.models.precision import chosen_dtype
from gitdistill.models.student import StudentMaker, shared_options
from gitdistill.models.teacher import GenerativeImageTextTeacher
from gitdistill.models.tokenizer import check_same_vocabulary, translate


class DistillationTrainer(CaptionTrainer):
    """Trains `student` on captions and on the outputs of `teacher` for the same clips and captions.

    The loss is the sum of all terms whose weight is not 0, each times its weight in `loss_weights`. A clip without
    captions (only a start token and padding) adds nothing to the cross-entropy; the teacher's terms still apply.

    Args:
        teacher: a `GenerativeImageTextTeacher`, or where to load it from. It is not part of this module: no
            checkpoint holds it, no optimiser sees it, and it stays in eval mode.
        student: a `StudentCandidateV1`, what `load_student` returned, or any network with the same protocol; or a
            `StudentMaker`, which is called with the teacher's vocabulary, special tokens and number of frames.
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
        terms: further loss terms: name -> (function, weight), or where the function lies -> weight; see
            `custom_terms`.
        temperature: of `kl`.
        feature_pairs: student's module path -> teacher's. The first output of each is compared over the image's
            grid, after a linear projector to the teacher's width. By default the student's mixed memory with the
            image features that the teacher's last decoder layer reads.
        feature_kind: "mse" or "cosine"; see `losses.feature`.
        teacher_captions: how many pseudo-captions per clip join the batch's captions; 1 if `sequence` is on,
            otherwise 0. All of the teacher's terms apply to them.
        own_captions: the share of a batch's clips for which the student draws a caption, at `own_temperature`. All of
            the teacher's terms apply to them; see `captions.draw_captions`. A cache then holds visual features.
        tokenizer: the student's, if its vocabulary is not the teacher's. Captions then pass as text, and no term
            that compares words or their features is possible.
        caption_filter: which pseudo-captions are left out; see `CaptionFilter`.
        cache: a `TeacherCache`, or its folder: then the teacher is not run during training. A folder without a
            finished cache is filled when the fit starts.
        teacher_dtype: what the teacher computes in: "float32", "bfloat16" or "float16"; "auto": see
            `precision.chosen_dtype`. A cache that exists decides for itself.
        options: as for `CaptionTrainer`.

    Raises ValueError when the vocabularies or special tokens differ, when the cache was made by another teacher or
    from other data, and when a loss does not reach the student.
    """

    _part = 0, 1  # which of how many batches of a step is trained on

    def __init__(
        self,
        teacher,
        student: nn.Module | StudentMaker,
        cross_entropy: float = 1.0,
        kl: float = 1.0,
        features: float = 1.0,
        hidden: float = 0.0,
        visual: float = 0.0,
        attention: float = 0.0,
        relations: float = 0.0,
        sequence: float = 0.0,
        terms: dict | None = None,
        temperature: float = 1.0,
        beta: float = 0.0,
        feature_pairs: dict[str, str] | None = None,
        feature_kind: str = "mse",
        teacher_captions: int | None = None,
        caption_filter: CaptionFilter | None = None,
        own_captions: float = 0.0,
        own_temperature: float = 1.0,
        tokenizer=None,
        cache: str | os.PathLike | TeacherCache | None = None,
        teacher_dtype: str = "float32",
        **options,
    ):
        if isinstance(teacher, str | os.PathLike):
            teacher = GenerativeImageTextTeacher.from_pretrained(teacher)
        super().__init__(network(student, teacher, tokenizer), tokenizer or teacher.tokenizer, **options)
        self._teacher, self._gradients_checked = (teacher,), False  # a tuple hides it from nn.Module
        self.caption_filter, self.own_captions = caption_filter or CaptionFilter(), own_captions
        self.own_temperature, self.teacher_dtype, self._cache = own_temperature, teacher_dtype, cache
        weights = {"cross_entropy": cross_entropy, "sequence": sequence, "kl": kl, "attention": attention}
        weights |= {"features": features, "visual": visual, "hidden": hidden, "relations": relations}
        self.loss_weights, self.projectors, self._dtypes = weights, nn.ModuleDict(), {}
        self.terms = self._active_terms(feature_pairs, feature_kind, terms, temperature, beta)
        self._check_vocabulary()
        self._set_specs(int(bool(sequence)) if teacher_captions is None else teacher_captions)
        self._build_projectors()

    def _active_terms(self, feature_pairs, feature_kind, custom, temperature, beta) -> list[LossTerm]:
        """The terms whose weight is not 0."""
        captions = partial(terms.caption_loss, smoothing=self.label_smoothing)
        known = [
            LossTerm("cross_entropy", partial(captions, pseudo=False)),
            LossTerm("sequence", partial(captions, pseudo=True)),
            LossTerm("kl", partial(terms.kl_loss, temperature=temperature, beta=beta), needs=("logits",)),
            LossTerm("attention", terms.attention_loss, needs=("attention",)),
        ]
        pairs = layer_pairs(self._teacher[0], self.model, feature_pairs)
        for name in dict.fromkeys(pair.term for pair in pairs):
            group = tuple(pair for pair in pairs if pair.term == name)
            loss = partial(terms.pairs_loss, pairs=group, projectors=self.projectors, kind=feature_kind)
            known.append(LossTerm(name, loss, group))
        for name, (function, weight) in named_terms(custom or {}).items():
            if name in self.loss_weights:
                raise ValueError(f"{name} is a term already: give yours another name")
            self.loss_weights[name] = weight
            known.append(custom_term(name, function, pairs))
            if isinstance(function, nn.Module):
                self.projectors[name] = function  # so that its parameters learn
        if not any(self.loss_weights.values()):
            raise ValueError("no loss is left: all weights are 0")
        return [term for term in known if self.loss_weights[term.name]]

    def _set_specs(self, captions: int) -> None:
        """`spec` and `student_spec`: all that the active terms need of the teacher and of the student."""
        words = any(term.of_words for term in self.terms)
        if not 0 <= self.own_captions <= 1 or (self.own_captions and not words):
            rule = "between 0 and 1, above 0 only beside a term that compares words, such as kl"
            raise ValueError(f"own_captions must be {rule}; it is {self.own_captions}")
        if self.loss_weights["sequence"] and not captions:
            raise ValueError("sequence trains on the teacher's captions: teacher_captions must be at least 1")
        needs = {need for term in self.terms for need in term.needs}
        grading = bool(self.own_captions) and self._cache is not None
        theirs, ours = layers(self.pairs, "teacher"), layers(self.pairs, "student")
        attention = "attention" in needs
        self.spec = TargetSpec("logits" in needs, *theirs, attention, captions, grading)
        self.student_spec = TargetSpec(True, *ours, attention)

    @cached_property
    def same_words(self) -> bool:
        """Is the student's vocabulary the teacher's?"""
        return self.tokenizer.get_vocab() == self._teacher[0].tokenizer.get_vocab()

    def _check_vocabulary(self) -> None:
        """A ValueError where a student with words of its own is to be compared word by word."""
        wrong = [term.name for term in self.terms if term.of_words]
        wrong += ["cache"] if self._cache is not None else []
        if self.same_words:
            check_same_vocabulary(self._teacher[0], self.model)
        elif wrong:
            raise ValueError(f"the student's vocabulary is not the teacher's: go without {', '.join(wrong)}")

    def _build_projectors(self) -> None:
        """A linear layer from the student's width to the teacher's for each projected pair, as one frame shows."""
        teacher, side = self._teacher[0], self._teacher[0].config.vision_config.image_size
        frames = torch.zeros(1, 1, 3, side, side, dtype=torch.uint8)
        tokens = torch.tensor([[teacher.bos_token_id]])
        here, there = device_of(self.model), device_of(teacher)
        with evaluation(self.model):
            found = student_outputs(self.model, frames.to(here), tokens.to(here), self.student_spec)
        targets = teacher_targets(teacher, frames.to(there), tokens.to(there), self.spec, self._precision)
        for pair in self.pairs:
            if pair.projected:
                ours, theirs = pair.keys
                widths = found[ours].shape[-1], targets[theirs].shape[-1]
                self.projectors[pair.name] = nn.Linear(*widths).to(here)

    student = property(lambda self: self.model)
    pairs = property(lambda self: [pair for term in self.terms for pair in term.pairs])

    @property
    def _precision(self) -> torch.dtype:
        """What the teacher computes in where it is, found once for each device."""
        device = device_of(self._teacher[0]).type
        if device not in self._dtypes:
            self._dtypes[device] = getattr(torch, chosen_dtype(self.teacher_dtype, self._teacher[0]))
        return self._dtypes[device]

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
        count = self.trainer.accumulate_grad_batches
        self._part = batch_idx % count, count
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
        tokens, own = batch["tokens"].unflatten(0, (clips, -1)), self._draw_captions(frames)
        if own is not None:
            tokens = join_captions(tokens, own, self.model.pad_token_id)
        student = student_outputs(self.model, frames, tokens.flatten(0, 1), self.student_spec)
        targets = self._teacher_outputs(batch, tokens, own) if self.spec.names() else {}
        if "logits" in targets and getattr(self.model, "vocab_subset", None) is not None:
            subset, unknown = self.model.vocab_subset, self.model.subset_unk_token_id
            targets["logits"] = losses.restrict_vocabulary(targets["logits"], subset, unknown)
        if self.spec.attention:
            per_clip = total_frames(frames) // clips
            size = student["attention"].shape[-1] // per_clip
            targets["attention"] = losses.align_attention(targets["attention"], per_clip, size)
        tokens, pad = to_vocab_subset(self.model, tokens)
        return Outputs(tokens, num_captions, pad, student, targets, 0 if own is None else own.shape[1])

    def _draw_captions(self, frames: Tensor) -> Tensor | None:
        """The student's own captions [B, 1, T] of this step, which the seed decides; None without `own_captions`."""
        if not self.own_captions:
            return None
        (rank, world), (part, count) = rank_and_world(), self._part
        seed = (torch.initial_seed() + (self.global_step * count + part) * world + rank) % 2**63
        settings = self.own_captions, self.own_temperature, self.max_length
        return draw_captions(self.model, frames, *settings, seed)

    def _add_pseudo_captions(self, batch: dict) -> dict:
        """The batch with the teacher's captions after those of each clip."""
        clips, count, pad = len(batch["frames"]), self.spec.pseudo_captions, self.model.pad_token_id
        if self._cache is None:
            found = pseudo_captions(self.teacher, batch["frames"], count, self.max_length, self._precision)
            captions = self.caption_filter.apply(*found, pad)
            if not self.same_words:
                words = self._teacher[0].tokenizer, self.tokenizer
                captions = translate(captions.flatten(0, 1), *words, self.model.max_positions)
                captions = captions.unflatten(0, (clips, -1))
        else:
            captions, numbers = self.cache.pseudo_captions(batch["clip"], count, self.caption_filter)
            numbers = torch.cat([batch["caption"].unflatten(0, (clips, -1)), numbers], dim=1)
            batch = {**batch, "caption": numbers.flatten()}
        tokens = join_captions(batch["tokens"].unflatten(0, (clips, -1)), captions, pad)
        return {**batch, "tokens": tokens.flatten(0, 1)}

    def _teacher_outputs(self, batch: dict, tokens: Tensor, own: Tensor | None) -> dict:
        """The teacher's targets for captions `tokens` [B, K, T], the last of them `own`.

        With a cache the teacher reads only `own`, from the visual features that are stored.
        """
        frames = batch["frames"]
        if self._cache is None:
            if not self.same_words:  # only image features are compared
                tokens = torch.full_like(tokens[:, :1, :1], self._teacher[0].bos_token_id)
            return teacher_targets(self.teacher, frames, tokens.flatten(0, 1), self.spec, self._precision)
        targets = self.cache.read(batch["clip"], batch["caption"], batch["tokens"], self.spec)
        if own is None:
            return targets
        features = targets.pop("visual_features")
        spec = replace(self.spec, image_features=(), visual_features=False)
        graded = teacher_targets(self.teacher, frames, own.flatten(0, 1), spec, self._precision, features)
        if spec.logits:
            graded["logits"] = losses.top_k(graded["logits"], self.cache.metadata["k"])
        return join_targets(targets, graded, len(own))

    @property
    def cache(self) -> TeacherCache:
        """The open cache; ValueError before `fit` has opened it."""
        if not isinstance(self._cache, TeacherCache):
            raise ValueError(f"the cache in {self._cache} is opened by `fit`; or give TeacherCache(folder)")
        return self._cache


def network(student, teacher, tokenizer=None) -> nn.Module:
    """The network that `student` is, makes, or holds as what `load_student` returns does."""
    if isinstance(student, nn.Module):
        return student
    return student(**shared_options(teacher, tokenizer)) if callable(student) else student.model


def device_of(module: nn.Module) -> torch.device:
    return next(module.parameters()).device
