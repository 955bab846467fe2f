"""The calculator against what is measured."""

import sys
from dataclasses import replace
from pathlib import Path

import pytest
import tiny
import torch
import yaml
from torch.utils.flop_counter import FlopCounterMode

from gitdistill import DistillationTrainer, GenerativeImageTextTeacher, StudentCandidateV1, __main__
from gitdistill.distillation.cache import TeacherCache
from gitdistill.distillation.optim import MuonAdamW
from gitdistill.distillation.targets import TargetSpec
from gitdistill.models import linear
from gitdistill.use import plan
from gitdistill.world import GlyphData

ROOT = Path(__file__).parents[2]
CONFIGS = ROOT / "configs"
sys.path.append(str(ROOT / "benchmarks"))
from decoding import memory  # noqa: E402


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A teacher's and a backbone's folder, tiny."""
    path = tmp_path_factory.mktemp("networks")
    tiny.teacher().model.save_pretrained(path / "teacher")
    tiny.backbone().save_pretrained(path / "backbone")
    return path


@pytest.fixture(scope="module")
def run(folders):
    student = {"backbone": str(folders / "backbone"), "embed_dim": 32, "heads": 2}
    return plan.Run(str(folders / "teacher"), student, tiny.FRAMES, batch=4, captions=2, tokens=9, muon=True)


def batch(size, frames, side, captions, tokens):
    words = torch.randint(5, 50, (size * captions, tokens))
    words[:, 0] = 2
    return {
        "frames": torch.randint(0, 256, (size, frames, 3, side, side), dtype=torch.uint8),
        "tokens": words,
    }


def measured(teacher, student, clips):
    """Bytes that autograd keeps of a step of the real trainer, and operations of its student and backwards."""
    module = DistillationTrainer(teacher, student.train())
    with plan.kept(module) as storages, FlopCounterMode(display=False) as counter:
        sum(module.terms(clips).values()).backward()
    return sum(storage.nbytes() for storage in storages.values()), counter.get_total_flops()


def test_a_tiny_step_takes_what_was_planned(run):
    """Within a tenth: activations by what autograd keeps, operations by torch's counter, parameters exactly."""
    teacher, student = tiny.teacher(), tiny.student(embed_dim=32, heads=2)
    kept, operations = measured(teacher, student, batch(4, tiny.FRAMES, tiny.SIDE, 2, 9))
    found = plan.estimate(run)
    assert found["memory"]["activations"] == pytest.approx(kept, rel=0.1)
    assert found["operations a step"] == pytest.approx(operations, rel=0.1)
    assert found["parameters"] == tuple(
        sum(p.numel() for p in net.parameters()) for net in (teacher, student)
    )


def test_a_step_of_the_embedded_networks_takes_what_was_planned(monkeypatch):
    monkeypatch.setattr(linear, "_ONEDNN", None)  # whose products torch's counter does not know
    student = StudentCandidateV1(122, "glyphs", embed_dim=120)
    kept, operations = measured(
        GenerativeImageTextTeacher.from_pretrained("glyphs"), student, batch(2, 4, 96, 2, 20)
    )
    found = plan.estimate(plan.Run("glyphs", {"embed_dim": 120}, frames=4, batch=2, captions=2))
    assert found["memory"]["activations"] == pytest.approx(kept, rel=0.1)
    assert found["operations a step"] == pytest.approx(operations, rel=0.1)


def test_peak_memory_is_what_was_planned():
    """Of the process, beyond the weights, within a factor of 1.6: what is freed on the way is a rule of thumb."""
    module = DistillationTrainer("glyphs", StudentCandidateV1(122, "glyphs", embed_dim=120).train())
    clips = batch(8, 4, 96, 2, 20)
    took = memory(lambda: sum(module.terms(clips).values()).backward())
    if took is None:
        pytest.skip("this system does not tell")
    parts = plan.estimate(plan.Run("glyphs", {"embed_dim": 120}, frames=4, batch=8, captions=2))["memory"]
    planned = sum(parts[name] for name in ("activations", "gradients", "teacher's work")) / 2**20
    assert planned / 1.6 < took < planned * 1.6


def test_optimiser_and_checkpoint(run, tmp_path):
    """The optimiser's state after a step, byte for byte but its step counters."""
    student = tiny.student(embed_dim=32, heads=2)
    for muon in (True, False):
        optimiser = MuonAdamW(student, 0.1, 0) if muon else torch.optim.AdamW(student.parameters())
        for parameter in student.parameters():
            parameter.grad = torch.ones_like(parameter)
        optimiser.step()
        parts = optimiser.parts if muon else [optimiser]
        held = [value for part in parts for state in part.state.values() for value in state.values()]
        size = sum(value.nbytes for value in held if value.dim())
        found = plan.estimate(replace(run, muon=muon))
        assert found["memory"]["optimiser"] == size
        assert found["checkpoint"] == size + 4 * found["parameters"][1]


def test_a_cache_is_as_large_as_planned(run, tmp_path):
    data = GlyphData(
        train_clips=6,
        fresh_captions=False,
        num_frames=tiny.FRAMES,
        image_size=tiny.SIDE,
        batch_size=3,
        workers=0,
    )
    wants = TargetSpec(logits=True, image_features=("model.layers.0",))
    cache = TeacherCache.build(tmp_path, tiny.teacher(), data, wants, say=lambda line: None)
    found = plan.estimate(replace(run, clips=6, tokens=data.max_tokens))
    assert found["cache on disk"] == pytest.approx(cache.nbytes, rel=0.02)


def test_what_devices_precision_and_cache_change(run):
    one = plan.estimate(run)
    many = plan.estimate(replace(run, devices=4))
    assert many["steps"] == one["steps"] / 4 and many["hours"] == pytest.approx(one["hours"] / 4)
    assert many["memory"]["gradients"] == 2 * one["memory"]["gradients"]
    half = plan.estimate(replace(run, mixed=True, teacher_half=True))
    assert half["memory"]["activations"] < 0.8 * one["memory"]["activations"]
    assert half["memory"]["teacher's work"] < one["memory"]["teacher's work"]
    cached = plan.estimate(replace(run, cached=True))
    assert cached["operations a step"] + cached["teacher's operations a step"] == one["operations a step"]
    assert plan.estimate(replace(run, tflops=2.0))["hours"] == pytest.approx(one["hours"] / 2)


def test_published_teachers():
    """Parameters of the published networks, in millions (their paper and model cards)."""
    for name, millions in {"microsoft/git-base-coco": 177, "microsoft/git-large-vatex": 394}.items():
        with torch.device("meta"):
            teacher = plan.GenerativeImageTextModel(plan.teacher_config(name))
        assert sum(p.numel() for p in teacher.parameters()) / 1e6 == pytest.approx(millions, rel=0.02)
    assert plan.teacher_config("microsoft/git-large-vatex").num_image_with_embedding == 6
    assert plan.teacher_config("microsoft/git-base-vqav2").vision_config.image_size == 480


def test_configurations_that_are_none_and_what_a_run_saved_of_itself(tmp_path):
    path = tmp_path / "a.yaml"
    for content, message in (
        ("trainer: [", "is not valid YAML"),
        ("[1]", "configures no Dist"),
        ("", "no Dist"),
    ):
        path.write_text(content)
        with pytest.raises(ValueError, match=message) as stopped:
            plan.read_run(path)
        assert "\n" not in str(stopped.value)
    saved = yaml.safe_load((CONFIGS / "student.yaml").read_text())
    assert plan.read_run(CONFIGS / "student.yaml").cached
    saved["model"]["init_args"]["cache"] = None
    path.write_text(yaml.safe_dump(saved))
    assert not plan.read_run(path).cached


def test_what_a_configuration_does_not_say(tmp_path):
    """Is asked for in one line, unless it is given."""
    path, said = tmp_path / "a.yaml", yaml.safe_load((CONFIGS / "coco.yaml").read_text())
    for steps in ({"max_epochs": 3}, {"max_steps": -1, "max_epochs": 3}):
        path.write_text(yaml.safe_dump(said | {"trainer": steps}))
        with pytest.raises(ValueError, match=r"a.yaml does not say how many steps there are: give --steps$"):
            plan.described(["--config", str(path), "--clips", "9"])
        assert plan.described(["--config", str(path), "--clips", "9", "--steps", "8"]).steps == 8
    with pytest.raises(ValueError, match=r"coco.yaml does not say how many clips there are: give --clips$"):
        plan.read_run(CONFIGS / "coco.yaml")
    del said["model"]["init_args"]["teacher"]
    path.write_text(yaml.safe_dump(said))
    with pytest.raises(ValueError, match="a.yaml tells teacher and student not as fit reads them: .*teacher"):
        plan.read_run(path)


def test_the_command_reads_configurations(monkeypatch, capsys):
    run = plan.read_run(CONFIGS / "msrvtt.yaml", clips=6513)
    assert (run.frames, run.batch, run.captions, run.mixed, run.teacher_half) == (6, 16, 2, True, True)
    assert run.student["embed_dim"] == 384 and run.steps == 40_000 and not run.cached
    monkeypatch.setattr(
        sys, "argv", ["gitdistill", "plan", "--config", str(CONFIGS / "student.yaml"), "--batch", "3"]
    )
    with pytest.raises(SystemExit) as stopped:
        __main__.main()
    said = capsys.readouterr().out
    assert stopped.value.code == 0 and "3 clips of 4 frames, 2 × 20 tokens" in said
    for arguments, message in [
        (["--config", str(CONFIGS / "teacher.yaml")], "configures no DistillationTrainer"),
        (["--config", "nowhere.yaml"], "there is no configuration nowhere.yaml"),
        (["--teacher", "bert"], "no published GIT"),
        (["--teacher", "glyphs", "--tflops", "0"], "tflops must be above 0, not 0.0"),
        (
            ["--teacher", "glyphs", "--batch", "0"],
            "batch, captions, devices, steps, clips and told are at least 1",
        ),
    ]:
        monkeypatch.setattr(sys, "argv", ["gitdistill", "plan", *arguments])
        with pytest.raises(SystemExit) as stopped:
            __main__.main()
        assert message in stopped.value.code


def test_published_commands_warm_up_briefly_and_validate_to_the_end():
    """A rate that has come down is worth nothing if the last validation, which chooses what is kept, is before."""
    text = (CONFIGS / "README.md").read_text().replace("\\\n", " ")
    commands = [line.partition("gitdistill fit ")[2].split() for line in text.splitlines() if "`" not in line]
    commands = [words for words in commands if words]
    assert len(commands) == 5
    for words in commands:
        given = dict(zip(words[::2], words[1::2]))
        said = yaml.safe_load((ROOT / given["--config"]).read_text())
        trainer, model, data = said["trainer"], said["model"]["init_args"], said["data"]["init_args"]
        steps = int(given.get("--trainer.max_steps", trainer["max_steps"]))
        every = given.get("--trainer.val_check_interval", trainer.get("val_check_interval"))
        every = int(every or -(-data["train_clips"] // data.get("batch_size", 32)))  # an epoch
        warmup = int(given.get("--model.init_args.warmup", model.get("warmup", 50)))
        assert steps % every == 0 and warmup < steps / 5, words
