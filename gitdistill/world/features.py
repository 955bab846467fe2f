"""A disk cache of a frozen backbone's feature maps, so that a training step starts from them.

While the backbone is frozen and in eval mode, its last feature map of a clip is the same in every step of every run.
Drawing the clip and running the backbone is most of a step. Here both happen once: the maps, float16, lie in
memory-mapped files. Captions, order, losses and scores are those of pixels, but for the rounding."""

import hashlib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from gitdistill.data.base import EpochSampler, Samples
from gitdistill.decoding.loop import evaluation
from gitdistill.models.backbone import TinyVIT
from gitdistill.models.storage import output_folder, write_whole
from gitdistill.world.module import ToyboxData
from gitdistill.world.scenes import Clip, Clips

AT_ONCE = 32  # clips


class CachedBackbone(TinyVIT):
    """A backbone that reads pixels, or returns maps [B, F, C, h, w] of its own last stage unchanged."""

    @classmethod
    def copy_of(cls, backbone: TinyVIT) -> "CachedBackbone":
        """One with the weights of `backbone`."""
        copy = cls(**backbone.config)
        copy.load_state_dict(backbone.state_dict())
        return copy.train(backbone.training)

    def forward(self, frames: Tensor) -> list[Tensor]:
        if frames.shape[-3] == 3:
            return super().forward(frames)
        # The second summand is 0. It shows a check of gradients which losses depend on the backbone's output.
        return [frames.float() + 0 * next(self.parameters()).sum()]


def cached_backbone(source: str = "toybox") -> CachedBackbone:
    """The backbone of `TinyVIT.from_pretrained(source)`, for a student that learns from maps."""
    return CachedBackbone.copy_of(TinyVIT.from_pretrained(source))


class FeatureClips:
    """`clips` with the last map of `backbone` [F, C, h, w] in place of pixels; computed once, stored in `folder`.

    captions: for some clips, by number, other captions than their own: what a network says of them."""

    def __init__(self, clips: Clips, backbone: TinyVIT, folder: Path, say=print):
        self.clips, self.captions, self._texts = clips, {}, {}
        path = folder / f"features_{clips.split}_{key(clips, backbone)}.npy"
        if not path.is_file():
            write_whole(folder, {path.name: lambda target: self._fill(target, backbone, say)})
        self.maps = np.load(path, mmap_mode="r")

    def _fill(self, path: Path, backbone: TinyVIT, say) -> None:
        shape = (len(self.clips), self.clips.frames, backbone.channels[-1], *backbone.grids[-1])
        size = 2 * np.prod(shape) / 1e6
        say(f"feature maps of {len(self.clips):,} {self.clips.split} clips: {size:.0f} MB")
        maps = np.lib.format.open_memmap(path, "w+", np.float16, shape)
        for start in range(0, len(self.clips), AT_ONCE):
            numbers = range(start, min(start + AT_ONCE, len(self.clips)))
            frames = torch.stack([self.clips.clip(n, masks=False, captions=0).frames for n in numbers])
            with evaluation(backbone):
                maps[start : numbers.stop] = backbone(frames)[-1].numpy()
        maps.flush()

    def __len__(self) -> int:
        return len(self.clips)

    def clip(self, index: int, masks: bool = False) -> Clip:
        """Clip number `index`, its map in place of frames."""
        if index not in self._texts:
            clip = self.clips.clip(index, masks=False)
            self._texts[index] = clip.captions, clip.scene
        captions, scene = self._texts[index]
        captions = self.captions.get(index, captions)
        return Clip(torch.from_numpy(self.maps[index].copy()), None, list(captions), scene)


def key(clips: Clips, backbone: TinyVIT) -> str:
    """A hash of everything that the maps depend on."""
    settings = (clips.split, clips.size, clips.seed, clips.frames, clips.image_size, clips.objects)
    digest = hashlib.sha256(repr((settings, backbone.config)).encode())
    some = range(0, len(clips), max(1, len(clips) // 16))  # differ when the code that draws has changed
    for number in some:
        digest.update(clips.clip(number, masks=False).frames.numpy().tobytes())
    for name, value in sorted(backbone.state_dict().items()):
        digest.update(name.encode() + value.cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:12]


class FeatureData(ToyboxData):
    """`ToyboxData` with maps in place of pixels.

    folder: of the maps. backbone: whose; the student must have a `CachedBackbone` with the same weights, frozen.
    only: train on the first so many clips of the pool. order: seed of the order of clips and of the choice among their
    captions; the pool is the same for all. splits: which have maps; the others are pixels.
    options: as for `ToyboxData`; `fresh_captions` is off."""

    def __init__(
        self,
        folder: str | Path,
        backbone: str | TinyVIT = "toybox",
        only: int | None = None,
        order: int = 0,
        splits: Sequence[str] = ("train", "val", "test", "unseen", "lookalike"),
        **options,
    ):
        super().__init__(**options, fresh_captions=False)
        self.only, self.order = only, order
        backbone = backbone if isinstance(backbone, TinyVIT) else TinyVIT.from_pretrained(backbone)
        for split in splits:
            clips = FeatureClips(getattr(self, f"{split}_set"), backbone, output_folder(folder))
            setattr(self, f"{split}_maps", clips)

    def fingerprint(self) -> dict:
        """That of `ToyboxData`: clips and captions are the same, and so are a teacher's targets."""
        return {**super().fingerprint(), "data": ToyboxData.__name__}

    def train_dataloader(self) -> DataLoader:
        pool = replace(self.pool, clips=self.train_maps, seed=self.order)
        size = self.only or self.train_clips
        return self.loader(Samples(pool.train, range(size)), EpochSampler(size, self.order))

    def fixed_loader(self, clips) -> DataLoader:
        return super().fixed_loader(getattr(self, f"{clips.split}_maps", clips))
