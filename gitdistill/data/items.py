"""Captioned data sets as lists of files: COCO's official JSON and Karpathy's split of it, MSR-VTT's and VATEX's JSON,
tables (CSV or JSON lines), and folders without captions."""

import csv
import io
import json
import os
import warnings
from collections import defaultdict
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from unicodedata import normalize

from gitdistill.data.video import IMAGES, VIDEOS

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

    Raises FileNotFoundError or ValueError in one line."""
    source = Path(source).expanduser()
    if not source.exists():
        raise FileNotFoundError(f"there is no {source}: give a JSON file, a table or a folder")
    folder = source if source.is_dir() else source.parent
    named = [folder / name for name in TABLES if (folder / name).is_file()]
    tables = named if source == folder else [source]
    if len(tables) > 1:
        raise ValueError(f"{source} has {tables[0].name} and {tables[1].name}: give one of them")
    media = Path(media or folder).expanduser()
    if not media.is_dir():
        raise FileNotFoundError(f"there is no folder {media} of pictures or videos")
    found, missing = _Media(media), []
    items = [Item(str(path)) for path in found.files]
    for table in tables:
        rows = [_checked(row, number, table) for number, row in enumerate(_read(table), 1)]
        found.claimed = {name for name, _, _ in rows}
        items, missing = _locate(_of_split(rows, source, split), found)
    if not items:
        lost = f": none of the {len(missing)} files it lists is in {media}, {missing[0]} first"
        raise FileNotFoundError(f"{source} has no pictures or videos{lost if missing else ''}")
    return items, missing


def _checked(row: tuple, number: int, source) -> tuple:
    """A row (name, captions, split) of texts alone; ValueError when it holds something else."""
    name, captions, split = row
    captions = captions or [] if isinstance(captions or [], list) else [captions]
    named = ("a file's name", [name]), ("a caption", captions), ("a split", [split or ""])
    for what, values in named:
        if wrong := [value for value in values if not isinstance(value, str)]:
            raise ValueError(
                f"entry {number} of {source}, {name!r}, has {wrong[0]!r} for {what}: give a text"
            )
    return name.strip().replace("\\", "/"), captions, (split or "").strip() or None


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
        what = f"{len(others)} of {len(rows)} entries of {source} are in no split"
        warnings.warn(f"{what}: {', '.join(sorted(set(others)))}", stacklevel=3)
    return chosen


def walk(folder: Path):
    """All files below a folder but hidden ones, through links to other folders, too, into each folder once."""
    seen = set()

    def fail(error: OSError):
        raise error

    for root, folders, files in os.walk(folder, onerror=fail, followlinks=True):
        if (real := os.path.realpath(root)) in seen:
            folders.clear()
            continue
        seen.add(real)
        yield from (Path(root) / name for name in files if not name.startswith("."))


class _Media:
    """The pictures and videos below a folder, found by relative path, by name or by name without suffix; letters with
    accents may be written either way. claimed: relative paths that are files of their own, and not to be found by
    their last name alone."""

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
            raise ValueError(f"{name} could be {found[0]} or {found[1]}: the media folder may have it once")
        return found[0] if found else None


def _locate(rows, media: _Media) -> tuple[list[Item], list[str]]:
    """Rows (name, captions, split) as items, the rows of one file together; and the names without a file."""
    paths, captions, splits = {}, defaultdict(list), {}
    for name, texts, split in rows:
        if name not in paths:
            paths[name] = media.find(name)
        if path := paths[name]:
            captions[path] += [line.strip() for line in texts if line.strip()]
            splits.setdefault(path, split)
    items = [Item(str(path), tuple(texts), splits[path]) for path, texts in captions.items()]
    return items, [name for name, path in paths.items() if path is None]


def _read(path: Path) -> list[tuple]:
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
            # COCO; also of pictures that nobody has captioned yet (image_info_unlabeled2017.json)
            captions = content.get("annotations", [])
            found = _joined(content["images"], "id", "file_name", captions, "image_id", path)
            return [(name, texts, None) for name, texts, _ in found]
        if "images" in has:
            return [_karpathy(row) for row in content["images"]]
        if {"videos", "sentences"} <= has:
            return _joined(content["videos"], "video_id", "video_id", content["sentences"], "video_id", path)
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} has an entry that is not as it should be: {error!r}") from None
    keys = sorted(has)[:8]
    raise ValueError(f"{path} is none of COCO, Karpathy's split, MSR-VTT and VATEX: its keys are {keys}")


def _karpathy(row: dict) -> tuple:
    name = f"{row.get('filepath', '')}/{row['filename']}".lstrip("/")
    return name, [sentence["raw"] for sentence in row["sentences"]], row.get("split")


def _joined(files: list, key: str, name: str, sentences: list, of: str, path) -> list[tuple]:
    """(name, captions, split) of each file; a caption is of the file whose `key` is what the caption has in `of`."""
    captions = defaultdict(list)
    for row in sentences:
        captions[row[of]].append(row["caption"])
    if lost := captions.keys() - {row[key] for row in files}:
        what = f"captions of {len(lost)} that it does not list, {next(iter(lost))} first"
        warnings.warn(f"{path} has {what}", stacklevel=4)
    return [(row[name], captions[row[key]], row.get("split")) for row in files]


def _text(path: Path) -> str:
    """A file's text, in UTF-8, or in UTF-16 as spreadsheets mark it. ValueError for any other."""
    content = path.read_bytes()
    try:
        return content.decode("utf-16" if content[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise ValueError(f"{path} is not in UTF-8 (line {line}): save it as UTF-8") from None


def _csv(path: Path) -> list[dict]:
    """The rows of a table with a header, whose cells are kept apart by commas, semicolons, tabs or bars."""
    content = _text(path)
    mark = max(",;\t|", key=content.partition("\n")[0].count)
    reader, rows = csv.DictReader(io.StringIO(content, newline=""), delimiter=mark, strict=True), []
    try:
        for row in reader:
            if None in row:
                where = f"line {reader.line_num} of {path}"
                raise ValueError(f'{where} has more cells than the first: quote captions with a "{mark}"')
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


def _of_table(rows: list, path) -> list[tuple]:
    """(name, captions, split) for each row, an object whose names are those of columns."""
    found, columns = [], {}
    for number, row in enumerate(rows, 1):
        if not isinstance(row, dict):
            raise ValueError(f"entry {number} of {path} is no object with names")
        row = {(column or "").strip().lower(): value for column, value in row.items()}
        columns |= row
        name = next((row[column] for column in FILE_COLUMNS if row.get(column)), None)
        if name is None:
            known = ", ".join(list(row)[:8])
            raise ValueError(f"entry {number} of {path} names no file: it has no column file, but {known}")
        captions = next((row[column] for column in CAPTION_COLUMNS if row.get(column)), [])
        found.append((name, captions, row.get("split")))
    others = columns.keys() - {*FILE_COLUMNS, "split", ""}
    if others and not others & {*CAPTION_COLUMNS}:
        names = ", ".join(sorted(others)[:8])
        what = f"no column {CAPTION_COLUMNS[1]}: its files come without, whatever is in {names}"
        warnings.warn(f"{path} has {what}", stacklevel=4)
    return found
