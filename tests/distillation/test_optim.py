"""The optimiser and its schedule."""

import math

import pytest
import tiny
import torch

from gitdistill.distillation.optim import split_parameters, warmup_cosine


def test_the_optimiser_gives_matrices_to_muon_and_the_rest_to_adamw():
    student = tiny.student()
    matrices, others = split_parameters(student)
    assert all(p.ndim == 2 for p in matrices)
    outside = {id(p) for p in others}
    for parameter in (student.words.weight, student.spatial, student.projection[0].bias):
        assert id(parameter) in outside
    assert len(matrices) + len(others) == len(list(student.parameters()))


def test_the_learning_rate_warms_up_and_follows_a_cosine():
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    schedule = warmup_cosine(optimizer, warmup=2, steps=6)
    rates = []
    for _ in range(7):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    cosine = [0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * k / 4)) for k in range(5)]
    assert rates == pytest.approx([0.5, 1.0, *cosine])


def test_a_head_without_weights_is_no_obstacle():
    """timm's ViT leaves one behind."""
    network = torch.nn.ModuleDict({"inner": torch.nn.Linear(2, 3), "head": torch.nn.Identity()})
    assert split_parameters(network) == ([network["inner"].weight], [network["inner"].bias])
