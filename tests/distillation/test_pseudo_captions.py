"""The teacher's own captions, and which of them are good enough."""

import pytest
import tiny
import torch

from gitdistill.decoding import beam
from gitdistill.distillation.captions import (
    CaptionFilter,
    join_captions,
    pseudo_captions,
    repetition,
    word_f1,
)

FRAMES = torch.randint(0, 256, (3, tiny.FRAMES, 3, tiny.SIDE, tiny.SIDE), dtype=torch.uint8)


def test_repetition_counts_trigrams_that_occurred_before():
    assert repetition([5, 6, 7, 8]) == 0
    assert repetition([5, 6, 7, 5, 6, 7]) == pytest.approx(1 / 4)  # 567 675 756 567
    assert repetition([5] * 6) == pytest.approx(3 / 4)
    assert repetition([5, 6]) == repetition([]) == 0


def test_word_f1_counts_words_as_often_as_they_occur():
    assert word_f1([5, 6], [6, 5]) == 1 and word_f1([], []) == 1
    assert word_f1([5, 6], [7]) == word_f1([5], []) == 0
    assert word_f1([5, 5, 6], [5, 7]) == pytest.approx(2 / 5)


def test_pseudo_captions_are_the_beams_and_their_quality_is_measured():
    teacher = tiny.teacher()
    tokens, quality = pseudo_captions(teacher, FRAMES, 2, max_length=8)
    expected = beam(teacher, FRAMES, beams=4, max_length=8, num_return=4)
    assert torch.equal(tokens, expected.tokens[:, :2]) and quality.shape == (3, 2, 3)
    torch.testing.assert_close(quality[..., 0], expected.scores[:, :2])
    words = [[w for w in row if w > 4] for row in expected.tokens[1].tolist()]
    agreement = sum(word_f1(words[1], words[k]) for k in (0, 2, 3)) / 3
    assert quality[1, 1, 2].item() == pytest.approx(agreement)
    assert quality[1, 1, 1].item() == pytest.approx(repetition(words[1]))


@pytest.mark.parametrize(
    "limits, passing",
    [
        ({}, [True, True, True]),
        ({"confidence": -0.5}, [True, False, True]),
        ({"repetition": 0.0}, [True, True, False]),
        ({"agreement": 0.6}, [False, True, True]),
    ],
)
def test_captions_are_filtered(limits, passing):
    quality = torch.tensor([[-0.1, 0.0, 0.5], [-0.9, 0.0, 0.9], [-0.3, 0.2, 0.9]])
    caption_filter = CaptionFilter(**limits)
    assert caption_filter(quality).tolist() == passing
    tokens = torch.tensor([[2, 5, 6, 3], [2, 7, 3, 0], [2, 8, 3, 0]])
    filtered = caption_filter.apply(tokens, quality, pad_id=0)
    assert (filtered[:, 0] == 2).all() and filtered[:, 1:].any(1).tolist() == passing
    assert torch.equal(filtered[passing], tokens[passing]) and tokens[:, 1:].any(1).all()


def test_captions_are_joined_clip_by_clip():
    a, b = torch.tensor([[[2, 5, 3]], [[2, 6, 3]]]), torch.tensor([[[2, 3], [2, 7]], [[2, 8], [2, 9]]])
    assert join_captions(a, b, 0).tolist() == [
        [[2, 5, 3], [2, 3, 0], [2, 7, 0]],
        [[2, 6, 3], [2, 8, 0], [2, 9, 0]],
    ]
