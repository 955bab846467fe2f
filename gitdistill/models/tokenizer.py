"""Between captions as token ids and captions as text; the same for teacher and student."""

from pathlib import Path

from torch import Tensor
from transformers import AutoTokenizer, BertTokenizerFast, PreTrainedTokenizerBase

from gitdistill.decoding import decode
from gitdistill.models import checkpoints

ENGLISH = "bert-base-uncased"  # the vocabulary of every published GIT


def load_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """The tokenizer whose files lie in a checkpoint's folder, or else, from the hub, every published GIT's.

    Raises FileNotFoundError saying what to do when there is neither.
    """
    if not _has_tokenizer(folder):
        try:
            folder = checkpoints.download(ENGLISH, ["tokenizer*.json", "vocab.txt"])
        except FileNotFoundError:
            folder = None
        if folder is None or not _has_tokenizer(folder):
            raise FileNotFoundError(
                f"the checkpoint comes without a tokenizer and the hub cannot be reached for {ENGLISH}: pass "
                "tokenizer=, put a vocab.txt into the folder, or load once with network"
            )
    kind = AutoTokenizer if (folder / "tokenizer_config.json").is_file() else BertTokenizerFast
    return kind.from_pretrained(folder)


def _has_tokenizer(folder: Path) -> bool:
    # asked first, because transformers makes up an empty BERT vocabulary rather than fail
    return any((folder / name).is_file() for name in ("tokenizer.json", "vocab.txt"))


def check_vocabulary(model, tokenizer: PreTrainedTokenizerBase) -> None:
    """A ValueError unless model and tokenizer count the same words and agree on start, end and padding."""
    if len(tokenizer) != model.vocab_size:
        raise ValueError(f"the tokenizer has {len(tokenizer)} words, but the model has {model.vocab_size}")
    special = [
        ("start", tokenizer.cls_token_id, model.bos_token_id),
        ("end", tokenizer.sep_token_id, model.eos_token_id),
        ("padding", tokenizer.pad_token_id, model.pad_token_id),
    ]
    for what, said, expected in special:
        if said != expected:
            raise ValueError(f"the tokenizer's {what} token is {said}, but the model's is {expected}")


def to_text(tokens: Tensor, tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """Captions [R, T] long as R strings: up to the first end token, special tokens left out."""
    end = tokenizer.sep_token_id
    rows = [row[: row.index(end)] if end in row else row for row in tokens.tolist()]
    return tokenizer.batch_decode(rows, skip_special_tokens=True)


def caption(model, frames: Tensor, tokenizer: PreTrainedTokenizerBase, **decoding) -> list[str]:
    """Captions of B clips as text: greedy, by beam search (`beams=4`) or drawn at random (`temperature=0.7`).

    `decoding` are options of `gitdistill.decoding.decode`; the best (or first) caption of each clip is returned.
    `prefix` may also be text, one for all clips or a list of B, for question answering: captions begin with it. Raises
    ValueError when model and tokenizer do not share a vocabulary.
    """
    check_vocabulary(model, tokenizer)
    if "prefix" in decoding:
        decoding["prefix"] = to_prefix(decoding["prefix"], tokenizer)
    return to_text(decode(model, frames, **decoding).tokens[:, 0], tokenizer)


def to_prefix(prefix, tokenizer: PreTrainedTokenizerBase):
    """Text as lists of token ids that begin with the start token; anything else as it is."""
    if isinstance(prefix, str):
        return [tokenizer.cls_token_id, *tokenizer(prefix, add_special_tokens=False).input_ids]
    if isinstance(prefix, list) and prefix and all(isinstance(text, str) for text in prefix):
        return [to_prefix(text, tokenizer) for text in prefix]
    return prefix
