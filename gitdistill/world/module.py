"""The embedded world for Lightning: a tokenizer made of the grammar's words, and a LightningDataModule of
batches.

Letters in shapes: B clips, F frames, K captions per clip, T tokens, O things.
"""

import hashlib
import math
from functools import partial

import numpy as np
import pytorch_lightning as pl
import torch
from torch.utils.data import DataLoader, Dataset
from torch.utils.data.distributed import DistributedSampler
from transformers import BertTokenizerFast

from gitdistill.distillation.distributed import rank_and_world
from gitdistill.world.grammar import words
from gitdistill.world.scenes import WORLD, GlyphClips

__all__ = ["GlyphData", "glyph_tokenizer"]

SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
STREAM_EPOCH = 20_000  # clips that count as one epoch when the stream never repeats
_SHUFFLE = 7_919  # keeps the shuffling's random numbers apart from those of the clips
_CHOICE = 104_729  # and those that choose among a clip's captions from both
REFERENCES = 5  # captions that belong to a clip
SAMPLE = 16  # clips whose pixels and captions stand for all of a pool's in its fingerprint


def glyph_tokenizer(max_length=32):
    """A `BertTokenizerFast` (GIT's class) whose vocabulary is the five special tokens, [PAD] = 0 to [MASK] =
    4, and the grammar's words, sorted. `max_length` is what it reports as `model_max_length`."""
    vocab = {word: number for number, word in enumerate((*SPECIAL, *words()))}
    return BertTokenizerFast(vocab=vocab, do_lower_case=True, model_max_length=max_length)


def encode(captions, tokenizer, max_length):
    """Captions as token ids, [rows, T] long, [CLS] ... [SEP], padded on the right to the longest. None, where
    there is no caption, is [CLS] and padding: nothing to predict.

    Raises ValueError for a caption longer than `max_length` tokens, or with a word that the tokenizer does
    not know."""
    texts = [caption for caption in captions if caption is not None]
    encoded = iter(tokenizer(texts, add_special_tokens=True)["input_ids"] if texts else [])
    rows = [[tokenizer.cls_token_id] if caption is None else next(encoded) for caption in captions]
    for caption, row in zip(captions, rows):
        if len(row) > max_length:
            raise ValueError(f"caption of {len(row)} tokens, at most {max_length} are allowed: {caption!r}")
        if tokenizer.unk_token_id in row:
            unknown = [w for w in caption.split() if tokenizer.unk_token_id in tokenizer(w)["input_ids"]]
            raise ValueError(f"not in the tokenizer's vocabulary: {', '.join(unknown)} (in {caption!r})")
    tokens = torch.full((len(rows), max(map(len, rows))), tokenizer.pad_token_id, dtype=torch.long)
    for row, ids in zip(tokens, rows):
        row[: len(ids)] = torch.tensor(ids)
    return tokens


class _EpochSampler(DistributedSampler):
    """Yields (epoch, place, clip index) of every clip of an epoch, in an order that the seed and the epoch
    decide.

    Of several processes each gets every so-many-th, the first clips again where the numbers do not come out even;
    Lightning leaves a `DistributedSampler` as it is. Lightning also calls `set_epoch`, so that a resumed run
    continues with the right epoch; without Lightning each pass over the loader is the next epoch. `skip`: keys
    that the next pass leaves out at its start."""

    def __init__(self, size, seed, repeat):
        self.size, self.seed, self.repeat, self.epoch, self.skip = size, seed, repeat, 0, 0
        self.rank, self.world = rank_and_world()

    def __len__(self):
        return math.ceil(self.size / self.world)

    def set_epoch(self, epoch):
        """The epoch of the next pass."""
        self.epoch = epoch

    def __iter__(self):
        epoch, self.epoch = self.epoch, self.epoch + 1
        skip, self.skip = self.skip, 0
        order = np.random.RandomState([self.seed, epoch, _SHUFFLE]).permutation(self.size)
        first = 0 if self.repeat else epoch * self.size
        places = np.arange(self.rank, len(self) * self.world, self.world) % self.size
        for place in places[skip:].tolist():
            yield epoch, place, first + int(order[place])


class ClipLoader(DataLoader):
    """A DataLoader that can continue in the middle of an epoch: Lightning keeps `state_dict` in its checkpoints.

    A batch's "broken", the files that could not be read, goes to `report`, which is not a matter of the worker
    processes and so not the data set's."""

    _passed = None  # (epoch, batches handed out in it)

    def __init__(self, *args, report=None, **options):
        super().__init__(*args, **options)
        self.report = report

    @property
    def order(self):
        """What decides which clips come next: has `set_epoch` and `skip`, clips that the next pass leaves out."""
        return self.sampler

    def __iter__(self):
        skipped = getattr(self.sampler, "skip", 0) // self.batch_size
        for number, batch in enumerate(super().__iter__(), skipped + 1):
            self._passed = (getattr(self.sampler, "epoch", 1) - 1, number)
            if broken := batch.pop("broken", None):
                self.report(broken)
            yield batch

    def state_dict(self) -> dict:
        """How far the pass over the data is."""
        epoch, batches = self._passed or (0, 0)
        return {"epoch": epoch, "batches": batches} | self._kind()

    def _kind(self) -> dict:
        return {"of": len(self), "batch_size": self.batch_size}

    def load_state_dict(self, state: dict) -> None:
        """The next pass goes on where `state` was taken. ValueError when batches are not what they were then."""
        now = self._kind()
        if differ := [name for name in now if state.get(name) != now[name]]:
            what = ", ".join(f"{name} was {state.get(name)} and is {now[name]}" for name in differ)
            raise ValueError(
                f"an epoch cannot be continued with other batches ({what}): use the same settings"
            )
        over = state["batches"] == len(self)
        self.order.set_epoch(state["epoch"] + over)
        self.order.skip = 0 if over else state["batches"] * self.batch_size
        self._passed = (state["epoch"] + over, 0 if over else state["batches"])


class _Pool:
    """The clips that training can meet, by number: those of the pool, then those that show one thing."""

    def __init__(self, clips, single_clips, masks):
        self.clips, self.single_clips, self.masks = clips, single_clips, masks

    def find(self, number):
        """(the set that clip `number` is from, its index there)"""
        size = len(self.clips)
        return (self.clips, number) if number < size else (self.single_clips, number - size)

    def clip(self, number):
        clips, index = self.find(number)
        return clips.clip(index, masks=self.masks)


class _TrainClips(Dataset):
    """Training clips by (epoch, place, index), each with K captions: new ones in every epoch, or some of its own.

    A sample is (clip, captions, number of the clip, numbers of the captions). A new caption and one that is
    missing have the number -1."""

    def __init__(self, pool, epoch_size, singles, captions, fresh, labelled, seed):
        self.pool, self.epoch_size, self.singles = pool, epoch_size, singles
        self.count, self.fresh, self.labelled, self.seed = captions, fresh, labelled, seed

    def __len__(self):
        return self.epoch_size

    def __getitem__(self, key):
        epoch, place, number = key
        since_start = epoch * self.epoch_size + place
        if since_start < self.singles:
            number = len(self.pool.clips) + since_start
        clip = self.pool.clip(number)
        chosen = [-1] * self.count
        if self.labelled is not None and number >= self.labelled:
            clip.captions.clear()
            captions = [None] * self.count
        elif self.fresh:
            clips, index = self.pool.find(number)
            captions = clips.captions(index, self.count, epoch)
        else:
            draw = np.random.RandomState([self.seed, epoch, number, _CHOICE])
            chosen = draw.permutation(REFERENCES)[: self.count].tolist()
            captions = [clip.captions[c] for c in chosen]
        return clip, captions, number, chosen


class _PoolClips(Dataset):
    """Every clip of the pool with all captions of its own, in order from clip `start` to the one before `stop`."""

    def __init__(self, pool, start, stop):
        self.pool, self.start, self.stop = pool, start, stop

    def __len__(self):
        return self.stop - self.start

    def __getitem__(self, place):
        number = self.start + place
        clip = self.pool.clip(number)
        return clip, clip.captions, number, list(range(REFERENCES))


class _FixedClips(Dataset):
    """Validation and test clips, each with its first caption for the loss."""

    def __init__(self, clips, masks):
        self.clips, self.masks = clips, masks

    def __len__(self):
        return len(self.clips)

    def __getitem__(self, index):
        clip = self.clips.clip(index, masks=self.masks)
        return clip, clip.captions[:1], index, [0]


def _collate(rows, tokenizer, max_length):
    clips, captions, places, numbers = zip(*rows)
    batch = {
        "frames": torch.stack([clip.frames for clip in clips]),
        "tokens": encode([text for row in captions for text in row], tokenizer, max_length),
        "clip": torch.tensor(places),
        "caption": torch.tensor([number for row in numbers for number in row]),
        "references": [clip.captions for clip in clips],
        "scenes": [clip.scene for clip in clips],
    }
    if clips[0].masks is not None:
        masks = torch.zeros(len(clips), 2, *clips[0].masks.shape[1:], dtype=torch.bool)
        for row, clip in zip(masks, clips):
            row[: len(clip.masks)] = clip.masks
        batch["masks"] = masks
    return batch


class GlyphData(pl.LightningDataModule):
    """Batches of the embedded world.

    A batch is a dict: "frames" uint8 [B, F, 3, H, W]; "tokens" long [B*K, T], rows grouped by clip (training:
    K sampled captions a clip, other ones in each epoch; otherwise K = 1, the first reference); "clip" long [B]
    and "caption" long [B*K]: the numbers of clips and captions, -1 for a caption that is not among a clip's own
    five; "references": B lists of those five; "scenes": B `gitdistill.world.scenes.Scene`s; with `masks`, "masks"
    bool [B, 2, F, H, W], zero where a clip has no second thing.

    train_clips: size of the training pool; None: a stream that never repeats, `STREAM_EPOCH` clips an epoch.
    val_clips, test_clips, unseen_clips: sizes of the other splits; `test_dataloader` returns [test, unseen].
    captions_per_clip: K. fresh_captions: write new captions in every epoch; False: draw them from the clip's
    own five, so that a cache can hold what a teacher makes of them. labelled: only the first so many clips of
    the pool come with captions; the others have rows of [CLS] and padding, and no references. frames,
    image_size: see `GlyphClips`. seed: moves the training clips, their captions and their order; the other
    splits are the same clips for every seed, so that scores compare. singles: the first so many clips of
    training show one thing only (an easy start; they are drawn beside the pool). masks: also return masks.
    workers: loader processes. tokenizer: any tokenizer that knows the grammar's words; default
    `glyph_tokenizer()`. max_tokens: longest caption in tokens; default the tokenizer's `model_max_length`.

    Raises ValueError for a caption longer than that or a word outside the tokenizer's vocabulary.
    """

    def __init__(
        self,
        train_clips: int | None = 20_000,
        val_clips: int = 200,
        test_clips: int = 500,
        unseen_clips: int = 500,
        batch_size: int = 32,
        captions_per_clip: int = 1,
        fresh_captions: bool = True,
        labelled: int | None = None,
        frames: int = 4,
        image_size: int = WORLD,
        seed: int = 0,
        singles: int = 0,
        masks: bool = False,
        workers: int = 0,
        tokenizer=None,
        max_tokens: int | None = None,
    ):
        super().__init__()
        if captions_per_clip < 1 or batch_size < 1:
            raise ValueError(
                f"batch_size and captions_per_clip must be at least 1, got {batch_size} and "
                f"{captions_per_clip}"
            )
        if train_clips is not None and train_clips < 1:
            raise ValueError(
                f"train_clips must be at least 1, or None for an endless stream, not {train_clips}"
            )
        if not fresh_captions and captions_per_clip > REFERENCES:
            raise ValueError(
                f"captions_per_clip must be at most {REFERENCES}, a clip's own captions, without fresh_captions; "
                f"got {captions_per_clip}"
            )
        if labelled is not None and not 0 <= labelled <= (train_clips or 0):
            raise ValueError(f"labelled must be from 0 to train_clips ({train_clips}), not {labelled}")
        self.fresh_captions, self.labelled = fresh_captions, labelled
        self.train_clips, self.captions_per_clip, self.batch_size = train_clips, captions_per_clip, batch_size
        self.seed, self.singles, self.masks, self.workers = seed, singles, masks, workers
        self.tokenizer = glyph_tokenizer() if tokenizer is None else tokenizer
        self.max_tokens = max_tokens or self.tokenizer.model_max_length
        self._check_vocabulary()
        look = {"frames": frames, "image_size": image_size}
        endless = 2**31
        self.train_set = GlyphClips("train", train_clips or endless, seed, **look)
        self.single_set = GlyphClips("train", endless, seed, objects=1, **look)
        self.pool = _Pool(self.train_set, self.single_set, masks)
        self.val_set = GlyphClips("val", val_clips, **look)
        self.test_set = GlyphClips("test", test_clips, **look)
        self.unseen_set = GlyphClips("unseen", unseen_clips, **look)

    test_names = ("test", "unseen")

    def caption_scores(self, captions, scenes) -> dict:
        from gitdistill.metrics import facts_scores

        return facts_scores(captions, scenes)

    def _check_vocabulary(self):
        every = words()
        ids = self.tokenizer(every, add_special_tokens=False)["input_ids"]
        unknown = [word for word, row in zip(every, ids) if self.tokenizer.unk_token_id in row]
        if unknown:
            some = ", ".join(unknown[:5]) + (", ..." if len(unknown) > 5 else "")
            raise ValueError(f"the tokenizer lacks {len(unknown)} of the world's {len(every)} words: {some}")

    def train_dataloader(self):
        """Batches of the training split, shuffled anew in each epoch; the last batch may be smaller."""
        size = self.train_clips or STREAM_EPOCH
        clips = _TrainClips(
            self.pool,
            size,
            self.singles,
            self.captions_per_clip,
            self.fresh_captions,
            self.labelled,
            self.seed,
        )
        return self._loader(clips, _EpochSampler(size, self.seed, repeat=self.train_clips is not None))

    @property
    def pool_size(self) -> int:
        """Clips that training can meet: the pool and the clips that show one thing. ValueError for a stream."""
        if self.train_clips is None:
            raise ValueError("a stream of clips has no end: give train_clips a number")
        return self.train_clips + self.singles

    def pool_dataloader(self, start: int = 0, stop: int | None = None):
        """Batches of the pool in order from clip `start` to `stop`, each clip with all captions of its own."""
        return self._loader(_PoolClips(self.pool, start, min(stop or self.pool_size, self.pool_size)))

    def fingerprint(self) -> dict:
        """What the pool's clips and captions depend on, and a checksum of some of them ("content")."""
        content = hashlib.sha256()
        for number in np.linspace(0, self.pool_size - 1, SAMPLE, dtype=int).tolist():
            clip = self.pool.clip(number)
            content.update(clip.frames.numpy().tobytes())
            content.update("\n".join(clip.captions).encode())
        vocabulary = sorted(self.tokenizer.get_vocab().items(), key=lambda item: item[1])
        return {
            "data": type(self).__name__,
            "seed": self.seed,
            "train_clips": self.train_clips,
            "singles": self.singles,
            "frames": self.train_set.frames,
            "image_size": self.train_set.image_size,
            "vocabulary": hashlib.sha256(repr(vocabulary).encode()).hexdigest()[:16],
            "content": content.hexdigest()[:16],
        }

    def val_dataloader(self):
        """Batches of the validation split, always the same."""
        return self._loader(_FixedClips(self.val_set, self.masks))

    def test_dataloader(self):
        """[test, unseen]: batches of the test split and of the test split with unseen colour and symbol
        pairs."""
        return [self._loader(_FixedClips(clips, self.masks)) for clips in (self.test_set, self.unseen_set)]

    def _loader(self, clips, sampler=None):
        collate = partial(_collate, tokenizer=self.tokenizer, max_length=self.max_tokens)
        return ClipLoader(
            clips,
            self.batch_size,
            sampler=sampler,
            num_workers=self.workers,
            collate_fn=collate,
            persistent_workers=self.workers > 0,
            generator=torch.Generator(),  # the global random numbers stay as they are
        )
