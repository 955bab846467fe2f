"""The teacher's targets: what they hold, and that a pass by hand gives the same."""

import pytest
import tiny
import torch

from gitdistill.distillation.targets import TargetSpec, as_feature_grid, layer_pairs, teacher_targets
from gitdistill.hooks import record
from gitdistill.models.git import GenerativeImageTextModel
from gitdistill.models.teacher import GenerativeImageTextTeacher
from gitdistill.world.pretrain import toybox_git_config

FRAMES = torch.randint(0, 256, (3, tiny.FRAMES, 3, tiny.SIDE, tiny.SIDE), dtype=torch.uint8)


def test_targets_hold_what_the_spec_names():
    spec = TargetSpec(False, ("model.image_encoder",), ("model.layers.1.attention.query",), True)
    targets = teacher_targets(tiny.teacher(), FRAMES, torch.full((6, 4), 2), spec)
    assert {name: tuple(value.shape) for name, value in targets.items()} == {
        "attention": (6, 4, tiny.FRAMES * 4),
        "image_features/model.image_encoder": (3 * tiny.FRAMES, 2, 2, 32),
        "text_features/model.layers.1.attention.query": (6, 4, 32),
    }


def test_the_last_image_values_and_the_last_text_values_are_told_apart():
    """One module, called for the image first and for the text last."""
    teacher, path = tiny.teacher(), "model.layers.1.attention.value"
    targets = teacher_targets(teacher, FRAMES, torch.full((3, 4), 2), TargetSpec(False, (path,), (path,)))
    text, _ = targets[f"text_features/{path}"], targets[f"image_features/{path}"]
    hidden = teacher(FRAMES, torch.full((3, 4), 2)).hidden_states[1]
    torch.testing.assert_close(text, teacher.model.layers[1].attention.value(hidden))
    assert targets[f"image_features/{path}"].shape == (6, 2, 2, 32)


def test_image_features_and_attention_are_those_of_a_pass_by_hand():
    teacher, tokens = tiny.teacher(), torch.tensor([[2, 5, 6], [2, 7, 3]] * 3)
    path = "model.layers.0"
    targets = teacher_targets(teacher, FRAMES, tokens, TargetSpec(False, (path,), (), True))
    with record(teacher, [path, "model.layers.?.attention.softmax"]) as seen:
        teacher(FRAMES, tokens)
    image = seen[path][0].unflatten(1, (tiny.FRAMES, 5))  # a class token and a 2 x 2 grid in each frame
    torch.testing.assert_close(targets[f"image_features/{path}"], image[:, :, 1:].reshape(6, 2, 2, 32))
    weights = [seen[f"model.layers.{i}.attention.softmax"][-1] for i in (0, 1)]  # (B, H, K*T, 10 + K*T)
    mean = sum(w.mean(1) for w in weights)[..., :10].unflatten(-1, (2, 5))[..., 1:].flatten(2)
    mean = mean / mean.sum(-1, keepdim=True)
    torch.testing.assert_close(targets["attention"], mean.reshape(6, 3, 8))


def test_a_feature_grid_of_maps_frames_and_clips():
    maps = torch.arange(2 * 3 * 2 * 2.0).reshape(2, 3, 2, 2)  # two frames, three channels
    tokens = maps.flatten(2).transpose(1, 2)
    expected = maps.permute(0, 2, 3, 1)
    with_class = torch.cat([torch.full((2, 1, 3), -1.0), tokens], dim=1)
    for activation in (maps, tokens, with_class, with_class.reshape(1, 10, 3)):
        torch.testing.assert_close(as_feature_grid(activation, count=2), expected)
    with pytest.raises(ValueError, match="no square grid"):
        as_feature_grid(torch.zeros(1, 6, 3), count=1)


def test_layers_without_image_features_are_refused():
    teacher, student = tiny.teacher(), tiny.student()
    with pytest.raises(ValueError, match="model.layers.1 of the teacher does not run on image tokens"):
        layer_pairs(teacher, student, {"memory_norm": "model.layers.1"})
    one = GenerativeImageTextModel(toybox_git_config(tiny.FRAMES, tiny.SIDE, 16, 32, 2, 1))
    one = GenerativeImageTextTeacher(one, teacher.tokenizer)
    spec = TargetSpec(False, (layer_pairs(one, student, None)[0].teacher,))
    targets = teacher_targets(one, FRAMES, torch.full((3, 4), 2), spec)
    assert [tuple(x.shape) for x in targets.values()] == [(3 * tiny.FRAMES, 2, 2, 32)]


def test_parts_of_a_layer_that_reads_text_alone_are_no_image_features():
    for part in ("", ".norm_2"):
        with pytest.raises(ValueError, match="does not run on image tokens"):
            layer_pairs(tiny.teacher(), tiny.student(), {"memory_norm": f"model.layers.1{part}"})
