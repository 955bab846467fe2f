"""The networks: GIT the teacher, its student, and the checkpoints they read and write."""

from gitdistill.models.backbone import TinyVIT
from gitdistill.models.git import GenerativeImageTextModel
from gitdistill.models.student import PositionalEncoding, StudentCandidateV1
from gitdistill.models.teacher import GenerativeImageTextTeacher

__all__ = [
    "TinyVIT",
    "StudentCandidateV1",
    "PositionalEncoding",
    "GenerativeImageTextModel",
    "GenerativeImageTextTeacher",
]
