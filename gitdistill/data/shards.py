"""Captioned files in WebDataset's tar shards (https://github.com/webdataset/webdataset), for data that do not fit
one disk: `pack` writes them, `ShardData` streams them from a folder or an address.

    python -m gitdistill pack dataset_coco.json /shards/train --split train

A shard holds NUMBER.jpg (or .mp4, ..., the file as it was) and NUMBER.json {"name", "captions", "crc32"} for each
clip; shards.json beside the shards lists them with checksums.
"""

import argparse
import hashlib
import io
import json
import math
import random
import sys
import tarfile
import urllib.error
import urllib.request
import zlib
from functools import partial
from itertools import chain, islice, repeat
from pathlib import Path

import fsspec
import numpy as np
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from gitdistill.data.files import SPLITS, CaptionedData, Item, center_crop, read_items
from gitdistill.data.video import BrokenFile, FrameRule, read_clip
from gitdistill.distillation.distributed import rank_and_world
from gitdistill.models.storage import CHECKSUM, first_line, metadata_text, parse_metadata, write_whole
from gitdistill.world.module import _CHOICE, ClipLoader

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
    for left in folder.glob(".*.tmp"):  # of a killed run
        left.unlink()
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
    try:
        content = Path(item.path).read_bytes()
        read_clip(item.path, FrameRule(), content=content)
    except (BrokenFile, OSError) as error:  # OSError: gone, or not ours to read
        say(f"left out: {error}")
        return None
    about = {"name": Path(item.path).name, "captions": item.captions}
    about[CHECKSUM] = clip_checksum(content, about)
    text = json.dumps(about, ensure_ascii=False).encode(errors="backslashreplace")  # names that are no UTF-8
    return {"__key__": f"{place:09d}", Path(item.path).suffix[1:].lower(): content, "json": text}


def clip_checksum(content: bytes, about: dict) -> str:
    """CRC-32 of a clip's file, name and captions, as eight hexadecimal digits."""
    told = json.dumps([about["name"], about["captions"]]).encode()
    return f"{zlib.crc32(content, zlib.crc32(told)):08x}"


def _write_index(folder: Path, index: dict) -> None:
    write_whole(folder, {INDEX: lambda path: path.write_text(metadata_text(index))})


def read_index(source, finished: bool = True) -> dict:
    """The index of a folder or address of shards; FileNotFoundError or ValueError in one line."""
    where = f"{str(source).rstrip('/')}/{INDEX}"
    try:
        with _open(where) as file:
            content = file.read()
    except FileNotFoundError:
        raise FileNotFoundError(
            f"there is no {where}: pack the data with `python -m gitdistill pack`"
        ) from None
    except Exception as error:  # of the network, or of a storage's own library
        raise ValueError(f"{where} cannot be read: {first_line(error)}") from None
    index = parse_metadata(content, where)
    if index.get("format") != FORMAT:
        raise ValueError(
            f"{where} is of format {index.get('format')}, this is format {FORMAT}: pack it again"
        )
    if finished and not index["finished"]:
        raise ValueError(f"the shards in {source} are not all there: pack again to go on")
    return index


def _open(where: str):
    """A file, or what an address gives, to be read from start to end."""
    if not where.startswith(("http://", "https://")):
        return fsspec.open(where, "rb").open()
    try:
        return urllib.request.urlopen(where, timeout=60)
    except urllib.error.HTTPError as error:
        if error.code == 404:
            raise FileNotFoundError(f"there is no {where}") from None
        raise


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

    ValueError naming the shard: before a clip whose checksum differs, as soon as it cannot be read on, or at its
    end when the whole is not what the index says.
    """
    where = f"{str(source).rstrip('/')}/{entry['name']}"
    parts, held, count = {}, None, 0  # the last clip is held back until the checksum is known
    try:
        with _open(where) as opened:
            stream = _Hashed(opened)
            with tarfile.open(fileobj=stream, mode="r|", bufsize=1 << 20) as archive:
                for member in archive:
                    key, suffix = member.name.split(".", 1)
                    parts[suffix] = archive.extractfile(member).read()
                    if len(parts) < 2:
                        continue
                    if held:
                        yield held
                    count += 1
                    about = json.loads(parts.pop("json"))
                    ((_, content),) = parts.items()
                    if about.get(CHECKSUM) not in (None, clip_checksum(content, about)):
                        raise ValueError(f"{about['name']} in it has another checksum")
                    parts, held = {}, (int(key), about["name"], content, about)
            while stream.read(1 << 20):
                pass
    except Exception as error:  # of the network and of what is in there
        raise ValueError(
            f"the shard {where} is damaged or missing ({first_line(error)}): pack or fetch it again"
        ) from None
    if stream.digest.hexdigest() != entry["sha256"] or count != entry["count"]:
        raise ValueError(f"the shard {where} is not what {INDEX} says of it: pack or fetch it again")
    if held:
        yield held


class _Stream(IterableDataset):
    """Rows for `_collate`, the same number of batches from each process and worker.

    Shards go round among them; who has fewer clips than its share begins again. Training: an order of shards for
    each epoch, and clips drawn from a buffer of `buffer`. `skip`: clips that the next pass leaves out."""

    def __init__(self, source, index, rule, size, batch_size, seed=0, count=None, buffer=0):
        self.source, self.shards = source, [shard for shard in index["shards"] if shard["count"]]
        self.rule, self.size, self.batch_size = rule, size, batch_size
        self.seed, self.count, self.buffer, self.epoch, self.skip = seed, count, buffer, 0, 0
        self.rank, self.world = rank_and_world()  # a worker may not know

    def set_epoch(self, epoch):
        """The epoch of the next pass."""
        self.epoch = epoch

    def shares(self, workers: int) -> list[list[dict]]:
        """The shards of each worker of each process."""
        parts = self.world * max(1, workers)
        if len(self.shards) < parts:
            raise ValueError(
                f"{len(self.shards)} shards are too few for {self.world} processes of {workers} workers"
            )
        order = np.arange(len(self.shards))
        if self.count is not None:
            order = np.random.RandomState([self.seed, self.epoch, _SHARDS]).permutation(order)
        return [[self.shards[i] for i in order[part::parts]] for part in range(parts)]

    def need(self, workers: int) -> int:
        """Clips of each worker. Training: as many as there are, evenly; otherwise as many as the longest share
        has, so that all are heard."""
        sizes = [sum(shard["count"] for shard in share) for share in self.shares(workers)]
        return math.ceil(sum(sizes) / len(sizes)) if self.count is not None else max(sizes)

    def __iter__(self):
        info = get_worker_info()
        worker, workers = (info.id, info.num_workers) if info else (0, 1)
        # Workers hand out batches by turns: the first one now takes the place of the one whose turn it was.
        before, epoch = self.skip // self.batch_size, self.epoch
        part = (worker + before) % workers
        skip = (before // workers + (part < before % workers)) * self.batch_size
        mine = self.shares(workers)[self.rank * workers + part]
        draw = random.Random(f"{self.seed} {epoch} {self.rank} {part}")
        passes = (
            chain.from_iterable(read_shard(self.source, shard) for shard in share) for share in repeat(mine)
        )
        rows = chain.from_iterable(shuffled(rows, self.buffer, draw) for rows in passes)
        return (self.row(epoch, *row) for row in islice(rows, skip, self.need(workers)))

    def row(self, epoch, number, name, content, about):
        draw = np.random.RandomState([self.seed, epoch, number, _CHOICE])
        frames = center_crop(read_clip(name, self.rule, draw, content), self.size)
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


class StreamLoader(ClipLoader):
    """A `ClipLoader` of a stream. A continued pass reads what it leaves out, but does not decode it."""

    @property
    def order(self):
        return self.dataset

    def __len__(self):
        return max(1, self.num_workers) * math.ceil(self.dataset.need(self.num_workers) / self.batch_size)

    def __iter__(self):
        stream, batches = self.dataset, DataLoader.__iter__(self)  # now the workers have their copies
        epoch, skipped = stream.epoch, stream.skip // self.batch_size
        stream.epoch, stream.skip = epoch + 1, 0
        for number, batch in enumerate(batches, skipped + 1):
            self._passed = (epoch, number)
            batch.pop("broken")
            yield batch

    def _kind(self) -> dict:
        return super()._kind() | {"workers": self.num_workers}


class ShardData(CaptionedData):
    """Batches as `FileData` gives them, streamed from shards.

    Args:
        train, val, test: folders or addresses that hold shards.json: http, https, and whatever fsspec opens
            (s3 with s3fs installed, gs with gcsfs).
        buffer: training clips among which the next one is drawn.
        options: as for `CaptionedData`. Every process and worker needs a shard of its own, and a continued fit
            as many of them as before.

    Raises FileNotFoundError and ValueError in one line, naming a shard that is damaged.
    """

    def __init__(
        self,
        train: str | None = None,
        val: str | None = None,
        test: str | None = None,
        buffer: int = 200,
        **options,
    ):
        super().__init__(**options)
        if buffer < 1:
            raise ValueError(f"buffer must be at least 1, not {buffer}")
        self.buffer = buffer
        sources = {"train": train, "val": val, "test": test}
        self.sources = {role: (source, read_index(source)) for role, source in sources.items() if source}

    def train_dataloader(self):
        """Batches of the training shards, in another order in each epoch."""
        options = {"seed": self.seed, "count": self.captions_per_clip, "buffer": self.buffer}
        stream = _Stream(*self._of("train"), self.rule, self.image_size, self.batch_size, **options)
        stream.set_epoch(self.trainer.current_epoch if self.trainer else 0)
        return StreamLoader(stream, **self._options())

    def _fixed(self, source):
        return StreamLoader(
            _Stream(*source, self.fixed_rule, self.image_size, self.batch_size), **self._options()
        )
