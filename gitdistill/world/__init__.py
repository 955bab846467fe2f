"""The embedded world, a box of toys: `lexicon` and `grammar` are its words, `facts` checks captions, `scenes`,
`drawing` and `sprites` make clips, `module` feeds them to Lightning, `pretrain` trains the networks in data/."""

from gitdistill.world.drawing import draw, draw_masks
from gitdistill.world.facts import facts_scores, false_words
from gitdistill.world.layout import Toy
from gitdistill.world.scenes import Clip, Clips, Scene


def __getattr__(name: str):
    """Import Lightning only for what needs it."""
    if name not in ("ToyboxData", "toybox_tokenizer"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from gitdistill.world import module

    return getattr(module, name)
