"""The command line: a short fit from end to end, and a user's mistakes in one line."""

import json
import sys

import pytest
import tiny
from transformers import GitForCausalLM

from gitdistill.__main__ import main, reason


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
DATA = ["--data=gitdistill.data.GlyphData"] + [
    f"--data.{name}={value}"
    for name, value in {
        "train_clips": 4,
        "val_clips": 2,
        "test_clips": 2,
        "unseen_clips": 2,
        "batch_size": 2,
        "frames": tiny.FRAMES,
        "image_size": tiny.SIDE,
    }.items()
]


def test_a_fit_exports_what_it_tested(run, tmp_path):
    tiny.git().save_pretrained(tmp_path / "start")
    git = ["--model.model=gitdistill.pretrain.embedded_git", f"--model.model.folder={tmp_path / 'start'}"]
    data = [*DATA, "--data.masks=true"]
    run("fit", *TRAINER, "--model=gitdistill.pretrain.TeacherTrainer", *git, *data, "--export=end")
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


def test_the_reason_of_an_error():
    assert reason(KeyError("no module is called x")) == "no module is called x"
    tried = "Does not validate\nErrors:\n  - no folder x\n  - Expected a <class 'NoneType'>\nGiven: y"
    assert reason(ValueError(tried)) == "no folder x"
