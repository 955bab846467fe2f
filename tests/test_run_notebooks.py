"""The runner of the notebooks, on notebooks of a few cells with a real kernel."""

import base64
import importlib.util
import io
import json
import os
import re
from pathlib import Path

import nbformat
import numpy as np
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook
from PIL import Image

PATH = Path(__file__).parents[1] / "tools" / "run_notebooks.py"
spec = importlib.util.spec_from_file_location("run_notebooks", PATH)
runner = importlib.util.module_from_spec(spec)
spec.loader.exec_module(runner)

DRAW = """
import io
import numpy as np
from IPython.display import Image as Show, display
from PIL import Image
noise = np.random.RandomState(0).randint(0, 256, (64, 64, 3), dtype=np.uint8)
buffer = io.BytesIO()
Image.fromarray(noise).save(buffer, "PNG")
display(Show(data=buffer.getvalue(), alt="noise"))
"""
WIDGET = "import ipywidgets\nipywidgets.IntSlider()"


def save(path, *sources, tags=()):
    cells = [new_markdown_cell("# Title")] + [new_code_cell(source) for source in sources]
    cells[1].metadata.update(tags=list(tags), collapsed=True, execution={"shell.execute_reply": "1970"})
    notebook = new_notebook(cells=cells, metadata={"widgets": {}, "authors": ["someone"]})
    path.parent.mkdir(exist_ok=True)
    nbformat.write(notebook, path)
    return path


def test_in_place(tmp_path, capsys):
    """Executed in the notebook's folder, then scrubbed; a second run gives the same bytes."""
    path = save(
        tmp_path / "nb" / "01_a.ipynb",
        "import os\nfor word in ('one', 'two', os.path.basename(os.getcwd())):\n    print(word, flush=True)",
        DRAW,
        WIDGET,
        tags=["nbval-check-output"],
    )
    assert runner.main([str(path)]) == 0
    assert "3/3 cells" in capsys.readouterr().out
    first = path.read_bytes()
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    assert set(notebook.metadata) == {"kernelspec", "language_info"}
    assert notebook.metadata.kernelspec.name == "python3"
    assert [cell.id for cell in notebook.cells] == ["c01", "c02", "c03", "c04"]
    assert [cell.metadata for cell in notebook.cells] == [{}, {"tags": ["nbval-check-output"]}, {}, {}]
    text, picture, widget = notebook.cells[1:]
    assert [cell.execution_count for cell in notebook.cells[1:]] == [1, 2, 3]
    assert [output.text for output in text.outputs] == ["one\ntwo\nnb\n"]  # one stream, in one piece
    assert picture.outputs[0].metadata["image/png"]["alt"] == "noise"
    png = base64.b64decode(picture.outputs[0].data["image/png"])
    assert Image.open(io.BytesIO(png)).mode == "P"
    assert set(widget.outputs[0].data) == {"text/plain"}  # no view that would need the widget's state
    assert [file.name for file in path.parent.iterdir()] == ["01_a.ipynb"]
    assert runner.main([str(path)]) == 0
    assert path.read_bytes() == first


def test_html_leaves_the_notebook_alone(tmp_path, capsys):
    path = save(
        tmp_path / "nb" / "01_a.ipynb",
        "print(6 * 7)",
        "open('../runs/results.csv', 'w').write('a,b\\nx,10\\n')",
    )
    before, out = path.read_bytes(), tmp_path / "runs"
    out.mkdir()
    assert runner.main([str(path), "--html", str(out)]) == 0
    assert path.read_bytes() == before
    written = ["01_a.html", "01_a.ipynb", "minutes.csv", "results.csv"]
    assert sorted(file.name for file in out.iterdir()) == written
    assert re.fullmatch(r"notebook,minutes\n01_a,\d+\.\d\n", (out / "minutes.csv").read_text())
    page = (out / "01_a.html").read_text()
    assert "<title>01_a</title>" in page and "42" in page
    assert nbformat.read(out / "01_a.ipynb", as_version=4).cells[1].outputs[0].text == "42\n"
    assert "a   b\nx  10\n" in capsys.readouterr().out


def test_a_table_of_an_earlier_run_is_not_shown(tmp_path, capsys):
    path, out = save(tmp_path / "nb" / "01_a.ipynb", "1"), tmp_path / "runs"
    runner.write(out / "results.csv", "model\nold\n")
    os.utime(out / "results.csv", (0, 0))
    assert runner.main([str(path), "--html", str(out)]) == 0
    assert "old" not in capsys.readouterr().out


def test_a_failing_cell(tmp_path, capsys):
    """Few lines that name the cell, exit code 1, the notebook untouched, the next one not started."""
    path = save(tmp_path / "nb" / "01_a.ipynb", "x = 1", "y = 2\nassert x == y, 'x is one'")
    other = save(tmp_path / "nb" / "02_b.ipynb", "1")
    before, other_before = path.read_bytes(), other.read_bytes()
    assert runner.main([str(path), str(other)]) == 1
    error = capsys.readouterr().err
    assert "01_a: code cell 2 of 2 failed" in error
    assert "AssertionError: x is one" in error and "line 2: assert x == y" in error
    assert len(error.splitlines()) <= 6
    assert path.read_bytes() == before and other.read_bytes() == other_before
    # as a copy it is kept, with the error where it happened
    assert runner.main([str(path), "--html", str(tmp_path / "runs")]) == 1
    copy = nbformat.read(tmp_path / "runs" / "01_a.ipynb", as_version=4)
    assert copy.cells[2].outputs[0].ename == "AssertionError"


def test_a_slow_cell(tmp_path, capsys):
    path = save(tmp_path / "nb" / "01_a.ipynb", "import time\ntime.sleep(30)")
    assert runner.main([str(path), "--timeout", "1"]) == 1
    assert "code cell 1 of 1 failed" in (error := capsys.readouterr().err) and "longer than 1 s" in error


def test_a_dead_kernel(tmp_path, capsys):
    path = save(tmp_path / "nb" / "01_a.ipynb", "1", "import os\nos._exit(1)")
    before = path.read_bytes()
    assert runner.main([str(path)]) == 1
    assert "code cell 2 of 2 failed" in (error := capsys.readouterr().err) and "kernel died" in error
    assert path.read_bytes() == before


def test_mistakes_give_one_line(tmp_path, capsys, monkeypatch):
    assert runner.main([str(tmp_path / "none.ipynb")]) == 1
    assert capsys.readouterr().err == f"no such notebook: {tmp_path / 'none.ipynb'}\n"
    monkeypatch.setattr(runner, "NOTEBOOKS", tmp_path)
    assert runner.main([]) == 1
    assert capsys.readouterr().err == f"no notebooks in {tmp_path}\n"


def test_an_interrupted_save_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "a.ipynb"
    path.write_text("old")

    def full_disk(*_):
        raise OSError("no space left")

    monkeypatch.setattr(runner.os, "replace", full_disk)
    with pytest.raises(OSError, match="no space"):
        runner.write(path, json.dumps({}))
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]


def png(image, **options):
    buffer = io.BytesIO()
    image.save(buffer, "PNG", **options)
    return buffer.getvalue()


def test_pictures_shrink_and_still_look_the_same():
    """A smooth colour ramp: a fraction of the bytes, and no channel far off."""
    x, y = np.meshgrid(np.arange(256), np.arange(256))
    noise = np.random.RandomState(0).randint(0, 8, (256, 256))
    ramp = np.stack([np.clip(x + noise, 0, 255), y, 255 - x], axis=-1).astype(np.uint8)
    before = png(Image.fromarray(ramp))
    after = runner.fewer_colours(before)
    assert len(after) < len(before) / 2
    difference = np.abs(np.asarray(Image.open(io.BytesIO(after)).convert("RGB"), int) - ramp)
    assert difference.mean() < 10 and difference.max() < 40
    assert runner.fewer_colours(after) == after


def test_rare_colours_survive():
    """Short thin lines on a picture that is mostly brown noise keep their own colours."""
    random = np.random.RandomState(0)
    shades = random.randint(0, 160, (200, 200, 1)) * [1.5, 1, 0.5] + random.randint(0, 15, (200, 200, 3))
    lines = [(0, 114, 178), (230, 159, 0), (0, 158, 115), (204, 121, 167), (253, 231, 37)]
    shades[::40, :30] = np.array(lines)[:, None]
    after = runner.fewer_colours(png(Image.fromarray(shades.astype(np.uint8))))
    found = np.asarray(Image.open(io.BytesIO(after)).convert("RGB"), int)[::40, 0]
    assert np.abs(found - lines).max() < 25


def test_animations_and_transparency_stay():
    frames = [Image.fromarray(np.full((8, 8, 3), shade, np.uint8)) for shade in (0, 128, 255)]
    animation = png(frames[0], save_all=True, append_images=frames[1:])
    see_through = png(Image.fromarray(np.random.RandomState(0).randint(0, 256, (32, 32, 4), dtype=np.uint8)))
    assert runner.fewer_colours(animation) == animation
    assert runner.fewer_colours(see_through) == see_through
