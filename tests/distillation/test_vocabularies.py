"""Students whose words are not the teacher's, and networks that have room for more words than there are."""

from functools import partial

import pytest
import tiny
import torch
from fits import NONE, distillation, fit_quietly
from transformers import BertTokenizerFast

from gitdistill import DistillationTrainer, GenerativeImageTextModel, GenerativeImageTextTeacher
from gitdistill.distillation.checks import check_gradients
from gitdistill.models.student import StudentCandidateV1
from gitdistill.models.tokenizer import to_text
from gitdistill.world.module import toybox_tokenizer
from gitdistill.world.pretrain import toybox_git_config

OPTIONS = {"kl": 0.0, "features": 1.0, "sequence": 1.0, "visual": 1.0, "max_length": 8}


@pytest.fixture
def words(tmp_path):
    """A tokenizer of the embedded world's words in another order, and with other special tokens."""
    plain = [word for word in toybox_tokenizer().get_vocab() if not word.startswith("[")]
    special = ["[CLS]", "[SEP]", "[PAD]", "[UNK]", "[MASK]"]
    path = tmp_path / "vocab.txt"
    path.write_text("\n".join([*special, *sorted(plain, reverse=True)]))
    return BertTokenizerFast(str(path))


@pytest.fixture
def data(words):
    return tiny.data(tokenizer=words)


def student(words):
    special = {"bos_token_id": words.cls_token_id, "eos_token_id": words.sep_token_id}
    sizes = {"embed_dim": 32, "layers": 2, "heads": 2, "num_frames": tiny.FRAMES}
    return StudentCandidateV1(
        len(words), tiny.backbone(), **sizes, **special, pad_token_id=words.pad_token_id
    )


def test_the_teachers_captions_pass_as_text(words, data):
    batch = next(iter(data.train_dataloader()))
    found = distillation(student(words), **OPTIONS, tokenizer=words)
    outputs = found.outputs(batch)
    plain = distillation(**OPTIONS)
    theirs = plain.outputs({**batch, "tokens": torch.full((8, 1), 2)}).tokens[:, -1]
    texts = to_text(theirs, toybox_tokenizer())
    assert any(texts) and to_text(outputs.tokens[:, -1], words) == texts
    check_gradients(found, batch)
    values = found.loss_terms(batch)
    assert set(values) == {"cross_entropy", "sequence", "features", "visual"} and all(
        v > 0 for v in values.values()
    )


def test_such_a_student_trains_and_captions(words, data):
    found = DistillationTrainer(tiny.teacher(), student(words), **OPTIONS, tokenizer=words)
    trainer = fit_quietly(found, data, max_steps=1, limit_val_batches=1)
    assert trainer.test(found, data, verbose=False)
    assert len(found.student.caption(torch.zeros(1, tiny.FRAMES, 3, 32, 32, dtype=torch.uint8), words)) == 1


def test_a_student_that_the_trainer_makes_has_its_words(words):
    make = partial(StudentCandidateV1, backbone=tiny.backbone(), embed_dim=32, heads=2)
    own = DistillationTrainer(tiny.teacher(), make, **OPTIONS, tokenizer=words).student
    theirs = DistillationTrainer(tiny.teacher(), make, **OPTIONS).student
    assert (own.vocab_size, theirs.vocab_size) == (len(words), len(toybox_tokenizer()))
    assert own.bos_token_id == words.cls_token_id and own.num_frames == theirs.num_frames == tiny.FRAMES


@pytest.mark.parametrize("term", ["kl", "hidden", "attention", "relations"])
def test_terms_that_compare_words_are_refused(words, term):
    with pytest.raises(ValueError, match=f"vocabulary is not the teacher's: go without {term}$"):
        distillation(student(words), **NONE | {"features": 1.0, term: 1.0}, tokenizer=words)


def test_a_cache_is_refused(words, tmp_path):
    with pytest.raises(ValueError, match="go without cache"):
        distillation(student(words), **NONE | {"sequence": 1.0}, tokenizer=words, cache=tmp_path)


def padded_teacher(rows):
    torch.manual_seed(0)
    config = toybox_git_config(tiny.FRAMES, tiny.SIDE, 16, 32, 2, 2)
    config.vocab_size = rows
    return GenerativeImageTextTeacher(tiny.shake(GenerativeImageTextModel(config)).eval(), toybox_tokenizer())


def test_an_embedding_may_be_padded(tmp_path):
    rows = 64 * (len(toybox_tokenizer()) // 64 + 1)
    teacher = padded_teacher(rows)
    folder = tmp_path / "padded"
    teacher.model.save_pretrained(folder)
    teacher.tokenizer.save_pretrained(folder)
    loaded = GenerativeImageTextTeacher.from_pretrained(folder)
    frames = torch.zeros(1, tiny.FRAMES, 3, 32, 32, dtype=torch.uint8)
    assert loaded.vocab_size == rows and loaded.caption(frames) == teacher.caption(frames)
    student = StudentCandidateV1.like(loaded, backbone=tiny.backbone(), embed_dim=32, heads=2, num_frames=2)
    fit_quietly(DistillationTrainer(loaded, student), tiny.data(), max_steps=1)
    with pytest.raises(ValueError, match=f"vocab_size is {rows} .* {len(toybox_tokenizer())}"):
        DistillationTrainer(loaded, tiny.student())


def test_a_tokenizer_with_more_words_than_rows_is_refused():
    with pytest.raises(ValueError, match="vocab_size is 359 .* 300"):
        padded_teacher(300)
