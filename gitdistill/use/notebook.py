"""The notebooks on a reader's own checkpoint, pictures and videos, of which nobody knows the truth."""

from pathlib import Path

import numpy as np
import torch
from IPython import get_ipython

from gitdistill.data.video import BrokenFile
from gitdistill.decoding import beam
from gitdistill.models.tokenizer import to_text
from gitdistill.use.caption import find_files
from gitdistill.use.captioner import Captioner
from gitdistill.world.module import REFERENCES, toybox_tokenizer
from gitdistill.world.scenes import Clip, Clips

MARK = "# needs the world"  # how a cell begins that uses scenes, masks or captions of the embedded world
MOST = 4  # clips that are read


def own_clips(teacher, pictures=None) -> list[Clip]:
    """A reader's own clips, without masks and scenes, each with captions by the teacher, the best first.

    They are the first `MOST` readable files of the folder `pictures`; without one, clips of the embedded
    world if `teacher` has another vocabulary, otherwise none. In a notebook, cells that begin with `MARK` only
    print that they are skipped as long as there are such clips. FileNotFoundError if no file can be read.
    """
    own = bool(pictures) or teacher.tokenizer.get_vocab() != toybox_tokenizer().get_vocab()
    if shell := get_ipython():
        rules = shell.input_transformers_cleanup
        rules[:] = [rule for rule in rules if rule is not skip_marked] + [skip_marked] * own
    if not own:
        return []
    captioner = Captioner(teacher, teacher.tokenizer)
    captioner.whole = False  # the notebooks compare clips of one size
    frames = torch.stack(read(captioner, Path(pictures).expanduser()) if pictures else drawn(captioner))
    found = beam(teacher, frames, REFERENCES, captioner.decoding["max_length"], num_return=REFERENCES)
    captions = [to_text(tokens, teacher.tokenizer) for tokens in found.tokens]
    print(f'{len(frames)} clips, captioned by the teacher; cells that begin with "{MARK}" are skipped')
    return [Clip(clip, None, texts, None) for clip, texts in zip(frames, captions)]


def read(captioner: Captioner, source: Path) -> list[torch.Tensor]:
    """The first readable pictures and videos of a folder, or a single one, as frames [F, 3, H, W]."""
    clips = []
    for path in find_files([source]):
        try:
            clips += [captioner.read(path)]
        except BrokenFile as error:
            print("left out:", error)
        if len(clips) == MOST:
            return clips
    if not clips:
        raise FileNotFoundError(f"no picture or video can be read in {source}")
    return clips


def drawn(captioner: Captioner) -> list[torch.Tensor]:
    """Clips of the embedded world as the network's frames."""
    clips = [clip.frames for clip in Clips("val", size=MOST)]
    chosen = captioner.rule.choose(np.arange(len(clips[0])), len(clips[0]))
    return [captioner.framed(clip[chosen]) for clip in clips]


def skip_marked(lines: list[str]) -> list[str]:
    """A rule of IPython for the source of cells: one that begins with `MARK` only prints that it is skipped."""
    if lines and lines[0].startswith(MARK):
        return [f"print({'Skipped: ' + lines[0].removeprefix('# ').strip()!r})\n"]
    return lines
