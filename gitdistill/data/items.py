"""Captioned data sets as lists of files: COCO's official JSON and Karpathy's split of it, MSR-VTT's and VATEX's JSON,
tables (CSV or JSON lines), and folders, with tables, with a text beside each file, or without captions."""

import csv
import gc
import io
import json
import os
import re
import warnings
from collections import Counter, defaultdict
from contextlib import contextmanager, suppress
from functools import cached_property
from itertools import chain
from pathlib import Path
from reprlib import repr as brief_repr
from unicodedata import normalize

from gitdistill.data.compact import Item, Items
from gitdistill.data.video import IMAGES, VIDEOS
from gitdistill.escape import brief, one_line
from gitdistill.models.storage import first_line, shorten

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
NUMBERED = re.compile(rf"({'|'.join(CAPTION_COLUMNS)})[ _-]?\d+")  # caption_0, caption_1 ...
TEXTS = {".csv", ".tsv", ".txt", ".json", ".jsonl", ".ndjson", ".parquet", ".arrow", ".xlsx", ".caption"}
TEXTS |= {".gz", ".zip"}
PACKED = {b"PAR1": "Parquet", b"ARROW1": "Arrow", b"PK\3\4": "a zip archive", b"\x1f\x8b": "gzip"}
PACKED |= {b"BZh": "bzip2", b"\xfd7zXZ": "xz", b"\x28\xb5\x2f\xfd": "zstd"}
SURROGATE = re.compile("[\ud800-\udfff]")  # half of a character, in JSON: no text


def read_items(source, media=None, split: str | None = None) -> tuple[Items, list[str]]:
    """The items of a data set in the order of its files, and the names it lists whose files are not there.

    Args:
        source: a JSON file (COCO, Karpathy, MSR-VTT or VATEX, told apart by what is in it); a table (.csv, .tsv,
            .txt, .jsonl, or a list of objects in .json) with a column `file`, optionally `caption`, `captions` or
            `caption_0`, `caption_1` ..., and `split`; or a folder. In a folder such a table is called captions.csv,
            captions.jsonl, metadata.csv ..., and lies in it or in folders below (names in a table start from where
            it lies); without one, pictures and videos are taken, their captions the lines of a .txt of the same name
            beside each. Folders called train, val or test are splits. What else looks like a table or text is named.
        media: the folder that holds the files, at any depth; by default the source's own.
        split: "train", "val" or "test", under whichever name the source has it ("restval" counts as training);
            a source without splits is taken whole.

    Raises FileNotFoundError or ValueError in one line."""
    return Listing(source, media).items(split)


class Listing:
    """A source that has been read, for the items of several of its splits. Arguments and errors as of `read_items`."""

    def __init__(self, source, media=None):
        with _no_collection():
            self.source, self.within, self.rows = _rows(source, media)

    def items(self, split: str | None = None) -> tuple[Items, list[str]]:
        """As `read_items`."""
        with _no_collection():
            items, missing = _locate(_of_split(self.rows, self.source, split))
        if not items:
            first = "".join(f", {brief(name)} first" for name in missing[:1])
            listed = f"none of the {len(missing)} files it lists is in {self.within}{first}"
            lost = f": {listed}" if missing else ""
            raise FileNotFoundError(f"{self.source} has no pictures or videos{lost}")
        return items, missing


@contextmanager
def _no_collection():
    """Without the search for cycles of garbage, which takes longer and longer as objects of a large list are made."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def _rows(source, media) -> tuple[Path, Path, list[tuple]]:
    """A source, the folder of its files, and its rows (name, captions, split, media)."""
    source = Path(os.path.expanduser(source))
    if not source.exists():
        raise FileNotFoundError(f"there is no {source}: give a JSON file, a table or a folder")
    folder = source if source.is_dir() else source.parent
    within = Path(os.path.expanduser(media or folder))
    if not within.is_dir():
        raise FileNotFoundError(f"there is no folder {within} of pictures or videos")
    found = _Media(within)
    return source, within, _of_folder(folder, found) if source == folder else _of_file(source, found)


def _of_file(table: Path, media: "_Media") -> list[tuple]:
    """The rows (name, captions, split, media) of a table or JSON file."""
    rows = [_checked(row, number, table) for number, row in enumerate(_read(table), 1)]
    media.claimed |= {name for name, _, _ in rows}
    return [(*row, media) for row in rows]


def _of_folder(folder: Path, found: "_Media") -> list[tuple]:
    """The rows of a folder's table, or of the tables below it and of the files that these do not cover."""
    listing = found if found.folder == folder else _Media(folder)
    tables, rows = {}, []
    for path in sorted(listing.texts, key=lambda path: (len(path.parts), path)):
        if path.name in TABLES and not tables.keys() & set(path.parents[1:]):
            if other := tables.get(path.parent):
                raise ValueError(f"{path.parent} has {other.name} and {path.name}: give one of them")
            tables[path.parent] = path
    for place, table in tables.items():
        media = _Media(place) if found is listing and place != folder else found
        entries = _of_file(table, media)
        if not any(split for _, _, split, _ in entries):
            above = place.relative_to(folder)
            entries = [(n, c, _split_folder(above / media.place(n)), media) for n, c, _, _ in entries]
        rows += entries
    unread = listing.texts - set(tables.values())
    for name in map(Path, found.files if found is listing or not tables else []):
        path = found.folder / name
        if not tables.keys() & set(path.parents):
            text = path.with_suffix(".txt")
            lines = _text(text).splitlines() if text in found.texts else []
            if any(c.isalpha() for line in lines for c in line):
                unread.discard(text)
            else:  # numbers, of boxes for example, are no captions
                lines = []
            rows.append((name.as_posix(), lines, _split_folder(name), found))
    if unread:
        names = shorten(sorted(str(path.relative_to(folder)) for path in unread))
        warnings.warn(one_line(f"not read in {folder}: {names}"), stacklevel=3)
    return rows


def _split_folder(path: Path) -> str | None:
    """The first folder of a path that is called like a split."""
    return next((part for part in path.parts[:-1] if part.lower() in chain(*SPLITS.values())), None)


def _checked(row: tuple, number: int, source) -> tuple:
    """A row (name, captions, split) of texts alone; ValueError when it holds something else."""
    name, captions, split = row
    captions = captions or [] if isinstance(captions or [], list) else [captions]
    named = ("a file's name", [name]), ("a caption", captions), ("a split", [split or ""])
    for what, values in named:
        for value in values:
            if not isinstance(value, str) or what != "a file's name" and SURROGATE.search(value):
                wrong = f"{brief_repr(name)}, has {brief_repr(value)} for {what}"
                raise ValueError(f"entry {number} of {source}, {wrong}: give a text")
    name = name.strip().replace("\\", "/")
    if name.startswith("/") or ".." in name.split("/") or re.match("[A-Za-z]:/", name):
        what = f"entry {number} of {source} names {brief(name)}"
        raise ValueError(f"{what}: give a path within the media folder")
    return name, captions, (split or "").strip() or None


def _of_split(rows: list[tuple], source, split: str | None) -> list[tuple]:
    """Those of the rows (name, captions, split, media) that are in a split; all if the source has none."""
    known = sorted({row[2] for row in rows if row[2]})
    if split is None or not known:
        return rows
    chosen = [row for row in rows if (row[2] or "").lower() in SPLITS[split]]
    if not chosen:
        raise ValueError(f"{source} has no split {split}: its splits are {shorten(list(map(brief, known)))}")
    others = [row[2] or "(empty)" for row in rows if (row[2] or "").lower() not in chain(*SPLITS.values())]
    if others:
        what = f"{len(others)} of {len(rows)} entries of {source} are in no split"
        warnings.warn(one_line(f"{what}: {shorten(sorted(set(map(brief, others))))}"), stacklevel=3)
    return chosen


def walk(folder: Path):
    """The relative paths, as texts, of all files below a folder but hidden ones, through links to other folders, too,
    into each folder once."""
    seen, start = set(), len(os.path.join(folder, ""))

    def fail(error: OSError):
        raise error

    for root, folders, files in os.walk(folder, onerror=fail, followlinks=True):
        if (real := os.path.realpath(root)) in seen:
            folders.clear()
            continue
        seen.add(real)
        yield from (os.path.join(root[start:], name) for name in files if not name.startswith("."))


class _Media:
    """The pictures and videos below a folder, found by relative path, by name or by name without suffix; letters with
    accents may be written either way. files: their relative paths. texts: the tables and texts there. claimed: relative
    paths that are files of their own, and not to be found by their last name alone."""

    claimed = frozenset()

    def __init__(self, folder: Path):
        self.folder, self.start = folder, str(folder / "x")[:-1]
        every, kinds = list(walk(folder)), IMAGES | VIDEOS
        suffixes = [os.path.splitext(name)[1].lower() for name in every]
        files = (name for name, suffix in zip(every, suffixes) if suffix in kinds)
        self.files = dict.fromkeys(sorted(files, key=lambda name: name.split("/")))
        texts = (folder / name for name, suffix in zip(every, suffixes) if suffix in TEXTS)
        self.texts = {path for path in texts if path.is_file()}

    @cached_property
    def named(self) -> dict[str, list[str]]:
        """The files by their last name, and by that without its suffix."""
        named = defaultdict(list)
        for name in self.files:
            last = normalize("NFC", os.path.basename(name))
            named[last].append(name)
            named[os.path.splitext(last)[0]].append(name)
        return named

    def find(self, name: str) -> str | None:
        """A file's path; None when it is not there; ValueError when it could be several files."""
        if name in self.files:
            return self.start + name
        with suppress(OSError):  # too long for a name
            if Path(name).suffix and (self.folder / name).is_file():
                return str(self.folder / name)
        found = self.named.get(normalize("NFC", Path(name).name), [])
        place = os.path.dirname(name)
        if place and (self.folder / place).is_dir():  # a folder that is there is meant
            found = [own for own in found if os.path.dirname(own) == os.path.normpath(place)]
        found = [self.start + own for own in found if own == name or own not in self.claimed]
        if len(found) > 1:
            raise ValueError(f"{name} could be {found[0]} or {found[1]}: the media folder may have it once")
        return found[0] if found else None

    def place(self, name: str) -> Path:
        """Where a file is, or would be, in the folder."""
        path = self.find(name)
        return Path(path).relative_to(self.folder) if path else Path(name)


def _locate(rows) -> tuple[Items, list[str]]:
    """Rows (name, captions, split, media) as items, the rows of one file together; and the names without a file."""
    paths, captions, splits = {}, defaultdict(list), {}
    for name, texts, split, media in rows:
        key = media.folder, name
        if key not in paths:
            paths[key] = media.find(name)
        if path := paths[key]:
            captions[path] += [line.strip() for line in texts if line.strip()]
            splits.setdefault(path, split)
    items = Items(Item(path, tuple(texts), splits[path]) for path, texts in captions.items())
    return items, [name for (_, name), path in paths.items() if path is None]


def _read(path: Path) -> list[tuple]:
    """(name, captions, split) for each entry of a JSON file or a table, not checked yet."""
    suffix = path.suffix.lower()
    if suffix in (".csv", ".tsv", ".txt"):
        return _of_table(_csv(path), path)
    if suffix == ".jsonl":
        return _of_table(_jsonl(path), path)
    content = _json(_text(path), path, object_hook=_slim)
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
            rows = content["images"]
            files = ["/".join(filter(None, (row.get("filepath"), row["filename"]))) for row in rows]
            found = [row["sentences"] for row in rows]
            captions = [
                list(texts) if isinstance(texts, tuple) else [t["raw"] for t in texts] for texts in found
            ]
            return [(name, texts, row.get("split")) for name, texts, row in zip(files, captions, rows)]
        if {"videos", "sentences"} <= has:
            return _joined(content["videos"], "video_id", "video_id", content["sentences"], "video_id", path)
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} has an entry that is not as it should be: {error!r}") from None
    keys = list(map(brief, sorted(has)[:8]))
    raise ValueError(f"{path} is none of COCO, Karpathy's split, MSR-VTT and VATEX: its keys are {keys}")


def _joined(files: list, key: str, name: str, sentences: list, of: str, path) -> list[tuple]:
    """(name, captions, split) of each file; a caption is of the file whose `key` is what the caption has in `of`."""
    captions = defaultdict(list)
    for row in sentences:
        captions[row[of]].append(row["caption"])
    if lost := captions.keys() - {row[key] for row in files}:
        what = f"captions of {len(lost)} that it does not list, {brief(str(next(iter(lost))))} first"
        warnings.warn(one_line(f"{path} has {what}"), stacklevel=4)
    return [(row[name], captions[row[key]], row.get("split")) for row in files]


def _text(path: Path) -> str:
    """A file's text, in UTF-8, or in UTF-16 as spreadsheets mark it. ValueError for any other."""
    content = path.read_bytes()
    if kind := next((kind for mark, kind in PACKED.items() if content.startswith(mark)), None):
        raise ValueError(f"{path} is {kind}, which is not read: unpack it, or save it as CSV or JSON lines")
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
        header = [column.strip().lower() for column in reader.fieldnames or [] if column.strip()]
        if twice := [column for column, count in Counter(header).items() if count > 1]:
            advice = "give each its own name, caption_0 for example"
            raise ValueError(f"{path} has two columns {brief(twice[0])}: {advice}")
        for row in reader:
            where = f"line {reader.line_num} of {path}"
            if None in row:
                raise ValueError(f'{where} has more cells than the first: quote captions with a "{mark}"')
            if lacking := [column for column, cell in row.items() if cell is None and column.strip()]:
                raise ValueError(f"{where} has fewer cells than the first: {brief(lacking[0])} is not in it")
            rows.append(row)
    except csv.Error as error:
        raise ValueError(f"{path} is not readable as CSV: line {reader.line_num}: {error}") from None
    return rows


def _jsonl(path: Path) -> list:
    lines = enumerate(_text(path).split("\n"), 1)
    return [_json(line, f"line {number} of {path}") for number, line in lines if line.strip()]


def _slim(row: dict) -> dict:
    """An object of a JSON file; one of Karpathy's split with its captions as a tuple, without their words and numbers,
    which would fill gigabytes."""
    sentences = row.get("sentences") if "filename" in row else None
    if isinstance(sentences, list) and all(isinstance(text, dict) and "raw" in text for text in sentences):
        row.pop("sentids", None)
        row["sentences"] = tuple(text["raw"] for text in sentences)
    return row


def _json(text: str, where, **options):
    try:
        return json.loads(text, **options)
    except RecursionError:
        raise ValueError(f"{where} is not valid JSON: it is nested too deeply") from None
    except ValueError as error:  # also for a number of very many digits
        raise ValueError(f"{where} is not valid JSON: {first_line(error)}") from None


def _captions(row: dict, where: str) -> list:
    """What the caption columns of a row hold; a cell may be a list in JSON."""
    found = next(([row[column]] for column in CAPTION_COLUMNS if row.get(column)), [])
    found += [value for column, value in row.items() if value and NUMBERED.fullmatch(column)]
    captions = []
    for value in found:
        if isinstance(value, str) and re.fullmatch(r"""\s*\[\s*(["'].*)?\]\s*""", value, re.DOTALL):
            value = _json(value, f'{where} has a list of captions that is not like ["a", "b"], and so')
        captions += value if isinstance(value, list) else [value]
    return captions


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
            known = ", ".join(map(brief, list(row)[:8]))
            raise ValueError(f"entry {number} of {path} names no file: it has no column file, but {known}")
        found.append((name, _captions(row, f"entry {number} of {path}"), row.get("split")))
    others = columns.keys() - {*FILE_COLUMNS, "split", ""}
    if others and not others & {*CAPTION_COLUMNS} and not any(map(NUMBERED.fullmatch, others)):
        names = ", ".join(map(brief, sorted(others)[:8]))
        what = f"no column {CAPTION_COLUMNS[1]}: its files come without, whatever is in {names}"
        warnings.warn(one_line(f"{path} has {what}"), stacklevel=4)
    return found
