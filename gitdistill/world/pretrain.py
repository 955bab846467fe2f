"""What the embedded world's networks learn before they speak: which thing, of which colour, is where.

Real GIT starts from CLIP and a real TinyViT from ImageNet. Neither fits in a repository, so the embedded
teacher's image encoder and the embedded backbone are trained here on the world's own ground truth: for each
cell of their grid, the symbol and colour that lie there and the box around it. `TeacherTrainer` then learns
captions and, in the image rows of its decoder, motions and relations, from the same ground truth.

The heads that predict all this are thrown away; what ships are the networks.
"""

import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset
from transformers import GitConfig

from gitdistill.distillation.optim import MuonAdamW, fit_steps, warmup_cosine
from gitdistill.distillation.targets import image_layer
from gitdistill.distillation.trainer import CaptionTrainer
from gitdistill.hooks import record
from gitdistill.models.backbone import TinyVIT
from gitdistill.models.git import GenerativeImageTextModel
from gitdistill.models.preprocessing import area_means
from gitdistill.world.grammar import COLOURS, MOTIONS, RELATIONS, SYMBOLS, relation_from
from gitdistill.world.module import glyph_tokenizer
from gitdistill.world.scenes import GlyphClips

# The backbone of the embedded student: TinyViT with about 0.3 M parameters for 96-pixel frames. Its last stage is a
# 6 x 6 grid that attends globally, because one window covers it.
EMBEDDED = {
    "name": "tiny_vit_5m_224",
    "image_size": 96,
    "embed_dims": [16, 48, 96],
    "depths": [1, 1, 2],
    "mbconv_expand_ratio": 2.0,
    "num_heads": [1, 2, 4],
    "window_sizes": [6, 6, 6],
    "out_indices": [0, 1, 2],
}
KINDS = {
    "symbol": list(SYMBOLS),
    "colour": list(COLOURS),
    "motion": list(MOTIONS),
    "relation": list(RELATIONS),
}


class CellHeads(nn.Module):
    """One linear layer that reads what lies in each cell, kind by kind (class 0: nothing), and the box around it."""

    def __init__(self, width: int, kinds: tuple[str, ...]):
        super().__init__()
        self.sizes = {kind: 1 + len(KINDS[kind]) for kind in kinds}
        self.linear = nn.Linear(width, sum(self.sizes.values()) + 4)

    def forward(self, cells: Tensor, truth: dict[str, Tensor]) -> tuple[dict, dict]:
        """Losses and accuracies by kind. cells [..., D], truth as `cell_truth` gives it.

        Cross-entropy is in nats a cell, an empty cell counting a tenth; the box's error, in tenths of
        an image width (smooth L1), is over cells that show something.
        """
        *kinds, box = self.linear(cells).float().split([*self.sizes.values(), 4], dim=-1)
        shown = truth["symbol"] > 0
        terms, accuracy = {}, {}
        weight = torch.where(shown, 1.0, 0.1).flatten()  # most cells are empty, and soon recognised
        for kind, logits in zip(self.sizes, kinds, strict=True):
            loss = F.cross_entropy(logits.flatten(0, -2), truth[kind].flatten(), reduction="none")
            terms[kind] = (loss * weight).sum() / weight.sum()
            accuracy[kind] = (logits.argmax(-1) == truth[kind])[shown].float().mean()
        terms["box"] = 10 * F.smooth_l1_loss(box[shown], truth["box"][shown], beta=0.05)
        return terms, accuracy


def cell_truth(masks: Tensor, scenes: list, grid: tuple[int, int], least: float = 0.04) -> dict[str, Tensor]:
    """What lies in each cell of each frame's grid.

    masks: bool [B, O, F, H, W], O objects at most. A cell belongs to the object that covers most of it, if it
    covers `least` of its area. Returns long [B, F, h, w] for "symbol", "colour", "motion" and "relation" (where the
    object is, seen from the other one; 0: nothing, or nothing clear) and "box" [B, F, h, w, 4]: the object's box as
    x and y of its centre, width and height, in image widths. Its place in the picture, not in the cell: GIT's
    decoder adds no positions, so what the image encoder does not tell of where things are, no caption can.
    """
    share = area_means(masks.float(), grid)
    cover, owner = share.max(dim=1)  # (B, F, h, w)
    shown = cover > least
    truth = {}
    for kind, names in KINDS.items():
        index = torch.zeros(masks.shape[:2], dtype=torch.long)
        for b, scene in enumerate(scenes):
            for o, thing in enumerate(scene.things):
                name = relation_from(scene, o) if kind == "relation" else getattr(thing, kind)
                index[b, o] = 1 + names.index(name) if name else 0
        picked = index.to(masks.device)[torch.arange(len(masks))[:, None, None, None], owner]
        truth[kind] = picked * shown
    boxes = mask_boxes(masks)  # (B, O, F, 4)
    b, f = torch.arange(len(masks))[:, None, None, None], torch.arange(masks.shape[2])[None, :, None, None]
    truth["box"] = boxes[b, owner, f]  # (B, F, h, w, 4)
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


class GlyphFrames(pl.LightningDataModule):
    """Single frames of the embedded world with their masks: batches of "frames" uint8 [B, 1, 3, H, W], "masks" bool
    [B, 2, 1, H, W] and "scenes". Training frames never repeat; `epoch` frames lie between two validations.
    """

    def __init__(self, batch_size: int = 64, epoch: int = 16_000, val_frames: int = 1000, seed: int = 0):
        super().__init__()
        self.batch_size, self.epoch, self.val_frames, self.seed = batch_size, epoch, val_frames, seed

    def train_dataloader(self):
        start = self.trainer.current_epoch * self.epoch
        frames = FrameStream(GlyphClips("train", start + self.epoch, self.seed), start)
        return DataLoader(frames, self.batch_size, drop_last=True, collate_fn=collate_frames)

    def val_dataloader(self):
        return self._fixed("val")

    def test_dataloader(self):
        return [self._fixed("test"), self._fixed("unseen")]

    def _fixed(self, split: str):
        frames = FrameStream(GlyphClips(split, self.val_frames), 0)
        return DataLoader(frames, self.batch_size, collate_fn=collate_frames)


class FrameStream(Dataset):
    """One frame of each of `clips` from number `start` on; the clip's number decides which."""

    def __init__(self, clips: GlyphClips, start: int):
        self.clips, self.start = clips, start

    def __len__(self) -> int:
        return len(self.clips) - self.start

    def __getitem__(self, index: int):
        index += self.start
        return self.clips.frame(index, index % self.clips.frames)


def collate_frames(samples: list) -> dict:
    frames, masks, scenes = zip(*samples, strict=True)
    padded = torch.stack([F.pad(m, (0, 0, 0, 0, 0, 2 - len(m))) for m in masks])
    return {"frames": torch.stack(frames)[:, None], "masks": padded[:, :, None], "scenes": list(scenes)}


class CellTrainer(pl.LightningModule):
    """Trains an image encoder to tell what lies in each cell of its grid, on single frames.

    `encoder` is a `TinyVIT` (its last stage is read) or a `GenerativeImageTextModel` (only its image encoder
    is trained).
    """

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
        self.heads = CellHeads(width, ("symbol", "colour"))

    def configure_optimizers(self):
        optimizer = MuonAdamW(self, self.lr, self.weight_decay)
        schedule = warmup_cosine(optimizer, self.warmup, fit_steps(self.trainer))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def cells(self, frames: Tensor) -> Tensor:
        """Features [B, F, h, w, C] of every cell."""
        if isinstance(self.encoder, TinyVIT):
            return self.encoder(frames)[-1].permute(0, 1, 3, 4, 2)
        return as_grid(self.encoder.encode(frames), frames.shape[1])

    def read(self, batch: dict) -> tuple[dict, dict]:
        cells = self.cells(batch["frames"])
        return self.heads(cells, cell_truth(batch["masks"], batch["scenes"], cells.shape[2:4]))

    def training_step(self, batch: dict, _) -> Tensor:
        terms, accuracy = self.read(batch)
        self.log_dict({f"train/{kind}": value.detach() for kind, value in terms.items()})
        self.log_dict({f"train/{kind}_accuracy": value for kind, value in accuracy.items()}, prog_bar=True)
        return sum(terms.values())

    def validation_step(self, batch: dict, _) -> None:
        self.score("val", batch)

    def test_step(self, batch: dict, _, dataloader_idx: int = 0) -> None:
        self.score(("test", "unseen")[dataloader_idx], batch)

    def score(self, split: str, batch: dict) -> None:
        terms, accuracy = self.read(batch)
        values = terms | {f"{kind}_accuracy": value for kind, value in accuracy.items()}
        values = {f"{split}/{name}": value for name, value in values.items()}
        self.log_dict(values, batch_size=len(batch["frames"]), add_dataloader_idx=False)


def as_grid(tokens: Tensor, frames: int) -> Tensor:
    """Image tokens [B, N, D] of square frames, class tokens dropped, as [B, F, h, w, D]."""
    tokens = tokens.unflatten(1, (frames, -1))[:, :, 1:]
    side = int(tokens.shape[2] ** 0.5)
    return tokens.unflatten(2, (side, side))


class TeacherTrainer(CaptionTrainer):
    """Trains the embedded teacher: captions, and in every cell what lies there and how it moves.

    Args:
        model: a `GenerativeImageTextModel`, its image encoder trained by `CellTrainer`.
        cell_weight: weight of the cells' terms, at the image encoder's end (symbol, colour, box) and in the
            image rows of the decoder before its last layer (symbol, colour, motion, relation, box).
        options: as for `CaptionTrainer`.
    """

    def __init__(self, model: GenerativeImageTextModel, cell_weight: float = 1.0, **options):
        super().__init__(model, **options)
        self.cell_weight = cell_weight
        config = model.config
        self.seen = CellHeads(config.vision_config.hidden_size, ("symbol", "colour"))
        self.understood = CellHeads(config.hidden_size, tuple(KINDS))
        self.layer = image_layer(model)
        for embedding in model.temporal:
            if not embedding.any():  # zeros cannot tell one frame from the next: motion is learned much later
                nn.init.normal_(embedding, std=0.5)

    def losses(self, batch: dict) -> dict[str, Tensor]:
        frames = batch["frames"].shape[1]
        with record(self.model, self.layer, detach=False) as activations:
            output = self.model(batch["frames"], batch["tokens"])
        image_rows = activations[self.layer][0]
        terms = {"cross_entropy": self.cross_entropy(output.logits, batch["tokens"])}
        for name, heads, tokens in (
            ("seen", self.seen, output.visual_features),
            ("understood", self.understood, image_rows),
        ):
            cells = as_grid(tokens, frames)
            parts, accuracy = heads(cells, cell_truth(batch["masks"], batch["scenes"], cells.shape[2:4]))
            terms |= {f"{name}/{kind}": self.cell_weight * value for kind, value in parts.items()}
            self.log_dict({f"train/{name}/{kind}_accuracy": value for kind, value in accuracy.items()})
        return terms


def glyph_git_config(
    frames: int = 4,
    image_size: int = 96,
    patch: int = 16,
    width: int = 192,
    vision_layers: int = 4,
    layers: int = 4,
) -> GitConfig:
    """The embedded teacher's configuration: GIT in small, with the world's own vocabulary."""
    tokenizer = glyph_tokenizer()
    return GitConfig(
        vision_config={
            "hidden_size": width,
            "intermediate_size": 4 * width,
            "num_hidden_layers": vision_layers,
            "num_attention_heads": width // 32,
            "image_size": image_size,
            "patch_size": patch,
        },
        vocab_size=len(tokenizer),
        hidden_size=width,
        intermediate_size=4 * width,
        num_hidden_layers=layers,
        num_attention_heads=width // 32,
        max_position_embeddings=40,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        num_image_with_embedding=frames,
        tie_word_embeddings=True,
        bos_token_id=tokenizer.cls_token_id,
        eos_token_id=tokenizer.sep_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )


def embedded_git(folder: str | None = None) -> GenerativeImageTextModel:
    """The embedded teacher's network: new, or as saved in `folder`."""
    return (
        GenerativeImageTextModel.from_pretrained(folder)
        if folder
        else GenerativeImageTextModel(glyph_git_config())
    )


def embedded_backbone() -> TinyVIT:
    """A new TinyViT of the embedded size."""
    return TinyVIT(**EMBEDDED)
