"""Captions of files: the bundle, the command, the sliding window; and the check of this machine."""

import io
import json
import os
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import tiny
import torch
from huggingface_hub import ModelCard, hub_mixin
from pictures import photo, shades, video
from PIL import Image

from gitdistill import __main__, load_student
from gitdistill.data.video import BrokenFile, FrameRule
from gitdistill.decoding import beam
from gitdistill.inspection import attention_maps
from gitdistill.models import checkpoints
from gitdistill.use import caption, captioner, device
from gitdistill.use.caption import caption_files, draw_words, live
from gitdistill.use.captioner import Captioner, Student
from gitdistill.viz import plots
from gitdistill.world.module import glyph_tokenizer


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A student's folder."""
    path = tmp_path_factory.mktemp("student")
    student = Student(
        tiny.student().eval(), glyph_tokenizer(), FrameRule(2, "every", 3), {"max_length": 7}, {"cider": 1.5}
    )
    student.save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Three pictures, a video, a broken picture and a text."""
    path = tmp_path_factory.mktemp("files")
    for number in range(3):
        photo(40 + 30 * number, 64).save(path / f"{number}.png")
    video(path / "clip.mp4", shades(20))
    (path / "broken.jpg").write_bytes(b"hello")
    (path / "notes.txt").write_text("hello")
    return path


def run(monkeypatch, *arguments) -> int:
    monkeypatch.setattr(sys, "argv", ["gitdistill", *map(str, arguments)])
    with pytest.raises(SystemExit) as stopped:
        __main__.main()
    return stopped.value.code


def test_a_folder_says_all_of_itself(folder, files):
    loaded = load_student(folder)
    assert loaded.rule == FrameRule(2, "every", 3) and loaded.decoding == {"max_length": 7}
    assert loaded.scores == {"cider": 1.5} and "| cider | 1.5 |" in (folder / "README.md").read_text()
    assert loaded.read(files / "clip.mp4").shape == (2, 3, tiny.SIDE, tiny.SIDE)
    frames = torch.stack([loaded.read(files / name) for name in ("0.png", "clip.mp4")])
    said, scores = loaded.caption(frames)
    assert said == tiny.student().eval().caption(frames, glyph_tokenizer(), max_length=7)
    assert scores[0] != scores[1]
    assert loaded.caption_files([files / "0.png"])[0] == said[0] and all(score < 0 for score in scores)
    again = type(loaded).from_pretrained(folder)  # as the hub's mixin reads it
    assert again.caption(frames)[0] == said and again.rule == loaded.rule
    assert loaded.caption(frames, beams=3)[1] == beam(loaded.model, frames, 3, 7).scores[:, 0].tolist()


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
            shutil.copytree(folder_path, tmp_path / "there")
            return "a commit"

    monkeypatch.setattr(hub_mixin, "HfApi", Hub)
    student = load_student(folder)
    assert student.push_to_hub("me/mine", private=True, commit_message="first", token="t") == "a commit"
    assert calls == ["t", ("me/mine", True), ("me/mine", "first")]
    card = ModelCard.load(tmp_path / "there" / "README.md").data
    assert card.library_name == "gitdistill" and card.pipeline_tag == "image-to-text"

    def download(repo_id, **options):
        calls.append((repo_id, options["revision"]))
        return str(tmp_path / "there")

    monkeypatch.setattr(hub_mixin, "hf_hub_download", lambda **_: str(tmp_path / "there" / "config.json"))
    monkeypatch.setattr(captioner, "snapshot_download", download)
    again = Student.from_pretrained("me/mine", revision="v1")
    assert calls[-1] == ("me/mine", "v1") and again.scores == student.scores and again.rule == student.rule
    paths = [files / "0.png", files / "clip.mp4"]
    assert again.caption_files(paths) == student.caption_files(paths)
    monkeypatch.setattr(checkpoints, "snapshot_download", lambda name, allow_patterns: tmp_path / "there")
    assert load_student("me/mine").caption_files(paths) == student.caption_files(paths)


def test_a_folder_of_bare_weights(tmp_path):
    tiny.student().save_pretrained(tmp_path)
    assert load_student(tmp_path).rule == FrameRule(tiny.FRAMES)
    (tmp_path / Student.FILE).write_text('{"frames": {"frames": 9}, "decoding": {}, "scores": {}}')
    with pytest.raises(ValueError, match="9 frames a clip, but this network reads at most 2"):
        load_student(tmp_path)
    (tmp_path / Student.FILE).write_text("{}")
    with pytest.raises(ValueError, match="is not what a student's folder says of itself"):
        load_student(tmp_path)
    with pytest.raises(FileNotFoundError, match="no folder ./nowhere"):
        load_student("./nowhere")


def test_the_command_captions_folders_and_lists(folder, files, monkeypatch, capsys):
    monkeypatch.setattr(sys, "stdin", io.StringIO(f"{files / '2.png'}\n\n{files / '0.png'}\n"))
    code = run(
        monkeypatch, "caption", files, "-", "--student", folder, "--json", "--batch", 2, "--device", "cpu"
    )
    out, err = capsys.readouterr()
    rows = [json.loads(line) for line in out.splitlines()]
    names = [row["file"].rsplit("/", 1)[1] for row in rows]
    assert names == ["0.png", "1.png", "2.png", "clip.mp4", "2.png", "0.png"]
    student = load_student(folder)
    for row in rows:
        (caption,), (score,) = student.caption(student.read(row["file"])[None])
        assert row["caption"] == caption and row["score"] == pytest.approx(score, abs=1e-3)
    assert (
        code == 1 and "broken.jpg is no readable picture" in err and "1 of 7 files could not be read" in err
    )
    assert run(monkeypatch, "caption", files / "0.png", "--student", folder, "--frames", 1, "--beams", 2) == 0
    assert capsys.readouterr().out.startswith(f"{files / '0.png'}\t")


def test_folders_lists_and_names_as_they_are(folder, files, monkeypatch, capsys, tmp_path):
    """A list made elsewhere with a file that is gone; folders behind links; a name that is not UTF-8; nothing."""
    (tmp_path / "link").symlink_to(files, target_is_directory=True)
    (tmp_path / "empty").mkdir()
    shutil.copy(files / "0.png", os.fsencode(tmp_path) + b"/caf\xe9.PNG")
    (tmp_path / "._0.png").write_bytes(b"of another system")
    listed = f"{files / '2.png'}\r\n{tmp_path / 'gone.png'}\r\n"
    monkeypatch.setattr(sys, "stdin", io.StringIO(listed, newline=""))
    code = run(monkeypatch, "caption", tmp_path, "-", "--student", folder, "--json", "--quiet")
    out, err = capsys.readouterr()
    names = [json.loads(line)["file"].rsplit("/", 1)[1] for line in out.splitlines()]
    assert names == ["caf\udce9.PNG", "0.png", "1.png", "2.png", "clip.mp4", "2.png"]
    assert code == 1 and "gone.png is no readable picture: No such file" in err and "2 of 8 files" in err
    assert "no pictures or videos in" in run(monkeypatch, "caption", tmp_path / "empty", "--student", folder)


def test_a_teacher_captions_too(files):
    teacher = tiny.teacher()
    captioner = Captioner(teacher, teacher.tokenizer)
    assert captioner.rule == FrameRule(2)
    frames = captioner.read(files / "clip.mp4")[None]
    (said,) = caption_files(captioner, [files / "clip.mp4"], 4, {})
    assert said.caption == teacher.caption(frames)[0] and said.wrong is None
    assert torch.equal(said.clip, frames[0]) and said.tokens[0] == teacher.bos_token_id


def test_a_picture_shows_where_each_word_looked(folder, files, monkeypatch, capsys, tmp_path):
    """What is drawn is the attention, read again off the caption that was found, of either network."""
    drawn, gaze = [], plots.gaze
    monkeypatch.setattr(plots, "gaze", lambda *a, **k: drawn.append((a, k)) or gaze(*a, **k))
    names = [files / "0.png", files / "clip.mp4", files / "0.png"]
    out = tmp_path / "words"
    assert run(monkeypatch, "caption", *names, "--student", folder, "--watch-words", out, "--json") == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [Path(row["picture"]).name for row in rows] == ["0.png.png", "clip.mp4.png", "0.png-2.png"]
    assert {path.name for path in out.iterdir()} == {Path(row["picture"]).name for row in rows}
    student = load_student(folder)
    for row, ((clip, words, maps, probabilities), options) in zip(rows, drawn):
        with Image.open(row["picture"]) as picture:
            assert picture.format == "PNG" and min(picture.size) > 50
        tokens = student.decode(clip[None]).tokens[0, 0]
        looks = attention_maps(student.model, clip, tokens)
        assert options["title"] == row["caption"] and len(words) >= len(row["caption"].split()) > 0
        torch.testing.assert_close(maps["attention"], looks.by_word()[: len(words)])
        torch.testing.assert_close(probabilities, looks.log_probs.exp()[: len(words)])
    teacher = Captioner(tiny.teacher(), glyph_tokenizer())
    (said,) = caption_files(teacher, [files / "clip.mp4"], 1, {"max_length": 9})
    assert Path(draw_words(teacher, said, out, "teacher.png")).stat().st_size > 1000
    said.tokens[1] = teacher.model.eos_token_id
    assert draw_words(teacher, said, out, "nothing.png") is None and not (out / "nothing.png").exists()
    wrong = run(monkeypatch, "caption", names[1], "--student", folder, "--watch-words", out, "--live", 1)
    assert "leave --live out" in wrong


def test_mistakes_on_the_command_line(folder, files, monkeypatch, capsys):
    assert "no file or folder nowhere" in run(monkeypatch, "caption", "nowhere", "--student", folder)
    said = run(monkeypatch, "caption", files, "--student", folder, "--frames", 3)
    assert said == "gitdistill: 3 frames a clip, but this network reads at most 2"
    said = run(monkeypatch, "caption", files, files, "--student", folder, "--live", 2)
    assert "--live is for one video at a time, not 2" in said
    assert run(monkeypatch, "caption", files, "--student", folder, "--batch", 0) == 2
    assert "0 is not above 0" in capsys.readouterr().err
    assert run(monkeypatch, "caption", files, "--student", folder, "--beams", "x") == 2
    assert "invalid int value: 'x'" in capsys.readouterr().err
    assert run(monkeypatch, "caption", files) == 2


def test_a_sliding_window(files, folder, monkeypatch, capsys):
    """10 frames a second, 2 seconds: a caption each half second, of the last half second alone."""
    student = load_student(folder)
    student.rule = FrameRule(2)
    seen = []
    monkeypatch.setattr(student, "caption", lambda clip, **_: seen.append(clip) or (["a"], [0.0]))
    moments = [moment for moment, *_ in live(student, files / "clip.mp4", 0.5, 0.5)]
    assert moments == pytest.approx([0.5, 1.0, 1.5])
    for moment, clip in zip(moments, seen):
        shown = (clip.float().mean((0, 2, 3, 4)) / 10).tolist()
        assert 10 * moment - 5.5 < shown[0] < shown[1] < 10 * moment + 0.5
    with pytest.raises(BrokenFile, match="broken.jpg"):
        list(live(student, files / "broken.jpg", 1, 1))
    code = run(monkeypatch, "caption", files / "clip.mp4", "--student", folder, "--live", 1, "--every", 0.5)
    out, err = capsys.readouterr()
    assert code == 0 and len(out.splitlines()) == 3 and "3 captions, " in err


def test_a_sliding_window_over_other_videos(folder, monkeypatch, capsys, tmp_path):
    """Without times, starting late, shorter than the first caption is due, without an end."""
    student = load_student(folder)
    monkeypatch.setattr(student, "caption", lambda clip, **_: (["a"], [0.0]))
    video(tmp_path / "late.mkv", shades(20), times=[30 + i / 10 for i in range(20)])
    raw = video(tmp_path / "raw.h264", shades(20))
    for path in (tmp_path / "late.mkv", raw):
        moments = [moment for moment, *_ in live(student, path, 1, 0.04)]
        assert moments[0] < 0.2 and moments == sorted(moments) and len(moments) > 15, path
    (only,) = live(student, video(tmp_path / "short.mp4", shades(3)), 1, 1)
    assert only[0] == pytest.approx(0.2)
    (tmp_path / "wrong.mp4").mkdir()
    with pytest.raises(BrokenFile, match="wrong.mp4 is no readable video: Is a directory"):
        list(live(student, tmp_path / "wrong.mp4", 1, 1))

    def endless(*_):
        yield 2.0, "a star", -1.0, 0.1
        raise KeyboardInterrupt

    monkeypatch.setattr(caption, "live", endless)
    assert run(monkeypatch, "caption", raw, "--student", folder, "--live", 1) == 0
    assert "1 captions, " in capsys.readouterr().err


def test_the_check(monkeypatch, capsys):
    assert run(monkeypatch, "check") == 0
    said = capsys.readouterr().out
    assert "OK   device cpu computes what the CPU does" in said and "all is well" in said
    monkeypatch.setenv(device.VARIABLE, "cuda:99")
    assert run(monkeypatch, "check") == 1
    assert "FAIL there is no device cuda:99 here" in capsys.readouterr().out
    assert device.choose_device("cpu") == torch.device("cpu")
    with pytest.raises(ValueError, match="'tpu9' is no device"):
        device.choose_device("tpu9")


def test_the_self_test_sees_a_device_that_computes_something_else(monkeypatch):
    samples = device.samples()
    name, model, frames, tokens = samples[1]

    class Elsewhere(type(model)):
        def to(self, _):
            self.norm.weight.data.mul_(1.5)
            return self

    model.__class__ = Elsewhere
    monkeypatch.setattr(device, "samples", lambda: samples)
    assert "the student's logits are off by" in device.self_test(torch.device("cpu"))
