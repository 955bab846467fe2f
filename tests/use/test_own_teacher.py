"""A teacher of one's own, as configs/README.md describes it: from captions and pictures to a student."""

import csv
import re
from pathlib import Path

import pytest
import torch
import yaml
from PIL import Image

from gitdistill import GenerativeImageTextTeacher, load_student
from gitdistill.distillation.caption_trainer import CaptionTrainer
from gitdistill.models.student import shared_options

CONFIGS = Path(__file__).parents[2] / "configs"
QUICK = {"max_steps": 2, "logger": False, "callbacks": None, "accelerator": "cpu"}
QUICK |= dict.fromkeys(("enable_progress_bar", "enable_checkpointing"), False)
QUICK |= {"val_check_interval": 1.0, "check_val_every_n_epoch": 1, "num_sanity_val_steps": 0}
ALONE = "leave them out of the configuration, or write vocab_size, too"
SMALL = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}


@pytest.fixture
def mine(run, tmp_path):
    """A folder of pictures and captions, and the tokenizer that the README's lines make."""
    Path("mine").mkdir()
    colours = {"red": (220, 30, 30), "green": (30, 200, 30)}
    for split, size in (("train", 8), ("val", 2), ("test", 2)):
        with open(f"mine/{split}.csv", "w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["file", "caption"])
            for number, (name, rgb) in zip(range(size), list(colours.items()) * size):
                Image.new("RGB", (40, 30), rgb).save(f"mine/{split}{number}.png")
                writer.writerow([f"{split}{number}.png", f"a {name} wall"])
    section = (CONFIGS / "README.md").read_text(encoding="utf-8").split("## A teacher of your own")[1]
    exec(re.search(r"```python\n(.*?)```", section, re.DOTALL).group(1), {})


def fit(run, name, config):
    config["trainer"] |= QUICK
    config["data"]["init_args"] |= {"batch_size": 2, "workers": 0, "image_size": 32}
    Path(name).write_text(yaml.safe_dump(config))
    assert run("fit", "--config", name) == 0


def test_from_captions_to_a_student(mine, run, capsys):
    config = yaml.safe_load((CONFIGS / "own_teacher.yaml").read_text(encoding="utf-8"))
    sizes = config["model"]["init_args"]["model"]["init_args"]["config"]["init_args"]
    sizes |= {**SMALL, "vocab_size": 64}
    sizes["vision_config"] |= {**SMALL, "image_size": 32}
    fit(run, "own.yaml", config)
    folder = Path("runs/own_teacher/model")
    teacher = GenerativeImageTextTeacher.from_pretrained(folder)
    assert teacher.vocab_size == 64 > len(teacher.tokenizer) and "wall" in teacher.tokenizer.get_vocab()
    assert run("caption", "mine/test0.png", "--teacher", str(folder)) == 0
    # trained on, as a published checkpoint would be
    settings = {"model": str(folder), "lr": 1e-5, "muon": False}
    config["model"]["init_args"] = settings
    config["export"] = "runs/continued"
    fit(run, "continued.yaml", config)
    before, after = (CaptionTrainer(path).model for path in (folder, Path("runs/continued")))
    moved = {name for name, value in before.state_dict().items() if not value.equal(after.state_dict()[name])}
    assert "head.weight" in moved and any(name.startswith("image_encoder") for name in moved)
    # and distilled
    student = {"embed_dim": 32, "heads": 2, "layers": 1, "backbone": "toybox"}
    network = {"class_path": "gitdistill.StudentCandidateV1", "init_args": student}
    init = {"teacher": str(folder), "student": network}
    config["model"] = {"class_path": "gitdistill.DistillationTrainer", "init_args": init}
    config["export"] = "runs/mine"
    fit(run, "student.yaml", config)
    capsys.readouterr()
    assert run("caption", "mine/test0.png", "--student", "runs/mine") == 0
    assert capsys.readouterr().out.startswith("mine/test0.png\t")
    shared = load_student("runs/mine").model
    assert shared.config | shared_options(teacher) == shared.config
    # the same numbers by hand, and wrong ones
    for number in (64, 63):
        student |= shared_options(teacher) | {"vocab_size": number}
        Path("hand.yaml").write_text(yaml.safe_dump(config))
        problem = run("fit", "--config", "hand.yaml")
        assert problem == 0 if number == 64 else "vocab_size is 64" in problem and "\n" not in problem


@pytest.mark.parametrize("options, problem", [
    ({"embed_dims": 3}, "\"student\": .*'embed_dims' is not accepted"),
    ({"num_frames": 1}, ALONE), ({"bos_token_id": 1}, ALONE),
])  # fmt: skip
def test_a_student_of_a_configuration_with_mistakes(run, options, problem):
    student = {"class_path": "gitdistill.StudentCandidateV1", "init_args": options}
    init = {"teacher": "toybox", "student": student}
    model = {"class_path": "gitdistill.DistillationTrainer", "init_args": init}
    data = {"class_path": "gitdistill.world.ToyboxData"}
    Path("wrong.yaml").write_text(yaml.safe_dump({"model": model, "data": data}))
    found = run("fit", "--config", "wrong.yaml")
    assert re.search(problem, found) and "\n" not in found and len(found) < 200, found


def test_a_network_needs_a_tokenizer():
    with pytest.raises(ValueError, match="give tokenizer="):
        CaptionTrainer(torch.nn.Linear(1, 1))
