"""Caption scores against hand counts and known answers."""

import pytest

from gitdistill import metrics

REFERENCES = [
    ["A red star moves left.", "a star that goes to the left"],
    ["a blue wheel spins", "The wheel is spinning!"],
    ["a green key falls down", "a small green key"],
]


def first_references():
    return [references[0] for references in REFERENCES]


def test_perfect_captions():
    scores = metrics.caption_scores(first_references(), [[text] for text in first_references()])
    assert scores == pytest.approx({"bleu4": 1, "rouge_l": 1, "cider": 10})


def test_bleu_takes_the_corpus_not_the_mean_of_clips():
    captions, references = ["a b c d", "a b c x"], [["a b c d"], ["a b c d"]]
    precisions = 7 / 8 * 5 / 6 * 3 / 4 * 1 / 2
    assert metrics.caption_scores(captions, references)["bleu4"] == pytest.approx(precisions**0.25, rel=1e-6)


def test_rouge_by_hand():
    """Longest common subsequence "a star left": 3 of 4 words said, 3 of 5 in the reference, beta 1.2."""
    precision, recall, beta = 3 / 4, 3 / 5, 1.2
    expected = (1 + beta**2) * precision * recall / (recall + beta**2 * precision)
    scores = metrics.caption_scores(["a star flies left"], [["a red star moves left"]])
    assert scores["rouge_l"] == pytest.approx(expected)


def test_cider_depends_on_the_reference_corpus():
    """The same caption and references: 0 alone, where every word is in every document, more among others."""
    alone = metrics.caption_scores(first_references()[:1], REFERENCES[:1])["cider"]
    among = metrics.caption_scores(first_references(), REFERENCES)["cider"]
    assert alone == 0 and among > 1


def test_cider_of_each_caption_averages_to_the_corpus_score():
    said = [*first_references()[:-1], "something else"]
    each = metrics.cider_scores(said, REFERENCES)
    assert len(each) == len(said) and each[-1] == 0 < each[0]
    assert each.mean() == pytest.approx(metrics.caption_scores(said, REFERENCES)["cider"])


def test_cider_by_hand():
    """One word a caption: unigrams alone count, one of four n-gram lengths, times 10."""
    scores = metrics.caption_scores(["star", "key"], [["star"], ["wheel"]])
    assert scores["cider"] == pytest.approx(10 / 4 / 2)  # right in one of two clips


def test_case_punctuation_and_spaces_do_not_count():
    plain = metrics.caption_scores(["a red star moves left"], [["a red star moves left"]] * 1)
    noisy = metrics.caption_scores(["  A red  star, moves LEFT."], [["a red star moves left"]])
    assert noisy == plain
    assert metrics.normalise(" It's  a well-known Star! ") == "it s a well known star"


@pytest.mark.parametrize(
    "text, words",
    [
        ("हिन्दी, में!", "हिन्दी में"),  # vowel signs and the virama are marks
        ("مَرْحَبًا", "مَرْحَبًا"),
        ("cafe\u0301", "caf\u00e9"),  # an accent of its own, and composed
    ],
)
def test_marks_belong_to_words(text, words):
    assert metrics.normalise(text) == words


def test_an_empty_caption_scores_zero():
    scores = metrics.caption_scores(["", ""], REFERENCES[:2])
    assert all(value == pytest.approx(0, abs=1e-6) for value in scores.values())


def test_scorers_are_silent(capsys):
    metrics.caption_scores(first_references(), REFERENCES)
    assert capsys.readouterr() == ("", "")


def test_mistakes_give_one_line():
    for wrong, told in (
        (lambda: metrics.caption_scores([], []), "no captions"),
        (lambda: metrics.caption_scores(["a"], REFERENCES), "1 captions but 3 lists of references"),
        (lambda: metrics.caption_scores(["a", "b"], [["a"], []]), "clip 1 has no reference"),
        (lambda: metrics.caption_scores(["a"], [["..."]]), "clip 0 has no reference"),
        (lambda: metrics.caption_scores(["a"], ["a star"]), "clip 0 needs a list"),
    ):
        with pytest.raises(ValueError, match=told) as caught:
            wrong()
        assert "\n" not in str(caught.value)
