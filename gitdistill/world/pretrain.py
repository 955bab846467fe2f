"""What the embedded networks can see before they learn to caption: which toy, of which colour, is where.

Real GIT starts from CLIP and a real TinyViT from ImageNet. Neither fits in a repository, so the embedded teacher's
image encoder and the embedded backbone are trained here on single frames of the toybox with their ground truth: for
each cell of their grid, the object and the colour that lie there and the box around it. No motion, no relation and no
caption is among it: these the teacher learns from captions alone. The heads that predict all this are thrown away."""

from functools import partial

import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader
from transformers import GitConfig

from gitdistill.data.base import Samples
from gitdistill.distillation.optim import optimizer_and_schedule
from gitdistill.distillation.targets import as_feature_grid, total_frames
from gitdistill.models.backbone import TinyVIT
from gitdistill.models.git import GenerativeImageTextModel
from gitdistill.models.preprocessing import area_means
from gitdistill.world.drawing import WORLD
from gitdistill.world.lexicon import COLOURS, OBJECTS
from gitdistill.world.module import toybox_tokenizer
from gitdistill.world.scenes import Clip, Clips

CLASSES = {"object": [*OBJECTS], "colour": [None, *COLOURS]}  # None: the toy's own colours
CELL = 16  # pixels along a side of a cell: the teacher's patches, and the backbone's last stage
# The backbone of the embedded student: TinyViT with about 0.3 M parameters for 128-pixel frames. Its last stage is an
# 8 x 8 grid that attends globally, because one window covers it.
EMBEDDED = {
    "name": "tiny_vit_5m_224",
    "image_size": WORLD,
    "embed_dims": [16, 48, 96],
    "depths": [1, 1, 2],
    "mbconv_expand_ratio": 2.0,
    "num_heads": [1, 2, 4],
    "window_sizes": [8, 8, 8],
    "out_indices": [0, 1, 2],
}


class CellHeads(nn.Module):
    """One linear layer that reads what lies in each cell, kind by kind (class 0: nothing), and the box around it."""

    def __init__(self, width: int):
        super().__init__()
        self.sizes = {kind: 1 + len(names) for kind, names in CLASSES.items()}
        self.linear = nn.Linear(width, sum(self.sizes.values()) + 4)

    def forward(self, cells: Tensor, truth: dict[str, Tensor]) -> tuple[dict, dict]:
        """Losses and accuracies by kind. cells [..., D], truth as `cell_truth` gives it. Cross-entropy is in nats a
        cell, an empty cell counting a tenth; the box's error, in tenths of an image width (smooth L1), is over cells
        that show something."""
        *kinds, box = self.linear(cells).float().split([*self.sizes.values(), 4], dim=-1)
        shown = truth["object"] > 0
        terms, accuracy = {}, {}
        weight = torch.where(shown, 1.0, 0.1).flatten()  # most cells are empty, and soon recognised
        for kind, logits in zip(self.sizes, kinds, strict=True):
            loss = F.cross_entropy(logits.flatten(0, -2), truth[kind].flatten(), reduction="none")
            terms[kind] = (loss * weight).sum() / weight.sum()
            accuracy[kind] = (logits.argmax(-1) == truth[kind])[shown].float().mean()
        terms["box"] = 10 * F.smooth_l1_loss(box[shown], truth["box"][shown], beta=0.05)
        return terms, accuracy


def cell_truth(clip: Clip, least: float = 0.04) -> dict[str, Tensor]:
    """What lies in each cell of each frame, a grid of `CELL` pixels.

    A cell belongs to the toy that covers most of it, if it covers `least` of its area. Returns long [F, h, w] for
    "object" and "colour" (0: nothing) and "box" [F, h, w, 4]: the toy's visible box as x and y of its centre, width and
    height, in image widths. Its place in the picture, not in the cell: GIT's decoder adds no positions, so no caption
    can state a place that the image encoder's features do not hold."""
    grid = tuple(side // CELL for side in clip.masks.shape[-2:])
    cover, owner = area_means(clip.masks.float(), grid).max(dim=0)  # (F, h, w)
    truth = {}
    for kind, names in CLASSES.items():
        named = [getattr(toy, "name" if kind == "object" else kind) for toy in clip.scene.toys]
        index = torch.tensor([1 + names.index(name) for name in named])
        truth[kind] = index[owner] * (cover > least)
    truth["box"] = mask_boxes(clip.masks)[owner, torch.arange(len(owner))[:, None, None]]
    return truth


def mask_boxes(masks: Tensor) -> Tensor:
    """Boxes [..., 4] around masks [..., H, W]: centre x, y, width, height in image widths; zeros if empty."""

    def span(hit: Tensor) -> tuple[Tensor, Tensor]:
        size = hit.shape[-1]
        first = hit.float().argmax(-1)
        last = size - hit.flip(-1).float().argmax(-1)
        return (first + last) / 2 / size, (last - first) / size

    x, width = span(masks.any(-2))
    y, height = span(masks.any(-1))
    return torch.stack([x, y, width, height], dim=-1) * masks.any(-1).any(-1)[..., None]


class ToyboxFrames(pl.LightningDataModule):
    """Single frames of the toybox with their ground truth: batches of "frames" uint8 [B, 1, 3, H, W] and of what
    `cell_truth` gives, [B, 1, h, w]. Training frames never repeat; `epoch` frames lie between two validations."""

    image_size = WORLD

    def __init__(
        self,
        batch_size: int = 64,
        epoch: int = 32_000,
        val_frames: int = 1000,
        seed: int = 0,
        workers: int = 0,
    ):
        super().__init__()
        self.batch_size, self.epoch, self.val_frames = batch_size, epoch, val_frames
        self.seed, self.workers = seed, workers

    def train_dataloader(self):
        start = self.trainer.current_epoch * self.epoch
        return self.loader("train", range(start, start + self.epoch), self.seed)

    def val_dataloader(self):
        return self.loader("val", range(self.val_frames))

    def test_dataloader(self):
        return [self.loader(split, range(self.val_frames)) for split in ("test", "unseen")]

    def loader(self, split: str, numbers: range, seed: int = 0) -> DataLoader:
        """One frame of each clip; the clip's number decides which."""
        clips = Clips(split, numbers.stop, seed, image_size=self.image_size)
        frames = Samples(partial(one_frame, clips), numbers)
        return DataLoader(frames, self.batch_size, drop_last=split == "train", num_workers=self.workers)


def one_frame(clips: Clips, number: int) -> dict[str, Tensor]:
    clip = clips.clip(number, captions=0, only=number % clips.frames)
    return {"frames": clip.frames, **cell_truth(clip)}


class CellTrainer(pl.LightningModule):
    """Trains an image encoder to classify what lies in each cell of its grid, on single frames: a `TinyVIT` (its last
    stage is read) or a `GenerativeImageTextModel` (only its image encoder is trained)."""

    def __init__(self, encoder: nn.Module, lr: float = 2e-3, weight_decay: float = 0.05, warmup: int = 100):
        super().__init__()
        self.encoder = encoder
        self.lr, self.weight_decay, self.warmup = lr, weight_decay, warmup
        if isinstance(encoder, TinyVIT):
            width = encoder.channels[-1]
        else:
            width = encoder.config.vision_config.hidden_size
            encoder.requires_grad_(False)
            encoder.image_encoder.requires_grad_(True)
        self.heads = CellHeads(width)

    def configure_optimizers(self):
        return optimizer_and_schedule(self, self.trainer, self.lr, self.weight_decay, self.warmup, muon=True)

    def training_step(self, batch: dict, _) -> Tensor:
        return sum(self.score("train", batch).values())

    def validation_step(self, batch: dict, _) -> None:
        self.score("val", batch)

    def test_step(self, batch: dict, _, dataloader_idx: int = 0) -> None:
        self.score(("test", "unseen")[dataloader_idx], batch)

    def score(self, split: str, batch: dict) -> dict[str, Tensor]:
        """The losses of a batch by kind; logs them and the accuracies."""
        frames, encoder = batch["frames"], self.encoder
        features = encoder(frames) if isinstance(encoder, TinyVIT) else encoder.encode(frames)
        cells = as_feature_grid(features, total_frames(frames)).unflatten(0, frames.shape[:2])
        terms, accuracy = self.heads(cells, batch)
        how = {"batch_size": len(frames), "add_dataloader_idx": False}
        self.log_dict({f"{split}/{kind}": value.detach() for kind, value in terms.items()}, **how)
        named = {f"{split}/{kind}_accuracy": value for kind, value in accuracy.items()}
        self.log_dict(named, prog_bar=split == "train", **how)
        return terms


def toybox_git_config(
    num_frames=4, image_size=WORLD, patch=16, width=192, vision_layers=4, layers=4
) -> GitConfig:
    """The embedded teacher's configuration: GIT in small, with the toybox's own vocabulary."""
    tokenizer = toybox_tokenizer()
    size = {"hidden_size": width, "intermediate_size": 4 * width, "num_attention_heads": width // 32}
    picture = {"num_hidden_layers": vision_layers, "image_size": image_size, "patch_size": patch}
    return GitConfig(
        vision_config=size | picture,
        **size,
        vocab_size=len(tokenizer),
        num_hidden_layers=layers,
        max_position_embeddings=40,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        num_image_with_embedding=num_frames,
        tie_word_embeddings=True,
        bos_token_id=tokenizer.cls_token_id,
        eos_token_id=tokenizer.sep_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )


def embedded_git(folder: str | None = None) -> GenerativeImageTextModel:
    """The embedded teacher's network: new, or as saved in `folder`.

    A new one's temporal embeddings are drawn, not zeros as in GIT: zeros cannot tell one frame from the next, and
    motion is learned much later."""
    if folder:
        return GenerativeImageTextModel.from_pretrained(folder)
    model = GenerativeImageTextModel(toybox_git_config())
    for embedding in model.temporal:
        nn.init.normal_(embedding, std=0.5)
    return model


def embedded_backbone() -> TinyVIT:
    """A new TinyViT of the embedded size."""
    return TinyVIT(**EMBEDDED)
