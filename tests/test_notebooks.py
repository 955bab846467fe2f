"""The committed notebooks as files; that their cells still run is nbval's part (`pytest notebooks`)."""

import base64
import io
import re
from pathlib import Path

import nbformat
import numpy as np
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output
from PIL import Image

FOLDER = Path(__file__).parents[1] / "notebooks"
LONGEST_CELL = 30  # lines
LARGEST_NOTEBOOK = 2.5e6  # bytes
LARGEST_PICTURE = 600e3  # bytes
SMALLEST_PICTURE = 200  # pixels of the longer side
FAINTEST_PICTURE = 5  # standard deviation of the grey values, of 255


def test_the_notebooks_are_numbered():
    names = sorted(path.stem for path in FOLDER.glob("*.ipynb"))
    assert len(names) >= 4 and [name[:3] for name in names] == [f"{k:02d}_" for k in range(1, len(names) + 1)]


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.ipynb")), ids=lambda path: path.stem)
def test_committed_notebook(path):
    assert path.stat().st_size < LARGEST_NOTEBOOK
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    assert not problems(notebook), "make notebooks saves them ready to commit"


def problems(notebook):
    """What is wrong with a notebook that is to be committed, one line each."""
    found = []
    if notebook.metadata.get("kernelspec", {}).get("name") != "python3":
        found.append("the kernel is not python3")
    if "widgets" in notebook.metadata:
        found.append("holds widget state")
    headings = "\n".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown")
    sections = [int(number) for number in re.findall(r"^## (\d+)\.", headings, re.MULTILINE)]
    if sections != list(range(1, len(sections) + 1)):
        found.append(f"sections do not count up from 1: {sections}")
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    counts = [cell.execution_count for cell in code]
    if counts != list(range(1, len(code) + 1)):
        found.append(f"not executed once from top to bottom: {counts}")
    if not any("figure" in cell.metadata.get("tags", []) for cell in code):
        found.append("no cell is tagged figure")
    for number, cell in enumerate(code, start=1):
        found += [f"code cell {number}: {problem}" for problem in cell_problems(cell)]
    return found


def cell_problems(cell):
    tags = cell.metadata.get("tags", [])
    if len(cell.source.splitlines()) > LONGEST_CELL:
        yield f"longer than {LONGEST_CELL} lines"
    if any(output.output_type == "error" for output in cell.outputs) and "raises-exception" not in tags:
        yield "ended in an error"
    if any("application/vnd.jupyter.widget-view+json" in output.get("data", {}) for output in cell.outputs):
        yield "holds a widget's view, which is blank without its state"
    texts = [output.get("text") or output.get("data", {}).get("text/plain", "") for output in cell.outputs]
    if re.search(r"(^|[\s'\"(=])/(home|root|tmp|Users)/", "\n".join(texts), re.MULTILINE):
        yield "shows a path of the machine it ran on"
    pictures = [output for output in cell.outputs if "image/png" in output.get("data", {})]
    if "figure" in tags and not pictures:
        yield "is tagged figure and holds no PNG"
    for picture in pictures:
        if not picture.metadata.get("image/png", {}).get("alt"):
            yield "a picture without alternative text"
        png = base64.b64decode(picture.data["image/png"])
        image = Image.open(io.BytesIO(png))
        if len(png) > LARGEST_PICTURE:
            yield f"a picture of more than {LARGEST_PICTURE:.0f} bytes"
        if "figure" in tags and max(image.size) < SMALLEST_PICTURE:
            yield f"a figure of less than {SMALLEST_PICTURE} pixels"
        if "figure" in tags and np.asarray(image.convert("L"), float).std() < FAINTEST_PICTURE:
            yield "a blank figure"


# --- the checks themselves: a good notebook, and one spoilt in one way at a time

ALT = {"image/png": {"alt": "what it shows"}}


def picture(side=240, blank=False, noise=False):
    values = np.random.RandomState(0).randint(0, 256, (side, side, 3))
    values = values if noise else np.full((side, side, 3), 255) if blank else np.indices((side, side, 3))[0]
    buffer = io.BytesIO()
    Image.fromarray(values.astype(np.uint8)).save(buffer, "PNG")
    return {"image/png": base64.b64encode(buffer.getvalue()).decode()}


def shown(data, metadata=ALT):
    return {"outputs": [new_output("display_data", data=data, metadata=metadata)]}


def printed(text):
    return {"outputs": [new_output("stream", text=text)]}


SPOILT = {  # what the check says: the number of a cell, and what is changed in it
    "do not count up": (1, {"source": "## 1. One\n\n## 3. Three"}),
    "not executed": (0, {"execution_count": None}),
    "executed once": (2, {"execution_count": 5}),
    "tagged figure": (2, {"metadata": {}}),
    "longer than": (0, {"source": "x = 1\n" * 31}),
    "ended in an error": (0, {"outputs": [new_output("error", ename="E", evalue="")]}),
    "widget's view": (2, shown(picture() | {"application/vnd.jupyter.widget-view+json": {}})),
    "path of the machine": (0, printed("saved in /home/someone/runs")),
    "holds no PNG": (2, shown({"text/plain": "<Figure>"})),
    "more than 600000": (2, shown(picture(side=600, noise=True))),
    "less than 200": (2, shown(picture(side=100))),
    "without alternative text": (2, shown(picture(), metadata={})),
    "a blank figure": (2, shown(picture(blank=True))),
}


@pytest.mark.parametrize("problem", [None, *SPOILT])
def test_a_spoilt_notebook_is_found(problem):
    figure = {"execution_count": 2, "metadata": {"tags": ["figure"]}, **shown(picture())}
    cells = [
        new_code_cell("print(1)", execution_count=1, **printed("1\n")),
        new_markdown_cell("## 1. One\n\n## 2. Two"),
        new_code_cell("draw()", **figure),
    ]
    kernel = {"name": "python3", "display_name": "Python 3"}
    notebook = new_notebook(cells=cells, metadata={"kernelspec": kernel})
    if problem:
        number, change = SPOILT[problem]
        notebook.cells[number].update(change)
    found = problems(notebook)
    assert len(found) == (problem is not None) and all(problem in line for line in found)
    notebook.metadata = {"widgets": {}}
    assert {"the kernel is not python3", "holds widget state"} <= set(problems(notebook))
