"""Short fits that are stopped and continued."""

import pytorch_lightning as pl
import tiny
from pytorch_lightning.callbacks import ModelCheckpoint

from gitdistill.distillation.caption_trainer import CaptionTrainer
from gitdistill.distillation.resume import ExactResume, WholeCheckpoints
from gitdistill.world import toybox_tokenizer

QUIET = {"accelerator": "cpu", "enable_progress_bar": False, "enable_model_summary": False, "logger": False}


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
