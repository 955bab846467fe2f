"""The project as a static site: its README files and the committed notebooks with their explorers, without a server.

    python tools/website.py          writes runs/site/, ready for GitHub Pages; `make site` does the same

A page stands for each .md and .ipynb file that is reached from README.md; other files that are linked are copied.
"""

import html
import os
import re
import shutil
import sys
from pathlib import Path

import nbformat
from run_notebooks import render, write

ROOT = Path(__file__).resolve().parents[1]
LINK = re.compile(r'(<a\b[^>]*\bhref=")(?![a-z]+:|#)([^"#]+)')  # relative ones
PAGES = (".md", ".ipynb")


def page_of(path: Path) -> Path:
    """Where the page of a file lies: a README is the index of its folder."""
    return path.with_name("index.html") if path.name == "README.md" else path.with_suffix(".html")


def build(out: Path, start: Path = ROOT / "README.md") -> list[Path]:
    """Write the site to `out`; returns the files that stand on it."""
    todo, done = [start.resolve()], []
    while todo:
        path = todo.pop()
        if path in done:
            continue
        done.append(path)
        place = path.relative_to(start.parent)
        if path.suffix in PAGES:
            page, linked = linked_page(path)
            write(out / page_of(place), page)
            todo += [other for other in linked if other.is_relative_to(start.parent) and other not in done]
        else:
            (out / place).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, out / place)
    return done


def linked_page(path: Path) -> tuple[str, list[Path]]:
    """The page of a Markdown file or notebook, whose links lead to other pages; and the files that they lead to."""
    if path.suffix == ".md":
        cells = [nbformat.v4.new_markdown_cell(path.read_text(encoding="utf-8"))]
        notebook = nbformat.v4.new_notebook(cells=cells)
    else:
        notebook = nbformat.read(path, as_version=4)
    linked = []

    def follow(found: re.Match) -> str:
        target = (path.parent / html.unescape(found[2])).resolve()
        if target.is_dir() and (target / "README.md").is_file():
            target = target / "README.md"
        if not target.is_file():
            return found[0]
        linked.append(target)
        shown = page_of(target) if target.suffix in PAGES else target
        return found[1] + Path(os.path.relpath(shown, path.parent)).as_posix()

    title = "gitdistill" if path.name == "README.md" else path.stem
    return LINK.sub(follow, render(notebook, path.parent, title)), linked


def main() -> int:
    out = ROOT / "runs" / "site"
    shutil.rmtree(out, ignore_errors=True)
    print(f"{len(build(out))} files are in {out.relative_to(ROOT)}/; open index.html there")
    return 0


if __name__ == "__main__":
    sys.exit(main())
