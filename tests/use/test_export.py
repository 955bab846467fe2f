"""What a run leaves beside the network."""

import json

import pytest
import pytorch_lightning as pl
import tiny
from pictures import photo

from gitdistill import load_student
from gitdistill.data import FileData
from gitdistill.data.video import FrameRule
from gitdistill.distillation.caption_trainer import CaptionTrainer
from gitdistill.use.export import export_run, training_log
from gitdistill.world import toybox_tokenizer


def test_scores_are_kept_when_the_log_cannot_be_read(tmp_path, monkeypatch):
    trainer = pl.Trainer(logger=pl.loggers.CSVLogger(tmp_path), accelerator="cpu")
    module = CaptionTrainer(tiny.student(), toybox_tokenizer())
    monkeypatch.setattr("gitdistill.use.export.training_log", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        export_run(module, trainer, {"test/cider": 1.5}, tmp_path / "end")
    assert json.loads((tmp_path / "end" / "scores.json").read_text())["test/cider"] == 1.5


def test_the_log_of_a_continued_training_is_one(tmp_path):
    def version(number, *steps):
        folder = tmp_path / f"version_{number}"
        folder.mkdir()
        lines = [f"{step},{number},0.5" for step in steps]
        (folder / "metrics.csv").write_text("\n".join(["step,version,train/loss", *lines]) + "\n")

    version(8, 9, 19, 29)  # another training
    version(9, 9, 19, 29)  # interrupted after its checkpoint at step 20
    version(10, 29, 39)  # continued from there
    (tmp_path / "version_11").mkdir()
    (tmp_path / "version_11" / "metrics.csv").write_text("step,test/cider\n0,1.5\n")  # scored afterwards
    rows = [(int(row["step"]), int(row["version"])) for row in training_log(tmp_path, every=10)]
    assert rows == [(9, 9), (19, 9), (29, 10), (39, 10)]


def test_a_student_is_used_with_the_frames_it_was_tested_with(tmp_path):
    trainer = pl.Trainer(logger=False, enable_checkpointing=False, accelerator="cpu")
    (tmp_path / "own").mkdir()
    photo(40, 40).save(tmp_path / "own" / "0.png")
    options = {"num_frames": tiny.FRAMES, "tokenizer": toybox_tokenizer(), "image_size": tiny.SIDE}
    trainer.datamodule = FileData(train=tmp_path / "own", sampling="random", **options)
    assert trainer.datamodule.rule.sampling == "random"
    export_run(CaptionTrainer(tiny.student(), toybox_tokenizer()), trainer, {}, tmp_path / "end")
    assert load_student(tmp_path / "end").rule == FrameRule(tiny.FRAMES)
