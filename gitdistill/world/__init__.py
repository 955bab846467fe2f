"""The embedded world: `grammar` writes and checks captions, `scenes` draws clips, `module` feeds both to Lightning,
`pretrain` trains the networks in data/."""

from importlib import import_module

_HOMES = {
    "Clip": "gitdistill.world.scenes",
    "GlyphClips": "gitdistill.world.scenes",
    "GlyphData": "gitdistill.world.module",
    "Scene": "gitdistill.world.scenes",
    "Thing": "gitdistill.world.scenes",
    "glyph_tokenizer": "gitdistill.world.module",
}
__all__ = [*_HOMES]


def __getattr__(name: str):
    """Import a public name when it is first asked for: the grammar needs neither Lightning nor transformers."""
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'gitdistill.world' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
