"""Scores of captions: n-gram agreement with references."""

import unicodedata
from collections.abc import Sequence

import numpy as np
from pycocoevalcap.bleu.bleu import Bleu
from pycocoevalcap.cider.cider import Cider
from pycocoevalcap.rouge.rouge import Rouge


def normalise(text: str) -> str:
    """Lower case, punctuation to spaces, single spaces: how every caption is split into words here.

    Letters, digits and combining marks stay, composed as in Unicode's NFC, so that no script loses its vowels and an
    accent counts the same however it is written. The usual scripts call the PTB tokenizer, which needs Java. The
    words are the same but for those with an apostrophe, a hyphen or a point inside: of "it's" it makes "it 's",
    this function "it s".
    """
    composed = unicodedata.normalize("NFC", text.lower())
    kept = (c if c.isalnum() or c == "_" or unicodedata.category(c)[0] == "M" else " " for c in composed)
    return " ".join("".join(kept).split())


def caption_scores(captions: Sequence[str], references: Sequence[Sequence[str]]) -> dict[str, float]:
    """CIDEr, BLEU-4 and ROUGE-L of one caption a clip, by pycocoevalcap's Python scorers.

    Args:
        captions: B captions.
        references: for each of the B clips at least one reference caption.

    Returns:
        `cider`: CIDEr-D, 0 to 10 (papers print it times 100, so 1.2 here is 120 there). Words are weighed by
            how rare they are among *these* references: numbers of two reference sets, or of two sizes of the
            same set, are not comparable, and a single clip always scores 0. https://arxiv.org/abs/1411.5726
        `bleu4`: BLEU-4 of the corpus, 0 to 1, closest reference length. https://aclanthology.org/P02-1040
        `rouge_l`: mean ROUGE-L, 0 to 1. https://aclanthology.org/W04-1013
    """
    words, known = _split(captions, references)
    cider, _ = Cider().compute_score(known, words)
    bleu, _ = Bleu(4).compute_score(known, words, verbose=0)  # verbose prints lengths
    rouge, _ = Rouge().compute_score(known, words)
    return {"cider": float(cider), "bleu4": float(bleu[3]), "rouge_l": float(rouge)}


def cider_scores(captions: Sequence[str], references: Sequence[Sequence[str]]) -> np.ndarray:
    """CIDEr-D of each caption [B], whose mean is `cider` of `caption_scores`; arguments as there."""
    words, known = _split(captions, references)
    return np.asarray(Cider().compute_score(known, words)[1])


def _split(captions: Sequence[str], references: Sequence[Sequence[str]]) -> tuple[dict, dict]:
    """Captions and references by clip, normalised, as pycocoevalcap takes them."""
    if not len(captions):
        raise ValueError("no captions to score")
    if len(captions) != len(references):
        raise ValueError(f"{len(captions)} captions but {len(references)} lists of references")
    known = {}
    for clip, texts in enumerate(references):
        if isinstance(texts, str):
            raise ValueError(f"clip {clip} needs a list of references, not one string")
        known[clip] = [words for words in map(normalise, texts) if words]
        if not known[clip]:
            raise ValueError(f"clip {clip} has no reference with a word in it")
    return {clip: [normalise(caption)] for clip, caption in enumerate(captions)}, known
