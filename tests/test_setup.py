"""The files that set the project up agree with each other."""

import ast
import os
import re
import subprocess
import sys
from fnmatch import fnmatch
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


PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
PROJECT = PYPROJECT["project"]
EXTRAS = PROJECT["optional-dependencies"]
REQUIRED = [Requirement(text) for texts in (PROJECT["dependencies"], *EXTRAS.values()) for text in texts]


def test_conda_environment_agrees_with_pyproject():
    """Its name, a Python that the package accepts, pip, and this folder with the development tools; nothing else."""
    environment = yaml.safe_load((ROOT / "environment.yml").read_text(encoding="utf-8"))
    assert environment["name"] == PROJECT["name"]
    python, *rest = environment["dependencies"]
    name, exact = re.fullmatch(r"(\w+)=([\d.]+)", python).groups()
    assert name == "python" and Version(exact) in SpecifierSet(PROJECT["requires-python"])
    assert rest == ["pip", {"pip": ["-e .[dev]"]}]
    own = next(r for r in map(Requirement, EXTRAS["dev"]) if r.name == PROJECT["name"])
    assert own.extras | {"dev", "browser"} == set(EXTRAS)  # these tests use all but the browser's


def test_every_requirement_is_a_range_stated_once():
    """A lower bound each; no exact pins, no address; nothing twice."""
    others = [requirement for requirement in REQUIRED if requirement.name != PROJECT["name"]]
    for requirement in others:
        operators = {specifier.operator for specifier in requirement.specifier}
        assert ">=" in operators and operators <= {">=", "<", "!="}, str(requirement)
        assert requirement.url is None
    assert len({requirement.name for requirement in others}) == len(others)


def test_packages_that_the_code_imports_are_required():
    """Nothing is there only because something else happens to bring it."""
    required = {canonicalize_name(requirement.name) for requirement in REQUIRED}
    renamed = {"PIL": "pillow", "yaml": "pyyaml", "IPython": "ipykernel", "tomli": "pytest"}
    scripts = ("tests", "tools", "experiments", "benchmarks")
    files = [file for folder in ("gitdistill", *scripts) for file in sorted((ROOT / folder).rglob("*.py"))]
    own = {"gitdistill"} | {file.stem for file in files if ROOT / "gitdistill" not in file.parents}
    for file in files:
        for name in imported(file) - own - set(sys.stdlib_module_names):
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


def test_every_folder_of_the_package_is_installed():
    """Each has an __init__.py and a name that setuptools' pattern covers."""
    (pattern,) = PYPROJECT["tool"]["setuptools"]["packages"]["find"]["include"]
    folders = {file.parent for file in (ROOT / "gitdistill").rglob("*.py")}
    for folder in folders:
        assert (folder / "__init__.py").is_file(), f"{folder.relative_to(ROOT)} has no __init__.py"
        assert fnmatch(".".join(folder.relative_to(ROOT).parts), pattern)


def test_nbval_settings_are_read_whole():
    """nbval silently skips a regex that is not followed at once by its replacement."""
    from nbval.plugin import get_sanitize_patterns

    text = (ROOT / "nbval_sanitize.cfg").read_text(encoding="utf-8")
    patterns = get_sanitize_patterns(text)
    assert len(patterns) == text.count("\n[") == text.count("\nregex:") > 0
    line = "<A at 0x7f3a5c00> took 12.5 ms, 3 it/s, /a/b/site-packages/torch\n 5%|##   | 1/20 [00:01<00:19]"
    for regex, replacement in patterns:
        line = re.sub(regex, replacement, line)
    assert line == "<A at 0xADDRESS> took TIME, RATE, SITE/torch\nPROGRESS"


def test_continuous_integration_lints_and_tests():
    """The script and the workflow run the same two commands; the workflow on Linux and macOS."""
    script = ROOT / ".ci" / "run"
    assert os.access(script, os.X_OK)
    assert subprocess.run(["bash", "-n", script], check=False).returncode == 0
    lines = script.read_text(encoding="utf-8").splitlines()
    assert lines[-2:] == ["make lint", "make test"] and "set -euo pipefail" in lines
    (workflow,) = (ROOT / ".github" / "workflows").glob("*.yml")
    job = yaml.safe_load(workflow.read_text(encoding="utf-8"))["jobs"]["test"]
    assert [step["run"] for step in job["steps"] if "run" in step] == lines[-2:]
    systems = {entry["os"].split("-")[0] for entry in job["strategy"]["matrix"]["include"]}
    assert systems == {"ubuntu", "macos"}


def test_the_citation_agrees_with_pyproject():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["cff-version"] == "1.2.0" and citation["message"] and citation["title"]
    assert (citation["version"], citation["license"]) == (PROJECT["version"], PROJECT["license"])
    assert citation["authors"] == PROJECT["authors"]
    for reference in citation["references"]:
        assert {"type", "title", "authors"} <= set(reference)


@pytest.mark.parametrize("target", ["run", "test", "lab", "lint", "format", "notebooks"])
def test_every_target_sets_up_first_and_again_after_pyproject_changed(target, tmp_path, monkeypatch):
    for name in ("MAKELEVEL", "MAKEFLAGS", "MFLAGS"):  # the tests themselves may run under make
        monkeypatch.delenv(name, raising=False)
    (tmp_path / "Makefile").write_bytes((ROOT / "Makefile").read_bytes())
    (tmp_path / "pyproject.toml").touch()

    def dry_run():
        options = {"cwd": tmp_path, "capture_output": True, "text": True, "check": True}
        return subprocess.run(["make", "-n", target], **options).stdout

    fresh = dry_run()
    assert "-m venv .venv" in fresh and "pip install" in fresh
    stamp = tmp_path / ".venv" / ".installed"
    stamp.parent.mkdir()
    stamp.touch()
    again = dry_run()
    assert "pip" not in again and again in fresh
    later = stamp.stat().st_mtime + 10
    os.utime(tmp_path / "pyproject.toml", (later, later))
    assert "pip install" in dry_run()
