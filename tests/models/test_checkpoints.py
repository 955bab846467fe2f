"""GIT checkpoints: both layouts, every spelling, strictly; and where they come from."""

import errno
import json
import os
import re
import socket
from unittest.mock import MagicMock

import huggingface_hub
import pytest
import torch
import yaml
from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError
from safetensors.torch import load_file, save_file
from tiny_git import REFERENCE, change_config, git_config, random_git, random_inputs, random_port
from torch.testing import assert_close
from transformers import GitForCausalLM

from gitdistill.models import checkpoints
from gitdistill.models.git import GenerativeImageTextModel

load_model = GenerativeImageTextModel.from_pretrained


@torch.no_grad()
def logits(model, frames=None):
    """The logits of either implementation for the same clips."""
    pixels, tokens = random_inputs(frames=frames)
    if isinstance(model, GitForCausalLM):
        return model(input_ids=tokens, pixel_values=pixels).logits[:, -tokens.shape[1] :]
    return model(pixels, tokens).logits


def rewrite(folder, change):
    """Let `change` edit the tensors of a saved checkpoint."""
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def microsoft_tensors(kind="video"):
    return torch.load(REFERENCE / kind / "snapshot" / "model.pt", weights_only=True)["model"]


def microsoft_folder(folder, tensors, parameters=None):
    (folder / "snapshot").mkdir(parents=True, exist_ok=True)
    torch.save({"model": tensors, "iteration": 7}, folder / "snapshot" / "model.pt")
    if parameters is not None:
        (folder / "parameter.yaml").write_text(yaml.safe_dump(parameters))
    return folder


def assert_same_weights(one, other):
    assert_close(one.state_dict(), other.state_dict(), atol=0, rtol=0)


# transformers' layout


@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
@pytest.mark.parametrize("frames", [None, 3], ids=["image", "video"])
def test_transformers_reads_what_is_saved(tmp_path, frames, tied):
    model = random_git(frames=frames, tied=tied)
    model.save_pretrained(tmp_path)
    assert sorted(os.listdir(tmp_path)) == ["config.json", "model.safetensors"]
    assert ("output.weight" in load_file(tmp_path / "model.safetensors")) != tied
    port, info = GitForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info.values())
    assert_close(logits(port.eval(), frames), logits(model, frames), atol=1e-4, rtol=0)
    assert_same_weights(load_model(tmp_path), model)


def test_saved_as_float16_and_read_as_float32(tmp_path):
    model = random_git(frames=2)
    model.save_pretrained(tmp_path, dtype=torch.float16)
    assert {t.dtype for t in load_file(tmp_path / "model.safetensors").values()} == {torch.float16}
    config = json.loads((tmp_path / "config.json").read_text())
    expected = {"architectures": ["GitForCausalLM"], "model_type": "git", "dtype": "float32"}
    assert {name: config[name] for name in expected} == expected
    port, ours = GitForCausalLM.from_pretrained(tmp_path).eval(), load_model(tmp_path)
    assert {p.dtype for p in port.parameters()} == {p.dtype for p in ours.parameters()} == {torch.float32}
    assert_close(logits(port, 2), logits(ours, 2), atol=1e-4, rtol=0)
    assert_close(logits(ours, 2), logits(model, 2), atol=5e-2, rtol=0)


@pytest.mark.parametrize("spelling", ["temporal", "temperal"])
def test_both_spellings_of_the_temporal_embedding(tmp_path, spelling):
    port = random_port(frames=3)
    port.save_pretrained(tmp_path)

    def respell(tensors):
        for name in [name for name in tensors if "img_temp" in name]:
            number = name.rsplit(".", 1)[1]
            tensors[f"git.img_{spelling}_embedding.{number}"] = tensors.pop(name)

    rewrite(tmp_path, respell)
    assert_close(logits(load_model(tmp_path), 3), logits(port, 3), atol=1e-4, rtol=0)
    both = {f"git.img_{each}_embedding.0": torch.zeros(1, 1, 24) for each in ("temporal", "temperal")}
    rewrite(tmp_path, lambda tensors: tensors.update(both))
    with pytest.raises(ValueError, match="git.img_temp.ral_embedding.0 twice"):
        load_model(tmp_path)


def test_counters_of_older_files_are_no_weights(tmp_path):
    model = random_git()
    model.save_pretrained(tmp_path)
    old = ("git.embeddings.position_ids", "git.image_encoder.vision_model.embeddings.position_ids")
    rewrite(tmp_path, lambda tensors: tensors.update({name: torch.arange(12)[None] for name in old}))
    assert_same_weights(load_model(tmp_path), model)


@pytest.mark.parametrize("kind", ["one pickle", "safetensors shards", "pickle shards"])
def test_other_files_of_the_same_layout(tmp_path, kind):
    port = random_port(frames=2)
    port.save_pretrained(tmp_path, max_shard_size="20KB" if "shards" in kind else "1GB")
    parts = sorted(tmp_path.glob("*.safetensors"))
    assert (len(parts) > 2) == ("shards" in kind)
    if "pickle" in kind:
        for part in parts:
            stem = part.stem.replace("model", "pytorch_model", 1)
            torch.save(load_file(part), tmp_path / f"{stem}.bin")
            part.unlink()
    if kind == "pickle shards":
        index = (tmp_path / "model.safetensors.index.json").read_text()
        index = index.replace("model-", "pytorch_model-").replace(".safetensors", ".bin")
        (tmp_path / "pytorch_model.bin.index.json").write_text(index)
        (tmp_path / "model.safetensors.index.json").unlink()
    assert_close(logits(load_model(tmp_path), 2), logits(port, 2), atol=1e-4, rtol=0)


def test_two_heads_that_drifted_apart_stay_two(tmp_path):
    """transformers, too, does not tie what differs, whatever the configuration says."""
    model = random_git(tied=False)
    model.save_pretrained(tmp_path)
    change_config(tmp_path, tie_word_embeddings=True)
    ours = load_model(tmp_path)
    assert ours.head.weight is not ours.embedding.words.weight
    assert_same_weights(ours, model)
    assert_close(logits(GitForCausalLM.from_pretrained(tmp_path).eval()), logits(ours), atol=1e-4, rtol=0)


def test_sizes_given_as_lists(tmp_path):
    model = random_git()
    model.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    vision = config["vision_config"] | {"image_size": [16, 16], "patch_size": [4, 4]}
    change_config(tmp_path, vision_config=vision, eos_token_id=[3])
    ours = load_model(tmp_path)
    assert (ours.eos_token_id, ours.config.vision_config.image_size) == (3, 16)
    change_config(tmp_path, vision_config=vision | {"image_size": [16, 20]})
    with pytest.raises(ValueError, match=r"image_size is \[16, 20\]"):
        load_model(tmp_path)


# Microsoft's layout


@pytest.mark.parametrize("kind", ["image", "video"])
@pytest.mark.parametrize("prefix", ["", "module."])
def test_microsoft_without_parameters_and_with_prefixes(tmp_path, kind, prefix):
    tensors = {prefix + name: tensor for name, tensor in microsoft_tensors(kind).items()}
    assert_same_weights(load_model(microsoft_folder(tmp_path, tensors)), load_model(REFERENCE / kind))


def test_microsoft_fields_of_question_answering(tmp_path):
    parameters = {"test_crop_size": 70, "test_respect_ratio_max": 96, "num_image_with_embedding": 2}
    config = load_model(microsoft_folder(tmp_path, microsoft_tensors(), parameters)).config
    assert (config.vision_config.image_size, config.test_respect_ratio_max) == (70, 96)


@pytest.mark.parametrize(
    "parameters, message",
    [
        ({"visual_feature_size": 768}, "visual_feature_size is 768, not 128"),
        ({"image_encoder_type": "CLIPViT_L_14"}, "image_encoder_type's patch size is 14, not 16"),
        ({"test_crop_size": 224}, "test_crop_size in patches is 14, not 4"),
        ({"num_image_with_embedding": 6}, r"missing: img_temperal_embedding\.2,"),
        ({"num_image_with_embedding": 1}, r"unexpected: img_temperal_embedding\.1$"),
        (["a list"], "parameter.yaml must hold names and values"),
    ],
)
def test_microsoft_parameters_must_fit_the_tensors(tmp_path, parameters, message):
    folder = microsoft_folder(tmp_path, microsoft_tensors(), parameters)
    with pytest.raises(ValueError, match=message):
        load_model(folder)


# strictness


def complaint(folder):
    with pytest.raises(ValueError) as caught:
        load_model(folder)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("layout", ["transformers", "microsoft"])
def test_each_missing_key_is_named(tmp_path, layout):
    whole = microsoft_tensors()
    del whole["image_encoder.proj"]  # CLIP's own projection, which GIT leaves unused
    if layout == "transformers":
        random_git(frames=2, num_hidden_layers=1, vision_num_hidden_layers=1).save_pretrained(tmp_path)
        whole = load_file(tmp_path / "model.safetensors")
    for name in whole:
        rest = {other: tensor for other, tensor in whole.items() if other != name}
        if layout == "transformers":
            save_file(rest, tmp_path / "model.safetensors")
        else:
            microsoft_folder(tmp_path, rest, {"num_image_with_embedding": 2})
        assert re.search(rf"{re.escape(name)}($| is missing)", complaint(tmp_path)), name


def test_misshapen_and_unexpected_keys_are_named(tmp_path):
    random_git().save_pretrained(tmp_path)
    odd = ("git.encoder.layer.0.rotary", "git.encoder.layer.3.output.dense.bias")
    wrong = dict.fromkeys((*odd, "git.embeddings.LayerNorm.weight"), torch.zeros(5))
    rewrite(tmp_path, lambda tensors: tensors.update({name: x.clone() for name, x in wrong.items()}))
    message = complaint(tmp_path)
    assert "misshapen: git.embeddings.LayerNorm.weight [5] instead of [16]" in message
    assert all(name in message for name in odd) and "missing" not in message


@pytest.mark.parametrize("rows", [383, 385, 128])
def test_misshapen_stacked_attention_is_named(tmp_path, rows):
    name = "image_encoder.transformer.resblocks.0.attn.in_proj_weight"
    message = complaint(microsoft_folder(tmp_path, microsoft_tensors() | {name: torch.zeros(rows, 128)}))
    assert f"misshapen: {name}" in message


def test_many_problems_are_a_few_names_and_a_count(tmp_path):
    random_git().save_pretrained(tmp_path)
    rewrite(tmp_path, lambda tensors: [tensors.pop(name) for name in list(tensors) if ".encoder." in name])
    message = complaint(tmp_path)
    shown, more = message.count("git."), int(re.search(r"and (\d+) more", message).group(1))
    assert shown < 8 and shown + more == 2 * 16 + 3 * 16


def lost_shard(folder):
    random_port().save_pretrained(folder, max_shard_size="20KB")
    sorted(folder.glob("*.safetensors"))[1].unlink()


def broken_parameters(folder):
    (microsoft_folder(folder, microsoft_tensors()) / "parameter.yaml").write_text("a: [")


@pytest.mark.parametrize(
    "spoil, kind, message",
    [
        (lambda folder: None, FileNotFoundError, "neither config.json"),
        (lambda folder: git_config().save_pretrained(folder), FileNotFoundError, "neither model.safetensors"),
        (lambda folder: (folder / "config.json").write_text('{"model_type": "bert"}'), ValueError, "'bert'"),
        (lambda folder: (folder / "config.json").write_text("{"), ValueError, "is not valid JSON"),
        (lost_shard, FileNotFoundError, "model-00002-of"),
        (lambda folder: microsoft_folder(folder, [1, 2]), ValueError, "not a plain PyTorch state dict"),
        (broken_parameters, ValueError, "not readable YAML"),
    ],
)
def test_what_is_no_checkpoint(tmp_path, spoil, kind, message):
    spoil(tmp_path)
    with pytest.raises(kind, match=message) as caught:
        load_model(tmp_path)
    assert "\n" not in str(caught.value)


# where checkpoints come from


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A hub without network whose cache lies in `tmp_path`; gives a function that puts a repository there."""

    def cached(name):
        folder = tmp_path / f"models--{name.replace('/', '--')}"
        (folder / "refs").mkdir(parents=True)
        (folder / "refs" / "main").write_text("0" * 40)
        (folder / "snapshots" / ("0" * 40)).mkdir(parents=True)
        return folder / "snapshots" / ("0" * 40)

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    return cached


@pytest.mark.parametrize("name", ["somebody/git-tiny", "git-tiny"])
def test_a_hub_id_without_network_says_what_to_do(hub, name):
    with pytest.raises(FileNotFoundError, match=f"^{name} [^\n]*could not be downloaded[^\n]*toybox[^\n]*$"):
        load_model(name)


def test_a_hub_id_downloaded_before_needs_no_network(hub):
    model = random_git()
    model.save_pretrained(hub("somebody/git-tiny"))
    assert_same_weights(load_model("somebody/git-tiny"), model)


def test_a_hub_that_does_not_answer_is_given_up(hub, monkeypatch):
    """It takes the connection and says nothing. What was downloaded before is still found."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_ETAG_TIMEOUT", 0.2)
        address = f"http://127.0.0.1:{silent.getsockname()[1]}"
        monkeypatch.setattr(huggingface_hub.hf_api.api, "endpoint", address)
        with pytest.raises(
            FileNotFoundError, match="^somebody/git-tiny [^\n]*timed out[^\n]*check the network"
        ):
            load_model("somebody/git-tiny")
        random_git().save_pretrained(hub("somebody/git-tiny"))
        assert load_model("somebody/git-tiny")


def test_pickles_are_downloaded_only_where_there_is_no_safetensors(monkeypatch, tmp_path):
    asked = []
    monkeypatch.setattr(checkpoints, "download", lambda _, files: asked.append(str(files)) or tmp_path)
    random_git().save_pretrained(tmp_path)
    load_model("somebody/git-tiny")
    assert len(asked) == 1 and "safetensors" in asked[0] and "bin" not in asked[0]
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match="neither model.safetensors nor pytorch_model.bin"):
        load_model("somebody/git-tiny")
    assert "bin" in asked[-1]


NOWHERE = ["", " ", "~nobody-knows/x", "a\nb", "/dev/null/x", "x" * 5000, "\0"]
NOWHERE += ["../x", "./nowhere", "./config.json"]


@pytest.mark.parametrize("source", NOWHERE)
def test_what_is_neither_folder_nor_repository(source, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    random_git().save_pretrained(tmp_path)  # the current folder, which '' is not
    with pytest.raises(FileNotFoundError, match=r"^[^\n]*(no folder|is a file)[^\n]*$"):
        load_model(source)


REFUSAL = {"response": MagicMock()}


@pytest.mark.parametrize(
    "error, message",
    [
        (GatedRepoError("403.\nNo", **REFUSAL), "some/git is gated: ask for access at .*, then log in"),
        (RepositoryNotFoundError("404.\nNo", **REFUSAL), "no such repository: check the spelling, or log in"),
        (OSError(errno.ENOSPC, "No space left"), "could not be downloaded .*No space left"),
    ],
)
def test_what_the_hub_refuses_or_the_disk_has_no_room_for(monkeypatch, error, message):
    monkeypatch.setattr(checkpoints, "model_info", MagicMock(side_effect=error))
    with pytest.raises(FileNotFoundError, match=f"^[^\n]*{message}[^\n]*$"):
        load_model("some/git")


IMPOSSIBLE = [
    ("hidden_size", "wide"), ("hidden_act", "evil"), ("eos_token_id", [[1]]), ("num_attention_heads", 0),
    ("num_attention_heads", -1), ("num_image_with_embedding", 10**8), ("num_image_with_embedding", 10**5),
    ("vision_config", "x"), ("vocab_size", 10**10), ("max_position_embeddings", 0), ("layer_norm_eps", []),
]  # fmt: skip


@pytest.mark.parametrize("field, value", IMPOSSIBLE)
def test_values_of_a_configuration_that_no_network_has(tmp_path, field, value):
    random_git(frames=2).save_pretrained(tmp_path)
    change_config(tmp_path, **{field: value})
    with pytest.raises(ValueError, match=rf"^[^\n]*{tmp_path}[^\n]*$"):
        load_model(tmp_path)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="has no pipes")
def test_a_pipe_is_no_file(tmp_path):
    random_git().save_pretrained(tmp_path)
    for name in ("model.safetensors", "config.json"):
        (tmp_path / name).unlink()
        os.mkfifo(tmp_path / name)
        with pytest.raises(FileNotFoundError, match=str(tmp_path)):
            load_model(tmp_path)


@pytest.mark.parametrize(
    "index", ['{"weight_map": 5}', '{"weight_map": {"a": 5}}', '{"weight_map": {"a": ["b"]}}', "[]", "{"]
)
def test_an_index_of_another_kind(tmp_path, index):
    random_git().save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    (tmp_path / "model.safetensors.index.json").write_text(index)
    with pytest.raises(ValueError, match=rf"^{tmp_path}[^\n]*$"):
        load_model(tmp_path)
