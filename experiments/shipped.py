"""What the experiments on the shipped networks share: the networks of `data/`, test clips, and the command line."""

import argparse
from pathlib import Path

from gitdistill import GenerativeImageTextTeacher, load_student
from gitdistill.world import Clips

ROOT = Path(__file__).resolve().parents[1]
STUDENTS = {"distilled student": "student", "same student without a teacher": "baseline"}


def arguments(description: str, clips: int) -> argparse.ArgumentParser:
    """A parser with --clips and --out; `clips` is how many are taken by default."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--clips", type=int, default=clips, help="of the test split")
    parser.add_argument(
        "--out", type=Path, default=ROOT / "data" / "experiments", help="folder of the tables"
    )
    return parser


def networks() -> tuple[dict, object]:
    """Name -> network of the teacher and the students, and their tokenizer."""
    teacher = GenerativeImageTextTeacher.from_pretrained("toybox")
    students = {name: load_student(ROOT / "data" / folder).model.eval() for name, folder in STUDENTS.items()}
    return {"teacher": teacher.model, **students}, teacher.tokenizer


def first_clips(count: int, masks: bool = False, split: str = "test") -> list:
    """The first clips of a split, with the masks of their things if asked for."""
    pool = Clips(split, count)
    return [pool.clip(number, masks=masks) for number in range(len(pool))]
