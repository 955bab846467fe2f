"""The package keeps its shape: which room imports which, and how long files and functions are.

The core is what distillation needs; the wings stand beside it. Imports are read from the source, those inside functions
too. Each test names every offender.
"""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
CORE = {"models", "decoding", "hooks", "distillation", "metrics"}
WINGS = {"world", "data", "inspection", "viz", "use", "__main__"}
FORBIDDEN = {
    "models": WINGS | {"distillation"},
    "decoding": WINGS | CORE - {"decoding"},
    "hooks": WINGS | CORE - {"hooks"},
    "distillation": WINGS,
    "metrics": WINGS,
    "viz": {"models", "distillation", "decoding"},
    "counts": WINGS | CORE,
    "escape": WINGS | CORE,
}
NOT_FIRST = ("models.checkpoints", "models.storage")  # who reads the core for the first time skips these
FIRST = ("models", "hooks", "distillation.losses", "distillation.targets")
FIRST += ("distillation.caption_trainer", "distillation.trainer")


def read(folder):
    """Module name, without the package's -> source, of each file of a package."""
    sources = {}
    for path in sorted(folder.rglob("*.py")):
        parts = path.relative_to(folder).with_suffix("").parts
        sources[".".join(part for part in parts if part != "__init__")] = path.read_text(encoding="utf-8")
    return sources


SOURCES = read(ROOT / "gitdistill")


def within(name, places):
    """Whether a module is one of `places` or lies in one of them."""
    return any(name == place or name.startswith(f"{place}.") for place in places)


def room(name):
    return name.split(".")[0]


def imported(source, modules):
    """The modules of the package that a source imports; a string that is a module's full name counts, too.

    The package itself is the module "".
    """
    names = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, "relative imports are not used here"
            inner = {f"{node.module}.{alias.name}" for alias in node.names}
            known = {name for name in inner if name.removeprefix("gitdistill.") in modules}
            names |= known | ({node.module} if inner - known else set())
        elif isinstance(node, ast.Constant) and str(node.value).startswith("gitdistill."):
            names.add(node.value)
    names = {
        name.removeprefix("gitdistill").removeprefix(".") for name in names if room(name) == "gitdistill"
    }
    return names & set(modules)


def graph(sources):
    """Module -> the modules that it imports; what an __init__.py offers by name is left out."""
    return {name: imported(source, sources) - {name} for name, source in sources.items() if name}


def forbidden(edges):
    for name, targets in edges.items():
        for target in sorted(targets):
            if not target:
                yield f"{name} imports gitdistill instead of the module where the name lives"
            elif room(target) in FORBIDDEN.get(room(name), ()):
                yield f"{name} imports {target}"


def circles(edges):
    """The groups of modules, or rooms, that reach one another."""
    reached = {}
    for name in edges:
        reached[name], ahead = set(), [name]
        while ahead:
            new = edges.get(ahead.pop(), set()) - reached[name]
            reached[name] |= new
            ahead += new
    groups = {frozenset(b for b in reached[a] if a in reached.get(b, ())) for a in edges}
    return sorted(" <-> ".join(sorted(group)) for group in groups if len(group) > 1)


def rooms(edges):
    """The same graph with a room's modules taken together."""
    found = {}
    for name, targets in edges.items():
        found.setdefault(room(name), set()).update({room(target) for target in targets} - {room(name), ""})
    return found


def test_the_core_imports_no_wing_and_viz_no_model():
    offenders = list(forbidden(graph(SOURCES)))
    assert not offenders, "\n".join(offenders)


def test_no_circles_between_modules_or_rooms():
    edges = graph(SOURCES)
    offenders = circles(edges) + circles(rooms(edges))
    assert not offenders, "\n".join(offenders)


def chosen(places, without=()):
    return {name: text for name, text in SOURCES.items() if within(name, places) and name not in without}


BUDGETS = {
    "core": (chosen(CORE), 4755),
    "first reading": (chosen(FIRST, without=NOT_FIRST), 2272),
    "package": (SOURCES, 13611),
    "tests": (read(ROOT / "tests"), 13676),
}


@pytest.mark.parametrize("name", BUDGETS)
def test_lines_in_all(name):
    sources, most = BUDGETS[name]
    lengths = {module: len(source.splitlines()) for module, source in sources.items()}
    total, longest = sum(lengths.values()), sorted(lengths.items(), key=lambda item: -item[1])[:8]
    assert total <= most, f"{name}: {total} lines, at most {most} are wanted; the longest are {longest}"


def misshapen(sources, file=400, function=40):
    """Files and functions that are too long, and objects that are given another class."""
    for name, source in sources.items():
        if (lines := len(source.splitlines())) > file:
            yield f"{name} has {lines} lines, at most {file} are wanted"
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                if (lines := node.end_lineno - node.lineno + 1) > function:
                    yield f"{name}.{node.name} has {lines} lines, at most {function} are wanted"
            elif isinstance(node, ast.Attribute) and (node.attr, type(node.ctx)) == ("__class__", ast.Store):
                yield f"{name}, line {node.lineno}, assigns __class__"


def test_no_long_file_no_long_function_no_class_assigned():
    offenders = list(misshapen(SOURCES))
    assert not offenders, "\n".join(offenders)


def test_the_map_of_the_package_names_every_file_of_the_core():
    text = (ROOT / "gitdistill" / "README.md").read_text(encoding="utf-8")
    files = [
        f"{name.replace('.', '/')}.py" for name in chosen(CORE) if name not in CORE - {"hooks", "metrics"}
    ]
    assert not [file for file in files if f"`{file}`" not in text]


def test_these_checks_see_each_fault():
    sources = {
        "": "from importlib import import_module",
        "models": "from gitdistill.models import git",
        "models.git": "def f():\n    from gitdistill.distillation.losses import kl",
        "distillation": "",
        "distillation.losses": "import_module('gitdistill.models.git')",
        "hooks": "from gitdistill import greedy",
        "viz": "import gitdistill.models.git as git\ngit.net.__class__ = int",
    }
    edges = graph(sources)
    assert list(forbidden(edges)) == [
        "models.git imports distillation.losses",
        "hooks imports gitdistill instead of the module where the name lives",
        "viz imports models.git",
    ]
    assert circles(edges) == ["distillation.losses <-> models.git"]
    assert circles(rooms(edges)) == ["distillation <-> models"]
    assert list(misshapen(sources, file=1, function=1)) == [
        "models.git has 2 lines, at most 1 are wanted",
        "models.git.f has 2 lines, at most 1 are wanted",
        "viz has 2 lines, at most 1 are wanted",
        "viz, line 2, assigns __class__",
    ]
