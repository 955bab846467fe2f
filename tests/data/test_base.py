"""What the three DataModules share: Trainers that change the training set, and epochs that are continued."""

import warnings

import pytest
import pytorch_lightning as pl
import tiny
import torch
from fits import QUIET, Watch, fit, fit_quietly
from pictures import captioned
from transformers import BertTokenizerFast

from gitdistill.data import FileData, ShardData
from gitdistill.data.base import encode
from gitdistill.data.items import read_items
from gitdistill.data.shards import pack
from gitdistill.distillation.caption_trainer import CaptionTrainer
from gitdistill.world import ToyboxData, toybox_tokenizer

SMALL = {"num_frames": 2, "image_size": tiny.SIDE, "batch_size": 2, "tokenizer": toybox_tokenizer()}


@pytest.fixture(params=["world", "files", "shards"])
def make(request, tmp_path):
    """A function that makes a DataModule of 7 clips."""
    if request.param == "world":
        return lambda **options: ToyboxData(7, 4, **SMALL | options)
    captioned(tmp_path, [["a red star", "a bell"]] * 7)
    if request.param == "files":
        return lambda **options: FileData(str(tmp_path), **SMALL | options)
    pack(read_items(tmp_path)[0], tmp_path / "shards", 2, say=lambda _: None)
    return lambda **options: ShardData(str(tmp_path / "shards"), **SMALL | options)


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


PIECES = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "red", "star", "[", "]", "se", "##p", "pad"]


TOKENIZERS = [toybox_tokenizer(), BertTokenizerFast(vocab={w: i for i, w in enumerate(PIECES)})]


@pytest.mark.parametrize("tokenizer", TOKENIZERS)
def test_special_tokens_in_a_caption_are_text(tokenizer):
    special = set(tokenizer.all_special_ids) - {tokenizer.unk_token_id}
    for text in ("a [SEP] red [PAD] star", "[CLS][MASK]", "[SEP]a red star"):
        ((start, *row, end),) = encode([text], tokenizer, 32).tolist()
        assert (start, end) == (tokenizer.cls_token_id, tokenizer.sep_token_id) and not special & set(row)
    assert encode(["a red star"], tokenizer, 32).tolist() == tokenizer(["a red star"])["input_ids"]
    if len(tokenizer) == len(PIECES):
        assert encode(["[SEP]"], tokenizer, 32)[0].tolist() == [2, 8, 10, 11, 9, 3]


@pytest.mark.parametrize("kind", ["files", "shards"])
def test_words_that_the_tokenizer_does_not_know_are_told(kind, tmp_path):
    def make(*captions, **options):
        folder = tmp_path / captions[0].replace(" ", "")
        captioned(folder, [[text] for text in captions])
        if kind == "files":
            return FileData(str(folder), **SMALL | options)
        pack(read_items(folder)[0], folder / "shards", say=lambda _: None)
        return ShardData(str(folder / "shards"), **SMALL | options)

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        make("a red star")
    with pytest.warns(UserWarning, match="30.8% of the tokens of train's .* words .*: zeppelin, quark$"):
        make("a zeppelin moves left", "a quark a red star", "a zeppelin a zeppelin")
    with pytest.raises(ValueError, match="60.0% .* not know: un, zwei; give the teacher's tokenizer"):
        make("un un a red zwei")
    with pytest.raises(ValueError, match="Data needs tokenizer=, the teacher's"):
        make("a star", tokenizer=None)


def test_another_tokenizer_than_the_networks_is_refused(make):
    other = toybox_tokenizer()
    other.add_tokens("unicorn")
    module, data = CaptionTrainer(tiny.student(), toybox_tokenizer()), make(tokenizer=other)
    with pytest.raises(ValueError, match="give the data the teacher"):
        pl.Trainer(max_steps=1, **QUIET).fit(module, data)


@pytest.mark.parametrize("count", [-1, 0, 2])
def test_captions_have_room_for_a_word(count):
    with pytest.raises(ValueError, match="max_tokens must be at least 3"):
        ToyboxData(max_tokens=count)


def test_captions_are_no_longer_than_the_network_reads(tmp_path):
    module = CaptionTrainer(tiny.student(max_positions=6), toybox_tokenizer(), max_length=6)
    data = FileData(str(captioned(tmp_path, [["a red star moves left on a path"]] * 2)), **SMALL)
    fit_quietly(module, data, max_steps=1)
    assert data.max_tokens == 6
