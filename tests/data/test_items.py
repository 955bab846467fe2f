"""Lists of captioned files as people have them: every format, good and broken."""

import json
import os
import pickle

import numpy as np
import pytest
from pictures import photo

from gitdistill.data.compact import Item, Items
from gitdistill.data.files import FileData
from gitdistill.data.items import _slim, read_items
from gitdistill.world import toybox_tokenizer


def pictures(folder, names):
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        photo(24, 24).save(path)
    return folder


def write(path, content):
    text = content if isinstance(content, str | bytes) else json.dumps(content)
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def names(items):
    return [(item.path.rsplit("/", 1)[1], item.captions) for item in items]


def table(folder, name, content, *options):
    return names(read_items(write(folder / name, content), *options)[0])


def test_karpathys_split(tmp_path):
    pictures(tmp_path / "val2014", ["a.jpg", "b.jpg", "c.jpg", "d.jpg"])
    splits = {"a": "train", "b": "restval", "c": "val", "d": "test"}
    rows = []
    for name, split in splits.items():
        row = {"filepath": "val2014", "filename": f"{name}.jpg", "split": split, "sentids": [3]}
        rows.append(row | {"sentences": [{"raw": f"a {name}", "tokens": ["a", name]}]})
    source = write(tmp_path / "dataset_coco.json", {"dataset": "coco", "images": rows})
    for split, expected in (("train", "ab"), ("val", "c"), ("test", "d")):
        items, _ = read_items(source, split=split)
        assert names(items) == [(f"{name}.jpg", (f"a {name}",)) for name in expected]
    (tmp_path / "val2014" / "a.jpg").unlink()  # missed by its own split alone
    assert read_items(source, split="val")[1] == []
    items, missing = read_items(source, split="train")
    assert names(items) == [("b.jpg", ("a b",))] and missing == ["val2014/a.jpg"]


def test_coco(tmp_path):
    pictures(tmp_path / "val2014", ["b.jpg", "a.jpg"])
    images = [{"id": 7, "file_name": "b.jpg"}, {"id": 3, "file_name": "a.jpg"}]
    captions = [(3, "a star"), (7, "a red star"), (3, " a bell\n")]
    rows = [{"image_id": image, "id": i, "caption": text} for i, (image, text) in enumerate(captions)]
    source = write(tmp_path / "captions.json", {"info": {}, "images": images, "annotations": rows})
    found = [("b.jpg", ("a red star",)), ("a.jpg", ("a star", "a bell"))]
    assert names(read_items(source)[0]) == found
    (tmp_path / "val2014" / "b.jpg").unlink()
    items, missing = read_items(source)
    assert names(items) == found[1:] and missing == ["b.jpg"]
    lost = {"images": images, "annotations": [{"image_id": 4, "caption": "x"}]}
    with pytest.warns(UserWarning, match="captions of 1 that it does not list, 4 first"):
        assert table(tmp_path, "lost.json", lost) == [("a.jpg", ())]


def test_msrvtt_and_vatex_as_they_are_published(tmp_path):
    """More fields than are needed; the videos in folders of their own."""
    splits = {"video0.mp4": "train", "video1.mp4": "validate", "video2.mp4": "test"}
    videos = []
    for number, (name, split) in enumerate(splits.items()):
        (tmp_path / split).mkdir()
        (tmp_path / split / name).touch()
        about = {"category": 9, "url": "https://x/watch?v=y", "video_id": name[:-4], "id": number}
        videos.append(about | {"start time": 137.72, "end time": 149.44, "split": split})
    rows = [{"caption": f"{i} ", "video_id": f"video{i % 3}", "sen_id": i} for i in range(5)]
    content = {"info": {"version": "1.0"}, "videos": videos, "sentences": rows}
    assert table(tmp_path, "info.json", content, None, "val") == [("video1.mp4", ("1", "4"))]
    (tmp_path / "x_1_000001_000011.mp4").touch()
    captions = {"enCap": ["a", "b"], "chCap": ["x"]}
    rows = [{"videoID": f"{name}_000001_000011"} | captions for name in ("x_1", "no")]
    items, missing = read_items(write(tmp_path / "vatex_validation_v1.0.json", rows))
    assert names(items) == [("x_1_000001_000011.mp4", ("a", "b"))] and missing == ["no_000001_000011"]


def test_folders(tmp_path):
    pictures(tmp_path, ["b.png", "a.jpg", "deep/c.jpg"])
    (tmp_path / "notes.txt").write_text("no picture")
    assert names(read_items(tmp_path)[0]) == [("a.jpg", ()), ("b.png", ()), ("c.jpg", ())]
    rows = 'file_name,text,split\nb.png,a star,train\nc.jpg,"one, two",val\nb.png,a bell,train\n'
    (tmp_path / "captions.csv").write_text(rows)
    assert names(read_items(tmp_path, split="train")[0]) == [("b.png", ("a star", "a bell"))]
    assert names(read_items(tmp_path, split="val")[0]) == [("c.jpg", ("one, two",))]


def test_folders_in_the_layout_of_imagefolder(tmp_path):
    pictures(tmp_path / "train", ["a.jpg", "deep/b.jpg"])
    pictures(tmp_path, ["test/a.jpg", "validation/c.jpg", "validation/d.jpg"])
    write(tmp_path / "train" / "metadata.csv", "file_name,text\na.jpg,a star\ndeep/b.jpg,a bell\n")
    write(tmp_path / "test" / "metadata.jsonl", '{"file_name": "a.jpg", "text": "a tree"}')
    write(tmp_path / "validation" / "c.txt", "a fox\n\na red fox\n")
    write(tmp_path / "validation" / "d.txt", "0 0.5 0.5\n")
    write(tmp_path / "annotations.json", {})
    with pytest.warns(UserWarning, match="not read in .*: annotations.json, validation/d.txt$"):
        found = {split: names(read_items(tmp_path, split=split)[0]) for split in ("train", "val", "test")}
    assert found["train"] == [("a.jpg", ("a star",)), ("b.jpg", ("a bell",))]
    assert found["val"] == [("c.jpg", ("a fox", "a red fox")), ("d.jpg", ())]
    assert found["test"] == [("a.jpg", ("a tree",))]
    pictures(tmp_path / "classes", ["train/dog/a.jpg", "test/dog/b.jpg"])
    assert names(read_items(tmp_path / "classes", split="train")[0]) == [("a.jpg", ())]
    write(tmp_path / "classes" / "captions.csv", "file,caption\ntrain/dog/a.jpg,x\ntest/dog/b.jpg,y\n")
    assert names(read_items(tmp_path / "classes", split="test")[0]) == [("b.jpg", ("y",))]


def test_folders_as_they_are(tmp_path):
    """Upper-case suffixes, links to folders, one of them into itself, hidden files, accents in two spellings."""
    pictures(tmp_path / "elsewhere", ["linked.jpg"])
    media = pictures(tmp_path / "media", ["A.JPEG", "e\u0301toile \u661f.png"])
    (media / "._A.JPEG").write_bytes(b"of another system")
    (media / "link").symlink_to(tmp_path / "elsewhere", target_is_directory=True)
    (media / "loop").symlink_to(media, target_is_directory=True)
    assert [n for n, _ in names(read_items(media)[0])] == ["A.JPEG", "e\u0301toile \u661f.png", "linked.jpg"]
    rows = [{"file": "\u00e9toile \u661f.png", "caption": "a star"}, {"file": "linked", "caption": "x"}]
    found = table(tmp_path, "captions.jsonl", "\n".join(map(json.dumps, rows)), media)
    assert [text for _, (text,) in found] == ["a star", "x"]


def test_tables_as_spreadsheets_write_them(tmp_path):
    """A byte order mark, Windows line ends and paths, quotes, commas and line breaks in a caption, empty cells."""
    pictures(tmp_path, ["deep/a.jpg", "B.JPG", "c.PNG"])
    path = tmp_path / "captions.csv"
    path.write_bytes(
        b'\xef\xbb\xbfFile ,Caption,Split\r\ndeep\\a.jpg,"a ""red"", big\r\nstar",Train\r\n'
        b"B.JPG,,train\r\nc.PNG,a bell,TRAIN\r\n"
    )
    items, missing = read_items(tmp_path, split="train")
    assert names(items) == [("a.jpg", ('a "red", big\r\nstar',)), ("B.JPG", ()), ("c.PNG", ("a bell",))]
    assert not missing
    path.write_bytes("file,caption\na.jpg,caf\xe9\n".encode("latin-1"))
    with pytest.raises(ValueError, match=r"captions.csv is not in UTF-8 \(line 2\)"):
        read_items(tmp_path)
    for mark in ";\t|":
        for encoding in ("utf-8", "utf-16"):
            path.write_text(f"file {mark} caption\nc.PNG {mark} a star, red\n", encoding=encoding)
            assert names(read_items(tmp_path)[0]) == [("c.PNG", ("a star, red",))]


@pytest.mark.parametrize("name, content", [
    ("test.csv", "key,vid_key,video_id,sentence\nret0,msr1,a,one\nret1,msr2,b,two\n"),  # MSR-VTT's later splits
    ("captions.txt", "image,caption\na.jpg,one\nb.jpg,two\n"),  # Flickr's
    ("results.csv", "image_name| comment_number| comment\na.jpg| 0| one\nb.jpg| 0| two\n"),
    ("x.jsonl", '{"file": "a.jpg", "captions": ["one"]}\n\n{"file": "b.jpg", "caption": "two"}\n'),
    ("x.csv", 'file,captions\na.jpg,"[""one""]"\nb.jpg, ["two"] \n'),
    ("x.csv", "file,caption_0,caption_1\na.jpg,one,\nb.jpg,,two\n"),
    ("x.jsonl", '{"file": "a.jpg", "text1": "one", "captions": null}\n{"file": "b.jpg", "text1": "two"}\n'),
    ("x.json", [{"filename": "a.jpg", "sentences": ["one"], "tokens": 3}, {"filename": "b.jpg", "sentences": ["two"]}]),
    ("list.json", [{"video_id": "a", "video": "a.jpg", "caption": ["one"]}, {"video": "b.jpg", "caption": "two"}]),
])  # fmt: skip
def test_tables_of_known_sets(tmp_path, name, content):
    pictures(tmp_path, ["a.jpg", "b.jpg"])
    assert table(tmp_path, name, content) == [("a.jpg", ("one",)), ("b.jpg", ("two",))]


@pytest.mark.parametrize("name, content, message", [
    ("x.jsonl", '["a.jpg"]\n', "entry 1 of .*x.jsonl is no object"),
    ("x.jsonl", '{"file": "a.jpg"}\n\n{"caption"\n', "line 3 of .*x.jsonl is not valid JSON"),
    ("x.jsonl", '{"file": "a.jpg", "caption": 5}', "entry 1 of .*a.jpg.* has 5 for a caption"),
    ("x.jsonl", '{"file": "a.jpg", "captions": ["x", 5]}', "has 5 for a caption"),
    ("x.jsonl", '{"file": "a.jpg", "captions": {"en": "x"}}', "has {'en': 'x'} for a caption"),
    ("x.jsonl", '{"file": 12}', "entry 1 of .* has 12 for a file's name"),
    ("x.jsonl", '{"file": "a.jpg", "split": 1}', "has 1 for a split"),
    ("x.json", "{", "x.json is not valid JSON"),
    ("x.json", [{"videoID": "a"}, {"x": 1}], "entry 2 of .* names no file"),
    ("x.json", {"images": [{"id": 1, "file_name": 1}]}, "has 1 for a file's name"),
    ("x.json", {"images": [{"split": "x"}]}, "not as it should be: KeyError"),
    ("x.json", {"images": [{"id": 1, "file_name": "a.jpg"}], "annotations": [{"image_id": 1}]}, "KeyError.*caption"),
    ("x.json", {str(i): 0 for i in range(99)}, r"none of COCO.*'0', '1', '10', '11', '12', '13', '14', '15'\]"),
    ("x.csv", "a.jpg,a star\nb.jpg,x\n", "names no file: .* a.jpg, a star"),
    ("x.csv", "file,caption\na.jpg,one, two\n", "line 2 of .* has more cells"),
    ("x.csv", "file,caption\na.jpg\n", "line 2 of .*x.csv has fewer cells than the first: caption is not in it"),
    ("x.csv", "file,caption,Caption\na.jpg,one,two\n", "x.csv has two columns caption"),
    ("x.csv", "file,captions\na.jpg,\"['one', 'two']\"\n", "entry 1 of .* has a list of captions that is not"),
    ("x.parquet", "PAR1...", "x.parquet is Parquet, which is not read"),
    ("x.csv.gz", b"\x1f\x8b..", "x.csv.gz is gzip, which is not read"),
    ("x.zip", "PK\3\4..", "x.zip is a zip archive, which is not read: unpack it"),
    ("x.json", "[" * 100_000, "x.json is not valid JSON: it is nested too deeply"),
    ("x.jsonl", '{"file": ' + "1" * 10_000 + "}", "line 1 of .*x.jsonl is not valid JSON: .*4300 digits"),
    ("x.jsonl", '{"file": "a.jpg", "captions": ["x", "\\ud800"]}', r"has '\\ud800' for a caption: give a text"),
    ("x.jsonl", json.dumps({"file": "a.jpg", "captions": [["x" * 10_000]]}), r"has \['x.{,40}\] for a caption"),
    ("x.jsonl", '{"file": "../a.jpg"}', "entry 1 of .*x.jsonl names ../a.jpg: give a path within the media folder"),
    ("x.csv", "file\nx/../../a.jpg\n", "names x/../../a.jpg: give a path within"),
    ("x.csv", "file\n/etc/a.jpg\n", "names /etc/a.jpg: give a path within"),
    ("x.csv", "file\nC:\\a.jpg\n", "names C:/a.jpg: give a path within"),
    ("x.json", {"images": [{"filepath": "..", "filename": "a.jpg", "sentences": []}]}, "names ../a.jpg: give a path"),
    ("x.json", {"images": [{"id": 1, "file_name": "../a.jpg"}]}, "names ../a.jpg: give a path within"),
    ("x.csv", 'file,caption\na.jpg,"one\n', "x.csv is not readable as CSV: line 1"),
    ("x.csv", "file,caption\n1.jpg,one\n", "1.jpg could be .*x/1.jpg or .*y/1.jpg"),
    ("x.csv", "file,split\na.jpg,validate\n", "no split test: its splits are validate"),
])  # fmt: skip
def test_tables_that_are_not_as_they_should_be(tmp_path, name, content, message):
    pictures(tmp_path, ["a.jpg", "x/1.jpg", "y/1.jpg"])
    with pytest.raises(ValueError, match=message) as stopped:
        table(tmp_path, name, content, None, "test")
    assert "\n" not in str(stopped.value)


def test_what_is_not_there(tmp_path):
    (tmp_path / "captions.csv").write_text("file\nq.jpg\n")
    odd = write(tmp_path / "x.jsonl", {"file": "a\n" * 999})
    for arguments, message in (
        (("nowhere",), "there is no nowhere"),
        ((tmp_path,), "none of the 1 files.*q.jpg first$"),
        ((write(tmp_path / "empty.csv", ""), tmp_path), "empty.csv has no pictures or videos$"),
        ((odd,), r"a\\u000aa.{1,90} \.\.\. first$"),
        ((tmp_path, tmp_path / "none"), "no folder .*none"),
    ):
        with pytest.raises(FileNotFoundError, match=message):
            read_items(*arguments)


def test_what_a_table_has_and_nobody_reads(tmp_path):
    pictures(tmp_path, ["a.jpg", "b.jpg"])
    with pytest.warns(UserWarning, match="x.csv has no column caption: .*, whatever is in about, label"):
        assert table(tmp_path, "x.csv", "file,about,label\na.jpg,a star,1\n") == [("a.jpg", ())]
    rows = "file,split\na.jpg, Train\nb.jpg,trains\nb.jpg,\n"
    with pytest.warns(UserWarning, match=r"2 of 3 entries of .* are in no split: \(empty\), trains"):
        assert table(tmp_path, "y.csv", rows, None, "train") == [("a.jpg", ())]
    for name in ("captions.csv", "captions.jsonl"):
        (tmp_path / name).write_text("file\na.jpg\n")
    with pytest.raises(ValueError, match="has captions.csv and captions.jsonl"):
        read_items(tmp_path)


def test_a_file_that_is_another_entrys_is_no_stand_in(tmp_path):
    """dogs/1.jpg is not there; cats/1.jpg is, and it is no dog. A file in another folder that nobody else means is."""
    pictures(tmp_path, ["cats/1.jpg", "deep/2.jpg"])
    rows = "file,split\ncats/1.jpg,test\ndogs/1.jpg,train\nelsewhere/2.jpg,train\n"
    for split, expected in ((None, ["1.jpg", "2.jpg"]), ("train", ["2.jpg"])):
        items, missing = read_items(write(tmp_path / "x.csv", rows), split=split)
        assert [name for name, _ in names(items)] == expected and missing == ["dogs/1.jpg"]


def test_a_file_of_another_folder_is_no_stand_in_where_its_own_is_there(tmp_path):
    pictures(tmp_path, ["val/1.jpg", "val/2.jpg", "train/2.jpg"])
    rows = "file,caption\ntrain/1.jpg,a dark dog\ntrain/2,a light one\nother/1.jpg,a dog\n"
    items, missing = read_items(write(tmp_path / "train.csv", rows))
    assert [item.path for item in items] == [str(tmp_path / name) for name in ("train/2.jpg", "val/1.jpg")]
    assert missing == ["train/1.jpg"]


def test_items_lie_in_one_buffer(tmp_path):
    """Names that are no UTF-8, captions of any length, none, no split; by number, from the end, as a slice, pickled."""
    kept = [Item("a.jpg", ("one", "zw\u00f6lf " * 999), "train"), Item("\udcff.png"), Item("c.png", ("",))]
    items = Items(kept)
    assert list(items) == kept and items[-1] == kept[2] and items[1:] == kept[1:] and len(items) == 3
    assert list(pickle.loads(pickle.dumps(items))) == kept and not Items([])
    with pytest.raises(IndexError):
        items[3]
    assert [type(part) for part in vars(items).values()] == [bytes, np.ndarray]


def test_a_source_is_read_once_for_all_its_splits(tmp_path, monkeypatch):
    pictures(tmp_path, ["a.jpg", "b.jpg", "c.jpg"])
    rows = "file,caption,split\na.jpg,a star,train\nb.jpg,a bell,val\nc.jpg,a fox,test\n"
    source, calls = write(tmp_path / "x.csv", rows), []
    walked = os.walk
    monkeypatch.setattr(os, "walk", lambda *place, **how: calls.append(place) or walked(*place, **how))
    roles = dict.fromkeys(("train", "val", "test"), str(source))
    data = FileData(**roles, tokenizer=toybox_tokenizer())
    found = [names(data.source(role)) for role in roles]
    assert found == [[("a.jpg", ("a star",))], [("b.jpg", ("a bell",))], [("c.jpg", ("a fox",))]]
    assert len(calls) == 1


def test_the_words_of_karpathys_split_are_not_kept():
    """Lists of words and numbers are dropped while the file is read: they would fill gigabytes."""
    sentence = {"raw": "a star", "tokens": ["a", "star"], "sentid": 3}
    row = {"filename": "a.jpg", "sentids": [3], "sentences": [sentence], "split": "val"}
    assert _slim(row) == {"filename": "a.jpg", "sentences": ("a star",), "split": "val"}
