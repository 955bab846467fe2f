"""Captions as token ids and as text, for teacher and student alike."""

import os

import torch
from torch import Tensor
from transformers import AutoTokenizer, BertTokenizerFast, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from gitdistill.decoding import decode
from gitdistill.models import checkpoints, storage

ENGLISH = "bert-base-uncased"  # the vocabulary of every published GIT
SPECIAL = {"cls_token": "[CLS]", "sep_token": "[SEP]", "pad_token": "[PAD]", "unk_token": "[UNK]"}


def load_tokenizer(source) -> PreTrainedTokenizerBase:
    """The tokenizer in a folder, of a hub id, or of the embedded teacher (`"toybox"`); one that is loaded stays.

    Where there is none, that of every published GIT, from the hub; FileNotFoundError if the hub cannot be reached.
    """
    if not isinstance(source, str | os.PathLike):
        check_ends(source)
        return source
    folder = checkpoints.resolve(source, weights=False)
    if not any((folder / name).is_file() for name in ("tokenizer.json", "vocab.txt")):
        try:
            folder = checkpoints.resolve(ENGLISH, weights=False)
        except FileNotFoundError as error:
            advice = "pass tokenizer=, or put a vocab.txt into the folder"
            raise FileNotFoundError(f"{source} has no tokenizer: {advice}; {error}") from None
    settings = folder / "tokenizer_config.json"
    if settings.is_file():
        _check_settings(storage.read_json(settings), settings)
    try:
        if settings.is_file():
            tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
        elif (folder / "tokenizer.json").is_file():  # it says all but which tokens are special
            tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(folder / "tokenizer.json"), **SPECIAL)
        else:
            tokenizer = BertTokenizerFast.from_pretrained(folder)
        check_ends(tokenizer)
    except Exception as error:  # damage shows in many ways
        raise ValueError(f"the tokenizer in {folder} cannot be read: {storage.first_line(error)}") from error
    return tokenizer


def check_ends(tokenizer: PreTrainedTokenizerBase) -> None:
    """A ValueError unless a tokenizer puts a start and an end token around a text: networks here read captions so."""
    ids = tokenizer("some words").input_ids
    if len(ids) < 3 or (ids[0], ids[-1]) != (tokenizer.cls_token_id, tokenizer.sep_token_id):
        rule = "begin a text with its cls_token and end it with its sep_token, as its post-processor does"
        raise ValueError(f"a tokenizer must {rule}; this one gives {ids}")
    if tokenizer.model_max_length < 1:
        raise ValueError("it has no room for words")


def _check_settings(settings: dict, path) -> None:
    """ValueError if a tokenizer_config.json names code, or files other than those beside it."""
    files = [name for name in settings if name.endswith("_file") and name != "special_tokens_map_file"]
    if odd := [name for name in ("auto_map", "fast_tokenizer_files", *files) if settings.get(name)]:
        raise ValueError(f"{path} is refused: {storage.shorten(odd)} names code or other files")
    if not isinstance(settings.get("tokenizer_class"), str | None):
        raise ValueError(f"{path}: tokenizer_class is {settings['tokenizer_class']!r:.60}, not a name")


def vocabulary(source) -> dict[str, int]:
    """Number of words and special token ids of a model or tokenizer."""
    if hasattr(source, "cls_token_id"):
        special = {"bos": source.cls_token_id, "eos": source.sep_token_id, "pad": source.pad_token_id}
        special |= {"unk": source.unk_token_id} if source.unk_token_id is not None else {}
        return {"vocab_size": len(source)} | {f"{name}_token_id": token for name, token in special.items()}
    names = ["vocab_size", "bos_token_id", "eos_token_id", "pad_token_id"]
    if getattr(source, "vocab_subset", None) is not None:  # otherwise nobody reads it
        names.append("unk_token_id")
    return {name: getattr(source, name) for name in names}


def check_same_vocabulary(one, other) -> None:
    """A ValueError unless two models, or a tokenizer and a model, agree in size and special tokens.

    A model may have more words than its tokenizer: embeddings are often padded to a multiple of 64.
    """
    mine, theirs = vocabulary(one), vocabulary(other)
    for name in [name for name in mine if name in theirs]:
        value = mine[name]
        padded = name == "vocab_size" and hasattr(one, "get_vocab") and value < theirs[name]
        if value != theirs[name] and not padded:
            both = f"{value} in {type(one).__name__}, {theirs[name]} in {type(other).__name__}"
            raise ValueError(f"vocabularies differ: {name} is {both}")


def to_text(tokens: Tensor, tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """Token ids [R, T], long, as R captions: up to the first end token, without special tokens."""
    end = tokenizer.sep_token_id
    rows = [row[: row.index(end)] if end in row else row for row in tokens.tolist()]
    return tokenizer.batch_decode(rows, skip_special_tokens=True)


def translate(tokens: Tensor, source, target, max_length: int) -> Tensor:
    """Captions [R, T] of one tokenizer in the tokens of another; an empty one has only a start token."""
    texts = to_text(tokens, source)
    found = target(texts, padding=True, truncation=True, max_length=max_length, return_tensors="pt").input_ids
    empty = torch.tensor([[not text.strip()] for text in texts])
    found[:, 1:].masked_fill_(empty, target.pad_token_id)
    return found.to(tokens.device)


def generate_captions(model, frames: Tensor, tokenizer: PreTrainedTokenizerBase, **decoding) -> list[str]:
    """The best caption of each of B clips, as text; ValueError unless `tokenizer` and `model` share a vocabulary.

    `decoding` are options of `gitdistill.decoding.decode`: greedy, `beams=4` or `temperature=0.7`. `prefix` may also be
    text, one for all clips or a list of B, with which captions begin.
    """
    check_same_vocabulary(tokenizer, model)
    if "prefix" in decoding:
        decoding["prefix"] = to_prefix(decoding["prefix"], tokenizer)
    return to_text(decode(model, frames, **decoding).tokens[:, 0], tokenizer)


def to_prefix(prefix, tokenizer: PreTrainedTokenizerBase):
    """Text, or a list of texts, as token ids that begin with the start token; anything else unchanged."""
    if isinstance(prefix, str):
        options = {"add_special_tokens": False, "split_special_tokens": True}
        return [tokenizer.cls_token_id, *tokenizer(prefix, **options).input_ids]
    if isinstance(prefix, list | tuple) and prefix and all(isinstance(text, str) for text in prefix):
        return [to_prefix(text, tokenizer) for text in prefix]
    return prefix
