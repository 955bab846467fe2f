"""The student: what it sees, how it decodes, and how it is saved."""

import json

import pytest
import tiny
import torch
from safetensors.torch import load_file, save_file
from tiny_git import git_config, tokenizer
from torch import nn
from torch.nn import functional as F
from torch.testing import assert_close

from gitdistill.decoding import beam, greedy
from gitdistill.models.backbone import TinyVIT
from gitdistill.models.student import MASKED_LOGIT, PositionalEncoding, StudentCandidateV1
from gitdistill.models.tokenizer import to_text

VOCAB = len(tokenizer())
SIZES = {"embed_dim": 16, "layers": 2, "heads": 2, "mixer_layers": 1, "num_frames": 3, "max_positions": 10}
CLOSE = {"atol": 1e-5, "rtol": 1e-4}


def make(**options):
    torch.manual_seed(0)
    student = StudentCandidateV1(VOCAB, TinyVIT(**tiny.BACKBONE), **{**SIZES, **options})
    for module in student.modules():
        if isinstance(module, nn.BatchNorm2d):  # some of timm's start at zero, and frames then hardly differ
            nn.init.normal_(module.weight, mean=1.0, std=0.1)
    nn.init.normal_(student.head.bias)
    return student.eval()


@pytest.fixture(scope="module")
def student():
    return make()


@pytest.fixture
def frames():
    generator = torch.Generator().manual_seed(1)
    return torch.randint(0, 256, (2, 3, 3, 40, 36), dtype=torch.uint8, generator=generator)


@pytest.fixture
def captions():
    """Three captions for each of two clips, [6, 7], padded on the right."""
    tokens = torch.randint(5, VOCAB, (6, 7), generator=torch.Generator().manual_seed(2))
    tokens[:, 0] = 2
    for row, length in enumerate([6, 4, 5, 3, 6, 6]):
        tokens[row, length] = 3
        tokens[row, length + 1 :] = 0
    return tokens


def test_positions_are_the_papers():
    added = PositionalEncoding(6, 20)(torch.zeros(1, 20, 6))[0]
    for position in (0, 1, 19):
        angles = torch.tensor([position / 10_000 ** (2 * i / 6) for i in range(3)])
        assert_close(added[position, 0::2], angles.sin(), atol=1e-5, rtol=1e-5)
        assert_close(added[position, 1::2], angles.cos(), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("width", [7, 8])
def test_positions_are_added_from_the_start_given(width):
    encoding, x = PositionalEncoding(width, 9, dropout=0.5).eval(), torch.rand(2, 9, width)
    assert_close(encoding(x[:, 4:6], start=4), encoding(x)[:, 4:6])
    assert not list(encoding.state_dict()) and (encoding.train()(x) == 0).any()
    assert len({tuple(row) for row in encoding.table.tolist()}) == 9
    for length, start in ((10, 0), (1, 9)):
        with pytest.raises(ValueError, match="^a sequence of 10 is longer than the 9 positions"):
            encoding(torch.zeros(1, length, width), start)


# what it sees


def test_shapes(student, frames, captions):
    output = student(frames, captions[::3])
    assert output.logits.shape == (2, 7, VOCAB)
    maps = [(2, 3, 8, 8, 8), (2, 3, 16, 4, 4), (2, 3, 32, 2, 2)]
    assert [tuple(m.shape) for m in output.feature_maps] == maps
    assert output.memory.shape == (2, 3 * 2 * 2, 16)
    assert [tuple(h.shape) for h in output.hidden_states] == [(2, 7, 16)] * 3
    assert_close(student.head(output.hidden_states[-1]), output.logits)


def test_an_image_is_a_clip_of_one_frame(student, frames, captions):
    image, clip = student(frames[:, 0], captions[::3]), student(frames[:, :1], captions[::3])
    assert_close(image.logits, clip.logits)
    assert image.memory.shape == (2, 4, 16)


def test_a_reversed_clip_is_another_clip(student, frames, captions):
    """Unless there is neither a temporal embedding nor a mixer."""
    forwards, backwards = (student(f, captions[::3]).logits for f in (frames, frames.flip(1)))
    assert (forwards - backwards).abs().max() > 1e-2
    student = make(mixer_layers=0)
    nn.init.zeros_(student.temporal)
    forwards, backwards = (student(f, captions[::3]).logits for f in (frames, frames.flip(1)))
    assert_close(forwards, backwards, **CLOSE)


def test_frames_see_each_other_in_the_mixer(frames):
    changed = frames.clone()
    changed[:, 2] = 0
    for layers, expected in ((1, False), (0, True)):
        student = make(mixer_layers=layers)
        before, after = student.encode(frames)[1], student.encode(changed)[1]
        assert torch.allclose(before[:, :8], after[:, :8], atol=1e-5) is expected  # of frames 0 and 1
        assert not torch.allclose(before[:, 8:], after[:, 8:], atol=1e-3)


def test_image_features_keep_their_place(frames):
    """Memory before the mixer: frame by frame, row by row."""
    student = make(mixer_layers=0)
    output = student(frames, torch.tensor([[2], [2]]))
    feature = output.feature_maps[-1][1, 2, :, 1, 0]  # clip 1, frame 2, row 1, column 0
    expected = student.projection(feature) + student.spatial[2] + student.temporal[2]
    assert_close(output.memory[1, 2 * 4 + 2], student.memory_norm(expected), **CLOSE)


def test_captions_are_those_of_the_search_as_text(student, frames):
    expected = to_text(greedy(student, frames, max_length=8).tokens[:, 0], tokenizer())
    assert student.caption(frames, tokenizer(), max_length=8) == expected
    assert len(student.caption(frames, tokenizer(), beams=3, max_length=6)) == 2


# mistakes


@pytest.mark.parametrize(
    "shape, message",
    [
        ((2, 4, 3, 32, 32), "4 frames a clip, .* at most 3"),
        ((2, 3, 3, 64, 32), "pixels of 64 x 32, .* reads 32 x 32"),
    ],
)
def test_frames_that_do_not_fit(student, shape, message):
    for call in (student.prefill, lambda frames: student(frames, torch.full((2, 1), 2))):
        with pytest.raises(ValueError, match=message):
            call(torch.zeros(shape))


@pytest.mark.parametrize(
    "options, message",
    [
        ({"eos_token_id": VOCAB}, f"0 to {VOCAB} do not fit a vocabulary of {VOCAB} words"),
        ({"vocab_subset": [VOCAB]}, f"0 to {VOCAB} do not fit a vocabulary of {VOCAB} words"),
        ({"heads": 3}, "embed_dim 16 is not divisible by 3 heads"),
    ],
)
def test_a_student_that_cannot_be_built(options, message):
    with pytest.raises(ValueError, match=message):
        StudentCandidateV1(**{"vocab_size": VOCAB, "backbone": tiny.backbone(), **SIZES, **options})


# a subset of the vocabulary

SUBSET = [5, 6, 8, 11]
KNOWN = [0, 1, 2, 3, *SUBSET]  # with the special tokens


def test_a_subset_reads_and_generates_as_a_whole_student_with_these_words(frames, captions):
    small, whole = make(vocab_subset=SUBSET), make()
    assert small.vocab_subset.tolist() == KNOWN and small.words.weight.shape == (8, 16)
    saved = sum(p.numel() for p in whole.parameters()) - sum(p.numel() for p in small.parameters())
    assert saved == (VOCAB - 8) * 17
    weights = dict(whole.state_dict())
    for key in ("words.weight", "head.weight", "head.bias"):
        weights[key] = weights[key][KNOWN]
    small.load_state_dict({**weights, "vocab_subset": small.vocab_subset})
    tokens = captions[::3].clone()
    tokens[:, 1:3] = torch.tensor([6, 11])
    read = torch.where(torch.isin(tokens, torch.tensor(KNOWN)), tokens, 1)  # other words are unknown
    a, b = small(frames, tokens), whole(frames, read)
    assert_close(a.logits[..., KNOWN], b.logits[..., KNOWN], **CLOSE)
    assert_close(a.subset_logits, a.logits[..., KNOWN])
    others = [v for v in range(VOCAB) if v not in KNOWN]
    assert (a.logits[..., others] == MASKED_LOGIT).all() and a.logits.shape == b.logits.shape
    found = beam(small, frames, beams=3, max_length=8, num_return=3).tokens
    assert set(found.unique().tolist()) <= set(KNOWN)


@pytest.mark.parametrize("subset, frames", [(None, None), (SUBSET, 3)])
def test_like_a_teacher(subset, frames):
    teacher = nn.Module()
    teacher.vocab_size, teacher.bos_token_id, teacher.eos_token_id, teacher.pad_token_id = 30, 21, 22, 5
    teacher.tokenizer, teacher.config = tokenizer(), git_config(frames)
    sizes = {name: size for name, size in SIZES.items() if name != "num_frames"}
    student = StudentCandidateV1.like(teacher, backbone=tiny.backbone(), vocab_subset=subset, **sizes)
    special = [student.bos_token_id, student.eos_token_id, student.pad_token_id, student.unk_token_id]
    assert [student.vocab_size, student.num_frames, *special] == [30, frames or 1, 21, 22, 5, 1]
    assert student.head.out_features == (30 if subset is None else len({*SUBSET, *special}))


# training


def test_frozen_norms_keep_their_statistics(frames, captions):
    for freeze in (False, True):
        student = make(freeze_norm=freeze).train()
        norms = [m for m in student.modules() if isinstance(m, nn.BatchNorm2d)]
        before = [m.running_mean.clone() for m in norms]
        student(frames, captions[::3]).logits.sum().backward()
        assert all(torch.equal(a, m.running_mean) for a, m in zip(before, norms)) is freeze
        assert all(m.weight.grad is not None for m in norms) and student.mixer.training
    clip = student(frames[:1], captions[:1]).logits  # a batch of one is read like any other
    assert_close(clip, student(frames, captions[::3]).logits[:1], **CLOSE)


@pytest.mark.parametrize("tie", [True, False])
def test_gradients_reach_every_parameter(frames, captions, tie):
    student = make(tie=tie).train()
    logits = student(frames, captions).logits
    F.cross_entropy(logits[:, :-1].flatten(0, 1), captions[:, 1:].flatten(), ignore_index=0).backward()
    # keys' biases shift all scores of a query alike, which the softmax cannot see
    learning = {
        name for name, p in student.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0
    }
    idle = {name for name, _ in student.named_parameters()} - learning
    assert all(name.endswith("key.bias") for name in idle)
    assert (student.head.weight is student.words.weight) == tie


def test_dropout_only_in_training(frames, captions):
    student = make(dropout=0.3)
    for training in (False, True):
        student.train(training).backbone.eval()
        first, second = (student(frames, captions).logits for _ in range(2))
        assert torch.allclose(first, second, atol=1e-3) is not training


def test_parameters_are_contiguous(student, tmp_path):
    """As flat vectors (LBFGS, pruning) and safetensors want them."""
    vector = nn.utils.parameters_to_vector(student.parameters())
    assert len(vector) == sum(p.numel() for p in student.parameters())
    state = {name: value for name, value in student.state_dict().items() if name != "head.weight"}  # tied
    save_file(state, tmp_path / "state.safetensors")


# saving


@pytest.mark.parametrize("subset", [None, SUBSET])
@pytest.mark.parametrize("tie", [True, False])
def test_saved_and_loaded_again(tmp_path, frames, captions, tie, subset):
    student = make(tie=tie, eos_token_id=4, vocab_subset=subset)
    student.save_pretrained(tmp_path / "student")
    assert {p.name for p in (tmp_path / "student").iterdir()} == {"config.json", "model.safetensors"}
    loaded = StudentCandidateV1.from_pretrained(tmp_path / "student")
    assert not loaded.training and loaded.config == student.config and loaded.eos_token_id == 4
    assert loaded.backbone.config == student.backbone.config
    assert torch.equal(loaded(frames, captions).logits, student(frames, captions).logits)
    assert ("head.weight" in load_file(tmp_path / "student" / "model.safetensors")) != tie
    assert (loaded.head.weight is loaded.words.weight) == tie


def test_a_backbone_from_a_folder(tmp_path, frames):
    backbone = tiny.backbone().eval()
    backbone.save_pretrained(tmp_path)
    student = StudentCandidateV1(VOCAB, str(tmp_path), **SIZES).eval()
    assert_close(student.backbone(frames)[-1], backbone(frames)[-1])


def test_a_folder_that_is_no_student(tmp_path, student):
    with pytest.raises(FileNotFoundError, match=r"no config\.json$"):
        StudentCandidateV1.from_pretrained(tmp_path)
    student.backbone.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"config\.json describes nothing.*, not a StudentCandidateV1$"):
        StudentCandidateV1.from_pretrained(tmp_path)
    student.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="describes 'StudentCandidateV1', not a TinyVIT$"):
        TinyVIT.from_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    weights["odd"] = weights.pop("norm.bias")
    save_file(weights, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match="missing: norm.bias; unexpected: odd$"):
        StudentCandidateV1.from_pretrained(tmp_path)


@pytest.mark.parametrize("value", [0, -1, 10**10, 999_999, 1.5, None, "x", [], {}, float("nan")])
@pytest.mark.parametrize(
    "name", ["embed_dim", "layers", "heads", "num_frames", "max_positions", "image_size", "depths"]
)
def test_sizes_that_the_weights_do_not_have_are_named_before_anything_is_built(
    tmp_path, student, name, value
):
    student.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    if name in config["backbone"]:
        config["backbone"][name] = [value] * 3 if name == "depths" else value
    else:
        config[name] = value
    (tmp_path / "config.json").write_text(json.dumps(config))
    allocated = []
    watch = nn.modules.module.register_module_parameter_registration_hook
    with watch(lambda module, _, parameter: allocated.append(parameter.device.type)):
        with pytest.raises(ValueError, match=rf"^[^\n]*{tmp_path}[^\n]*$"):
            StudentCandidateV1.from_pretrained(tmp_path)
    assert set(allocated) <= {"meta"} and len(allocated) < 2000


@pytest.mark.parametrize(
    "text", ["[" * 100_000, '{"layers": ' + "9" * 10**7 + "}", '{"a":' * 100_000, "{}", "[1]", "\ud800"]
)
def test_a_configuration_that_is_none(tmp_path, student, text):
    student.save_pretrained(tmp_path)
    (tmp_path / "config.json").write_bytes(text.encode("utf-8", "surrogatepass"))
    with pytest.raises(ValueError, match=rf"^{tmp_path}/config.json [^\n]*$"):
        StudentCandidateV1.from_pretrained(tmp_path)
