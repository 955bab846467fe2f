"""Batches of pictures and videos from files, with or without random crops."""

import hashlib
import os
import warnings
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import chain
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from gitdistill.counts import check_counts
from gitdistill.data.base import CHOICE, ClipData, EpochSampler, Pooled, Sample, Samples, check_words, choose
from gitdistill.data.compact import Items
from gitdistill.data.crops import random_resized_crop, read_square
from gitdistill.data.items import Listing
from gitdistill.data.pictures import moves, opened
from gitdistill.data.video import BrokenFile, FrameRule, read_clip
from gitdistill.escape import one_line
from gitdistill.metrics import normalise
from gitdistill.models.storage import shorten

Source = str | None  # a path or an address
NAMED = 1000  # files that are named in a warning
LOOKED = 200  # pictures whose sizes stand for all
FRAMES, CROP = 15_485_863, 32_452_843  # keep the random numbers of frames and of crops apart from others


@dataclass
class FilePool:
    """Samples of items by number; with `views` clips by number, that many of each item, each cropped otherwise. strict:
    an unreadable file is a `BrokenFile`, otherwise it is among the "broken" of the sample. captions: K. fast: as of
    `crops.shrunk`, without views."""

    items: Items
    rule: FrameRule
    size: int
    strict: bool
    seed: int = 0
    views: int = 0
    captions: int = 1
    fast: bool = False

    def frames(self, number: int, view: int = 0) -> Tensor:
        """Frames [F, 3, size, size] of an item; BrokenFile when its file cannot be read."""
        path, draw = self.items[number].path, None
        if self.rule.sampling == "random":
            draw = self.draw(view, number, FRAMES)
        if self.views and self.rule.fit == "crop":
            clip = read_clip(path, self.rule, draw)
        else:
            size = self.size * (2 if self.views else 1)
            clip = read_square(path, self.rule, size, draw, fast=self.fast)
        if not self.views:
            return clip
        return random_resized_crop(clip, self.size, self.draw(view, number, CROP))

    def draw(self, epoch: int, number: int, purpose: int) -> np.random.RandomState:
        """Random numbers that only these decide."""
        return np.random.RandomState([self.seed, epoch, number, purpose])

    def readable(self, number: int, view: int = 0) -> tuple[Tensor, int, list]:
        """(frames, number) of the first readable item from `number` on, and what is wrong with those before. So batches
        stay whole, and metrics, which count each number once, leave out what cannot be read."""
        broken = []
        for step in range(len(self.items)):
            here = (number + step) % len(self.items)
            try:
                return self.frames(here, view), here, broken
            except BrokenFile as error:
                if self.strict:
                    raise
                broken.append((self.items[here].path, str(error)))
        raise BrokenFile(f"none of {len(self.items)} files can be read; {broken[0][1]}")

    def first(self, number: int) -> Sample:
        """An item with its first caption, in the middle of its file's frames."""
        frames, number, broken = self.readable(number)
        own = list(self.items[number].captions)
        return Sample(frames, *choose(None, own, 1), own, number, broken=broken)

    def train(self, number: int, epoch: int = 0, _since: int = 0) -> Sample:
        """An item with `captions` of its own, other ones each epoch, and another view each epoch."""
        view = epoch % self.views if self.views else epoch
        frames, number, broken = self.readable(number, view)
        own = list(self.items[number].captions)
        chosen = choose(self.draw(epoch, number, CHOICE), own, self.captions)
        clip = number * self.views + view if self.views else number
        return Sample(frames, *chosen, own, clip, broken=broken)

    def whole(self, clip: int) -> Sample:
        """A clip with all its captions, then missing ones up to the most that any clip has. An unreadable file keeps
        its number, with black frames and without captions; training never meets it."""
        number, view = divmod(clip, max(1, self.views))
        own, broken = list(self.items[number].captions), []
        try:
            frames = self.frames(number, view)
        except BrokenFile as error:
            if self.strict:
                raise
            frames = torch.zeros(self.rule.num_frames, 3, self.size, self.size, dtype=torch.uint8)
            own, broken = [], [(self.items[number].path, str(error))]
        return Sample(frames, *choose(None, own, self.most), own, clip, broken=broken)

    @cached_property
    def most(self) -> int:
        """Captions of the item that has most, at least 1."""
        return max([1, *(len(item.captions) for item in self.items)])


def loses_a_third(path, content: bytes | None = None) -> bool | None:
    """Whether a centre crop takes a third or more from a picture, by its header; None for anything else."""
    try:
        with opened(path, content) as image:
            video = image.format == "GIF" or moves(image)
            return None if video else 3 * min(image.size) <= 2 * max(image.size)
    except Exception:  # a video, or a broken file, which is named when it is needed
        return None


class CaptionedData(ClipData):
    """What `FileData` and `ShardData` share.

    Args:
        num_frames, sampling, step: which frames of a training video make a clip, see `FrameRule`; validation and
            test take "random" as "uniform". With 1 frame of pictures [B, 1, 3, H, W] is what comes.
        image_size: side of the frames; the teacher's own makes them as it would itself, if they are cropped.
        fit: "crop": the centre of the frames, as networks make them square, and a warning when that takes a third or
            more from some pictures of a sample (videos are not looked at); "pad": all, see `crops.pad_to_square`.
        options: as for `ClipData`."""

    def __init__(
        self,
        num_frames: int = 6,
        sampling: str = "uniform",
        step: int = 1,
        image_size: int = 224,
        fit: str = "crop",
        **options,
    ):
        super().__init__(**options)
        check_counts(image_size=image_size)
        self.rule = FrameRule(num_frames, sampling, step, fit)
        self.fixed_rule = replace(self.rule, sampling="uniform" if sampling == "random" else sampling)
        self.image_size = image_size
        self.sources = {}  # by role: train, val, test

    def warn_of_crops(self, lost: Iterable[bool | None]) -> None:
        """Tell how many pictures lose a third or more, from what `loses_a_third` says of some."""
        if any(lost := list(lost) if self.rule.fit == "crop" else []):
            share = f"{lost.count(True)} of {len(lost) - lost.count(None)} pictures looked at"
            what = 'lose a third or more to the centre crop; fit="pad" keeps them whole'
            warnings.warn(f"{share} {what}", stacklevel=3)

    def source(self, role: str):
        """A role's items or shards; ValueError when there are none."""
        if role not in self.sources:
            raise ValueError(f"there is no {role} data: give {type(self).__name__}({role}=...)")
        return self.sources[role]

    def val_dataloader(self):
        """Batches of the validation clips in order, each with its first caption for the loss; a fit may do without."""
        if "val" not in self.sources and self.trainer and self.trainer.state.fn == "fit":
            return []
        return self.fixed_loader("val")

    def test_dataloader(self):
        """Batches of the test clips in order, each with its first caption for the loss."""
        return self.fixed_loader("test")


class FileData(Pooled, CaptionedData):
    """Batches of pictures and videos from files, as `gitdistill.data.base` describes them.

    Args:
        train, val, test: sources, see `read_items`; several may be the same one if it knows splits. Training
            needs no captions; clips of the others without a word in their captions are named and left out.
        media: the folder of the files, if it is not the sources' own.
        views: how many random crops of each training clip there are (see `random_resized_crop`), of which each
            epoch shows another; they and their random frames come again after so many epochs, so that a cache can
            know them. 0: none, the frames as `fit` says. Crops of padded frames are cut out of the whole square.
        limit: only the first so many clips of each source.
        on_broken: "skip" or "error". A file that is missing or cannot be read is named in a warning, kept in
            `broken` (path -> reason), and left out; or else a `BrokenFile` stops everything.
        resize: "exact" or "fast": the frames of pictures to the byte as networks resize them (Pillow, bicubic), or
            similar ones sooner, see `crops.shrunk`; without views.
        options: as for `CaptionedData`.

    Captions longer than `max_tokens` are cut. Raises FileNotFoundError and ValueError in one line."""

    def __init__(
        self,
        train: Source = None,
        val: Source = None,
        test: Source = None,
        media: Source = None,
        views: int = 0,
        limit: int | None = None,
        on_broken: str = "skip",
        resize: str = "exact",
        **options,
    ):
        super().__init__(**options)
        check_counts(0, views=views)
        check_counts(limit=1 if limit is None else limit)
        if on_broken not in ("skip", "error"):
            raise ValueError(f'on_broken is "skip" or "error", not {on_broken!r}')
        if resize not in ("exact", "fast") or resize == "fast" and views:
            raise ValueError(f'resize is "exact", or without views "fast", not {resize!r} with {views} views')
        self.views, self.strict, self.fast = views, on_broken == "error", resize == "fast"
        self.broken: dict[str, str] = {}
        listings, whole = {}, {}  # by source: what is in it; its role if it knows no splits
        for role, source in {"train": train, "val": val, "test": test}.items():
            if source is not None:
                place = os.path.realpath(os.path.expanduser(source))
                listings[place] = listings.get(place) or Listing(source, media)
                items = self._read_source(role, source, listings[place], whole)
                self.sources[role] = items if limit is None else Items(items[:limit])
                captions = chain.from_iterable(item.captions for item in self.sources[role])
                check_words(captions, self.tokenizer, f"{role}'s captions")
        self.warn_of_crops(map(loses_a_third, self._sampled_paths()))

    def _sampled_paths(self):
        """Yields files spread over the roles whose frames are not cropped at random."""
        for role, items in self.sources.items():
            if items and not (role == "train" and self.views):
                numbers = np.linspace(0, len(items) - 1, LOOKED // len(self.sources), dtype=int)
                yield from (items[number].path for number in np.unique(numbers).tolist())

    def _read_source(self, role: str, source, listing: Listing, whole: dict) -> Items:
        items, missing = listing.items(role)
        self.report([(name, f"{name}, listed in {source}, is not there") for name in missing])
        if not any(item.split for item in items) and (other := whole.setdefault(listing, role)) != role:
            raise ValueError(f"{source} knows no splits: {other} and {role} would be the same")
        if role == "train":
            return items
        words = [any(map(normalise, item.captions)) for item in items]
        if mute := [item.path for item, scored in zip(items, words) if not scored]:
            count = f"{len(mute)} of {role}'s {len(items)} clips"
            what = f"{shorten(mute)} has no caption to score against, {count}"
            if not any(words):
                raise ValueError(what)
            warnings.warn(one_line(f"left out: {what}"), stacklevel=4)
        return items if all(words) else Items(item for item, scored in zip(items, words) if scored)

    def report(self, broken: list) -> None:
        """Keep account of files that cannot be used, and name each once, many of them in one warning."""
        reasons = {path: reason for path, reason in broken if path not in self.broken}
        if not reasons:
            return
        (_, *others), (first, *_) = reasons, reasons.values()
        if self.strict:
            raise BrokenFile(first)
        self.broken |= reasons
        also = f"; also {', '.join(others[:NAMED])}" if others else ""
        more = f" and {len(others) - NAMED} more" if len(others) > NAMED else ""
        warnings.warn(one_line(f"left out, {len(self.broken)} so far: {first}{also}{more}"), stacklevel=2)

    @property
    def pool(self) -> FilePool:
        """The training clips."""
        training = self.seed, self.views, self.captions_per_clip, self.fast
        return FilePool(self.source("train"), self.rule, self.image_size, self.strict, *training)

    @property
    def pool_size(self) -> int:
        """Clips that training can meet, each view one. ValueError when they look different in each epoch."""
        if self.rule.sampling == "random" and not self.views:
            raise ValueError('a cache needs frames that come again: use sampling="uniform", or some views')
        return len(self.source("train")) * max(1, self.views)

    @property
    def pool_settings(self) -> dict:
        items, digest = self.source("train"), hashlib.sha256()
        for item in items:
            digest.update(repr((Path(item.path).name, item.captions)).encode())
        return {
            "clips": len(items),
            "files and captions": digest.hexdigest()[:16],
            "frames": f"{self.rule.num_frames} {self.rule.sampling} {self.rule.step}",
            "views": f"{self.views} from seed {self.seed}" if self.views else "0",
            "image_size": self.image_size,
            **({"resize": "fast"} if self.fast else {}),
            **({"fit": self.rule.fit} if self.rule.fit != "crop" else {}),
        }

    def train_dataloader(self):
        """Batches of the training clips, shuffled anew in each epoch; the last one may be smaller."""
        count = len(self.source("train"))
        return self.loader(Samples(self.pool.train, range(count)), EpochSampler(count, self.seed))

    def fixed_loader(self, role: str):
        """Batches of a role's clips in order."""
        pool = FilePool(self.source(role), self.fixed_rule, self.image_size, self.strict, fast=self.fast)
        return self.loader(Samples(pool.first, range(len(pool.items))))
