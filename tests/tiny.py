"""Small random networks of the embedded world's vocabulary, quick enough for unit tests."""

import torch

from gitdistill.models.backbone import TinyVIT
from gitdistill.models.git import GenerativeImageTextModel
from gitdistill.models.student import StudentCandidateV1
from gitdistill.models.teacher import GenerativeImageTextTeacher
from gitdistill.world.module import glyph_tokenizer
from gitdistill.world.pretrain import glyph_git_config

SIDE, FRAMES = 32, 2


def git(seed: int = 0) -> GenerativeImageTextModel:
    """GIT with 32-pixel frames, 2 x 2 patches, two frames and two layers of width 32 on either side."""
    torch.manual_seed(seed)
    model = GenerativeImageTextModel(glyph_git_config(FRAMES, SIDE, 16, 32, 2, 2))
    for parameter in model.parameters():  # larger than at initialisation, so that no two outputs are alike
        parameter.data.add_(0.1 * torch.randn_like(parameter))
    return model.eval()


def teacher(seed: int = 0) -> GenerativeImageTextTeacher:
    return GenerativeImageTextTeacher(git(seed), glyph_tokenizer())


def backbone(seed: int = 0) -> TinyVIT:
    """Three stages of TinyViT on 32-pixel frames; the last one is a 2 x 2 grid."""
    torch.manual_seed(seed)
    net = TinyVIT(
        image_size=SIDE,
        embed_dims=[8, 16, 32],
        depths=[1, 1, 1],
        num_heads=[1, 2, 2],
        window_sizes=[2, 2, 2],
        out_indices=[0, 1, 2],
    )
    for parameter in net.parameters():  # timm starts some scales at zero, and then nothing below them learns
        parameter.data.add_(0.1 * torch.randn_like(parameter))
    return net


def student(seed: int = 0, **options) -> StudentCandidateV1:
    eyes = backbone(seed)
    options = {"embed_dim": 32, "layers": 2, "heads": 2, "num_frames": FRAMES} | options
    return StudentCandidateV1(len(glyph_tokenizer()), eyes, **options)
