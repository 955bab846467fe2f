"""Ten kills each while a cache is filled, shards are packed and a student is exported: nothing broken, nothing left."""

import multiprocessing
import os
import time

import pytest
import tiny
from pictures import captioned

from gitdistill.data.items import read_items
from gitdistill.data.shards import pack, read_index
from gitdistill.distillation.cache import TeacherCache
from gitdistill.distillation.targets import TargetSpec
from gitdistill.use import onnx_export
from gitdistill.use.captioner import Student, load_student
from gitdistill.world import ToyboxData, toybox_tokenizer

pytestmark = pytest.mark.slow


def quiet(_) -> None:
    pass


def fill(folder, _source) -> None:
    picture = {"num_frames": tiny.FRAMES, "image_size": tiny.SIDE}
    data = ToyboxData(600, **picture, batch_size=20, fresh_captions=False)
    TeacherCache.build(folder, tiny.teacher(), data, TargetSpec(logits=True), say=quiet)


def pack_all(folder, source) -> None:
    pack(read_items(source)[0], folder, per_shard=2, say=quiet)


def export(folder, _source) -> None:
    onnx_export.export(Student(tiny.student().eval(), toybox_tokenizer(), decoding={"max_length": 8}), folder)


READERS = {fill: TeacherCache, pack_all: read_index, export: load_student}


@pytest.mark.parametrize("job", READERS, ids=["cache", "pack", "export"])
def test_ten_kills(tmp_path, job):
    source, whole = captioned(tmp_path / "source", [["a cat"]] * 12), tmp_path / "whole"
    start = time.monotonic()
    job(whole, source)
    lasts, expected = time.monotonic() - start, sorted(os.listdir(whole))
    broken = 0
    for number in range(10):
        folder = tmp_path / f"{number}"
        process = multiprocessing.get_context("fork").Process(target=job, args=(folder, source))
        process.start()
        process.join(lasts * (number + 1) / 11)
        process.kill()
        process.join()
        try:
            READERS[job](folder)
        except (ValueError, FileNotFoundError) as error:  # not finished, and it says so
            broken += 1
            assert "\n" not in str(error)
        job(folder, source)
        READERS[job](folder)
        assert sorted(os.listdir(folder)) == expected
        assert not [name for name in os.listdir(tmp_path) if name.startswith(".")]
    assert broken >= 2  # it was killed in the midst of the work
