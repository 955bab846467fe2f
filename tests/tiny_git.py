"""Tiny random GIT models whose every part matters to the output, and inputs for them."""

import json
import re
from pathlib import Path

import torch
from transformers import BertTokenizerFast, GitConfig, GitForCausalLM

from gitdistill.models.git import GenerativeImageTextModel

REFERENCE = Path(__file__).parent / "reference" / "microsoft_git"
WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"abcdefghijklmnopqrstuvwxy"]


def git_config(frames=None, tied=False, **changes) -> GitConfig:
    """30 words, 12 positions, 16-pixel images in 4-pixel patches; `frames` temporal embeddings."""
    vision = {"hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 2, "num_attention_heads": 3}
    vision |= {"image_size": 16, "patch_size": 4}
    text = {"hidden_size": 16, "intermediate_size": 36, "num_hidden_layers": 3, "num_attention_heads": 2}
    text |= {"vocab_size": len(WORDS), "bos_token_id": 2, "eos_token_id": 3, "tie_word_embeddings": tied}
    text |= {"max_position_embeddings": 12, "num_image_with_embedding": frames}
    for key in [key for key in changes if key.startswith("vision_")]:
        vision[key.removeprefix("vision_")] = changes.pop(key)
    return GitConfig(vision_config=vision, **text | changes)


def shake(model: torch.nn.Module, seed=0) -> torch.nn.Module:
    """Random numbers in every parameter, the temporal embeddings included, those of norms around 1; eval mode."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            norm = "norm" in name.lower() or re.search(r"projection\.1\.", name)
            mean = 1.0 if norm and name.endswith("weight") else 0.0
            parameter.copy_(mean + 0.25 * torch.randn(parameter.shape, generator=generator))
    return model.eval()


def random_git(seed=0, **config) -> GenerativeImageTextModel:
    return shake(GenerativeImageTextModel(git_config(**config)), seed)


def lively_git(seed, **config):
    """A random GIT whose captions differ from clip to clip and end at different steps."""
    model = random_git(seed=seed, num_hidden_layers=2, vision_num_hidden_layers=1, **config)
    with torch.no_grad():
        model.head.bias.zero_()
        model.head.bias[3] += seed % 3
        model.head.bias[0] = -99  # never padding
        model.embedding.positions.weight.mul_(4)
        model.embedding.words.weight.mul_(4)
        model.projection[1].weight.mul_(8)
    return model


def random_port(seed=0, **config) -> GitForCausalLM:
    """transformers' own implementation."""
    return shake(GitForCausalLM(git_config(**config)), seed)


def random_inputs(clips=2, frames=None, length=6, size=16, captions=1, words=30, seed=0):
    """Pixels [B, F, 3, H, W], or [B, 3, H, W] without frames, and tokens [B*K, T]."""
    generator = torch.Generator().manual_seed(seed)
    height, width = (size, size) if isinstance(size, int) else size
    shape = (clips, 3, height, width) if frames is None else (clips, frames, 3, height, width)
    tokens = torch.randint(5, words, (clips * captions, length), generator=generator)
    tokens[:, 0] = 2
    return torch.randn(shape, generator=generator), tokens


def tokenizer(words=WORDS) -> BertTokenizerFast:
    return BertTokenizerFast(vocab={word: index for index, word in enumerate(words)})


def change_config(folder, **fields) -> None:
    """Change fields of a saved config.json; None removes one."""
    path = Path(folder) / "config.json"
    config = json.loads(path.read_text()) | fields
    path.write_text(json.dumps({key: value for key, value in config.items() if value is not None}))
