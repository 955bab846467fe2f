"""A fit that was interrupted ends as one that was not; several processes fit and score."""

import csv
import io
import multiprocessing
import os
import random
import signal
import subprocess
import sys
import time
import warnings
import zipfile
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import MagicMock

import pytest
import pytorch_lightning as pl
import tiny
import torch
import yaml
from fakes import full_disk
from fits import QUIET, fit, fit_quietly, forks, from_class
from pytorch_lightning.strategies import DDPStrategy
from torch.nn.utils import parameters_to_vector

from gitdistill import __main__
from gitdistill.data.base import ClipLoader
from gitdistill.distillation.caption_trainer import CaptionTrainer
from gitdistill.distillation.resume import ExactResume, WholeCheckpoints, read_checkpoint
from gitdistill.distillation.trainer import DistillationTrainer
from gitdistill.world.module import ToyboxData, toybox_tokenizer

TRAINING = {"state_dict": {}, "pytorch-lightning_version": "2.6.0"}
CONFIGS = Path(__file__).parents[2] / "configs"
SMALL = {"val_clips": 5, "test_clips": 5, "unseen_clips": 3, "batch_size": 2}
SMALL |= {"num_frames": 2, "image_size": 32}


def data(train_clips, **options):
    return ToyboxData(train_clips=train_clips, **SMALL, **options)


def same_weights(found, expected):
    torch.testing.assert_close(found, expected, rtol=0, atol=0)


@pytest.mark.filterwarnings("error:You're resuming")
@pytest.mark.parametrize("workers", [0, 2])
def test_continuing_within_and_between_epochs(tmp_path, workers):
    """Epochs of three steps; stopped after each of the first seven steps."""
    whole, clips = fit(tmp_path / "whole", data(5, workers=0))
    epochs = [sorted(sum(clips[i : i + 3], [])) for i in (0, 3, 6)]
    assert len(clips) == 9 and epochs == [[0, 1, 2, 3, 4]] * 3
    for kill in range(1, 8) if not workers else [4]:
        _, before = fit(tmp_path / f"{kill}", data(5, workers=workers), kill=kill)
        weights, after = fit(tmp_path / f"{kill}", data(5, workers=workers), resume=True)
        assert before + after == clips, kill
        same_weights(weights, whole)


def test_continuing_a_stream_with_validation_in_between(tmp_path, monkeypatch):
    monkeypatch.setattr("gitdistill.world.module.STREAM_EPOCH", 8)
    often = {"check_val_every_n_epoch": None, "val_check_interval": 3}
    whole, clips = fit(tmp_path / "whole", data(None), **often)
    assert len({clip for row in clips for clip in row}) == 18  # nothing twice
    for kill in (3, 4, 6):
        _, before = fit(tmp_path / f"{kill}", data(None), kill=kill, **often)
        weights, after = fit(tmp_path / f"{kill}", data(None), resume=True, **often)
        assert before + after == clips, kill
        same_weights(weights, whole)


def test_continuing_while_the_encoder_is_frozen_and_after(tmp_path):
    whole, _ = fit(tmp_path / "whole", data(5), freeze=3, steps=6)
    for kill in (2, 3, 4, 5):
        fit(tmp_path / f"{kill}", data(5), kill=kill, freeze=3, steps=6)
        weights, _ = fit(tmp_path / f"{kill}", data(5), resume=True, freeze=3, steps=6)
        same_weights(weights, whole)


@pytest.mark.parametrize("interval, told", [(2, False), (3, True), (1.0, False)])
def test_checkpoints_within_a_step_are_told(interval, told):
    """What has been accumulated of a step is in no checkpoint."""
    trainer = SimpleNamespace(fit_loop=MagicMock(), val_check_interval=interval, accumulate_grad_batches=2)
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        ExactResume().on_train_start(trainer, None)
    assert bool(seen) is told and ("is no multiple of" in "".join(str(w.message) for w in seen)) is told


def test_an_epoch_is_not_continued_with_other_batches():
    loader = data(5).train_dataloader()
    next(iter(loader))
    state = loader.state_dict()
    assert isinstance(loader, ClipLoader) and state["batches"] == 1
    with pytest.raises(ValueError, match="of was 3 and is 4.*use the same settings"):
        data(7).train_dataloader().load_state_dict(state)


def scores(devices, batch_size=2):
    """Test scores of a random student; 5 and 3 clips do not come out even on two processes."""
    module = CaptionTrainer(tiny.student().eval(), toybox_tokenizer(), max_length=8)
    trainer = pl.Trainer(devices=devices, strategy="ddp_fork" if devices > 1 else "auto", **QUIET)
    clips = ToyboxData(train_clips=5, **SMALL | {"batch_size": batch_size})
    found = {}
    for part in trainer.test(module, clips, verbose=False):
        found |= part
    return found


@forks
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


def test_a_missing_or_damaged_checkpoint_is_named(tmp_path):
    """More damage: `tests/test_fuzz.py`."""
    keep, path = WholeCheckpoints(), tmp_path / "new" / "last.ckpt"
    with pytest.raises(FileNotFoundError, match="there is no checkpoint .*last.ckpt"):
        keep.load_checkpoint(path)
    keep.save_checkpoint(TRAINING | {"state_dict": {"weight": torch.arange(5.0)}}, path)
    assert os.listdir(tmp_path / "new") == ["last.ckpt"]
    whole = path.read_bytes()
    for cut in (0, 100, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:cut])
        with pytest.raises(ValueError, match=f"{path} is damaged"):
            keep.load_checkpoint(path)
    with zipfile.ZipFile(io.BytesIO(whole)) as archive:
        table = archive.start_dir
    for place in range(table, len(whole)):
        # the bit that makes a record a folder, with nothing in it to read
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 0x10]) + whole[place + 1 :])
        try:
            assert torch.equal(read_checkpoint(path)["state_dict"]["weight"], torch.arange(5.0)), place
        except ValueError as error:
            assert "last.ckpt is damaged" in str(error) and "\n" not in str(error)


@pytest.mark.parametrize("error", [MemoryError, PermissionError])
def test_what_is_no_damage_is_not_called_so(tmp_path, monkeypatch, error):
    WholeCheckpoints().save_checkpoint(TRAINING, tmp_path / "last.ckpt")

    def fail(path, map_location, weights_only):
        assert map_location == "cpu"  # there is room for it; Lightning copies it to where it belongs
        raise error("no room")

    monkeypatch.setattr(torch, "load", fail)
    with pytest.raises(error, match="^no room$"):
        WholeCheckpoints().load_checkpoint(tmp_path / "last.ckpt", map_location="cuda")


def test_what_cannot_be_pickled_leaves_the_old_checkpoint_and_what_is_no_data_is_refused(tmp_path):
    keep, path = WholeCheckpoints(), tmp_path / "last.ckpt"
    keep.save_checkpoint(TRAINING, path)
    with pytest.raises(Exception, match="(?i)pickle"):
        keep.save_checkpoint({"weights": torch.zeros(10_000), "step": lambda: 2}, path)
    assert read_checkpoint(path) == TRAINING and os.listdir(tmp_path) == ["last.ckpt"]
    torch.save({"step": random.Random()}, path)
    with pytest.raises(ValueError, match="refused: .*Random"):
        keep.load_checkpoint(path)


@pytest.mark.parametrize("limit", [100, 10_000, 400_000])
def test_a_disk_that_is_full_at_any_byte_leaves_the_old_checkpoint(tmp_path, limit):
    keep, path = WholeCheckpoints(), tmp_path / "last.ckpt"
    keep.save_checkpoint(TRAINING, path)
    refused = pytest.raises(OSError, match=r"^could not save to [^\n]*, nothing was written: [^\n]*$")
    with full_disk(limit), refused:
        keep.save_checkpoint(TRAINING | {"weights": torch.zeros(100_000)}, path)
    assert read_checkpoint(path) == TRAINING and os.listdir(tmp_path) == ["last.ckpt"]


@pytest.mark.parametrize(
    "strategy, waits",
    [
        ("ddp", False),
        ("ddp_find_unused_parameters_false", True),
        (DDPStrategy(), False),
        (DDPStrategy(find_unused_parameters=False), True),
    ],
)
def test_nobody_waits_for_what_gets_no_gradient(monkeypatch, strategy, waits):
    """What DistributedDataParallel is told, unless the user says otherwise."""
    told, parallel = {}, "pytorch_lightning.strategies.ddp.DistributedDataParallel"
    monkeypatch.setattr(parallel, lambda **options: told.update(options))
    module = CaptionTrainer(tiny.student(), toybox_tokenizer())
    module.trainer = pl.Trainer(devices=2, strategy=strategy, **QUIET)
    module.setup("fit")
    strategy = module.trainer.strategy
    strategy.model = module
    strategy.configure_ddp()
    assert told["module"] is module and told["find_unused_parameters"] is not waits


class Watch(pl.Callback):
    """Compares the weights of all processes, and the vision encoder's from step to step; each writes a file."""

    def __init__(self, folder):
        self.folder, self.encoder, self.same = folder, [], []

    def on_train_batch_end(self, trainer, module, *_):
        weights = parameters_to_vector(module.parameters())
        everywhere = trainer.strategy.all_gather(weights).view(-1, len(weights))
        self.same.append(bool((everywhere == weights).all()))
        self.encoder.append(parameters_to_vector(module.vision_encoder.parameters()).detach().clone())

    def on_train_end(self, trainer, module):
        first, second, *_, last = self.encoder
        found = {"steps": trainer.global_step, "same": all(self.same)}
        found |= {"frozen": torch.equal(first, second), "moved": not torch.equal(second, last)}
        torch.save(found, self.folder / f"rank-{trainer.global_rank}")


@forks
@pytest.mark.parametrize("kept", [False, True])
def test_two_processes_distil(tmp_path, kept):
    """Seven clips in batches of two; no loss reaches the student's own head; its encoder stays for two steps."""
    torch.manual_seed(0)
    cache = tmp_path / "cache" if kept else None
    losses = {"cross_entropy": 0.0, "kl": 0.0, "hidden": 1.0}
    module = DistillationTrainer(
        tiny.teacher(), tiny.student(), **losses, freeze=2, max_length=8, cache=cache
    )
    two = {"devices": 2, "strategy": "ddp_fork", "callbacks": [Watch(tmp_path)]}
    fit_quietly(module, data(7, fresh_captions=False), max_epochs=3, limit_val_batches=1, **two)
    for rank in (0, 1):
        found = torch.load(tmp_path / f"rank-{rank}")
        assert found == {"steps": 6, "same": True, "frozen": True, "moved": True}, rank


def config(folder, kind, steps=12, **trainer):
    """A config file of a short fit in `folder`, with dropout: "plain", or a distillation with "cache" or "none"."""
    tiny.git().save_pretrained(folder / "teacher")
    tiny.teacher().tokenizer.save_pretrained(folder / "teacher")
    tiny.student(dropout=0.2).save_pretrained(folder / "student")
    student = from_class("StudentCandidateV1.from_pretrained", folder="../student")
    options = {"warmup": 2, "max_length": 8}
    if kind == "plain":
        model = from_class(
            "distillation.caption_trainer.CaptionTrainer", model=student, tokenizer="toybox", **options
        )
    else:
        options |= {"cache": "cache"} if kind == "cache" else {}
        model = from_class("DistillationTrainer", teacher="../teacher", student=student, freeze=4, **options)
    keep = {"dirpath": "kept", "every_n_train_steps": 1, "save_top_k": 0, "save_last": True}
    lightning = {
        "logger": {"class_path": "pytorch_lightning.loggers.CSVLogger", "init_args": {"save_dir": "runs"}},
        "callbacks": [{"class_path": "pytorch_lightning.callbacks.ModelCheckpoint", "init_args": keep}],
        "max_steps": steps,
        "limit_val_batches": 1,
        "num_sanity_val_steps": 0,
    }
    content = {
        "seed_everything": 3,
        "trainer": QUIET | lightning | trainer,
        "model": model,
        "data": from_class("world.ToyboxData", train_clips=7, fresh_captions=False, **SMALL),
    }
    (folder / "config.yaml").write_text(yaml.safe_dump(content))


def run(folder):
    """`python -m gitdistill fit`, in a process that has everything imported already."""
    os.setpgrp()
    torch.set_num_threads(1)
    os.chdir(folder)
    with open("said", "a") as said:
        os.dup2(said.fileno(), 1), os.dup2(said.fileno(), 2)
    sys.argv = ["gitdistill", "fit", "--config", "../config.yaml", "--ckpt_path", "last"]
    __main__.main()


def start(folder):
    folder.mkdir(exist_ok=True)
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["gitdistill.__main__", "gitdistill.world.pretrain", "pytest"])
    process = context.Process(target=run, args=(folder,))
    process.start()
    return process


def finish(process, folder):
    process.join()
    assert process.exitcode == 0, (folder / "said").read_text()[-2000:]
    kept = torch.load(folder / "kept" / "last.ckpt", weights_only=True)
    assert kept["global_step"] == 12
    return kept["state_dict"]


def changed(path):
    return path.stat().st_mtime_ns if path.exists() else 0


def wait_for_checkpoint(process, folder):
    """Until a running fit has written another one, or has ended."""
    last = folder / "kept" / "last.ckpt"
    before = changed(last)
    while process.exitcode is None and changed(last) == before:
        time.sleep(0.002)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["plain", "cache"])
def test_ten_kills(tmp_path, kind):
    """SIGKILL at ten random moments: of the whole run and, every other time, of the steps in it."""
    config(tmp_path, kind)
    (tmp_path / "whole").mkdir()
    finish(start(tmp_path / "whole"), tmp_path / "whole")  # brings the server of processes up
    begun, process = time.monotonic(), start(tmp_path / "again")
    wait_for_checkpoint(process, tmp_path / "again")
    steps, whole = time.monotonic() - begun, finish(process, tmp_path / "again")
    lasts, kills, draw, runs = time.monotonic() - begun, [], random.Random(0), 0
    while len(kills) < 10:
        runs += 1
        folder = tmp_path / f"killed-{runs}"
        while len(kills) < 10:
            last = folder / "kept" / "last.ckpt"
            before, process = changed(last), start(folder)
            if len(kills) % 2:
                wait_for_checkpoint(process, folder)
                process.join(draw.uniform(0, (lasts - steps) / 3))
            else:
                process.join(draw.uniform(0, lasts))
            if process.exitcode is not None:
                break
            process.kill()
            process.join()
            kills.append(changed(last) != before)
        if process.exitcode == -signal.SIGKILL:
            process = start(folder)
        same_weights(finish(process, folder), whole)
    assert sum(kills) >= 3  # so many in the midst of training


@forks
def test_killing_two_processes_together(tmp_path):
    """SIGKILL of both at random moments of training, twice; each has random numbers of its own to go on with."""
    config(tmp_path, "cache", devices=2, strategy="ddp_fork")
    folder, draw = tmp_path / "killed", random.Random(0)
    whole = finish(start(tmp_path / "whole"), tmp_path / "whole")
    last, steps = folder / "kept" / "last.ckpt", []
    for wait in (2, 3):  # checkpoints, and some of a step
        process = start(folder)
        for _ in range(wait):
            wait_for_checkpoint(process, folder)
            assert process.exitcode is None, (folder / "said").read_text()[-2000:]
        time.sleep(draw.uniform(0, 0.1))
        os.killpg(process.pid, signal.SIGKILL)
        process.join()
        kept = read_checkpoint(last)
        assert len(kept["callbacks"]["ExactResume"]["processes"]) == 2
        steps.append(kept["global_step"])
    assert 0 < steps[0] < steps[1] < 12
    same_weights(finish(start(folder), folder), whole)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["none", "cache"])
def test_the_command_line_with_two_processes(tmp_path, kind):
    """Seven clips on two processes; their test scores are those that one finds of the same checkpoint."""
    config(tmp_path, kind, steps=4)
    folder = tmp_path / "run"
    folder.mkdir()

    def call(command, *arguments):
        line = [sys.executable, "-m", "gitdistill", command, "--config", "../config.yaml", *arguments]
        here = os.environ | {"PYTHONPATH": str(CONFIGS.parent), "OMP_NUM_THREADS": "1"}
        done = subprocess.run(line, cwd=folder, env=here, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-3000:]
        with max(folder.glob("runs/*/version_*/metrics.csv"), key=changed).open() as file:
            return [row for row in csv.DictReader(file) if row.get("test/cider")][-1]

    two = ["--trainer.devices=2", "--trainer.strategy=ddp", "--trainer.accelerator=cpu"]
    fitted = call("fit", *two, "--export=exported")
    assert (folder / "exported" / "scores.json").is_file()
    ends = [call("test", "--ckpt_path=kept/last.ckpt", *options) for options in (two, [])]
    for name, value in ends[1].items():
        if name.startswith(("test/", "unseen/")):
            tolerance = 1e-5 if "cross_entropy" in name else 1e-9
            assert float(ends[0][name]) == pytest.approx(float(value), rel=tolerance, nan_ok=True), name
    assert fitted.keys() >= {"test/cider", "unseen/cider"}
