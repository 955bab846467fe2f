"""Pictures and videos of one's own, and the usual caption data sets, for Lightning.

`read_items` understands COCO's official JSON and Karpathy's split of it, MSR-VTT's and VATEX's JSON, a table
(CSV or JSON lines) and a folder without captions; `FileData` makes batches of them like those of `GlyphData`.

Letters in shapes: B clips, F frames, K captions per clip, T tokens.
"""

import csv
import hashlib
import io
import json
import os
import warnings
from collections import defaultdict
from dataclasses import dataclass
from functools import partial
from itertools import chain
from pathlib import Path
from unicodedata import normalize

import numpy as np
import pytorch_lightning as pl
import torch
from torch import Tensor
from torch.utils.data import Dataset
from torchvision.transforms.v2 import functional as tv

from gitdistill.data.video import IMAGES, VIDEOS, BrokenFile, FrameRule, read_clip
from gitdistill.models import checkpoints
from gitdistill.models import tokenizer as text
from gitdistill.models.preprocessing import resize
from gitdistill.world.module import _CHOICE, ClipLoader, _EpochSampler

__all__ = ["FileData", "Item", "read_items"]

SPLITS = {
    "train": ("train", "training", "restval"),
    "val": ("val", "validate", "validation", "dev"),
    "test": ("test", "testing"),
}
TABLES = (
    *("captions.csv", "captions.tsv", "captions.txt", "captions.json", "captions.jsonl"),
    *("metadata.csv", "metadata.jsonl"),
)
FILE_COLUMNS = (
    *("file", "file_name", "filename", "filepath", "file_path", "path", "image", "image_name", "video"),
    *("video_id", "videoid"),  # MSR-VTT's later lists and VATEX
)
CAPTION_COLUMNS = ("captions", "caption", "text", "sentence", "sentences", "encap", "comment")
NAMED = 1000  # missing files that are named in a warning
SAMPLE = 16  # clips whose frames stand for all of a pool's in its fingerprint
_FRAMES, _CROP = 15_485_863, 32_452_843  # keep the random numbers of frames and crops apart from others


@dataclass(frozen=True)
class Item:
    """A picture or video file, its captions, and the split its source puts it in (None: the source has none)."""

    path: str
    captions: tuple[str, ...] = ()
    split: str | None = None


def read_items(source, media=None, split: str | None = None) -> tuple[list[Item], list[str]]:
    """The items of a data set in the order of its files, and the names it lists whose files are not there.

    Args:
        source: a JSON file (COCO, Karpathy, MSR-VTT or VATEX, told apart by what is in it); a table (.csv, .tsv,
            .txt, .jsonl, or a list of objects in .json) with a column `file`, optionally `caption` or `captions`,
            and `split`; or a folder, with such a table called captions.csv, captions.jsonl ... in it, or with
            nothing but pictures and videos.
        media: the folder that holds the files, at any depth; by default the source's own.
        split: "train", "val" or "test", under whichever name the source has it ("restval" counts as training);
            a source without splits is taken whole.

    Raises FileNotFoundError or ValueError in one line.
    """
    source = Path(source).expanduser()
    if not source.exists():
        raise FileNotFoundError(f"there is no {source}: give a JSON file, a table or a folder")
    tables = [source / name for name in TABLES if (source / name).is_file()] if source.is_dir() else [source]
    media = Path(media or (source if source.is_dir() else source.parent)).expanduser()
    if not media.is_dir():
        raise FileNotFoundError(f"there is no folder {media} of pictures or videos")
    if len(tables) > 1:
        raise ValueError(
            f"{source} has {tables[0].name} and {tables[1].name}: give one of them as the source"
        )
    found = _Media(media)
    if not tables:
        items, missing = [Item(str(path)) for path in found.files], []
    else:
        rows = [_checked(row, number, tables[0]) for number, row in enumerate(_read(tables[0]), 1)]
        found.claimed = {name for name, _, _ in rows}
        items, missing = _locate(_of_split(rows, source, split), found)
    if not items:
        lost = (
            f": none of the {len(missing)} files it lists is in {media}, {missing[0]} first"
            if missing
            else ""
        )
        raise FileNotFoundError(f"{source} has no pictures or videos{lost}")
    return items, missing


def _checked(row: tuple, number: int, source) -> tuple:
    """A row (name, captions, split) of texts alone; ValueError when it holds something else."""
    name, texts, split = row
    texts = [texts] if isinstance(texts, str) else texts or []
    if not isinstance(name, str):
        raise ValueError(f"entry {number} of {source} has {name!r} for a file's name: names are texts")
    for text_ in texts if isinstance(texts, list) else [texts]:
        if not isinstance(text_, str):
            raise ValueError(
                f"entry {number} of {source}, {name}, has {text_!r} for a caption: captions are texts"
            )
    if not isinstance(split or "", str):
        raise ValueError(f"entry {number} of {source}, {name}, has {split!r} for a split: splits are texts")
    return name.strip().replace("\\", "/"), texts, (split or "").strip() or None


def _of_split(rows: list[tuple], source, split: str | None) -> list[tuple]:
    """Those of the rows (name, captions, split) that are in a split; all if the source has none."""
    known = sorted({row[2] for row in rows if row[2]})
    if split is None or not known:
        return rows
    chosen = [row for row in rows if (row[2] or "").lower() in SPLITS[split]]
    if not chosen:
        raise ValueError(f"{source} has no split {split}: its splits are {', '.join(known)}")
    others = [row[2] or "(empty)" for row in rows if (row[2] or "").lower() not in chain(*SPLITS.values())]
    if others:
        warnings.warn(
            f"{len(others)} of {len(rows)} entries of {source} are in no split: {', '.join(sorted(set(others)))}",
            stacklevel=2,
        )
    return chosen


def walk(folder: Path):
    """All files below a folder but hidden ones, through links to other folders, too, into each folder once."""
    seen = set()

    def refuse(error: OSError):
        raise error

    for root, folders, files in os.walk(folder, onerror=refuse, followlinks=True):
        if (real := os.path.realpath(root)) in seen:
            folders.clear()
            continue
        seen.add(real)
        yield from (Path(root) / name for name in files if not name.startswith("."))


class _Media:
    """The pictures and videos below a folder, found by relative path, by name or by name without suffix; letters
    with accents may be written either way.

    claimed: relative paths that are files of their own, and not to be found by their last name alone."""

    claimed = frozenset()

    def __init__(self, folder: Path):
        self.folder = folder
        self.files = sorted(path for path in walk(folder) if path.suffix.lower() in IMAGES | VIDEOS)
        self.named = defaultdict(list)
        for path in self.files:
            for name in {path.name, path.stem}:
                self.named[normalize("NFC", name)].append(path)

    def find(self, name: str) -> Path | None:
        """None when it is not there; ValueError when it could be several files."""
        if Path(name).suffix and (self.folder / name).is_file():
            return self.folder / name
        found = self.named.get(normalize("NFC", Path(name).name), [])
        found = [p for p in found if p.relative_to(self.folder).as_posix() not in self.claimed - {name}]
        if len(found) > 1:
            raise ValueError(
                f"{name} could be {found[0]} or {found[1]}: give a media folder that has it once"
            )
        return found[0] if found else None


def _locate(rows, media: _Media) -> tuple[list[Item], list[str]]:
    """Rows (name, captions, split) as items, the rows of one file together; and the names without a file."""
    paths, captions, splits = {}, defaultdict(list), {}
    for name, texts, split in rows:
        if name not in paths:
            paths[name] = media.find(name)
        if paths[name]:
            captions[paths[name]] += [line.strip() for line in texts if line.strip()]
            splits.setdefault(paths[name], split)
    items = [Item(str(path), tuple(texts), splits[path]) for path, texts in captions.items()]
    return items, [name for name, path in paths.items() if path is None]


def _read(path: Path):
    """(name, captions, split) for each entry of a JSON file or a table, not checked yet."""
    suffix = path.suffix.lower()
    if suffix in (".csv", ".tsv", ".txt"):
        return _of_table(_csv(path), path)
    if suffix == ".jsonl":
        return _of_table(_jsonl(path), path)
    try:
        content = json.loads(_text(path))
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is not valid JSON: {error}") from None
    has = set(content) if isinstance(content, dict) else set()
    try:
        if isinstance(content, list):
            return _of_table(content, path)
        if "images" in has and all("file_name" in row for row in content["images"]):
            return _coco(content, path)
        if "images" in has:
            return [
                (f"{row.get('filepath', '')}/{row['filename']}".lstrip("/"),
                 [sentence["raw"] for sentence in row["sentences"]], row.get("split"))
                for row in content["images"]
            ]  # fmt: skip
        if {"videos", "sentences"} <= has:
            return _msrvtt(content, path)
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} has an entry that is not as it should be: {error!r}") from None
    raise ValueError(
        f"{path} is none of COCO, Karpathy's split, MSR-VTT and VATEX: its keys are {sorted(has)[:8]}"
    )


def _text(path: Path) -> str:
    """A file's text, in UTF-8, or in UTF-16 as spreadsheets mark it. ValueError for any other."""
    content = path.read_bytes()
    try:
        return content.decode("utf-16" if content[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise ValueError(f"{path} is not in UTF-8 (line {line}): save it as UTF-8") from None


def _told(rows, key: str, known: set, path) -> dict:
    """Captions by the number or name that `key` gives; those of none that is `known` are warned of."""
    captions = defaultdict(list)
    for row in rows:
        captions[row[key]].append(row["caption"])
    if lost := captions.keys() - known:
        warnings.warn(
            f"{path} has captions of {len(lost)} that it does not list, {next(iter(lost))} first",
            stacklevel=2,
        )
    return captions


def _coco(content: dict, path):
    """Also of pictures that nobody has captioned yet (image_info_unlabeled2017.json)."""
    known = {row["id"] for row in content["images"]}
    captions = _told(content.get("annotations", []), "image_id", known, path)
    return [(row["file_name"], captions[row["id"]], None) for row in content["images"]]


def _msrvtt(content: dict, path):
    known = {row["video_id"] for row in content["videos"]}
    captions = _told(content["sentences"], "video_id", known, path)
    return [(row["video_id"], captions[row["video_id"]], row.get("split")) for row in content["videos"]]


def _csv(path: Path) -> list[dict]:
    """The rows of a table with a header, whose cells are kept apart by commas, semicolons, tabs or bars."""
    content = _text(path)
    header = content.partition("\n")[0]
    reader = csv.DictReader(
        io.StringIO(content, newline=""), delimiter=max(",;\t|", key=header.count), strict=True
    )
    rows = []
    try:
        for row in reader:
            if None in row:
                raise ValueError(
                    f"line {reader.line_num} of {path} has more cells than the first line: put a caption "
                    f'with a "{reader.reader.dialect.delimiter}" in quotes'
                )
            rows.append(row)
    except csv.Error as error:
        raise ValueError(f"{path} is not readable as CSV: line {reader.line_num}: {error}") from None
    return rows


def _jsonl(path: Path) -> list:
    rows = []
    for number, line in enumerate(_text(path).split("\n"), 1):
        try:
            rows += [json.loads(line)] if line.strip() else []
        except json.JSONDecodeError as error:
            raise ValueError(f"line {number} of {path} is not valid JSON: {error.msg}") from None
    return rows


def _of_table(rows: list, path):
    """(name, captions, split) for each row, an object whose names are those of columns."""
    found, columns = [], {}
    for number, row in enumerate(rows, 1):
        if not isinstance(row, dict):
            raise ValueError(f"entry {number} of {path} is no object with names")
        row = {(column or "").strip().lower(): value for column, value in row.items()}
        columns |= row
        name = next((row[column] for column in FILE_COLUMNS if row.get(column)), None)
        if name is None:
            raise ValueError(
                f"entry {number} of {path} names no file: call the column {FILE_COLUMNS[0]}, not one of "
                f"{', '.join(list(row)[:8])}"
            )
        texts = next((row[column] for column in CAPTION_COLUMNS if row.get(column)), [])
        found.append((name, texts, row.get("split")))
    others = columns.keys() - {*FILE_COLUMNS, "split", ""}
    if others and not others & {*CAPTION_COLUMNS}:
        warnings.warn(
            f"{path} has no column {CAPTION_COLUMNS[1]}: its files come without, whatever is in "
            f"{', '.join(sorted(others)[:8])}",
            stacklevel=2,
        )
    return found


class _Clips(Dataset):
    """Items as rows (frames, captions, references, number, numbers of the captions, what was broken).

    An unreadable file gives the next readable one's row in its place (with that one's number), so that batches
    stay whole and metrics, which count each number once, leave it out."""

    def __init__(self, items, rule, size, on_broken, seed=0, views=0):
        self.items, self.rule, self.size, self.on_broken, self.seed = items, rule, size, on_broken, seed
        self.views = views

    def __len__(self):
        return len(self.items)

    def draw(self, epoch, number, purpose):
        return np.random.RandomState([self.seed, epoch, number, purpose])

    def frames(self, number, view=0) -> Tensor:
        clip = read_clip(self.items[number].path, self.rule, self.draw(view, number, _FRAMES))
        return (
            cropped(clip, self.size, self.draw(view, number, _CROP))
            if self.views
            else center_crop(clip, self.size)
        )

    def readable(self, number, view=0):
        """(frames, number) of the first readable item from `number` on, and what is wrong with those before."""
        broken = []
        for step in range(len(self.items)):
            here = (number + step) % len(self.items)
            try:
                return self.frames(here, view), here, broken
            except BrokenFile as error:
                if self.on_broken == "error":
                    raise
                broken.append((self.items[here].path, str(error)))
        raise BrokenFile(f"none of {len(self.items)} files can be read; {broken[0][1]}")

    def __getitem__(self, number):
        frames, number, broken = self.readable(number)
        captions = self.items[number].captions
        return frames, list(captions[:1]) or [None], list(captions), number, [0 if captions else -1], broken


class _TrainClips(_Clips):
    """Training clips by (epoch, place, number), each with `count` of its own captions, other ones each epoch."""

    def __init__(self, *args, count, **options):
        super().__init__(*args, **options)
        self.count = count

    def __getitem__(self, key):
        epoch, _, number = key
        view = epoch % self.views if self.views else epoch
        frames, number, broken = self.readable(number, view)
        own = list(self.items[number].captions)
        chosen = self.draw(epoch, number, _CHOICE).permutation(len(own))[: self.count].tolist()
        chosen += [-1] * (self.count - len(chosen))
        place = number * self.views + view if self.views else number
        return frames, [None if c < 0 else own[c] for c in chosen], own, place, chosen, broken


class _PoolClips(_Clips):
    """All views of all clips, from number `start` to `stop`, each with `most` captions: its own, then missing ones.

    An unreadable file keeps its place as black frames without captions, which training never meets."""

    def __init__(self, *args, start, stop, most, **options):
        super().__init__(*args, **options)
        self.start, self.stop, self.most = start, stop, most

    def __len__(self):
        return self.stop - self.start

    def __getitem__(self, place):
        place, broken = self.start + place, []
        number, view = divmod(place, max(1, self.views))
        own = list(self.items[number].captions)
        try:
            frames = self.frames(number, view)
        except BrokenFile as error:
            if self.on_broken == "error":
                raise
            frames = torch.zeros(self.rule.frames, 3, self.size, self.size, dtype=torch.uint8)
            own, broken = [], [(self.items[number].path, str(error))]
        captions = own + [None] * (self.most - len(own))
        numbers = [*range(len(own)), *[-1] * (self.most - len(own))]
        return frames, captions, own, place, numbers, broken


def cropped(frames: Tensor, size: int, draw: np.random.RandomState) -> Tensor:
    """A random rectangle of frames [F, 3, H, W], the same in all, as [F, 3, size, size].

    At least half of the area, sides 3 : 4 to 4 : 3 (Szegedy et al. 2015, https://arxiv.org/abs/1409.4842, whose
    crops may be far smaller: these are still to show what the captions tell). Never mirrored, since captions say
    left and right.
    """
    height, width = frames.shape[-2:]
    area, stretch = draw.uniform(0.5, 1) * height * width, (4 / 3) ** draw.uniform(-0.5, 0.5)
    tall, wide = min(height, round(area**0.5 / stretch)), min(width, round(area**0.5 * stretch))
    top, left = draw.randint(height - tall + 1), draw.randint(width - wide + 1)
    return tv.resized_crop(frames, top, left, tall, wide, [size, size], tv.InterpolationMode.BICUBIC, True)


def center_crop(frames: Tensor, size: int) -> Tensor:
    """Frames [F, 3, H, W] as [F, 3, size, size]: the shorter side resized, the centre cut out, as networks do."""
    return tv.center_crop(resize(frames, size, float("inf")), [size, size]).contiguous()


def encode(captions, tokenizer, max_length: int) -> Tensor:
    """Captions as token ids [rows, T] long, cut to `max_length`; None is a start token and padding."""
    texts = [caption for caption in captions if caption is not None]
    told = iter(tokenizer(texts, truncation=True, max_length=max_length)["input_ids"] if texts else [])
    rows = [[tokenizer.cls_token_id] if caption is None else next(told) for caption in captions]
    tokens = torch.full((len(rows), max(map(len, rows))), tokenizer.pad_token_id, dtype=torch.long)
    for row, ids in zip(tokens, rows):
        row[: len(ids)] = torch.tensor(ids)
    return tokens


def _collate(rows, tokenizer, max_length):
    frames, captions, references, places, numbers, broken = zip(*rows)
    return {
        "frames": torch.stack(frames),
        "tokens": encode([text for row in captions for text in row], tokenizer, max_length),
        "clip": torch.tensor(places),
        "caption": torch.tensor([number for row in numbers for number in row]),
        "references": list(references),
        "broken": [entry for row in broken for entry in row],
    }


class CaptionedData(pl.LightningDataModule):
    """What `FileData` and `ShardData` share.

    Args:
        tokenizer: the teacher's, or where the teacher is loaded from ("glyphs", a folder, a hub id).
        frames, sampling, step: which frames of a training video make a clip, see `FrameRule`; validation and test
            take "random" as "uniform". With 1 frame of pictures [B, 1, 3, H, W] is what comes.
        image_size: side of the frames; the teacher's own makes them as it would itself.
        batch_size: of each process, where there are several.
        captions_per_clip: K in training, drawn anew for each epoch.
        seed: of shuffling, captions, random frames and crops.
        workers: loader processes.
        max_tokens: longest caption in tokens; default the tokenizer's `model_max_length`, 40 at most (as GIT's).
    """

    def __init__(
        self,
        tokenizer="glyphs",
        frames: int = 6,
        sampling: str = "uniform",
        step: int = 1,
        image_size: int = 224,
        batch_size: int = 16,
        captions_per_clip: int = 1,
        seed: int = 0,
        workers: int = 0,
        max_tokens: int | None = None,
    ):
        super().__init__()
        if min(batch_size, captions_per_clip, image_size) < 1:
            raise ValueError("batch_size, captions_per_clip and image_size must be at least 1")
        if isinstance(tokenizer, str | os.PathLike):
            tokenizer = text.load_tokenizer(checkpoints.resolve(tokenizer))
        self.tokenizer, self.max_tokens = tokenizer, max_tokens or min(40, tokenizer.model_max_length)
        self.rule = FrameRule(frames, sampling, step)
        self.fixed_rule = FrameRule(frames, "uniform" if sampling == "random" else sampling, step)
        self.image_size, self.batch_size, self.captions_per_clip = image_size, batch_size, captions_per_clip
        self.seed, self.workers = seed, workers
        self.sources = {}  # by role: train, val, test

    def setup(self, stage: str) -> None:
        """Lightning calls it. ValueError when the network's tokenizer has other words than the data's."""
        theirs = getattr(self.trainer.lightning_module, "tokenizer", None)
        if theirs and theirs.get_vocab() != self.tokenizer.get_vocab():
            raise ValueError(
                f"the data's tokenizer ({len(self.tokenizer)} words) is not the network's ({len(theirs)} words): "
                f"give {type(self).__name__}(tokenizer=...) the teacher's"
            )

    def val_dataloader(self):
        """Batches of the validation clips in order, each with its first caption for the loss; a fit may do without."""
        if "val" not in self.sources and self.trainer and self.trainer.state.fn == "fit":
            return []
        return self._fixed(self._of("val"))

    def test_dataloader(self):
        """Batches of the test clips in order, each with its first caption for the loss."""
        return self._fixed(self._of("test"))

    def _of(self, role: str):
        if role not in self.sources:
            raise ValueError(f"there is no {role} data: give {type(self).__name__}({role}=...)")
        return self.sources[role]

    def _options(self) -> dict:
        """Of every loader."""
        return {
            "batch_size": self.batch_size,
            "num_workers": self.workers,
            "collate_fn": partial(_collate, tokenizer=self.tokenizer, max_length=self.max_tokens),
            "generator": torch.Generator(),  # the global random numbers stay as they are
        }


class FileData(CaptionedData):
    """Batches of pictures and videos from files.

    A batch is a dict: "frames" uint8 [B, F, 3, image_size, image_size]; "tokens" long [B*K, T], rows grouped by
    clip, captions longer than `max_tokens` cut; "clip" long [B] and "caption" long [B*K], the numbers of clips and
    captions, -1 for a caption that a clip does not have (its row is a start token and padding); "references":
    B lists of all captions of the clips.

    Args:
        train, val, test: sources, see `read_items`; several may be the same one if it knows splits. Training
            needs no captions, the others do.
        media: the folder of the files, if it is not the sources' own.
        views: how many random crops of each training clip there are (see `cropped`), of which each epoch shows
            another; they and their random frames come again after so many epochs, so a cache can know them.
            0: none, the centre of the frames.
        limit: only the first so many clips of each source.
        on_broken: "skip" or "error". A file that is missing or cannot be read is named in a warning, kept in
            `broken` (path -> reason), and left out; or else a `BrokenFile` stops everything.
        options: as for `CaptionedData`.

    Raises FileNotFoundError and ValueError in one line.
    """

    def __init__(
        self,
        train: str | None = None,
        val: str | None = None,
        test: str | None = None,
        media: str | None = None,
        views: int = 0,
        limit: int | None = None,
        on_broken: str = "skip",
        **options,
    ):
        super().__init__(**options)
        if limit is not None and limit < 1:
            raise ValueError(f"limit must be at least 1, not {limit}")
        if views < 0:
            raise ValueError(f"views must be 0 (no random crops) or more, not {views}")
        if on_broken not in ("skip", "error"):
            raise ValueError(f'on_broken is "skip" or "error", not {on_broken!r}')
        self.on_broken, self.limit, self.views = on_broken, limit, views
        self.broken: dict[str, str] = {}
        self._read_sources({"train": train, "val": val, "test": test}, media)

    def _read_sources(self, sources: dict, media) -> None:
        whole = {}
        for role, source in sources.items():
            if source is None:
                continue
            items, missing = read_items(source, media, role)
            if missing:
                self._report_missing(missing, source)
            if not any(item.split for item in items):
                if source in whole:
                    raise ValueError(
                        f"{source} knows no splits: {whole[source]} and {role} would be the same"
                    )
                whole[source] = role
            if role != "train" and (mute := [item.path for item in items if not item.captions]):
                raise ValueError(
                    f"{mute[0]}, one of {role}'s {len(items)} clips, has no caption to score against"
                )
            self.sources[role] = items[: self.limit]

    def _report_missing(self, names: list[str], source) -> None:
        """As `_report`, in one warning: of a set that was collected from the web thousands may be gone."""
        reasons = {name: f"{name}, listed in {source}, is not there" for name in names}
        if self.on_broken == "error" or len(names) == 1:
            self._report(reasons.items())
            return
        self.broken |= reasons
        some = ", ".join(names[:NAMED]) + (f" and {len(names) - NAMED} more" if len(names) > NAMED else "")
        warnings.warn(
            f"left out, {len(self.broken)} so far: {len(names)} files listed in {source} are not there: {some}",
            stacklevel=2,
        )

    def _report(self, entries) -> None:
        """Keep account of files that cannot be used, and name each once."""
        for path, reason in entries:
            if self.on_broken == "error":
                raise BrokenFile(reason)
            if path not in self.broken:
                self.broken[path] = reason
                warnings.warn(f"left out, {len(self.broken)} so far: {reason}", stacklevel=2)

    def train_dataloader(self):
        """Batches of the training clips, shuffled anew in each epoch; the last one may be smaller."""
        items = self._of("train")
        clips = _TrainClips(items, *self._how(self.rule), self.seed, self.views, count=self.captions_per_clip)
        return self._loader(clips, _EpochSampler(len(items), self.seed, repeat=True))

    def _fixed(self, items: list[Item]):
        return self._loader(_Clips(items, *self._how(self.fixed_rule)))

    def _how(self, rule: FrameRule) -> tuple:
        return rule, self.image_size, self.on_broken

    @property
    def pool_size(self) -> int:
        """Clips that training can meet, each view one. ValueError when they look different in each epoch."""
        if self.rule.sampling == "random" and not self.views:
            raise ValueError('a cache needs frames that come again: use sampling="uniform", or some views')
        return len(self._of("train")) * max(1, self.views)

    def _pool(self, start: int, stop: int, most: int) -> _PoolClips:
        how = *self._how(self.rule), self.seed, self.views
        return _PoolClips(self._of("train"), *how, start=start, stop=stop, most=most)

    def pool_dataloader(self, start: int = 0, stop: int | None = None):
        """Batches of the training clips in order from clip `start` to `stop`, each with all its captions.

        K is the most that any clip has."""
        most = max(1, *(len(item.captions) for item in self._of("train")), 1)
        return self._loader(self._pool(start, min(stop or self.pool_size, self.pool_size), most))

    def fingerprint(self) -> dict:
        """What the pool's clips and captions depend on, and a checksum of some of the frames ("content")."""
        items, content, told = self._of("train"), hashlib.sha256(), hashlib.sha256()
        pool = self._pool(0, self.pool_size, most=0)
        for number in np.linspace(0, len(pool) - 1, SAMPLE, dtype=int).tolist():
            content.update(pool[number][0].numpy().tobytes())
        for item in items:
            told.update(repr((Path(item.path).name, item.captions)).encode())
        vocabulary = sorted(self.tokenizer.get_vocab().items(), key=lambda entry: entry[1])
        return {
            "data": type(self).__name__,
            "clips": len(items),
            "files and captions": told.hexdigest()[:16],
            "frames": f"{self.rule.frames} {self.rule.sampling} {self.rule.step}",
            "views": f"{self.views} from seed {self.seed}" if self.views else "0",
            "image_size": self.image_size,
            "vocabulary": hashlib.sha256(repr(vocabulary).encode()).hexdigest()[:16],
            "content": content.hexdigest()[:16],
        }

    def _loader(self, clips, sampler=None):
        kept = {"persistent_workers": self.workers > 0, "report": self._report}
        return ClipLoader(clips, sampler=sampler, **kept, **self._options())
