"""The command line: a short fit from end to end, and a user's mistakes in one line."""

import json
import re
import sys

import pytest
import tiny
import tiny_git
from pictures import photo
from transformers import GitForCausalLM

from gitdistill import load_student
from gitdistill.__main__ import main, reason
from gitdistill.world.module import glyph_tokenizer


@pytest.fixture
def run(monkeypatch, tmp_path):
    """Call `python -m gitdistill` with these arguments, in an empty folder."""
    monkeypatch.chdir(tmp_path)

    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["gitdistill", *map(str, arguments)])
        main()

    return call


TRAINER = [
    "--trainer.accelerator=cpu",
    "--trainer.max_steps=1",
    "--trainer.logger=CSVLogger",
    "--trainer.logger.save_dir=runs",
    "--trainer.enable_progress_bar=false",
    "--trainer.enable_model_summary=false",
]
DATA = ["--data=gitdistill.world.GlyphData"] + [
    f"--data.{name}={value}"
    for name, value in {
        "train_clips": 4,
        "val_clips": 2,
        "test_clips": 2,
        "unseen_clips": 2,
        "batch_size": 2,
        "num_frames": tiny.FRAMES,
        "image_size": tiny.SIDE,
    }.items()
]


def test_a_fit_exports_what_it_tested(run, tmp_path):
    tiny.git().save_pretrained(tmp_path / "start")
    git = [
        "--model.model=gitdistill.world.pretrain.embedded_git",
        f"--model.model.folder={tmp_path / 'start'}",
    ]
    data = [*DATA, "--data.masks=true"]
    run("fit", *TRAINER, "--model=gitdistill.world.pretrain.TeacherTrainer", *git, *data, "--export=end")
    assert {path.name for path in (tmp_path / "end").iterdir()} >= {
        "config.json",
        "model.safetensors",
        "tokenizer.json",
        "scores.json",
    }
    scores = json.loads((tmp_path / "end" / "scores.json").read_text())
    assert scores["steps"] == 1 and "unseen/cider" in scores
    GitForCausalLM.from_pretrained(tmp_path / "end")  # transformers reads it


@pytest.mark.parametrize(
    "teacher, message", [("./nowhere", "no folder ./nowhere"), (".", "is no checkpoint: it has neither")]
)
def test_a_wrong_teacher_is_told_in_one_line(run, tmp_path, teacher, message):
    student = ["--model.student=gitdistill.StudentCandidateV1", "--model.student.vocab_size=122"]
    model = ["--model=gitdistill.DistillationTrainer", f"--model.teacher={teacher}", *student]
    with pytest.raises(SystemExit) as stopped:
        run("fit", *TRAINER, *model, *DATA)
    said = str(stopped.value)
    assert message in said and said.startswith("gitdistill: ") and "\n" not in said
    assert not list(tmp_path.iterdir())


STUDENT = ["--model.student=gitdistill.StudentCandidateV1", "--model.student.vocab_size=122",
           "--model.student.backbone=glyphs"]  # fmt: skip
DISTILLED = ["--model=gitdistill.DistillationTrainer", *STUDENT]
QUIET = [*[option for option in TRAINER if "logger" not in option], "--trainer.logger=false"]


def pictures(folder, count=2) -> list[str]:
    """Arguments of a fit on a folder of pictures, nothing more."""
    folder.mkdir()
    for number in range(count):
        photo(40 + number, 40).save(folder / f"{number}.png")
    options = {"train": folder, "num_frames": 1, "image_size": 96, "batch_size": 2}
    return ["--data=gitdistill.data.FileData", *[f"--data.{name}={value}" for name, value in options.items()]]


def test_pictures_alone_are_enough_for_a_fit(run, tmp_path, capsys):
    """No captions, no validation, no test, no logger, no checkpoints: a student all the same."""
    tiny.git().save_pretrained(tmp_path / "teacher")
    glyph_tokenizer().save_pretrained(tmp_path / "teacher")
    data = pictures(tmp_path / "own")
    model = [*DISTILLED, f"--model.teacher={tmp_path / 'teacher'}", "--trainer.enable_checkpointing=false"]
    run("fit", *QUIET, *model, *data, "--export=end", "--trainer.fast_dev_run=true")
    assert not (tmp_path / "end").exists()
    run("fit", *QUIET, *model, *data, "--export=end")
    assert "not tested: the data have no test clips" in capsys.readouterr().err
    assert json.loads((tmp_path / "end" / "scores.json").read_text())["steps"] == 1
    assert not (tmp_path / "end" / "log.csv").exists()
    assert len(load_student(tmp_path / "end").caption_files([tmp_path / "own" / "0.png"])) == 1


def test_other_words_than_the_teachers(run, tmp_path):
    tiny.git().save_pretrained(tmp_path / "teacher")
    glyph_tokenizer().save_pretrained(tmp_path / "teacher")
    tiny_git.tokenizer().save_pretrained(tmp_path / "words")
    options = [*DISTILLED, f"--model.teacher={tmp_path / 'teacher'}", *pictures(tmp_path / "own")]
    with pytest.raises(SystemExit, match="30 words, not the network's 122"):
        run("fit", *QUIET, *options, f"--data.tokenizer={tmp_path / 'words'}")


@pytest.mark.parametrize("arguments, message", [
    (["--config=nope.yaml"], "File does not exist: .*nope.yaml"),
    ([], "the following arguments are required: fit.data, fit.model"),
    ([*DATA, "--data.wrong=3"], "GlyphData': Option 'wrong' is not accepted$"),
    ([*DATA, "--data.batch_size=x"], "Expected a <class 'int'>. Got value: x$"),
    (["--trainer.max_steps=x"], "\"trainer.max_steps\": Expected a <class 'int'>. Got value: x$"),
    ([*DISTILLED, "--model.teacher=glyphs", *DATA, "--trainer.accelerator=tpu"], "TPU|torch_xla"),
])  # fmt: skip
def test_wrong_arguments_are_told_in_one_line(run, arguments, message):
    with pytest.raises(SystemExit) as stopped:
        run("fit", *QUIET, *arguments)
    said = str(stopped.value)
    assert re.search(message, said) and said.startswith("gitdistill: ") and "\n" not in said


def test_a_traceback_can_be_asked_for(run, monkeypatch):
    monkeypatch.setenv("GITDISTILL_DEBUG", "1")
    with pytest.raises(FileNotFoundError):
        run("caption", "nowhere.png", "--student=nowhere")


def test_the_reason_of_an_error(tmp_path):
    assert reason(KeyError("no module is called x")) == "no module is called x"
    with pytest.raises(OSError) as stopped:
        open(tmp_path)  # noqa: SIM115
    assert reason(stopped.value).endswith(f"Is a directory: '{tmp_path}'")
    worker = "Caught ValueError in DataLoader worker process 0.\nOriginal Traceback (most\n  x\na.ValueError: b: c\n"
    assert reason(ValueError(worker)) == "b: c"
    deep = "Does not validate\nErrors:\n  - Problem with x:\n      it is missing\n  - Expected a <class"
    assert reason(ValueError(deep)) == "Problem with x: it is missing"
    tried = "Does not validate\nErrors:\n  - no folder x\n  - Expected a <class 'NoneType'>\nGiven: y"
    assert reason(ValueError(tried)) == "no folder x"
