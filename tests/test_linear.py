"""The linear layer: torch's numbers by whichever way they are computed."""

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from gitdistill.model import linear
from gitdistill.model.linear import Linear


@pytest.fixture(autouse=True)
def small_is_large(monkeypatch):
    """The other library's products also for the small matrices of these tests."""
    monkeypatch.setattr(Linear, "LARGE", 1)


def pair(inner, outer, bias=True):
    torch.manual_seed(0)
    mine, reference = Linear(inner, outer, bias), nn.Linear(inner, outer, bias)
    reference.load_state_dict(mine.state_dict())
    return mine, reference


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("sizes", [(24, 24), (24, 100), (100, 24)], ids=str)
def test_equals_torch(sizes, bias):
    mine, reference = pair(*sizes, bias)
    shapes = [(rows,) for rows in (0, 1, 2, 3, 4, 5, 16, 197)] + [
        (1, 3),
        (2, 2),
        (4, 1),
        (1, 1, 4),
        (3, 7),
        (),
    ]
    for shape in shapes:
        x = torch.randn(*shape, sizes[0])
        with torch.no_grad():
            y = mine(x)
            assert_close(y, reference(x), atol=1e-5, rtol=1e-5)
            assert y.is_contiguous()
            turned = torch.randn(sizes[0], 5, 3).permute(2, 1, 0)[:, :3]  # not contiguous
            assert_close(mine(turned), reference(turned), atol=1e-5, rtol=1e-5)


def test_weights_may_change_between_two_calls():
    mine, reference = pair(8, 12)
    with torch.no_grad():
        for rows in (1, 3, 9):
            x = torch.randn(rows, 8)
            mine(x)
            mine.weight.data[3] *= -2
            reference.weight.data[3] *= -2
            assert_close(mine(x), reference(x))


def test_gradients_autocast_and_other_precisions_are_torchs(monkeypatch):
    monkeypatch.setattr(
        linear, "_ONEDNN", None if linear._ONEDNN is None else lambda *_: pytest.fail("not here")
    )
    mine, reference = pair(8, 12)
    x = torch.randn(5, 8)
    for layer in (mine, reference):
        layer(x).square().sum().backward()
    assert_close(mine.weight.grad, reference.weight.grad)
    with torch.no_grad():
        with torch.autocast("cpu", torch.bfloat16):
            assert mine(x).dtype == torch.bfloat16
        assert_close(mine.double()(x.double()), reference.double()(x.double()))
        assert_close(mine.bfloat16()(x.bfloat16()), reference.bfloat16()(x.bfloat16()))
        with pytest.raises(RuntimeError):
            mine(x)


@pytest.mark.skipif(linear._ONEDNN is None, reason="torch was built without oneDNN")
def test_small_products_stay_with_torch(monkeypatch):
    calls, onednn = [], linear._ONEDNN
    monkeypatch.setattr(linear, "_ONEDNN", lambda *given: calls.append(1) or onednn(*given))
    mine, _ = pair(8, 16)
    with torch.no_grad():
        mine(torch.randn(8, 8))
        monkeypatch.setattr(Linear, "LARGE", 8 * 8 * 16 + 1)
        mine(torch.randn(8, 8))
    assert len(calls) == 1
