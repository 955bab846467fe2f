"""Two doors to the notebooks: a reader's own checkpoint and pictures, and services where nothing is installed."""

import re
from pathlib import Path

import nbformat
import numpy as np
import pytest
import run_notebooks
from pictures import photo, video
from tiny import teacher as toybox_teacher
from tiny_git import random_port, tokenizer

from gitdistill import GenerativeImageTextTeacher
from gitdistill.use.notebook import MARK, own_clips, skip_marked

ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))


@pytest.fixture
def own(tmp_path):
    """A checkpoint that transformers saved, random, with GIT-base's two-digit numbers of layers; and a folder with two
    pictures, a video and a broken file."""
    vision = {"vision_image_size": 32, "vision_patch_size": 8, "vision_num_hidden_layers": 11}
    git = random_port(frames=3, max_position_embeddings=40, **vision)
    git.save_pretrained(tmp_path / "git")
    tokenizer().save_pretrained(tmp_path / "git")
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    photo(320, 240).save(pictures / "1.jpg")
    photo(60, 200).save(pictures / "2.png")
    (pictures / "0.png").write_bytes(b"no picture")
    video(pictures / "3.mp4", [np.roll(photo(96, 64), 8 * step, 1) for step in range(8)])
    return tmp_path / "git", pictures


def test_own_clips(own, tmp_path, capsys):
    folder, pictures = own
    teacher = GenerativeImageTextTeacher.from_pretrained(folder)
    clips = own_clips(teacher, pictures)
    assert "0.png" in capsys.readouterr().out
    assert [list(clip.frames.shape) for clip in clips] == [[3, 3, 32, 32]] * 3
    still, _, moving = (clip.frames for clip in clips)
    assert (still == still[:1]).all() and not (moving == moving[:1]).all()
    assert all(clip.masks is clip.scene is None and len(clip.captions) == 5 for clip in clips)
    assert clips[0].captions[0] == teacher.caption(still[None], beams=5)[0]
    assert own_clips(toybox_teacher()) == []
    assert len(own_clips(toybox_teacher(), pictures / "1.jpg")) == 1
    world = own_clips(teacher)  # which it has no words for
    assert [len(clip.frames) for clip in world] == [3] * 4
    with pytest.raises(FileNotFoundError, match="there is no file or folder"):
        own_clips(teacher, tmp_path / "nowhere")
    (tmp_path / "a.jpg").write_bytes(b"no picture")
    with pytest.raises(FileNotFoundError, match="no picture or video can be read"):
        own_clips(teacher, tmp_path / "a.jpg")


def test_marked_cells_are_skipped(capsys):
    exec("".join(skip_marked([f"{MARK}: masks\n", "1 / 0\n"])))
    assert capsys.readouterr().out == "Skipped: needs the world: masks\n"
    lines = ["x = 1\n", f"{MARK}: masks\n"]
    assert skip_marked(lines) == lines and skip_marked([]) == []


@pytest.mark.parametrize("number, most, caption, kind", [
    (0, 1 / 4, 1, "text/html"),  # the explorer of words and cells
    pytest.param(1, 1 / 4, 1, "text/html", marks=pytest.mark.slow),
    pytest.param(2, 2 / 3, 0, "text/markdown", marks=pytest.mark.slow),  # it trains on the best captions
    pytest.param(3, 1 / 2, 0, "text/html", marks=pytest.mark.slow),  # it compares with the truth more often
])  # fmt: skip
def test_a_notebook_runs_on_them(own, number, most, caption, kind, monkeypatch):
    """From top to bottom without an error; the marked cells, and no others, say that they are skipped.

    most: share of cells that are marked. caption: which of the teacher's captions is shown. kind: of output, one that
    comes beside pictures.
    """
    for name, value in zip(("TEACHER", "PICTURES", "HF_HUB_OFFLINE"), (*own, 1)):
        monkeypatch.setenv(name, str(value))
    path = NOTEBOOKS[number]
    notebook = nbformat.read(path, as_version=4)
    assert run_notebooks.execute(notebook, path.parent, path.stem) is None
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    texts = ["".join(output.get("text", "") for output in cell.outputs) for cell in cells]
    marked = [cell.source.startswith(MARK) for cell in cells]
    assert marked == [text.startswith("Skipped: needs the world") for text in texts]
    assert 5 < sum(marked) < most * len(cells)
    teacher = GenerativeImageTextTeacher.from_pretrained(own[0])
    clip = own_clips(teacher, own[1])[0]
    for words in clip.captions[caption], teacher.caption(clip.frames[None])[0]:
        assert any(words in text for text in texts)
    shown = {kind for cell in cells for output in cell.outputs for kind in output.get("data", ())}
    assert {"image/png", kind} <= shown


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_links_to_services(path):
    """Each leads to this very notebook, and all to one repository, the one that the first cell fetches."""
    title, door = nbformat.read(path, as_version=4).cells[:2]
    colab, binder = re.findall(r"\[Open in \w+\]\((\S+)\)", title.source)
    owner = re.search(r"git clone --depth 1 https://github\.com/(\w[\w.-]*/gitdistill) ", door.source)[1]
    place = f"notebooks/{path.name}"
    assert colab == f"https://colab.research.google.com/github/{owner}/blob/HEAD/{place}"
    assert binder == f"https://mybinder.org/v2/gh/{owner}/HEAD?urlpath=lab/tree/{place}"
    assert set(re.findall(r"https://github\.com/([\w.-]+/gitdistill)", door.source)) == {owner}
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert f"github/{owner}/blob/HEAD/" in readme and f"gh/{owner}/HEAD" in readme


def test_binder_installs_this_clone():
    lines = (ROOT / ".binder" / "requirements.txt").read_text(encoding="utf-8").splitlines()
    assert "-e ." in lines  # with its data/, and with what pyproject.toml requires
    assert not [line for line in lines if re.match(r"\w", line)]  # no package, no version is stated twice
