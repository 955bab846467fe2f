"""Captioned files as people have them: every format, good and broken, and batches as the trainers take them."""

import csv
import json
import pickle
from types import SimpleNamespace

import numpy as np
import pytest
import pytorch_lightning as pl
import tiny
import torch
from pictures import photo, shades, video

from gitdistill.data.files import FileData, random_resized_crop
from gitdistill.data.items import read_items
from gitdistill.data.video import BrokenFile
from gitdistill.distillation.cache import TargetSpec, TeacherCache
from gitdistill.distillation.losses import top_k
from gitdistill.distillation.trainer import CaptionTrainer
from gitdistill.models.preprocessing import CLIP_MEAN, CLIP_STD, to_pixels
from gitdistill.world.module import glyph_tokenizer

TEXTS = ["a red star", "a blue star moves", "a green wheel", "a red wheel grows", "a star"]


def pictures(folder, names, side=64):
    """A crop of the photograph in each file, no two alike."""
    for number, name in enumerate(names):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        photo(side + 8 * number, 48).save(path)
    return folder


def write(path, content):
    path.write_text(json.dumps(content))
    return path


def coco(folder):
    pictures(folder / "val2014", ["b.jpg", "a.jpg"])
    images = [{"id": 7, "file_name": "b.jpg"}, {"id": 3, "file_name": "a.jpg"}]
    captions = [(3, "a star"), (7, "a red star"), (3, " a wheel\n")]
    rows = [{"image_id": image, "id": i, "caption": text} for i, (image, text) in enumerate(captions)]
    return write(folder / "captions_val2014.json", {"info": {}, "images": images, "annotations": rows})


def karpathy(folder):
    pictures(folder / "val2014", ["a.jpg", "b.jpg", "c.jpg", "d.jpg"])
    rows = [
        {
            "filepath": "val2014",
            "filename": f"{name}.jpg",
            "split": split,
            "sentences": [{"raw": f"a {name}"}],
        }
        for name, split in (("a", "train"), ("b", "restval"), ("c", "val"), ("d", "test"))
    ]
    return write(folder / "dataset_coco.json", {"dataset": "coco", "images": rows})


def msrvtt(folder):
    for number in range(3):
        video(folder / f"video{number}.mp4", shades(5 + number))
    splits = ["train", "validate", "test"]
    videos = [{"video_id": f"video{i}", "split": splits[i], "start time": 9.0} for i in range(3)]
    rows = [{"caption": TEXTS[i], "video_id": f"video{i % 3}", "sen_id": i} for i in range(5)]
    return write(folder / "videodatainfo.json", {"videos": videos, "sentences": rows})


def vatex(folder):
    video(folder / "x_1_000001_000011.mp4", shades(5))
    rows = [
        {"videoID": f"{name}_000001_000011", "enCap": TEXTS[:2], "chCap": ["x"]} for name in ("x_1", "gone")
    ]
    return write(folder / "vatex_validation_v1.0.json", rows)


def names(items):
    return [(item.path.rsplit("/", 1)[1], item.captions) for item in items]


def test_coco(tmp_path):
    items, missing = read_items(coco(tmp_path))
    assert names(items) == [("b.jpg", ("a red star",)), ("a.jpg", ("a star", "a wheel"))] and not missing


def test_karpathys_split(tmp_path):
    source = karpathy(tmp_path)
    for split, expected in (("train", ["a", "b"]), ("val", ["c"]), ("test", ["d"])):
        items, _ = read_items(source, split=split)
        assert names(items) == [(f"{name}.jpg", (f"a {name}",)) for name in expected]


def test_msrvtt_and_vatex(tmp_path):
    (tmp_path / "m").mkdir(), (tmp_path / "v").mkdir()
    items, _ = read_items(msrvtt(tmp_path / "m"), split="val")
    assert names(items) == [("video1.mp4", (TEXTS[1], TEXTS[4]))]
    items, missing = read_items(vatex(tmp_path / "v"))
    assert names(items) == [("x_1_000001_000011.mp4", tuple(TEXTS[:2]))]
    assert missing == ["gone_000001_000011"]


def test_folders(tmp_path):
    pictures(tmp_path, ["b.png", "a.jpg", "deep/c.jpg"])
    (tmp_path / "notes.txt").write_text("no picture")
    assert names(read_items(tmp_path)[0]) == [("a.jpg", ()), ("b.png", ()), ("c.jpg", ())]
    rows = [("b.png", "a star", "train"), ("c.jpg", "one, two", "val"), ("b.png", "a wheel", "train")]
    with (tmp_path / "captions.csv").open("w", newline="", encoding="utf-8-sig") as file:
        csv.writer(file).writerows([("file_name", "text", "split"), *rows])
    assert names(read_items(tmp_path, split="train")[0]) == [("b.png", ("a star", "a wheel"))]
    assert names(read_items(tmp_path, split="val")[0]) == [("c.jpg", ("one, two",))]
    (tmp_path / "x.jsonl").write_text('{"file": "a.jpg", "captions": ["a", "b"]}\n\n{"file": "b.png"}\n')
    assert names(read_items(tmp_path / "x.jsonl")[0]) == [("a.jpg", ("a", "b")), ("b.png", ())]


def test_a_split_misses_only_its_own_files(tmp_path):
    source = karpathy(tmp_path)
    (tmp_path / "val2014" / "a.jpg").unlink()
    assert read_items(source, split="val")[1] == []
    items, missing = read_items(source, split="train")
    assert names(items) == [("b.jpg", ("a b",))] and missing == ["val2014/a.jpg"]


def test_coco_with_pictures_that_are_not_there(tmp_path):
    source = coco(tmp_path)
    (tmp_path / "val2014" / "b.jpg").unlink()
    items, missing = read_items(source)
    assert names(items) == [("a.jpg", ("a star", "a wheel"))] and missing == ["b.jpg"]
    content = json.loads(source.read_text())
    del content["annotations"][1]["caption"]
    with pytest.raises(ValueError, match="has an entry that is not as it should be: KeyError.*caption"):
        read_items(write(source, content))


def test_msrvtt_as_it_is_published(tmp_path):
    """Two files, more fields than are needed, the videos in folders of their own."""
    (tmp_path / "TrainValVideo").mkdir(), (tmp_path / "TestVideo").mkdir()
    for number, split in enumerate(("train", "validate", "test")):
        folder = tmp_path / ("TestVideo" if split == "test" else "TrainValVideo")
        video(folder / f"video{number}.mp4", shades(4))
        about = {"category": 9, "url": "https://x/watch?v=y", "video_id": f"video{number}", "id": number}
        about |= {"start time": 137.72, "end time": 149.44, "split": split}
        rows = [{"caption": f"{TEXTS[i]} ", "video_id": f"video{number}", "sen_id": i} for i in (0, 1)]
        path = tmp_path / ("test_videodatainfo.json" if split == "test" else "train_val_videodatainfo.json")
        known = json.loads(path.read_text()) if path.exists() else {"videos": [], "sentences": []}
        info = {"contributor": "x", "data_created": "2016-04-14", "version": "1.0"}
        write(
            path, {"info": info, "videos": [*known["videos"], about], "sentences": known["sentences"] + rows}
        )
    path = str(tmp_path / "train_val_videodatainfo.json")
    data = FileData(path, path, str(tmp_path / "test_videodatainfo.json"), num_frames=2, image_size=32)
    for role, number in (("train", 0), ("val", 1), ("test", 2)):
        (batch,) = getattr(data, f"{role}_dataloader")()
        assert batch["references"] == [TEXTS[:2]] and batch["frames"].shape == (1, 2, 3, 32, 32)
        assert data.sources[role][0].path.endswith(f"video{number}.mp4")


def test_tables_as_spreadsheets_write_them(tmp_path):
    """A byte order mark, Windows line ends and paths, quotes, commas and line breaks in a caption, empty cells."""
    pictures(tmp_path, ["deep/a.jpg", "B.JPG", "c.PNG"])
    table = tmp_path / "captions.csv"
    table.write_bytes(
        b'\xef\xbb\xbfFile ,Caption,Split\r\ndeep\\a.jpg,"a ""red"", big\r\nstar",Train\r\n'
        b"B.JPG,,train\r\nc.PNG,a wheel,TRAIN\r\n"
    )
    items, missing = read_items(tmp_path, split="train")
    assert names(items) == [("a.jpg", ('a "red", big\r\nstar',)), ("B.JPG", ()), ("c.PNG", ("a wheel",))]
    assert not missing
    table.write_bytes("file,caption\na.jpg,caf\xe9\n".encode("latin-1"))
    with pytest.raises(ValueError, match=r"captions.csv is not in UTF-8 \(line 2\): save it as UTF-8"):
        read_items(tmp_path)
    for mark in ";\t|":
        text = f"file {mark} caption\nc.PNG {mark} a star, red\n"
        for encoding in ("utf-8", "utf-16"):
            table.write_text(text, encoding=encoding)
            assert names(read_items(tmp_path)[0]) == [("c.PNG", ("a star, red",))]


def table(folder, name, content, options=()):
    path = folder / name
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return names(read_items(path, *options)[0])


def test_tables_of_known_sets(tmp_path):
    """Columns and suffixes as MSR-VTT's later splits and Flickr's have them."""
    pictures(tmp_path, ["a.jpg", "b.jpg"])
    for name, content in (
        ("test.csv", "key,vid_key,video_id,sentence\nret0,msr1,a,one\nret1,msr2,b,two\n"),
        ("captions.txt", "image,caption\na.jpg,one\nb.jpg,two\n"),
        ("results.csv", "image_name| comment_number| comment\na.jpg| 0| one\nb.jpg| 0| two\n"),
        ("list.json", [{"video_id": "a", "video": "a.jpg", "caption": ["one"], "id": 1},
                       {"video_id": "b", "video": "b.jpg", "caption": "two", "id": 2}]),
    ):  # fmt: skip
        assert table(tmp_path, name, content) == [("a.jpg", ("one",)), ("b.jpg", ("two",))], name
    images = [{"id": 1, "file_name": "a.jpg"}, {"id": 2, "file_name": "b.jpg"}]
    assert table(tmp_path, "unlabeled.json", {"images": images}) == [("a.jpg", ()), ("b.jpg", ())]
    lost = {"images": images, "annotations": [{"image_id": 3, "caption": "x"}]}
    with pytest.warns(UserWarning, match="lost.json has captions of 1 that it does not list, 3 first"):
        table(tmp_path, "lost.json", lost)


@pytest.mark.parametrize("name, content, message", [
    ("x.jsonl", '["a.jpg"]\n', "entry 1 of .*x.jsonl is no object"),
    ("x.jsonl", '{"file": "a.jpg"}\n\n{"caption"\n', "line 3 of .*x.jsonl is not valid JSON: Expecting"),
    ("x.jsonl", '{"file": "a.jpg", "caption": 5}', "entry 1 of .*a.jpg, has 5 for a caption: captions are texts"),
    ("x.jsonl", '{"file": "a.jpg", "captions": ["x", 5]}', "has 5 for a caption"),
    ("x.jsonl", '{"file": "a.jpg", "captions": {"en": "x"}}', "has {'en': 'x'} for a caption"),
    ("x.jsonl", '{"file": 12}', "entry 1 of .* has 12 for a file's name: names are texts"),
    ("x.jsonl", '{"file": "a.jpg", "split": 1}', "has 1 for a split"),
    ("x.json", [{"videoID": "a"}, {"x": 1}], "entry 2 of .* names no file: call the column file, not one of x"),
    ("x.json", {"images": [{"id": 1, "file_name": 1}]}, "has 1 for a file's name"),
    ("x.json", {str(i): 0 for i in range(99)}, r"its keys are \['0', '1', '10', '11', '12', '13', '14', '15'\]"),
    ("x.csv", "a.jpg,a star\nb.jpg,x\n", "names no file: call the column file, not one of a.jpg, a star"),
    ("x.csv", "file,caption\na.jpg,one, two\n", 'line 2 of .* more cells .* put a caption with a "," in quotes'),
    ("x.csv", 'file,caption\na.jpg,"one\n', "x.csv is not readable as CSV: line 1: unexpected end"),
])  # fmt: skip
def test_tables_that_are_not_as_they_should_be(tmp_path, name, content, message):
    pictures(tmp_path, ["a.jpg"])
    with pytest.raises(ValueError, match=message) as stopped:
        table(tmp_path, name, content)
    assert "\n" not in str(stopped.value)


def test_what_a_table_has_and_nobody_reads(tmp_path):
    pictures(tmp_path, ["a.jpg", "b.jpg"])
    with pytest.warns(UserWarning, match="x.csv has no column caption: .*, whatever is in about, label"):
        assert table(tmp_path, "x.csv", "file,about,label\na.jpg,a star,1\n") == [("a.jpg", ())]
    rows = "file,split\na.jpg, Train\nb.jpg,trains\nb.jpg,\n"
    with pytest.warns(UserWarning, match=r"2 of 3 entries of .* are in no split: \(empty\), trains"):
        assert table(tmp_path, "y.csv", rows, (None, "train")) == [("a.jpg", ())]
    (tmp_path / "captions.csv").write_text("file\na.jpg\n")
    (tmp_path / "captions.jsonl").write_text('{"file": "b.jpg"}\n')
    with pytest.raises(ValueError, match="has captions.csv and captions.jsonl: give one of them"):
        read_items(tmp_path)


def test_a_file_that_is_another_entrys_is_no_stand_in(tmp_path):
    """dogs/1.jpg is not there; cats/1.jpg is, and it is no dog. A file in another folder that nobody else means is."""
    pictures(tmp_path, ["cats/1.jpg", "deep/2.jpg"])
    path = tmp_path / "x.csv"
    path.write_text("file,split\ncats/1.jpg,test\ndogs/1.jpg,train\nelsewhere/2.jpg,train\n")
    items, missing = read_items(path)
    assert names(items) == [("1.jpg", ()), ("2.jpg", ())] and missing == ["dogs/1.jpg"]
    items, missing = read_items(path, split="train")
    assert names(items) == [("2.jpg", ())] and missing == ["dogs/1.jpg"]


def test_many_missing_files_in_one_line(tmp_path):
    pictures(tmp_path, ["a.jpg"])
    (tmp_path / "captions.csv").write_text("file\na.jpg\n" + "".join(f"{i}.jpg\n" for i in range(1500)))
    with pytest.warns(UserWarning, match="1500 files listed in .* are not there: 0.jpg, 1.jpg") as told:
        data = FileData(str(tmp_path), num_frames=1)
    assert len(told) == 1 and str(told[0].message).endswith("999.jpg and 500 more")
    assert len(data.broken) == 1500


def test_folders_as_they_are(tmp_path):
    """Upper-case suffixes, links to folders, one of them into itself, hidden files, accents in two spellings."""
    pictures(tmp_path / "elsewhere", ["linked.jpg"])
    pictures(tmp_path / "media", ["A.JPEG", "e\u0301toile \u661f.png"])
    (tmp_path / "media" / "._A.JPEG").write_bytes(b"of another system")
    (tmp_path / "media" / "link").symlink_to(tmp_path / "elsewhere", target_is_directory=True)
    (tmp_path / "media" / "loop").symlink_to(tmp_path / "media", target_is_directory=True)
    found = [name for name, _ in names(read_items(tmp_path / "media")[0])]
    assert found == ["A.JPEG", "e\u0301toile \u661f.png", "linked.jpg"]
    rows = [{"file": "\u00e9toile \u661f.png", "caption": "a star"}, {"file": "linked", "caption": "x"}]
    (tmp_path / "captions.jsonl").write_text("\n".join(json.dumps(row) for row in rows), encoding="utf-8")
    items, missing = read_items(tmp_path / "captions.jsonl", tmp_path / "media")
    assert [text for _, (text,) in names(items)] == ["a star", "x"] and not missing


def test_mistakes_in_one_line(tmp_path):
    source = karpathy(tmp_path)
    pictures(tmp_path / "twice", ["x/a.jpg", "y/a.jpg"])
    cases = [
        (("nowhere",), FileNotFoundError, "there is no nowhere"),
        ((write(tmp_path / "a.json", {"x": 1}),), ValueError, r"none of COCO.*its keys are \['x'\]"),
        (
            (write(tmp_path / "b.json", [{"videoID": "q"}]),),
            FileNotFoundError,
            "none of the 1 files.*q first",
        ),
        ((write(tmp_path / "c.json", {"images": [{"split": "x"}]}),), ValueError, "not as it should be"),
        ((source, tmp_path / "none"), FileNotFoundError, "no folder .*none"),
    ]
    for arguments, kind, message in cases:
        with pytest.raises(kind, match=message):
            read_items(*arguments)
    (tmp_path / "twice" / "captions.csv").write_text("file,caption\na.jpg,a star\n")
    with pytest.raises(ValueError, match="a.jpg could be .*x/a.jpg or .*y/a.jpg"):
        read_items(tmp_path / "twice")
    (tmp_path / "d.json").write_text("{")
    with pytest.raises(ValueError, match="d.json is not valid JSON"):
        read_items(tmp_path / "d.json")
    with pytest.raises(ValueError, match="no split test: its splits are validate"):
        row = {"filename": "a.jpg", "split": "validate", "sentences": []}
        read_items(write(tmp_path / "e.json", {"images": [row]}), tmp_path / "val2014", "test")


def folder_data(tmp_path, count=5, **options):
    """Pictures with one caption, two captions, three ... in a folder."""
    pictures(tmp_path, [f"{i}.png" for i in range(count)])
    rows = [{"file": f"{i}.png", "captions": TEXTS[: i + 1]} for i in range(count)]
    (tmp_path / "captions.jsonl").write_text("\n".join(map(json.dumps, rows)))
    options = {"train": str(tmp_path), "num_frames": 1, "image_size": tiny.SIDE, "batch_size": 2} | options
    return FileData(tokenizer=glyph_tokenizer(), **options)


def said(data, batch):
    return data.tokenizer.batch_decode(batch["tokens"], skip_special_tokens=True)


def test_training_batches(tmp_path):
    data = folder_data(tmp_path, captions_per_clip=2, workers=0)
    loader = data.train_dataloader()
    epochs = [list(loader) for _ in range(8)]
    heard = set()
    for epoch in epochs:
        assert [len(batch["frames"]) for batch in epoch] == [2, 2, 1]
        assert sorted(torch.cat([batch["clip"] for batch in epoch]).tolist()) == list(range(5))
        for batch in epoch:
            assert batch["frames"].shape[1:] == (1, 3, 32, 32) and batch["frames"].dtype == torch.uint8
            clips = [clip for clip in batch["clip"].tolist() for _ in range(2)]
            for clip, number, text in zip(clips, batch["caption"].tolist(), said(data, batch)):
                assert text == (TEXTS[number] if number >= 0 else "") and number <= clip
                heard.add((clip, number))
    assert heard == {(clip, number) for clip in range(5) for number in range(clip + 1)} | {(0, -1)}
    again = list(folder_data(tmp_path, captions_per_clip=2).train_dataloader())
    assert all(torch.equal(a["tokens"], b["tokens"]) for a, b in zip(epochs[0], again))


def test_worker_processes_get_the_clips_and_nothing_of_the_training(tmp_path):
    """Where they are spawned, as on macOS, all that they get is pickled."""
    data = folder_data(tmp_path)
    data.trainer = SimpleNamespace(optimizer=lambda: None)  # cannot be pickled
    for loader in (data.train_dataloader(), data.pool_dataloader()):
        pickle.dumps((loader.dataset, loader.collate_fn))


def test_a_network_sees_what_it_would_make_of_the_picture_itself(tmp_path):
    data = folder_data(tmp_path)
    batch = next(iter(data.pool_dataloader()))
    whole = torch.from_numpy(np.array(photo(64, 48))).permute(2, 0, 1)[None]
    expected = to_pixels(whole, tiny.SIDE, CLIP_MEAN, CLIP_STD)
    assert torch.equal(to_pixels(batch["frames"][:1], tiny.SIDE, CLIP_MEAN, CLIP_STD), expected)


def test_broken_files_are_named_counted_and_left_out(tmp_path):
    folder_data(tmp_path)
    (tmp_path / "1.png").write_bytes(b"hello")
    rows = (tmp_path / "captions.jsonl").read_text() + '\n{"file": "gone.png", "caption": "a star"}'
    (tmp_path / "captions.jsonl").write_text(rows)
    how = {"num_frames": 1, "image_size": 32, "batch_size": 2, "tokenizer": glyph_tokenizer()}
    with pytest.warns(UserWarning, match="left out, 1 so far: gone.png, listed in .*is not there"):
        data = FileData(train=str(tmp_path), **how)
    with pytest.warns(UserWarning, match="left out, 2 so far: .*1.png is no readable picture"):
        batches = list(data.train_dataloader())
    assert [len(batch["frames"]) for batch in batches] == [2, 2, 1] and "broken" not in batches[0]
    assert set(torch.cat([batch["clip"] for batch in batches]).tolist()) == {0, 2, 3, 4}
    assert list(data.broken) == ["gone.png", str(tmp_path / "1.png")]
    pool = list(data.pool_dataloader())
    assert torch.cat([batch["clip"] for batch in pool]).tolist() == list(range(5))
    assert (pool[0]["frames"][1] == 0).all() and not pool[0]["references"][1]
    with pytest.raises(BrokenFile, match="gone.png"):
        FileData(train=str(tmp_path), on_broken="error", **how)
    (tmp_path / "captions.jsonl").unlink()
    with pytest.raises(BrokenFile, match="1.png is no readable picture"):
        list(FileData(train=str(tmp_path), on_broken="error", **how).train_dataloader())
    for number in range(5):
        (tmp_path / f"{number}.png").write_bytes(b"")
    with pytest.raises(BrokenFile, match="none of 5 files can be read"):
        list(FileData(train=str(tmp_path), **how).train_dataloader())


def test_a_broken_video_is_left_out_and_the_others_are_not(tmp_path):
    for number in range(3):
        video(tmp_path / f"{number}.mp4", shades(4))
    (tmp_path / "1.mp4").write_bytes((tmp_path / "1.mp4").read_bytes()[:-300])
    data = FileData(str(tmp_path), num_frames=2, image_size=32)
    with pytest.warns(UserWarning, match="left out, 1 so far: .*1.mp4 is no readable video"):
        (batch,) = data.train_dataloader()
    assert len(batch["frames"]) == 3 and set(batch["clip"].tolist()) == {0, 2} and len(data.broken) == 1


def test_wrong_options(tmp_path):
    with pytest.raises(ValueError, match="knows no splits: train and val would be the same"):
        folder_data(tmp_path, val=str(tmp_path))
    with pytest.raises(ValueError, match="there is no val data"):
        folder_data(tmp_path).val_dataloader()
    with pytest.raises(ValueError, match="has no caption to score against"):
        FileData(val=str(pictures(tmp_path / "mute", ["a.png"])))
    with pytest.raises(ValueError, match="frames that come again"):
        folder_data(tmp_path, sampling="random").pool_size  # noqa: B018


def test_the_teachers_answers_are_kept(tmp_path):
    data = folder_data(tmp_path / "p", captions_per_clip=2)
    teacher = tiny.teacher()
    cache = TeacherCache.build(tmp_path / "cache", teacher, data, TargetSpec(), say=lambda _: None)
    for batch in data.train_dataloader():
        answer = cache.read(batch["clip"], batch["caption"], batch["tokens"], TargetSpec())
        assert answer["logits"].words.shape == (*(batch["tokens"][:, 1:].shape), 8)
    other = folder_data(tmp_path / "p", image_size=48)
    with pytest.raises(ValueError, match="image_size is 48 here and 32 there"):
        cache.check(teacher, other)


def test_random_crops_come_again_and_the_teacher_is_asked_about_each(tmp_path):
    data = folder_data(tmp_path / "p", captions_per_clip=1, views=2)
    teacher, loader = tiny.teacher(), data.train_dataloader()
    cache = TeacherCache.build(tmp_path / "cache", teacher, data, TargetSpec(), say=lambda _: None)
    epochs = [{int(clip): frames for batch in loader for clip, frames in zip(batch["clip"], batch["frames"])}
              for _ in range(3)]  # fmt: skip
    count = len(data.sources["train"])
    assert [sorted(epoch) for epoch in epochs] == [[2 * n + v for n in range(count)] for v in (0, 1, 0)]
    assert all(torch.equal(epochs[0][clip], epochs[2][clip]) for clip in epochs[0])
    assert not any(torch.equal(epochs[0][clip], epochs[1][clip + 1]) for clip in epochs[0])
    for batch in loader:
        kept = cache.read(batch["clip"], batch["caption"], batch["tokens"], TargetSpec())["logits"]
        with torch.no_grad():
            logits = teacher(batch["frames"], batch["tokens"]).logits
        torch.testing.assert_close(kept.log_p, top_k(logits, 8).log_p, atol=2e-2, rtol=2e-2)
    with pytest.raises(ValueError, match="views is 3 from seed 0 here and 2 from seed 0 there"):
        cache.check(teacher, folder_data(tmp_path / "p", captions_per_clip=1, views=3))
    with pytest.raises(ValueError, match="views must be 0"):
        folder_data(tmp_path / "p", views=-1)


def test_a_crop_is_the_same_in_all_frames_and_large():
    ramp = torch.arange(60, dtype=torch.uint8).expand(2, 3, 40, 60)
    lefts = set()
    for seed in range(50):
        crop = random_resized_crop(ramp, 30, np.random.RandomState(seed))
        assert crop.shape == (2, 3, 30, 30) and torch.equal(crop[0], crop[1])
        left, right = int(crop[0, 0, 0, 0]), int(crop[0, 0, 0, -1])
        assert right - left > 25  # columns that are left of 60
        lefts.add(left)
    assert len(lefts) > 10


def test_lightning_trains_and_scores_videos(tmp_path):
    source = str(msrvtt(tmp_path))
    data = FileData(source, source, source, tokenizer=glyph_tokenizer(), num_frames=2, image_size=tiny.SIDE)
    module = CaptionTrainer(tiny.student())
    trainer = pl.Trainer(
        max_steps=1, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False,
    )  # fmt: skip
    trainer.fit(module, data)
    (scores,) = trainer.test(module, data, verbose=False)
    assert scores.keys() >= {"test/cider", "test/cross_entropy"}
