"""A fit that was interrupted ends as one that was not; several processes fit and score; the configs are valid."""

import csv
import io
import multiprocessing
import os
import random
import resource
import signal
import subprocess
import sys
import time
import zipfile
from inspect import signature
from pathlib import Path

import pytest
import pytorch_lightning as pl
import tiny
import torch
import yaml
from fits import QUIET, fit
from jsonargparse import ArgumentParser
from pytorch_lightning.strategies import DDPStrategy

from gitdistill import __main__
from gitdistill.data import FileData
from gitdistill.data.base import ClipLoader
from gitdistill.distillation.caption_trainer import CaptionTrainer
from gitdistill.distillation.resume import WholeCheckpoints, read_checkpoint
from gitdistill.distillation.trainer import DistillationTrainer
from gitdistill.models.git import GenerativeImageTextModel
from gitdistill.models.student import shared_options
from gitdistill.use.plan import teacher_config
from gitdistill.world.module import ToyboxData, toybox_tokenizer

TRAINING = {"state_dict": {}, "pytorch-lightning_version": "2.6.0"}
CONFIGS = Path(__file__).parents[2] / "configs"
SMALL = {
    "val_clips": 5,
    "test_clips": 5,
    "unseen_clips": 3,
    "batch_size": 2,
    "num_frames": 2,
    "image_size": 32,
}


def data(train_clips, **options):
    return ToyboxData(train_clips=train_clips, **SMALL, **options)


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
    monkeypatch.setattr("gitdistill.world.module.STREAM_EPOCH", 8)
    often = {"check_val_every_n_epoch": None, "val_check_interval": 3}
    whole, clips = fit(tmp_path / "whole", data(None), **often)
    assert len({clip for row in clips for clip in row}) == 18  # nothing twice
    for kill in (3, 4, 6):
        _, before = fit(tmp_path / f"{kill}", data(None), kill=kill, **often)
        weights, after = fit(tmp_path / f"{kill}", data(None), resume=True, **often)
        assert before + after == clips, kill
        assert all(torch.equal(weights[name], value) for name, value in whole.items()), kill


def test_continuing_at_the_end_of_one_epoch_after_another(tmp_path):
    whole, clips = fit(tmp_path, data(5))
    seen = []
    for kill in (3, 6, None):
        weights, part = fit(tmp_path / "killed", data(5), kill=kill, resume=bool(seen))
        seen += part
    assert seen == clips and all(torch.equal(weights[name], value) for name, value in whole.items())


def test_continuing_while_the_encoder_is_frozen_and_after(tmp_path):
    whole, _ = fit(tmp_path / "whole", data(5), freeze=3, steps=6)
    for kill in (2, 3, 4, 5):
        fit(tmp_path / f"{kill}", data(5), kill=kill, freeze=3, steps=6)
        weights, _ = fit(tmp_path / f"{kill}", data(5), resume=True, freeze=3, steps=6)
        assert all(torch.equal(weights[name], value) for name, value in whole.items()), kill


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
        model, files = content["model"]["init_args"], content["data"]["init_args"]
        with torch.device("meta"):
            shared = shared_options(GenerativeImageTextModel(teacher_config(model["teacher"])))
        assert shared["num_frames"] == files["num_frames"] and shared["vocab_size"] == 30522
        assert not shared.keys() & model["student"]["init_args"].keys()  # nothing is said twice
        assert files["tokenizer"] == model["teacher"]
        parts = [part.__init__ for part in FileData.__mro__ if "__init__" in vars(part)]
        assert files.keys() <= {name for part in parts for name in signature(part).parameters}


def test_a_damaged_checkpoint_is_named(tmp_path):
    keep = WholeCheckpoints()
    path = tmp_path / "new" / "last.ckpt"
    keep.save_checkpoint(TRAINING | {"state_dict": {"weight": torch.arange(5000.0)}}, path)
    assert read_checkpoint(path)["state_dict"]["weight"][-1] == 4999
    assert os.listdir(tmp_path / "new") == ["last.ckpt"]
    whole, damaged = path.read_bytes(), 0
    for cut in (0, 100, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:cut])
        with pytest.raises(ValueError, match=f"{path} is damaged"):
            keep.load_checkpoint(path)
    with zipfile.ZipFile(io.BytesIO(whole)) as archive:
        table = archive.start_dir
    places = random.Random(0).sample(range(table), 60)
    for place in [*places, *range(table, len(whole))]:
        change = (
            1 if place < table else 0x10
        )  # the bit that makes a record a folder, with nothing in it to read
        path.write_bytes(whole[:place] + bytes([whole[place] ^ change]) + whole[place + 1 :])
        try:
            assert torch.equal(read_checkpoint(path)["state_dict"]["weight"], torch.arange(5000.0)), place
        except ValueError as error:
            assert "last.ckpt is damaged" in str(error) and "\n" not in str(error)
            damaged += place in places
    assert damaged > 50  # the others fell into what nobody reads
    with pytest.raises(FileNotFoundError, match="there is no checkpoint .*gone.ckpt"):
        keep.load_checkpoint(tmp_path / "gone.ckpt")


@pytest.mark.parametrize("error", [MemoryError, PermissionError])
def test_what_is_no_damage_is_not_called_so(tmp_path, monkeypatch, error):
    WholeCheckpoints().save_checkpoint(TRAINING, tmp_path / "last.ckpt")

    def fail(path, map_location, weights_only):
        assert map_location == "cpu"  # there is room for it; Lightning copies it to where it belongs
        raise error("no room")

    monkeypatch.setattr(torch, "load", fail)
    with pytest.raises(error, match="^no room$"):
        WholeCheckpoints().load_checkpoint(tmp_path / "last.ckpt", map_location="cuda")


def test_a_checkpoint_that_cannot_be_written_leaves_the_old_one(tmp_path, monkeypatch):
    keep, path, save = WholeCheckpoints(), tmp_path / "last.ckpt", torch.save
    keep.save_checkpoint(TRAINING, path)

    def full_disk(checkpoint, file):
        file.write(b"begun")
        raise OSError(28, "No space left on device")

    with pytest.raises(Exception, match="(?i)pickle"):
        keep.save_checkpoint({"weights": torch.zeros(10_000), "step": lambda: 2}, path)
    monkeypatch.setattr(torch, "save", full_disk)
    with pytest.raises(OSError, match="No space left"):
        keep.save_checkpoint({"step": 3}, path)
    assert read_checkpoint(path) == TRAINING and os.listdir(tmp_path) == ["last.ckpt"]
    save({"step": random.Random()}, path)
    with pytest.raises(ValueError, match="refused: .*Random"):
        keep.load_checkpoint(path)


@pytest.mark.parametrize("limit", [100, 10_000, 400_000])
def test_a_disk_that_is_full_at_any_byte_leaves_the_old_checkpoint(tmp_path, limit):
    """The system refuses to write beyond a limit, as it does on a full disk."""
    keep, path, old = WholeCheckpoints(), tmp_path / "last.ckpt", resource.getrlimit(resource.RLIMIT_FSIZE)
    keep.save_checkpoint(TRAINING, path)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, old[1]))
    try:
        with pytest.raises(OSError, match=r"^could not save to [^\n]*, nothing was written: [^\n]*$"):
            keep.save_checkpoint(TRAINING | {"weights": torch.zeros(100_000)}, path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old)
        signal.signal(signal.SIGXFSZ, handler)
    assert read_checkpoint(path) == TRAINING and os.listdir(tmp_path) == ["last.ckpt"]


@pytest.mark.parametrize(
    "strategy, waits",
    [
        ("ddp", False),
        ("ddp_fork", False),
        ("ddp_spawn", False),
        ("ddp_find_unused_parameters_false", True),
        (DDPStrategy(), False),
        (DDPStrategy(find_unused_parameters=False), True),
    ],
)
def test_nobody_waits_for_what_gets_no_gradient(monkeypatch, strategy, waits):
    """What DistributedDataParallel is told, unless the user says otherwise."""
    told = {}
    monkeypatch.setattr(
        "pytorch_lightning.strategies.ddp.DistributedDataParallel", lambda **options: told.update(options)
    )
    module = CaptionTrainer(tiny.student(), toybox_tokenizer())
    module.trainer = pl.Trainer(devices=2, strategy=strategy, **QUIET)
    module.setup("fit")
    strategy = module.trainer.strategy
    strategy.model = module
    strategy.configure_ddp()
    assert told["module"] is module and told["find_unused_parameters"] is not waits
    del strategy._ddp_kwargs
    with pytest.raises(AttributeError, match="_ddp_kwargs"):  # should Lightning rename it
        module.setup("fit")


class Freeze(pl.Callback):
    """Notes the student's eyes and whether all processes have the same weights, after each step."""

    def __init__(self):
        self.eyes, self.same = [], []

    def on_train_batch_end(self, trainer, module, *_):
        weights = torch.cat([p.detach().flatten() for p in module.parameters()])
        everywhere = trainer.strategy.all_gather(weights).view(-1, len(weights))
        self.same.append(bool((everywhere == weights).all()))
        self.eyes.append(torch.cat([p.detach().flatten() for p in module.vision_encoder.parameters()]))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="forks")
@pytest.mark.parametrize("kept", [False, True])
def test_two_processes_distil(tmp_path, kept):
    """Seven clips in batches of two; no loss reaches the student's own head, and its eyes stay for two steps."""
    torch.manual_seed(0)
    options = {"cross_entropy": 0.0, "kl": 0.0, "hidden": 1.0, "freeze": 2, "max_length": 8}
    module = DistillationTrainer(
        tiny.teacher(), tiny.student(), **options, cache=tmp_path / "cache" if kept else None
    )
    watch = Freeze()
    trainer = pl.Trainer(
        devices=2, strategy="ddp_fork", max_epochs=3, callbacks=[watch, Report(tmp_path, watch)],
        enable_checkpointing=False, limit_val_batches=1, num_sanity_val_steps=0, **QUIET,
    )  # fmt: skip
    trainer.fit(module, ToyboxData(train_clips=7, fresh_captions=False, **SMALL))
    for rank in (0, 1):
        found = torch.load(tmp_path / f"rank-{rank}")
        assert found == {"steps": 6, "same": True, "frozen": True, "moved": True}, rank


class Report(pl.Callback):
    """What a forked process found, in a file."""

    def __init__(self, folder, watch):
        self.folder, self.watch = folder, watch

    def on_train_end(self, trainer, module):
        eyes = self.watch.eyes
        found = {"steps": trainer.global_step, "same": all(self.watch.same)}
        found |= {"frozen": torch.equal(eyes[0], eyes[1]), "moved": not torch.equal(eyes[1], eyes[-1])}
        torch.save(found, self.folder / f"rank-{trainer.global_rank}")


def config(folder, kind, steps=12, **trainer):
    """A config file of a short fit in `folder`, with dropout: "plain", or a distillation with "cache" or "none"."""
    tiny.git().save_pretrained(folder / "teacher")
    tiny.teacher().tokenizer.save_pretrained(folder / "teacher")
    tiny.student(dropout=0.2).save_pretrained(folder / "student")
    student = {
        "class_path": "gitdistill.StudentCandidateV1.from_pretrained",
        "init_args": {"folder": "../student"},
    }
    model = {
        "class_path": "gitdistill.distillation.caption_trainer.CaptionTrainer",
        "init_args": {"model": student},
    }
    if kind != "plain":
        options = {"teacher": "../teacher", "student": student, "freeze": 4}
        model = {"class_path": "gitdistill.DistillationTrainer", "init_args": options}
    if kind == "cache":
        options["cache"] = "cache"
    keep = {"dirpath": "kept", "every_n_train_steps": 1, "save_top_k": 0, "save_last": True}
    content = {
        "seed_everything": 3,
        "trainer": QUIET
        | {
            "max_steps": steps,
            "limit_val_batches": 1,
            "num_sanity_val_steps": 0,
            "logger": {
                "class_path": "pytorch_lightning.loggers.CSVLogger",
                "init_args": {"save_dir": "runs"},
            },
            "callbacks": [{"class_path": "pytorch_lightning.callbacks.ModelCheckpoint", "init_args": keep}],
        }
        | trainer,
        "model": model | {"init_args": model["init_args"] | {"warmup": 2, "max_length": 8}},
        "data": {
            "class_path": "gitdistill.world.ToyboxData",
            "init_args": {"train_clips": 7, "fresh_captions": False, **SMALL},
        },
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


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["plain", "cache"])
def test_ten_kills(tmp_path, kind):
    """SIGKILL at ten random moments: of the whole run and, every other time, of the steps in it."""
    config(tmp_path, kind)
    (tmp_path / "whole").mkdir()
    finish(start(tmp_path / "whole"), tmp_path / "whole")  # brings the server of processes up
    begun, process = time.monotonic(), start(tmp_path / "again")
    last = tmp_path / "again" / "kept" / "last.ckpt"
    while not changed(last):
        time.sleep(0.002)
    steps, whole = time.monotonic() - begun, finish(process, tmp_path / "again")
    lasts, kills, draw, runs = time.monotonic() - begun, [], random.Random(0), 0
    while len(kills) < 10:
        runs += 1
        folder = tmp_path / f"killed-{runs}"
        while len(kills) < 10:
            last = folder / "kept" / "last.ckpt"
            before, process = changed(last), start(folder)
            if len(kills) % 2:
                while process.exitcode is None and changed(last) == before:
                    time.sleep(0.002)
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
        weights = finish(process, folder)
        assert all(torch.equal(weights[name], value) for name, value in whole.items()), runs
    assert sum(kills) >= 3  # so many in the midst of training


@pytest.mark.skipif(not hasattr(os, "fork"), reason="forks")
def test_killing_two_processes_together(tmp_path):
    """SIGKILL of both at random moments of training, twice; each has random numbers of its own to go on with."""
    config(tmp_path, "cache", devices=2, strategy="ddp_fork")
    folder, draw = tmp_path / "killed", random.Random(0)
    whole = finish(start(tmp_path / "whole"), tmp_path / "whole")
    last, steps = folder / "kept" / "last.ckpt", []
    for wait in (2, 3):  # checkpoints, and some of a step
        process = start(folder)
        for _ in range(wait):
            before = changed(last)
            while changed(last) == before:
                assert process.exitcode is None, (folder / "said").read_text()[-2000:]
                time.sleep(0.002)
        time.sleep(draw.uniform(0, 0.1))
        os.killpg(process.pid, signal.SIGKILL)
        process.join()
        kept = read_checkpoint(last)
        assert len(kept["callbacks"]["ExactResume"]["processes"]) == 2
        steps.append(kept["global_step"])
    assert 0 < steps[0] < steps[1] < 12
    weights = finish(start(folder), folder)
    assert all(torch.equal(weights[name], value) for name, value in whole.items())


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
