"""TinyVIT: feature maps, weights in and out, attention that hooks can see."""

import json
import os

import pytest
import timm
import tiny
import torch
from safetensors.torch import save_file
from torch.testing import assert_close

from gitdistill.models import checkpoints
from gitdistill.models.backbone import TinyVIT, WindowAttention
from gitdistill.world.pretrain import EMBEDDED

TINY = tiny.BACKBONE | {"depths": [1, 1, 2]}


@pytest.fixture
def backbone():
    return tiny.backbone(depths=[1, 1, 2]).eval()


def attentions(backbone):
    return [module for module in backbone.modules() if isinstance(module, WindowAttention)]


def test_one_map_per_stage_of_frames_normalised_with_the_backbones_statistics(backbone):
    frames = torch.randint(0, 256, (2, 3, 3, 32, 32), dtype=torch.uint8)
    assert backbone.channels == [8, 16, 32] and backbone.grids == [(8, 8), (4, 4), (2, 2)]
    sizes = [(2, 3, c, *grid) for c, grid in zip(backbone.channels, backbone.grids, strict=True)]
    assert [tuple(m.shape) for m in backbone(frames)] == sizes
    assert backbone.mean == timm.get_pretrained_cfg(TINY["name"]).mean
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (backbone.mean, backbone.std))
    for raw, pixels in zip(backbone(frames), backbone((frames / 255 - mean) / std), strict=True):
        assert_close(raw, pixels)


def test_the_network_is_timms_own_and_encodes_frames_one_by_one(backbone):
    arguments = {key: value for key, value in TINY.items() if key not in ("name", "image_size")}
    plain = timm.create_model(TINY["name"], features_only=True, **arguments).eval()
    assert list(plain.state_dict()) == list(backbone.net.state_dict())
    plain.load_state_dict(backbone.net.state_dict())
    pixels = torch.rand(2, 3, 3, 32, 32)
    for ours, timms in zip(backbone(pixels), plain(pixels.flatten(0, 1)), strict=True):
        assert_close(ours.flatten(0, 1), timms, atol=1e-5, rtol=1e-4)


def test_the_embedded_backbone():
    backbone = TinyVIT.from_pretrained("toybox")
    assert backbone.config == EMBEDDED and not backbone.training
    assert backbone.grids == [(32, 32), (16, 16), (8, 8)]
    assert 250_000 < sum(p.numel() for p in backbone.parameters()) < 450_000
    assert len(attentions(backbone)[-1].attention_bias_idxs) == 8 * 8  # the last stage attends globally


def test_position_biases_follow_the_weights_in_eval_mode(backbone):
    pixels = torch.rand(1, 3, 32, 32)
    with torch.inference_mode():
        before = backbone(pixels)[-1]
    with torch.no_grad():
        for attention in attentions(backbone):
            attention.attention_biases.mul_(-30)
    after = backbone(pixels)[-1]
    assert not torch.allclose(before, after, atol=1e-3)
    assert_close(backbone.train().eval()(pixels)[-1], after)
    for _ in range(2):  # two backward passes in eval mode: frozen statistics, live weights
        backbone(pixels)[-1].sum().backward()
    assert all(a.attention_biases.grad.abs().sum() > 0 for a in attentions(backbone))


@pytest.mark.parametrize("dtype", [None, torch.float16])
def test_saved_and_loaded_again(backbone, tmp_path, dtype):
    backbone.save_pretrained(tmp_path / "new" / "folder", dtype)
    loaded = TinyVIT.from_pretrained(tmp_path / "new" / "folder")
    assert {p.name for p in (tmp_path / "new/folder").iterdir()} == {"config.json", "model.safetensors"}
    assert not loaded.training and loaded.config == TINY
    assert next(loaded.parameters()).dtype == torch.float32
    pixels, tolerance = torch.rand(1, 2, 3, 32, 32), 0.05 if dtype else 0
    for ours, theirs in zip(backbone(pixels), loaded(pixels), strict=True):
        assert_close(ours, theirs, atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize(
    "change",
    [
        {"checkpoint_path": "evil.pt"},
        {"pretrained": True},
        {"pretrained_cfg": {"file": "evil.pt"}},
        {"pretrained_cfg_overlay": {"url": "http://127.0.0.1:9/evil.pt"}},
        {"weights": "evil.pt"},
        {"cache_dir": "there"},
        {"feature_cls": "/etc/passwd"},
        {"name": "hf-hub:somebody/evil"},
        {"name": "local-dir:."},
        {"name": 5},
    ],
)
def test_a_folders_backbone_is_nothing_but_sizes(backbone, tmp_path, monkeypatch, change):
    monkeypatch.chdir(tmp_path)
    torch.save({"state": Evil()}, "evil.pt")
    backbone.save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(TINY | change))
    monkeypatch.setattr(timm, "create_model", lambda *_, **__: pytest.fail("timm was asked"))
    (name,) = change
    with pytest.raises(ValueError, match=f"{tmp_path} (is refused: {name}|names no architecture of timm)"):
        TinyVIT.from_pretrained(tmp_path)
    assert not (tmp_path / "executed").exists()


class Evil:
    def __reduce__(self):
        return os.mkdir, ("executed",)


@pytest.fixture(scope="module")
def whole():
    """A whole timm classifier at random, with the tiny widths and one stage more."""
    sizes = {"embed_dims": [8, 16, 16, 16], "depths": [1, 1, 2, 1], "num_heads": [1, 2, 4, 4]}
    sizes["window_sizes"] = [2, 2, 2, 2]
    torch.manual_seed(1)
    return sizes, timm.create_model(TINY["name"], num_classes=5, **sizes)


def load(path, sizes):
    return TinyVIT(TINY["name"], weights=path, image_size=32, out_indices=[0, 1, 2], **sizes)


def test_weights_of_a_whole_classifier_from_a_file(whole, tmp_path):
    sizes, model = whole
    torch.save({"model": model.state_dict()}, tmp_path / "whole.pt")
    loaded = load(tmp_path / "whole.pt", sizes)
    pixels = torch.rand(1, 3, 32, 32)
    expected = model.eval().forward_intermediates(pixels, intermediates_only=True)
    for ours, timms in zip(loaded.eval()(pixels), expected, strict=False):
        assert_close(ours[:, 0], timms, atol=1e-6, rtol=1e-5)


def test_weights_that_do_not_fit_are_named(whole, tmp_path):
    sizes, model = whole
    weights = model.state_dict() | {"stages.1.odd": torch.ones(1), "patch_embed.conv1.bn.bias": torch.ones(9)}
    del weights["stages.0.blocks.0.conv1.bn.bias"]
    torch.save(weights, tmp_path / "whole.pt")
    with pytest.raises(ValueError) as caught:
        load(tmp_path / "whole.pt", sizes)
    for message in (
        "missing: stages_0.blocks.0.conv1.bn.bias",
        "unexpected: stages.1.odd",
        "[9] instead of [4]",
    ):
        assert message in str(caught.value)


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"name": "tiny_vit_5m"}, "tiny_vit_5m.*tiny_vit_5m_224"),
        ({"name": "tiny_vit_5m_224.none"}, r"Invalid pretrained tag \(none\)"),
        ({**TINY, "odd": 1}, "unexpected keyword argument 'odd'"),
        ({"name": "vit_tiny_patch16_224", "image_size": 32}, "vit_tiny_patch16_224.*32"),
    ],
)
def test_a_mistake_in_the_arguments_is_one_line(arguments, message):
    with pytest.raises(ValueError, match=message) as caught:
        TinyVIT(**arguments)
    assert "\n" not in str(caught.value)


def test_pretrained_without_a_network_says_what_to_do(monkeypatch):
    """At once: timm, which would try again and again, is not asked."""
    monkeypatch.setattr(timm, "create_model", lambda *_, **__: pytest.fail("timm was asked"))
    with pytest.raises(FileNotFoundError, match="check the network.*toybox"):
        TinyVIT.from_pretrained("tiny_vit_5m_224.in1k")


def test_timm_reads_what_was_fetched(monkeypatch, tmp_path):
    torch.manual_seed(1)
    whole = timm.create_model("tiny_vit_5m_224")
    save_file(whole.state_dict(), tmp_path / "model.safetensors")
    monkeypatch.setattr(checkpoints, "download", lambda name, patterns: tmp_path)
    loaded = TinyVIT.from_pretrained("tiny_vit_5m_224.in1k").net.state_dict()
    assert loaded["patch_embed.conv1.conv.weight"].equal(whole.state_dict()["patch_embed.conv1.conv.weight"])
    assert loaded["stages_3.blocks.1.mlp.fc2.weight"].equal(whole.stages[3].blocks[1].mlp.fc2.weight)


@pytest.mark.parametrize("name", ["resnet10t", "swin_tiny_patch4_window7_224"])
def test_any_timm_model_with_feature_maps(name):
    swin = {"image_size": 224, "embed_dim": 12, "depths": (1, 1), "num_heads": (1, 2), "out_indices": (0, 1)}
    backbone = TinyVIT(name, **(swin if "swin" in name else {"image_size": 64})).eval()
    maps = backbone(torch.rand(1, 2, 3, backbone.image_size, backbone.image_size))
    assert [m.shape[2] for m in maps] == backbone.channels
    assert [tuple(m.shape[-2:]) for m in maps] == backbone.grids
    assert not attentions(backbone)


@pytest.mark.parametrize("option", [{"cache_dir": "x"}, {"act_layer": torch.nn.SiLU}, {"some": {"a": 1}}])
def test_what_could_not_be_loaded_again_is_refused_at_once(option):
    with pytest.raises(ValueError, match=f"{next(iter(option))} of its backbone is no size"):
        TinyVIT(**TINY, **option)


def test_a_home_folder_is_understood(backbone, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    backbone.save_pretrained("~/mine")
    assert (tmp_path / "mine" / "config.json").is_file()
    TinyVIT.from_pretrained("~/mine")
