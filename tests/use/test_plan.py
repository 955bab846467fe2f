"""The plan against what is measured."""

from pathlib import Path

import pytest
import torch
import yaml
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from gitdistill import DistillationTrainer, StudentCandidateV1
from gitdistill.use import plan

ROOT = Path(__file__).parents[2]
CONFIGS = ROOT / "configs"


SMALL = ["--config", str(CONFIGS / "student.yaml"), "--data.init_args.batch_size=2", "--ckpt_path=last"]
STEP, MEMORY = "GFLOPs of a training step", "MB of activations"


def test_a_step_of_the_trainer_takes_what_was_planned():
    student = StudentCandidateV1(359, "toybox", embed_dim=64).train()
    module = DistillationTrainer("toybox", student, features=0)
    module.log_dict = lambda values: None  # there is no Trainer to log to
    frames = torch.randint(0, 256, (2, 4, 3, 96, 96), dtype=torch.uint8)
    tokens = torch.full((4, plan.TOKENS), 7)
    parameters, saved = {p.data_ptr() for p in module.parameters()}, {}

    def save(tensor):
        saved[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage()
        return tensor

    hooks = torch.autograd.graph.saved_tensors_hooks(save, lambda tensor: tensor)
    exact = sdpa_kernel(SDPBackend.MATH)  # torch does not count what the fused kernel on CPUs computes
    with hooks, exact, FlopCounterMode(display=False) as counter:
        terms = module.loss_terms({"frames": frames, "tokens": tokens})
        sum(terms.values()).backward()
    found = plan.estimate([*SMALL, "--model.init_args.cache=null"])
    count, gradients = ([f(p) for p in student.parameters()] for f in (torch.numel, lambda p: p.grad.nbytes))
    assert found["million parameters"][1] == sum(count) / 1e6
    assert found["MB of gradients and AdamW's state"][1] == pytest.approx(3 * sum(gradients) / 1e6)
    assert sum(found[STEP]) == pytest.approx(counter.get_total_flops() / 1e9, rel=0.1)
    activations = sum(storage.nbytes() for key, storage in saved.items() if key not in parameters)
    assert found[MEMORY][1] == pytest.approx(activations / 1e6, rel=0.1)


def test_what_cache_precision_and_batch_change():
    plain = plan.estimate([*SMALL, "--model.init_args.cache=null"])
    changed = plan.estimate([*SMALL, "--data.init_args.batch_size=4", "--trainer.precision=bf16-mixed"])
    assert changed[STEP] == (0, pytest.approx(2 * plain[STEP][1], rel=0.01)) and plain[STEP][0] > 0
    assert changed[MEMORY][1] < 0.8 * 2 * plain[MEMORY][1]
    assert changed["MB of weights"] == plain["MB of weights"]
    still = plan.estimate([*SMALL, "--model.init_args.cache=null", "--data.init_args.num_frames=1"])
    assert still[STEP][1] < 0.5 * plain[STEP][1]
    with pytest.raises(ValueError, match="instead of a class"):
        plan.estimate([*SMALL, "--model.init_args.teacher.class_path=gitdistill.GenerativeImageTextTeacher"])


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


def test_the_command(run, capsys):
    assert run("plan", *SMALL) == 0
    assert "| million parameters | 3.8 | 0.4 |" in capsys.readouterr().out
    assert "no distillation" in run("plan", "--config", CONFIGS / "baseline.yaml")
    assert "no published GIT" in run("plan", *SMALL, "--model.init_args.teacher=bert")


def test_published_commands_warm_up_briefly_and_validate_to_the_end():
    """The best checkpoint that validation saw is kept, so the last validation must come with the last step."""
    text = (CONFIGS / "README.md").read_text().replace("\\\n", " ")
    commands = [line.partition("gitdistill fit ")[2].split() for line in text.splitlines() if "`" not in line]
    commands = [words for words in commands if words]
    assert len(commands) == 6
    for words in commands:
        given = dict(zip(words[::2], words[1::2]))
        config = yaml.safe_load((ROOT / given["--config"]).read_text())
        trainer, model, data = config["trainer"], config["model"]["init_args"], config["data"]["init_args"]
        steps = int(given.get("--trainer.max_steps", trainer["max_steps"]))
        every = given.get("--trainer.val_check_interval", trainer.get("val_check_interval"))
        every = int(every or -(-data["train_clips"] // data.get("batch_size", 32)))  # an epoch
        warmup = int(given.get("--model.init_args.warmup", model.get("warmup", 50)))
        assert steps % every == 0 and warmup < steps / 5, words


def test_a_backbone_of_timm_is_counted_as_it_is():
    name = "--model.init_args.student.init_args.backbone"
    arguments = [*SMALL, f"{name}.class_path=gitdistill.TinyVIT", f"{name}.init_args.name=tiny_vit_5m_224"]
    assert plan.estimate(arguments)["million parameters"][1] > 5
    with pytest.raises(ValueError, match="cannot tell what backbone fakes.backbone makes"):
        plan.networks("toybox", {"backbone": {"class_path": "fakes.backbone"}})
