"""Distil GIT, an image and video captioner, into a student a tenth of its size, and watch every step.

Letters of the shapes, everywhere in the package: B clips, F frames, T tokens, K captions (or beams) per clip,
N image tokens, M memory tokens, D width, H heads, V vocabulary.
"""

from importlib import import_module

__version__ = "0.1.0"

_HOMES = {
    "TinyVIT": "gitdistill.model.encoders",
    "StudentCandidateV1": "gitdistill.model.student",
    "PositionalEncoding": "gitdistill.model.student",
    "GenerativeImageTextModel": "gitdistill.model.git",
    "GenerativeImageTextTeacher": "gitdistill.model.teacher",
    "DistillationTrainer": "gitdistill.trainer",
    "load_student": "gitdistill.bundle",
}
__all__ = [*_HOMES, "__version__"]


def __getattr__(name: str):
    """Import a public class when it is first asked for, so that `import gitdistill` stays quick."""
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'gitdistill' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
