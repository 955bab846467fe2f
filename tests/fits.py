"""Distillations of tiny networks, and short fits that are stopped and continued."""

import os

import pytest
import pytorch_lightning as pl
import tiny
from pytorch_lightning.callbacks import ModelCheckpoint

from gitdistill.distillation.caption_trainer import CaptionTrainer
from gitdistill.distillation.resume import ExactResume, WholeCheckpoints
from gitdistill.distillation.trainer import DistillationTrainer
from gitdistill.world import toybox_tokenizer

QUIET = {"accelerator": "cpu", "enable_progress_bar": False, "enable_model_summary": False, "logger": False}
TERMS = ("cross_entropy", "kl", "features", "hidden", "visual", "attention", "relations", "sequence")
ALL, NONE = dict.fromkeys(TERMS, 1.0), dict.fromkeys(TERMS, 0.0)

forks = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork")


def distillation(student=None, **options) -> DistillationTrainer:
    """Of the tiny teacher; with logging switched off, for calls outside a Trainer."""
    options = {"max_length": 8} | options
    module = DistillationTrainer(tiny.teacher(), student or tiny.student(), **options)
    module.log = module.log_dict = lambda *_, **__: None
    return module.eval()


def fit_quietly(module, data, **options) -> pl.Trainer:
    """A fit that validates, logs and saves nothing unless the options say so."""
    silence = {"limit_val_batches": 0, "num_sanity_val_steps": 0, "enable_checkpointing": False}
    trainer = pl.Trainer(**QUIET | silence | options)
    trainer.fit(module, data)
    return trainer


def from_class(path, **arguments):
    """An object of the package as config files write it."""
    return {"class_path": f"gitdistill.{path}", "init_args": arguments}


class Killed(Exception):
    pass


class Watch(pl.Callback):
    """Notes the clips of each step; gives up before step `kill`."""

    def __init__(self, kill=None):
        self.kill, self.clips = kill, []

    def on_train_batch_start(self, trainer, module, batch, index):
        if trainer.global_step == self.kill:
            raise Killed
        self.clips.append(batch["clip"].tolist())


def fit(folder, data, kill=None, resume=False, steps=9, freeze=0, **options):
    """(weights, clips of each step) of a fit whose student has dropout; 5 clips or so an epoch."""
    pl.seed_everything(3, verbose=False)
    student = tiny.student(dropout=0.2).eval()  # as one that was loaded comes
    module = CaptionTrainer(student, toybox_tokenizer(), warmup=2, freeze=freeze)
    watch, keep = Watch(kill), ModelCheckpoint(folder, every_n_train_steps=1, save_last=True, save_top_k=0)
    trainer = pl.Trainer(
        max_steps=steps, callbacks=[keep, watch, ExactResume()], plugins=[WholeCheckpoints()],
        limit_val_batches=1, num_sanity_val_steps=0, **QUIET, **options,
    )  # fmt: skip
    try:
        trainer.fit(module, data, ckpt_path=str(folder / "last.ckpt") if resume else None)
    except Killed:
        assert kill is not None
    if watch.clips:
        assert student.layers.training and student.backbone.training
    return {name: value.clone() for name, value in module.state_dict().items()}, watch.clips
