"""Run the notebooks from top to bottom, headless.

    python tools/run_notebooks.py                  all notebooks, outputs saved in place, ready to commit
    python tools/run_notebooks.py --html runs      the notebooks stay as they are; runs/ gets executed copies
                                                   (.ipynb), rendered pages (.html), the minutes each took
                                                   (minutes.csv), and, where a notebook wrote
                                                   runs/results.csv, its table is printed at the end
    python tools/run_notebooks.py notebooks/02*    some of them

Saved notebooks hold no timings, no widget state, and nothing that depends on the machine.
Each file is written beside its target and then renamed, so an interrupted run leaves no half notebook.
"""

import argparse
import copy
import csv
import re
import sys
import time
from functools import partial
from pathlib import Path

import latex2mathml.converter
import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, CellTimeoutError, DeadKernelError
from nbconvert import HTMLExporter

from gitdistill.models.storage import write_whole

NOTEBOOKS = Path(__file__).resolve().parents[1] / "notebooks"
WIDGET_VIEW = "application/vnd.jupyter.widget-view+json"


class Client(NotebookClient):
    """nbclient without its imitation of the Output widget.

    That imitation has an open race in which cells that use `interact` can hang (nbclient issue 312). Without
    it the first picture a widget draws stays in the cell, visible where there is no JavaScript.
    """

    def on_comm_open_jupyter_widget(self, msg):
        return None

    def clear_output(self, outs, msg, cell_index):
        return None


class Progress:
    """Code cells done and seconds gone: one line rewritten on a terminal, a line now and then in a log."""

    def __init__(self, name: str, cells: int, every: float = 20.0):
        self.name, self.cells, self.every = name, cells, every
        self.live = sys.stdout.isatty()
        self.done, self.start, self.shown = 0, time.monotonic(), 0.0
        self.show("\r" if self.live else "\n")

    def step(self, **_):
        self.done += 1
        if self.live or time.monotonic() - self.shown > self.every:
            self.show("\r" if self.live else "\n")

    def close(self):
        self.show("\n")

    def show(self, end: str):
        self.shown = time.monotonic()
        seconds = self.shown - self.start
        print(f"{self.name:<32} {self.done:>3}/{self.cells} cells {seconds:>5.0f} s", end=end, flush=True)


def execute(notebook: nbformat.NotebookNode, folder: Path, name: str, timeout: int = 600) -> str | None:
    """Run every cell of `notebook`, in place, with `folder` as working directory.

    Returns None, or a few lines about the cell that failed; the cells before it keep their outputs.
    """
    code = [i for i, cell in enumerate(notebook.cells) if cell.cell_type == "code"]
    for i in code:
        notebook.cells[i].update(outputs=[], execution_count=None)
    progress = Progress(name, sum(bool(notebook.cells[i].source.strip()) for i in code))
    current = {}
    client = Client(
        notebook,
        timeout=timeout,
        kernel_name="python3",  # in an environment that is the interpreter it holds
        extra_arguments=["--IPKernelApp.log_level=ERROR"],  # no warnings of the kernel between our lines
        record_timing=False,
        store_widget_state=False,
        resources={"metadata": {"path": str(folder)}},
        on_cell_execute=lambda cell, cell_index: current.update(index=cell_index),
        on_cell_executed=progress.step,
    )
    try:
        client.execute()
    except CellExecutionError as error:
        reason = f"{error.ename}: {shorten(error.evalue)}" + failing_line(error.traceback)
    except CellTimeoutError:
        reason = f"took longer than {timeout} s"
    except DeadKernelError:
        reason = "the kernel died; memory may have run out"
    else:
        reason = None
    progress.close()
    if reason and "index" in current:
        return f"{name}: code cell {code.index(current['index']) + 1} of {len(code)} failed\n    {reason}"
    return reason and f"{name}: {reason}"


def shorten(text: str, lines: int = 4, width: int = 300) -> str:
    cut = [line[:width] for line in text.strip().splitlines()]
    return "\n    ".join(cut[:lines] + ["..."] * (len(cut) > lines))


def failing_line(traceback: str) -> str:
    """The cell's own line, which IPython marks with an arrow; empty where it marks none."""
    plain = re.sub(r"\x1b\[[0-9;]*m", "", traceback)
    arrow = re.search(r"^-+> *(\d+) (.*)$", plain, re.MULTILINE)
    return f"\n    line {arrow[1]}: {arrow[2].strip()}" if arrow else ""


def scrub(notebook: nbformat.NotebookNode) -> None:
    """Leave in an executed notebook only what is committed."""
    notebook.metadata = nbformat.from_dict(
        {
            "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
            "language_info": {"name": "python"},
        }
    )
    notebook.nbformat, notebook.nbformat_minor = 4, 5  # the first format with cell ids
    for number, cell in enumerate(notebook.cells, start=1):
        cell.id = f"c{number:02d}"
        tags = cell.metadata.get("tags")
        cell.metadata = nbformat.from_dict({"tags": tags} if tags else {})
        if cell.cell_type == "code":
            cell.outputs = merge_streams(cell.outputs)
            for output in cell.outputs:
                output.get("data", {}).pop(WIDGET_VIEW, None)  # an empty box without its state


def merge_streams(outputs: list) -> list:
    """Join neighbouring pieces of one stream: where they are cut depends on timing."""
    merged = []
    for output in outputs:
        last = merged[-1] if merged else {}
        if output.output_type == "stream" and output.get("name") == last.get("name"):
            last["text"] += output.text
        else:
            merged.append(output)
    return merged


def write(path: Path, text: str) -> None:
    """Whoever reads `path` finds the old file or the new one, whole."""
    write_whole(path.parent, {path.name: partial(Path.write_text, data=text, encoding="utf-8")})


FORMULA = re.compile(r"(?P<dollars>\$\$?)(?P<latex>(?:\\.|[^$\\`])+?)(?P=dollars)", re.DOTALL)
FETCHED = re.compile(r'<script[^>]*\bsrc="https?:[^>]*>\s*</script>')


def render(notebook: nbformat.NotebookNode, folder: Path, name: str) -> str:
    """The notebook as one HTML page that fetches nothing: pictures embedded, formulas as MathML."""
    notebook, formulas = copy.deepcopy(notebook), []

    def put_aside(found: re.Match) -> str:  # nbconvert's Markdown would take the formula apart
        display = "block" if found["dollars"] == "$$" else "inline"
        formulas.append(latex2mathml.converter.convert(found["latex"].strip(), display=display))
        return f"formula-{len(formulas) - 1}-stands-here"

    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            cell.source = FORMULA.sub(put_aside, cell.source)
    page, _ = HTMLExporter(embed_images=True).from_notebook_node(
        notebook, {"metadata": {"name": name, "path": str(folder)}}
    )
    page = re.sub(r"formula-(\d+)-stands-here", lambda found: formulas[int(found[1])], page)
    return FETCHED.sub("", page)


def run(path: Path, html: Path | None = None, timeout: int = 600) -> str | None:
    """Execute one notebook and save it: in place, or as copies in the folder `html`.

    In place a notebook that fails is left as it was; a failed copy is saved, to be looked at. Returns None or
    a few lines about the failure.
    """
    notebook = nbformat.read(path, as_version=4)
    folder, name = path.resolve().parent, path.stem
    failure = execute(notebook, folder, name, timeout)
    scrub(notebook)
    if html:
        write(html / path.name, nbformat.writes(notebook) + "\n")
        write(html / f"{name}.html", render(notebook, folder, name))
    elif not failure:
        write(path, nbformat.writes(notebook) + "\n")
    return failure


def table(path: Path) -> str:
    """A CSV file as aligned text: the first column to the left, the others to the right."""
    with path.open(newline="", encoding="utf-8") as file:
        rows = list(csv.reader(file))
    widths = [max(map(len, column)) for column in zip(*rows)]
    lines = []
    for first, *rest in rows:
        cells = [first.ljust(widths[0])] + [cell.rjust(width) for cell, width in zip(rest, widths[1:])]
        lines.append("  ".join(cells))
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "notebooks", nargs="*", type=Path, help="default: every notebook of notebooks/, in order"
    )
    parser.add_argument("--html", type=Path, metavar="DIR", help="write executed copies and pages to DIR")
    parser.add_argument("--timeout", type=int, default=600, metavar="S", help="seconds a cell may take (600)")
    options = parser.parse_args(arguments)
    paths = options.notebooks or sorted(NOTEBOOKS.glob("*.ipynb"))
    if missing := [str(path) for path in paths if not path.is_file()]:
        print(f"no such notebook: {', '.join(missing)}", file=sys.stderr)
        return 1
    if not paths:
        print(f"no notebooks in {NOTEBOOKS}", file=sys.stderr)
        return 1
    start, minutes = time.time(), {}
    for path in paths:
        begun = time.monotonic()
        # later notebooks build on what earlier ones made: stop at the first that fails
        if failure := run(path, options.html, options.timeout):
            print(failure, file=sys.stderr)
            return 1
        minutes[path.stem] = (time.monotonic() - begun) / 60
    if options.html:
        rows = [f"{name},{minute:.1f}" for name, minute in minutes.items()]
        write(options.html / "minutes.csv", "\n".join(["notebook,minutes", *rows]) + "\n")
    results = options.html and options.html / "results.csv"
    if results and results.is_file() and results.stat().st_mtime >= start:
        print(f"\n{table(results)}\n\nPages and results are in {options.html}/")
    return 0


if __name__ == "__main__":
    sys.exit(main())
