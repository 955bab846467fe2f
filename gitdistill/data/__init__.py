"""People's own data: `video` reads pictures and videos, `files` captioned sets, `shards` sets packed for streaming."""

from importlib import import_module

_HOMES = {
    "FileData": "gitdistill.data.files",
    "FrameRule": "gitdistill.data.video",
    "ShardData": "gitdistill.data.shards",
}
__all__ = [*_HOMES]


def __getattr__(name: str):
    """Import a public name when it is first asked for: reading files needs no Lightning."""
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'gitdistill.data' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
