"""The embedded world: `grammar` writes captions, `facts` checks them, `scenes` and `drawing` make clips, `module` feeds
them to Lightning, `pretrain` trains the networks in data/."""

from gitdistill.world.scenes import Clip, GlyphClips, Scene, Thing

__all__ = ["Clip", "GlyphClips", "GlyphData", "Scene", "Thing", "glyph_tokenizer"]


def __getattr__(name: str):
    """Import Lightning and transformers only for what needs them."""
    if name not in ("GlyphData", "glyph_tokenizer"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from gitdistill.world import module

    return getattr(module, name)
