"""The benchmark of captioning files, in small."""

import importlib.util
from pathlib import Path

import pytest
import tiny

from gitdistill.use.captioner import Captioner
from gitdistill.world.module import toybox_tokenizer

PATH = Path(__file__).parents[1] / "benchmarks" / "use.py"
spec = importlib.util.spec_from_file_location("use", PATH)
use = importlib.util.module_from_spec(spec)
spec.loader.exec_module(use)


def test_every_task_is_measured(tmp_path):
    captioners = {"student": Captioner(tiny.student().eval(), toybox_tokenizer(), decoding={"max_length": 5})}
    pictures, video = use.make_pictures(tmp_path, 5), use.make_video(tmp_path / "clip.mp4", 4)
    lines = list(use.report(captioners, pictures, video, 4, 2))
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]
    assert [row[0].partition(": ")[2] for row in cells] == [
        "5 pictures, 2 at once",
        "a video of 4 s as one clip",
        "captions of 2 s, one a second",
    ]
    for _, rate, seconds, early, late in cells:
        assert float(rate) > 0 and float(seconds) >= 0 and 0 < float(early) <= float(late)
    with pytest.raises(RuntimeError, match="three: 2 results instead of 3"):
        use.measure("three", iter("ab"), 3)
