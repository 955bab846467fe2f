"""The embedded world: `grammar` writes captions, `facts` checks them, `scenes` and `drawing` make clips, `module` feeds
them to Lightning, `pretrain` trains the networks in data/."""

from gitdistill.world.module import GlyphData, glyph_tokenizer
from gitdistill.world.scenes import Clip, GlyphClips, Scene, Thing

__all__ = ["Clip", "GlyphClips", "GlyphData", "Scene", "Thing", "glyph_tokenizer"]
