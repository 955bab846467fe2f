"""TinyVIT: feature maps, weights in and out, attention that can be watched."""

import json

import pytest
import safetensors.torch
import timm
import torch
from torch import nn

from gitdistill.hooks import record
from gitdistill.models.backbone import TinyVIT, WindowAttention
from gitdistill.world.pretrain import EMBEDDED

TINY = {
    "name": "tiny_vit_5m_224",
    "image_size": 32,
    "embed_dims": [8, 16, 16],
    "depths": [1, 1, 2],
    "num_heads": [1, 2, 4],
    "window_sizes": [2, 2, 2],
    "out_indices": [0, 1, 2],
}


@pytest.fixture
def backbone():
    torch.manual_seed(0)
    backbone = TinyVIT(**TINY)
    for module in backbone.modules():  # timm starts them at zero, where a mistake would not show
        if isinstance(module, WindowAttention):
            nn.init.normal_(module.attention_biases)
    return backbone.eval()


def attentions(backbone):
    return [module for module in backbone.modules() if isinstance(module, WindowAttention)]


def test_one_map_per_stage_at_the_announced_sizes(backbone):
    frames = torch.randint(0, 256, (2, 3, 3, 40, 50), dtype=torch.uint8)
    maps = backbone(frames)
    assert backbone.channels == [8, 16, 16] and backbone.reductions == [4, 8, 16]
    assert [tuple(m.shape) for m in maps] == [
        (2, 3, c, *grid) for c, grid in zip(backbone.channels, backbone.grids, strict=True)
    ]
    assert backbone.grids == [(8, 8), (4, 4), (2, 2)]


def test_frames_are_encoded_one_by_one(backbone):
    frames = torch.rand(2, 3, 3, 32, 32)
    for all_at_once, one in zip(backbone(frames), backbone(frames[1, 2][None]), strict=True):
        torch.testing.assert_close(all_at_once[1, 2], one[0, 0], atol=1e-5, rtol=1e-4)


def test_raw_frames_are_normalised_with_the_backbones_own_statistics(backbone):
    frames = torch.randint(0, 256, (1, 2, 3, 32, 32), dtype=torch.uint8)
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (backbone.mean, backbone.std))
    assert backbone.mean == timm.get_pretrained_cfg(TINY["name"]).mean
    for raw, pixels in zip(backbone(frames), backbone((frames / 255 - mean) / std), strict=True):
        torch.testing.assert_close(raw, pixels)


@pytest.mark.parametrize(
    "frames", [torch.zeros(1, 3, 32, 32, dtype=torch.long), torch.rand(1, 2, 32, 32), torch.rand(3, 32, 32)]
)
def test_other_frames_are_refused_in_one_line(backbone, frames):
    with pytest.raises(ValueError, match="^frames must be .*$"):
        backbone(frames)


def test_the_embedded_configuration():
    backbone = TinyVIT(**EMBEDDED)
    assert backbone.grids == [(24, 24), (12, 12), (6, 6)]
    assert 250_000 < sum(p.numel() for p in backbone.parameters()) < 450_000
    assert attentions(backbone)[-1].resolution == backbone.grids[-1]  # the last stage attends globally


def test_the_embedded_backbone_is_that_configuration():
    assert TinyVIT.from_pretrained("glyphs").config == EMBEDDED


def test_the_net_is_timms_own(backbone):
    arguments = {key: value for key, value in TINY.items() if key not in ("name", "image_size")}
    plain = timm.create_model(TINY["name"], features_only=True, **arguments).eval()
    assert list(plain.state_dict()) == list(backbone.net.state_dict())
    plain.load_state_dict(backbone.net.state_dict())
    pixels = torch.rand(2, 3, 32, 32)
    for ours, timms in zip(backbone(pixels), plain(pixels), strict=True):
        torch.testing.assert_close(ours[:, 0], timms, atol=1e-6, rtol=1e-5)


def test_watched_attention_equals_the_fused_path_and_shows_weights(backbone):
    pixels, seen = torch.rand(3, 2, 3, 32, 32), []
    fused = backbone(pixels)
    handles = [a.softmax.register_forward_hook(lambda m, i, o: seen.append(o)) for a in attentions(backbone)]
    watched = backbone(pixels)
    for handle in handles:
        handle.remove()
    for a, b in zip(fused, watched, strict=True):
        torch.testing.assert_close(a, b, atol=1e-6, rtol=1e-5)
    # 3 clips x 2 frames, in 4 windows of 2 x 2 cells on the 4 x 4 grid, then a single window
    assert [tuple(weights.shape) for weights in seen] == [(24, 2, 4, 4), (6, 4, 4, 4), (6, 4, 4, 4)]
    for weights in seen:
        torch.testing.assert_close(weights.sum(-1), torch.ones(weights.shape[:-1]))
    backbone(pixels)
    assert len(seen) == 3


def test_position_biases_follow_the_weights_in_eval_mode(backbone):
    pixels = torch.rand(1, 3, 32, 32)
    with torch.inference_mode():
        before = backbone(pixels)[-1]
    with torch.no_grad():
        for attention in attentions(backbone):
            attention.attention_biases.mul_(-3)
    after = backbone(pixels)[-1]
    assert not torch.allclose(before, after)
    torch.testing.assert_close(backbone.train().eval()(pixels)[-1], after)
    for _ in range(2):  # two backward passes in eval mode: frozen statistics, live weights
        backbone(pixels)[-1].sum().backward()
    assert all(a.attention_biases.grad.abs().sum() > 0 for a in attentions(backbone))
    assert all(a.eval() is a for a in attentions(backbone))


def test_train_and_eval_agree_where_statistics_are_frozen(backbone):
    pixels = torch.rand(2, 3, 32, 32)
    expected = backbone(pixels)[-1]
    backbone.train()
    for module in backbone.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eval()
    torch.testing.assert_close(backbone(pixels)[-1], expected)


def test_folded_norms_change_nothing_but_the_time(backbone, monkeypatch):
    for module in backbone.modules():
        if isinstance(module, nn.BatchNorm2d):
            for values in (module.weight, module.bias, module.running_mean, module.running_var):
                nn.init.uniform_(values, 0.5, 1.5)
    frames, norms = torch.rand(2, 3, 3, 32, 32), []
    plain = nn.functional.batch_norm
    monkeypatch.setattr(nn.functional, "batch_norm", lambda *a, **k: norms.append(1) or plain(*a, **k))
    apart = backbone(frames)
    count = len(norms)
    with torch.no_grad():
        folded = backbone(frames)
        assert count and len(norms) == count
        with record(backbone, "net.patch_embed.conv1.bn") as seen:
            hooked = backbone(frames)
    assert len(seen["net.patch_embed.conv1.bn"]) == 1 and len(norms) == count + 1
    for one, two, three in zip(apart, folded, hooked, strict=True):
        torch.testing.assert_close(one, two, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(one, three, atol=1e-5, rtol=1e-5)


def test_saved_and_loaded_again(backbone, tmp_path):
    backbone.save_pretrained(tmp_path / "new" / "folder")
    loaded = TinyVIT.from_pretrained(tmp_path / "new" / "folder")
    assert {p.name for p in (tmp_path / "new/folder").iterdir()} == {"config.json", "model.safetensors"}
    assert not loaded.training and loaded.config == TINY
    pixels = torch.rand(1, 2, 3, 32, 32)
    for ours, theirs in zip(backbone(pixels), loaded(pixels), strict=True):
        assert torch.equal(ours, theirs)


def test_stored_in_half_precision(backbone, tmp_path):
    backbone.save_pretrained(tmp_path / "whole")
    backbone.save_pretrained(tmp_path / "half", torch.float16)
    size = {name: (tmp_path / name / "model.safetensors").stat().st_size for name in ("whole", "half")}
    assert size["half"] < 0.7 * size["whole"]
    loaded = TinyVIT.from_pretrained(tmp_path / "half")
    assert next(loaded.parameters()).dtype == torch.float32
    pixels = torch.rand(1, 3, 32, 32)
    torch.testing.assert_close(loaded(pixels)[-1], backbone(pixels)[-1], atol=0.05, rtol=0.05)


def test_an_interrupted_save_leaves_the_old_files(backbone, tmp_path, monkeypatch):
    backbone.save_pretrained(tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    nn.init.zeros_(attentions(backbone)[0].attention_biases)

    def full(tensors, path, **kwargs):
        path.write_bytes(b"half of it")
        raise OSError(28, "No space left on device", str(path))

    monkeypatch.setattr(safetensors.torch, "save_file", full)
    with pytest.raises(OSError, match="No space left"):
        backbone.save_pretrained(tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_a_wrong_folder_is_refused_in_one_line(backbone, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no checkpoint folder: it has no config\.json$"):
        TinyVIT.from_pretrained(tmp_path)
    backbone.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "embed_dims": [8, 16, 32]}))
    with pytest.raises(ValueError, match=r"misshapen: net\.stages_2\S+ \[.*\] instead of \[.*and \d+ more$"):
        TinyVIT.from_pretrained(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ValueError, match="names no timm model$"):
        TinyVIT.from_pretrained(tmp_path)


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
        torch.testing.assert_close(ours[:, 0], timms, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize(
    "change, message",
    [
        (
            lambda w: w.pop("stages.0.blocks.0.conv1.bn.bias"),
            r"missing: stages_0\.blocks\.0\.conv1\.bn\.bias$",
        ),
        (lambda w: w.update({"stages.1.odd": torch.ones(1)}), r"unexpected: stages\.1\.odd$"),
        (
            lambda w: w.update({"patch_embed.conv1.bn.bias": torch.ones(9)}),
            r"misshapen: patch_embed\.conv1\.bn\.bias \[9\] instead of \[4\]$",
        ),
    ],
)
def test_weights_that_do_not_fit_are_named(whole, tmp_path, change, message):
    sizes, model = whole
    weights = dict(model.state_dict())
    change(weights)
    torch.save(weights, tmp_path / "whole.pt")
    with pytest.raises(ValueError, match=message):
        load(tmp_path / "whole.pt", sizes)


def test_files_that_are_no_weights(tmp_path):
    (tmp_path / "a.safetensors").write_bytes(b"no")
    (tmp_path / "a.pt").write_bytes(b"no")
    for name in ("a.safetensors", "a.pt"):
        with pytest.raises(ValueError, match=rf"^\S*{name} is not [^\n]*$"):
            TinyVIT(**TINY, weights=tmp_path / name)
    with pytest.raises(FileNotFoundError, match=r"^there is no weights file \S*b\.pt$"):
        TinyVIT(**TINY, weights=tmp_path / "b.pt")


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"name": "tiny_vit_5m"}, "^timm has no model 'tiny_vit_5m'; did you mean tiny_vit_5m_224"),
        ({"name": "tiny_vit_5m_224.none"}, r"Invalid pretrained tag \(none\)[^\n]*$"),
        ({**TINY, "odd": 1}, "^timm cannot build tiny_vit_5m_224 .*unexpected keyword argument 'odd'$"),
        ({**TINY, "pretrained": True, "weights": "x"}, "^give either"),
        (
            {"name": "vit_tiny_patch16_224", "image_size": 32},
            "^vit_tiny_patch16_224 cannot read 32-pixel images",
        ),
    ],
)
def test_a_mistake_in_the_arguments_is_one_line(arguments, message):
    with pytest.raises(ValueError, match=message):
        TinyVIT(**arguments)


def test_pretrained_without_a_network_says_what_to_do(monkeypatch):
    def offline(*args, **kwargs):
        assert kwargs["pretrained"]
        raise OSError("Name or service not known")

    monkeypatch.setattr(timm, "create_model", offline)
    with pytest.raises(
        FileNotFoundError, match=r"connect to the network once, .*from_pretrained\('glyphs'\)$"
    ):
        TinyVIT("tiny_vit_5m_224.in1k", pretrained=True)


@pytest.mark.parametrize("name", ["resnet10t", "swin_tiny_patch4_window7_224"])
def test_any_timm_model_with_feature_maps(name):
    swin = {"image_size": 224, "embed_dim": 12, "depths": (1, 1), "num_heads": (1, 2), "out_indices": (0, 1)}
    backbone = TinyVIT(name, **(swin if "swin" in name else {"image_size": 64})).eval()
    maps = backbone(torch.rand(1, 2, 3, backbone.image_size, backbone.image_size))
    assert [m.shape[2] for m in maps] == backbone.channels
    assert [tuple(m.shape[-2:]) for m in maps] == backbone.grids
    assert [backbone.image_size // r for r in backbone.reductions] == [h for h, _ in backbone.grids]
    assert not attentions(backbone)
