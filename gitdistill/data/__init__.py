"""The data that comes with the project: `grammar` writes and checks captions, `glyphs` draws clips, `module`
feeds both to Lightning. And the data that others have: `video` reads pictures and videos, `files` captioned sets,
`shards` sets packed for streaming."""

from importlib import import_module

_HOMES = {
    "Clip": "gitdistill.data.glyphs",
    "FileData": "gitdistill.data.files",
    "FrameRule": "gitdistill.data.video",
    "GlyphClips": "gitdistill.data.glyphs",
    "GlyphData": "gitdistill.data.module",
    "Scene": "gitdistill.data.glyphs",
    "ShardData": "gitdistill.data.shards",
    "Thing": "gitdistill.data.glyphs",
    "glyph_tokenizer": "gitdistill.data.module",
}
__all__ = [*_HOMES]


def __getattr__(name: str):
    """Import a public name when it is first asked for: the grammar needs neither Lightning nor transformers."""
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'gitdistill.data' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
