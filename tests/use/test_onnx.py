"""A student as ONNX: the numbers, the searches and the captions are PyTorch's."""

import logging

import pytest
import tiny
import torch

from gitdistill import load_student
from gitdistill.data.video import FrameRule
from gitdistill.decoding import beam, greedy, sample
from gitdistill.use import onnx, onnx_export
from gitdistill.use.captioner import Student, load_captioner
from gitdistill.world.module import glyph_tokenizer

for package in ("onnx", "onnxscript", "onnxruntime"):
    pytest.importorskip(package)
# pytest would keep all that the exporter tells, for minutes
logging.getLogger("torch.__trace").propagate = False
KEPT = list(range(5, 60))


@pytest.fixture(scope="module")
def student():
    """One that reads up to three frames and knows half of the words."""
    network = tiny.student(num_frames=3, vocab_subset=KEPT, max_positions=16).eval()
    for parameter in network.parameters():  # or it says the same of every clip
        parameter.data.add_(0.2 * torch.randn_like(parameter))
    return Student(network, glyph_tokenizer(), FrameRule(2), {"max_length": 9}, {"cider": 1.5})


@pytest.fixture(scope="module")
def folder(student, tmp_path_factory):
    """What the command makes of it."""
    path = tmp_path_factory.mktemp("onnx")
    student.save(path / "weights")
    assert onnx_export.main([str(path / "weights"), str(path / "there")]) == 0
    return path / "there"


def clips(count, frames=2, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (count, frames, 3, 40, 52), generator=generator, dtype=torch.uint8)


@torch.no_grad()
@pytest.mark.parametrize(
    "count, frames, captions, new", [(1, 1, 1, 1), (2, 3, 1, 4), (3, 2, 4, 1), (1, 2, 2, 3)]
)
def test_any_number_of_clips_frames_captions_and_tokens(student, folder, count, frames, captions, new):
    there, raw = onnx.OnnxStudent(folder), clips(count, frames)
    states = [network.prefill(raw) for network in (student.model, there)]
    generator = torch.Generator().manual_seed(1)
    for length in (new, 1, 2):  # at first nothing is remembered
        tokens = torch.randint(0, len(glyph_tokenizer()), (count * captions, length), generator=generator)
        (ours, states[0]), (theirs, states[1]) = (
            network.decode_step(tokens, state) for network, state in zip((student.model, there), states)
        )
        torch.testing.assert_close(theirs, ours, rtol=1e-4, atol=1e-4)
    assert states[1].length == states[0].length == new + 3


def test_every_search_finds_the_same(student, folder):
    there, raw = onnx.OnnxStudent(folder), clips(4)
    for search, options in [
        (greedy, {}),
        (beam, {"beams": 3, "num_return": 2}),
        (beam, {"beams": 2, "penalty": "gnmt", "length_penalty": 0.6}),
        (sample, {"num_return": 3, "seed": 5}),
        (greedy, {"prefix": [[2, 7], [2, 8, 9], [2], [2, 6]]}),
    ]:
        ours, theirs = (search(network, raw, max_length=12, **options) for network in (student.model, there))
        assert torch.equal(ours.tokens, theirs.tokens)
        torch.testing.assert_close(theirs.scores, ours.scores, rtol=1e-3, atol=1e-4)


def test_the_folder_captions_like_the_student(student, folder):
    loaded = load_student(folder)
    assert loaded.rule == student.rule and loaded.scores == student.scores and loaded.size == tiny.SIDE
    raw = clips(5)
    (captions, scores), (expected, right) = loaded.caption(raw), student.caption(raw)
    assert captions == expected and scores == pytest.approx(right, abs=1e-4)
    assert len({round(score, 3) for score in right}) == len(raw)  # or any two networks would agree
    assert (
        load_captioner(student=folder).to("cpu").caption(raw, beams=2)[0] == student.caption(raw, beams=2)[0]
    )
    again = type(student).from_pretrained(folder)
    assert again.caption(raw[:1])[0] == student.caption(raw[:1])[0]


def test_mistakes(run, student, folder, tmp_path, monkeypatch):
    there = onnx.OnnxStudent(folder)
    with pytest.raises(ValueError, match="4 frames a clip, but this student reads at most 3"):
        there.prefill(clips(1, 4))
    with pytest.raises(ValueError, match="pixels of 40 x 52, but this student reads 32 x 32"):
        there.prefill(clips(1).float())
    with pytest.raises(ValueError, match="a caption of 17 tokens is longer than the model's 16 positions"):
        there.decode_step(torch.full((1, 17), 2), there.prefill(clips(1)))
    student.save(tmp_path / "weights")
    with pytest.raises(ValueError, match="holds a network's weights: give another folder"):
        onnx_export.export_student(student, tmp_path / "weights")
    with pytest.raises(ValueError, match="does not describe an OnnxStudent"):
        onnx.OnnxStudent(tmp_path / "weights")
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "config.json").write_text((folder / "config.json").read_text())
    with pytest.raises(FileNotFoundError, match="there is no .*encoder.onnx"):
        onnx.OnnxStudent(broken)
    (broken / onnx.ENCODER).write_bytes((folder / onnx.ENCODER).read_bytes()[:1000])
    with pytest.raises(ValueError, match="encoder.onnx is not readable as ONNX"):
        load_student(broken)
    with pytest.raises(ValueError, match="has no weights to save"):
        load_student(folder).save(tmp_path / "again")
    with pytest.raises(ValueError, match="only a StudentCandidateV1 becomes ONNX"):
        onnx_export.export_student(load_student(folder), tmp_path / "again")
    line = run("caption", folder, "--student", folder, "--watch-words", "words")
    assert "--watch-words needs PyTorch" in line
    monkeypatch.setattr(onnx, "find_spec", lambda name: None)
    line = run("onnx", tmp_path / "weights", tmp_path / "out")
    assert line == "gitdistill: onnx and onnxscript missing: pip install 'gitdistill[onnx]'"
    assert not (tmp_path / "out").exists()


def test_all_files_or_none(student, tmp_path, monkeypatch):
    """A full disk at the second file leaves the first one out, too."""

    class Program:
        def save(self, path):
            path.write_bytes(b"half")

    class Full(Program):
        def save(self, path):
            super().save(path)
            raise OSError("no space left on device")

    monkeypatch.setattr(onnx_export, "programs", lambda network: {onnx.ENCODER: Program(), onnx.STEP: Full()})
    with pytest.raises(OSError, match="nothing was written: no space left"):
        onnx_export.export_student(student, tmp_path / "out")
    assert not list((tmp_path / "out").glob("*onnx*"))


@pytest.mark.slow
def test_two_frames_are_exactly_two(tmp_path):
    student = Student(tiny.student(num_frames=2).eval(), glyph_tokenizer())
    onnx_export.export_student(student, tmp_path)
    loaded, raw = load_student(tmp_path), clips(2)
    assert loaded.caption(raw)[0] == student.caption(raw)[0]
    with pytest.raises(ValueError, match="1 frames a clip, but this student reads exactly 2"):
        loaded.caption(raw[:, :1])
