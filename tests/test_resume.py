"""A fit that was interrupted ends as one that was not; several processes score as one; the configs are valid."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import pytorch_lightning as pl
import tiny
import torch
import yaml
from jsonargparse import ArgumentParser
from pytorch_lightning.callbacks import ModelCheckpoint

from gitdistill.__main__ import KeepRandomNumbers
from gitdistill.data import FileData
from gitdistill.data.module import ClipLoader, GlyphData, glyph_tokenizer
from gitdistill.trainer import CaptionTrainer

CONFIGS = Path(__file__).parents[1] / "configs"
SMALL = {"val_clips": 5, "test_clips": 5, "unseen_clips": 3, "batch_size": 2, "frames": 2, "image_size": 32}
QUIET = {"accelerator": "cpu", "enable_progress_bar": False, "enable_model_summary": False, "logger": False}


class Killed(Exception):
    pass


class Watch(pl.Callback):
    """Notes the clips of each step; gives up before step `kill`."""

    def __init__(self, kill=None):
        self.kill, self.clips = kill, []

    def on_train_batch_start(self, trainer, module, batch, index):
        if trainer.global_step == self.kill:
            raise Killed
        self.clips.append(batch["clip"].tolist())


def fit(folder, data, kill=None, resume=False, steps=9, **options):
    """(weights, clips of each step) of a fit whose student has dropout; 5 clips or so an epoch."""
    pl.seed_everything(3, verbose=False)
    module = CaptionTrainer(tiny.student(dropout=0.2), warmup=2)
    watch, keep = Watch(kill), ModelCheckpoint(folder, every_n_train_steps=1, save_last=True, save_top_k=0)
    trainer = pl.Trainer(
        max_steps=steps, callbacks=[keep, watch, KeepRandomNumbers()], limit_val_batches=1, num_sanity_val_steps=0,
        **QUIET, **options,
    )  # fmt: skip
    try:
        trainer.fit(module, data, ckpt_path=str(folder / "last.ckpt") if resume else None)
    except Killed:
        assert kill is not None
    return {name: value.clone() for name, value in module.state_dict().items()}, watch.clips


def data(train_clips, **options):
    return GlyphData(train_clips=train_clips, **SMALL, **options)


@pytest.mark.filterwarnings("error:You're resuming")
@pytest.mark.parametrize("workers", [0, 2])
def test_continuing_within_and_between_epochs(tmp_path, workers):
    """Epochs of three steps; stopped after each of the first seven steps."""
    whole, clips = fit(tmp_path / "whole", data(5, workers=0))
    assert len(clips) == 9 and {tuple(sorted(sum(clips[i : i + 3], []))) for i in (0, 3, 6)} == {
        (0, 1, 2, 3, 4)
    }
    for kill in range(1, 8) if not workers else [4]:
        _, before = fit(tmp_path / f"{kill}", data(5, workers=workers), kill=kill)
        weights, after = fit(tmp_path / f"{kill}", data(5, workers=workers), resume=True)
        assert before + after == clips, kill
        assert all(torch.equal(weights[name], value) for name, value in whole.items()), kill


def test_continuing_a_stream_with_validation_in_between(tmp_path, monkeypatch):
    monkeypatch.setattr("gitdistill.data.module.STREAM_EPOCH", 8)
    often = {"check_val_every_n_epoch": None, "val_check_interval": 3}
    whole, clips = fit(tmp_path / "whole", data(None), **often)
    assert len({clip for row in clips for clip in row}) == 18  # nothing twice
    for kill in (3, 4, 6):
        _, before = fit(tmp_path / f"{kill}", data(None), kill=kill, **often)
        weights, after = fit(tmp_path / f"{kill}", data(None), resume=True, **often)
        assert before + after == clips, kill
        assert all(torch.equal(weights[name], value) for name, value in whole.items()), kill


def test_an_epoch_is_not_continued_with_other_batches():
    loader = data(5).train_dataloader()
    next(iter(loader))
    state = loader.state_dict()
    assert isinstance(loader, ClipLoader) and state["batches"] == 1
    with pytest.raises(ValueError, match="of was 3 and is 4, use the same settings|of was 3 and is 4"):
        data(7).train_dataloader().load_state_dict(state)


def scores(devices, batch_size=2):
    """Test scores of a random student; 5 and 3 clips do not come out even on two processes."""
    module = CaptionTrainer(tiny.student().eval(), max_length=8)
    trainer = pl.Trainer(devices=devices, strategy="ddp_fork" if devices > 1 else "auto", **QUIET)
    clips = GlyphData(train_clips=5, **SMALL | {"batch_size": batch_size})
    found = {}
    for part in trainer.test(module, clips, verbose=False):
        found |= part
    return found


@pytest.mark.skipif(not hasattr(os, "fork"), reason="forks")
def test_two_processes_score_as_one():
    one, two = scores(1), scores(2)
    assert one.keys() == two.keys() and len(one) > 20
    for name, value in one.items():
        if "cross_entropy" in name:
            assert two[name] == pytest.approx(value, rel=1e-5)
        else:
            assert two[name] == pytest.approx(value, rel=1e-12, nan_ok=True), name


def test_scores_do_not_depend_on_the_batches():
    one, whole = scores(1), scores(1, batch_size=5)
    assert one == pytest.approx(whole, rel=1e-5, nan_ok=True)


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.yaml")), ids=lambda path: path.name)
def test_configs_are_valid(path):
    """Every name in a config exists, and takes what it is given; nothing is built or fetched."""
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--seed_everything", type=int)
    parser.add_class_arguments(pl.Trainer, "trainer", fail_untyped=False)
    parser.add_subclass_arguments(pl.LightningModule, "model", fail_untyped=False)
    parser.add_subclass_arguments(pl.LightningDataModule, "data", fail_untyped=False)
    parser.add_argument("--export", type=str)
    content = yaml.safe_load(path.read_text())
    parser.parse_object(content)
    content["data"].setdefault("init_args", {})["batchsize"] = 3
    with pytest.raises(Exception, match="batchsize"):
        parser.parse_object(content)


def test_the_configs_of_real_data_fit_their_teachers():
    for name in ("coco", "msrvtt"):
        content = yaml.safe_load((CONFIGS / f"{name}.yaml").read_text())
        student, files = content["model"]["init_args"]["student"]["init_args"], content["data"]["init_args"]
        assert student["frames"] == files["frames"] and student["vocab_size"] == 30522
        assert files["tokenizer"] == content["model"]["init_args"]["teacher"]
        assert files.keys() <= set(FileData.__init__.__code__.co_varnames)


CONFIG = {
    "seed_everything": 3,
    "trainer": {
        **QUIET,
        "max_steps": 40,
        "limit_val_batches": 1,
        "num_sanity_val_steps": 0,
        "logger": {"class_path": "pytorch_lightning.loggers.CSVLogger", "init_args": {"save_dir": "runs"}},
        "callbacks": [
            {
                "class_path": "pytorch_lightning.callbacks.ModelCheckpoint",
                "init_args": {
                    "dirpath": "kept",
                    "every_n_train_steps": 1,
                    "save_top_k": 0,
                    "save_last": True,
                },
            }
        ],
    },
    "model": {
        "class_path": "gitdistill.trainer.CaptionTrainer",
        "init_args": {
            "warmup": 2,
            "model": {
                "class_path": "gitdistill.StudentCandidateV1",
                "init_args": {"vocab_size": len(glyph_tokenizer()), "width": 32, "heads": 2, "dropout": 0.2},
            },
        },
    },
    "data": {
        "class_path": "gitdistill.data.GlyphData",
        "init_args": {"train_clips": 12, **SMALL, "image_size": 96},
    },
}


@pytest.mark.slow
def test_a_killed_run_ends_with_the_same_weights(tmp_path):
    """SIGKILL at random moments, until the run gets through."""
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(CONFIG))
    command = [sys.executable, "-m", "gitdistill", "fit", "--config", "../config.yaml", "--ckpt_path", "last"]
    here = os.environ | {"PYTHONPATH": str(CONFIGS.parent)}
    kept, kills = {}, 0
    for name in ("whole", "killed"):
        folder = tmp_path / name
        folder.mkdir()
        while True:
            process = subprocess.Popen(
                command, cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, env=here
            )
            last = folder / "kept" / "last.ckpt"
            if name == "killed" and kills < 4:
                before = last.stat().st_mtime if last.exists() else 0
                while process.poll() is None and (not last.exists() or last.stat().st_mtime == before):
                    time.sleep(0.01)
                time.sleep(0.3 * kills)
                process.send_signal(signal.SIGKILL)
                process.wait()
                kills += 1
                continue
            _, error = process.communicate()
            assert process.returncode == 0, error.decode()[-2000:]
            break
        kept[name] = torch.load(last, weights_only=True)
    assert kept["whole"]["global_step"] == kept["killed"]["global_step"] == 40
    for name, value in kept["whole"]["state_dict"].items():
        assert torch.equal(kept["killed"]["state_dict"][name], value), name
