import pytest
import tiny
from pictures import photo, shades, video

from gitdistill.data.video import FrameRule
from gitdistill.use.captioner import Student
from gitdistill.world.module import toybox_tokenizer


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    """A student's folder."""
    path, rule = tmp_path_factory.mktemp("student"), FrameRule(2, "every", 3)
    Student(tiny.student(1).eval(), toybox_tokenizer(), rule, {"max_length": 7}, {"cider": 1.5}).save(path)
    return path


@pytest.fixture(scope="session")
def files(tmp_path_factory):
    """Three pictures, a video of two seconds, a broken picture and a text."""
    path = tmp_path_factory.mktemp("files")
    for number in range(3):
        photo(40 + 30 * number, 64).save(path / f"{number}.png")
    video(path / "clip.mp4", shades(20))
    (path / "broken.jpg").write_bytes(b"hello")
    (path / "notes.txt").write_text("hello")
    return path
