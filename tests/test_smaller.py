"""Smaller students: each variant is what it says."""

import csv

import pytest
import smaller
import tiny
import torch
from report import write_rows
from torch import nn

from gitdistill.use.captioner import Student
from gitdistill.world.module import toybox_tokenizer
from gitdistill.world.scenes import Clips


def test_smaller_students(tmp_path):
    """Each variant is what it says, is measured, and the table has its row."""
    pytest.importorskip("onnxscript"), pytest.importorskip("onnxruntime")
    student = Student(tiny.student().eval(), toybox_tokenizer(), decoding={"max_length": 8})
    pool = Clips("test", 5, frames=tiny.FRAMES, image_size=tiny.SIDE)
    clips = [pool.clip(number, masks=False) for number in range(5)]
    rows = smaller.run(student, "student", clips, repeats=2)
    size = {row["variant"]: row["mb"] for row in rows}
    pruned = [f"{n}% pruned, float16" for n in (10, 30, 50)]
    assert list(size) == ["float32", "float16", *pruned, "ONNX, float32", "ONNX, int8"]
    assert size["float16"] < 0.6 * size["float32"] and size["ONNX, int8"] < size["ONNX, float32"]
    packed = [row["mb_packed"] for row in rows if "pruned" in row["variant"]]
    assert packed == sorted(packed, reverse=True) and packed[0] < rows[1]["mb_packed"]
    assert [row["same"] for row in rows if row["variant"] in ("float32", "ONNX, float32")] == [1, 1]
    for row in rows:
        assert row["ms_batch_1"] > 0 and row["ms_batch_16"] > 0 and row["cider"] >= 0
    lines = smaller.table(rows)
    assert lines[0].startswith("| 5 test clips;") and len(lines) == 2 + len(rows)
    write_rows(tmp_path / "smaller.csv", rows)
    with (tmp_path / "smaller.csv").open(newline="") as file:
        assert smaller.table(list(csv.DictReader(file))) == lines


def test_variants_compute_what_they_should():
    network = tiny.student().eval()
    frames = tiny.clips(2)
    tokens = torch.randint(5, 60, (2, 6))
    with torch.no_grad():
        expected = network(frames, tokens).logits
        sparse = smaller.pruned(network, 0.5)
        layers = [
            m for n, m in sparse.named_modules() if isinstance(m, nn.Linear | nn.Conv2d) and n != "head"
        ]
        weights = torch.cat([layer.weight.flatten() for layer in layers])
        assert (weights == 0).sum().item() == pytest.approx(len(weights) / 2, abs=1)
        assert torch.equal(sparse.words.weight, network.words.weight.half().float())
        assert torch.equal(network(frames, tokens).logits, expected)
