"""Students and GIT as ONNX: the numbers, the searches and the captions are PyTorch's."""

import json
import logging
import shutil
from itertools import product
from types import SimpleNamespace

import pytest
import tiny
import tiny_git
import torch
from PIL import Image
from transformers import GitForCausalLM

from gitdistill import GenerativeImageTextModel, load_student, load_teacher
from gitdistill.data.video import FrameRule
from gitdistill.decoding import beam, decode, greedy, sample
from gitdistill.inspection import attention_maps
from gitdistill.use import onnx, onnx_export
from gitdistill.use.captioner import Student
from gitdistill.world.module import toybox_tokenizer

for package in ("onnx", "onnxscript", "onnxruntime"):
    pytest.importorskip(package)
# pytest would keep all that the exporter tells, for minutes
logging.getLogger("torch.__trace").propagate = False


@pytest.fixture(scope="module")
def student():
    """One that reads up to three frames and knows half of the words."""
    network = tiny.student(num_frames=3, vocab_subset=list(range(5, 60)), max_positions=16).eval()
    for parameter in network.parameters():  # or it says the same of every clip
        parameter.data.add_(0.2 * torch.randn_like(parameter))
    return Student(network, toybox_tokenizer(), FrameRule(2), {"max_length": 9}, {"cider": 1.5})


@pytest.fixture(scope="module")
def folder(student, tmp_path_factory):
    """What the command makes of it."""
    path = tmp_path_factory.mktemp("onnx")
    student.save(path / "weights")
    onnx_export.main([str(path / "weights"), str(path / "there")])
    return path / "there"


def clips(count, frames=2, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (count, frames, 3, 40, 52), generator=generator, dtype=torch.uint8)


def compare_steps(model, there, raw, rows, new, words):
    """The same logits for `rows` captions of the clips, of `new` tokens at first, then of one and of two more."""
    cache, other = model.prefill(raw), there.prefill(raw)
    generator = torch.Generator().manual_seed(1)
    for length in (new, 1, 2):  # at first the cache of the text is empty
        tokens = torch.randint(0, words, (rows, length), generator=generator)
        ours, cache = model.decode_step(tokens, cache)
        theirs, other = there.decode_step(tokens, other)
        torch.testing.assert_close(theirs, ours, rtol=1e-4, atol=1e-4)
    assert other.length == cache.length == new + 3


@torch.no_grad()
@pytest.mark.parametrize("sizes", [(1, 1, 1, 1), (2, 3, 1, 4), (3, 2, 4, 1), (1, 2, 2, 3)])
def test_any_number_of_clips_frames_captions_and_tokens(student, folder, sizes):
    count, frames, captions, new = sizes
    there, raw = onnx.OnnxNetwork(folder), clips(count, frames)
    compare_steps(student.model, there, raw, count * captions, new, words=len(toybox_tokenizer()))


def test_every_search_finds_the_same(student, folder):
    there, raw = onnx.OnnxNetwork(folder), clips(4)
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
    again = load_student(folder).to("cpu")
    assert again.caption(raw, beams=2)[0] == student.caption(raw, beams=2)[0]
    assert Student.from_pretrained(folder).caption(raw)[0] == expected


def test_mistakes(run, student, folder, tmp_path, monkeypatch, capfd):
    there, weights, broken = onnx.OnnxNetwork(folder), tmp_path / "weights", tmp_path / "broken"
    student.save(weights)
    shutil.copytree(folder, broken)
    (broken / onnx.STEP).unlink()
    for action, message in [
        (lambda: there.prefill(clips(1, 4)), "4 frames a clip, but this network reads at most 3"),
        (lambda: there.prefill(clips(1).float()), "pixels of 40 x 52, but this network reads 32 x 32"),
        (lambda: there.decode_step(torch.full((1, 17), 2), there.prefill(clips(1))), "17 tokens .* 16"),
        (lambda: onnx_export.export(load_student(folder), tmp_path), "only a StudentCandidateV1 or a GIT"),
        (lambda: onnx.OnnxNetwork(weights), "does not describe an OnnxStudent"),
        (lambda: load_student(folder).save(tmp_path), "has no weights to save"),
        (lambda: load_student(broken), "lacks step.onnx, which gitdistill.json lists"),
    ]:
        with pytest.raises((ValueError, FileNotFoundError), match=message):
            action()
    (broken / onnx.ENCODER).write_bytes((folder / onnx.ENCODER).read_bytes()[:1000])
    (broken / onnx.STEP).write_bytes((folder / onnx.STEP).read_bytes())
    with pytest.raises(ValueError, match="encoder.onnx is damaged: gitdistill.json has another checksum"):
        load_student(broken)
    (broken / Student.FILE).unlink()
    with pytest.raises(ValueError, match="encoder.onnx is not readable as ONNX"):
        load_student(broken)
    (broken / onnx.ENCODER).write_bytes((folder / onnx.ENCODER).read_bytes())
    (broken / onnx.WEIGHTS).write_bytes(b"")
    with pytest.raises(ValueError, match="not readable as ONNX with its weights.bin"):
        load_student(broken)
    assert not capfd.readouterr().err  # onnxruntime's own log
    there.num_frames = there.exact_frames = 2  # as for a student that was exported with two
    with pytest.raises(ValueError, match="1 frames a clip, but this network reads exactly 2"):
        there.prefill(clips(1, 1))
    monkeypatch.setattr(onnx, "find_spec", lambda name: None)
    assert run("onnx", weights, "out").endswith("onnx and onnxscript missing: pip install 'gitdistill[onnx]'")
    assert not (tmp_path / "out").exists()


def test_all_files_or_none(student, tmp_path, monkeypatch):
    """A full disk at the second file leaves the first one out, too."""

    def half(path):
        path.write_bytes(b"half")

    def full(path):
        half(path)
        raise OSError("no space left on device")

    monkeypatch.setattr(onnx_export, "programs", lambda *_: {})
    monkeypatch.setattr(onnx_export, "files", lambda _: {onnx.ENCODER: half, onnx.STEP: full})
    with pytest.raises(OSError, match="nothing was written: no space left"):
        onnx_export.export(student, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "change", [{"mean": None}, {"std": []}, {"image_size": 0}, {"vocab_size": 10**10}, {"odd": 1}]
)
def test_settings_of_another_kind_are_named(folder, tmp_path, change):
    shutil.copytree(folder, tmp_path / "there")
    (tmp_path / "there" / Student.FILE).unlink()
    path = tmp_path / "there" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(ValueError, match=rf"^{path}[^\n]*$"):
        load_student(tmp_path / "there")


@pytest.fixture(scope="module", params=["pictures", "videos"])
def git(request, tmp_path_factory):
    """transformers' GIT of tiny size, its folder, and what the command makes of it; videos with tied words."""
    videos, path = request.param == "videos", tmp_path_factory.mktemp("git")
    tiny_git.lively_git(1, frames=3 if videos else None, tied=videos).save_pretrained(path / "there")
    port = GitForCausalLM.from_pretrained(path / "there").eval()
    tiny_git.tokenizer().save_pretrained(path / "there")
    onnx_export.main([str(path / "there"), str(path / "onnx")])
    return SimpleNamespace(port=port, folder=path / "there", onnx=path / "onnx")


def pixels(git, clips):
    """Pixels [B, F, 3, 16, 16] for ours; a checkpoint for pictures has no frames."""
    frames = git.port.config.num_image_with_embedding
    found = tiny_git.random_inputs(clips, frames and 2)[0]
    return found if frames else found[:, None]


@torch.no_grad()
def test_git_gives_transformers_logits_and_captions(git):
    there, raw = onnx.OnnxNetwork(git.onnx), pixels(git, 3)
    theirs = raw if git.port.config.num_image_with_embedding else raw[:, 0]
    tokens = tiny_git.random_inputs(3)[1]
    expected = git.port(input_ids=tokens, pixel_values=theirs).logits[:, -tokens.shape[1] :]
    torch.testing.assert_close(there.read_caption(raw, tokens)[0], expected, rtol=1e-4, atol=1e-4)
    for count, beams in product((1, 3), (1, 4)):
        options = {"max_length": 9, "num_beams": beams, "do_sample": False}
        found = git.port.generate(pixel_values=theirs[:count], **options)
        ended = (found == 3).cumsum(1)
        found[ended - (found == 3).long() > 0] = 0  # its beam search fills up with the end token
        ours = decode(there, raw[:count], max_length=9, beams=beams).tokens[:, 0]
        assert torch.equal(ours, found), options
    assert len(set(map(tuple, ours.tolist()))) > 1


@torch.no_grad()
@pytest.mark.parametrize("sizes", [(1, 1, 1), (2, 3, 1), (3, 1, 4), (1, 2, 3)])
def test_git_of_any_number_of_clips_captions_and_tokens(git, sizes):
    count, captions, new = sizes
    model, there = GenerativeImageTextModel.from_pretrained(git.folder), onnx.OnnxNetwork(git.onnx)
    raw = pixels(git, count)
    compare_steps(model, there, raw, count * captions, new, words=30)
    for options in ({"beams": 3, "num_return": 2}, {"beams": 2, "penalty": "gnmt"}):
        ours, theirs = (beam(network, raw, max_length=9, **options) for network in (model, there))
        assert torch.equal(ours.tokens, theirs.tokens)


def test_git_keeps_each_weight_once(git):
    sizes = sum(weight.nbytes for weight in git.port.parameters())
    assert (git.onnx / onnx.WEIGHTS).stat().st_size < 1.05 * sizes
    assert {path.suffix for path in git.onnx.iterdir()} == {".onnx", ".bin", ".json"}


def test_git_captions_files_and_shows_its_attention(git, run, tmp_path, capsys):
    """As the checkpoint does, from the command line, with a picture for each file."""
    for name, colour in (("red", (200, 30, 20)), ("blue", (10, 40, 220))):
        Image.new("RGB", (20, 16), colour).save(tmp_path / f"{name}.png")
    files = [str(path) for path in sorted(tmp_path.glob("*.png"))]
    said = []
    for folder in (git.folder, git.onnx):
        assert run("caption", *files, "--teacher", folder, "--max-length", 9) == 0
        said.append(capsys.readouterr().out)
    assert said[0] == said[1] and "red.png" in said[0]
    run("caption", *files, "--teacher", git.onnx, "--max-length", 9, "--watch-words", tmp_path / "words")
    assert list((tmp_path / "words").glob("*.png"))  # one for each caption that has words
    assert "holds a teacher: give it as the teacher" in run("caption", *files, "--student", git.onnx)
    shared = "caption", *files, "--dtype", "bfloat16"
    assert "compute in float32, not bfloat16" in run(*shared, "--teacher", git.onnx)
    assert "--dtype is of a teacher" in run(*shared, "--student", git.onnx)


def test_a_student_is_no_teacher(run, folder, tmp_path):
    assert run("caption", tmp_path, "--teacher", folder).endswith("holds a student: give it as the student")


@pytest.mark.parametrize("name", [
    "model.safetensors", "pytorch_model.bin", "model-00001-of-00002.safetensors",
])  # fmt: skip
def test_a_checkpoint_keeps_its_config(git, tmp_path, name):
    """An export into a checkpoint's own folder, whatever its weights are called."""
    shutil.copytree(git.folder, tmp_path / "there")
    (tmp_path / "there" / "model.safetensors").rename(tmp_path / "there" / name)
    before = (tmp_path / "there" / "config.json").read_bytes()
    captioner = load_teacher(git.folder)
    with pytest.raises(ValueError, match="holds a network's weights"):
        onnx_export.export(captioner, tmp_path / "there")
    assert (tmp_path / "there" / "config.json").read_bytes() == before


def test_attention_is_that_of_torch(git, student, folder):
    model, there = GenerativeImageTextModel.from_pretrained(git.folder), onnx.OnnxNetwork(git.onnx)
    clip, tokens = pixels(git, 1)[0], tiny_git.random_inputs(1)[1][0]
    raw, caption = clips(1)[0], torch.tensor([2, 8, 9, 7])
    for ours, theirs in (
        [attention_maps(network, clip, tokens) for network in (model, there)],
        [attention_maps(network, raw, caption) for network in (student.model, onnx.OnnxNetwork(folder))],
    ):
        for name in ("maps", "log_probs", "logits"):
            torch.testing.assert_close(getattr(theirs, name), getattr(ours, name), rtol=1e-3, atol=1e-5)


@torch.no_grad()
def test_int8_is_less_than_half_the_size_and_nearly_the_same(git, tmp_path):
    onnx_export.main([str(git.folder), str(tmp_path), "--int8"])
    small, there, raw = onnx.OnnxNetwork(tmp_path), onnx.OnnxNetwork(git.onnx), pixels(git, 3)
    tokens = tiny_git.random_inputs(3)[1]
    ours, theirs = (network.read_caption(raw, tokens)[0].log_softmax(-1) for network in (small, there))
    assert 0 < (ours - theirs).abs().mean() < 0.1 * theirs.std()
    assert (tmp_path / onnx.WEIGHTS).stat().st_size < 0.5 * (git.onnx / onnx.WEIGHTS).stat().st_size


@torch.no_grad()
def test_git_that_does_not_crop_reads_pictures_of_any_shape(tmp_path):
    """Wide, tall, long enough to shrink, and of the shape of the position embeddings; one frame or two."""
    model = tiny_git.lively_git(1, frames=3)
    model.config.test_respect_ratio_max = 36
    model.save_pretrained(tmp_path / "there")
    tiny_git.tokenizer().save_pretrained(tmp_path / "there")
    onnx_export.main([str(tmp_path / "there"), str(tmp_path / "onnx")])
    there, found = onnx.OnnxNetwork(tmp_path / "onnx"), []
    for count, (height, width) in enumerate([(20, 30), (45, 25), (20, 80), (21, 21)], start=1):
        raw = torch.randint(0, 256, (count, 1 + count % 2, 3, height, width), dtype=torch.uint8)
        cache, other = model.prefill(raw), there.prefill(raw)
        found.append(other.shared[0][0].shape[2])
        torch.testing.assert_close(other.shared, cache.shared, rtol=1e-4, atol=1e-4)
        ours, theirs = (beam(network, raw, max_length=9, beams=2).tokens for network in (model, there))
        assert torch.equal(ours, theirs)
    assert found == [2 * (1 + 4 * 6), 1 + 7 * 4, 2 * (1 + 2 * 9), 1 + 4 * 4]
