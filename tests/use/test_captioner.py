"""A student's folder: everything in it, whole, read back, pushed to the hub."""

import json
import multiprocessing
import os
import shutil
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import tiny
import torch
from huggingface_hub import ModelCard, hub_mixin

from gitdistill import load_student
from gitdistill.data.video import FrameRule
from gitdistill.decoding import beam, greedy, sample
from gitdistill.models import checkpoints
from gitdistill.use import captioner
from gitdistill.use.captioner import Captioner, Student
from gitdistill.world.module import toybox_tokenizer


def test_a_folder_holds_the_whole_student(folder, files):
    paths = [files / "0.png", files / "clip.mp4"]
    loaded = load_student(folder)
    assert loaded.rule == FrameRule(2, "every", 3) and loaded.decoding == {"max_length": 7}
    assert loaded.scores == {"cider": 1.5} and "| cider | 1.5 |" in (folder / "README.md").read_text()
    assert loaded.read(paths[1]).shape == (2, 3, tiny.SIDE, tiny.SIDE)
    frames = torch.stack([loaded.read(path) for path in paths])
    captions, scores = loaded.caption(frames)
    assert captions == tiny.student(1).eval().caption(frames, toybox_tokenizer(), max_length=7)
    assert scores[0] != scores[1] and max(scores) < 0
    assert loaded.caption_files(paths) == captions
    again = type(loaded).from_pretrained(folder)  # as the hub's mixin reads it
    assert again.caption(frames)[0] == captions and again.rule == loaded.rule
    assert loaded.caption(frames, beams=3)[1] == beam(loaded.model, frames, 3, 7).scores[:, 0].tolist()


def test_a_student_of_padded_frames_reads_them_so_again(run, files, tmp_path, capsys):
    student = Student(tiny.student().eval(), toybox_tokenizer(), FrameRule(2, fit="pad"))
    student.save(tmp_path / "padded")
    again, picture = load_student(tmp_path / "padded"), files / "2.png"
    assert again.rule.fit == "pad" and torch.equal(again.read(picture), student.read(picture))
    assert (again.read(picture)[0, :, 0, 0] == torch.tensor([123, 117, 104])).all()  # a bar
    told = []
    for fit in ([], ["--fit", "crop"]):
        assert run("caption", picture, "--student", tmp_path / "padded", "--json", *fit) == 0
        told.append(json.loads(capsys.readouterr().out)["score"])
    student.use_frame_rule(FrameRule(2))
    assert told[0] != told[1] == pytest.approx(student.caption(student.read(picture)[None])[1][0], abs=1e-3)


@pytest.mark.parametrize("options, search", [
    ({"beams": 1}, lambda model, frames: greedy(model, frames, 9)),
    ({"temperature": 2.0, "seed": 1}, lambda model, frames: sample(model, frames, 9, 2.0, seed=1)),
])  # fmt: skip
def test_default_options_of_another_search_do_not_count(options, search):
    defaults = {"beams": 4, "length_penalty": 0.6, "max_length": 9}
    student = Captioner(tiny.student().eval(), toybox_tokenizer(), decoding=defaults)
    frames = tiny.clips(3)
    assert torch.equal(student.decode(frames, **options).tokens, search(student.model, frames).tokens)


def test_a_full_disk_leaves_no_half_tokenizer(folder, tmp_path, monkeypatch):
    student = load_student(folder)

    def save(target):
        (Path(target) / "tokenizer.json").write_text("half")
        raise OSError("no space left on device")

    monkeypatch.setattr(student.tokenizer, "save_pretrained", save)
    with pytest.raises(OSError, match="no space left"):
        student.save(tmp_path)
    assert not (tmp_path / "tokenizer.json").exists()


def test_pushed_to_the_hub_and_read_back(folder, files, monkeypatch, tmp_path):
    """The hub's own mixin makes the repository and sends the folder; what it sends is the whole student."""
    calls = []

    class Hub:
        def __init__(self, token=None):
            calls.append(token)

        def create_repo(self, repo_id, private, exist_ok):
            calls.append((repo_id, private))
            return SimpleNamespace(repo_id=repo_id)

        def upload_folder(self, repo_id, folder_path, commit_message, **_):
            calls.append((repo_id, commit_message))
            shutil.copytree(folder_path, there)

    def download(repo_id, **options):
        calls.append((repo_id, options["revision"]))
        return str(there)

    there, student = tmp_path / "there", load_student(folder)
    monkeypatch.setattr(hub_mixin, "HfApi", Hub)
    student.push_to_hub("me/mine", private=True, commit_message="first", token="t")
    card = ModelCard.load(there / "README.md").data
    assert card.library_name == "gitdistill" and card.pipeline_tag == "image-to-text"
    monkeypatch.setattr(hub_mixin, "hf_hub_download", lambda **_: str(there / "config.json"))
    monkeypatch.setattr(captioner, "snapshot_download", download)
    again = Student.from_pretrained("me/mine", revision="v1")
    assert calls == ["t", ("me/mine", True), ("me/mine", "first"), ("me/mine", "v1")]
    assert again.scores == student.scores and again.rule == student.rule
    paths = [files / "0.png", files / "clip.mp4"]
    assert again.caption_files(paths) == student.caption_files(paths)
    monkeypatch.setattr(checkpoints, "snapshot_download", lambda name, **_: there)
    assert load_student("me/mine").caption_files(paths) == student.caption_files(paths)


def test_a_folder_of_bare_weights(tmp_path):
    tiny.student().save_pretrained(tmp_path)
    assert load_student(tmp_path).rule == FrameRule(tiny.FRAMES)
    rule = {"frames": 9, "sampling": "uniform", "step": 1}
    for metadata, message in (
        ({"frames": rule, "decoding": {}, "scores": {}}, "9 frames a clip, but this network reads at most 2"),
        ({}, "describes no student's folder"),
    ):
        (tmp_path / Student.FILE).write_text(json.dumps(metadata))
        with pytest.raises(ValueError, match=message):
            load_student(tmp_path)
    with pytest.raises(FileNotFoundError, match="no folder ./nowhere"):
        load_student("./nowhere")


def saver(folder, seed):
    torch.set_num_threads(1)
    student = Student(tiny.student(seed).eval(), toybox_tokenizer(), scores={"seed": float(seed)})
    while True:
        student.save(folder)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="forks")
def test_a_reader_beside_two_savers_sees_one_of_both(tmp_path):
    fork, folder = multiprocessing.get_context("fork"), tmp_path / "folder"
    own = {float(seed): tiny.student(seed).words.weight for seed in (1, 2)}
    Student(tiny.student(1), toybox_tokenizer(), scores={"seed": 1.0}).save(folder)
    processes, seen = [fork.Process(target=saver, args=(folder, seed)) for seed in (1, 2)], set()
    for process in processes:
        process.start()
    try:
        until = time.monotonic() + 2
        while time.monotonic() < until:
            try:
                student = load_student(folder)
            except ValueError as error:
                assert str(error) == f"{folder} is being written: wait, then read it again"
                continue
            seen.add(student.scores["seed"])
            assert torch.equal(student.model.words.weight, own[student.scores["seed"]])
    finally:
        alive = [process.is_alive() for process in processes]
        for process in processes:
            process.kill()
            process.join()
    assert all(alive) and load_student(folder)


def test_a_changed_or_missing_file_is_named(folder, tmp_path):
    """Any damage at all is test_fuzz's part; the model card is people's to edit."""
    there = shutil.copytree(folder, tmp_path / "student")
    (there / "README.md").write_text("mine")
    for path in sorted(path for path in there.iterdir() if path.name != "README.md"):
        whole = path.read_bytes()
        path.write_bytes(whole[:-9] + b"?" + whole[-8:])
        with pytest.raises(ValueError, match=rf"^{path} [^\n]*$"):
            load_student(there)
        path.unlink()
        if path.name != Student.FILE:
            with pytest.raises(ValueError, match=f"student lacks {path.name}, which gitdistill.json lists"):
                load_student(there)
        path.write_bytes(whole)
    assert load_student(there).scores == {"cider": 1.5}


def test_bare_weights_over_a_student_are_listed_again(folder, tmp_path):
    shutil.copytree(folder, tmp_path / "student")
    tiny.student(5).save_pretrained(tmp_path / "student")
    found = load_student(tmp_path / "student")
    assert torch.equal(found.model.words.weight, tiny.student(5).words.weight)
    assert found.scores == {"cider": 1.5}


def test_students_without_checksums_are_read():
    """They were saved before there were any."""
    folder = checkpoints.embedded("baseline")
    assert "files" not in json.loads((folder / Student.FILE).read_text())
    assert load_student(folder).scores["test/cider"] > 1


@pytest.mark.parametrize("change", [
    {"decoding": {"evil": 1}}, {"decoding": {"max_length": "x"}}, {"decoding": None}, {"frames": {"frames": "x"}},
    {"frames": 5}, {"scores": {"cider": "x"}}, {"odd": 1}, {"files": {"../x": "0"}}, {"files": 5},
])  # fmt: skip
def test_values_of_another_kind_are_named(folder, tmp_path, change):
    shutil.copytree(folder, tmp_path / "student")
    path = tmp_path / "student" / Student.FILE
    metadata = json.loads(path.read_text())
    del metadata["crc32"], metadata["files"]
    path.write_text(json.dumps(metadata | change))
    with pytest.raises(ValueError, match=rf"^{path} [^\n]*$"):
        load_student(tmp_path / "student")


def test_text_that_captions_begin_with(folder):
    student, frames = load_student(folder), torch.zeros(2, 2, 3, tiny.SIDE, tiny.SIDE, dtype=torch.uint8)
    for prefix in ("a red", ["a red", "a"], ("a red", "a")):
        expected = student.model.caption(frames, student.tokenizer, prefix=prefix, max_length=7)
        assert student.caption(frames, prefix=prefix)[0] == expected


def test_scores_of_any_kind_of_number_are_saved(tmp_path):
    scores = {"a": torch.tensor(0.5), "b": np.float32(0.25), "c": 1}
    Student(tiny.student(), toybox_tokenizer(), scores=scores).save(tmp_path / "s")
    assert load_student(tmp_path / "s").scores == {"a": 0.5, "b": 0.25, "c": 1.0}
