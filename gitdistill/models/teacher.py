"""The teacher: a GIT that is only read, together with its tokenizer."""

import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from gitdistill.models import checkpoints
from gitdistill.models import tokenizer as text
from gitdistill.models.attention import KVCache
from gitdistill.models.git import GenerativeImageTextModel, GitOutput


class GenerativeImageTextTeacher(nn.Module):
    """A frozen GIT: never trains, never leaves eval mode, never records a gradient.

    `teacher(frames, tokens)` is `GenerativeImageTextModel`'s output. `model`, whose parameters are frozen
    here, and `tokenizer` must share a vocabulary; ValueError if they do not.
    """

    def __init__(self, model: GenerativeImageTextModel, tokenizer: PreTrainedTokenizerBase):
        super().__init__()
        text.check_vocabulary(model, tokenizer)
        self.model = model.requires_grad_(False)
        self.tokenizer = tokenizer
        self.eval()

    @classmethod
    def from_pretrained(cls, source, tokenizer=None, device=None, dtype=torch.float32):
        """Load a hub id, a checkpoint's folder in transformers' or Microsoft's layout, or `"glyphs"`.

        Args:
            source: see `gitdistill.models.checkpoints.resolve`.
            tokenizer: in place of the one in the folder. Microsoft's folders have none: then it is
                `bert-base-uncased`, from the hub.
            device: where the model goes, the CPU by default.
            dtype: of weights and computation; see `GenerativeImageTextModel.from_pretrained`.

        Raises FileNotFoundError or ValueError in one line; see `GenerativeImageTextModel.from_pretrained`.
        """
        if dtype == torch.float16 and torch.device(device or "cpu").type == "cpu":
            raise ValueError(
                "torch.float16 is for CUDA and MPS; on a CPU use torch.bfloat16 or torch.float32"
            )
        folder = checkpoints.resolve(source)
        model = GenerativeImageTextModel.from_pretrained(folder, dtype)
        return cls(model, tokenizer or text.load_tokenizer(folder)).to(device)

    def train(self, mode: bool = True) -> "GenerativeImageTextTeacher":
        """Stays in eval mode whatever `mode` is, so that a trainer's `train()` cannot switch dropout on."""
        return super().train(False)

    config = property(lambda self: self.model.config)
    bos_token_id = property(lambda self: self.model.bos_token_id)
    eos_token_id = property(lambda self: self.model.eos_token_id)
    pad_token_id = property(lambda self: self.model.pad_token_id)
    vocab_size = property(lambda self: self.model.vocab_size)
    max_positions = property(lambda self: self.model.max_positions)

    @torch.no_grad()
    def forward(self, frames: Tensor, tokens: Tensor) -> GitOutput:
        return self.model(frames, tokens)

    @torch.no_grad()
    def prefill(self, frames: Tensor) -> KVCache:
        """Read the clips; see `GenerativeImageTextModel.start`."""
        return self.model.prefill(frames)

    @torch.no_grad()
    def decode_step(self, tokens: Tensor, state: KVCache) -> tuple[Tensor, KVCache]:
        """Append tokens to every caption; see `GenerativeImageTextModel.step`."""
        return self.model.decode_step(tokens, state)

    def caption(self, frames: Tensor, **decoding) -> list[str]:
        """One caption a clip: greedy, or `beams=4, …` for beam search; see `model.text.caption`."""
        return text.caption(self, frames, self.tokenizer, **decoding)
