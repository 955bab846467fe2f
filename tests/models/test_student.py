"""The student: what it sees, how it decodes, and how it is saved."""

import json
import os

import pytest
import safetensors.torch
import torch
from torch import nn
from torch.nn import functional as F
from transformers import BertTokenizerFast

from gitdistill.decoding import beam, greedy
from gitdistill.models import storage
from gitdistill.models.attention import packed_causal_mask
from gitdistill.models.backbone import TinyVIT, WindowAttention
from gitdistill.models.student import MASKED_LOGIT, PositionalEncoding, StudentCandidateV1
from gitdistill.world.pretrain import EMBEDDED

WORDS = [
    "[PAD]",
    "[UNK]",
    "[CLS]",
    "[SEP]",
    "[MASK]",
    *["a", "red", "blue", "star", "moon", "moves", "still", "up", "down", "left"],
]
VOCAB = len(WORDS)
SIZES = {"embed_dim": 16, "layers": 2, "heads": 2, "mixer_layers": 1, "num_frames": 3, "max_positions": 10}


def tiny_backbone():
    return TinyVIT(
        image_size=32,
        embed_dims=[8, 16, 16],
        depths=[1, 1, 1],
        num_heads=[1, 2, 4],
        window_sizes=[2, 2, 2],
        out_indices=[0, 1, 2],
    )


def tiny_student(**options):
    """Random, and far enough from its initialisation for every parameter to matter."""
    torch.manual_seed(0)
    student = StudentCandidateV1(VOCAB, tiny_backbone(), **{**SIZES, **options})
    for module in student.modules():
        if isinstance(module, WindowAttention):
            nn.init.normal_(module.attention_biases)
        if isinstance(
            module, nn.BatchNorm2d
        ):  # timm starts the last of a block at zero: nothing below learns
            nn.init.normal_(module.weight, mean=1.0, std=0.1)
    nn.init.normal_(student.head.bias)
    return student.eval()


@pytest.fixture(scope="module")
def student():
    return tiny_student()


@pytest.fixture
def frames():
    return torch.randint(
        0, 256, (2, 3, 3, 40, 36), dtype=torch.uint8, generator=torch.Generator().manual_seed(1)
    )


@pytest.fixture
def captions():
    """Three captions for each of two clips, [6, 7], padded on the right."""
    tokens = torch.randint(5, VOCAB, (6, 7), generator=torch.Generator().manual_seed(2))
    tokens[:, 0] = 2
    for row, length in enumerate([6, 4, 5, 3, 6, 6]):
        tokens[row, length] = 3
        tokens[row, length + 1 :] = 0
    return tokens


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    path = tmp_path_factory.mktemp("vocabulary") / "vocab.txt"
    path.write_text("\n".join(WORDS))
    return BertTokenizerFast(vocab=str(path))


# positions


def test_positions_are_the_papers():
    encoding = PositionalEncoding(6, 20)
    added = encoding(torch.zeros(1, 20, 6))[0]
    for position in (0, 1, 19):
        for i in range(3):
            angle = torch.tensor(position / 10_000 ** (2 * i / 6))
            torch.testing.assert_close(added[position, 2 * i], angle.sin(), atol=1e-5, rtol=1e-5)
            torch.testing.assert_close(added[position, 2 * i + 1], angle.cos(), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("width", [7, 8])
def test_positions_are_added_from_the_start_given(width):
    encoding, x = PositionalEncoding(width, 9), torch.rand(2, 9, width)
    torch.testing.assert_close(encoding(x[:, 4:6], start=4), encoding(x)[:, 4:6])
    assert not list(encoding.state_dict())
    assert len({tuple(row) for row in encoding.table.tolist()}) == 9


@pytest.mark.parametrize("length, start", [(10, 0), (1, 9)])
def test_positions_beyond_the_last_are_refused_in_one_line(length, start):
    with pytest.raises(ValueError, match="^a sequence of 10 is longer than the 9 positions encoded$"):
        PositionalEncoding(8, 9)(torch.zeros(1, length, 8), start)


def test_positions_drop_out():
    encoding = PositionalEncoding(8, 9, dropout=0.5).train()
    assert (encoding(torch.ones(1, 9, 8)) == 0).any()
    assert (encoding.eval()(torch.ones(1, 9, 8)) != 0).all()


# what it sees


def test_shapes(student, frames, captions):
    output = student(frames, captions[::3])
    assert output.logits.shape == (2, 7, VOCAB)
    assert [tuple(m.shape) for m in output.feature_maps] == [
        (2, 3, 8, 8, 8),
        (2, 3, 16, 4, 4),
        (2, 3, 16, 2, 2),
    ]
    assert output.memory.shape == (2, 3 * 2 * 2, 16)
    assert [tuple(h.shape) for h in output.hidden_states] == [(2, 7, 16)] * 3
    torch.testing.assert_close(student.head(output.hidden_states[-1]), output.logits)


def test_the_embedded_size():
    student = StudentCandidateV1(115, TinyVIT(**EMBEDDED))
    assert 0.7e6 < sum(p.numel() for p in student.parameters()) < 1e6
    assert student.spatial.std() > 0.4 and student.temporal.std() > 0.4


def test_an_image_is_a_clip_of_one_frame(student, frames, captions):
    image, clip = student(frames[:, 0], captions[::3]), student(frames[:, :1], captions[::3])
    torch.testing.assert_close(image.logits, clip.logits)
    assert image.memory.shape == (2, 4, 16)


def test_a_reversed_clip_is_another_clip(student, frames, captions):
    forwards, backwards = (student(f, captions[::3]).logits for f in (frames, frames.flip(1)))
    assert (forwards - backwards).abs().max() > 1e-2


def test_without_marks_and_mixer_order_would_not_matter(frames, captions):
    student = tiny_student(mixer_layers=0)
    nn.init.zeros_(student.temporal)
    forwards, backwards = (student(f, captions[::3]).logits for f in (frames, frames.flip(1)))
    torch.testing.assert_close(forwards, backwards, atol=1e-5, rtol=1e-4)


def test_frames_see_each_other_in_the_mixer(frames):
    changed = frames.clone()
    changed[:, 2] = 0
    for layers, expected in ((1, False), (0, True)):
        student = tiny_student(mixer_layers=layers)
        before, after = student.encode(frames)[1], student.encode(changed)[1]
        assert torch.allclose(before[:, :8], after[:, :8], atol=1e-5) is expected  # of frames 0 and 1
        assert not torch.allclose(before[:, 8:], after[:, 8:], atol=1e-3)


def test_the_text_sees_the_past_only(student, frames, captions):
    changed = captions[::3].clone()
    changed[:, 4:] = 9
    before, after = student(frames, captions[::3]).logits, student(frames, changed).logits
    torch.testing.assert_close(before[:, :4], after[:, :4], atol=1e-5, rtol=1e-4)
    assert not torch.allclose(before[:, 4:], after[:, 4:], atol=1e-2)


def test_padding_changes_nothing(student, frames, captions):
    longer = F.pad(captions[::3], (0, 3))
    torch.testing.assert_close(
        student(frames, longer).logits[:, :7], student(frames, captions[::3]).logits, atol=1e-5, rtol=1e-4
    )


def test_cells_keep_their_place(frames):
    """Memory before the mixer: frame by frame, row by row."""
    student = tiny_student(mixer_layers=0)
    output = student(frames, torch.tensor([[2], [2]]))
    cell = output.feature_maps[-1][1, 2, :, 1, 0]  # clip 1, frame 2, row 1, column 0
    expected = student.projection(cell) + student.spatial[2] + student.temporal[2]
    torch.testing.assert_close(
        output.memory[1, 2 * 4 + 2], student.memory_norm(expected), atol=1e-5, rtol=1e-4
    )


# several captions a clip, step by step


def test_captions_of_a_clip_equal_one_by_one(student, frames, captions):
    together = student(frames, captions)
    for k in range(3):
        alone = student(frames, captions[k::3])
        torch.testing.assert_close(together.logits[k::3], alone.logits, atol=1e-5, rtol=1e-4)
        for a, b in zip(together.hidden_states, alone.hidden_states, strict=True):
            torch.testing.assert_close(a[k::3], b, atol=1e-5, rtol=1e-4)
    assert together.memory.shape[0] == 2


@pytest.mark.parametrize("pieces", [[1] * 7, [3, 1, 3], [7]])
def test_cached_equals_uncached(student, frames, captions, pieces):
    state, logits = student.prefill(frames), []
    for piece in captions.split(pieces, dim=1):
        step, state = student.decode_step(piece, state)
        logits.append(step)
    assert state.length == 7
    torch.testing.assert_close(
        torch.cat(logits, dim=1), student(frames, captions).logits, atol=1e-5, rtol=1e-4
    )


def test_rows_expand_and_reorder(student, frames, captions):
    first = captions[::3, :2]
    _, state = student.decode_step(first, student.prefill(frames))
    state = state.reorder(torch.tensor([0, 0, 1, 1]))
    _, state = student.decode_step(captions[[0, 1, 3, 4], 2:4], state)
    state = state.reorder(torch.tensor([1, 0, 2, 2]))
    logits, _ = student.decode_step(captions[[0, 1, 3, 4], 4:5], state)
    rows = [[0, 1], [0, 0], [3, 3], [3, 3]]  # whose first two, whose next two tokens
    texts = [
        torch.cat([captions[a, :2], captions[b, 2:4], captions[c, 4:5]])
        for (a, b), c in zip(rows, [0, 1, 3, 4], strict=True)
    ]
    expected = student(frames, torch.stack(texts)).logits[:, -1:]
    torch.testing.assert_close(logits, expected, atol=1e-5, rtol=1e-4)


def test_the_image_is_read_once_and_never_copied(student, frames):
    state = student.prefill(frames)
    _, grown = student.decode_step(torch.full((2, 1), 2), state)
    grown = grown.reorder(torch.tensor([0, 0, 0, 1, 1, 1]))
    assert all(a is b for a, b in zip(state.shared, grown.shared, strict=True))
    assert grown.shared[0][0].shape[0] == 2


def greedy_by_hand(student, frames, length):
    tokens = torch.full((len(frames), 1), student.bos_token_id)
    for _ in range(length - 1):
        tokens = torch.cat([tokens, student(frames, tokens).logits[:, -1:].argmax(-1)], dim=1)
    return tokens


def test_greedy_is_argmax_step_by_step(student, frames):
    result = greedy(student, frames, max_length=8)
    by_hand = greedy_by_hand(student, frames, 8)
    for row, expected in zip(result.tokens[:, 0].tolist(), by_hand.tolist(), strict=True):
        end = row.index(3) + 1 if 3 in row else len(row)
        assert row[:end] == expected[:end]


def test_the_score_of_each_beam_is_its_captions(student, frames):
    result = beam(student, frames, beams=4, max_length=6, length_penalty=0.0, num_return=4)
    tokens = result.tokens.flatten(0, 1)  # (B*4, T)
    log_probs = student(frames, tokens).logits[:, :-1].log_softmax(-1)
    spoken = log_probs.gather(-1, tokens[:, 1:, None])[..., 0].masked_fill(tokens[:, 1:] == 0, 0)
    ended = (tokens[:, :-1] == 3).cumsum(1) > 0
    expected = spoken.masked_fill(ended, 0).sum(1).unflatten(0, (2, 4))
    torch.testing.assert_close(result.scores, expected, atol=1e-4, rtol=1e-4)
    assert len({tuple(row) for row in tokens[:4].tolist()}) == 4


def test_captions_are_text(student, frames, tokenizer):
    expected = tokenizer.batch_decode(
        [row[: row.index(3)] if 3 in row else row for row in greedy_by_hand(student, frames, 6).tolist()],
        skip_special_tokens=True,
    )
    assert student.caption(frames, tokenizer, max_length=6) == expected
    assert len(student.caption(frames, tokenizer, beams=3, max_length=6)) == 2


def test_another_vocabulary_is_refused(frames, tokenizer):
    with pytest.raises(ValueError, match="^the tokenizer has 15 words, but the model has 16$"):
        StudentCandidateV1(VOCAB + 1, tiny_backbone(), **SIZES).caption(frames, tokenizer, max_length=6)


# mistakes


@pytest.mark.parametrize(
    "shape, dtype, message",
    [
        ((2, 4, 3, 32, 32), torch.uint8, "4 frames a clip, but this student reads at most 3"),
        (
            (2, 3, 3, 32, 32),
            torch.int64,
            "frames must be uint8 (raw) or floating (preprocessed pixels), not torch.int64",
        ),
        (
            (2, 3, 1, 32, 32),
            torch.uint8,
            "frames must be [B, F, 3, H, W] or [B, 3, H, W], not [2, 3, 1, 32, 32]",
        ),
        ((2, 3, 3, 64, 32), torch.float32, "pixels of 64 x 32, but this student reads 32 x 32"),
    ],
)
def test_frames_that_do_not_fit(student, shape, dtype, message):
    for call in (student.prefill, lambda frames: student(frames, torch.full((2, 1), 2))):
        with pytest.raises(ValueError) as error:
            call(torch.zeros(shape, dtype=dtype))
        assert str(error.value) == message


@pytest.mark.parametrize(
    "tokens, message",
    [
        (torch.full((2, 11), 2), "a caption of 11 tokens is longer than the model's 10 positions"),
        (torch.full((3, 4), 2), "3 captions do not divide among 2 clips"),
        (torch.full((2, 4), 2, dtype=torch.int32), "tokens must be long [B, T], not torch.int32 [2, 4]"),
    ],
)
def test_tokens_that_do_not_fit(student, frames, tokens, message):
    with pytest.raises(ValueError) as error:
        student(frames, tokens)
    assert str(error.value) == message


def test_a_caption_that_grows_too_long(student, frames):
    _, state = student.decode_step(torch.full((2, 10), 2), student.prefill(frames))
    with pytest.raises(ValueError, match="^a caption of 11 tokens is longer than the model's 10 positions$"):
        student.decode_step(torch.full((2, 1), 2), state)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"eos_token_id": VOCAB}, f"^eos_token_id {VOCAB} is outside the vocabulary of {VOCAB} words$"),
        ({"heads": 3}, "^embed_dim 16 is not divisible by 3 heads$"),
        ({"layers": 0}, "must be at least 1$"),
        ({"backbone": "tiny_vit_5"}, "^timm has no model 'tiny_vit_5'; did you mean"),
    ],
)
def test_a_student_that_cannot_be_built(options, message):
    with pytest.raises(ValueError, match=message):
        StudentCandidateV1(**{"vocab_size": VOCAB, "backbone": tiny_backbone(), **SIZES, **options})


# fewer words

KEEP = [5, 6, 8, 11]  # with the special tokens 0, 1, 2 and 3: eight of fifteen


def test_a_trimmed_student_reads_and_says_the_same_as_a_whole_one_of_these_words(frames, captions):
    trimmed, whole = tiny_student(vocab_subset=KEEP), tiny_student()
    known = [0, 1, 2, 3, *KEEP]
    assert trimmed.vocab_subset.tolist() == known and trimmed.words.weight.shape == (8, 16)
    assert sum(p.numel() for p in trimmed.parameters()) == sum(p.numel() for p in whole.parameters()) - 7 * 17
    weights = dict(whole.state_dict())
    for key in ("words.weight", "head.weight", "head.bias"):
        weights[key] = weights[key][known]
    trimmed.load_state_dict({**weights, "vocab_subset": trimmed.vocab_subset})
    tokens = captions[::3].clone()
    tokens[:, 1:3] = torch.tensor([6, 11])
    said = torch.where(torch.isin(tokens, torch.tensor(known)), tokens, 1)  # other words are read as unknown
    a, b = trimmed(frames, tokens), whole(frames, said)
    torch.testing.assert_close(a.logits[..., known], b.logits[..., known], atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(a.subset_logits, a.logits[..., known])
    others = [v for v in range(VOCAB) if v not in known]
    assert (a.logits[..., others] == MASKED_LOGIT).all() and a.logits.shape == b.logits.shape


def test_a_trimmed_student_says_its_own_words_only(frames, tokenizer, tmp_path):
    student = tiny_student(vocab_subset=KEEP)
    found = beam(student, frames, beams=3, max_length=8, num_return=3).tokens
    assert set(found.unique().tolist()) <= {0, 1, 2, 3, *KEEP}
    student.save_pretrained(tmp_path)
    loaded = StudentCandidateV1.from_pretrained(tmp_path)
    assert loaded.vocab_subset.tolist() == student.vocab_subset.tolist() and torch.equal(
        loaded.subset_index, student.subset_index
    )
    assert loaded.caption(frames, tokenizer, max_length=8) == student.caption(frames, tokenizer, max_length=8)


def test_words_to_keep_must_exist():
    with pytest.raises(ValueError, match="^vocab_subset has words outside the vocabulary of 15: 0 to 15$"):
        tiny_student(vocab_subset=[15])


def test_trimmed_like_a_teacher(tokenizer):
    teacher = nn.Module()
    teacher.vocab_size, teacher.bos_token_id, teacher.eos_token_id, teacher.pad_token_id = 15, 2, 3, 0
    teacher.tokenizer = tokenizer
    student = StudentCandidateV1.like(teacher, backbone=tiny_backbone(), vocab_subset=KEEP, **SIZES)
    assert student.unk_token_id == 1 and len(student.vocab_subset) == 8


# training


def test_frozen_norms_keep_their_statistics(frames, captions):
    for freeze in (False, True):
        student = tiny_student(freeze_norm=freeze).train()
        norms = [m for m in student.modules() if isinstance(m, nn.BatchNorm2d)]
        before = [m.running_mean.clone() for m in norms]
        student(frames, captions[::3]).logits.sum().backward()
        assert all(torch.equal(a, m.running_mean) for a, m in zip(before, norms)) is freeze
        assert all(m.weight.grad is not None for m in norms) and student.mixer.training
    clip = student(frames[:1], captions[:1]).logits  # a batch of one is read like any other
    torch.testing.assert_close(clip, student(frames, captions[::3]).logits[:1], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("tie", [True, False])
def test_gradients_reach_every_parameter(frames, captions, tie):
    student = tiny_student(tie=tie).train()
    logits = student(frames, captions).logits
    F.cross_entropy(logits[:, :-1].flatten(0, 1), captions[:, 1:].flatten(), ignore_index=0).backward()
    # keys' biases shift all scores of a query alike, which the softmax cannot see
    still = [
        name
        for name, parameter in student.named_parameters()
        if (parameter.grad is None or not parameter.grad.abs().sum() > 0) and not name.endswith("key.bias")
    ]
    assert still == []
    assert (student.head.weight is student.words.weight) == tie


def test_it_learns_two_clips_by_heart(frames, captions):
    student = tiny_student().train()
    optimizer = torch.optim.AdamW(student.parameters(), lr=1e-2)
    pair = captions[[0, 3]]
    for _ in range(60):
        optimizer.zero_grad()
        logits = student(frames, pair).logits
        loss = F.cross_entropy(logits[:, :-1].flatten(0, 1), pair[:, 1:].flatten(), ignore_index=0)
        loss.backward()
        optimizer.step()
    assert loss < 0.05
    for module in student.modules():  # what it learned, it learned with each batch's own statistics
        if isinstance(module, nn.BatchNorm2d):
            module.track_running_stats, module.running_mean, module.running_var = False, None, None
    for row, expected in zip(greedy(student, frames, max_length=7).tokens[:, 0], pair, strict=True):
        end = expected.tolist().index(3) + 1
        assert row[:end].tolist() == expected[:end].tolist()


def test_dropout_only_in_training(frames, captions):
    student = tiny_student(dropout=0.3)
    pair = captions[::3]
    torch.testing.assert_close(student(frames, pair).logits, student(frames, pair).logits)
    student.train()
    student.backbone.eval()
    assert not torch.allclose(student(frames, pair).logits, student(frames, pair).logits, atol=1e-3)


def test_the_same_words_as_a_teacher():
    teacher = nn.Module()
    teacher.vocab_size, teacher.bos_token_id, teacher.eos_token_id, teacher.pad_token_id = 30, 21, 22, 5
    student = StudentCandidateV1.like(teacher, backbone=tiny_backbone(), **SIZES)
    assert [student.vocab_size, student.bos_token_id, student.eos_token_id, student.pad_token_id] == [
        30,
        21,
        22,
        5,
    ]


# saving


@pytest.mark.parametrize("tie", [True, False])
def test_saved_and_loaded_again(tmp_path, frames, captions, tie):
    student = tiny_student(tie=tie, eos_token_id=4)
    student.save_pretrained(tmp_path / "student")
    assert {p.name for p in (tmp_path / "student").iterdir()} == {"config.json", "model.safetensors"}
    loaded = StudentCandidateV1.from_pretrained(tmp_path / "student")
    assert not loaded.training and loaded.config == student.config and loaded.eos_token_id == 4
    assert loaded.backbone.config == student.backbone.config
    assert torch.equal(loaded(frames, captions).logits, student(frames, captions).logits)
    stored = safetensors.torch.load_file(tmp_path / "student" / "model.safetensors")
    assert ("head.weight" in stored) != tie
    assert (loaded.head.weight is loaded.words.weight) == tie


def test_a_backbone_from_a_folder(tmp_path, frames):
    backbone = tiny_backbone().eval()
    backbone.save_pretrained(tmp_path)
    student = StudentCandidateV1(VOCAB, str(tmp_path), **SIZES).eval()
    torch.testing.assert_close(student.backbone(frames)[-1], backbone(frames)[-1])


def test_a_timm_name_means_its_pretrained_weights(monkeypatch):
    asked = {}

    def offline(name, pretrained, timm_args):
        asked.update(name=name, pretrained=pretrained)
        raise FileNotFoundError

    monkeypatch.setattr("gitdistill.models.backbone.build", offline)
    with pytest.raises(FileNotFoundError):
        StudentCandidateV1(VOCAB, "tiny_vit_5m_224.in1k")
    assert asked == {"name": "tiny_vit_5m_224.in1k", "pretrained": True}


def test_a_folder_that_is_no_student(tmp_path, student):
    with pytest.raises(FileNotFoundError, match=r"^\S+ is no checkpoint folder: it has no config\.json$"):
        StudentCandidateV1.from_pretrained(tmp_path)
    student.backbone.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"config\.json does not describe a StudentCandidateV1$"):
        StudentCandidateV1.from_pretrained(tmp_path)
    student.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "odd": 1}))
    with pytest.raises(ValueError, match=r"config\.json does not fit: .*unexpected keyword argument 'odd'$"):
        StudentCandidateV1.from_pretrained(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ValueError, match=r"config\.json is not valid JSON: [^\n]*$"):
        StudentCandidateV1.from_pretrained(tmp_path)


def test_weights_that_do_not_fit_are_named(tmp_path, student):
    student.save_pretrained(tmp_path)
    path = tmp_path / "model.safetensors"
    weights = safetensors.torch.load_file(path)
    weights["spatial"] = weights["spatial"][:3].clone()
    weights["odd"] = weights.pop("norm.bias")
    safetensors.torch.save_file(weights, path)
    with pytest.raises(ValueError) as error:
        StudentCandidateV1.from_pretrained(tmp_path)
    assert str(error.value).endswith(
        "do not fit; missing: norm.bias; unexpected: odd; misshapen: spatial [3, 16] instead of [4, 16]"
    )
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(ValueError, match=r"model\.safetensors is not readable as weights: [^\n]*$"):
        StudentCandidateV1.from_pretrained(tmp_path)
    path.unlink()
    with pytest.raises(FileNotFoundError, match=r"^there is no weights file \S*model\.safetensors$"):
        StudentCandidateV1.from_pretrained(tmp_path)


def test_the_mask_lets_each_caption_see_itself_so_far():
    mask = packed_causal_mask(rows=2, new=2, total=3, image=1)
    assert mask.int().tolist() == [
        [1, 1, 1, 0, 0, 0, 0],
        [1, 1, 1, 1, 0, 0, 0],
        [1, 0, 0, 0, 1, 1, 0],
        [1, 0, 0, 0, 1, 1, 1],
    ]


def test_all_files_have_the_mode_that_the_umask_says(tmp_path):
    before = os.umask(0o027)
    try:
        storage.write_folder(tmp_path / "end", {}, {"weight": torch.zeros(2)})
    finally:
        os.umask(before)
    assert {path.name: path.stat().st_mode & 0o777 for path in (tmp_path / "end").iterdir()} == {
        "config.json": 0o640,
        "model.safetensors": 0o640,
    }
