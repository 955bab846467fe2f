"""The static site: pages lead to pages, linked files are there, and nothing else is."""

import re

import nbformat
import pytest
import website


@pytest.fixture
def tree(tmp_path):
    (tmp_path / "notebooks").mkdir()
    (tmp_path / "README.md").write_text(
        "# Top\n\n[one](notebooks/01.ipynb), [folder](notebooks), [licence](LICENSE), [lost](nowhere.md),\n"
        "[web](https://example.org/README.md), [here](#top)\n"
    )
    (tmp_path / "notebooks" / "README.md").write_text("[up](../README.md#top), [outside](../../secret.md)\n")
    cell = nbformat.v4.new_markdown_cell("[back](README.md) $x^2$")
    nbformat.write(nbformat.v4.new_notebook(cells=[cell]), tmp_path / "notebooks" / "01.ipynb")
    (tmp_path / "LICENSE").write_text("MIT")
    (tmp_path / "unlinked.md").write_text("not on the site")
    return tmp_path


def links(page) -> list[str]:
    return re.findall(r'<a\b[^>]*\bhref="([^"]+)"', page.read_text(encoding="utf-8"))


def test_every_page_is_there_and_links_lead_to_pages(tree):
    out = tree / "site"
    assert len(website.build(out, tree / "README.md")) == 4
    files = sorted(path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_file())
    assert files == ["LICENSE", "index.html", "notebooks/01.html", "notebooks/index.html"]
    found = links(out / "index.html")
    assert {"notebooks/01.html", "notebooks/index.html", "LICENSE", "nowhere.md"} <= set(found)
    assert "https://example.org/README.md" in found
    assert "../index.html#top" in links(out / "notebooks" / "index.html")
    page = (out / "notebooks" / "01.html").read_text(encoding="utf-8")
    assert "index.html" in links(out / "notebooks" / "01.html") and "<msup>" in page
