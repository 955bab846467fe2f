"""The command line: a short fit from end to end, and a user's mistakes in one line."""

import json
import re

import pytest
import tiny
import tiny_git
from pictures import photo
from transformers import GitForCausalLM

from gitdistill import load_student
from gitdistill.__main__ import reason
from gitdistill.world.module import glyph_tokenizer

QUIET = ["--trainer.accelerator=cpu", "--trainer.max_steps=1", "--trainer.logger=false"]
QUIET += ["--trainer.enable_progress_bar=false", "--trainer.enable_model_summary=false"]
SIZES = dict.fromkeys(("val_clips", "test_clips", "unseen_clips", "batch_size"), 2) | {"train_clips": 4}
SIZES |= {"frames": tiny.FRAMES, "image_size": tiny.SIDE}
DATA = ["--data=gitdistill.world.GlyphData", *(f"--data.{name}={value}" for name, value in SIZES.items())]
DISTILLED = ["--model=gitdistill.DistillationTrainer", "--model.student=gitdistill.StudentCandidateV1"]
DISTILLED += ["--model.student.vocab_size=122", "--model.student.backbone=glyphs"]


@pytest.fixture
def teacher(tmp_path):
    """The argument that names a tiny teacher's folder."""
    tiny.git().save_pretrained(tmp_path / "teacher")
    glyph_tokenizer().save_pretrained(tmp_path / "teacher")
    return f"--model.teacher={tmp_path / 'teacher'}"


def pictures(folder, count=2) -> list[str]:
    """Arguments of a fit on a folder of pictures, nothing more."""
    folder.mkdir()
    for number in range(count):
        photo(40 + number, 40).save(folder / f"{number}.png")
    options = {"train": folder, "frames": 1, "image_size": 96, "batch_size": 2}
    return ["--data=gitdistill.data.FileData", *[f"--data.{name}={value}" for name, value in options.items()]]


def test_a_fit_exports_what_it_tested(run, tmp_path):
    tiny.git().save_pretrained(tmp_path / "start")
    model = ["--model=gitdistill.world.pretrain.TeacherTrainer"]
    model += [
        "--model.model=gitdistill.world.pretrain.embedded_git",
        f"--model.model.folder={tmp_path / 'start'}",
    ]
    assert run("fit", *QUIET, *model, *DATA, "--data.masks=true", "--export=end") == 0
    files = {path.name for path in (tmp_path / "end").iterdir()}
    assert files >= {"config.json", "model.safetensors", "tokenizer.json", "scores.json"}
    scores = json.loads((tmp_path / "end" / "scores.json").read_text())
    assert scores["steps"] == 1 and "unseen/cider" in scores
    GitForCausalLM.from_pretrained(tmp_path / "end")  # transformers reads it


def test_pictures_alone_are_enough_for_a_fit(run, teacher, tmp_path, capsys):
    """No captions, no validation, no test, no logger, no checkpoints: a student all the same."""
    arguments = [
        *QUIET,
        *DISTILLED,
        teacher,
        *pictures(tmp_path / "own"),
        "--trainer.enable_checkpointing=false",
    ]
    assert run("fit", *arguments, "--export=end", "--trainer.fast_dev_run=true") == 0
    assert not (tmp_path / "end").exists()
    assert run("fit", *arguments, "--export=end") == 0
    assert "not tested: the data have no test clips" in capsys.readouterr().err
    assert json.loads((tmp_path / "end" / "scores.json").read_text())["steps"] == 1
    assert not (tmp_path / "end" / "log.csv").exists()
    assert len(load_student(tmp_path / "end").caption_files([tmp_path / "own" / "0.png"])) == 1


def test_other_words_than_the_teachers(run, teacher, tmp_path):
    tiny_git.tokenizer().save_pretrained(tmp_path / "words")
    arguments = [
        *QUIET,
        *DISTILLED,
        teacher,
        *pictures(tmp_path / "own"),
        f"--data.tokenizer={tmp_path / 'words'}",
    ]
    message = r"tokenizer \(30 words\) is not the network's \(122 words\): give FileData"
    assert re.search(message, run("fit", *arguments))


@pytest.mark.parametrize("arguments, message", [
    (["--config=nope.yaml"], "File does not exist: .*nope.yaml"),
    ([], "the following arguments are required: fit.data, fit.model"),
    ([*DATA, "--data.wrong=3"], "GlyphData': Option 'wrong' is not accepted$"),
    ([*DATA, "--data.batch_size=x"], "Expected a <class 'int'>. Got value: x$"),
    (["--trainer.max_steps=x"], "\"trainer.max_steps\": Expected a <class 'int'>. Got value: x$"),
    ([*DISTILLED, "--model.teacher=glyphs", *DATA, "--trainer.accelerator=tpu"], "TPU|torch_xla"),
    ([*DISTILLED, "--model.teacher=./nowhere", *DATA], "gitdistill: no folder ./nowhere$"),
    ([*DISTILLED, "--model.teacher=.", *DATA], "is no checkpoint: it has neither"),
])  # fmt: skip
def test_a_mistake_is_one_line(run, tmp_path, arguments, message):
    line = run("fit", *QUIET, *arguments)
    assert re.search(message, line) and line.startswith("gitdistill: ") and "\n" not in line
    assert not list(tmp_path.iterdir())


def test_a_traceback_can_be_asked_for(run, monkeypatch):
    monkeypatch.setenv("GITDISTILL_DEBUG", "1")
    with pytest.raises(FileNotFoundError):
        run("caption", "nowhere.png", "--student=nowhere")


def test_the_reason_of_an_error():
    assert reason(KeyError("no module is called x")) == "no module is called x"
    assert reason(IsADirectoryError(21, "Is a directory", "x")).endswith("Is a directory: 'x'")
    worker = "Caught ValueError in DataLoader worker process 0.\nOriginal Traceback (most\n  x\na.ValueError: b: c\n"
    assert reason(ValueError(worker)) == "b: c"
