"""Checkpoint folders: config.json beside model.safetensors, read strictly, written whole or not at all.

What cannot be read is a FileNotFoundError or a ValueError in one line.
"""

import ctypes
import json
import os
import pickle
import shutil
import zipfile
import zlib
from collections.abc import Callable
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from types import UnionType
from typing import Union, get_args, get_origin

import safetensors.torch
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor
from torch.serialization import get_unsafe_globals_in_checkpoint

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

CHECKSUM = "crc32"  # its name in metadata
JSON_BYTES = 10**8  # no metadata is longer
# The largest sizes that are read, by parts of their names.
SIZES = {
    "window": 32,
    "depth": 1000,
    "layers": 1000,
    "image_size": 2048,
    "img_size": 2048,
    "max_positions": 10_000,
}
SIZES[""] = 10**6
SCRATCH = ".gitdistill-"  # how temporary folders are called
MANIFEST = "gitdistill.json"  # holds the checksums of a student's other files, as "files"
EDITED = "README.md"  # people may change it, and nobody loads it


def read_config(folder) -> dict:
    """The folder's config.json; FileNotFoundError or ValueError in one line, also for sizes that no network has."""
    path = Path(folder) / "config.json"
    for name, known in listed_files(Path(folder)).items():
        if name != EDITED and not (path.parent / name).is_file():
            raise ValueError(f"{folder} lacks {name}, which {MANIFEST} lists: it was not copied whole")
        if name != EDITED and file_checksum(path.parent / name) != known:
            raise ValueError(f"{path.parent / name} is damaged: {MANIFEST} has another checksum")
    if not path.is_file():
        raise FileNotFoundError(f"{folder} is no checkpoint folder: it has no config.json")
    config = read_json(path)
    ahead = list(config.items())
    while ahead:
        name, value = ahead.pop()
        most = next(most for part, most in SIZES.items() if part in name)
        if isinstance(value, dict | list):
            ahead += value.items() if isinstance(value, dict) else [(name, part) for part in value]
        elif isinstance(value, int | float) and not abs(value) <= most:
            raise ValueError(f"{path}: {name} is {value}, but at most {most} is read")
    return config


def read_json(path: Path) -> dict:
    """The JSON object of a file, see `parse_metadata`."""
    if (size := path.stat().st_size) > JSON_BYTES:
        raise ValueError(f"{path} has {size / 1e6:.0f} MB: that is no metadata")
    return parse_metadata(path.read_bytes(), path)


def listed_files(folder: Path) -> dict[str, str]:
    """Checksums of a folder's files by name, as its manifest lists them; ValueError if it is damaged."""
    path = folder / MANIFEST
    files = read_json(path).get("files", {}) if path.is_file() else {}
    if not fits(files, dict[str, str]) or any(Path(name).name != name for name in files):
        raise ValueError(f"{path} is damaged: files must be names with checksums")
    return files


def manifest(metadata: dict, path: Path) -> None:
    """Write `metadata` with the checksums of all files beside `path`."""
    others = [file for file in path.parent.iterdir() if file.is_file() and file != path]
    files = {file.name: file_checksum(file) for file in others}
    path.write_text(metadata_text(metadata | {"files": files}))


def file_checksum(path: Path) -> str:
    """CRC-32 of a file, as eight hexadecimal digits."""
    value = 0
    with path.open("rb") as file:
        while part := file.read(2**20):
            value = zlib.crc32(part, value)
    return f"{value:08x}"


def kind_of(config: dict) -> str:
    """What a config.json says that it describes, for messages."""
    named = config.get("architecture") or config.get("model_type")
    return f"{named!r:.60}" if named else "nothing that is known here"


def check_fields(fields: dict, kinds: dict[str, type], where, optional=()) -> None:
    """A ValueError naming `where` unless `fields` has the names and types of `kinds`, those of `optional` or not."""
    wrong = {
        "lacks": [name for name in kinds if name not in fields and name not in optional],
        "holds unknown": [name for name in fields if name not in kinds],
        "holds values of another type:": [
            f"{name} is {str(fields[name]):.40}"
            for name in kinds
            if name in fields and not fits(fields[name], kinds[name])
        ],
    }
    if complaints := [f"{kind} {shorten(names)}" for kind, names in wrong.items() if names]:
        raise ValueError(f"{where} {'; '.join(complaints)}")


def fits(value, kind) -> bool:
    """Whether a value from JSON is of a type such as `int`, `list[int]`, `dict[str, float]` or `int | None`."""
    parts, origin = get_args(kind), get_origin(kind) or kind
    if origin in (Union, UnionType):
        return any(fits(value, part) for part in parts)
    if origin in (list, tuple):
        return isinstance(value, list) and all(fits(part, parts[0]) for part in value)
    if origin is dict and parts:
        return isinstance(value, dict) and all(fits(part, parts[1]) for part in value.values())
    return type(value) in ((int, float) if kind is float else (kind,))  # a bool is no int


def metadata_text(metadata: dict) -> str:
    """Metadata as JSON with a checksum, for `parse_metadata`."""
    return json.dumps({**metadata, CHECKSUM: metadata_checksum(metadata)}, indent=1) + "\n"


def parse_metadata(text: str | bytes, where) -> dict:
    """The JSON object `text`; a ValueError naming `where` if it is none, or does not fit the checksum in it."""
    try:
        metadata = json.loads(text)
        known = metadata.pop(CHECKSUM, None) if isinstance(metadata, dict) else None
        actual = metadata_checksum(metadata)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{where} is not valid JSON: {error}") from None
    if not isinstance(metadata, dict):
        raise ValueError(f"{where} must hold a JSON object, not a {type(metadata).__name__}")
    if known not in (None, actual):
        raise ValueError(f"{where} is damaged: its content has another checksum")
    return metadata


def metadata_checksum(metadata: dict) -> str:
    """CRC-32 of a JSON object, as eight hexadecimal digits."""
    return f"{zlib.crc32(json.dumps(metadata, sort_keys=True).encode()):08x}"


def checksum(tensors: dict[str, Tensor]) -> str:
    """CRC-32 of tensors on the CPU, their names, shapes and types, as eight hexadecimal digits."""
    value = 0
    for name, tensor in sorted(tensors.items()):
        value = zlib.crc32(f"{name} {list(tensor.shape)} {tensor.dtype}".encode(), value)
        value = zlib.crc32(tensor.reshape(-1).view(torch.uint8).numpy(), value)
    return f"{value:08x}"


def load_torch(path):
    """What `torch.save` wrote to `path`, on the CPU: tensors and plain values, no objects that could run code."""
    if not Path(path).is_file():
        raise FileNotFoundError(f"there is no file {path}")
    whole = False
    try:
        if whole := zipfile.is_zipfile(path):  # torch reads neither the checksums of records nor their kind
            with zipfile.ZipFile(path) as archive:
                if archive.testzip() or any(record.external_attr & 0x10 for record in archive.infolist()):
                    raise ValueError("one of its records has changed")
        return torch.load(path, map_location="cpu", weights_only=True)
    except (MemoryError, PermissionError):
        raise
    except Exception as error:  # damage shows in many ways
        if whole and isinstance(error, pickle.UnpicklingError):
            objects = shorten(get_unsafe_globals_in_checkpoint(path))
            raise ValueError(f"{path} is refused: its Python objects may be unsafe: {objects}") from None
        raise ValueError(f"{path} is damaged or no PyTorch file: {first_line(error)}") from None


def read_weights(path) -> dict[str, Tensor]:
    """The tensors of a .safetensors file or PyTorch pickle (its `model` or `state_dict`, if it has one)."""
    if not Path(path).is_file():  # but a pipe, for example
        raise FileNotFoundError(f"there is no file {path}")
    if Path(path).suffix == ".safetensors":
        return _read_safetensors(path)
    weights = load_torch(path)
    for key in ("model", "state_dict"):
        if isinstance(weights, dict) and isinstance(weights.get(key), dict):
            weights = weights[key]
    if not isinstance(weights, dict) or not all(isinstance(value, Tensor) for value in weights.values()):
        raise ValueError(f"{path} is not a plain PyTorch state dict")
    return weights


def _read_safetensors(path) -> dict[str, Tensor]:
    try:
        with safe_open(path, "pt") as file:
            stored = (file.metadata() or {}).get(CHECKSUM)
        tensors = safetensors.torch.load_file(path)
    except SafetensorError as error:
        raise ValueError(f"{path} is damaged or no safetensors file: {first_line(error)}") from None
    if stored and stored != checksum(tensors):
        raise ValueError(f"{path} is damaged: its tensors have another checksum")
    return tensors


def output_folder(name) -> Path:
    """A folder to write to; ValueError for an empty name, which `Path` would take for the current folder."""
    if not os.fspath(name):
        raise ValueError('the folder to write to has an empty name: the current one is called "."')
    return Path(name).expanduser()


def write_folder(folder, config: dict, weights: dict[str, Tensor], dtype: torch.dtype | None = None) -> None:
    """`write_whole` of `network_files`."""
    write_whole(folder, network_files(config, weights, dtype))


def network_files(
    config: dict, weights: dict[str, Tensor], dtype: torch.dtype | None = None
) -> dict[str, Callable]:
    """Writers of config.json and model.safetensors; floating tensors as `dtype`, by default their own."""
    stored = {name: value.detach().cpu().contiguous() for name, value in weights.items()}
    if dtype:
        stored = {name: x.to(dtype) if x.is_floating_point() else x for name, x in stored.items()}
    text, metadata = json.dumps(config, indent=2) + "\n", {"format": "pt", CHECKSUM: checksum(stored)}
    return {
        "config.json": lambda path: path.write_text(text),
        "model.safetensors": lambda path: safetensors.torch.save_file(stored, path, metadata=metadata),
    }


def write_whole(folder, writers: dict[str, Callable[[Path], object]]) -> None:
    """Write files of a folder, all or none; its other files stay. A full disk is an OSError in one line.

    `writers` maps a file's name to a function that writes to the path it is given. One file is written beside its
    place, then renamed. Several make a new folder, which changes places with the old one in one step; where that is
    impossible (a mounted folder, the current one, an old system), their files are renamed one by one.
    """
    target = output_folder(folder).resolve()
    inside = target.is_dir() and (len(writers) == 1 or not _is_movable(target))
    place = target if inside else target.parent  # on the same disk, so that renaming works
    try:
        place.mkdir(parents=True, exist_ok=True)
        with _scratch(place) as scratch:
            new = scratch / "new"
            new.mkdir()
            for name, write in writers.items():
                path = new / name
                path.touch()
                mode = path.stat().st_mode  # as the umask says; safetensors lets nobody else read its files
                write(path)
                path.chmod(mode)
            if len(writers) > 1:
                _list_again(target, new)
            if inside or not _exchange(new, target):
                try:
                    _move_files(new, target)
                except KeyboardInterrupt:  # an old file beside a new one would be worse than finishing
                    _move_files(new, target)
                    raise
    except (OSError, SafetensorError) as error:
        raise OSError(f"could not save to {folder}, nothing was written: {first_line(error)}") from error


def _is_movable(folder: Path) -> bool:
    here = Path.cwd()
    busy = folder in (here, *here.parents) or os.path.ismount(folder)
    return not busy and os.access(folder.parent, os.W_OK)


def _list_again(target: Path, new: Path) -> None:
    """Let the new folder's manifest be right when files are replaced that the old one lists."""
    if (old := _listed_before(target)) and not (new / MANIFEST).exists():
        files = {name: file_checksum(new / name) for name in old if (new / name).exists()}
        metadata = read_json(target / MANIFEST) | {"files": old | files}
        (new / MANIFEST).write_text(metadata_text(metadata))


def _listed_before(target: Path) -> dict[str, str]:
    try:
        return listed_files(target)
    except ValueError:  # a damaged folder may be written anew
        return {}


def _exchange(new: Path, target: Path) -> bool:
    """Put a folder in the place of another in one step, with the files that the other's manifest does not list.

    False, and nothing has changed, where the system cannot do that.
    """
    if not target.exists():
        with suppress(OSError):  # another process came first
            new.rename(target)
            return True
    ours = {path.name for path in new.iterdir()} | (_listed_before(target).keys() - listed_files(new).keys())

    def ignore(folder: str, names: list[str]) -> set[str]:
        return {
            name for name in names if folder == str(target) and (name in ours or name.startswith(SCRATCH))
        }

    shutil.copytree(target, new, symlinks=True, ignore=ignore, copy_function=_link, dirs_exist_ok=True)
    system, names = ctypes.CDLL(None, use_errno=True), (os.fsencode(new), os.fsencode(target))
    if hasattr(system, "renameat2"):  # Linux: from the current folder, RENAME_EXCHANGE
        code = system.renameat2(-100, names[0], -100, names[1], 2)
    else:  # macOS: RENAME_SWAP
        code = system.renamex_np(*names, 2) if hasattr(system, "renamex_np") else -1
    if code == 0:
        for path in new.iterdir():  # what others wrote in the meantime
            if path.name not in ours and not (target / path.name).exists():
                path.rename(target / path.name)
    return code == 0


def _link(source: str, target: str) -> None:
    try:
        os.link(source, target, follow_symlinks=False)
    except OSError:  # a disk without links
        shutil.copy2(source, target)


@contextmanager
def lock(folder: Path):
    """Whether nobody else holds a lock on this folder; if so, this process does until the end, or until it dies."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        free = True
        with suppress(OSError, AttributeError):  # some disks and systems know no locks
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                free = False
        yield free
    finally:
        os.close(descriptor)


@contextmanager
def _scratch(place: Path):
    """A temporary folder in `place`, removed at the end; those of killed processes are removed first."""
    remove_leftovers(place)
    with ExitStack() as stack:
        held = False
        while not held:
            folder = TemporaryDirectory(prefix=SCRATCH, dir=place, ignore_cleanup_errors=True)
            scratch = Path(stack.enter_context(folder))
            with suppress(FileNotFoundError):  # another process took it for a leftover
                held = stack.enter_context(lock(scratch)) and scratch.is_dir()
        yield scratch


def remove_leftovers(folder) -> None:
    """Remove the temporary folders of `write_whole` that no process uses any more."""
    for path in Path(folder).glob(f"{SCRATCH}*"):
        with suppress(FileNotFoundError), lock(path) as free:
            if free:
                shutil.rmtree(path, ignore_errors=True)


def _move_files(source: Path, target: Path) -> None:
    for path in source.iterdir():
        path.replace(target / path.name)


def shorten(keys: list[str], shown: int = 6) -> str:
    """The first few of many keys, none twice."""
    keys = list(dict.fromkeys(keys))
    return ", ".join(keys[:shown]) + (f" and {len(keys) - shown} more" if len(keys) > shown else "")


def first_line(error: BaseException) -> str:
    """The first line of an error's message."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]
