"""The command line: a short fit from end to end, and a user's mistakes in one line."""

import json
import os
import re
from types import SimpleNamespace

import pytest
import tiny
import tiny_git
import torch
from pictures import photo
from transformers import GitForCausalLM

from gitdistill import load_student
from gitdistill.__main__ import reason
from gitdistill.use.fit import best_checkpoint
from gitdistill.world.module import toybox_tokenizer

QUIET = ["--trainer.accelerator=cpu", "--trainer.max_steps=1", "--trainer.logger=false"]
QUIET += ["--trainer.enable_progress_bar=false", "--trainer.enable_model_summary=false"]
SIZES = dict.fromkeys(("val_clips", "test_clips", "unseen_clips", "batch_size"), 2) | {"train_clips": 4}
SIZES |= {"num_frames": tiny.FRAMES, "image_size": tiny.SIDE}
DATA = ["--data=gitdistill.world.ToyboxData", *(f"--data.{name}={value}" for name, value in SIZES.items())]
DISTILLED = ["--model=gitdistill.DistillationTrainer", "--model.student=gitdistill.StudentCandidateV1"]
DISTILLED += ["--model.student.vocab_size=359", "--model.student.backbone=toybox"]
CAPTIONS = ["--model=gitdistill.distillation.caption_trainer.CaptionTrainer", "--model.tokenizer=toybox"]


@pytest.fixture
def own(run, tmp_path):
    """Arguments of a fit with a tiny teacher on two pictures, nothing more."""
    tiny.git().save_pretrained("teacher")
    toybox_tokenizer().save_pretrained("teacher")
    (tmp_path / "own").mkdir()
    for name in ("0.png", "1.png"):
        photo(40, 40).save(tmp_path / "own" / name)
    options = {"train": "own", "num_frames": 1, "image_size": 96, "batch_size": 2, "tokenizer": "toybox"}
    data = ["--data=gitdistill.data.FileData", *(f"--data.{name}={value}" for name, value in options.items())]
    return [*QUIET, *DISTILLED, "--model.teacher=./teacher", *data]


def test_a_fit_exports_what_it_tested(run, tmp_path):
    tiny.git().save_pretrained(tmp_path / "start")
    model = ["--model.model=gitdistill.world.pretrain.embedded_git", "--model.model.folder=start"]
    assert run("fit", *QUIET, *CAPTIONS, *model, *DATA, "--export=end") == 0
    files = {path.name for path in (tmp_path / "end").iterdir()}
    assert files >= {"config.json", "model.safetensors", "tokenizer.json", "scores.json"}
    scores = json.loads((tmp_path / "end" / "scores.json").read_text())
    assert scores["steps"] == 1 and "unseen/cider" in scores
    assert {path.name for path in tmp_path.iterdir()} == {"start", "end", "runs"}  # nothing else is left here
    GitForCausalLM.from_pretrained(tmp_path / "end")  # transformers reads it


def test_pictures_alone_are_enough_for_a_fit(run, own, tmp_path, capsys):
    """No captions, no validation, no test, no logger, no checkpoints: a student all the same."""
    own = [*own, "--trainer.enable_checkpointing=false", "--export=end"]
    assert run("fit", *own, "--trainer.fast_dev_run=true") == 0
    assert not (tmp_path / "end").exists()
    assert run("fit", *own) == 0
    assert "not tested: the data have no test clips" in capsys.readouterr().err
    assert json.loads((tmp_path / "end" / "scores.json").read_text())["steps"] == 1
    assert not (tmp_path / "end" / "log.csv").exists()
    assert len(load_student("end").caption_files(["own/0.png"])) == 1


def test_other_words_than_the_teachers(run, own):
    tiny_git.tokenizer().save_pretrained("words")
    assert "tokenizer has 30 words, not the network's 359" in run("fit", *own, "--data.tokenizer=words")
    assert "FileData needs tokenizer=, the teacher's" in run("fit", *own, "--data.tokenizer=null")


@pytest.mark.parametrize("arguments, message", [
    (["--config=nope.yaml"], "File does not exist: .*nope.yaml"),
    ([], "the following arguments are required: fit.data, fit.model"),
    ([*DATA, "--data.wrong=3"], "ToyboxData': Option 'wrong' is not accepted$"),
    ([*DATA, "--data.batch_size=x"], "Expected a <class 'int'>. Got value: x$"),
    (["--trainer.max_steps=x"], "\"trainer.max_steps\": Expected a <class 'int'>. Got value: x$"),
    ([*DISTILLED, "--model.teacher=toybox", *DATA, "--trainer.accelerator=tpu"], "TPU|torch_xla"),
    ([*DISTILLED, "--model.teacher=./nowhere", *DATA], "gitdistill: no folder ./nowhere$"),
    ([*DISTILLED, "--model.teacher=.", *DATA], "is no checkpoint: it has neither"),
])  # fmt: skip
def test_a_mistake_is_one_line(run, tmp_path, arguments, message):
    line = run("fit", *QUIET, *arguments)
    assert re.search(message, line) and line.startswith("gitdistill: ") and "\n" not in line
    assert not list(tmp_path.iterdir())


def test_what_is_no_class_gives_its_own_error_alone(run, tmp_path):
    (tmp_path / "model.yaml").write_text("model: [1]")
    (tmp_path / "callback.yaml").write_text("trainer: {callbacks: [5]}")
    right = r"\(give a class path, or a mapping with class_path and init_args\)"
    line = run("fit", "--config=model.yaml")
    assert re.fullmatch(f'.* key "model": Not a valid subclass of LightningModule {right}', line)
    line = run("fit", "--config=callback.yaml")
    assert re.search(f"Callback. Got value: 5 {right}; ", line) and "expect one of" not in line, line


@pytest.mark.parametrize("rows, message", [
    (["a0: &a0 [x, x]", *(f"a{i}: &a{i} [{f'*a{i - 1}, ' * 9}]" for i in range(1, 10))], "more than 200,000"),
    (["a: &a [b, *a]"], "alias .a contains itself"),
    (["[" * 500], "100 levels"),
    (["a: &a {<<: *a}"], "alias .a contains itself"),
])  # fmt: skip
def test_a_configuration_that_stands_for_too_much(run, tmp_path, rows, message):
    (tmp_path / "bomb.yaml").write_text("\n".join(rows))
    for command in ("fit", "plan"):
        assert re.search(message, line := run(command, "--config=bomb.yaml")) and "\n" not in line, line


@pytest.mark.parametrize("arguments", [
    ("onnx", "toybox", ""), ("pack", "own", ""), ("page", ""), ("fit", "--export="), ("fit", "--model.cache="),
    ("caption", "own", "--teacher=toybox", "--watch-words="),
], ids=lambda arguments: " ".join(arguments[::2]))  # fmt: skip
def test_an_empty_name_is_not_the_current_folder(run, own, tmp_path, arguments):
    may_be_there = {*tmp_path.iterdir(), tmp_path / "runs"}
    found = run(*arguments[:1], *(own if arguments[0] == "fit" else ()), *arguments[1:])
    assert "the folder to write to has an empty name" in str(found)
    assert set(tmp_path.iterdir()) <= may_be_there


def test_a_traceback_can_be_asked_for(run, monkeypatch):
    monkeypatch.setenv("GITDISTILL_DEBUG", "1")
    with pytest.raises(FileNotFoundError):
        run("caption", "nowhere.png", "--student=nowhere")


def test_the_reason_of_an_error():
    assert reason(KeyError("no module is called x")) == "no module is called x"
    assert reason(IsADirectoryError(21, "Is a directory", "x")).endswith("Is a directory: 'x'")
    worker = "Caught ValueError in DataLoader worker process 0.\nOriginal Traceback (most\n  x\na.ValueError: b: c\n"
    assert reason(ValueError(worker)) == "b: c"


class Evil:
    def __reduce__(self):
        return os.mkdir, ("executed",)


STATE = {"state_dict": {"w": torch.zeros(1)}, "pytorch-lightning_version": "2.6.0"}


IMPORT = STATE | {"hyper_parameters": {"_class_path": "evil.Module"}}


@pytest.mark.parametrize("content, message", [
    (STATE | {"odd": Evil()}, "evil.ckpt is refused: .*mkdir"),
    (IMPORT, "the checkpoint is of another network: "),
    ({"weights": 1}, "evil.ckpt is no checkpoint of a training$"),
], ids=["pickle", "import", "no checkpoint"])  # fmt: skip
@pytest.mark.parametrize("plugins", [[], ["--trainer.plugins=[]"]], ids=["ours", "Lightning's"])
def test_a_checkpoint_runs_nothing(run, tmp_path, monkeypatch, content, message, plugins):
    (tmp_path / "evil.py").write_text("import os\nos.mkdir('executed')\nclass Module: pass\n")
    monkeypatch.syspath_prepend(tmp_path)
    torch.save(content, "evil.ckpt")
    tiny.student().save_pretrained("student")
    model = ["--model.model=gitdistill.StudentCandidateV1.from_pretrained", "--model.model.folder=student"]
    for path in ("evil.ckpt", (tmp_path / "evil.ckpt").as_uri(), "http://127.0.0.1:9/x", "simplecache::x"):
        found = run("test", *QUIET[:1], *QUIET[2:], *CAPTIONS, *model, *DATA, *plugins, f"--ckpt_path={path}")
        assert re.search(message if path == "evil.ckpt" else "is an address: download", found), found
        assert "\n" not in found and not (tmp_path / "executed").exists()


def test_the_checkpoint_that_a_score_chose_is_exported_whatever_the_order_of_callbacks():
    names = ("monitor", "best_model_path")
    empty, latest, best = (
        SimpleNamespace(**dict(zip(names, values)))
        for values in ((None, ""), (None, "latest.ckpt"), ("val_cider", "best.ckpt"))
    )
    assert best_checkpoint([empty, latest, best]) == best_checkpoint([best, latest]) == "best.ckpt"
    assert best_checkpoint([empty, latest]) == "latest.ckpt" and best_checkpoint([empty]) is None


def test_what_cannot_be_exported_is_not_trained(run, own):
    network = "--model.model=fakes.WithoutFiles"
    model = ["--model=gitdistill.distillation.caption_trainer.CaptionTrainer", network]
    arguments = [word for word in own if word not in DISTILLED and not word.startswith("--model.teacher")]
    message = run("fit", *arguments, *model, "--model.tokenizer=toybox", "--export=end")
    assert "WithoutFiles cannot be exported" in message


def test_data_without_a_test_split_end_in_an_export(run, own, tmp_path, capsys):
    arguments = [word for word in own if not word.startswith("--data")]
    assert run("fit", *arguments, "--data=fakes.TrainOnly", "--export=end") == 0
    assert (tmp_path / "end" / "model.safetensors").is_file()
    assert "not tested" in capsys.readouterr().err
