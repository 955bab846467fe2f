"""Shards: packed whole and once, read as they were, and never when damaged."""

import json
import sys

import pytest
import pytorch_lightning as pl
import tiny
import torch
from pictures import photo, shades, video

from gitdistill import __main__
from gitdistill.data import FileData, ShardData
from gitdistill.data.files import read_items
from gitdistill.data.module import glyph_tokenizer
from gitdistill.data.shards import pack, read_index
from gitdistill.trainer import CaptionTrainer

HOW = {"frames": 2, "image_size": tiny.SIDE, "batch_size": 3, "tokenizer": glyph_tokenizer()}


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """Nine pictures with two captions each, a video, and a broken picture."""
    folder = tmp_path_factory.mktemp("source")
    for number in range(9):
        photo(40 + 4 * number, 40).save(folder / f"{number}.png")
    video(folder / "9.mp4", shades(9))
    (folder / "a.jpg").write_bytes(b"hello")
    names = [*(f"{number}.png" for number in range(9)), "9.mp4", "a.jpg"]
    rows = [{"file": name, "captions": ["a red star", "a blue wheel"]} for name in names]
    (folder / "captions.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return folder


@pytest.fixture(scope="module")
def shards(source, tmp_path_factory):
    folder = tmp_path_factory.mktemp("shards")
    pack(read_items(source)[0], folder, 3, say=lambda _: None)
    return folder


def contents(folder):
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def test_what_was_packed_is_read(source, shards):
    index = read_index(shards)
    assert [shard["count"] for shard in index["shards"]] == [3, 3, 3, 1]
    files, streamed = FileData(test=str(source), **HOW), ShardData(test=str(shards), **HOW)
    with pytest.warns(UserWarning, match="a.jpg"):
        expected = {}
        for batch in files.test_dataloader():
            expected |= {
                clip: row for clip, *row in zip(batch["clip"].tolist(), batch["frames"], batch["references"])
            }
    rows = 0
    for batch in streamed.test_dataloader():
        assert batch["tokens"].shape[0] == len(batch["frames"])
        for clip, frames, references in zip(batch["clip"].tolist(), batch["frames"], batch["references"]):
            assert torch.equal(frames, expected[clip][0]) and references == expected[clip][1]
            rows += 1
    assert rows == 10


def test_training_streams_in_another_order_each_epoch(shards):
    data = ShardData(train=str(shards), captions_per_clip=3, buffer=4, **HOW)
    loader = data.train_dataloader()
    epochs = [[clip for batch in loader for clip in batch["clip"].tolist()] for _ in range(2)]
    assert sorted(epochs[0]) == sorted(epochs[1]) == list(range(10)) and epochs[0] != epochs[1]
    again = ShardData(train=str(shards), captions_per_clip=3, buffer=4, **HOW).train_dataloader()
    assert [clip for batch in again for clip in batch["clip"].tolist()] == epochs[0]
    batch = next(iter(loader))
    assert sorted(batch["caption"][:3].tolist()) == [-1, 0, 1] and batch["tokens"].shape[0] == 9
    spread = ShardData(train=str(shards), workers=2, **HOW).train_dataloader()
    assert len({clip for batch in spread for clip in batch["clip"].tolist()}) >= 9


def test_packing_goes_on_where_it_stopped(source, shards, tmp_path):
    items, said = read_items(source)[0], []

    def say(line):
        said.append(line)
        if line.startswith("shard-000001"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pack(items, tmp_path, 3, say)
    with pytest.raises(ValueError, match="not all there: pack again"):
        read_index(tmp_path)
    pack(items, tmp_path, 3, say=said.append)
    assert any("going on after 2 shards" in line for line in said)
    assert sum("left out: " in line and "a.jpg is no readable picture" in line for line in said) == 1
    assert contents(tmp_path) == contents(shards)
    with pytest.raises(ValueError, match="holds shards of other files or sizes"):
        pack(items, tmp_path, 4)


@pytest.mark.parametrize("damage", ["flip", "cut", "gone"])
def test_a_damaged_shard_is_named(source, tmp_path, damage):
    pack(read_items(source)[0], tmp_path, 4, say=lambda _: None)
    shard = tmp_path / "shard-000001.tar"
    content = bytearray(shard.read_bytes())
    content[len(content) - 600] ^= 1
    shard.write_bytes(content if damage == "flip" else content[:3000])
    if damage == "gone":
        shard.unlink()
    with pytest.raises(ValueError, match="the shard .*shard-000001.tar is damaged"):
        list(ShardData(test=str(tmp_path), **HOW).test_dataloader())


def test_mistakes_in_one_line(shards, tmp_path):
    with pytest.raises(FileNotFoundError, match="there is no .*shards.json: pack the data"):
        ShardData(train=str(tmp_path), **HOW)
    with pytest.raises(ValueError, match="there is no val data"):
        ShardData(train=str(shards), **HOW).val_dataloader()
    with pytest.raises(ValueError, match="4 shards are too few for 1 processes of 5 workers"):
        list(ShardData(train=str(shards), workers=5, **HOW).train_dataloader())


def test_the_command_and_a_fit(source, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(
        sys, "argv", ["gitdistill", "pack", str(source), str(tmp_path / "s"), "--per-shard", "5"]
    )
    with pytest.raises(SystemExit) as stopped:
        __main__.main()
    assert stopped.value.code == 0 and "shard-000002.tar: 0 clips" in capsys.readouterr().err
    data = ShardData(*[str(tmp_path / "s")] * 3, **HOW)
    module = CaptionTrainer(tiny.student())
    trainer = pl.Trainer(
        max_epochs=2, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False,
    )  # fmt: skip
    trainer.fit(module, data)
    assert trainer.global_step == 8 and "test/cider" in trainer.test(module, data, verbose=False)[0]
