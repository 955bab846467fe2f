"""Captioned files in WebDataset's tar shards (https://github.com/webdataset/webdataset), for data that do not fit
one disk: `pack` writes them, `ShardData` streams them from a folder or an address.

    python -m gitdistill pack dataset_coco.json /shards/train --split train

A shard holds NUMBER.jpg (or .mp4, ..., the file as it was) and NUMBER.json {"name", "captions", "crc32"} for each
clip; shards.json beside the shards lists them with checksums."""

import argparse
import hashlib
import json
import math
import os
import random
import re
import sys
import tarfile
import urllib.error
import urllib.request
import zlib
from functools import partial
from itertools import chain, islice, repeat
from pathlib import Path
from reprlib import repr as brief

import numpy as np
from torch.utils.data import IterableDataset, get_worker_info

from gitdistill.counts import check_counts
from gitdistill.data.base import CHOICE, Order, Sample, check_words, choose
from gitdistill.data.crops import read_square
from gitdistill.data.files import CaptionedData, Source, loses_a_third
from gitdistill.data.items import SPLITS, SURROGATE, Item, read_items
from gitdistill.data.video import BrokenFile, FrameRule, read_clip
from gitdistill.distillation.distributed import rank_and_world
from gitdistill.escape import one_line
from gitdistill.models.storage import (
    CHECKSUM,
    first_line,
    metadata_text,
    output_folder,
    parse_metadata,
    remove_leftovers,
    shorten,
    write_whole,
)

INDEX, SHARD = "shards.json", re.compile(r"[\w-]+\.tar")
FORMAT = 1
AGAIN = "pack or fetch it again"
SHARDS = 86_028_121  # keeps the random numbers of shuffling apart from others


def main(arguments: list[str]) -> int:
    """`python -m gitdistill pack`: see `pack`."""
    parser = argparse.ArgumentParser("gitdistill pack", description=__doc__.split("\n\n")[0])
    parser.add_argument("source", help="a JSON file, a table or a folder")
    parser.add_argument("folder", help="where the shards go")
    parser.add_argument("--media", help="folder of the files, if it is not the source's own")
    parser.add_argument("--split", choices=list(SPLITS), help="only this split of the source")
    parser.add_argument("--per-shard", type=int, default=1000, help="clips in a shard (default: 1000)")
    options = parser.parse_args(arguments)
    items, missing = read_items(options.source, options.media, options.split)
    for name in missing:
        print(one_line(f"left out: {name} is not there"), file=sys.stderr)
    if not options.split and (splits := sorted({item.split for item in items if item.split})):
        print(one_line(f"all splits are packed ({shorten(splits)}): --split chooses one"), file=sys.stderr)
    pack(items, options.folder, options.per_shard, say=lambda line: print(one_line(line), file=sys.stderr))
    return 0


def pack(items: list[Item], folder, per_shard: int = 1000, say=print) -> dict:
    """Pack items into shards of `per_shard` clips; goes on where a killed run stopped. Returns the index. Unreadable
    files are named and left out. ValueError when the folder holds shards of something else."""
    check_counts(per_shard=per_shard)
    folder = output_folder(folder)
    names = repr([(Path(item.path).name, item.captions) for item in items])
    packed = {"items": hashlib.sha256(names.encode()).hexdigest()[:16], "per_shard": per_shard}
    index = {"format": FORMAT, **packed, "shards": [], "finished": False}
    if (folder / INDEX).is_file():
        index = read_index(folder, finished=False)
        if {key: index.get(key) for key in packed} != packed:
            raise ValueError(f"{folder} holds shards of other files or sizes: pack elsewhere or delete it")
        say(f"going on after {len(index['shards'])} shards in {folder}")
    folder.mkdir(parents=True, exist_ok=True)
    remove_leftovers(folder)
    for number in range(len(index["shards"]), -(-len(items) // per_shard)):
        first, name = number * per_shard, f"shard-{number:06d}.tar"
        entry = _write_shard(folder, name, first, items[first : first + per_shard], say)
        index["shards"].append(entry)
        _write_index(folder, index)
        say(f"{name}: {entry['count']} clips, {entry['bytes'] / 1e6:.1f} MB")
    index["finished"] = True
    _write_index(folder, index)
    return index


def _write_shard(folder: Path, name: str, first: int, items: list[Item], say) -> dict:
    """The index's entry of the shard that is written; clip numbers count from `first`."""
    import webdataset

    entry = {"name": name}

    def write(path: Path) -> None:
        entry["count"] = 0
        with path.open("wb") as file:
            stream = _Hashed(file)
            with webdataset.TarWriter(stream, mtime=0, encoder=False) as writer:
                for clip, item in enumerate(items, first):
                    if sample := _archived(clip, item, say):
                        writer.write(sample)
                        entry["count"] += 1
            entry.update(bytes=file.tell(), sha256=stream.digest.hexdigest())

    write_whole(folder, {name: write})
    return entry


def _archived(clip: int, item: Item, say) -> dict | None:
    """An item as WebDataset writes it; None, and a word, when it cannot be read."""
    try:
        if not Path(item.path).is_file():
            raise BrokenFile(f"{item.path} is no regular file, or gone")
        content = Path(item.path).read_bytes()
        read_clip(item.path, FrameRule(), content=content)
    except (BrokenFile, OSError) as error:  # OSError: gone, or not ours to read
        say(f"left out: {error}")
        return None
    about = {"name": Path(item.path).name, "captions": item.captions}
    about[CHECKSUM] = clip_checksum(content, about)
    text = json.dumps(about, ensure_ascii=False).encode(errors="backslashreplace")  # names that are no UTF-8
    return {"__key__": f"{clip:09d}", Path(item.path).suffix[1:].lower(): content, "json": text}


def clip_checksum(content: bytes, about: dict) -> str:
    """CRC-32 of a clip's file, name and captions, as eight hexadecimal digits."""
    name = json.dumps([about["name"], about["captions"]]).encode()
    return f"{zlib.crc32(content, zlib.crc32(name)):08x}"


def _write_index(folder: Path, index: dict) -> None:
    write_whole(folder, {INDEX: lambda path: path.write_text(metadata_text(index))})


def read_index(source, finished: bool = True) -> dict:
    """The index of a folder or address of shards; FileNotFoundError or ValueError in one line."""
    where = f"{str(source).rstrip('/')}/{INDEX}"
    try:
        with _open(where) as file:
            content = file.read()
    except FileNotFoundError:
        raise FileNotFoundError(f"there is no {where}: use `python -m gitdistill pack`") from None
    except Exception as error:  # of the network, or of a storage's own library
        raise ValueError(f"{where} cannot be read: {first_line(error)}") from None
    index = parse_metadata(content, where)
    if index.get("format") != FORMAT:
        raise ValueError(f"{where} is not of format {FORMAT} but {brief(index.get('format'))}: pack it again")
    shards = index.get("shards")
    if not isinstance(shards, list) or not isinstance(index.get("finished"), bool):
        raise ValueError(f"{where} lists no shards: pack it again")
    if wrong := [entry for entry in shards if not _is_entry(entry)]:
        raise ValueError(f"{where} has {brief(wrong[0])} for a shard of its folder: pack it again")
    if finished and not index["finished"]:
        raise ValueError(f"the shards in {source} are not all there: pack again to go on")
    return index


def _is_entry(entry) -> bool:
    """Whether it names a shard, without a folder, with its number of clips and its checksum."""
    entry = entry if isinstance(entry, dict) else {}
    texts = isinstance(entry.get("name"), str) and isinstance(entry.get("sha256"), str)
    count = entry.get("count")
    return texts and bool(SHARD.fullmatch(entry["name"])) and type(count) is int and 0 <= count < 2**31


def _open(where: str):
    """A file, or what an address gives, to be read from start to end."""
    import fsspec

    if not where.startswith(("http://", "https://")):
        if os.path.exists(where) and not os.path.isfile(where):  # a device, for example, which never ends
            raise ValueError("it is no regular file")
        return fsspec.open(where, "rb").open()
    try:
        return urllib.request.urlopen(where, timeout=60)
    except urllib.error.HTTPError as error:
        if error.code == 404:
            raise FileNotFoundError(f"there is no {where}") from None
        raise


class _Hashed:
    """A stream that keeps the checksum of what was read of it, or written to it."""

    def __init__(self, stream):
        self.stream, self.digest = stream, hashlib.sha256()

    def read(self, size: int = -1) -> bytes:
        content = self.stream.read(size)
        self.digest.update(content)
        return content

    def write(self, content) -> int:
        self.digest.update(content)
        return self.stream.write(content)


def read_shard(source, entry: dict):
    """Yields (number, file name, bytes, about) of each clip of a shard; ValueError naming the shard before a clip whose
    checksum differs, as soon as it cannot be read on, or at its end when the whole is not what the index says."""
    where = f"{str(source).rstrip('/')}/{entry['name']}"
    held, count = None, 0  # the last clip is held back until the checksum of the whole shard is known
    try:
        with _open(where) as opened:
            stream = _Hashed(opened)
            for key, parts in _members(stream):
                count += 1
                if held:
                    yield held
                about = json.loads(parts.pop("json"))
                ((_, content),) = parts.items()
                good = isinstance(about["name"], str) and isinstance(about["captions"], list)
                good = good and not any(map(SURROGATE.search, about["captions"]))
                if not good or not re.fullmatch("[0-9]{1,9}", key):
                    raise ValueError("a clip in it is not as it should be")
                if about.get(CHECKSUM) not in (None, clip_checksum(content, about)):
                    raise ValueError(f"{about['name']} in it has another checksum")
                held = int(key), about["name"], content, about
            while stream.read(1 << 20):
                pass
    except Exception as error:  # of the network and of what is in there
        reason = first_line(error)
        raise ValueError(f"the shard {where} is damaged or missing ({reason}): {AGAIN}") from None
    if stream.digest.hexdigest() != entry["sha256"] or count != entry["count"]:
        raise ValueError(f"the shard {where} is not what {INDEX} says of it: {AGAIN}")
    if held:
        yield held


def _members(stream):
    """Yields (key, {suffix: bytes}) for each two files of a tar archive, which are those of a clip."""
    parts = {}
    with tarfile.open(fileobj=stream, mode="r|", bufsize=1 << 20) as archive:
        for member in archive:
            key, suffix = member.name.split(".", 1)
            if not member.isfile() or member.sparse:  # whose holes would be filled in memory
                raise ValueError("it holds something else than files")
            parts[suffix] = archive.extractfile(member).read()
            if len(parts) == 2:
                yield key, parts
                parts = {}


class ShardStream(Order, IterableDataset):
    """Samples of shards, the same number of batches from each process and worker: shards go round among them; who has
    fewer clips than its share begins again. Training (with `captions`, K): an order of shards for each epoch, and
    clips drawn from a buffer of `buffer`. overfit: all epochs are the first."""

    overfit = False

    def __init__(self, source, data: "ShardData", rule: FrameRule, captions: int = 0, buffer: int = 0):
        (self.source, index), self.rule, self.size = source, rule, data.image_size
        self.shards = [shard for shard in index["shards"] if shard["count"]]
        self.batch_size, self.workers, self.seed = data.batch_size, max(1, data.workers), data.seed
        self.captions, self.buffer = captions, buffer
        self.rank, self.world = rank_and_world()  # a worker may not know

    def set_epoch(self, epoch: int) -> None:
        super().set_epoch(0 if self.overfit else epoch)

    def shares(self) -> list[list[dict]]:
        """The shards of each worker of each process."""
        parts = self.world * self.workers
        if len(self.shards) < parts:
            what = f"{self.world} processes of {self.workers} workers"
            advice = "use fewer workers, or pack with a smaller --per-shard"
            raise ValueError(f"{len(self.shards)} shards are too few for {what}: {advice}")
        order = np.arange(len(self.shards))
        if self.captions:
            order = np.random.RandomState([self.seed, self.epoch, SHARDS]).permutation(order)
        return [[self.shards[i] for i in order[part::parts]] for part in range(parts)]

    def need(self) -> int:
        """Clips of each worker: in training an even part, otherwise the longest share, so that none is left out."""
        sizes = [sum(shard["count"] for shard in share) for share in self.shares()]
        return math.ceil(sum(sizes) / len(sizes)) if self.captions else max(sizes)

    def __len__(self) -> int:
        return self.workers * math.ceil(self.need() / self.batch_size) * self.batch_size  # of whole batches

    def __iter__(self):
        info, epoch = get_worker_info(), self.epoch
        # Workers hand out batches by turns: the first one now takes the place of the one whose turn it was.
        turns, before = divmod(self.skip // self.batch_size, self.workers)
        worker = info.id if info else 0
        part = (worker + before) % self.workers
        skip = (turns + (part < before)) * self.batch_size
        mine = self.shares()[self.rank * self.workers + part]
        draw = random.Random(f"{self.seed} {epoch} {self.rank} {part}")
        passes = (chain.from_iterable(map(partial(read_shard, self.source), share)) for share in repeat(mine))
        clips = chain.from_iterable(shuffled(clips, self.buffer, draw) for clips in passes)
        return (self.sample(epoch, *clip) for clip in islice(clips, skip, self.need()))

    def sample(self, epoch: int, number: int, name: str, content: bytes, about: dict) -> Sample:
        """A clip with its first caption, or in training with as many of its own as asked for."""
        draw, own = np.random.RandomState([self.seed, epoch, number, CHOICE]), about["captions"]
        frames = read_square(name, self.rule, self.size, draw, content)
        chosen = choose(draw, own, self.captions) if self.captions else choose(None, own, 1)
        return Sample(frames, *chosen, own, number)


def shuffled(clips, size: int, draw: random.Random):
    """Clips in an order that is random among `size` that lie close; with 0 as they come."""
    kept = []
    if not size:
        yield from clips
    for clip in clips:
        if len(kept) < size:
            kept.append(clip)
            continue
        place = draw.randrange(size)
        yield kept[place]
        kept[place] = clip
    draw.shuffle(kept)
    yield from kept


class ShardData(CaptionedData):
    """Batches as `FileData` gives them, streamed from shards.

    Args:
        train, val, test: folders or addresses that hold shards.json: http, https, and whatever fsspec opens
            (s3 with s3fs installed, gs with gcsfs).
        buffer: training clips among which the next one is drawn.
        options: as for `CaptionedData`. Each process and worker needs a shard of its own, a continued fit as many.

    Raises FileNotFoundError and ValueError in one line, naming a shard that is damaged."""

    def __init__(
        self, train: Source = None, val: Source = None, test: Source = None, buffer: int = 200, **options
    ):
        super().__init__(**options)
        check_counts(buffer=buffer)
        self.buffer = buffer
        sources = {"train": train, "val": val, "test": test}
        self.sources = {role: (source, read_index(source)) for role, source in sources.items() if source}
        lost = []
        for role, (source, index) in self.sources.items():
            captions = []
            for first in [shard for shard in index["shards"] if shard["count"]][:1]:
                for _, name, content, about in islice(read_shard(source, first), 32):
                    captions += about["captions"]
                    lost.append(loses_a_third(name, content))
            check_words(captions, self.tokenizer, f"{role}'s first captions")
        self.warn_of_crops(lost)

    def train_dataloader(self):
        """Batches of the training shards, in another order in each epoch."""
        stream = ShardStream(self.source("train"), self, self.rule, self.captions_per_clip, self.buffer)
        if self.trainer:
            stream.overfit = bool(self.trainer.overfit_batches)
            stream.set_epoch(self.trainer.current_epoch)
        return self.loader(stream)

    def fixed_loader(self, role: str):
        return self.loader(ShardStream(self.source(role), self, self.fixed_rule))
