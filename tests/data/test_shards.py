"""Shards: packed whole and once, read as they were, and never when damaged."""

import functools
import hashlib
import http.server
import io
import json
import os
import tarfile
import threading
from importlib.util import find_spec

import pytest
import pytorch_lightning as pl
import tiny
import torch
import webdataset
from fits import QUIET, fit
from pictures import captioned, photo, shades, video

from gitdistill.data import FileData, ShardData
from gitdistill.data.items import Item, read_items
from gitdistill.data.shards import pack, read_index, read_shard
from gitdistill.distillation.trainer import DistillationTrainer
from gitdistill.world import toybox_tokenizer

SMALL = {"num_frames": 2, "image_size": tiny.SIDE, "batch_size": 3, "tokenizer": toybox_tokenizer()}


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """Nine pictures with two captions each, a video, and a broken picture."""
    folder, captions = tmp_path_factory.mktemp("source"), ["a red star", "a blue bell"]
    captioned(folder, [captions] * 9)
    video(folder / "9.mp4", shades(9))
    (folder / "a.jpg").write_bytes(b"hello")
    with (folder / "captions.jsonl").open("a") as table:
        for name in ("9.mp4", "a.jpg"):
            table.write("\n" + json.dumps({"file": name, "captions": captions}))
    return folder


@pytest.fixture(scope="module")
def shards(source, tmp_path_factory):
    folder = tmp_path_factory.mktemp("shards")
    pack(read_items(source)[0], folder, 3, say=lambda _: None)
    return folder


WHOLE = {"name": "x.tar", "count": 1, "bytes": 9, "sha256": "0"}


def contents(folder):
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def clips(loader):
    return [clip for batch in loader for clip in batch["clip"].tolist()]


def test_what_was_packed_is_read(source, shards):
    assert [shard["count"] for shard in read_index(shards)["shards"]] == [3, 3, 3, 1]
    found = []
    for data in (FileData(test=str(source), **SMALL), ShardData(test=str(shards), **SMALL)):
        found.append({})
        for batch in data.test_dataloader():
            rows = zip(batch["frames"].numpy(), batch["references"], strict=True)
            found[-1] |= {n: (a.tobytes(), b) for n, (a, b) in zip(batch["clip"].tolist(), rows)}
    assert len(found[1]) == 10 and found[1].items() <= found[0].items()
    (row,) = webdataset.WebDataset(str(shards / "shard-000003.tar"), shardshuffle=False)
    assert row["__key__"] == "000000009" and row["mp4"]
    assert json.loads(row["json"])["captions"] == ["a red star", "a blue bell"]


def test_shards_are_padded_or_tell_what_the_crop_takes(source, shards):
    with pytest.warns(UserWarning, match="^2 of 3 pictures.* lose a third"):
        ShardData(str(shards), **SMALL)
    padded = ShardData(val=str(shards), fit="pad", **SMALL), FileData(val=str(source), fit="pad", **SMALL)
    first, expected = (next(iter(data.val_dataloader()))["frames"] for data in padded)
    assert torch.equal(first, expected)


def test_training_streams_in_another_order_each_epoch(shards):
    data = functools.partial(ShardData, str(shards), captions_per_clip=3, buffer=4, **SMALL)
    loader = data().train_dataloader()
    epochs = [clips(loader) for _ in range(2)]
    assert sorted(epochs[0]) == sorted(epochs[1]) == list(range(10)) and epochs[0] != epochs[1]
    assert clips(data().train_dataloader()) == epochs[0]
    batch = next(iter(loader))
    assert sorted(batch["caption"][:3].tolist()) == [-1, 0, 1] and batch["tokens"].shape[0] == 9
    assert len(set(clips(data(workers=2).train_dataloader()))) >= 9


def test_packing_goes_on_where_it_stopped(source, shards, tmp_path):
    items, lines = read_items(source)[0], []

    def say(line):
        lines.append(line)
        if line.startswith("shard-000001"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pack(items, tmp_path, 3, say)
    with pytest.raises(ValueError, match="not all there: pack again"):
        read_index(tmp_path)
    pack(items, tmp_path, 3, say=lines.append)
    assert any("going on after 2 shards" in line for line in lines)
    assert sum("left out: " in line and "a.jpg is no readable picture" in line for line in lines) == 1
    assert contents(tmp_path) == contents(shards)
    with pytest.raises(ValueError, match="holds shards of other files or sizes"):
        pack(items, tmp_path, 4)


def test_a_file_that_is_gone_is_named_and_a_name_that_is_no_utf_8_is_kept(tmp_path):
    odd, lines = Item(os.fsdecode(bytes(tmp_path) + b"/caf\xe9.png")), []
    photo().save(odd.path)
    index = pack([Item(str(tmp_path / "gone.png")), odd], tmp_path / "shards", say=lines.append)
    assert any("left out: " in line and "gone.png" in line for line in lines)
    ((number, name, *_),) = read_shard(tmp_path / "shards", index["shards"][0])
    assert number == 1 and name == os.path.basename(odd.path)


def test_only_regular_files_are_read(tmp_path):
    """A link to a device without an end, in a folder to pack and in place of a shard; a file with holes of 8 GB."""
    lines = []
    (tmp_path / "endless.png").symlink_to("/dev/zero")
    os.mkfifo(tmp_path / "pipe.png")
    items = [Item(str(tmp_path / name)) for name in ("endless.png", "pipe.png")]
    assert pack(items, tmp_path / "shards", say=lines.append)["shards"][0]["count"] == 0
    assert sum("is no regular file" in line for line in lines) == 2
    (tmp_path / "x.tar").symlink_to("/dev/zero")
    with pytest.raises(ValueError, match="x.tar is damaged or missing .*no regular file"):
        list(read_shard(tmp_path, WHOLE))
    (tmp_path / "x.tar").unlink()
    with tarfile.open(tmp_path / "x.tar", "w", format=tarfile.PAX_FORMAT) as archive:
        hole = tarfile.TarInfo("000000000.png")
        hole.pax_headers = {"GNU.sparse.map": "0,0", "GNU.sparse.size": str(8 << 30)}
        archive.addfile(hole)
    with pytest.raises(ValueError, match="x.tar is damaged or missing .*something else than files"):
        list(read_shard(tmp_path, WHOLE))


@pytest.mark.parametrize("key, about", [
    ("0", {"name": 5, "captions": []}), ("0", {"name": "a.png", "captions": "x"}), ("0", {"captions": []}), ("0", []),
    ("0", {"name": "a.png", "captions": ["x", 5]}), ("0", {"name": "a.png", "captions": ["\ud800"]}),
    ("-1", {"name": "a.png", "captions": []}), ("9" * 20, {"name": "a.png", "captions": []}),
])  # fmt: skip
def test_a_clip_that_is_not_as_it_should_be_names_its_shard(tmp_path, key, about):
    with tarfile.open(tmp_path / "x.tar", "w") as archive:
        for suffix, content in (("png", b"x"), ("json", json.dumps(about).encode())):
            member = tarfile.TarInfo(f"{key}.{suffix}")
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    entry = WHOLE | {"sha256": hashlib.sha256((tmp_path / "x.tar").read_bytes()).hexdigest()}
    with pytest.raises(ValueError, match="the shard .*x.tar is damaged or missing"):
        list(read_shard(tmp_path, entry))


def test_packing_removes_only_its_own_leftovers(source, tmp_path):
    others = [".gitdistill-c", ".x.tmp", ".d.tmp/shard-0.tar"]
    for name in [*others, ".gitdistill-own/shard-000001.tar"]:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    pack(read_items(source)[0][:1], tmp_path, say=lambda _: None)
    assert all((tmp_path / name).is_file() for name in others) and not (tmp_path / ".gitdistill-own").exists()


@pytest.mark.parametrize("damage", ["flip", "cut", "gone", "miscounted"])
def test_a_damaged_shard_is_named(shards, tmp_path, damage):
    index = read_index(shards)
    index["shards"] = index["shards"][:1]
    index["shards"][0]["count"] += damage == "miscounted"
    (tmp_path / "shards.json").write_text(json.dumps(index))
    content = bytearray((shards / "shard-000000.tar").read_bytes())
    content[len(content) - 600] ^= damage == "flip"
    if damage != "gone":
        (tmp_path / "shard-000000.tar").write_bytes(content[: 3000 if damage == "cut" else None])
    with pytest.raises(ValueError, match="the shard .*shard-000000.tar is (damaged or missing|not what)"):
        list(ShardData(test=str(tmp_path), **SMALL).test_dataloader())


def test_a_damaged_index_is_named(shards, tmp_path):
    text, done = (shards / "shards.json").read_text(), {"format": 1, "finished": True}
    cases = [
        (text[:90], "shards.json is not valid JSON"),
        (text.replace('"count": 3', '"count": 2', 1), "shards.json is damaged"),
        (json.dumps({"format": 2}), "pack it again"),
        (json.dumps(done | {"shards": {}}), "shards.json lists no shards"),
    ]
    wrong = {"name": ["../shard-000000.tar", "/x.tar", "file:x.tar"], "count": [-1, "3"], "sha256": [None]}
    entries = [WHOLE | {key: value} for key, values in wrong.items() for value in values]
    for entry in [*entries, [], None]:
        cases.append((json.dumps(done | {"shards": [entry]}), "for a shard of its folder"))
    for damaged, message in cases:
        (tmp_path / "shards.json").write_text(damaged)
        with pytest.raises(ValueError, match=message):
            ShardData(test=str(tmp_path), **SMALL)


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


@pytest.fixture
def address(shards):
    """The shards by HTTP."""
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=shards.parent)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}/{shards.name}"
        server.shutdown()
        thread.join()


@pytest.mark.parametrize("workers", [0, 2])
def test_shards_by_http(shards, address, workers):
    near, far = (ShardData(train=str(where), **SMALL, workers=workers) for where in (shards, address))
    for one, other in zip(near.train_dataloader(), far.train_dataloader(), strict=True):
        assert torch.equal(one["frames"], other["frames"]) and torch.equal(one["tokens"], other["tokens"])


def test_where_no_shards_are(address, tmp_path):
    for folder in (tmp_path, f"{address}/nowhere"):
        with pytest.raises(FileNotFoundError, match=f"there is no {folder}/shards.json"):
            ShardData(train=str(folder), **SMALL)
    cannot = {"http://127.0.0.1:1": "refused", "s3://bucket": "s3fs", "gs://bucket": "gcsfs"}
    for place, reason in cannot.items():
        if not find_spec(reason):
            with pytest.raises(ValueError, match=f"{place}/shards.json cannot be read: .*{reason}"):
                ShardData(train=place, **SMALL)


@pytest.mark.filterwarnings("error:You're resuming")
@pytest.mark.parametrize("workers, kills", [(0, (1, 4, 6)), (2, (3,))])
def test_a_fit_continues_within_an_epoch(shards, tmp_path, workers, kills):
    """Epochs of four steps; the clips not seen yet come next, and the end is that of an uninterrupted fit."""
    options = SMALL | {"captions_per_clip": 1, "buffer": 4, "workers": workers}
    data = functools.partial(ShardData, str(shards), str(shards), **options)
    whole, clips = fit(tmp_path / "whole", data(), steps=7)
    assert len(clips) == 7 and sorted(sum(clips[:4], [])) == list(range(10)) or workers
    for kill in kills:
        folder = tmp_path / f"{kill}"
        _, before = fit(folder, data(), kill=kill, steps=7)
        weights, after = fit(folder, data(), resume=True, steps=7)
        assert before + after == clips, kill
        assert all(torch.equal(weights[name], value) for name, value in whole.items()), kill


def test_mistakes_in_one_line(shards, tmp_path):
    data = functools.partial(ShardData, str(shards), **SMALL)
    with pytest.raises(ValueError, match="there is no val data"):
        data().val_dataloader()
    with pytest.raises(ValueError, match="4 shards are too few .* 5 workers: .*fewer workers.*--per-shard"):
        list(data(workers=5).train_dataloader())
    loader = data().train_dataloader()
    next(iter(loader))
    with pytest.raises(ValueError, match="workers was 0 and is 2"):
        data(workers=2).train_dataloader().load_state_dict(loader.state_dict())
    module = DistillationTrainer(tiny.teacher(), tiny.student(), cache=tmp_path / "cache")
    with pytest.raises(ValueError, match="use ToyboxData or FileData, not ShardData"):
        pl.Trainer(**QUIET, max_steps=1).fit(module, data())


def test_splits_that_are_packed_together_and_names_with_control_characters(run, tmp_path, capsys):
    for split in ("train", "test"):
        (tmp_path / "in" / split).mkdir(parents=True)
        (tmp_path / "in" / split / "a\x1b[2J\nb.png").write_bytes(b"no picture")
    run("pack", "in", "out")
    err = capsys.readouterr().err
    assert "all splits are packed (test, train): --split chooses one" in err
    assert err.count(r"a\u001b[2J\u000ab.png is no") == 2 and "\x1b" not in err and len(err.splitlines()) == 4


def test_the_command(run, source, tmp_path, capsys):
    assert run("pack", source, tmp_path, "--per-shard", 5) == 0
    assert "shard-000002.tar: 0 clips" in capsys.readouterr().err
    assert len(clips(ShardData(str(tmp_path), **SMALL).train_dataloader())) == 10
