"""The networks: GIT the teacher, its student, and the checkpoints they read and write."""

import gitdistill

__all__ = [
    "TinyVIT",
    "StudentCandidateV1",
    "PositionalEncoding",
    "GenerativeImageTextModel",
    "GenerativeImageTextTeacher",
]


def __getattr__(name: str):
    if name in __all__:
        return getattr(gitdistill, name)
    raise AttributeError(f"module 'gitdistill.models' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
