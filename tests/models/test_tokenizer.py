"""Tokenizers: where they come from, whose vocabulary fits, and captions as text."""

import json

import pytest
import tiny
import torch
from tiny_git import REFERENCE, WORDS, random_git, tokenizer
from transformers import PreTrainedTokenizerFast

from gitdistill.models import checkpoints
from gitdistill.models.teacher import GenerativeImageTextTeacher
from gitdistill.models.tokenizer import (
    check_same_vocabulary,
    generate_captions,
    load_tokenizer,
    to_prefix,
    to_text,
)
from gitdistill.world.module import toybox_tokenizer


@pytest.mark.parametrize(
    "files", [["tokenizer.json", "tokenizer_config.json"], ["tokenizer.json"], ["vocab.txt"]]
)
def test_tokenizer_files(tmp_path, files):
    tokenizer().save_pretrained(tmp_path / "whole")
    for file in files:
        content = "\n".join(WORDS) if file == "vocab.txt" else (tmp_path / "whole" / file).read_text()
        (tmp_path / file).write_text(content)
    for source in (tmp_path, str(tmp_path)):
        loaded = load_tokenizer(source)
        assert loaded("A b, z").input_ids == [2, 5, 6, 1, 1, 3] and len(loaded) == len(WORDS)


def test_a_tokenizer_file_alone_is_read_as_it_is(tmp_path):
    """Its own model and case; and one that marks no ends is refused, since a network would learn neither."""
    path, vocab = tmp_path / "tokenizer.json", {word: k for k, word in enumerate([*WORDS, "Cat"])}
    rest = dict.fromkeys(("truncation", "padding", "normalizer", "post_processor", "decoder"))
    rest |= {"version": "1.0", "added_tokens": [], "pre_tokenizer": {"type": "WhitespaceSplit"}}
    rest["model"] = {"type": "WordLevel", "vocab": vocab, "unk_token": "[UNK]"}
    path.write_text(json.dumps(rest))
    with pytest.raises(ValueError, match=r"must begin a text with its cls_token .* this one gives \[1, 1\]$"):
        load_tokenizer(tmp_path)
    with pytest.raises(ValueError, match="must begin a text"):
        load_tokenizer(
            PreTrainedTokenizerFast(tokenizer_file=str(path), cls_token="[CLS]", sep_token="[SEP]")
        )
    parts = ("SpecialToken", "[CLS]"), ("Sequence", "A"), ("SpecialToken", "[SEP]")
    single = [{kind: {"id": name, "type_id": 0}} for kind, name in parts]
    special = {name: {"id": name, "ids": [vocab[name]], "tokens": [name]} for name in ("[CLS]", "[SEP]")}
    ends = {"type": "TemplateProcessing", "single": single, "pair": single, "special_tokens": special}
    path.write_text(json.dumps(rest | {"post_processor": ends}))
    assert load_tokenizer(tmp_path)("a Cat cat").input_ids == [2, 5, 30, 1, 3]


@pytest.mark.parametrize(
    "change, message",
    [
        ({"auto_map": {"AutoTokenizer": ["evil.T", "evil.T"]}, "tokenizer_class": "T"}, "refused: auto_map"),
        ({"vocab_file": "/etc/passwd"}, "refused: vocab_file"),
        ({"tokenizer_class": 5}, "tokenizer_class is 5, not a name"),
        ({"model_max_length": "x"}, "cannot be read"),
        ({"model_max_length": 0}, "cannot be read"),
        ({"added_tokens_decoder": 5}, "cannot be read"),
    ],
)
def test_a_tokenizer_runs_nothing_and_asks_nothing(tmp_path, monkeypatch, change, message):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("builtins.input", lambda *_: "y")
    tokenizer().save_pretrained(tmp_path)
    (tmp_path / "evil.py").write_text("import os\nos.mkdir('executed')\nclass T: pass\n")
    settings = json.loads((tmp_path / "tokenizer_config.json").read_text())
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings | change))
    with pytest.raises(ValueError, match=rf"^[^\n]*{tmp_path}[^\n]*{message}[^\n]*$"):
        load_tokenizer(tmp_path)
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json"])
@pytest.mark.parametrize("content", ["", "[]", "5", "[" * 100_000, '{"model": 5}'])
def test_a_damaged_tokenizer_is_named(tmp_path, name, content):
    tokenizer().save_pretrained(tmp_path)
    (tmp_path / name).write_text(content)
    try:
        assert load_tokenizer(tmp_path)("a b").input_ids == [2, 5, 6, 3]
    except ValueError as error:
        assert str(tmp_path) in str(error) and "\n" not in str(error)
    else:  # an unknown setting means nothing
        assert (name, content) == ("tokenizer_config.json", '{"model": 5}')


def test_the_embedded_tokenizer():
    assert load_tokenizer("toybox").get_vocab() == toybox_tokenizer().get_vocab()


def test_a_hub_ids_tokenizer_comes_without_weights(monkeypatch, tmp_path):
    asked = []
    monkeypatch.setattr(checkpoints, "download", lambda *given: asked.append(given) or tmp_path)
    tokenizer().save_pretrained(tmp_path)
    assert len(load_tokenizer("somebody/git-tiny")) == len(WORDS)
    assert asked == [("somebody/git-tiny", ["*.json", "*.txt"])]


def test_published_checkpoints_without_tokenizer_use_the_hubs(monkeypatch, tmp_path):
    asked = []
    tokenizer().save_pretrained(tmp_path / "hub")
    monkeypatch.setattr(
        checkpoints, "download", lambda name, patterns: asked.append(name) or tmp_path / "hub"
    )
    random_git().save_pretrained(tmp_path / "git")
    teacher = GenerativeImageTextTeacher.from_pretrained(tmp_path / "git")
    assert asked == ["bert-base-uncased"] and len(teacher.tokenizer) == len(WORDS)


def test_no_tokenizer_and_no_network(monkeypatch):
    def download(name, patterns):
        raise FileNotFoundError("no network")

    monkeypatch.setattr(checkpoints, "download", download)
    with pytest.raises(FileNotFoundError, match="no tokenizer: pass tokenizer=.*no network$"):
        GenerativeImageTextTeacher.from_pretrained(REFERENCE / "image")


def test_a_vocabulary_that_does_not_fit_is_refused():
    check_same_vocabulary(tokenizer(), random_git())
    swapped = [*WORDS[:2], "[SEP]", "[CLS]", *WORDS[4:]]
    for words, message in ([*WORDS, "z"], "vocab_size is 31 .* 30"), (swapped, "bos_token_id is 3 .* 2"):
        with pytest.raises(ValueError, match=message):
            GenerativeImageTextTeacher(random_git(), tokenizer(words))
        with pytest.raises(ValueError, match=message):
            generate_captions(random_git(), torch.zeros(1, 3, 16, 16), tokenizer(words))


def test_text_ends_at_the_first_end_token():
    rows = [[2, 5, 6, 3, 7, 8], [2, 9, 3, 0, 0, 0], [2, 10, 11, 12, 13, 14], [2, 3, 5, 5, 5, 5]]
    assert to_text(torch.tensor(rows), tokenizer()) == ["a b", "e", "f g h i j", ""]


def test_a_special_tokens_name_in_a_prefix_is_mere_text():
    tokenizer = toybox_tokenizer()
    assert tokenizer.sep_token_id not in to_prefix("a [SEP] cat", tokenizer)


def test_a_vocab_subset_needs_the_tokenizers_unknown_word():
    """Without a subset nobody reads that token."""
    words = toybox_tokenizer()
    check_same_vocabulary(words, tiny.student(unk_token_id=50))
    with pytest.raises(ValueError, match="unk_token_id is 1 in .*, 50 in StudentCandidateV1"):
        check_same_vocabulary(words, tiny.student(unk_token_id=50, vocab_subset=[20, 21]))
