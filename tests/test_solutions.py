"""Every solution that a notebook offers passes its exercise's check, and a plausible wrong one does not.

The solution is the code folded away below the exercise; it replaces the reader's stub in the cell that checks. Of the
cells before, only those run that the exercise needs, so nothing is trained.
"""

import ast
import builtins
import re
import symtable
from itertools import product
from pathlib import Path

import nbformat
import pytest
import torch

from gitdistill import GenerativeImageTextTeacher, StudentCandidateV1, decoding

FOLDER = Path(__file__).parents[1] / "notebooks"
SOLUTION = re.compile(r"<summary>Solution</summary>\s*```python\n(.*?)```", re.DOTALL)
NUMBER = re.compile(r"^\*\*(\d)\. ", re.MULTILINE)
STUB = re.compile(r"# your (answer|code)")

# For each exercise that has a check, what to replace in its solution to make it wrong, as a reader might.
WRONG = {
    "01 exercise 1": ("torch.block_diag(*[triangle] * captions)", "triangle.repeat(captions, captions)"),
    "01 exercise 2": ("argmin()", "argmax()"),
    "01 exercise 3": ("2 * 2 * D", "2 * D"),
    "01 exercise 4": ('"head"', '"image tokens"'),
    "02 exercise 1": ("share.argmax()", "share.argmin()"),
    "02 exercise 2": ("y.clone()", "y"),
    "02 exercise 3": ("output[:, 0] = 0", "output[:, 1] = 0"),
    "03 exercise 1": ("(1 - (", "(2 - ("),
    "03 exercise 2": ("/ 2)", ")"),
    "03 exercise 3": ('"features", ', '"features", "KL", '),
    "04 exercise 1": ("((5 + n) / 6)", "((6 + n) / 6)"),
    "04 exercise 2": ("total.topk(2)", "total.topk(2, largest=False)"),
    "04 exercise 3": ('("teacher", "distilled student")', '("teacher",)'),
}


def exercises():
    """Name -> (code cells before the exercise's, its own source, the solution's code)."""
    found = {}
    for path in sorted(FOLDER.glob("*.ipynb")):
        cells = nbformat.read(path, as_version=4).cells
        for place, cell in enumerate(cells):
            solution = SOLUTION.search(cell.source)
            if cell.cell_type != "markdown" or not solution:
                continue
            number = NUMBER.search(cell.source)[1]
            before = [c.source for c in cells[:place] if c.cell_type == "code"]
            after = cells[place + 1].source if place + 1 < len(cells) else ""
            found[f"{path.stem[:2]} exercise {number}"] = before, after, solution[1]
    return found


EXERCISES = exercises()


def solved(source, solution):
    """An exercise's cell with the statement that the reader is to write replaced."""
    lines = source.split("\n")
    for node in ast.parse(source).body:
        if STUB.search("\n".join(lines[node.lineno - 1 : node.end_lineno])):
            return "\n".join([*lines[: node.lineno - 1], solution, *lines[node.end_lineno :]])
    raise ValueError(f"nothing for the reader to write in\n{source}")


def names(source):
    """The names that a cell leaves behind, and those that it needs from other cells."""
    made, read = set(), set()
    for node in ast.parse(source).body:
        table = symtable.symtable(ast.unparse(node), "cell", "exec")
        assigned = {s.get_name() for s in table.get_symbols() if s.is_assigned() or s.is_imported()}
        used = set(read_by(table)) | (assigned if isinstance(node, ast.AugAssign) else set())
        if isinstance(node, ast.For | ast.With | ast.Try | ast.If):  # what it binds is its own
            used -= assigned
        read |= used - made
        made |= assigned
    return made, read


def read_by(table, top=True):
    """The names that a piece of code, its functions included, reads and does not make."""
    for symbol in table.get_symbols():
        if symbol.is_referenced() and (top or symbol.is_global()):
            yield symbol.get_name()
    for inner in table.get_children():
        yield from read_by(inner, top=False)


def needed(before, source):
    """Those of the cells `before` that make a name which `source`, or another of them, reads."""
    wanted, chosen = names(source)[1], []
    for cell in reversed(before):
        made, read = names(cell)
        if made & wanted:
            chosen.insert(0, cell)
            wanted = wanted - made | read
    return chosen


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Where notebook 04 finds the two students that it asks for, untrained ones: no exercise needs better."""
    root = tmp_path_factory.mktemp("project")
    teacher = GenerativeImageTextTeacher.from_pretrained("toybox")
    for name in ("student", "baseline"):
        StudentCandidateV1.like(teacher, backbone="toybox").save_pretrained(root / "runs" / name)
    (root / "data").symlink_to(FOLDER.parent / "data")
    (root / "notebooks").mkdir()
    return root / "notebooks"


@pytest.fixture
def run(monkeypatch, folder):
    """Executes a cell in a namespace, in a notebooks' folder; gradients are on again afterwards."""
    monkeypatch.chdir(folder)
    monkeypatch.setattr(builtins, "print", lambda *args, **kwargs: None)
    with torch.enable_grad():
        yield lambda cell, space: exec(compile(cell, "cell", "exec"), space)


def known(name):
    """What is given to an exercise because measuring it takes too long here: the results of all searches."""
    if name != "04 exercise 3":
        return {}
    searches = dict.fromkeys(("greedy", "4 beams"), decoding.greedy)
    pairs = product(("teacher", "distilled student"), searches)
    points = [{"network": network, "search": search, "score": 1.0} for network, search in pairs]
    return {"points": points, "SEARCHES": searches}


@pytest.mark.parametrize("name", EXERCISES)
def test_the_solution_is_right_and_a_wrong_one_is_not(run, name):
    before, source, solution = EXERCISES[name]
    old, new = WRONG[name]
    assert solution.count(old) == 1
    space = known(name)
    given = "".join(f"{key} = None\n" for key in space)
    for cell in needed(before, given + solved(source, solution)):
        run(cell + ("\nclips = clips[:4]" if given and "clips" in names(cell)[0] else ""), space)
    run(solved(source, solution), space)
    with pytest.raises(AssertionError):
        run(solved(source, solution.replace(old, new)), space)
