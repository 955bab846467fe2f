"""The number type that the teacher computes in: by name, or the faster one where it says the same."""

import pytest
import tiny
import torch
from fits import distillation

from gitdistill.distillation.cache import TeacherCache
from gitdistill.distillation.targets import TargetSpec
from gitdistill.distillation.trainer import DistillationTrainer
from gitdistill.models import precision
from gitdistill.models.teacher import GenerativeImageTextTeacher
from gitdistill.world.module import toybox_tokenizer


def test_the_teacher_can_compute_in_bfloat16():
    batch = next(iter(tiny.data().train_dataloader()))
    modules = [distillation(features=0, teacher_dtype=dtype) for dtype in ("float32", "bfloat16")]
    whole, half = (module.loss_terms(batch) for module in modules)
    torch.testing.assert_close(half["cross_entropy"], whole["cross_entropy"])
    assert half["kl"] != whole["kl"] and half["kl"].dtype == torch.float32
    torch.testing.assert_close(half["kl"], whole["kl"], rtol=0.05, atol=0.01)


def test_an_unknown_precision_of_the_teacher_is_refused_at_once(tmp_path):
    for refused in (
        lambda: DistillationTrainer(tiny.teacher(), tiny.student(), teacher_dtype="bf16"),
        lambda: TeacherCache.build(tmp_path / "new", None, None, TargetSpec(), teacher_dtype="bf16"),
        lambda: GenerativeImageTextTeacher.from_pretrained("toybox", dtype="bf16"),
    ):
        with pytest.raises(ValueError, match="^dtype must be .* auto, not 'bf16'$"):
            refused()


@pytest.mark.parametrize(
    ("level", "lead", "expected"),
    [(100, 0.2, torch.float32), (100, 1e-3, torch.bfloat16), (1, 0.2, torch.bfloat16)],
)
def test_auto_takes_the_faster_precision_only_where_the_teacher_says_the_same(
    monkeypatch, tmp_path, level, lead, expected
):
    """One word leads another; at a hundred bfloat16 rounds that away, which matters unless both are as likely."""
    monkeypatch.setattr(precision, "fast_dtype", lambda device: "bfloat16")
    teacher = tiny.teacher()
    for part in (teacher.model.head.weight, teacher.model.head.bias):
        part.data.zero_()
    teacher.model.head.bias.data[[5, 7]] = torch.tensor([level, level + lead])
    teacher.model.save_pretrained(tmp_path)
    kinds = {"auto": expected, "bfloat16": torch.bfloat16, "float32": torch.float32}
    for name, kind in kinds.items():
        loaded = GenerativeImageTextTeacher.from_pretrained(tmp_path, toybox_tokenizer(), dtype=name)
        assert {p.dtype for p in loaded.parameters()} == {kind}, name
        module = DistillationTrainer(teacher, tiny.student(), teacher_dtype=name)
        assert module._precision == kind, name


@pytest.mark.parametrize(("slow", "expected"), [("bfloat16", "float32"), ("float32", "bfloat16")])
def test_auto_takes_the_precision_that_multiplies_faster(monkeypatch, slow, expected, tmp_path):
    """With a clock that runs faster for one of them."""
    kinds = iter(["float32"] * 10 + ["bfloat16"] * 10)
    clock = [0.0]

    def tick():
        clock[0] += 2.0 if next(kinds) == slow else 1.0
        return clock[0]

    precision.fast_dtype.cache_clear()
    monkeypatch.setattr(precision, "perf_counter", tick)
    module = DistillationTrainer(tiny.teacher(), tiny.student(), teacher_dtype="auto", max_length=8)
    assert module._precision == getattr(torch, expected)
    pool = tiny.data(train_clips=4)
    options = {"teacher_dtype": "auto", "say": lambda _: None}
    cache = TeacherCache.build(tmp_path / "cache", tiny.teacher(), pool, TargetSpec(), **options)
    assert cache.metadata["teacher_dtype"] == expected
    other = {"float32": "bfloat16", "bfloat16": "float32"}[expected]
    monkeypatch.setattr(precision, "fast_dtype", lambda device: other)  # another machine takes what is there
    TeacherCache.open(tmp_path / "cache", tiny.teacher(), pool, TargetSpec(), "auto")
    next((tmp_path / "cache").glob("*.safetensors")).unlink()  # unfinished
    cache = TeacherCache.build(tmp_path / "cache", tiny.teacher(), pool, TargetSpec(), **options)
    assert cache.metadata["teacher_dtype"] == expected
    with pytest.raises(ValueError, match="teacher_dtype is"):
        TeacherCache.open(tmp_path / "cache", tiny.teacher(), pool, TargetSpec(), other)
