"""What ships in data/: it is what the README and its own files say."""

import csv
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from gitdistill import GenerativeImageTextTeacher, TinyVIT, load_student
from gitdistill.world import GlyphClips
from gitdistill.world.facts import count_facts, facts_scores

ROOT = Path(__file__).parents[1]
DATA = ROOT / "data"
OPPOSITE = {"left": "right", "right": "left", "up": "down", "down": "up"}


@pytest.fixture(scope="module")
def teacher():
    return GenerativeImageTextTeacher.from_pretrained("glyphs")


@pytest.fixture(scope="module")
def student():
    return load_student(DATA / "student")


def captions(network, clips):
    found = network.caption(torch.stack([clip.frames for clip in clips]))
    return found[0] if isinstance(found, tuple) else found  # a student's scores are not asked for


def test_sizes():
    def megabytes(name):
        return sum(path.stat().st_size for path in (DATA / name).iterdir()) / 1e6

    assert megabytes("teacher") < 15 and megabytes("backbone") < 1.5 and megabytes("student") < 2.5


@pytest.mark.parametrize("name", ["teacher", "student"])
def test_networks_tell_what_they_see(name, request):
    """scores.json speaks of 500 clips; on a few of the validation split they must not be far off."""
    clips = [GlyphClips("val").clip(i, masks=False) for i in range(48)]
    said = captions(request.getfixturevalue(name), clips)
    scores = facts_scores(said, [clip.scene for clip in clips])
    told = json.loads((DATA / name / "scores.json").read_text())
    assert scores["facts_precision"] > told["test/facts_precision"] - 0.06
    assert scores["facts_recall"] > 0.8


def test_a_clip_run_backwards_is_told_backwards(teacher):
    clips = [GlyphClips("val", objects=1).clip(i, masks=False) for i in range(80)]
    moving = [clip for clip in clips if clip.scene.things[0].motion in OPPOSITE]
    backwards = teacher.caption(torch.stack([clip.frames.flip(0) for clip in moving]))
    turned = 0
    for caption, clip in zip(backwards, moving):
        thing = clip.scene.things[0]
        scene = clip.scene._replace(things=(thing._replace(motion=OPPOSITE[thing.motion]),))
        correct, stated, _ = count_facts(caption, scene)["motion"]
        turned += stated > 0 and correct == stated
    assert len(moving) > 20 and turned > 0.8 * len(moving)


@pytest.mark.parametrize(
    "name, term", [("teacher", "train/loss"), ("backbone", "train/symbol"), ("student", "train/loss")]
)
def test_the_training_log_reaches_the_last_step_and_shows_learning(name, term):
    steps = json.loads((DATA / name / "scores.json").read_text())["steps"]
    with (DATA / name / "log.csv").open(newline="") as file:
        rows = [(int(row["step"]), float(row[term])) for row in csv.DictReader(file) if row[term]]
    assert rows[-1][0] > 0.95 * steps
    assert rows[-1][1] < rows[0][1] / 2


def test_the_backbone_loads_and_knows_its_symbols():
    backbone = TinyVIT.from_pretrained("glyphs")
    assert sum(p.numel() for p in backbone.parameters()) < 500_000
    scores = json.loads((DATA / "backbone" / "scores.json").read_text())
    assert scores["test/symbol_accuracy"] > 0.9


def test_the_student_carries_the_scores_of_its_training(student):
    scores = json.loads((DATA / "student" / "scores.json").read_text())
    told = {name: value for name, value in scores.items() if "/" in name}
    assert told and json.loads((DATA / "student" / "gitdistill.json").read_text())["scores"] == told


def test_the_readme_says_what_the_files_say():
    done = subprocess.run([sys.executable, ROOT / "tools" / "readme.py", "--check"], check=False)
    assert done.returncode == 0, "run `make run` and then `python tools/readme.py`"
