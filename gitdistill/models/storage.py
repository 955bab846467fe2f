"""Checkpoint folders: config.json beside model.safetensors, read strictly, written whole or not at all."""

import json
import os
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

import safetensors.torch
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

CHECKSUM = "crc32"  # its name in the metadata of .safetensors files and among facts


def read_config(folder) -> dict:
    """The folder's config.json; FileNotFoundError or ValueError in one line."""
    path = Path(folder) / "config.json"
    if not path.is_file():
        raise FileNotFoundError(f"{folder} is no checkpoint folder: it has no config.json")
    return parse_metadata(path.read_bytes(), path)


def metadata_text(facts: dict) -> str:
    """Facts as JSON, with a checksum of them among them; `parse_metadata` reads it."""
    return json.dumps({**facts, CHECKSUM: metadata_checksum(facts)}, indent=1) + "\n"


def parse_metadata(text: str | bytes, where) -> dict:
    """The JSON object that was read from `where`; a ValueError naming that if there is none, or if there is a
    checksum among its facts that is not theirs."""
    try:
        facts = json.loads(text)
    except ValueError as error:
        raise ValueError(f"{where} is not valid JSON: {error}") from None
    if not isinstance(facts, dict):
        raise ValueError(f"{where} must hold a JSON object, not a {type(facts).__name__}")
    if facts.pop(CHECKSUM, None) not in (None, metadata_checksum(facts)):
        raise ValueError(f"{where} is damaged, its facts have another checksum")
    return facts


def metadata_checksum(facts: dict) -> str:
    """CRC-32 of a JSON object, however it is laid out, as eight hexadecimal digits."""
    return f"{zlib.crc32(json.dumps(facts, sort_keys=True).encode()):08x}"


def read_weights(path) -> dict[str, Tensor]:
    """The tensors of one .safetensors file or PyTorch pickle (its `model` or `state_dict`, if it has one).

    FileNotFoundError or ValueError in one line. A changed byte is noticed where there is a checksum: in what
    `write_folder` wrote, and in PyTorch's own files.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"there is no weights file {path}")
    try:
        if path.suffix == ".safetensors":
            return _read_safetensors(path)
        if zipfile.is_zipfile(path):
            check_records(path)
        weights = torch.load(path, map_location="cpu", weights_only=True)
    except (SafetensorError, RuntimeError, EOFError, ValueError, OSError, KeyError) as error:
        raise ValueError(f"{path} is not readable as weights: {first_line(error)}") from None
    except Exception as error:  # pickle.UnpicklingError and whatever else a pickle can hold
        raise ValueError(f"{path} is not a plain PyTorch state dict: {first_line(error)}") from None
    for key in ("model", "state_dict"):
        if isinstance(weights, dict) and isinstance(weights.get(key), dict):
            weights = weights[key]
    if not isinstance(weights, dict) or not all(isinstance(value, Tensor) for value in weights.values()):
        raise ValueError(f"{path} is not a plain PyTorch state dict")
    return weights


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    tensors = safetensors.torch.load_file(path)
    with safe_open(path, "pt") as file:
        known = (file.metadata() or {}).get(CHECKSUM)
    if known not in (None, checksum(tensors)):
        raise ValueError("it is damaged, its tensors have another checksum")
    return tensors


def checksum(tensors: dict[str, Tensor]) -> str:
    """CRC-32 of tensors on the CPU, their names, shapes and types, as eight hexadecimal digits."""
    value = 0
    for name in sorted(tensors):
        tensor = tensors[name]
        value = zlib.crc32(f"{name} {list(tensor.shape)} {tensor.dtype}".encode(), value)
        value = zlib.crc32(tensor.reshape(-1).view(torch.uint8).numpy(), value)
    return f"{value:08x}"


def check_records(path) -> None:
    """A ValueError if a record of what torch.save wrote has changed; torch does not look at its own checksums."""
    with zipfile.ZipFile(path) as archive:
        if damaged := archive.testzip():
            raise ValueError(f"it is damaged, {damaged} in it has another checksum")
        for record in archive.infolist():
            if record.external_attr & 0x10:  # "a folder": torch would hand out memory as it finds it
                raise ValueError(f"it is damaged, {record.filename} in it is no file")


def fill(
    module: nn.Module, weights: dict[str, Tensor], source, spell: Callable[[str], str] = lambda key: key
) -> None:
    """Copy `weights` into `module`, all or none; a ValueError names keys missing, left over or misshapen.

    `spell` gives a key's name in the file, for the message.
    """
    own = module.state_dict()
    wrong = {
        "missing": [spell(key) for key in own if key not in weights],
        "unexpected": [spell(key) for key in weights if key not in own],
        "misshapen": [
            f"{spell(key)} {list(weights[key].shape)} instead of {list(own[key].shape)}"
            for key in own
            if key in weights and weights[key].shape != own[key].shape
        ],
    }
    complaints = [f"{kind}: {shorten(keys)}" for kind, keys in wrong.items() if keys]
    if complaints:
        raise ValueError(f"the weights of {source} do not fit; " + "; ".join(complaints))
    module.load_state_dict(weights)


def write_folder(folder, config: dict, weights: dict[str, Tensor], dtype: torch.dtype | None = None) -> None:
    """Write config.json and model.safetensors, both whole or neither; an OSError in one line says why not.

    `dtype` (float16, say) is what floating tensors are stored as; None keeps theirs. The tensors' checksum goes
    into the metadata of model.safetensors.
    """
    stored = {key: stored_tensor(value, dtype) for key, value in weights.items()}
    text, metadata = json.dumps(config, indent=2) + "\n", {"format": "pt", CHECKSUM: checksum(stored)}
    write_whole(
        folder,
        {
            "config.json": lambda path: path.write_text(text),
            "model.safetensors": lambda path: safetensors.torch.save_file(stored, path, metadata=metadata),
        },
    )


def write_whole(folder, writers: dict[str, Callable[[Path], object]]) -> None:
    """Write several files of a folder, all or none: each under a temporary name first, then all renamed.

    `writers` maps a file's name to a function that writes to the path it is given. Whatever goes wrong, an
    interrupt included, older files stay as they were and nothing partial is left. An OSError in one line says
    that the disk is full or the folder cannot be written.
    """
    folder = Path(folder)
    new = not folder.exists()
    temporary = {folder / name: folder / f".{name}.{os.getpid()}.tmp" for name in writers}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, write in writers.items():
            path = temporary[folder / name]
            path.touch()
            mode = path.stat().st_mode  # what the umask says; safetensors lets nobody else read
            write(path)
            path.chmod(mode)
    except BaseException as error:
        for path in temporary.values():
            if path.exists():
                path.unlink()
        if new and folder.is_dir() and not any(folder.iterdir()):
            folder.rmdir()
        if isinstance(error, OSError | SafetensorError):
            raise OSError(f"could not save to {folder}, nothing was written: {first_line(error)}") from error
        raise
    try:
        _rename(temporary)
    except (
        KeyboardInterrupt
    ):  # all files are whole: an old one beside a new one would be worse than finishing
        _rename(temporary)
        raise


def _rename(temporary: dict[Path, Path]) -> None:
    for target, path in temporary.items():
        if path.exists():
            path.replace(target)


def stored_tensor(value: Tensor, dtype: torch.dtype | None) -> Tensor:
    """A tensor as safetensors wants it: on the CPU, contiguous, floating ones in `dtype`."""
    value = value.detach().cpu()
    return (value.to(dtype) if dtype and value.is_floating_point() else value).contiguous()


def shorten(keys: list[str], shown: int = 6) -> str:
    """The first few of many keys, none twice."""
    keys = list(dict.fromkeys(keys))
    more = f" and {len(keys) - shown} more" if len(keys) > shown else ""
    return ", ".join(keys[:shown]) + more


def first_line(error: BaseException) -> str:
    """What an error says, in one line."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]
