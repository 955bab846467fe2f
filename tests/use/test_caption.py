"""Captions of files from the command line: folders and lists, attention pictures, the sliding window."""

import io
import json
import math
import os
import shutil
import sys
from pathlib import Path

import pytest
import tiny
import torch
from pictures import shades, video
from PIL import Image

from gitdistill import load_student
from gitdistill.data.video import BrokenFile, FrameRule, read_clip
from gitdistill.decoding import beam
from gitdistill.inspection import attention_maps
from gitdistill.models.checkpoints import resolve
from gitdistill.use import caption
from gitdistill.use.caption import caption_files, draw_words, live
from gitdistill.use.captioner import Captioner
from gitdistill.viz import plots
from gitdistill.world.module import toybox_tokenizer


def test_the_command_captions_folders_and_lists(run, folder, files, monkeypatch, capsys):
    monkeypatch.setattr(sys, "stdin", io.StringIO(f"{files / '2.png'}\n\n{files / '0.png'}\n"))
    code = run("caption", files, "-", "--student", folder, "--json", "--batch", 2, "--device", "cpu")
    out, err = capsys.readouterr()
    rows = [json.loads(line) for line in out.splitlines()]
    names = [Path(row["file"]).name for row in rows]
    assert names == ["0.png", "1.png", "2.png", "clip.mp4", "2.png", "0.png"]
    student = load_student(folder)
    for row in rows:
        (caption,), (score,) = student.caption(student.read(row["file"])[None])
        assert row["caption"] == caption and row["score"] == pytest.approx(score, abs=1e-3)
        assert row["confidence"] == pytest.approx(math.exp(score), abs=1e-3)
    assert code == 1 and "broken.jpg is no readable picture" in err and "1 of 7 files" in err
    assert run("caption", files / "0.png", "--student", folder, "--frames", 1, "--beams", 2) == 0
    assert capsys.readouterr().out.startswith(f"{files / '0.png'}\t")


def test_folders_lists_and_names_as_they_are(run, folder, files, monkeypatch, capsys, tmp_path):
    """A list made elsewhere with a file that is gone; folders behind links; a name that is not UTF-8; nothing."""
    (tmp_path / "link").symlink_to(files, target_is_directory=True)
    (tmp_path / "empty").mkdir()
    shutil.copy(files / "0.png", os.fsencode(tmp_path) + b"/caf\xe9.PNG")
    (tmp_path / "._0.png").write_bytes(b"of another system")
    listed = f"{files / '2.png'}\r\n{tmp_path / 'gone.png'}\r\n"
    monkeypatch.setattr(sys, "stdin", io.StringIO(listed, newline=""))
    code = run("caption", tmp_path, "-", "--student", folder, "--json", "--quiet")
    out, err = capsys.readouterr()
    names = [Path(json.loads(line)["file"]).name for line in out.splitlines()]
    assert names == ["caf\udce9.PNG", "0.png", "1.png", "2.png", "clip.mp4", "2.png"]
    assert code == 1 and "gone.png is no readable picture: No such file" in err and "2 of 8 files" in err
    assert "no pictures or videos in" in run("caption", tmp_path / "empty", "--student", folder)


@pytest.mark.parametrize("name", ["a\x1b[2J\nb\tc.png", "\u202egnp.png", "\x9b1m.png", "x" * 251 + ".png"])
def test_names_that_terminals_would_obey(run, folder, files, capsys, tmp_path, name):
    """A row each, one that JSON gives back; the picture of a name of 255 bytes has a shorter one."""
    (tmp_path / "in").mkdir()
    shutil.copy(files / "0.png", tmp_path / "in" / name)
    assert run("caption", "in", "--student", folder) == 0
    (row,) = capsys.readouterr().out.splitlines()
    shown, caption, score = row.split("\t")
    assert shown.isprintable() and (shown == f"in/{name}") == name.isprintable() and float(score) < 0
    (tmp_path / "in" / "b\x1b.jpg").write_bytes(b"hello")
    assert run("caption", "in", "--student", folder, "--json", "--watch-words", "words") == 1
    out, err = capsys.readouterr()
    row = json.loads(out)
    assert row["file"] == f"in/{name}" and Path(row["picture"]).is_file()
    assert r"b\u001b.jpg is no" in err and "\x1b" not in out + err
    assert run("caption", f"no{name[:200]}", "--student", folder).isprintable()


def test_an_interrupt_keeps_what_was_written(run, folder, files, monkeypatch, capsys):
    def interrupted(*_):
        yield caption.FileCaption("a.png", "a star", -1.0)
        raise KeyboardInterrupt

    monkeypatch.setattr(caption, "caption_files", interrupted)
    assert run("caption", files, "--student", folder) == 130
    assert capsys.readouterr() == ("a.png\ta star\t-1.000\n", "\ngitdistill: stopped\n")


def test_a_picture_shows_the_attention_of_each_word(run, folder, files, monkeypatch, capsys, tmp_path):
    """What is drawn is the attention, read again off the caption that was found, of either network."""
    drawn, gaze = [], plots.gaze
    monkeypatch.setattr(plots, "gaze", lambda *a, **k: drawn.append((a, k)) or gaze(*a, **k))
    names = [files / "0.png", files / "clip.mp4", files / "0.png"]
    out = tmp_path / "words"
    assert run("caption", *names, "--student", folder, "--watch-words", out, "--json") == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [Path(row["picture"]).name for row in rows] == ["0.png.png", "clip.mp4.png", "0.png-2.png"]
    assert {path.name for path in out.iterdir()} == {Path(row["picture"]).name for row in rows}
    student = load_student(folder)
    for row, ((clip, words, maps, probabilities), options) in zip(rows, drawn):
        with Image.open(row["picture"]) as picture:
            assert picture.format == "PNG" and min(picture.size) > 50
        seen = attention_maps(student.model, clip, student.decode(clip[None]).tokens[0, 0])
        assert options["title"] == row["caption"] and len(words) >= len(row["caption"].split()) > 0
        torch.testing.assert_close(maps["attention"], seen.by_word()[: len(words)])
        torch.testing.assert_close(probabilities, seen.log_probs.exp()[: len(words)])


def test_options_of_the_search_and_of_the_processor(run, folder, files, monkeypatch, capsys):
    """Repetition is checked against the network's own captions, threads against what torch is told."""
    student, path, threads = load_student(folder), files / "clip.mp4", []
    monkeypatch.setattr(torch, "set_num_threads", threads.append)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 9)
    monkeypatch.setattr(caption, "usable_cores", lambda: 2)
    monkeypatch.setattr(caption, "free_cores", lambda: 1)
    shared, clip = ["caption", path, "--student", folder, "--json"], student.read(path)[None]
    options = {"repetition_penalty": 3.0, "no_repeat_ngram": 1}
    assert run(*shared, "--repetition-penalty", 3, "--no-repeat-ngram", 1, "--threads", 1) == 0
    row = json.loads(capsys.readouterr().out)
    assert [row["caption"]] == student.caption(clip, **options)[0] != student.caption(clip)[0]
    assert run(*shared) == run(*shared, "--threads", 100_000) == 0 and threads == [1, 1, 2]
    assert student.confidence(-1.0, beams=2, length_penalty=0.6) is None
    assert student.confidence(-1.0, beams=2, repetition_penalty=2.0) is None
    assert student.confidence(-1.0, beams=2) == math.exp(-1) == student.confidence(-1.0, no_repeat_ngram=2)


def test_a_teacher_captions_too(files, tmp_path):
    teacher = tiny.teacher()
    captioner = Captioner(teacher, teacher.tokenizer)
    (result,) = caption_files(captioner, [files / "clip.mp4"], 4, {"max_length": 9})
    assert result.caption == teacher.caption(result.clip[None], max_length=9)[0] and len(result.clip) == 2
    assert Path(draw_words(captioner, result, tmp_path, "teacher.png")).stat().st_size > 1000
    result.tokens[1] = teacher.eos_token_id  # no word is left
    assert draw_words(captioner, result, tmp_path / "nothing", "nothing.png") is None


def test_a_git_that_does_not_crop_reads_pictures_whole(run, files, tmp_path, capsys):
    """Files of several sizes in one batch, against the network on raw frames; squares where they are asked for."""
    teacher, paths = tiny.teacher(), [files / name for name in ("0.png", "clip.mp4", "2.png")]
    teacher.config.test_respect_ratio_max = 48
    captioner = Captioner(teacher, teacher.tokenizer)
    results = list(caption_files(captioner, paths, 3, {"beams": 2}))
    for path, result in zip(paths, results):
        found = beam(teacher, read_clip(path, FrameRule(2))[None], 2)
        assert result.score == pytest.approx(found.scores.item(), abs=1e-4), path
        assert max(result.clip.shape[-2:]) <= 48  # not as large as the file
    assert captioner.caption_files(paths, beams=2) == [result.caption for result in results]
    teacher.model.save_pretrained(tmp_path / "git")
    teacher.tokenizer.save_pretrained(tmp_path / "git")
    scores = {}
    for options in ((), ("--fit", "crop"), ("--watch-words", "words")):
        assert run("caption", paths[0], "--teacher", tmp_path / "git", "--beams", 2, "--json", *options) == 0
        scores[options[:1]] = json.loads(capsys.readouterr().out)["score"]
    assert scores[()] == pytest.approx(results[0].score, abs=1e-4)
    assert scores["--fit",] == scores["--watch-words",] != scores[()]


def test_mistakes_on_the_command_line(run, folder, files, capsys):
    student = ["--student", folder]
    for arguments, message in [
        (["nowhere", *student], "no file or folder nowhere"),
        ([files, *student, "--frames", 3], "3 frames a clip, but this network reads at most 2"),
        ([files, files, *student, "--live", 2], "one video at a time, not 2"),
        ([files, *student, "--watch-words", "out", "--live", 1], "leave --live out"),
        ([files, "--student", ""], "not an empty name"),
        ([files, "--teacher", folder], "'StudentCandidateV1', not a GIT: give it as the student"),
        ([files, "--student", resolve("toybox")], "'git', not a StudentCandidateV1: give it as the teacher"),
    ]:
        assert message in run("caption", *arguments), arguments
    for arguments in ([*student, "--batch", 0], [*student, "--beams", "x"], []):
        assert run("caption", files, *arguments) == 2
    assert "argument --batch: invalid" in capsys.readouterr().err


def windows(monkeypatch, student, path, window, every):
    """Moments of the live captions and the brightness of their frames, in steps of `shades`."""
    seen = []
    monkeypatch.setattr(student, "caption", lambda clip, **_: seen.append(clip) or (["a"], [0.0]))
    moments = [moment for moment, *_ in live(student, path, window, every)]
    return moments, [(clip[0].float().mean((1, 2, 3)) / 10).tolist() for clip in seen]


def test_a_sliding_window(run, files, folder, monkeypatch, capsys):
    """10 frames a second, 2 seconds: a caption each half second, of the last half second alone."""
    student = load_student(folder)
    student.use_frame_rule(FrameRule(2))
    moments, seen = windows(monkeypatch, student, files / "clip.mp4", 0.5, 0.5)
    assert moments == pytest.approx([0.5, 1.0, 1.5, 1.9])  # the last one of what is left
    for moment, shown in zip(moments, seen):
        assert 10 * moment - 5.5 < shown[0] < shown[1] < 10 * moment + 0.5
    code = run("caption", files / "clip.mp4", "--student", folder, "--live", 1, "--every", 0.5)
    out, err = capsys.readouterr()
    assert code == 0 and len(out.splitlines()) == 4 and "4 captions, " in err


def test_every_counts_the_frames_of_the_video_in_a_sliding_window(monkeypatch, tmp_path):
    student = Captioner(tiny.student(num_frames=6).eval(), toybox_tokenizer(), FrameRule(6, "every", 2))
    path = video(tmp_path / "a.mp4", shades(24))
    _, (first, *_) = windows(monkeypatch, student, path, 1.5, 1.5)
    assert first == pytest.approx([0, 2, 4, 6, 8, 10], abs=0.3)


def test_a_sliding_window_over_other_videos(run, folder, files, monkeypatch, capsys, tmp_path):
    """Without times, starting late, shorter than the first caption is due, without an end, broken."""
    student, raw = load_student(folder), video(tmp_path / "raw.h264", shades(20))
    late = video(tmp_path / "late.mkv", shades(20), times=[30 + i / 10 for i in range(20)])
    for path in (late, raw):
        moments, _ = windows(monkeypatch, student, path, 1, 0.04)
        assert moments[0] < 0.2 and moments == sorted(moments) and len(moments) > 15, path
    short = video(tmp_path / "short.mp4", shades(3))
    assert windows(monkeypatch, student, short, 1, 1)[0] == pytest.approx([0.2])
    (tmp_path / "wrong.mp4").mkdir()
    for path in (files / "broken.jpg", tmp_path / "wrong.mp4"):
        with pytest.raises(BrokenFile, match=f"{path.name} is no readable video"):
            list(live(student, path, 1, 1))

    def endless(*_):
        yield 2.0, "a star", -1.0, 0.1
        raise KeyboardInterrupt

    monkeypatch.setattr(caption, "live", endless)
    assert run("caption", raw, "--student", folder, "--live", 1) == 0
    assert "1 captions, " in capsys.readouterr().err
