"""Files of checkpoints: read with care, and written whole or not at all."""

import multiprocessing
import os
import random
import re
import time
from functools import partial
from pathlib import Path

import pytest
import safetensors.torch
import torch
from fakes import full_disk
from fits import forks
from safetensors.torch import load_file, save_file

from gitdistill.models import checkpoints, storage

WEIGHTS = {"one": torch.arange(300.0).view(3, 100), "two": torch.tensor([1, 2])}


class Malicious:
    def __reduce__(self):
        return os.mkdir, ("executed",)


def test_an_empty_name_is_not_the_current_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for action in (partial(storage.write_folder, "", {}, WEIGHTS), partial(storage.output_folder, "")):
        with pytest.raises(ValueError, match="empty name"):
            action()
    assert not list(tmp_path.iterdir())
    storage.write_folder(".", {}, WEIGHTS)
    assert (tmp_path / "config.json").is_file()


def test_what_is_missing_or_refused_is_not_called_damaged(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for kind, message in ((FileNotFoundError, "no file"), (ValueError, "refused.*mkdir")):
        with pytest.raises(kind, match=message) as caught:
            storage.load_torch("last.ckpt")
        assert not re.search("damaged|\n", str(caught.value)) and not (tmp_path / "executed").exists()
        torch.save({"state": Malicious()}, "last.ckpt")


@pytest.mark.parametrize("name", ["a.safetensors", "a.pt"])
@pytest.mark.parametrize("content", [b"", b"no", b"PK\x03\x04 and no more"])
def test_files_that_are_no_weights(tmp_path, name, content):
    with pytest.raises(FileNotFoundError, match=name):
        storage.read_weights(tmp_path / name)
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=rf"^\S*{name} is damaged or no [^\n]*$"):
        storage.read_weights(tmp_path / name)


def changed_bytes(path, count=30):
    """Changes one byte of a file at a time, here and there; leaves it as it was."""
    whole, draw = path.read_bytes(), random.Random(0)
    for place in [len(whole) // 2, *draw.sample(range(len(whole)), count)]:
        path.write_bytes(whole[:place] + bytes([whole[place] ^ draw.randrange(1, 256)]) + whole[place + 1 :])
        yield
    path.write_bytes(whole)


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("name", ["model.safetensors", "model.pt"])
def test_a_changed_byte_is_noticed(tmp_path, name):
    """Or has no consequences, which happens between the records of PyTorch's zip files."""
    storage.write_folder(tmp_path, {}, WEIGHTS)
    torch.save({"model": WEIGHTS}, tmp_path / "model.pt")
    noticed = 0
    for _ in changed_bytes(tmp_path / name):
        try:
            assert same(storage.read_weights(tmp_path / name), WEIGHTS)
        except ValueError as error:
            assert "damaged" in str(error) and "\n" not in str(error)
            noticed += 1
    assert noticed > (30 if name == "model.safetensors" else 15)
    assert same(storage.read_weights(tmp_path / name), WEIGHTS)


def test_checksums_are_in_our_files_and_not_computed_for_others(tmp_path, monkeypatch):
    storage.write_folder(tmp_path, {}, WEIGHTS)
    for folder in (tmp_path, *map(checkpoints.embedded, ("teacher", "student", "backbone"))):
        with safetensors.safe_open(folder / "model.safetensors", "pt") as file:
            known = storage.checksum(load_file(folder / "model.safetensors"))
            assert file.metadata() == {"format": "pt", "crc32": known}
    save_file(WEIGHTS, tmp_path / "model.safetensors")
    monkeypatch.setattr(storage, "checksum", lambda tensors: pytest.fail("computed"))
    assert same(storage.read_weights(tmp_path / "model.safetensors"), WEIGHTS)


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()} if folder.exists() else None


@pytest.mark.parametrize("old", [False, True], ids=["new folder", "old checkpoint"])
def test_a_save_to_a_full_disk_leaves_what_was_there(tmp_path, old):
    folder = tmp_path / "folder"
    if old:
        storage.write_folder(folder, {"old": 1}, WEIGHTS)
    before = contents(folder)
    with full_disk(10_000), pytest.raises(OSError, match=r"^[^\n]*nothing was written[^\n]*$"):
        storage.write_folder(folder, {"new": 1}, {"large": torch.zeros(5000)})
    assert contents(folder) == before and os.listdir(tmp_path) == ["folder"] * old


def test_an_interrupt_between_two_renames_leaves_no_mixture(tmp_path, monkeypatch):
    """In the current folder, which cannot be exchanged."""
    monkeypatch.chdir(tmp_path)
    storage.write_folder(tmp_path, {"version": 1}, WEIGHTS)
    replace, interrupted = type(tmp_path).replace, []

    def once(self, target):
        result = replace(self, target)
        if not interrupted:
            interrupted.append(target)
            raise KeyboardInterrupt
        return result

    monkeypatch.setattr(type(tmp_path), "replace", once)
    with pytest.raises(KeyboardInterrupt):
        storage.write_folder(tmp_path, {"version": 2}, {"other": torch.ones(1)})
    assert interrupted and len(os.listdir(tmp_path)) == 2
    assert storage.read_config(tmp_path) == {"version": 2}
    assert list(storage.read_weights(tmp_path / "model.safetensors")) == ["other"]


def test_a_file_in_the_way(tmp_path):
    (tmp_path / "name").write_text("mine")
    with pytest.raises(OSError, match="nothing was written"):
        storage.write_folder(tmp_path / "name", {}, WEIGHTS)
    assert (tmp_path / "name").read_text() == "mine" and os.listdir(tmp_path) == ["name"]


def test_all_files_have_the_mode_that_the_umask_says(tmp_path):
    before = os.umask(0o027)
    try:
        storage.write_folder(tmp_path / "end", {}, WEIGHTS)
    finally:
        os.umask(before)
    assert {path.stat().st_mode & 0o777 for path in (tmp_path / "end").iterdir()} == {0o640}


def test_metadata_with_a_checksum():
    text = storage.metadata_text({"clips": 3, "name": "é"})
    assert storage.parse_metadata(text, "here") == {"clips": 3, "name": "é"}
    assert storage.parse_metadata('{"clips": 3}', "here") == {"clips": 3}
    for wrong in (text.replace(": 3", ": 4"), "[1]", "{"):
        with pytest.raises(ValueError, match="^here [^\n]*$"):
            storage.parse_metadata(wrong, "here")


NAMES = ("config.json", "model.safetensors", "tokenizer.json", "vocab.txt")


def save(folder, version):
    """Four files that hold a version, slowly."""

    def write(path):
        time.sleep(0.001)
        path.write_text(str(version))

    storage.write_whole(folder, dict.fromkeys(NAMES, write))


def saver(folder, first, begun):
    for version in range(first, 10**6):
        save(folder, version)
        begun.set()


def started(folder, first):
    """A process that saves versions from `first` on; the first one is there."""
    fork = multiprocessing.get_context("fork")
    begun = fork.Event()
    process = fork.Process(target=saver, args=(folder, first, begun))
    process.start()
    assert begun.wait(60)
    return process


@forks
def test_ten_kills_leave_the_old_files_or_the_new_ones_and_no_leftovers(tmp_path):
    folder, draw = tmp_path / "folder", random.Random(0)
    save(folder, 0)
    (folder / "log.csv").write_text("mine")
    (folder / "kept").mkdir()
    (folder / "kept" / "last.ckpt").write_text("mine, too")
    seen = set()
    for number in range(10):
        process = started(folder, 1000 * number)
        process.join(draw.uniform(0, 0.03))
        process.kill()
        process.join()
        (version,) = {(folder / name).read_text() for name in NAMES}
        seen.add(version)
        save(folder, version)
        assert sorted(os.listdir(tmp_path)) == ["folder"]
        assert sorted(os.listdir(folder)) == sorted([*NAMES, "log.csv", "kept"])
    assert len(seen) == 10
    assert (folder / "log.csv").read_text() == "mine" and (folder / "kept" / "last.ckpt").exists()


@forks
def test_two_savers_at_once_leave_one_of_both(tmp_path):
    folder = tmp_path / "folder"
    processes = [started(folder, 0), started(folder, 500_000)]
    time.sleep(0.1)
    alive = [process.is_alive() for process in processes]
    for process in processes:
        process.kill()
        process.join()
    assert all(alive) and len({(folder / name).read_text() for name in NAMES}) == 1


def test_files_that_only_the_old_student_had_are_gone(tmp_path):
    for names in (("a", "b", "c"), ("a", "d")):
        listed = partial(storage.manifest, {})
        storage.write_whole(tmp_path / "f", dict.fromkeys(names, Path.touch) | {storage.MANIFEST: listed})
        (tmp_path / "f" / "log.csv").touch()
    assert sorted(os.listdir(tmp_path / "f")) == ["a", "d", "gitdistill.json", "log.csv"]
