"""What the three DataModules share: Trainers that change the training set, and epochs that are continued."""

import pytest
import pytorch_lightning as pl
import tiny
import torch
from fits import QUIET, Watch, fit
from pictures import captioned

from gitdistill.data import FileData, ShardData
from gitdistill.data.base import encode
from gitdistill.data.items import read_items
from gitdistill.data.shards import pack
from gitdistill.distillation.trainer import CaptionTrainer
from gitdistill.world import ToyboxData, toybox_tokenizer

SMALL = {"num_frames": 2, "image_size": tiny.SIDE, "batch_size": 2}


@pytest.fixture(params=["world", "files", "shards"])
def make(request, tmp_path):
    """A function that makes a DataModule of 7 clips."""
    if request.param == "world":
        return lambda **options: ToyboxData(7, 4, **SMALL, **options)
    captioned(tmp_path, [["a red star", "a bell"]] * 7)
    if request.param == "files":
        return lambda **options: FileData(str(tmp_path), **SMALL, **options)
    pack(read_items(tmp_path)[0], tmp_path / "shards", 2, say=lambda _: None)
    return lambda **options: ShardData(str(tmp_path / "shards"), **SMALL, **options)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_trainer_that_overfits_sees_the_same_batches_in_each_epoch(make, workers):
    class Tokens(Watch):
        def on_train_batch_start(self, trainer, module, batch, index):
            self.clips.append((batch["clip"].tolist(), batch["tokens"].tolist()))

    watch, module = Tokens(), CaptionTrainer(tiny.student(), toybox_tokenizer())
    trainer = pl.Trainer(max_epochs=3, overfit_batches=2, limit_val_batches=0, callbacks=[watch],
                         enable_checkpointing=False, **QUIET)  # fmt: skip
    trainer.fit(module, make(workers=workers))
    assert len(watch.clips) == 6 and watch.clips[:2] == watch.clips[2:4] == watch.clips[4:]
    assert watch.clips[0] != watch.clips[1]


@pytest.mark.parametrize("limit", ["limit_train_batches", "overfit_batches"])
def test_an_epoch_that_was_cut_short_is_not_continued_in_the_next_one(tmp_path, limit):
    def data():
        return ToyboxData(5, 4, **SMALL)

    short = {"steps": 5, limit: 2}  # of three
    _, clips = fit(tmp_path / "whole", data(), **short)
    _, before = fit(tmp_path / "cut", data(), kill=2, **short)
    _, after = fit(tmp_path / "cut", data(), resume=True, **short)
    assert before + after == clips


def test_captions_as_tokens():
    tokenizer = toybox_tokenizer()
    rows = encode(["a cat", None, "a red cat grows"], tokenizer, 32)
    assert rows.dtype == torch.long and rows.shape == (3, 6)
    assert tokenizer.batch_decode(rows, skip_special_tokens=True) == ["a cat", "", "a red cat grows"]
    assert rows[1].tolist() == [tokenizer.cls_token_id] + [tokenizer.pad_token_id] * 5
    assert encode(["a red cat grows"], tokenizer, 4).shape == (1, 4)
    with pytest.raises(ValueError, match="caption of 6 tokens, at most 5 are allowed: 'a red cat grows'"):
        encode(["a cat", "a red cat grows"], tokenizer, 5, truncate=False)


def test_another_tokenizer_than_the_networks_is_refused(make):
    other = toybox_tokenizer()
    other.add_tokens("unicorn")
    with pytest.raises(ValueError, match="give the data the teacher"):
        pl.Trainer(max_steps=1, **QUIET).fit(
            CaptionTrainer(tiny.student(), toybox_tokenizer()), make(tokenizer=other)
        )
