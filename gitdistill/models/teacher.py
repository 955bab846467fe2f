"""The teacher: a frozen GIT together with its tokenizer."""

import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from gitdistill.models import checkpoints
from gitdistill.models.attention import KVCache
from gitdistill.models.git import GenerativeImageTextModel, GitOutput
from gitdistill.models.precision import chosen_dtype
from gitdistill.models.tokenizer import check_same_vocabulary, generate_captions, load_tokenizer


class GenerativeImageTextTeacher(nn.Module):
    """A frozen GIT: always in eval mode and without gradients; called as `GenerativeImageTextModel` is.

    Freezes the parameters of `model`. ValueError unless `model` and `tokenizer` share a vocabulary.
    """

    def __init__(self, model: GenerativeImageTextModel, tokenizer: PreTrainedTokenizerBase):
        super().__init__()
        check_same_vocabulary(tokenizer, model)
        self.model, self.tokenizer = model.requires_grad_(False), tokenizer
        self.config, self.vocab_size, self.max_positions = model.config, model.vocab_size, model.max_positions
        self.bos_token_id, self.eos_token_id = model.bos_token_id, model.eos_token_id
        self.pad_token_id = model.pad_token_id
        self.eval()

    @classmethod
    def from_pretrained(cls, source, tokenizer=None, device=None, dtype: torch.dtype | str = torch.float32):
        """As `GenerativeImageTextModel.from_pretrained`, on `device` (by default the CPU).

        dtype: also by name, or "auto": bfloat16 where `device` multiplies it faster than float32 and a trial on noise
        chooses the same words. It changes those of a few clips in a hundred (`python benchmarks/decoding.py`).

        `tokenizer` replaces the checkpoint's; see `gitdistill.models.tokenizer.load_tokenizer`.
        """
        auto = dtype == "auto"
        if isinstance(dtype, str):
            dtype = torch.float32 if auto else getattr(torch, chosen_dtype(dtype))
        folder = checkpoints.resolve(source)
        model = GenerativeImageTextModel.from_pretrained(folder, dtype)
        teacher = cls(model, load_tokenizer(tokenizer or folder)).to(device)
        return teacher.to(getattr(torch, chosen_dtype("auto", model, stored=True))) if auto else teacher

    def train(self, mode: bool = True) -> "GenerativeImageTextTeacher":
        """Stays in eval mode whatever `mode` is, so that a trainer's `train()` cannot switch dropout on."""
        return super().train(False)

    @torch.no_grad()
    def forward(self, frames: Tensor, tokens: Tensor, visual_features: Tensor | None = None) -> GitOutput:
        return self.model(frames, tokens, visual_features)

    @torch.no_grad()
    def prefill(self, frames: Tensor) -> KVCache:
        return self.model.prefill(frames)

    @torch.no_grad()
    def decode_step(self, tokens: Tensor, cache: KVCache) -> tuple[Tensor, KVCache]:
        return self.model.decode_step(tokens, cache)

    def caption(self, frames: Tensor, **decoding) -> list[str]:
        """One caption a clip; `decoding` as for `gitdistill.models.tokenizer.generate_captions`."""
        return generate_captions(self, frames, self.tokenizer, **decoding)
