"""Captioned files in WebDataset's tar shards (https://github.com/webdataset/webdataset), for data that do not fit
one disk: `pack` writes them, `ShardData` streams them from a folder or an address.

    python -m gitdistill pack dataset_coco.json /shards/train --split train

A shard holds NUMBER.jpg (or .mp4, ..., the file as it was) and NUMBER.json {"name", "captions"} for each clip;
shards.json beside the shards lists them with checksums.
"""

import argparse
import hashlib
import io
import json
import os
import random
import sys
import tarfile
from functools import partial
from itertools import chain, islice, repeat
from pathlib import Path

import numpy as np
import pytorch_lightning as pl
import torch
from torch import distributed
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from gitdistill.data.files import SPLITS, Item, _collate, read_items, squared
from gitdistill.data.module import _CHOICE
from gitdistill.data.video import BrokenFile, FrameRule, read_clip
from gitdistill.model import checkpoints, text
from gitdistill.model.files import write_whole

INDEX = "shards.json"
FORMAT = 1
_SHARDS = 86_028_121  # keeps the random numbers of shuffling apart from others


def main(arguments: list[str]) -> int:
    """`python -m gitdistill pack`: see `pack`."""
    parser = argparse.ArgumentParser("gitdistill pack", description=__doc__.split("\n\n")[0])
    parser.add_argument(
        "source", help="a JSON file, a table or a folder, see gitdistill.data.files.read_items"
    )
    parser.add_argument("folder", help="where the shards go")
    parser.add_argument("--media", help="folder of the files, if it is not the source's own")
    parser.add_argument("--split", choices=list(SPLITS), help="only this split of the source")
    parser.add_argument("--per-shard", type=int, default=1000, help="clips in a shard (default: 1000)")
    options = parser.parse_args(arguments)
    items, missing = read_items(options.source, options.media, options.split)
    for name in missing:
        print(f"left out: {name} is not there", file=sys.stderr)
    pack(items, options.folder, options.per_shard, say=partial(print, file=sys.stderr))
    return 0


def pack(items: list[Item], folder, per_shard: int = 1000, say=print) -> dict:
    """Pack items into shards of `per_shard` clips; goes on where a killed run stopped. Returns the index.

    Unreadable files are named and left out. ValueError when the folder holds shards of something else.
    """
    import webdataset

    if per_shard < 1:
        raise ValueError(f"a shard holds at least 1 clip, not {per_shard}")
    folder = Path(folder)
    told = hashlib.sha256(
        repr([(Path(item.path).name, item.captions) for item in items]).encode()
    ).hexdigest()
    index = {"format": FORMAT, "items": told[:16], "per_shard": per_shard, "shards": [], "finished": False}
    if (folder / INDEX).is_file():
        known = read_index(folder, finished=False)
        if [known[key] for key in ("items", "per_shard")] != [index[key] for key in ("items", "per_shard")]:
            raise ValueError(f"{folder} holds shards of other files or sizes: pack elsewhere or delete it")
        index = known
        say(f"going on after {len(index['shards'])} shards in {folder}")
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(len(index["shards"]), -(-len(items) // per_shard)):
        first, stream = number * per_shard, io.BytesIO()
        count = 0
        with webdataset.TarWriter(stream, mtime=0, encoder=False) as writer:
            for place, item in enumerate(items[first : first + per_shard], first):
                if sample := as_sample(place, item, say):
                    writer.write(sample)
                    count += 1
        content, name = stream.getvalue(), f"shard-{number:06d}.tar"
        write_whole(folder, {name: lambda path, content=content: path.write_bytes(content)})
        entry = {"name": name, "count": count, "bytes": len(content)}
        index["shards"].append(entry | {"sha256": hashlib.sha256(content).hexdigest()})
        _write_index(folder, index)
        say(f"{name}: {count} clips, {len(content) / 1e6:.1f} MB")
    index["finished"] = True
    _write_index(folder, index)
    return index


def as_sample(place: int, item: Item, say) -> dict | None:
    """An item as WebDataset writes it; None, and a word, when it cannot be read."""
    content = Path(item.path).read_bytes()
    try:
        read_clip(item.path, FrameRule(1), content=content)
    except BrokenFile as error:
        say(f"left out: {error}")
        return None
    about = json.dumps({"name": Path(item.path).name, "captions": item.captions}, ensure_ascii=False).encode()
    return {"__key__": f"{place:09d}", Path(item.path).suffix[1:].lower(): content, "json": about}


def _write_index(folder: Path, index: dict) -> None:
    write_whole(folder, {INDEX: lambda path: path.write_text(json.dumps(index, indent=1) + "\n")})


def read_index(source, finished: bool = True) -> dict:
    """The index of a folder or address of shards; FileNotFoundError or ValueError in one line."""
    where = f"{str(source).rstrip('/')}/{INDEX}"
    try:
        with _open(where) as file:
            index = json.loads(file.read())
    except (OSError, ValueError) as error:
        if isinstance(error, ValueError) and Path(where).is_file():
            raise ValueError(f"{where} is not valid JSON: {error}") from None
        raise FileNotFoundError(
            f"there is no {where}: pack the data with `python -m gitdistill pack`"
        ) from None
    if index.get("format") != FORMAT:
        raise ValueError(
            f"{where} is of format {index.get('format')}, this is format {FORMAT}: pack it again"
        )
    if finished and not index["finished"]:
        raise ValueError(f"the shards in {source} are not all there: pack again to go on")
    return index


def _open(where: str):
    """A file, or what an address (http, s3, gs, pipe) gives, to be read from start to end."""
    import webdataset

    return webdataset.gopen(where, "rb")


class _Hashed:
    """A stream that remembers the checksum of what was read of it."""

    def __init__(self, stream):
        self.stream, self.digest = stream, hashlib.sha256()

    def read(self, size: int = -1) -> bytes:
        content = self.stream.read(size)
        self.digest.update(content)
        return content


def read_shard(source, entry: dict):
    """Yields (number, file name, bytes, about) of each clip of a shard.

    ValueError naming the shard as soon as it cannot be read on, or at its end when the checksum differs.
    """
    where = f"{str(source).rstrip('/')}/{entry['name']}"
    parts, held = {}, None  # the last clip is held back until the checksum is known
    try:
        with _open(where) as opened:
            stream = _Hashed(opened)
            with tarfile.open(fileobj=stream, mode="r|") as archive:
                for member in archive:
                    key, suffix = member.name.split(".", 1)
                    parts[suffix] = archive.extractfile(member).read()
                    if len(parts) < 2:
                        continue
                    if held:
                        yield held
                    about = json.loads(parts.pop("json"))
                    ((_, content),) = parts.items()
                    parts, held = {}, (int(key), about["name"], content, about)
            while stream.read(1 << 20):
                pass
    except (OSError, tarfile.TarError, ValueError, KeyError) as error:
        raise ValueError(
            f"the shard {where} is damaged or missing ({error}): pack or fetch it again"
        ) from None
    if stream.digest.hexdigest() != entry["sha256"]:
        raise ValueError(f"the shard {where} is damaged, its checksum differs: pack or fetch it again")
    if held:
        yield held


class _Stream(IterableDataset):
    """Rows for `_collate`, the same number of batches from each process and worker.

    Shards go round among them; who has fewer clips than its share begins again. Training: an order of shards for
    each epoch, and clips drawn from a buffer of `buffer`."""

    def __init__(self, source, index, rule, size, batch_size, seed=0, count=None, buffer=0):
        self.source, self.shards = source, [shard for shard in index["shards"] if shard["count"]]
        self.rule, self.size, self.batch_size = rule, size, batch_size
        self.seed, self.count, self.buffer, self.epoch = seed, count, buffer, 0

    def __iter__(self):
        epoch, self.epoch = self.epoch, self.epoch + 1
        info = get_worker_info()
        worker, workers = (info.id, info.num_workers) if info else (0, 1)
        spread = distributed.is_available() and distributed.is_initialized()
        rank, world = (distributed.get_rank(), distributed.get_world_size()) if spread else (0, 1)
        parts = world * workers
        if len(self.shards) < parts:
            raise ValueError(
                f"{len(self.shards)} shards are too few for {world} processes of {workers} workers"
            )
        order = np.arange(len(self.shards))
        if self.count is not None:
            order = np.random.RandomState([self.seed, epoch, _SHARDS]).permutation(order)
        shares = [[self.shards[i] for i in order[part::parts]] for part in range(parts)]
        sizes = [sum(shard["count"] for shard in share) for share in shares]
        # Training: as many as there are, evenly; otherwise as many as the longest share has, all heard.
        need = -(-sum(sizes) // parts) if self.count is not None else max(sizes)
        mine = shares[rank * workers + worker]
        draw = random.Random(f"{self.seed} {epoch} {rank} {worker}")
        passes = (
            chain.from_iterable(read_shard(self.source, shard) for shard in share) for share in repeat(mine)
        )
        rows = chain.from_iterable(shuffled(rows, self.buffer, draw) for rows in passes)
        return (self.row(epoch, *row) for row in islice(rows, need))

    def row(self, epoch, number, name, content, about):
        draw = np.random.RandomState([self.seed, epoch, number, _CHOICE])
        frames = squared(read_clip(name, self.rule, draw, content), self.size)
        own = about["captions"]
        if self.count is None:
            chosen = [0 if own else -1]
        else:
            chosen = draw.permutation(len(own))[: self.count].tolist()
            chosen += [-1] * (self.count - len(chosen))
        return frames, [None if c < 0 else own[c] for c in chosen], own, number, chosen, []


def shuffled(rows, size: int, draw: random.Random):
    """Rows in an order that is random among `size` that lie close; with 0 as they come."""
    kept = []
    if not size:
        yield from rows
    for row in rows:
        if len(kept) < size:
            kept.append(row)
            continue
        place = draw.randrange(size)
        yield kept[place]
        kept[place] = row
    draw.shuffle(kept)
    yield from kept


class ShardData(pl.LightningDataModule):
    """Batches as `FileData` gives them, streamed from shards.

    Args:
        train, val, test: folders or addresses (https, s3, gs: whatever webdataset opens) that hold shards.json.
        buffer: training clips among which the next one is drawn.
        Others as for `FileData`. Every process and worker needs a shard of its own. A fit that was interrupted
        within an epoch begins that epoch again.

    Raises FileNotFoundError and ValueError in one line, naming a shard that is damaged.
    """

    def __init__(
        self,
        train: str | None = None,
        val: str | None = None,
        test: str | None = None,
        tokenizer="glyphs",
        frames: int = 6,
        sampling: str = "uniform",
        step: int = 1,
        image_size: int = 224,
        batch_size: int = 16,
        captions_per_clip: int = 1,
        buffer: int = 200,
        seed: int = 0,
        workers: int = 0,
        max_tokens: int | None = None,
    ):
        super().__init__()
        if min(batch_size, captions_per_clip, image_size, buffer) < 1:
            raise ValueError("batch_size, captions_per_clip, image_size and buffer must be at least 1")
        if isinstance(tokenizer, str | os.PathLike):
            tokenizer = text.load_tokenizer(checkpoints.resolve(tokenizer))
        self.tokenizer, self.max_tokens = tokenizer, max_tokens or min(40, tokenizer.model_max_length)
        self.rule = FrameRule(frames, sampling, step)
        self.image_size, self.batch_size, self.captions_per_clip = image_size, batch_size, captions_per_clip
        self.buffer, self.seed, self.workers = buffer, seed, workers
        sources = {"train": train, "val": val, "test": test}
        self.sources = {role: (source, read_index(source)) for role, source in sources.items() if source}

    def train_dataloader(self):
        """Batches of the training shards, in another order in each epoch."""
        options = {"seed": self.seed, "count": self.captions_per_clip, "buffer": self.buffer}
        stream = _Stream(*self._of("train"), self.rule, self.image_size, self.batch_size, **options)
        stream.epoch = self.trainer.current_epoch if self.trainer else 0
        return self._loader(stream)

    def val_dataloader(self):
        """Batches of the validation shards, in order."""
        return self._fixed("val")

    def test_dataloader(self):
        """Batches of the test shards, in order."""
        return self._fixed("test")

    def _of(self, role: str):
        if role not in self.sources:
            raise ValueError(f"there is no {role} data: give ShardData({role}=...)")
        return self.sources[role]

    def _fixed(self, role: str):
        sampling = "uniform" if self.rule.sampling == "random" else self.rule.sampling
        rule = FrameRule(self.rule.frames, sampling, self.rule.step)
        return self._loader(_Stream(*self._of(role), rule, self.image_size, self.batch_size))

    def _loader(self, stream):
        return DataLoader(
            stream,
            self.batch_size,
            num_workers=self.workers,
            collate_fn=partial(_collate, tokenizer=self.tokenizer, max_length=self.max_tokens),
            persistent_workers=self.workers > 0,
            generator=torch.Generator(),  # the global random numbers stay as they are
        )
