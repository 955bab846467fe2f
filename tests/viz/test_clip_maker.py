"""The clip maker without a browser: what its messages do. `tests/browser` drags its toys."""

import csv

import pytest
import torch

from gitdistill import GenerativeImageTextTeacher, StudentCandidateV1, decoding
from gitdistill.hooks import record
from gitdistill.inspection import attention_maps, told
from gitdistill.models.tokenizer import to_text
from gitdistill.viz.clip_maker import ClipMaker
from gitdistill.world import Scene, Toy, draw, facts_scores


@pytest.fixture(scope="module")
def teacher():
    return GenerativeImageTextTeacher.from_pretrained("toybox")


@pytest.fixture
def maker(teacher):
    return ClipMaker({"teacher": lambda *clip: told(teacher, teacher.tokenizer, *clip)})


def test_what_is_told_is_the_greedy_caption_and_its_attention(teacher):
    frames = draw(Scene([Toy("cat", motion="jump")]))
    found = told(teacher, teacher.tokenizer, frames)
    tokens = decoding.greedy(teacher.model, torch.from_numpy(frames)[None]).tokens[0, 0]
    assert found["text"] == to_text(tokens[None], teacher.tokenizer)[0]
    tokens = tokens[tokens != teacher.pad_token_id]
    assert found["words"] == teacher.tokenizer.convert_ids_to_tokens(tokens[1:].tolist())
    expected = attention_maps(teacher, torch.from_numpy(frames), tokens)
    torch.testing.assert_close(found["heads"], expected.maps)
    torch.testing.assert_close(found["probabilities"], expected.log_probs.exp())
    for word, sure, row in zip(found["words"], found["probabilities"], found["candidates"]):
        assert row[0] == (word, pytest.approx(float(sure), abs=1e-5))  # greedy takes the likeliest
    drawn = [told(teacher, teacher.tokenizer, frames, 3.0, seed)["text"] for seed in (0, 0, 1)]
    assert drawn[0] == drawn[1] != drawn[2]


def test_a_network_looks_at_a_clip_once(teacher):
    with record(teacher.model, "image_encoder") as seen:
        told(teacher, teacher.tokenizer, draw(Scene([Toy("cat")])))
    assert len(seen["image_encoder"]) == 1


def test_a_network_in_training_is_heard_without_dropout_and_stays_in_training(teacher):
    frames = draw(Scene([Toy("cat")]))
    student = StudentCandidateV1.like(teacher, backbone="toybox", dropout=0.5)
    expected = told(student.eval(), teacher.tokenizer, frames)
    found = told(student.train(), teacher.tokenizer, frames)
    assert found["text"] == expected["text"] and student.training
    torch.testing.assert_close(found["heads"], expected["heads"])


def test_a_moved_toy_is_captioned_anew(maker):
    before, toys = dict(maker.result), maker.toys
    maker.toys = [{**toys[0], "name": "dog", "x": 30, "y": 100}]
    assert maker.result["frames"] != before["frames"] and maker.result["error"] == ""
    assert maker.scene().toys == (Toy("dog", motion="jump", x=30, y=100, mirrored=toys[0]["mirrored"]),)
    [column] = maker.result["networks"]
    assert " ".join(column["words"]) == maker.told["teacher"]["text"] + " [SEP]"


def test_toys_may_hide_each_other_and_stand_at_the_edge(maker):
    toy = maker.toys[0]
    hidden = {**toy, "name": "dog", "x": 6, "y": 4}
    maker.toys = [{**toy, "x": 4, "y": 4}, hidden, {**toy, "x": 124, "y": 124}]
    assert maker.result["error"] == "" and len(maker.scene().toys) == 3


def test_what_is_not_in_the_toybox_is_told_and_nothing_is_lost(maker):
    before = maker.result["frames"]
    maker.toys = [{**maker.toys[0], "name": "unicorn"}]
    assert "unknown object 'unicorn'" in maker.result["error"] and maker.result["frames"] == before


def test_kept_clips_are_counted_and_saved(maker, tmp_path):
    with pytest.raises(ValueError, match="no clip was kept"):
        maker.save(tmp_path / "fooled.csv")
    right = []
    for ground in ("meadow", "snow"):
        maker.ground = ground
        text = maker.told["teacher"]["text"]
        right.append(facts_scores([text], [maker.scene()])["all_right"] == 1)
        maker.kept += 1
    assert maker.tally["clips"] == 2 and maker.tally["right"] == {"teacher": sum(right)}
    maker.save(tmp_path / "fooled.csv")
    with (tmp_path / "fooled.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["ground"] for row in rows] == ["meadow", "snow"] and rows[1]["teacher"] == text
    assert [row["teacher is right"] for row in rows] == [str(one) for one in right]
    assert [path.name for path in tmp_path.iterdir()] == ["fooled.csv"]


def test_a_temperature_draws_other_captions(maker):
    greedy = maker.told["teacher"]["text"]
    maker.temperature = 3.0
    assert maker.told["teacher"]["text"] != greedy
