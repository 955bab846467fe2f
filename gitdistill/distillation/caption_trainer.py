"""Training a captioner on captions alone, as a Lightning module.

A batch is a dict: "frames" uint8 [B, F, 3, H, W], "tokens" long [B*K, T], for scoring "references" (B lists of
captions), and optionally "clip" (their numbers) and "scenes" (their ground truth).
"""

import os
from contextlib import nullcontext

import pytorch_lightning as pl
from pytorch_lightning.strategies import DDPStrategy
from torch import Tensor, nn

from gitdistill.distillation import losses
from gitdistill.distillation.checks import LossWatch, gradients
from gitdistill.distillation.optim import optimizer_and_schedule
from gitdistill.distillation.scoring import Predictions
from gitdistill.distillation.terms import subset_logits, to_vocab_subset
from gitdistill.models.git import GenerativeImageTextModel
from gitdistill.models.tokenizer import check_same_vocabulary, load_tokenizer


class CaptionTrainer(pl.LightningModule):
    """Trains `model` on captions by cross-entropy, and scores the captions that it decodes.

    Args:
        model: a network of this package, or any that takes (frames, tokens) and follows the protocol of
            `gitdistill.decoding`; or where to load a GIT from, which then learns on.
        tokenizer: decodes token ids; or where to load it from. By default that of the GIT that is loaded.
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
        model: nn.Module | str | os.PathLike,
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
        if isinstance(model, str | os.PathLike):
            tokenizer = tokenizer or model
            model = GenerativeImageTextModel.from_pretrained(model)
        elif tokenizer is None:
            raise ValueError("a network needs a tokenizer beside it: give tokenizer=")
        if not 0 <= label_smoothing < 1:
            raise ValueError(f"label_smoothing must be at least 0 and below 1, not {label_smoothing}")
        self.model = model
        self.tokenizer = load_tokenizer(tokenizer)
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
        frozen = self.global_step < self.freeze
        with gradients(self.vision_encoder, False) if frozen else nullcontext():
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
