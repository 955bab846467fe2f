"""Shards: packed whole and once, read as they were, and never when damaged."""

import functools
import http.server
import json
import os
import sys
import threading
from importlib.util import find_spec

import pytest
import pytorch_lightning as pl
import tiny
import torch
import webdataset
from fits import QUIET, fit
from pictures import photo, shades, video

from gitdistill import __main__
from gitdistill.data import FileData, ShardData
from gitdistill.data.items import read_items
from gitdistill.data.shards import pack, read_index, read_shard
from gitdistill.distillation.trainer import CaptionTrainer, DistillationTrainer
from gitdistill.world.module import glyph_tokenizer

HOW = {"num_frames": 2, "image_size": tiny.SIDE, "batch_size": 3, "tokenizer": glyph_tokenizer()}


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


def test_a_file_that_is_gone_is_named_and_a_name_that_is_no_utf_8_is_kept(tmp_path):
    odd = os.fsdecode(b"caf\xe9.png")
    for name in ("a.png", odd):
        photo().save(tmp_path / name)
    items, said = read_items(tmp_path)[0], []
    (tmp_path / "a.png").unlink()
    index = pack(items, tmp_path / "shards", say=said.append)
    assert any("left out: " in line and "a.png" in line for line in said)
    ((_, _, _, about),) = read_shard(tmp_path / "shards", index["shards"][0])
    assert about["name"] == odd


@pytest.mark.parametrize("damage", ["flip", "cut", "gone"])
def test_a_damaged_shard_is_named(source, tmp_path, damage):
    pack(read_items(source)[0], tmp_path, 4, say=lambda _: None)
    shard = tmp_path / "shard-000001.tar"
    content = bytearray(shard.read_bytes())
    content[len(content) - 600] ^= 1
    shard.write_bytes(content if damage == "flip" else content[:3000])
    if damage == "gone":
        shard.unlink()
    with pytest.raises(ValueError, match="the shard .*shard-000001.tar is (damaged or missing|not what)"):
        list(ShardData(test=str(tmp_path), **HOW).test_dataloader())


def test_a_damaged_index_is_named(shards, tmp_path):
    text = (shards / "shards.json").read_text()
    (tmp_path / "shards.json").write_text(text[:90])
    with pytest.raises(ValueError, match="shards.json is not valid JSON"):
        ShardData(test=str(tmp_path), **HOW)
    (tmp_path / "shards.json").write_text(text.replace('"count": 3', '"count": 2', 1))
    with pytest.raises(ValueError, match="shards.json is damaged, its facts have another checksum"):
        ShardData(test=str(tmp_path), **HOW)


def test_an_index_of_other_shards_is_noticed(shards, tmp_path):
    index = read_index(shards)
    index["shards"][0]["count"] = 2
    (tmp_path / "shards.json").write_text(json.dumps(index))
    (tmp_path / "shard-000000.tar").write_bytes((shards / "shard-000000.tar").read_bytes())
    with pytest.raises(ValueError, match="shard-000000.tar is not what shards.json says of it"):
        list(ShardData(test=str(tmp_path), **HOW).test_dataloader())


def test_no_damaged_clip_is_handed_out(shards, tmp_path):
    """A byte of the first clip's picture, of a caption, and of a name in the archive."""
    (entry, *_), path = read_index(shards)["shards"], tmp_path / "shard-000000.tar"
    whole = (shards / path.name).read_bytes()
    path.write_bytes(whole)
    clips = list(read_shard(tmp_path, entry))
    assert len(clips) == 3 and clips[0][2] in whole
    third = whole.index(b"a red star", whole.index(b"000000002.json"))
    for place, good in ((whole.index(clips[0][2]) + 99, 0), (third, 2), (0, 0)):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        rows = read_shard(tmp_path, entry)
        assert [next(rows) for _ in range(good)] == clips[:good]
        with pytest.raises(ValueError, match=f"the shard {path} is damaged or missing"):
            next(rows)


def test_webdataset_reads_them(shards):
    found = list(webdataset.WebDataset(str(shards / "shard-000003.tar"), shardshuffle=False))
    assert [row["__key__"] for row in found] == ["000000009"]
    assert json.loads(found[0]["json"])["captions"] == ["a red star", "a blue wheel"] and found[0]["mp4"]


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_):
        pass


@pytest.fixture
def address(shards):
    """The shards by HTTP."""
    handler = functools.partial(Quiet, directory=shards.parent)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}/{shards.name}"
        server.shutdown()
        thread.join()


@pytest.mark.parametrize("workers", [0, 2])
def test_shards_by_http(shards, address, workers):
    for near, far in zip(
        ShardData(train=str(shards), **HOW, workers=workers).train_dataloader(),
        ShardData(train=address, **HOW, workers=workers).train_dataloader(),
        strict=True,
    ):
        assert torch.equal(near["frames"], far["frames"]) and torch.equal(near["tokens"], far["tokens"])


def test_addresses_without_shards(address):
    with pytest.raises(FileNotFoundError, match="there is no http.*/nowhere/shards.json: pack the data"):
        ShardData(train=f"{address}/nowhere", **HOW)
    with pytest.raises(ValueError, match="http://127.0.0.1:1/shards.json cannot be read: .*refused"):
        ShardData(train="http://127.0.0.1:1", **HOW)
    for protocol, library in (("s3", "s3fs"), ("gs", "gcsfs")):
        if not find_spec(library):
            with pytest.raises(
                ValueError, match=f"{protocol}://bucket/shards.json cannot be read: .*{library}"
            ):
                ShardData(train=f"{protocol}://bucket", **HOW)


@pytest.mark.filterwarnings("error:You're resuming")
@pytest.mark.parametrize("workers, kills", [(0, (1, 2, 4, 6)), (2, (3,))])
def test_a_fit_continues_within_an_epoch(shards, tmp_path, workers, kills):
    """Epochs of four steps; the clips not seen yet come next, and the end is that of an uninterrupted fit."""
    how = HOW | {"captions_per_clip": 1, "buffer": 4, "workers": workers}
    data = functools.partial(ShardData, str(shards), str(shards), **how)
    whole, clips = fit(tmp_path / "whole", data(), steps=7)
    assert len(clips) == 7 and sorted(sum(clips[:4], [])) == list(range(10)) or workers
    for kill in kills:
        folder = tmp_path / f"{kill}"
        _, before = fit(folder, data(), kill=kill, steps=7)
        weights, after = fit(folder, data(), resume=True, steps=7)
        assert before + after == clips, kill
        assert all(torch.equal(weights[name], value) for name, value in whole.items()), kill


def test_an_epoch_is_not_continued_with_other_workers(shards):
    loader = ShardData(train=str(shards), **HOW).train_dataloader()
    next(iter(loader))
    with pytest.raises(ValueError, match="workers was 0 and is 2"):
        ShardData(train=str(shards), workers=2, **HOW).train_dataloader().load_state_dict(loader.state_dict())


def test_no_cache_of_a_stream(shards, tmp_path):
    module = DistillationTrainer(tiny.teacher(), tiny.student(), cache=tmp_path / "cache")
    with pytest.raises(ValueError, match="use GlyphData or FileData, not ShardData"):
        pl.Trainer(**QUIET, max_steps=1).fit(module, ShardData(train=str(shards), **HOW))


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
