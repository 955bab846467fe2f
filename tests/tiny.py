"""Small random networks of the embedded world's vocabulary, quick enough for unit tests."""

import torch

from gitdistill.models.backbone import TinyVIT
from gitdistill.models.git import GenerativeImageTextModel
from gitdistill.models.student import StudentCandidateV1
from gitdistill.models.teacher import GenerativeImageTextTeacher
from gitdistill.world.module import ToyboxData, toybox_tokenizer
from gitdistill.world.pretrain import toybox_git_config

SIDE, FRAMES = 32, 2
BACKBONE = {"name": "tiny_vit_5m_224", "image_size": SIDE, "embed_dims": [8, 16, 32], "depths": [1, 1, 1]}
BACKBONE |= {"num_heads": [1, 2, 2], "window_sizes": [2, 2, 2], "out_indices": [0, 1, 2]}


def shake(network: torch.nn.Module) -> torch.nn.Module:
    """Moves all parameters away from their initialisation, where some are zero and no two outputs differ."""
    for parameter in network.parameters():
        parameter.data.add_(0.1 * torch.randn_like(parameter))
    return network


def clips(count: int, seed: int = 0) -> torch.Tensor:
    """Raw frames [count, FRAMES, 3, SIDE, SIDE]."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (count, FRAMES, 3, SIDE, SIDE), generator=generator, dtype=torch.uint8)


def git(seed: int = 0) -> GenerativeImageTextModel:
    """GIT with 32-pixel frames, 2 x 2 patches, two frames and two layers of width 32 on either side."""
    torch.manual_seed(seed)
    return shake(GenerativeImageTextModel(toybox_git_config(FRAMES, SIDE, 16, 32, 2, 2))).eval()


def teacher(seed: int = 0) -> GenerativeImageTextTeacher:
    return GenerativeImageTextTeacher(git(seed), toybox_tokenizer())


def backbone(seed: int = 0, **changes) -> TinyVIT:
    """Three stages of TinyViT on 32-pixel frames; the last one is a 2 x 2 grid."""
    torch.manual_seed(seed)
    return shake(TinyVIT(**BACKBONE | changes))


def student(seed: int = 0, **options) -> StudentCandidateV1:
    options = {"embed_dim": 32, "layers": 2, "heads": 2, "num_frames": FRAMES} | options
    return StudentCandidateV1(len(toybox_tokenizer()), backbone(seed), **options)


def data(**options) -> ToyboxData:
    """Eight clips of the embedded world with two captions each, in batches of four; four of every other split."""
    sizes = {"train_clips": 8, "val_clips": 4, "test_clips": 4, "unseen_clips": 4, "batch_size": 4}
    sizes |= {"captions_per_clip": 2, "num_frames": FRAMES, "image_size": SIDE}
    return ToyboxData(**sizes | {"fresh_captions": False, "max_tokens": 20} | options)
