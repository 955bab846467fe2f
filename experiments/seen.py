"""A disk cache of a frozen backbone's feature maps, so that a training step starts from them.

While the backbone is frozen and in eval mode, its last feature map of a clip is the same in every step of every run.
Drawing the clip and running the backbone is more than half of a step. Here both happen once: the maps, float32, lie
in memory-mapped files. Captions, order, losses and scores are the same as with pixels.
"""

import hashlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from gitdistill import TinyVIT
from gitdistill.data.base import EpochSampler, Samples
from gitdistill.models.storage import write_whole
from gitdistill.world import GlyphData
from gitdistill.world.scenes import Clip, GlyphClips

AT_ONCE = 32  # clips


class SeenBackbone(TinyVIT):
    """A backbone that reads pixels, or returns maps [B, F, C, h, w] of its own last stage unchanged."""

    @classmethod
    def copy_of(cls, backbone: TinyVIT) -> "SeenBackbone":
        """One with the weights of `backbone`."""
        copy = cls(**backbone.config)
        copy.load_state_dict(backbone.state_dict())
        return copy.train(backbone.training)

    def forward(self, frames: Tensor) -> list[Tensor]:
        if frames.shape[-3] == 3:
            return super().forward(frames)
        # The second summand is 0. It shows a check of gradients which losses depend on the backbone's output.
        return [frames + 0 * next(self.parameters()).sum()]


class SeenClips:
    """`clips` with the last map of `backbone` [F, C, h, w] in place of pixels; computed once, stored in `folder`."""

    def __init__(self, clips: GlyphClips, backbone: TinyVIT, folder: Path, say=print):
        self.clips, self._texts = clips, {}
        path = folder / f"seen_{clips.split}_{key(clips, backbone)}.npy"
        if not path.is_file():
            write_whole(folder, {path.name: lambda target: self._fill(target, backbone, say)})
        self.maps = np.load(path, mmap_mode="r")

    @torch.no_grad()
    def _fill(self, path: Path, backbone: TinyVIT, say) -> None:
        backbone.eval()
        shape = (len(self.clips), self.clips.num_frames, backbone.channels[-1], *backbone.grids[-1])
        megabytes = 4 * np.prod(shape) / 1e6
        say(f"feature maps of {len(self.clips):,} {self.clips.split} clips: {megabytes:.0f} MB")
        maps = np.lib.format.open_memmap(path, "w+", np.float32, shape)
        for start in range(0, len(self.clips), AT_ONCE):
            numbers = range(start, min(start + AT_ONCE, len(self.clips)))
            frames = torch.stack([self.clips.clip(n, masks=False, captions=0).frames for n in numbers])
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
        return Clip(torch.from_numpy(self.maps[index].copy()), None, list(captions), scene)


def key(clips: GlyphClips, backbone: TinyVIT) -> str:
    """A hash of everything that the maps depend on."""
    settings = (clips.split, clips.size, clips.seed, clips.num_frames, clips.image_size, clips.objects)
    digest = hashlib.sha256(repr((settings, backbone.config)).encode())
    first = clips.clip(0, masks=False)  # differs when the code that draws clips has changed
    digest.update(first.frames.numpy().tobytes())
    for name, value in sorted(backbone.state_dict().items()):
        digest.update(name.encode() + value.cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:12]


class SeenData(GlyphData):
    """`GlyphData` with maps in place of pixels.

    maps: `SeenClips` by split ("train", "test", "unseen"). only: train on the first so many clips of the pool.
    order: seed of the order of clips and of the choice among their captions; the pool is the same for all.
    options: as for `GlyphData`; `fresh_captions` is off.
    """

    def __init__(self, maps: dict[str, SeenClips], only: int | None = None, order: int = 0, **options):
        super().__init__(**options, fresh_captions=False)
        self.maps, self.only, self.order = maps, only, order

    def fingerprint(self) -> dict:
        """That of `GlyphData`: clips and captions are the same, and so are a teacher's targets."""
        return {**super().fingerprint(), "data": GlyphData.__name__}

    def train_dataloader(self) -> DataLoader:
        pool = replace(self.pool, clips=self.maps["train"], seed=self.order)
        size = self.only or self.train_clips
        return self.loader(Samples(pool.train, range(size)), EpochSampler(size, self.order))

    def test_dataloader(self) -> list[DataLoader]:
        return [self.fixed_loader(self.maps[split]) for split in ("test", "unseen")]
