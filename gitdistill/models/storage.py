"""Checkpoint folders: config.json beside model.safetensors, read strictly, written whole or not at all."""

import json
import pickle
import shutil
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from types import UnionType
from typing import Union, get_args, get_origin

import safetensors.torch
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from torch.nn.modules.module import register_module_module_registration_hook
from torch.serialization import get_unsafe_globals_in_checkpoint

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


def read_config(folder) -> dict:
    """The folder's config.json; FileNotFoundError or ValueError in one line, also for sizes that no network has."""
    path = Path(folder) / "config.json"
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
    """What `torch.save` wrote to `path`, on the CPU: tensors and plain values, no Python objects that could run code.

    FileNotFoundError or ValueError in one line.
    """
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
    """The tensors of a .safetensors file or PyTorch pickle (its `model` or `state_dict`, if it has one).

    FileNotFoundError or ValueError in one line.
    """
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


def build(make: Callable[[], nn.Module], weights: dict[str, Tensor], source, spell=str) -> nn.Module:
    """The module that `make` builds from what a file says, with `weights`; `spell` is as for `check_fit`.

    It is built without memory first: sizes and numbers of layers that the weights do not have cost nothing. A
    ValueError in one line.
    """
    left = 20_000 + 10 * len(weights)  # timm builds parts that it then leaves out

    def count(*_):
        nonlocal left
        left -= 1
        if left < 0:
            raise ValueError("it has more layers than there are weights")

    hook = register_module_module_registration_hook(count)
    try:
        with torch.device("meta"):
            sketch = make()
    except Exception as error:  # sizes that are wrong show in many ways
        raise ValueError(f"{source} describes no network: {first_line(error)}") from error
    finally:
        hook.remove()
    check_fit(sketch, weights, source, spell)
    module = make()
    module.load_state_dict(weights)
    return module


def fill(module: nn.Module, weights: dict[str, Tensor], source) -> None:
    """Copy `weights` into `module`, all or none, see `check_fit`."""
    check_fit(module, weights, source)
    module.load_state_dict(weights)


def check_fit(module: nn.Module, weights: dict[str, Tensor], source, spell=str) -> None:
    """A ValueError naming the keys of `weights` that do not fit, as the file `spell`s them."""
    own = module.state_dict()
    shapes = {key: (list(weights[key].shape), list(own[key].shape)) for key in own if key in weights}
    wrong = {
        "missing": [spell(key) for key in own if key not in weights],
        "unexpected": [spell(key) for key in weights if key not in own],
        "misshapen": [f"{spell(key)} {a} instead of {b}" for key, (a, b) in shapes.items() if a != b],
    }
    complaints = [f"{kind}: {shorten(keys)}" for kind, keys in wrong.items() if keys]
    if complaints:
        raise ValueError(f"the weights of {source} do not fit; " + "; ".join(complaints))


def write_folder(folder, config: dict, weights: dict[str, Tensor], dtype: torch.dtype | None = None) -> None:
    """`write_whole` of config.json and model.safetensors; floating tensors as `dtype`, by default their own."""
    stored = {name: value.detach().cpu().contiguous() for name, value in weights.items()}
    if dtype:
        stored = {name: x.to(dtype) if x.is_floating_point() else x for name, x in stored.items()}
    text, metadata = json.dumps(config, indent=2) + "\n", {"format": "pt", CHECKSUM: checksum(stored)}
    writers = {
        "config.json": lambda path: path.write_text(text),
        "model.safetensors": lambda path: safetensors.torch.save_file(stored, path, metadata=metadata),
    }
    write_whole(folder, writers)


def write_whole(folder, writers: dict[str, Callable[[Path], object]]) -> None:
    """Write files of a folder, all or none: beside their place, then renamed. A full disk is an OSError in one line.

    `writers` maps a file's name to a function that writes to the path it is given.
    """
    folder = Path(folder)
    place = folder if folder.is_dir() else folder.parent  # on the same disk, so that renaming works
    try:
        place.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(prefix=SCRATCH, dir=place) as scratch:
            for name, write in writers.items():
                path = Path(scratch, name)
                path.touch()
                mode = path.stat().st_mode  # as the umask says; safetensors lets nobody else read its files
                write(path)
                path.chmod(mode)
            folder.mkdir(exist_ok=True)
            try:
                _move_files(scratch, folder)
            except KeyboardInterrupt:  # an old file beside a new one would be worse than finishing
                _move_files(scratch, folder)
                raise
    except (OSError, SafetensorError) as error:
        raise OSError(f"could not save to {folder}, nothing was written: {first_line(error)}") from error


def remove_leftovers(folder) -> None:
    """Remove what killed calls of `write_whole` left in a folder that nobody else is writing to."""
    for path in Path(folder).glob(f"{SCRATCH}*"):
        shutil.rmtree(path)


def _move_files(source: str, target: Path) -> None:
    for path in Path(source).iterdir():
        path.replace(target / path.name)


def shorten(keys: list[str], shown: int = 6) -> str:
    """The first few of many keys, none twice."""
    keys = list(dict.fromkeys(keys))
    return ", ".join(keys[:shown]) + (f" and {len(keys) - shown} more" if len(keys) > shown else "")


def first_line(error: BaseException) -> str:
    """The first line of an error's message."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]
