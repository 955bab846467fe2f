"""What ships in data/: it is what the README and its own files say."""

import csv
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from gitdistill import GenerativeImageTextTeacher, TinyVIT, load_student
from gitdistill.world import Clips, Scene
from gitdistill.world.facts import count_facts, facts_scores

ROOT = Path(__file__).parents[1]
DATA = ROOT / "data"
OPPOSITE = {"left": "right", "right": "left", "up": "down", "down": "up"}


@pytest.fixture(scope="module")
def teacher():
    return GenerativeImageTextTeacher.from_pretrained("toybox")


@pytest.fixture(scope="module")
def student():
    return load_student(DATA / "student")


@pytest.mark.parametrize("name, megabytes", [("teacher", 15), ("backbone", 1.5), ("student", 1.5)])
def test_sizes(name, megabytes):
    assert sum(path.stat().st_size for path in (DATA / name).iterdir()) < megabytes * 1e6


@pytest.mark.parametrize("name", ["teacher", "student"])
def test_captions_are_as_right_as_the_scores_say(name, request):
    """scores.json is of 500 clips; on a few of the validation split they must not be far off."""
    clips = [Clips("val").clip(i, masks=False) for i in range(48)]
    captions = request.getfixturevalue(name).caption(torch.stack([clip.frames for clip in clips]))
    captions = captions[0] if isinstance(captions, tuple) else captions  # without the student's scores
    scores = facts_scores(captions, [clip.scene for clip in clips])
    known = json.loads((DATA / name / "scores.json").read_text())
    for key in ("facts_precision", "facts_recall"):
        assert scores[key] > known[f"test/{key}"] - 0.06


def test_a_clip_run_backwards_is_captioned_backwards(teacher):
    clips = [Clips("val", objects=1).clip(i, masks=False) for i in range(80)]
    moving = [clip for clip in clips if clip.scene.toys[0].motion in OPPOSITE]
    backwards = teacher.caption(torch.stack([clip.frames.flip(0) for clip in moving]))
    turned = 0
    for caption, clip in zip(backwards, moving):
        toy = clip.scene.toys[0]
        scene = Scene([toy._replace(motion=OPPOSITE[toy.motion], x=None, y=None)])
        correct, stated, _ = count_facts(caption, scene)["motion"]
        turned += stated > 0 and correct == stated
    assert len(moving) > 20 and turned > 0.8 * len(moving)


@pytest.mark.parametrize("name", ["teacher", "backbone", "student"])
def test_the_training_log_reaches_the_last_step_and_shows_learning(name):
    term = "train/object" if name == "backbone" else "train/loss"
    steps = json.loads((DATA / name / "scores.json").read_text())["steps"]
    with (DATA / name / "log.csv").open(newline="") as file:
        rows = [(int(row["step"]), float(row[term])) for row in csv.DictReader(file) if row[term]]
    assert rows[-1][0] > 0.95 * steps
    assert rows[-1][1] < rows[0][1] / 2


def test_the_backbone_loads_and_knows_its_objects():
    backbone = TinyVIT.from_pretrained("toybox")
    assert sum(p.numel() for p in backbone.parameters()) < 500_000
    scores = json.loads((DATA / "backbone" / "scores.json").read_text())
    assert scores["test/object_accuracy"] > 0.95


def test_the_student_carries_the_scores_of_its_training(student):
    scores = json.loads((DATA / "student" / "scores.json").read_text())
    measured = {name: value for name, value in scores.items() if "/" in name}
    assert measured and json.loads((DATA / "student" / "gitdistill.json").read_text())["scores"] == measured


def test_the_readme_says_what_the_files_say():
    done = subprocess.run([sys.executable, ROOT / "tools" / "readme.py", "--check"], check=False)
    assert done.returncode == 0, "run `make run` and then `python tools/readme.py`"
