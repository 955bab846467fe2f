"""The runner of the notebooks, on notebooks of a few cells with a real kernel."""

import os
import re

import nbformat
import pytest
import run_notebooks as runner
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

PRINT = "import os\nfor word in ('one', 'two', os.path.basename(os.getcwd())):\n    print(word, flush=True)"
WIDGET = "import ipywidgets\nipywidgets.IntSlider()"


def save(path, *sources, tags=()):
    cells = [new_markdown_cell("# Title")] + [new_code_cell(source) for source in sources]
    cells[1].metadata.update(tags=list(tags), collapsed=True, execution={"shell.execute_reply": "1970"})
    notebook = new_notebook(cells=cells, metadata={"widgets": {}, "authors": ["someone"]})
    path.parent.mkdir(exist_ok=True)
    nbformat.write(notebook, path)
    return path


@pytest.fixture
def path(tmp_path):
    return tmp_path / "nb" / "01_a.ipynb"


def test_in_place(path, capsys):
    """Executed in the notebook's folder, then scrubbed; a second run gives the same bytes."""
    save(path, PRINT, WIDGET, tags=["nbval-check-output"])
    assert runner.main([str(path)]) == 0
    assert "2/2 cells" in capsys.readouterr().out
    first = path.read_bytes()
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    assert set(notebook.metadata) == {"kernelspec", "language_info"}
    assert notebook.metadata.kernelspec.name == "python3"
    assert [cell.id for cell in notebook.cells] == ["c01", "c02", "c03"]
    assert [cell.metadata for cell in notebook.cells] == [{}, {"tags": ["nbval-check-output"]}, {}]
    text, widget = notebook.cells[1:]
    assert [text.execution_count, widget.execution_count] == [1, 2]
    assert [output.text for output in text.outputs] == ["one\ntwo\nnb\n"]  # one stream, in one piece
    assert set(widget.outputs[0].data) == {"text/plain"}  # no view that would need the widget's state
    assert list(path.parent.iterdir()) == [path]
    assert runner.main([str(path)]) == 0
    assert path.read_bytes() == first


def test_html_leaves_the_notebook_alone(path, tmp_path, capsys):
    save(path, "print(6 * 7)", "open('../runs/results.csv', 'w').write('a,b\\nx,10\\n')")
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
    os.utime(out / "results.csv", (0, 0))  # the table of an earlier run is not shown
    assert runner.main([str(save(path, "1")), "--html", str(out)]) == 0
    assert "x  10" not in capsys.readouterr().out


def test_a_page_fetches_nothing_and_shows_formulas(tmp_path):
    text = "A share $\\frac{1}{2}$ of\n\n$$x_1 \\lVert y \\rVert$$\n\nand 3 $ or `$HOME` stay."
    page = runner.render(new_notebook(cells=[new_markdown_cell(text)]), tmp_path, "page")
    assert page.count("<math") == 2 and page.count("<mfrac>") == 1 and 'display="block"' in page
    assert "frac{1}" not in page and "3 $ or" in page and "$HOME" in page
    assert not re.search(r'<(?:script|link|img)[^>]*(?:src|href)="https?:', page)


def test_a_failing_cell(path, tmp_path, capsys):
    """Few lines that name the cell, exit code 1, the notebook untouched, the next one not started."""
    save(path, "x = 1", "y = 2\nassert x == y, 'x is one'")
    other = save(path.with_name("02_b.ipynb"), "1")
    before, other_before = path.read_bytes(), other.read_bytes()
    assert runner.main([str(path), str(other)]) == 1
    error = capsys.readouterr().err
    assert "01_a: code cell 2 of 2 failed" in error
    assert "AssertionError: x is one" in error and "line 2: assert x == y" in error
    assert len(error.splitlines()) <= 6
    assert path.read_bytes() == before and other.read_bytes() == other_before
    # as a copy it is saved, with the error where it happened
    assert runner.main([str(path), "--html", str(tmp_path / "runs")]) == 1
    copy = nbformat.read(tmp_path / "runs" / "01_a.ipynb", as_version=4)
    assert copy.cells[2].outputs[0].ename == "AssertionError"


@pytest.mark.parametrize(
    "source, reason",
    [("import time\ntime.sleep(30)", "longer than 1 s"), ("import os\nos._exit(1)", "kernel died")],
)
def test_a_slow_cell_and_a_dead_kernel(path, capsys, source, reason):
    before = save(path, source).read_bytes()
    assert runner.main([str(path), "--timeout", "1"]) == 1
    assert "code cell 1 of 1 failed" in (error := capsys.readouterr().err) and reason in error
    assert path.read_bytes() == before


def test_mistakes_give_one_line(path, capsys, monkeypatch):
    assert runner.main([str(path)]) == 1
    monkeypatch.setattr(runner, "NOTEBOOKS", path.parent)
    assert runner.main([]) == 1
    missing, none = capsys.readouterr().err.splitlines()
    assert str(path) in missing and str(path.parent) in none


def test_an_interrupted_save_leaves_the_old_file(path, monkeypatch):
    save(path, "1")
    before = path.read_bytes()

    def full_disk(*_):
        raise OSError("no space left")

    monkeypatch.setattr(os, "replace", full_disk)
    with pytest.raises(OSError, match="no space"):
        runner.write(path, "{}")
    assert path.read_bytes() == before and list(path.parent.iterdir()) == [path]
