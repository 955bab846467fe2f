"""What the embedded world's networks learn before they caption: which thing, of which colour, is where.

Real GIT starts from CLIP and a real TinyViT from ImageNet. Neither fits in a repository, so the embedded teacher's
image encoder and the embedded backbone are trained here on the world's own ground truth: for each cell of their grid,
the symbol and colour that lie there and the box around it. `TeacherTrainer` then learns captions and, in its decoder's
image features, motions and relations. The heads that predict all this are thrown away; the networks ship."""

from functools import partial

import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader
from transformers import GitConfig

from gitdistill.data.base import Samples
from gitdistill.distillation import losses
from gitdistill.distillation.optim import optimizer_and_schedule
from gitdistill.distillation.targets import image_layer
from gitdistill.distillation.trainer import CaptionTrainer
from gitdistill.hooks import record
from gitdistill.models.backbone import TinyVIT
from gitdistill.models.git import GenerativeImageTextModel
from gitdistill.models.preprocessing import area_means
from gitdistill.world.grammar import COLOURS, MOTIONS, RELATIONS, SYMBOLS, relation_from
from gitdistill.world.module import glyph_tokenizer
from gitdistill.world.scenes import WORLD, GlyphClips

CLASSES = {"symbol": [*SYMBOLS], "colour": [*COLOURS], "motion": [*MOTIONS], "relation": [*RELATIONS]}
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


class CellHeads(nn.Module):
    """One linear layer that reads what lies in each cell, kind by kind (class 0: nothing), and the box around it."""

    def __init__(self, width: int, kinds: tuple[str, ...]):
        super().__init__()
        self.sizes = {kind: 1 + len(CLASSES[kind]) for kind in kinds}
        self.linear = nn.Linear(width, sum(self.sizes.values()) + 4)

    def forward(self, cells: Tensor, truth: dict[str, Tensor]) -> tuple[dict, dict]:
        """Losses and accuracies by kind. cells [..., D], truth as `cell_truth` gives it. Cross-entropy is in nats a
        cell, an empty cell counting a tenth; the box's error, in tenths of an image width (smooth L1), is over cells
        that show something."""
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
    decoder adds no positions, so no caption can state a place that the image encoder's features do not hold."""
    cover, owner = area_means(masks.float(), grid).max(dim=1)  # (B, F, h, w)
    clip = torch.arange(len(masks))[:, None, None, None]
    truth = {}
    for kind, names in CLASSES.items():
        index = torch.zeros(masks.shape[:2], dtype=torch.long)
        for b, scene in enumerate(scenes):
            for o, thing in enumerate(scene.things):
                name = relation_from(scene, o) if kind == "relation" else getattr(thing, kind)
                index[b, o] = 1 + names.index(name) if name else 0
        truth[kind] = index.to(masks.device)[clip, owner] * (cover > least)
    truth["box"] = mask_boxes(masks)[
        clip, owner, torch.arange(masks.shape[2])[:, None, None]
    ]  # (B, F, h, w, 4)
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
    [B, 2, 1, H, W] and "scenes". Training frames never repeat; `epoch` frames lie between two validations."""

    image_size = WORLD

    def __init__(self, batch_size: int = 64, epoch: int = 16_000, val_frames: int = 1000, seed: int = 0):
        super().__init__()
        self.batch_size, self.epoch, self.val_frames, self.seed = batch_size, epoch, val_frames, seed

    def train_dataloader(self):
        start = self.trainer.current_epoch * self.epoch
        return self.loader("train", range(start, start + self.epoch), self.seed)

    def val_dataloader(self):
        return self.loader("val", range(self.val_frames))

    def test_dataloader(self):
        return [self.loader(split, range(self.val_frames)) for split in ("test", "unseen")]

    def loader(self, split: str, numbers: range, seed: int = 0) -> DataLoader:
        """One frame of each clip; the clip's number decides which."""
        clips = GlyphClips(split, numbers.stop, seed, image_size=self.image_size)
        frames = Samples(partial(one_frame, clips), numbers)
        return DataLoader(frames, self.batch_size, drop_last=split == "train", collate_fn=collate_frames)


def one_frame(clips: GlyphClips, number: int) -> tuple:
    clip, frame = clips.clip(number, captions=0), number % clips.num_frames
    masks = F.pad(clip.masks, (0, 0) * 3 + (0, 2 - len(clip.masks)))
    return clip.frames[frame, None], masks[:, frame, None], clip.scene


def collate_frames(samples: list) -> dict:
    frames, masks, scenes = zip(*samples)
    return {"frames": torch.stack(frames), "masks": torch.stack(masks), "scenes": list(scenes)}


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
        self.heads = CellHeads(width, ("symbol", "colour"))

    def configure_optimizers(self):
        return optimizer_and_schedule(self, self.trainer, self.lr, self.weight_decay, self.warmup, muon=True)

    def read(self, batch: dict) -> tuple[dict, dict]:
        """Losses and accuracies of a batch by kind."""
        frames = batch["frames"]
        if isinstance(self.encoder, TinyVIT):
            cells = self.encoder(frames)[-1].permute(0, 1, 3, 4, 2)
        else:
            cells = as_grid(self.encoder.encode(frames), frames.shape[1])
        return self.heads(cells, cell_truth(batch["masks"], batch["scenes"], cells.shape[2:4]))

    def training_step(self, batch: dict, _) -> Tensor:
        return sum(self.score("train", batch).values())

    def validation_step(self, batch: dict, _) -> None:
        self.score("val", batch)

    def test_step(self, batch: dict, _, dataloader_idx: int = 0) -> None:
        self.score(("test", "unseen")[dataloader_idx], batch)

    def score(self, split: str, batch: dict) -> dict[str, Tensor]:
        """The losses of a batch by kind; logs them and the accuracies."""
        terms, accuracy = self.read(batch)
        how = {"batch_size": len(batch["frames"]), "add_dataloader_idx": False}
        self.log_dict({f"{split}/{kind}": value.detach() for kind, value in terms.items()}, **how)
        named = {f"{split}/{kind}_accuracy": value for kind, value in accuracy.items()}
        self.log_dict(named, prog_bar=split == "train", **how)
        return terms


def as_grid(tokens: Tensor, num_frames: int) -> Tensor:
    """Image tokens [B, N, D] of square frames, class tokens dropped, as [B, F, h, w, D]."""
    tokens = tokens.unflatten(1, (num_frames, -1))[:, :, 1:]
    side = int(tokens.shape[2] ** 0.5)
    return tokens.unflatten(2, (side, side))


class TeacherTrainer(CaptionTrainer):
    """Trains the embedded teacher: captions, and in every cell what lies there and how it moves.

    Args:
        model: a `GenerativeImageTextModel`, its image encoder trained by `CellTrainer`.
        cell_weight: weight of the cells' terms, at the image encoder's end (symbol, colour, box) and in the
            decoder's image features before its last layer (symbol, colour, motion, relation, box).
        options: as for `CaptionTrainer`."""

    def __init__(self, model: GenerativeImageTextModel, cell_weight: float = 1.0, **options):
        super().__init__(model, glyph_tokenizer(), **options)
        self.cell_weight = cell_weight
        config = model.config
        self.seen = CellHeads(config.vision_config.hidden_size, ("symbol", "colour"))
        self.understood = CellHeads(config.hidden_size, tuple(CLASSES))
        self.layer = image_layer(model)
        for embedding in model.temporal:
            if not embedding.any():  # zeros cannot tell one frame from the next: motion is learned much later
                nn.init.normal_(embedding, std=0.5)

    def loss_terms(self, batch: dict) -> dict[str, Tensor]:
        frames, tokens = batch["frames"], batch["tokens"]
        with record(self.model, self.layer, detach=False) as activations:
            output = self.model(frames, tokens)
        caption = losses.cross_entropy(output.logits, tokens, self.model.pad_token_id, self.label_smoothing)
        terms = {"cross_entropy": caption}
        features = {"seen": output.visual_features, "understood": activations[self.layer][0]}
        for name, image_features in features.items():
            cells = as_grid(image_features, frames.shape[1])
            truth = cell_truth(batch["masks"], batch["scenes"], cells.shape[2:4])
            parts, accuracy = getattr(self, name)(cells, truth)
            terms |= {f"{name}/{kind}": self.cell_weight * value for kind, value in parts.items()}
            self.log_dict({f"train/{name}/{kind}_accuracy": value for kind, value in accuracy.items()})
        return terms


def glyph_git_config(
    num_frames=4, image_size=WORLD, patch=16, width=192, vision_layers=4, layers=4
) -> GitConfig:
    """The embedded teacher's configuration: GIT in small, with the world's own vocabulary."""
    tokenizer = glyph_tokenizer()
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
    """The embedded teacher's network: new, or as saved in `folder`."""
    if folder:
        return GenerativeImageTextModel.from_pretrained(folder)
    return GenerativeImageTextModel(glyph_git_config())


def embedded_backbone() -> TinyVIT:
    """A new TinyViT of the embedded size."""
    return TinyVIT(**EMBEDDED)
