"""Distil GIT, an image and video captioner, into a student a tenth of its size, and look inside both.

Letters in shapes, everywhere in the package: B clips, F frames, T tokens, K captions (or beams) per clip,
N image tokens, M memory tokens, D width, H heads, V vocabulary.
"""

from importlib import import_module

__version__ = "0.2.0"

_HOMES = {
    "TinyVIT": "gitdistill.models.backbone",
    "StudentCandidateV1": "gitdistill.models.student",
    "PositionalEncoding": "gitdistill.models.student",
    "GenerativeImageTextModel": "gitdistill.models.git",
    "GenerativeImageTextTeacher": "gitdistill.models.teacher",
    "DistillationTrainer": "gitdistill.distillation.trainer",
    "load_student": "gitdistill.use.captioner",
    "load_teacher": "gitdistill.use.captioner",
}
__all__ = [*_HOMES, "__version__"]


def __getattr__(name: str):
    """Import a public class when it is first asked for, so that `import gitdistill` stays quick."""
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'gitdistill' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
