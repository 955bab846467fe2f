"""The check of this machine."""

import pytest
import torch

from gitdistill.models import precision
from gitdistill.use import device


def test_the_check(run, monkeypatch, capsys):
    assert run("check") == 0
    lines = capsys.readouterr().out
    assert "OK   device cpu computes what the CPU does" in lines and "all is well" in lines
    monkeypatch.setenv(device.VARIABLE, "cuda:99")
    assert run("check") == 1
    assert "FAIL there is no device cuda:99 here" in capsys.readouterr().out
    with pytest.raises(ValueError, match="'tpu9' is no device"):
        device.choose_device("tpu9")


@pytest.mark.parametrize(("same", "taken"), [(True, "bfloat16"), (False, "float32")])
def test_the_check_tells_what_auto_takes(run, monkeypatch, capsys, same, taken):
    monkeypatch.setattr(precision, "fast_dtype", lambda device: "bfloat16")
    monkeypatch.setattr(precision, "says_the_same", lambda *_: same)
    assert run("check", "--device", "cpu") == 0
    told = capsys.readouterr().out
    assert "fastest there: bfloat16" in told and f"auto computes it in {taken}" in told


def test_the_self_test_notices_a_device_that_computes_something_else(monkeypatch):
    samples = device.samples()
    _, student, *_ = samples[1]

    def to(device):
        student.norm.weight.data.mul_(1.5)
        return student

    monkeypatch.setattr(student, "to", to)
    monkeypatch.setattr(device, "samples", lambda: samples)
    assert "the student's logits are off by" in device.self_test(torch.device("cpu"))


@pytest.mark.parametrize("quota, cores", [
    ("max 100000", 3), ("150000 100000", 2), ("10000 100000", 1), (None, 3),
])  # fmt: skip
def test_cores_that_may_be_used(monkeypatch, tmp_path, quota, cores):
    monkeypatch.setattr(device.os, "sched_getaffinity", lambda _: {0, 2, 5}, raising=False)
    monkeypatch.setattr(device, "QUOTA", tmp_path / "cpu.max")
    if quota:
        device.QUOTA.write_text(quota + "\n")
    assert device.usable_cores() == cores
    monkeypatch.setattr(device.os, "cpu_count", lambda: 8)
    for load, free in ((0.2, cores), (5.9, min(2, cores)), (99.0, 1)):
        monkeypatch.setattr(device.os, "getloadavg", lambda load=load: (load, 9.0, 9.0), raising=False)
        assert device.free_cores() == free
