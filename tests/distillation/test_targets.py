"""What the teacher says of its own accord, and what is thought of it."""

import pytest
import tiny
import torch

from gitdistill.decoding import beam
from gitdistill.distillation.pseudo_captions import (
    CaptionFilter,
    join_captions,
    pseudo_captions,
    repetition,
    word_f1,
)
from gitdistill.distillation.targets import TargetSpec, teacher_targets
from gitdistill.hooks import record

FRAMES = torch.randint(0, 256, (3, tiny.FRAMES, 3, tiny.SIDE, tiny.SIDE), dtype=torch.uint8)


def test_repetition_counts_three_words_said_before():
    assert repetition([5, 6, 7, 8]) == 0
    assert repetition([5, 6, 7, 5, 6, 7]) == pytest.approx(1 / 4)  # 567 675 756 567
    assert repetition([5] * 6) == pytest.approx(3 / 4)
    assert repetition([5, 6]) == repetition([]) == 0


def test_shared_words_count_as_often_as_they_occur():
    assert word_f1([5, 6], [6, 5]) == 1 and word_f1([], []) == 1
    assert word_f1([5, 6], [7]) == word_f1([5], []) == 0
    assert word_f1([5, 5, 6], [5, 7]) == pytest.approx(2 / 5)


def test_the_teacher_speaks_and_is_judged():
    teacher = tiny.teacher()
    tokens, judged = pseudo_captions(teacher, FRAMES, 2, max_length=8)
    expected = beam(teacher, FRAMES, beams=4, max_length=8, num_return=4)
    assert torch.equal(tokens, expected.tokens[:, :2]) and judged.shape == (3, 2, 3)
    torch.testing.assert_close(judged[..., 0], expected.scores[:, :2])
    words = [[w for w in row if w > 4] for row in expected.tokens[1].tolist()]
    agreement = sum(word_f1(words[1], words[k]) for k in (0, 2, 3)) / 3
    assert judged[1, 1, 2].item() == pytest.approx(agreement)
    assert judged[1, 1, 1].item() == pytest.approx(repetition(words[1]))


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
    judged = torch.tensor([[-0.1, 0.0, 0.5], [-0.9, 0.0, 0.9], [-0.3, 0.2, 0.9]])
    keep = CaptionFilter(**limits)
    assert keep(judged).tolist() == passing
    tokens = torch.tensor([[2, 5, 6, 3], [2, 7, 3, 0], [2, 8, 3, 0]])
    kept = keep.apply(tokens, judged, pad_id=0)
    assert (kept[:, 0] == 2).all() and kept[:, 1:].any(1).tolist() == passing
    assert torch.equal(kept[passing], tokens[passing]) and tokens[:, 1:].any(1).all()


def test_captions_beside_others():
    a, b = torch.tensor([[[2, 5, 3]], [[2, 6, 3]]]), torch.tensor([[[2, 3], [2, 7]], [[2, 8], [2, 9]]])
    assert join_captions(a, b, 0).tolist() == [
        [[2, 5, 3], [2, 3, 0], [2, 7, 0]],
        [[2, 6, 3], [2, 8, 0], [2, 9, 0]],
    ]


def test_an_answer_has_the_parts_that_were_wanted():
    wants = TargetSpec(False, ("model.image_encoder",), ("model.layers.1.attention.query",), True)
    answer = teacher_targets(tiny.teacher(), FRAMES, torch.full((6, 4), 2), wants)
    assert {name: tuple(value.shape) for name, value in answer.items()} == {
        "attention": (6, 4, tiny.FRAMES * 4),
        "image_features/model.image_encoder": (3 * tiny.FRAMES, 2, 2, 32),
        "text_features/model.layers.1.attention.query": (6, 4, 32),
    }


def test_the_last_image_values_and_the_last_text_values_are_told_apart():
    """One module, called for the image first and for the text last."""
    teacher, path = tiny.teacher(), "model.layers.1.attention.value"
    answer = teacher_targets(teacher, FRAMES, torch.full((3, 4), 2), TargetSpec(False, (path,), (path,)))
    text, _ = answer[f"text_features/{path}"], answer[f"image_features/{path}"]
    hidden = teacher(FRAMES, torch.full((3, 4), 2)).hidden_states[1]
    torch.testing.assert_close(text, teacher.model.layers[1].attention.value(hidden))
    assert answer[f"image_features/{path}"].shape == (6, 2, 2, 32)


def test_cells_and_attention_are_those_of_a_pass_by_hand():
    teacher, tokens = tiny.teacher(), torch.tensor([[2, 5, 6], [2, 7, 3]] * 3)
    path = "model.layers.0"
    answer = teacher_targets(teacher, FRAMES, tokens, TargetSpec(False, (path,), (), True))
    with record(teacher, [path, "model.layers.?.attention.softmax"]) as seen:
        teacher(FRAMES, tokens)
    image = seen[path][0].unflatten(1, (tiny.FRAMES, 5))  # a class token and 2 x 2 cells in each frame
    torch.testing.assert_close(answer[f"image_features/{path}"], image[:, :, 1:].reshape(6, 2, 2, 32))
    weights = [seen[f"model.layers.{i}.attention.softmax"][-1] for i in (0, 1)]  # (B, H, K*T, 10 + K*T)
    mean = sum(w.mean(1) for w in weights)[..., :10].unflatten(-1, (2, 5))[..., 1:].flatten(2)
    mean = mean / mean.sum(-1, keepdim=True)
    torch.testing.assert_close(answer["attention"], mean.reshape(6, 3, 8))
