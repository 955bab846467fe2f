"""What the DataModules of files, of shards and of the embedded world share: samples, batches, orders and loaders.

A batch is a dict: "frames" uint8 [B, F, 3, H, W]; "tokens" long [B*K, T], rows grouped by clip; "clip" long [B] and
"caption" long [B*K], the numbers of clips and captions, -1 for a caption that is none of its clip's own, or that the
clip lacks (its row is a start token and padding); "references": B lists of all captions of the clips. Clips of the
embedded world come with "scenes" (a list of B) and, when asked for, "masks" bool [B, O, F, H, W]."""

import hashlib
import math
import warnings
from collections import Counter
from collections.abc import Callable, Iterable
from functools import partial
from itertools import chain
from operator import mul
from typing import NamedTuple

import numpy as np
import pytorch_lightning as pl
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import DataLoader, Dataset, IterableDataset
from torch.utils.data.distributed import DistributedSampler

from gitdistill.counts import check_counts
from gitdistill.distillation.distributed import rank_and_world
from gitdistill.escape import one_line
from gitdistill.models.storage import shorten
from gitdistill.models.tokenizer import load_tokenizer

MAX_TOKENS = 40  # of GIT's captions
MOST_UNKNOWN = 0.5  # share of tokens
SAMPLED = 16  # clips whose content stands for all of a pool's in its fingerprint
SHUFFLE, CHOICE = 7_919, 104_729  # keep the random numbers of orders and of captions apart from others


class Sample(NamedTuple):
    """One clip of a batch. frames: uint8 [F, 3, H, W]. captions: K texts, None where the clip lacks one. numbers: K, of
    the captions among `references`, the clip's own; -1 for others. clip: its number. scene, masks (bool [O, F, H, W],
    O toys): of the embedded world. broken: (path, reason) of each file that could not be read."""

    frames: Tensor
    captions: list
    numbers: list
    references: list
    clip: int
    scene: object = None
    masks: Tensor | None = None
    broken: list | tuple = ()


class Samples(Dataset):
    """The samples that `read` makes of `numbers`, or of the keys of an `EpochSampler`."""

    def __init__(self, read: Callable[..., Sample], numbers: range):
        self.read, self.numbers = read, numbers

    def __len__(self) -> int:
        return len(self.numbers)

    def __getitem__(self, key) -> Sample:
        return self.read(*key) if isinstance(key, tuple) else self.read(self.numbers[key])


def choose(draw: np.random.RandomState | None, own: list, count: int) -> tuple[list, list]:
    """`count` of a clip's own captions in random order, or the first ones without `draw`, and their numbers; None and
    -1 where it has too few."""
    numbers = (draw.permutation(len(own)) if draw else np.arange(len(own)))[:count].tolist()
    lacking = count - len(numbers)
    return [own[number] for number in numbers] + [None] * lacking, numbers + [-1] * lacking


def encode(captions: list, tokenizer, max_tokens: int, truncate: bool = True) -> Tensor:
    """Captions as token ids [rows, T] long, padded on the right; None is a start token and padding. What is longer than
    `max_tokens` is cut, or, without `truncate`, a ValueError. A special token's name in a caption is mere text."""
    texts = [caption for caption in captions if caption is not None]
    options = {"truncation": truncate, "max_length": max_tokens, "split_special_tokens": True}
    encoded = tokenizer(texts, **options)["input_ids"] if texts else []
    if encoded and len(longest := max(encoded, key=len)) > max_tokens:
        text = texts[encoded.index(longest)]
        raise ValueError(f"caption of {len(longest)} tokens, at most {max_tokens} are allowed: {text!r}")
    ids = iter(encoded)
    rows = [[tokenizer.cls_token_id] if caption is None else next(ids) for caption in captions]
    return pad_sequence(list(map(torch.tensor, rows)), True, tokenizer.pad_token_id)


def check_words(captions: Iterable[str], tokenizer, what: str) -> None:
    """Warn of words that `tokenizer` does not know, with examples; a ValueError when they are most of the tokens."""
    words, unknown = Counter(chain.from_iterable(map(str.split, captions))), tokenizer.unk_token_id
    if not words or unknown is None:
        return
    encoded = tokenizer(list(words), add_special_tokens=False, split_special_tokens=True)["input_ids"]
    lost = {word: count * ids.count(unknown) for (word, count), ids in zip(words.items(), encoded)}
    share = sum(lost.values()) / max(1, sum(map(mul, words.values(), map(len, encoded))))
    if not share:
        return
    strange = sorted(filter(lost.get, lost), key=lost.get, reverse=True)
    line = f"{share:.1%} of the tokens of {what} are words that the tokenizer does not know"
    line = one_line(f"{line}: {shorten([word[:30] for word in strange])}")
    if share > MOST_UNKNOWN:
        raise ValueError(f"{line}; give the teacher's tokenizer")
    warnings.warn(line, stacklevel=4)


def collate(tokenizer, max_tokens: int, truncate: bool, samples: list[Sample]) -> dict:
    """The batch (see above) of some samples, and what was "broken" among their files."""
    frames, captions, numbers, references, clips, scenes, masks, broken = zip(*samples)
    batch = {
        "frames": torch.stack(frames),
        "tokens": encode(list(chain(*captions)), tokenizer, max_tokens, truncate),
        "clip": torch.tensor(clips),
        "caption": torch.tensor(list(chain(*numbers))),
        "references": list(references),
        "broken": list(chain(*broken)),
    }
    if scenes[0] is not None:
        batch["scenes"] = list(scenes)
    if masks[0] is not None:
        batch["masks"] = pad_sequence(list(masks), batch_first=True)
    return batch


class Order:
    """Decides which clips come next. epoch: of the next pass. skip: clips that this pass leaves out at its start."""

    epoch = skip = 0

    def set_epoch(self, epoch: int) -> None:
        """Lightning calls it before each epoch. Clips are left out of the epoch they were set for, not of others."""
        if epoch != self.epoch:
            self.epoch, self.skip = epoch, 0


class EpochSampler(Order, DistributedSampler):
    """Yields (clip, epoch, clips since the first epoch) for an epoch's clips, in an order that seed and epoch decide.

    Of several processes each gets every so-many-th, the first clips again where the numbers do not come out even;
    Lightning leaves a `DistributedSampler` as it is. Without `repeat` no clip comes in two epochs."""

    def __init__(self, size: int, seed: int, repeat: bool = True):
        self.size, self.seed, self.repeat = size, seed, repeat
        self.rank, self.world = rank_and_world()

    def __len__(self) -> int:
        return math.ceil(self.size / self.world)

    def __iter__(self):
        epoch, before = self.epoch, self.epoch * self.size
        order = np.random.RandomState([self.seed, epoch, SHUFFLE]).permutation(self.size)
        places = np.arange(self.rank, len(self) * self.world, self.world) % self.size
        for place in places[self.skip :].tolist():
            yield int(order[place]) + (0 if self.repeat else before), epoch, before + place


class ClipLoader(DataLoader):
    """A DataLoader that can continue in the middle of an epoch: Lightning keeps `state_dict` in its checkpoints. Each
    pass is the next epoch, unless `set_epoch` says otherwise. `report` gets what is "broken" in a batch."""

    passed = (0, 0)  # the epoch, and the batches handed out in it

    def __init__(self, *args, report: Callable = list, **options):
        super().__init__(*args, **options)
        self.report = report

    @property
    def order(self) -> Order:
        """A stream's or a sampler's; one without effect if a Trainer put in a sampler (`overfit_batches`)."""
        return next(part for part in (self.dataset, self.sampler, Order()) if isinstance(part, Order))

    def __iter__(self):
        order = self.order
        epoch, skipped = order.epoch, order.skip // self.batch_size
        for number, batch in enumerate(super().__iter__(), skipped + 1):
            if number == skipped + 1:  # only now is it certain that the order has been read
                order.set_epoch(epoch + 1)
                order.skip = 0
            self.passed = epoch, number
            self.report(batch.pop("broken"))
            yield batch

    def state_dict(self) -> dict:
        """How far the pass over the data is, and what its batches depend on."""
        workers = {"workers": self.num_workers} if isinstance(self.dataset, IterableDataset) else {}
        now = {"epoch": self.passed[0], "batches": self.passed[1]}
        return now | {"of": len(self), "batch_size": self.batch_size, **workers}

    def load_state_dict(self, state: dict) -> None:
        """The next pass goes on where `state` was taken. ValueError when batches are not what they were then."""
        now = self.state_dict() | {name: state[name] for name in ("epoch", "batches")}
        if differ := [name for name in now if state.get(name) != now[name]]:
            what = ", ".join(f"{name} was {state.get(name)} and is {now[name]}" for name in differ)
            raise ValueError(f"an epoch needs the batches it began with ({what}): use the same settings")
        over = state["batches"] == len(self)
        self.passed = state["epoch"] + over, 0 if over else state["batches"]
        self.order.set_epoch(self.passed[0])
        self.order.skip = self.passed[1] * self.batch_size


class ClipData(pl.LightningDataModule):
    """Captioned clips for Lightning, in batches as this module's docstring says.

    Args:
        tokenizer: the teacher's, or where the teacher is loaded from ("toybox", a folder, a hub id).
        batch_size: of each process, where there are several.
        captions_per_clip: K in training, drawn anew for each epoch.
        seed: of the order, the captions and whatever else is random in training.
        workers: loader processes.
        max_tokens: longest caption in tokens; default the tokenizer's `model_max_length`, 40 at most (as GIT's). In a
            training no caption is longer than the network's positions."""

    truncate = True  # captions of more than `max_tokens`

    def __init__(
        self,
        tokenizer=None,
        batch_size: int = 16,
        captions_per_clip: int = 1,
        seed: int = 0,
        workers: int = 0,
        max_tokens: int | None = None,
    ):
        super().__init__()
        check_counts(batch_size=batch_size, captions_per_clip=captions_per_clip)
        if max_tokens is not None:
            check_counts(3, max_tokens=max_tokens)  # start, a word, end
        if not tokenizer:
            raise ValueError(f"{type(self).__name__} needs tokenizer=, the teacher's, or its folder or id")
        self.tokenizer = tokenizer = load_tokenizer(tokenizer)
        self.max_tokens = max_tokens or min(MAX_TOKENS, tokenizer.model_max_length)
        self.batch_size, self.captions_per_clip = batch_size, captions_per_clip
        self.seed, self.workers = seed, workers

    def setup(self, stage: str) -> None:
        """Lightning calls it. ValueError when the network's tokenizer has other words than the data's."""
        theirs = getattr(self.trainer.lightning_module, "tokenizer", None)
        if theirs and theirs.get_vocab() != self.tokenizer.get_vocab():
            sizes = f"{len(self.tokenizer)} words, not the network's {len(theirs)}"
            raise ValueError(f"the data's tokenizer has {sizes}: give the data the teacher's tokenizer")
        network = getattr(self.trainer.lightning_module, "model", None)
        self.max_tokens = min(self.max_tokens, getattr(network, "max_positions", self.max_tokens))

    def report(self, broken: list) -> None:
        """Takes (path, reason) of the files of a batch that could not be read."""

    def loader(self, samples: Dataset, sampler: EpochSampler | None = None) -> ClipLoader:
        """Batches of samples, in order without a sampler."""
        return ClipLoader(
            samples,
            self.batch_size,
            sampler=sampler,
            num_workers=self.workers,
            collate_fn=partial(collate, self.tokenizer, self.max_tokens, self.truncate),
            persistent_workers=self.workers > 0 and not isinstance(samples, IterableDataset),
            generator=torch.Generator(),  # the global random numbers stay as they are
            report=self.report,
        )


class Pooled:
    """What a cache of teacher outputs needs, for a `ClipData` whose training clips come again. It must have a `pool`
    with `whole(number)`, a sample with all captions of a clip; `pool_size`, the number of clips; `pool_settings`, what
    the clips and captions depend on."""

    def pool_dataloader(self, start: int = 0, stop: int | None = None) -> ClipLoader:
        """Batches of the pool in order from clip `start` to the one before `stop`, with all captions of each clip."""
        stop = min(stop or self.pool_size, self.pool_size)
        return self.loader(Samples(self.pool.whole, range(start, stop)))

    def fingerprint(self) -> dict:
        """What the pool's clips and captions depend on, and a checksum of some of the clips ("content")."""
        pool, content = self.pool, hashlib.sha256()
        for number in np.linspace(0, self.pool_size - 1, SAMPLED, dtype=int).tolist():
            sample = pool.whole(number)
            content.update(sample.frames.numpy().tobytes())
            if sample.scene is not None:  # otherwise all captions are among the settings
                content.update("\n".join(sample.captions).encode())
        vocabulary = sorted(self.tokenizer.get_vocab().items(), key=lambda entry: entry[1])
        return {
            "data": type(self).__name__,
            **self.pool_settings,
            "vocabulary": hashlib.sha256(repr(vocabulary).encode()).hexdigest()[:16],
            "content": content.hexdigest()[:16],
        }
