"""The files that set the project up agree with each other."""

import ast
import configparser
import os
import re
import subprocess
import sys
from fnmatch import fnmatch
from importlib.metadata import version
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name
from packaging.version import Version

try:
    import tomllib
except ModuleNotFoundError:  # Python 3.10, where pytest brings the same library under its first name
    import tomli as tomllib

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def pyproject():
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def environment():
    return yaml.safe_load((ROOT / "environment.yml").read_text(encoding="utf-8"))


def requirements(pyproject, without=()):
    project = pyproject["project"]
    lists = {"": project["dependencies"]} | project["optional-dependencies"]
    return [Requirement(text) for extra, texts in lists.items() if extra not in without for text in texts]


def test_conda_environment_agrees_with_pyproject(pyproject, environment):
    """Its name, a Python the package accepts, pip, and this folder with extras that exist; nothing else."""
    assert environment["name"] == pyproject["project"]["name"]
    python, pip, folder = environment["dependencies"]
    name, exact = re.fullmatch(r"(\w+)=([\d.]+)", python).groups()
    assert name == "python" and Version(exact) in SpecifierSet(pyproject["project"]["requires-python"])
    assert pip == "pip"
    (line,) = folder["pip"]
    extras = re.fullmatch(r"-e \.\[([\w,]+)\]", line)[1].split(",")
    offered = pyproject["project"]["optional-dependencies"]
    assert set(extras) <= set(offered)
    own = next(r for r in map(Requirement, offered["dev"]) if r.name == pyproject["project"]["name"])
    assert own.extras | {"dev", "browser"} == set(offered)  # these tests use all but the browser's


def test_every_requirement_is_a_range_stated_once(pyproject):
    """A lower bound each; no exact pins, no address; nothing twice."""
    own = [r for r in requirements(pyproject) if r.name != pyproject["project"]["name"]]
    for requirement in own:
        operators = {specifier.operator for specifier in requirement.specifier}
        assert ">=" in operators and operators <= {">=", "<", "!="}, str(requirement)
        assert requirement.url is None
    names = [requirement.name for requirement in own]
    assert len(names) == len(set(names))


def test_this_environment_satisfies_pyproject(pyproject):
    """What the tests run with is what pyproject.toml asks for."""
    for requirement in requirements(pyproject, without=["browser"]):
        assert requirement.specifier.contains(version(requirement.name), prereleases=True), str(requirement)


def test_packages_that_the_code_imports_are_required(pyproject):
    """Nothing is there only because something else happens to bring it."""
    required = {canonicalize_name(requirement.name) for requirement in requirements(pyproject)}
    renamed = {
        "PIL": "pillow",
        "yaml": "pyyaml",
        "IPython": "ipykernel",
        "packaging": "pytest",
        "tomli": "pytest",
    }
    scripts = ("tests", "tools", "experiments", "benchmarks")
    beside = {path.stem for folder in scripts for path in (ROOT / folder).glob("*.py")}  # import one another
    for folder in ("gitdistill", *scripts):
        for file in sorted((ROOT / folder).rglob("*.py")):
            for name in imported(file) - beside - {"gitdistill"} - set(sys.stdlib_module_names):
                package = canonicalize_name(renamed.get(name, name))
                assert package in required, f"{file.relative_to(ROOT)} imports {name}"


def imported(file):
    """First names of all absolute imports of a file, inside functions too."""
    names = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level:
            names.add(node.module.split(".")[0])
    return names


def test_every_folder_of_the_package_is_installed(pyproject):
    """Each has an __init__.py and a name that setuptools' pattern covers."""
    (pattern,) = pyproject["tool"]["setuptools"]["packages"]["find"]["include"]
    folders = {file.parent for file in (ROOT / "gitdistill").rglob("*.py")}
    for folder in folders:
        assert (folder / "__init__.py").is_file(), f"{folder.relative_to(ROOT)} has no __init__.py"
        assert fnmatch(".".join(folder.relative_to(ROOT).parts), pattern)


def test_nbval_settings_are_read_whole():
    """nbval silently skips a regex that is not followed at once by its replacement."""
    from nbval.plugin import get_sanitize_patterns

    text = (ROOT / "nbval_sanitize.cfg").read_text(encoding="utf-8")
    patterns = get_sanitize_patterns(text)
    parser = configparser.RawConfigParser()
    parser.read_string(text)
    assert len(patterns) == len(parser.sections()) == text.count("\nregex:") > 0
    line = "<A at 0x7f3a5c00> took 12.5 ms, 3 it/s, /a/b/site-packages/torch\n 5%|##   | 1/20 [00:01<00:19]"
    for regex, replacement in patterns:
        line = re.sub(regex, replacement, line)
    assert line == "<A at 0xADDRESS> took TIME, RATE, SITE/torch\nPROGRESS"


def test_continuous_integration_calls_make():
    script = ROOT / ".ci" / "run"
    assert os.access(script, os.X_OK)
    assert subprocess.run(["bash", "-n", script], check=False).returncode == 0
    lines = script.read_text(encoding="utf-8").splitlines()
    assert lines[-1] == "make test" and "set -euo pipefail" in lines


@pytest.fixture
def dry_make(tmp_path, monkeypatch):
    """`make -n TARGET` in a copy of the Makefile, with or without an installation that went through."""
    for name in ("MAKELEVEL", "MAKEFLAGS", "MFLAGS"):  # the tests themselves may run under make
        monkeypatch.delenv(name, raising=False)
    (tmp_path / "Makefile").write_bytes((ROOT / "Makefile").read_bytes())
    (tmp_path / "pyproject.toml").touch()

    def run(target, installed):
        stamp = tmp_path / ".venv" / ".installed"
        stamp.parent.mkdir(exist_ok=True)
        stamp.touch() if installed else stamp.unlink(missing_ok=True)
        done = subprocess.run(
            ["make", "-n", target], cwd=tmp_path, capture_output=True, text=True, check=True
        )
        return done.stdout

    return run


@pytest.mark.parametrize("target", ["run", "test", "lab", "lint", "format", "notebooks"])
def test_every_target_sets_up_first_and_only_once(dry_make, target):
    fresh = dry_make(target, installed=False)
    assert "-m venv .venv" in fresh and "pip install" in fresh
    again = dry_make(target, installed=True)
    assert "pip" not in again and again in fresh


def test_setup_again_after_pyproject_changed(dry_make, tmp_path):
    assert "pip install" not in dry_make("setup", installed=True)
    later = (tmp_path / ".venv" / ".installed").stat().st_mtime + 10
    os.utime(tmp_path / "pyproject.toml", (later, later))
    done = subprocess.run(["make", "-n", "setup"], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert "pip install" in done.stdout
