"""record and edit: what they see and change, and what they must never do."""

from collections import defaultdict, namedtuple
from dataclasses import dataclass

import pytest
import tiny
import torch
from torch import Tensor, nn
from torch.testing import assert_close
from transformers.modeling_outputs import BaseModelOutput

from gitdistill.decoding import greedy
from gitdistill.hooks import edit, paths, record

FRAMES = torch.randint(
    0, 256, (2, 2, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
)
TOKENS = torch.tensor([[2, 5, 6, 7, 3], [2, 8, 9, 3, 0]])


class InPlace(nn.Module):
    """Three layers; the first one's output is changed in place afterwards."""

    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(4, 4) for _ in range(3))
        self.unused = nn.Linear(4, 4)

    def forward(self, x):
        x = self.layers[0](x)
        x += 100
        return self.layers[2](self.layers[1](x))


@pytest.fixture(scope="module")
def student():
    return tiny.student().eval()


@pytest.fixture(scope="module")
def teacher():
    return tiny.teacher()


def hooks(model):
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())


def test_each_path_holds_its_own_layers_output_call_by_call():
    model, xs = InPlace(), [torch.rand(2, 4), torch.rand(3, 4)]
    with record(model, "layers.?") as seen:
        for x in xs:
            model(x)
    assert list(seen) == ["layers.0", "layers.1", "layers.2"]
    for call, x in enumerate(xs):
        first = model.layers[0](x)  # before the change in place
        second = model.layers[1](first + 100)
        for path, expected in zip(seen, (first, second, model.layers[2](second)), strict=True):
            assert_close(seen[path][call], expected.detach())
    assert all(len(calls) == 2 for calls in seen.values())


def test_detached_unless_asked_otherwise():
    model, x = InPlace(), torch.rand(2, 4)
    with record(model, "layers.1") as seen:
        model(x)
    assert not seen["layers.1"][0].requires_grad
    with record(model, "layers.1", detach=False) as seen:
        model(x)
    seen["layers.1"][0].sum().backward()
    assert all(model.layers[i].weight.grad.abs().sum() > 0 for i in (0, 1))
    assert model.layers[2].weight.grad is None


def test_hooks_are_gone_after_success_error_and_nesting():
    model, x, calls = InPlace(), torch.rand(2, 4), []
    with record(model, "layers.*") as outer:
        with record(model, "layers.1") as inner:
            model(x)
            assert hooks(model) == 4
        model(x)
    assert hooks(model) == 0 and len(inner["layers.1"]) == 1 and len(outer["layers.1"]) == 2
    model.layers[0].register_forward_hook(lambda *_: calls.append(1))  # somebody else's
    with pytest.raises(ZeroDivisionError), record(model, "unused"):
        1 / 0  # noqa: B018
    with pytest.raises(KeyError), record(model, ["layers.0", "layers.9"]):
        pass
    model(x)
    assert hooks(model) == 1 and len(calls) == 1


def test_an_unknown_path_is_named_with_near_ones():
    model = InPlace()
    with (
        pytest.raises(KeyError, match="layer.2; did you mean layers.2,"),
        record(model, ["layers.0", "layer.2"]),
    ):
        pass
    with pytest.raises(KeyError, match="\\*.softmax'$"), record(model, "*.softmax"):
        pass
    with record(model, "layers.1") as seen:
        model(torch.rand(1, 4))
    with pytest.raises(KeyError, match="layers.0 was not recorded; did you mean layers.1?"):
        seen["layers.0"]


@pytest.mark.parametrize("name", ["unused", "unus*", "layers"])
def test_nothing_captured_is_an_error(name):
    model = InPlace()
    with pytest.raises(RuntimeError, match=f"at {name}"), record(model, ["layers.0", name]):
        model(torch.rand(1, 4))
    assert hooks(model) == 0


def test_what_a_pattern_matched_but_nobody_called_drops_out():
    model = InPlace()
    with record(model, "*") as seen, record(model, []) as nothing:
        model(torch.rand(1, 4))
    assert list(seen) == ["layers.0", "layers.1", "layers.2"] and nothing == {}


def test_paths_lists_what_can_be_hooked():
    model = InPlace()
    assert paths(model) == ["layers", "layers.0", "layers.1", "layers.2", "unused"]
    assert paths(model, "layers.*") == ["layers.0", "layers.1", "layers.2"]


def test_a_shared_module_is_found_under_both_its_paths():
    model = nn.Sequential(nn.Linear(2, 2), nn.ReLU())
    model.append(model[0])
    with record(model, "2") as seen:
        model(torch.ones(1, 2))
    assert len(seen["2"]) == 2  # one module, called twice


@dataclass
class Pair:
    first: Tensor
    rest: list


Named = namedtuple("Named", "a b")


@pytest.mark.parametrize("detach", [True, False])
@pytest.mark.parametrize(
    "pack, unpack",
    [
        (lambda x: (x, None), lambda y: y[0]),
        (lambda x: [x, (x, 3)], lambda y: y[1][0]),
        (lambda x: {1: x}, lambda y: y[1]),
        (lambda x: Named(1, x), lambda y: y.b),
        (lambda x: Pair(x, [x]), lambda y: y.rest[0]),
        (lambda x: BaseModelOutput(last_hidden_state=x), lambda y: y.last_hidden_state),
    ],
)
def test_outputs_that_are_not_tensors_are_copied_whole(pack, unpack, detach):
    class Packing(nn.Module):
        def forward(self, x):
            return pack(x * 2)

    model = nn.Sequential(Packing())
    x = torch.ones(2, requires_grad=True)
    with record(model, "0", detach=detach) as seen:
        output = model(x)
    captured = seen["0"][0]
    assert type(captured) is type(output)
    with torch.no_grad():
        unpack(output).zero_()
    assert torch.equal(unpack(captured), torch.full((2,), 2.0))
    assert unpack(captured).requires_grad is not detach


def attention(model, names):
    """Path -> shapes of the attention weights, call by call; hooks must not change the output."""
    plain = model(FRAMES, TOKENS).logits
    with record(model, names) as seen:
        hooked = model(FRAMES, TOKENS).logits
    assert_close(hooked, plain, atol=1e-5, rtol=1e-4)
    for call in (call for calls in seen.values() for call in calls):
        assert_close(call.sum(-1), torch.ones(call.shape[:-1]))
    return {path: [tuple(weights.shape) for weights in calls] for path, calls in seen.items()}


def test_attention_weights_of_the_student(student):
    memory, text = 2 * 2 * 2, TOKENS.shape[1]
    assert attention(student, ["*.attn.softmax", "*attention.softmax"]) == {
        "backbone.net.stages_1.blocks.0.attn.softmax": [(2 * 2 * 4, 2, 4, 4)],
        "backbone.net.stages_2.blocks.0.attn.softmax": [(2 * 2, 2, 4, 4)],
        "mixer.0.attention.softmax": [(2, 2, memory, memory)],
        "layers.0.self_attention.softmax": [(2, 2, text, text)],
        "layers.0.cross_attention.softmax": [(2, 2, text, memory)],
        "layers.1.self_attention.softmax": [(2, 2, text, text)],
        "layers.1.cross_attention.softmax": [(2, 2, text, memory)],
    }


def test_attention_weights_of_the_teacher(teacher):
    heads, text = teacher.config.num_attention_heads, TOKENS.shape[1]
    image = 2 * (1 + 4)
    assert attention(teacher, "*.attention.softmax") == {
        "model.image_encoder.layers.0.attention.softmax": [(4, heads, 5, 5)],
        "model.image_encoder.layers.1.attention.softmax": [(4, heads, 5, 5)],
        "model.layers.0.attention.softmax": [(2, heads, image, image), (2, heads, text, image + text)],
        "model.layers.1.attention.softmax": [(2, heads, text, image + text)],
    }


def test_every_step_of_a_search_is_an_entry(student):
    with record(student, ["layers.0.cross_attention.softmax", "memory_norm"]) as seen:
        result = greedy(student, FRAMES, max_length=8)
    assert len(seen["memory_norm"]) == 1
    assert len(seen["layers.0.cross_attention.softmax"]) == result.steps
    assert hooks(student) == 0


def test_a_layer_gives_its_hidden_state(student, teacher):
    for model in (student, teacher.model):
        with record(model, "layers.?") as seen:
            output = model(FRAMES, TOKENS)
        assert_close(seen["layers.0"][-1], output.hidden_states[1])


def test_an_edit_that_changes_nothing_changes_no_bit():
    student = tiny.student().eval()
    frames, tokens = torch.zeros(1, tiny.FRAMES, 3, 32, 32, dtype=torch.uint8), torch.tensor([[2, 5, 3]])
    plain = student(frames, tokens).logits
    with edit(student, {"layers.?": lambda output: output, "backbone": lambda output: output}):
        assert torch.equal(student(frames, tokens).logits, plain)
    assert torch.equal(student(frames, tokens).logits, plain)


def test_an_edit_reaches_the_output_and_nests_with_recordings():
    net = nn.Sequential(nn.Linear(2, 2), nn.ReLU())
    x = torch.randn(3, 2)
    with record(net, "1") as before, edit(net, {"1": lambda y: y + 1}), record(net, "1") as after:
        assert torch.equal(net(x), net[1](net[0](x)))
    assert torch.equal(after["1"][0], before["1"][0] + 1)
    with edit(net, {"1": lambda y: 2 * y}), edit(net, {"1": lambda y: y + 1}):
        torch.testing.assert_close(net(x), 2 * before["1"][0] + 1)
    torch.testing.assert_close(net(x), before["1"][0])


def test_no_edit_stays_after_an_error():
    net = nn.Sequential(nn.Linear(2, 2))
    with pytest.raises(ZeroDivisionError), edit(net, {"0": lambda y: 1 / 0}):
        net(torch.zeros(1, 2))
    net(torch.zeros(1, 2))


def test_edits_that_are_none():
    net = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    with pytest.raises(KeyError, match="no module is called 7"), edit(net, {"7": lambda y: y}):
        pass
    with (
        pytest.raises(RuntimeError, match="nothing was edited at 1"),
        edit(net, {"0": lambda y: y, "1": lambda y: y}),
    ):
        net[0](torch.zeros(1, 2))
    with pytest.raises(ValueError, match="the edit of 0 gives None"), edit(net, {"0": lambda y: None}):
        net(torch.zeros(1, 2))


def test_dicts_of_any_kind_are_recorded():
    class Giver(torch.nn.Module):
        def forward(self, x):
            return defaultdict(list, {0: x, "word": x})

    model = torch.nn.Sequential(Giver())
    with record(model, "0") as seen:
        model(torch.ones(2))
    (found,) = seen["0"]
    assert set(found) == {0, "word"} and found["new"] == [] and torch.equal(found[0], torch.ones(2))
