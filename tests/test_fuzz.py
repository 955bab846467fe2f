"""Damaged files of every kind that the project writes or reads: one clear line, or the content that was there.

Mutations are random but seeded. Some seconds by default; `pytest -m slow tests/test_fuzz.py` tries many more."""

import json
import shutil
import warnings
from pathlib import Path

import numpy as np
import pytest
import tiny
import torch
from pictures import captioned, photo, shades, video

from gitdistill import TinyVIT, load_student
from gitdistill.data.items import read_items
from gitdistill.data.video import BrokenFile, FrameRule, read_clip
from gitdistill.distillation.cache import TeacherCache
from gitdistill.distillation.resume import read_checkpoint
from gitdistill.distillation.targets import TargetSpec
from gitdistill.use.captioner import Student
from gitdistill.world import ToyboxData, toybox_tokenizer

COUNTS = pytest.mark.parametrize("count", [60, pytest.param(3000, marks=pytest.mark.slow)])  # for each file
VALUES = None, -1, 0, 10**10, 1e308, True, "", "x" * 10_000, "\ud800"
VALUES += [], {}, [[]], {"a": {}}, "../../etc/passwd"
ERRORS = ValueError, OSError


def mutated(content: bytes, draw: np.random.RandomState) -> bytes:
    """Cut off, a bit or some bytes changed, a part left out or repeated; of JSON also a value replaced."""
    kind, place = draw.randint(7), draw.randint(len(content))
    before, after = content[:place], content[place + 1 :]
    if kind < 5:
        flipped, noise = bytes([content[place] ^ (1 << draw.randint(8))]), draw.bytes(9)
        shorter, longer = after[draw.randint(50) :], content[max(0, place - 30) :]
        return before + (b"", flipped + after, noise + after, shorter, longer)[kind]
    try:
        data = here = json.loads(content)
    except ValueError:
        return b"" if kind == 5 else draw.bytes(64) + content[64:]
    while isinstance(here, dict | list) and here:
        key = list(here)[draw.randint(len(here))] if isinstance(here, dict) else draw.randint(len(here))
        if not isinstance(here[key], dict | list) or not here[key] or draw.randint(3) == 0:
            here[key] = VALUES[draw.randint(len(VALUES))]
            break
        here = here[key]
    return json.dumps(data).encode()


def survives(load, folder: Path, count: int) -> None:
    """Of each file of a folder, every damage is an error of one line, or `load` gives what it gave before."""
    expected, scratch = load(folder), folder.with_name("scratch")
    draw, refused = np.random.RandomState(count), 0
    for path in sorted(path for path in folder.iterdir() if path.suffix != ".md"):
        for _ in range(count):
            shutil.rmtree(scratch, ignore_errors=True)
            shutil.copytree(folder, scratch)
            (scratch / path.name).write_bytes(mutated(path.read_bytes(), draw))
            before = sorted(scratch.parent.iterdir())
            try:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")
                    found = load(scratch)
            except ERRORS as error:
                assert str(error).strip() and "\n" not in str(error).strip(), (path.name, error)
                refused += 1
            else:
                assert found == expected, path.name
            assert sorted(scratch.parent.iterdir()) == before
    assert refused > count // 2


def numbers(tensors) -> list:
    values = {name: torch.as_tensor(value) for name, value in tensors.items()}
    return [(name, list(value.shape), value.double().sum().item()) for name, value in sorted(values.items())]


def student_content(folder):
    student = load_student(folder)
    text = student.tokenizer("a cat jumps with a red tulip")["input_ids"]
    return numbers(student.model.state_dict()), student.rule, student.decoding, student.scores, text


@COUNTS
def test_a_students_folder(tmp_path, count):
    options = FrameRule(2), {"max_length": 7}, {"cider": 1.5}
    Student(tiny.student().eval(), toybox_tokenizer(), *options).save(tmp_path / "a")
    survives(student_content, tmp_path / "a", count)


@COUNTS
def test_a_backbone(tmp_path, count):
    tiny.backbone().save_pretrained(tmp_path / "a")
    survives(lambda folder: numbers(TinyVIT.from_pretrained(folder).state_dict()), tmp_path / "a", count)


@COUNTS
def test_a_cache(tmp_path, count):
    picture = {"num_frames": tiny.FRAMES, "image_size": tiny.SIDE}
    data = ToyboxData(3, **picture, batch_size=3, fresh_captions=False)
    TeacherCache.build(tmp_path / "a", tiny.teacher(), data, TargetSpec(logits=True), say=lambda _: None)

    def content(folder):
        cache = TeacherCache(folder)
        return cache.metadata, [numbers(shard) for shard in cache._shards]

    survives(content, tmp_path / "a", count)


@COUNTS
def test_a_checkpoint(tmp_path, count):
    (tmp_path / "a").mkdir()
    training = {"state_dict": tiny.student().state_dict(), "pytorch-lightning_version": "2.6.0", "loops": {}}
    torch.save(training | {"epoch": 3, "global_step": 9}, tmp_path / "a" / "last.ckpt")

    def content(folder):
        return numbers(read_checkpoint(folder / "last.ckpt")["state_dict"])

    survives(content, tmp_path / "a", 3 * count)


@COUNTS
def test_pictures_and_videos(tmp_path, count):
    draw = np.random.RandomState(count)
    for suffix in ("png", "jpg", "webp", "gif", "bmp", "tiff"):
        photo(40, 30).save(tmp_path / f"whole.{suffix}")
    video(tmp_path / "whole.mp4", shades(6), gap=2)
    for path in sorted(tmp_path.glob("whole.*")):
        for _ in range(count):
            broken = tmp_path / f"broken{path.suffix}"
            broken.write_bytes(mutated(path.read_bytes(), draw))
            try:
                clip = read_clip(broken, FrameRule(2))
            except BrokenFile as error:
                assert str(broken) in str(error) and "\n" not in str(error)
            else:
                assert clip.dtype == torch.uint8 and clip.shape[:2] == (2, 3)


@COUNTS
def test_tables(tmp_path, count):
    draw = np.random.RandomState(count)
    captioned(tmp_path / "a", [["a cat", "a red cat"], ["a dog, and more"]])
    rows = [json.loads(line) for line in (tmp_path / "a" / "captions.jsonl").read_text().splitlines()]
    coco = {"images": [{"id": 7, "file_name": "0.png"}], "annotations": [{"image_id": 7, "caption": "a cat"}]}
    tables = {"rows.json": json.dumps(rows), "rows.jsonl": "\n".join(map(json.dumps, rows))}
    tables["rows.csv"] = 'file,caption,split\n0.png,a cat,train\n1.png,"a dog, and more",val\n'
    tables["coco.json"] = json.dumps(coco)
    for name, text in tables.items():
        for _ in range(3 * count):
            (tmp_path / name).write_bytes(mutated(text.encode(), draw))
            try:
                items, _ = read_items(tmp_path / name, tmp_path / "a")
            except ERRORS as error:
                assert str(error).strip() and "\n" not in str(error).strip(), name
            else:
                assert all(Path(item.path).parent == tmp_path / "a" for item in items)
                assert all(isinstance(text, str) for item in items for text in item.captions)
