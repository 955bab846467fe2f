"""The plan against what is measured."""

from pathlib import Path

import pytest
import tiny
import torch
import yaml
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from gitdistill import DistillationTrainer
from gitdistill.use import plan

ROOT = Path(__file__).parents[2]
CONFIGS = ROOT / "configs"


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    """A configuration with tiny networks, as a run saves it."""
    path = tmp_path_factory.mktemp("networks")
    tiny.teacher().model.save_pretrained(path / "teacher")
    tiny.backbone().save_pretrained(path / "backbone")
    student = {"vocab_size": 122, "backbone": str(path / "backbone"), "embed_dim": 32, "heads": 2}
    student = {
        "class_path": "gitdistill.StudentCandidateV1",
        "init_args": student | {"num_frames": tiny.FRAMES},
    }
    model = {"teacher": str(path / "teacher"), "student": student, "features": 0.0}
    data = {"batch_size": 4, "captions_per_clip": 2}
    text = {
        "model": {"class_path": "gitdistill.DistillationTrainer", "init_args": model},
        "data": {"class_path": "gitdistill.world.GlyphData", "init_args": data},
        "ckpt_path": None,
    }
    (path / "config.yaml").write_text(yaml.safe_dump(text))
    return ["--config", str(path / "config.yaml")]


def test_a_step_of_the_trainer_takes_what_was_planned(config):
    teacher, student = tiny.teacher(), tiny.student(embed_dim=32, heads=2).train()
    module = DistillationTrainer(teacher, student, features=0)
    module.log_dict = lambda values: None  # there is no Trainer to log to
    tokens = torch.randint(5, 50, (8, plan.TOKENS))
    tokens[:, 0] = 2
    frames = torch.randint(0, 256, (4, tiny.FRAMES, 3, tiny.SIDE, tiny.SIDE), dtype=torch.uint8)
    parameters, saved = {p.data_ptr() for p in module.parameters()}, {}

    def save(tensor):
        if tensor.data_ptr() not in parameters:
            saved[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage()
        return tensor

    hooks = torch.autograd.graph.saved_tensors_hooks(save, lambda tensor: tensor)
    with (
        hooks,
        FlopCounterMode(display=False) as counter,
        sdpa_kernel(SDPBackend.MATH),
    ):  # the others are not counted
        terms = getattr(module, "loss_terms", module.losses)({"frames": frames, "tokens": tokens})
        sum(terms.values()).backward()
    found = plan.estimate(config)
    millions = tuple(sum(p.numel() for p in net.parameters()) / 1e6 for net in (teacher, student))
    assert found["million parameters"] == millions
    assert sum(found["GFLOPs of a training step"]) == pytest.approx(counter.get_total_flops() / 1e9, rel=0.1)
    megabytes = sum(storage.nbytes() for storage in saved.values()) / 1e6
    assert found["MB of activations"][1] == pytest.approx(megabytes, rel=0.1)
    optimizer = torch.optim.AdamW(student.parameters())
    optimizer.step()
    state = sum(value.nbytes for state in optimizer.state.values() for value in state.values() if value.dim())
    gradients = sum(p.grad.nbytes for p in student.parameters())
    assert found["MB of gradients and AdamW's state"][1] == pytest.approx((state + gradients) / 1e6)


def test_what_cache_precision_and_batch_change(config):
    step, memory = "GFLOPs of a training step", "MB of activations"
    plain = plan.estimate(config)
    large = plan.estimate([*config, "--data.init_args.batch_size=8"])
    assert large[step] == pytest.approx([2 * x for x in plain[step]], rel=0.01)
    half = plan.estimate([*config, "--trainer.precision=bf16-mixed"])
    assert half[memory][1] < 0.8 * plain[memory][1] and half["MB of weights"] == plain["MB of weights"]
    cached = plan.estimate([*config, "--model.init_args.cache=runs/cache"])
    assert cached[step] == (0, plain[step][1]) and plain[step][0] > 0


@pytest.mark.parametrize("name, millions, frames, side", [
    ("microsoft/git-base-coco", 177, None, 224),
    ("microsoft/git-large-vatex", 394, 6, 224),
    ("microsoft/git-base-vqav2", 177, None, 480),
])  # fmt: skip
def test_published_teachers(name, millions, frames, side):
    """Parameters in millions, from their paper and model cards."""
    config = plan.teacher_config(name)
    with torch.device("meta"):
        teacher = plan.GenerativeImageTextModel(config)
    assert sum(p.numel() for p in teacher.parameters()) / 1e6 == pytest.approx(millions, rel=0.02)
    assert (config.num_image_with_embedding, config.vision_config.image_size) == (frames, side)


def test_the_command(run, config, capsys):
    assert run("plan", *config) == 0
    assert "| million parameters | 0." in capsys.readouterr().out
    assert "no distillation" in run("plan", "--config", CONFIGS / "baseline.yaml")
    assert "no published GIT" in run("plan", *config, "--model.init_args.teacher=bert")


def test_published_commands_warm_up_briefly_and_validate_to_the_end():
    """The best checkpoint that validation saw is kept, so the last validation must come with the last step."""
    text = (CONFIGS / "README.md").read_text().replace("\\\n", " ")
    commands = [line.partition("gitdistill fit ")[2].split() for line in text.splitlines() if "`" not in line]
    commands = [words for words in commands if words]
    assert len(commands) == 5
    for words in commands:
        given = dict(zip(words[::2], words[1::2]))
        config = yaml.safe_load((ROOT / given["--config"]).read_text())
        trainer, model, data = config["trainer"], config["model"]["init_args"], config["data"]["init_args"]
        steps = int(given.get("--trainer.max_steps", trainer["max_steps"]))
        every = given.get("--trainer.val_check_interval", trainer.get("val_check_interval"))
        every = int(every or -(-data["train_clips"] // data.get("batch_size", 32)))  # an epoch
        warmup = int(given.get("--model.init_args.warmup", model.get("warmup", 50)))
        assert steps % every == 0 and warmup < steps / 5, words
