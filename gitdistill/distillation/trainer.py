"""Training a captioner, with a teacher or without: Lightning modules and nothing else.

`CaptionTrainer` learns captions by cross-entropy; `DistillationTrainer` adds what a teacher can tell.
Batches are dicts as `gitdistill.world.GlyphData` makes them: "frames" uint8 [B, F, 3, H, W], "tokens" long
[B*K, T] and, for scoring, "references" (B lists of captions) and, in the embedded world, "scenes".
"""

import math
from pathlib import Path

import pytorch_lightning as pl
import torch
from pytorch_lightning.strategies import DDPStrategy
from torch import Tensor, nn
from torch.nn import functional as F

from gitdistill import metrics
from gitdistill.decoding import greedy
from gitdistill.distillation import losses
from gitdistill.distillation.cache import TeacherCache, is_finished
from gitdistill.distillation.distributed import gather, on_any, rank_and_world
from gitdistill.distillation.optim import MuonAdamW, fit_steps, warmup_cosine
from gitdistill.distillation.targets import (
    CaptionFilter,
    FeaturePair,
    TargetSpec,
    attention_over_image,
    join_captions,
    layer_pairs,
    parse_dtype,
    pseudo_captions,
    teacher_targets,
)
from gitdistill.hooks import record
from gitdistill.models.teacher import GenerativeImageTextTeacher
from gitdistill.models.tokenizer import to_text
from gitdistill.world.module import glyph_tokenizer

ATTENTION = (
    "layers.*.cross_attention.softmax"  # the student's; the teacher's is in `gitdistill.distillation.targets`
)


class CaptionTrainer(pl.LightningModule):
    """Trains `model` on captions by cross-entropy and scores the captions it decodes.

    Args:
        model: anything that takes (frames, tokens) and satisfies the decoding protocol.
        tokenizer: turns token ids into text; the embedded world's by default.
        lr, weight_decay: peak learning rate and decay of the optimiser.
        warmup: steps of linear warm-up, before a cosine down to 1 % at the run's last step.
        muon: Muon for the inner matrices instead of AdamW throughout (see `gitdistill.distillation.optim`).
        freeze: steps for which the part that sees is left as it came, batch-norm statistics included; what is
            new behind it learns to read it first.
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
        freeze: int = 0,
        label_smoothing: float = 0.0,
        max_length: int = 24,
    ):
        super().__init__()
        self.model = model
        self.tokenizer = tokenizer or glyph_tokenizer()
        self.lr, self.weight_decay, self.warmup, self.muon = lr, weight_decay, warmup, muon
        self.freeze = freeze
        self.label_smoothing, self.max_length = label_smoothing, max_length
        self._heard, self._frozen, self._more_scores = {}, [], None

    def configure_optimizers(self):
        if self.muon:
            optimizer = MuonAdamW(self, self.lr, self.weight_decay)
        else:
            trainable = [p for p in self.parameters() if p.requires_grad]
            optimizer = torch.optim.AdamW(trainable, self.lr, weight_decay=self.weight_decay)
        schedule = warmup_cosine(optimizer, self.warmup, fit_steps(self.trainer))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def setup(self, stage: str) -> None:
        """Tell DistributedDataParallel that some parameters get no gradient: those that `freeze` freezes after it
        was made, and those that no loss reaches. Otherwise it waits for them in vain.

        Lightning has no public way in; were the attribute renamed, this would be an AttributeError.
        """
        self._more_scores = getattr(self.trainer.datamodule, "caption_scores", None)
        if isinstance(self.trainer.strategy, DDPStrategy):
            self.trainer.strategy._ddp_kwargs.setdefault("find_unused_parameters", True)

    def losses(self, batch: dict) -> dict[str, Tensor]:
        """The terms of the training loss by name; their sum is minimised."""
        output = self.model(batch["frames"], batch["tokens"])
        own = in_vocab_subset(self.model, output, batch["tokens"])
        return {"cross_entropy": losses.cross_entropy(*own, self.label_smoothing)}

    def cross_entropy(self, logits: Tensor, tokens: Tensor) -> Tensor:
        return losses.cross_entropy(logits, tokens, self.model.pad_token_id, self.label_smoothing)

    def training_step(self, batch: dict, index: int) -> Tensor:
        terms = self.losses(batch)
        total = sum(terms.values())
        # Reading a number waits for a GPU to finish: there, only in steps that are logged.
        if total.device.type == "cpu" or index % self.trainer.log_every_n_steps == 0:
            self.check_loss(terms, total.item(), batch, index)
        self.log_dict({f"train/{name}": value.detach() for name, value in terms.items()})
        self.log("train/loss", total.detach(), prog_bar=True)
        return total

    def on_train_start(self) -> None:
        self.model.train()  # one that was loaded comes in eval mode, and Lightning leaves it so

    def on_train_batch_start(self, batch: dict, index: int) -> None:
        if self.global_step < self.freeze:
            if not self._frozen:
                self._frozen = [(p, p.requires_grad) for p in self.eyes.parameters()]
            self.eyes.requires_grad_(False).eval()
        elif self._frozen:
            self._unfreeze()
            self.model.train()

    def on_train_end(self) -> None:
        self._unfreeze()

    def _unfreeze(self) -> None:
        """What was frozen before `freeze` stays so."""
        for parameter, learns in self._frozen:
            parameter.requires_grad_(learns)
        self._frozen = []

    @property
    def eyes(self) -> nn.Module:
        """The part of the model that sees: a student's backbone, GIT's image encoder."""
        return self.model.backbone if hasattr(self.model, "backbone") else self.model.image_encoder

    def check_loss(self, terms: dict, total: float, batch: dict, index: int) -> None:
        """A ValueError that says when, where and which term, if the loss is not finite; in all processes if it is
        not in one, so that none waits for another."""
        if not on_any(not math.isfinite(total), self.device):
            return
        where = f"in step {self.global_step}, epoch {self.current_epoch}, batch {index}"
        if math.isfinite(total):
            raise ValueError(f"the loss of another process is not finite {where}")
        values = ", ".join(f"{name} {value.item():.4g}" for name, value in terms.items())
        clips = f", clips {batch['clip'].tolist()}" if "clip" in batch else ""
        raise ValueError(
            f"the loss is {total:.4g} ({values}) {where}{clips}: try a lower lr, a longer warmup or "
            "gradient_clip_val"
        )

    def validation_step(self, batch: dict, _) -> None:
        self.score_batch("val", batch)

    def test_step(self, batch: dict, _, dataloader_idx: int = 0) -> None:
        self.score_batch(self.split_names[dataloader_idx], batch)

    def score_batch(self, split: str, batch: dict) -> None:
        """Decode the batch's captions and keep them by clip, with what they are to be held against."""
        captions = self.caption(batch["frames"])
        logits, tokens, pad = in_vocab_subset(
            self.model, self.model(batch["frames"], batch["tokens"]), batch["tokens"]
        )
        words = (tokens[:, 1:] != pad).sum(1).tolist()
        loss = [
            float(losses.cross_entropy(logits[i, None], tokens[i, None], pad)) for i in range(len(tokens))
        ]
        heard = self._heard.setdefault(split, {})
        if "clip" in batch:
            clips = batch["clip"].tolist()
        else:  # by process and number, so that nobody's clips take the place of another's
            clips = [(rank_and_world()[0], len(heard) + row) for row in range(len(captions))]
        scenes = batch.get("scenes", [None] * len(captions))
        rows = zip(captions, batch["references"], scenes, loss, words, strict=True)
        heard.update(zip(clips, rows, strict=True))

    def caption(self, frames: Tensor) -> list[str]:
        """Greedy captions of a batch of clips."""
        return to_text(greedy(self.model, frames, max_length=self.max_length).tokens[:, 0], self.tokenizer)

    def on_validation_epoch_end(self) -> None:
        self.log_scores()

    def on_test_epoch_end(self) -> None:
        self.log_scores()

    def log_scores(self) -> None:
        """Log the scores of what was heard; of several processes, of what all of them heard, each clip once."""
        for split, heard in merged(gather(self._heard)).items():
            captions, references, scenes, loss, words = zip(*heard, strict=True)
            total = sum(nats * count for nats, count in zip(loss, words))
            self.log(f"{split}/cross_entropy", total / max(1, sum(words)))
            scores = metrics.caption_scores(list(captions), list(references))
            if None not in scenes and self._more_scores:
                scores |= self._more_scores(list(captions), list(scenes))
            self.log_dict({f"{split}/{name}": float(value) for name, value in scores.items()})
            self.log(f"{split}_cider", float(scores["cider"]), prog_bar=split == "val", logger=False)
        self._heard.clear()


def merged(parts: list[dict]) -> dict[str, list]:
    """Split -> what all processes heard of it, in the order of the clips; a clip that several have counts once."""
    splits = dict.fromkeys(split for part in parts for split in part)
    found = {split: {} for split in splits}
    for part in reversed(parts):
        for split, heard in part.items():
            found[split] |= heard
    return {split: [heard[clip] for clip in sorted(heard)] for split, heard in found.items()}


class DistillationTrainer(CaptionTrainer):
    """Trains `student` on captions and on what `teacher` makes of the same clips and captions.

    The loss is a weighted sum; a term of weight 0 is not computed. `weights` is read in every step, so a callback
    (`Anneal`) can change the weight of a term that was on from the start. A clip without captions (rows of a start
    token and padding, see `GlyphData`) counts as one that costs nothing; what the teacher says of it counts.

    Args:
        teacher: a `GenerativeImageTextTeacher`, or where to load it from ("glyphs", a folder, a hub id). It is
            no part of this module: no checkpoint holds it, no optimiser sees it, and it stays in eval mode.
        student: a `StudentCandidateV1`, or anything that takes (frames, tokens) and has its logits.
        cross_entropy: weight of the captions' cross-entropy.
        kl: weight of KL(teacher || student) on the next token's distribution, at `temperature`.
        features: weight of the feature maps' distance, averaged over `feature_pairs`.
        hidden: weight of the distance of the last decoder states, token by token.
        visual: weight of the distance of the image encoders' last features, each frame by itself.
        attention: weight of the KL between where the two look in the image, averaged over heads and layers.
        relations: weight of the relations among queries, keys and values of the text in both last layers, and
            among the values that the text reads off the image there.
        sequence: weight of the cross-entropy on the teacher's own captions, as if they were the clips'
            (sequence-level distillation, Kim and Rush 2016, https://arxiv.org/abs/1606.07947).
        temperature: of `kl`.
        feature_pairs: student's module path -> teacher's. The first tensor each hands out per batch is compared,
            cell by cell, after a linear projector to the teacher's width. By default the student's mixed memory
            with the image rows of the teacher's decoder before its last layer: what both decoders read from.
            "stages": the backbone's stages with the teacher's image encoder, see `targets.stage_pairs`.
        feature_kind: "mse" or "cosine"; see `losses.feature`.
        teacher_captions: how many of the teacher's own captions of each clip join the batch's; 1 if `sequence`
            is on, otherwise 0. `kl` and all other terms apply to them, too.
        caption_filter: which of these are left out; see `CaptionFilter`.
        cache: a `TeacherCache`, or a folder that has or will get one: then no training batch asks the teacher.
            A folder without a finished one is filled when the fit starts.
        teacher_dtype: what the teacher computes in; "bfloat16" is faster on hardware that knows it.
        options: as for `CaptionTrainer`.

    Raises ValueError when the two vocabularies differ, when the cache is another teacher's or other data's, and
    when a loss does not reach the student.
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
        feature_pairs: dict[str, str] | str | None = None,
        feature_kind: str = "mse",
        teacher_captions: int | None = None,
        caption_filter: CaptionFilter | None = None,
        cache: str | Path | TeacherCache | None = None,
        teacher_dtype: str = "float32",
        **options,
    ):
        teacher = GenerativeImageTextTeacher.from_pretrained(teacher) if isinstance(teacher, str) else teacher
        super().__init__(student, options.pop("tokenizer", None) or teacher.tokenizer, **options)
        if student.vocab_size != teacher.vocab_size:
            raise ValueError(
                f"the student's vocabulary has {student.vocab_size} words and the teacher's {teacher.vocab_size}: "
                "build the student with vocab_size=teacher.vocab_size"
            )
        self._dtype = parse_dtype(teacher_dtype)
        self._teacher = (teacher,)  # a tuple hides it from nn.Module
        self.weights = {
            "cross_entropy": cross_entropy,
            "kl": kl,
            "features": features,
            "hidden": hidden,
            "visual": visual,
            "attention": attention,
            "relations": relations,
            "sequence": sequence,
        }
        self.temperature, self.feature_kind, self.teacher_dtype = temperature, feature_kind, teacher_dtype
        self.caption_filter = caption_filter or CaptionFilter()
        self.pairs = [
            pair for pair in layer_pairs(teacher, student, feature_pairs) if self.weights[pair.term]
        ]
        self.wants = TargetSpec(
            logits=bool(kl),
            image_features=tuple(dict.fromkeys(pair.teacher for pair in self.pairs if pair.of_image)),
            text_features=tuple(dict.fromkeys(pair.teacher for pair in self.pairs if not pair.of_image)),
            attention=bool(attention),
            pseudo_captions=int(bool(sequence)) if teacher_captions is None else teacher_captions,
        )
        if sequence and not self.wants.pseudo_captions:
            raise ValueError("sequence needs the teacher's own captions: teacher_captions must be at least 1")
        self._cache, self._checked = cache, False
        self.projectors = nn.ModuleDict()
        if any(pair.projected for pair in self.pairs):
            self._build_projectors()

    @property
    def student(self) -> nn.Module:
        return self.model

    @property
    def feature_pairs(self) -> dict[str, str]:
        """Student's module path -> teacher's, of the loss `features`."""
        return {pair.student: pair.teacher for pair in self.pairs if pair.term == "features"}

    @property
    def teacher(self) -> GenerativeImageTextTeacher:
        """The teacher, on the student's device."""
        teacher, device = self._teacher[0], device_of(self.model)
        return teacher if device_of(teacher) == device else teacher.to(device)

    @torch.no_grad()
    def _build_projectors(self) -> None:
        """A linear layer from the student's width to the teacher's for each pair, both read off one clip."""
        teacher = self._teacher[0]
        side = teacher.model.config.vision_config.image_size
        frames = torch.zeros(1, 1, 3, side, side, dtype=torch.uint8)
        tokens = torch.tensor([[teacher.bos_token_id]])
        training, device = self.model.training, device_of(self.model)
        self.model.eval()
        _, mine = self._read(frames.to(device), tokens.to(device))
        self.model.train(training)
        theirs = teacher_targets(
            teacher, frames.to(device_of(teacher)), tokens.to(device_of(teacher)), self.wants
        )
        for pair in self.pairs:
            if pair.projected:
                widths = mine[pair].shape[-1], theirs[pair.target].shape[-1]
                self.projectors[pair.name] = nn.Linear(*widths).to(device)

    def setup(self, stage: str) -> None:
        """Open the cache, or fill it, before training."""
        super().setup(stage)
        self._teachers_device = device_of(self._teacher[0])
        if stage != "fit" or self._cache is None:
            return
        data = self.trainer.datamodule
        if data is not None and not hasattr(data, "pool_dataloader"):
            raise ValueError(
                f"a cache needs clips with numbers: use GlyphData or FileData, not {type(data).__name__}"
            )
        if not isinstance(self._cache, TeacherCache):
            self._cache = self._open_cache(Path(self._cache), data)
        self._cache.check(self.teacher, data)
        if lacking := self._cache.lacks(self.wants):
            raise ValueError(f"the cache in {self._cache.folder} lacks {', '.join(lacking)}: build another")

    def teardown(self, stage: str) -> None:
        """Take the teacher back to where it came from, as Lightning does with the student."""
        super().teardown(stage)
        self._teacher[0].to(self._teachers_device)

    def _open_cache(self, folder: Path, data) -> TeacherCache:
        if data is None or is_finished(folder):
            cache = TeacherCache(folder)
            if (made := cache.facts["teacher_dtype"]) != self.teacher_dtype:
                raise ValueError(
                    f"the cache in {folder} was made with teacher_dtype {made}, not {self.teacher_dtype}: "
                    "set the same, or another folder"
                )
            return cache
        teacher = self.teacher.to(self.trainer.strategy.root_device)  # Lightning moves this module only later
        return TeacherCache.build(folder, teacher, data, self.wants, teacher_dtype=self.teacher_dtype)

    def on_train_start(self) -> None:
        super().on_train_start()
        self._checked = False

    def training_step(self, batch: dict, index: int) -> Tensor:
        if not self._checked:
            self.check_gradients(batch)
            self._checked = True
        return super().training_step(batch, index)

    def losses(self, batch: dict) -> dict[str, Tensor]:
        values = self.terms(batch)
        self.log_dict({f"train/unweighted/{name}": value.detach() for name, value in values.items()})
        return {name: self.weights[name] * value for name, value in values.items()}

    def terms(self, batch: dict) -> dict[str, Tensor]:
        """The active losses by name, before their weights."""
        batch, own = self._with_teacher_captions(batch)
        tokens, clips = batch["tokens"], len(batch["frames"])
        spoken = tokens != self.model.pad_token_id
        output, mine = self._read(batch["frames"], tokens)
        theirs = self._ask(batch)

        logits, targets, pad = in_vocab_subset(self.model, output, tokens)
        by_clip = logits.unflatten(0, (clips, -1)), targets.unflatten(0, (clips, -1))
        values = {}
        if self.weights["cross_entropy"]:
            values["cross_entropy"] = self._captioned(*(x[:, :own].flatten(0, 1) for x in by_clip), pad)
        if self.weights["sequence"]:
            values["sequence"] = self._captioned(*(x[:, own:].flatten(0, 1) for x in by_clip), pad)
        if self.weights["kl"]:
            values["kl"] = self._kl(logits, theirs["logits"], targets, pad)
        if self.weights["attention"]:
            predicting = F.pad(spoken[:, 1:], (0, 1))
            frames = batch["frames"].shape[1] if batch["frames"].dim() == 5 else 1
            cells = mine["attention"].shape[-1] // frames
            looks = losses.align_attention(theirs["attention"], frames, cells)
            values["attention"] = losses.attention(mine["attention"], looks, predicting)
        for term in dict.fromkeys(pair.term for pair in self.pairs):
            parts = [
                self._distance(pair, mine[pair], theirs[pair.target], spoken)
                for pair in self.pairs
                if pair.term == term
            ]
            values[term] = sum(parts) / len(parts)
        return values

    def _with_teacher_captions(self, batch: dict) -> tuple[dict, int]:
        """The batch with the teacher's own captions after each clip's, and how many each clip had before."""
        clips, count, pad = len(batch["frames"]), self.wants.pseudo_captions, self.model.pad_token_id
        own = batch["tokens"].unflatten(0, (clips, -1))
        if not count:
            return batch, own.shape[1]
        if self._cache is not None:
            said, numbers = self._opened().said(batch["clip"], count, self.caption_filter)
            numbers = torch.cat([batch["caption"].unflatten(0, (clips, -1)), numbers], dim=1)
            batch = {**batch, "caption": numbers.flatten()}
        else:
            said, judged = pseudo_captions(self.teacher, batch["frames"], count, self.max_length, self._dtype)
            said = self.caption_filter.apply(said, judged, pad)
        return {**batch, "tokens": join_captions(own, said, pad).flatten(0, 1)}, own.shape[1]

    def _read(self, frames: Tensor, tokens: Tensor):
        """The student's output, and its side of every pair and of the attention."""
        count = len(frames) * (frames.shape[1] if frames.dim() == 5 else 1)
        attention = [ATTENTION] if self.weights["attention"] else []
        with record(self.model, [*{pair.student for pair in self.pairs}, *attention], detach=False) as seen:
            output = self.model(frames, tokens)
        mine = {pair: pair.student_features(seen[pair.student][0], count, tokens) for pair in self.pairs}
        if attention:
            layers = [calls[0] for path, calls in seen.items() if path.endswith(".cross_attention.softmax")]
            looks = torch.stack(layers).float().mean((0, 2))  # (B, K*T, M)
            mine["attention"] = attention_over_image(looks, tokens, count, looks.shape[-1])
        return output, mine

    def _ask(self, batch: dict) -> dict:
        """What the teacher makes of a batch, from the cache if there is one; see `teacher_targets`."""
        frames, tokens = batch["frames"], batch["tokens"]
        if not self.wants.names():
            return {}
        if self._cache is None:
            return teacher_targets(self.teacher, frames, tokens, self.wants, self._dtype)
        return self._opened().read(batch["clip"], batch["caption"], tokens, self.wants)

    def _opened(self) -> TeacherCache:
        if not isinstance(self._cache, TeacherCache):
            raise ValueError(f"the cache in {self._cache} is opened by `fit`; or give TeacherCache(folder)")
        return self._cache

    def _captioned(self, logits: Tensor, tokens: Tensor, pad: int) -> Tensor:
        """Cross-entropy, captions that are missing counting as ones that cost nothing."""
        share = (tokens[:, 1:] != pad).any(1).float().mean()
        return share * losses.cross_entropy(logits, tokens, pad, self.label_smoothing)

    def _kl(self, logits: Tensor, teacher, tokens: Tensor, pad: int) -> Tensor:
        if getattr(self.model, "vocab_subset", None) is not None:
            teacher = losses.trim(teacher, self.model.vocab_subset, self.model.subset_unk_token_id)
        kl = losses.kl_top if isinstance(teacher, losses.TopK) else losses.kl
        return kl(logits, teacher, tokens, pad, self.temperature)

    def _distance(self, pair: FeaturePair, ours: Tensor, theirs: Tensor, spoken: Tensor) -> Tensor:
        """The loss of one pair, cells resampled to the teacher's grid."""
        ours = self.projectors[pair.name](ours) if pair.projected else ours
        mask = None if pair.of_image else spoken
        if pair.of_image:
            grids = ours.shape[1:3], theirs.shape[1:3]
            ours, theirs = losses.align_grid(ours.flatten(1, 2), *grids), theirs.flatten(1, 2)
        if pair.projected:
            return losses.feature(ours, theirs, self.feature_kind, mask)
        heads = losses.relation_heads(ours.shape[-1], theirs.shape[-1])
        return losses.relation(ours, theirs, heads, mask)

    def check_gradients(self, batch: dict) -> None:
        """A ValueError naming a loss that does not reach the student where it should.

        Every loss must reach some parameter of the student's backbone, and those about words of its decoder,
        too; one that trains only projectors comes from a detached activation or a wrong path.
        """
        for name, gradients in self.gradients(batch).items():
            reached = {path.split(".")[0] for path, gradient in gradients.items() if gradient is not None}
            if not reached:
                raise ValueError(
                    f"the loss {name} reaches no parameter of the student: is its side detached?"
                )
            parts = ["backbone"] + ["layers"] * (name not in ("features", "visual"))
            missed = [part for part in parts if hasattr(self.model, part) and part not in reached]
            if missed:
                raise ValueError(
                    f"the loss {name} reaches {', '.join(sorted(reached))} of the student, but not its "
                    f"{' and '.join(missed)}"
                )

    def gradients(self, batch: dict) -> dict[str, dict[str, Tensor | None]]:
        """Each active loss's gradient, unweighted, by the student's parameters; None where it does not reach.

        Leaves everything as it was: eval mode, no gradient accumulates, the backbone counts even if frozen.
        """
        names, parameters = zip(*self.model.named_parameters())
        required, training = [p.requires_grad for p in parameters], [*self.model.modules()]
        training = [(module, module.training) for module in training]
        try:
            self.model.requires_grad_(True).eval()
            with torch.enable_grad():
                terms = self.terms(batch)
                return {name: dict(zip(names, reach(value, parameters))) for name, value in terms.items()}
        finally:
            for parameter, flag in zip(parameters, required):
                parameter.requires_grad_(flag)
            for module, flag in training:
                module.training = flag


class Anneal(pl.Callback):
    """Moves weights of a `DistillationTrainer` on a straight line to other ones, over a part of the fit.

    to: loss -> its weight at the end. start, end: the part, as shares of the fit's steps.

    ValueError for a loss that is off (its teacher's side would be missing), or a fit without a number of steps.
    """

    def __init__(self, to: dict[str, float], start: float = 0.0, end: float = 1.0):
        if not 0 <= start < end <= 1:
            raise ValueError(
                f"start and end are shares of the fit, 0 <= start < end <= 1, not {start} and {end}"
            )
        self.to, self.start, self.end = dict(to), start, end

    def on_fit_start(self, trainer, module) -> None:
        off = [name for name in self.to if not module.weights.get(name)]
        if off:
            on = ", ".join(name for name, weight in module.weights.items() if weight)
            raise ValueError(f"no loss to anneal: {', '.join(off)}; on are {on}")
        self._first = {name: module.weights[name] for name in self.to}
        self._steps = max(1, fit_steps(trainer))

    def on_train_batch_start(self, trainer, module, batch, index) -> None:
        gone = trainer.global_step / self._steps
        share = min(1.0, max(0.0, (gone - self.start) / (self.end - self.start)))
        for name, last in self.to.items():
            module.weights[name] = self._first[name] + share * (last - self._first[name])


def device_of(module: nn.Module) -> torch.device:
    """Where a network's parameters are."""
    return next(module.parameters()).device


def reach(value: Tensor, parameters) -> list[Tensor | None]:
    """The gradient of `value` by each parameter, None where there is none; the graph is kept."""
    if not value.requires_grad:
        return [None] * len(parameters)
    return list(torch.autograd.grad(value, parameters, retain_graph=True, allow_unused=True))


def in_vocab_subset(model: nn.Module, output, tokens: Tensor) -> tuple[Tensor, Tensor, int]:
    """Logits, tokens and padding token in the numbers of the words that `model` knows; see `keep` of the student."""
    if getattr(model, "vocab_subset", None) is None:
        return output.logits, tokens, model.pad_token_id
    return output.subset_logits, model.subset_index[tokens], model.subset_pad_token_id
