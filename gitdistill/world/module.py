"""The embedded world for Lightning: a tokenizer made of the toybox's words, and a LightningDataModule of batches."""

from dataclasses import dataclass
from functools import partial

import numpy as np
from torch.utils.data import Dataset
from transformers import BertTokenizerFast

from gitdistill.data.base import CHOICE, ClipData, EpochSampler, Pooled, Sample, Samples, choose
from gitdistill.models.storage import shorten
from gitdistill.world.drawing import WORLD
from gitdistill.world.facts import facts_scores
from gitdistill.world.lexicon import words
from gitdistill.world.scenes import Clip, Clips, Scene

STREAM_EPOCH = 100_000  # clips that count as one epoch when the stream never repeats
REFERENCES = 5  # captions that belong to a clip
ENDLESS = 2**31  # clips of a stream


def toybox_tokenizer(max_length: int = 32) -> BertTokenizerFast:
    """A tokenizer of GIT's class whose vocabulary is the five special tokens, [PAD] = 0 to [MASK] = 4, and the
    toybox's words, sorted. `max_length` is what it reports as `model_max_length`."""
    entries = "[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *words()
    vocab = {word: number for number, word in enumerate(entries)}
    return BertTokenizerFast(vocab=vocab, do_lower_case=True, model_max_length=max_length)


@dataclass
class ToyboxPool:
    """Samples of clips by number: those of `clips`, then those of `single_clips`, which show one thing. captions (K),
    fresh, labelled, seed, singles: of training, see `ToyboxData`."""

    clips: Dataset
    single_clips: Dataset | None = None
    masks: bool = False
    captions: int = 1
    fresh: bool = False
    labelled: int | None = None
    seed: int = 0
    singles: int = 0

    def find(self, number: int) -> tuple[Dataset, int]:
        """The clips that clip `number` is from, and its number there."""
        size = len(self.clips)
        return (self.clips, number) if number < size else (self.single_clips, number - size)

    def clip(self, number: int) -> Clip:
        clips, index = self.find(number)
        return clips.clip(index, masks=self.masks)

    def whole(self, number: int, captions: int = REFERENCES) -> Sample:
        """A clip with all its own captions, or the first of them."""
        clip, numbers = self.clip(number), list(range(captions))
        own = clip.captions
        return Sample(clip.frames, own[:captions], numbers, own, number, clip.scene, clip.masks)

    def train(self, number: int, epoch: int = 0, since: int | None = None) -> Sample:
        """A clip, or one of the first `singles` since the first epoch, with new captions or some of its own."""
        since = number if since is None else since
        number = len(self.clips) + since if since < self.singles else number
        clip, numbers = self.clip(number), [-1] * self.captions
        if self.labelled is not None and self.labelled <= number < len(self.clips):
            captions, clip.captions = [None] * self.captions, []
        elif self.fresh:
            clips, index = self.find(number)
            captions = clips.captions(index, self.captions, epoch)
        else:
            draw = np.random.RandomState([self.seed, epoch, number, CHOICE])
            captions, numbers = choose(draw, clip.captions, self.captions)
        return Sample(clip.frames, captions, numbers, clip.captions, number, clip.scene, clip.masks)


class ToyboxData(Pooled, ClipData):
    """Batches of the embedded world, as `gitdistill.data.base` describes them.

    In training a clip has K captions, other ones in each epoch; otherwise K = 1, the first of its own five.

    Args:
        train_clips: size of the training pool; None: a stream that never repeats, `STREAM_EPOCH` clips an epoch.
        val_clips, test_clips, unseen_clips, lookalike_clips: sizes of the other splits.
        fresh_captions: write new captions in every epoch; False: draw them from the clip's own five, so that a
            cache can hold what a teacher makes of them.
        labelled: only the first so many clips of the pool come with captions; the others have rows of [CLS] and
            padding, and no references.
        num_frames, image_size: see `Clips`.
        singles: the first so many clips of training show one thing only. They make an easy start; they are drawn
            beside the pool, and come with captions.
        masks: also return masks.
        tokenizer: any tokenizer that knows the toybox's words; default `toybox_tokenizer()`.
        options: as for `ClipData`. `seed` moves the training clips, their captions and their order; the other
            splits are the same clips for every seed, so that scores compare.

    Raises ValueError for a caption longer than `max_tokens` or a word outside the tokenizer's vocabulary."""

    truncate = False
    test_names = ("test", "unseen", "lookalike")

    def __init__(
        self,
        train_clips: int | None = 20_000,
        val_clips: int = 200,
        test_clips: int = 500,
        unseen_clips: int = 500,
        lookalike_clips: int = 500,
        batch_size: int = 32,
        fresh_captions: bool = True,
        labelled: int | None = None,
        num_frames: int = 4,
        image_size: int = WORLD,
        singles: int = 0,
        masks: bool = False,
        tokenizer=None,
        **options,
    ):
        super().__init__(tokenizer or toybox_tokenizer(), batch_size, **options)
        self._check(train_clips, fresh_captions, labelled)
        self.train_clips, self.singles = train_clips, singles
        picture = {"frames": num_frames, "image_size": image_size}
        self.train_set = Clips("train", train_clips or ENDLESS, self.seed, **picture)
        self.single_set = Clips("train", ENDLESS, self.seed, objects=1, **picture)
        self.val_set = Clips("val", val_clips, **picture)
        self.test_set = Clips("test", test_clips, **picture)
        self.unseen_set = Clips("unseen", unseen_clips, **picture)
        self.lookalike_set = Clips("lookalike", lookalike_clips, **picture)
        training = self.captions_per_clip, fresh_captions, labelled, self.seed, singles
        self.pool = ToyboxPool(self.train_set, self.single_set, masks, *training)

    def _check(self, train_clips: int | None, fresh_captions: bool, labelled: int | None) -> None:
        if train_clips is not None and train_clips < 1:
            raise ValueError(f"train_clips must be at least 1, or None for a stream, not {train_clips}")
        if not fresh_captions and self.captions_per_clip > REFERENCES:
            raise ValueError(f"captions_per_clip must be at most {REFERENCES} without fresh_captions")
        if labelled is not None and not 0 <= labelled <= (train_clips or 0):
            raise ValueError(f"labelled must be from 0 to train_clips ({train_clips}), not {labelled}")
        every = words()
        ids = self.tokenizer(every, add_special_tokens=False)["input_ids"]
        if unknown := [word for word, row in zip(every, ids) if self.tokenizer.unk_token_id in row]:
            lacks = f"{len(unknown)} of the world's {len(every)} words"
            raise ValueError(f"the tokenizer lacks {lacks}: {shorten(unknown)}")

    @property
    def pool_size(self) -> int:
        """Clips that training can meet: the pool and the clips that show one thing. ValueError for a stream."""
        if self.train_clips is None:
            raise ValueError("a stream of clips has no end: give train_clips a number")
        return self.train_clips + self.singles

    @property
    def pool_settings(self) -> dict:
        picture = {name: getattr(self.train_set, name) for name in ("frames", "image_size")}
        return {"seed": self.seed, "train_clips": self.train_clips, "singles": self.singles, **picture}

    def train_dataloader(self):
        """Batches of the training split, shuffled anew in each epoch; the last batch may be smaller."""
        size = self.train_clips or STREAM_EPOCH
        sampler = EpochSampler(size, self.seed, repeat=self.train_clips is not None)
        return self.loader(Samples(self.pool.train, range(size)), sampler)

    def val_dataloader(self):
        """Batches of the validation split, always the same."""
        return self.fixed_loader(self.val_set)

    def test_dataloader(self):
        """[test, unseen, lookalike]: batches of these splits."""
        return [self.fixed_loader(clips) for clips in (self.test_set, self.unseen_set, self.lookalike_set)]

    def fixed_loader(self, clips: Dataset):
        """Batches of clips in order, each with its first caption for the loss."""
        pool = ToyboxPool(clips, masks=self.pool.masks)
        return self.loader(Samples(partial(pool.whole, captions=1), range(len(clips))))

    def caption_scores(self, captions: list[str], scenes: list[Scene]) -> dict[str, float]:
        """How much of what captions state of their scenes is true; see `gitdistill.world.facts.facts_scores`."""
        return facts_scores(captions, scenes)
