"""record: what it catches, and what it must never do."""

from collections import namedtuple
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn
from transformers import GitConfig
from transformers.modeling_outputs import BaseModelOutput

from gitdistill.decoding import greedy
from gitdistill.hooks import paths, record
from gitdistill.models.backbone import TinyVIT
from gitdistill.models.git import GenerativeImageTextModel
from gitdistill.models.student import StudentCandidateV1

FRAMES = torch.randint(
    0, 256, (2, 3, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
)
TOKENS = torch.tensor([[2, 5, 6, 7, 3], [2, 8, 9, 3, 0]])


class InPlace(nn.Module):
    """Three layers; what the first one gave is changed in place afterwards."""

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
    torch.manual_seed(0)
    backbone = TinyVIT(
        image_size=32,
        embed_dims=[8, 16, 16],
        depths=[1, 1, 1],
        num_heads=[1, 2, 4],
        window_sizes=[2, 2, 2],
        out_indices=[0, 1, 2],
    )
    return StudentCandidateV1(
        20, backbone, embed_dim=16, layers=2, heads=2, num_frames=3, max_positions=12
    ).eval()


@pytest.fixture(scope="module")
def teacher():
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = GitConfig(
        **sizes,
        vision_config={**sizes, "image_size": 32, "patch_size": 16},
        vocab_size=20,
        max_position_embeddings=12,
        num_image_with_embedding=3,
        bos_token_id=2,
        eos_token_id=3,
    )
    return GenerativeImageTextModel(config).eval()


class Wrapper(nn.Module):
    """As a teacher holds its network."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, *inputs):
        return self.model(*inputs)


def hooks(model):
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())


def test_each_path_holds_its_own_layers_output():
    model, x = InPlace(), torch.rand(2, 4)
    with record(model, "layers.?") as seen:
        model(x)
    assert list(seen) == ["layers.0", "layers.1", "layers.2"]
    first = model.layers[0](x)
    second = model.layers[1](first + 100)
    for path, expected in zip(seen, (first, second, model.layers[2](second)), strict=True):
        torch.testing.assert_close(seen[path], [expected.detach()])


def test_a_later_change_in_place_does_not_reach_what_was_captured():
    model, x = InPlace(), torch.rand(2, 4)
    with record(model, "layers.0") as seen:
        model(x)
    assert seen["layers.0"][0].abs().max() < 50


def test_inplace_changes_inside_timms_own_blocks_do_not_either(student):
    conv = student.backbone.net.stages_0.blocks[0].conv3
    with record(student, ["*.stages_0.blocks.0.act2", "*.stages_0.blocks.0.conv3"]) as seen:
        student(FRAMES, TOKENS)
    inside, after = seen.values()  # the block adds its input to conv3's output in place
    torch.testing.assert_close(after[0], conv(inside[0]).detach())


def test_detached_unless_asked_otherwise():
    model, x = InPlace(), torch.rand(2, 4)
    with record(model, "layers.1") as seen:
        model(x)
    assert not seen["layers.1"][0].requires_grad
    with record(model, "layers.1", detach=False) as seen:
        model(x)
    seen["layers.1"][0].sum().backward()
    assert model.layers[0].weight.grad.abs().sum() > 0
    assert model.layers[1].weight.grad.abs().sum() > 0
    assert model.layers[2].weight.grad is None


def test_a_feature_loss_reaches_the_students_backbone(student):
    with record(student, "memory_norm", detach=False) as seen:
        student(FRAMES, TOKENS)
    student.zero_grad()
    seen["memory_norm"][0].square().sum().backward()
    assert student.backbone.net.patch_embed.conv1.conv.weight.grad.abs().sum() > 0
    student.zero_grad()


def test_one_entry_a_call():
    model = InPlace()
    xs = [torch.rand(2, 4), torch.rand(3, 4)]
    with record(model, "layers.2") as seen:
        expected = [model(x).detach() for x in xs]
    torch.testing.assert_close(seen["layers.2"], expected)


def test_hooks_are_gone_after_success_error_and_nesting():
    model, x = InPlace(), torch.rand(2, 4)
    with record(model, "layers.*"), record(model, "layers.1") as inner:
        model(x)
        assert hooks(model) == 4
    assert hooks(model) == 0
    model(x)
    assert len(inner["layers.1"]) == 1
    with pytest.raises(ZeroDivisionError), record(model, "layers.*"):
        1 / 0  # noqa: B018
    assert hooks(model) == 0
    with pytest.raises(KeyError), record(model, ["layers.0", "layers.9"]):
        pass
    assert hooks(model) == 0


def test_the_inner_of_two_recordings_removes_only_its_own():
    model, x = InPlace(), torch.rand(2, 4)
    with record(model, "layers.0") as outer:
        with record(model, "layers.0"):
            model(x)
        model(x)
    assert len(outer["layers.0"]) == 2


def test_someone_elses_hook_survives():
    model, calls = InPlace(), []
    model.layers[0].register_forward_hook(lambda *_: calls.append(1))
    with record(model, "layers.0"):
        model(torch.rand(1, 4))
    model(torch.rand(1, 4))
    assert len(calls) == 2


def test_an_unknown_path_is_named_with_near_ones():
    model = InPlace()
    with pytest.raises(KeyError) as error, record(model, ["layers.0", "layer.2"]):
        pass
    assert error.value.args[0] == "no module is called layer.2; did you mean layers.2, layers.1, layers.0?"
    with pytest.raises(KeyError, match="no module is called \\*.softmax'$"), record(model, "*.softmax"):
        pass


def test_asking_for_what_was_not_recorded():
    model = InPlace()
    with record(model, "layers.1") as seen:
        model(torch.rand(1, 4))
    with pytest.raises(KeyError, match="layers.0 was not recorded; did you mean layers.1?"):
        seen["layers.0"]


@pytest.mark.parametrize("name", ["unused", "unus*", "layers"])
def test_nothing_caught_is_an_error(name):
    model = InPlace()
    message = f"nothing was captured at {name}: the model did not call it while recording"
    with pytest.raises(RuntimeError) as error, record(model, ["layers.0", name]):
        model(torch.rand(1, 4))
    assert str(error.value) == message
    assert hooks(model) == 0


def test_an_error_inside_is_not_hidden_by_nothing_caught():
    with pytest.raises(ZeroDivisionError), record(InPlace(), "unused"):
        1 / 0  # noqa: B018


def test_what_a_pattern_matched_but_nobody_called_drops_out():
    model = InPlace()
    with record(model, "*") as seen:
        model(torch.rand(1, 4))
    assert list(seen) == ["layers.0", "layers.1", "layers.2"]


def test_no_names_no_recording():
    model = InPlace()
    with record(model, []) as seen:
        model(torch.rand(1, 4))
    assert seen == {} and hooks(model) == 0


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


def test_attention_weights_of_the_student(student):
    plain = student(FRAMES, TOKENS).logits
    with record(student, ["*.attn.softmax", "*attention.softmax"]) as seen:
        watched = student(FRAMES, TOKENS).logits
    torch.testing.assert_close(watched, plain, atol=1e-5, rtol=1e-4)
    memory, text = 3 * 2 * 2, TOKENS.shape[1]
    assert {path: tuple(weights[0].shape) for path, weights in seen.items()} == {
        "backbone.net.stages_1.blocks.0.attn.softmax": (2 * 3 * 4, 2, 4, 4),
        "backbone.net.stages_2.blocks.0.attn.softmax": (2 * 3, 4, 4, 4),
        "mixer.0.attention.softmax": (2, 2, memory, memory),
        "layers.0.self_attention.softmax": (2, 2, text, text),
        "layers.0.cross_attention.softmax": (2, 2, text, memory),
        "layers.1.self_attention.softmax": (2, 2, text, text),
        "layers.1.cross_attention.softmax": (2, 2, text, memory),
    }
    for (weights,) in seen.values():
        torch.testing.assert_close(weights.sum(-1), torch.ones(weights.shape[:-1]))
    assert seen["layers.0.self_attention.softmax"][0].triu(1).abs().max() == 0


def test_attention_weights_of_the_teacher_through_its_wrapper(teacher):
    wrapped = Wrapper(teacher)
    plain = wrapped(FRAMES, TOKENS).logits
    with record(wrapped, "*.attention.softmax") as seen:
        watched = wrapped(FRAMES, TOKENS).logits
    torch.testing.assert_close(watched, plain, atol=1e-5, rtol=1e-4)
    image, text = 3 * (1 + 4), TOKENS.shape[1]
    assert {path: [tuple(w.shape) for w in weights] for path, weights in seen.items()} == {
        "model.image_encoder.layers.0.attention.softmax": [(6, 2, 5, 5)],
        "model.image_encoder.layers.1.attention.softmax": [(6, 2, 5, 5)],
        "model.layers.0.attention.softmax": [(2, 2, image, image), (2, 2, text, image + text)],
        "model.layers.1.attention.softmax": [(2, 2, text, image + text)],
    }
    for weights in seen.values():
        for call in weights:
            torch.testing.assert_close(call.sum(-1), torch.ones(call.shape[:-1]))


def test_every_step_of_a_search_is_an_entry(student):
    with record(student, ["layers.0.cross_attention.softmax", "memory_norm"]) as seen:
        result = greedy(student, FRAMES, max_length=8)
    assert len(seen["memory_norm"]) == 1
    assert len(seen["layers.0.cross_attention.softmax"]) == result.steps
    assert hooks(student) == 0


def test_a_layer_gives_its_hidden_state(student, teacher):
    for model in (student, teacher):
        with record(model, "layers.?") as seen:
            output = model(FRAMES, TOKENS)
        torch.testing.assert_close(seen["layers.0"][-1], output.hidden_states[1])
