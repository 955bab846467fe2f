"""The notebooks in a real browser: JupyterLab on loopback, Chromium driven by Playwright.

    make test-browser
    make test-browser NOTEBOOKS=02      only the notebooks whose name contains it

Every explorer must answer to keys, mouse, finger and lists in JupyterLab and in the exported page without a network,
first as the notebooks were saved, then after all cells have run. No figure may be squeezed; a toy that is dragged in
the clip maker must be captioned. What
`python -m gitdistill page` writes must draw and caption as Python does; its test fetches onnxruntime-web once by npm.
Screenshots go to runs/browser/. Not part of `make test`: it needs a Chromium and takes as long as the notebooks.
"""

import base64
import os
import subprocess
import time
from functools import partial
from pathlib import Path

import nbformat
import numpy as np
import pytest
import run_notebooks
import torch

from gitdistill import load_student, load_teacher
from gitdistill.decoding import greedy
from gitdistill.inspection import told
from gitdistill.use import onnx_export
from gitdistill.use import page as command
from gitdistill.world import Clips, Scene, draw

pytestmark = pytest.mark.browser

ROOT = Path(__file__).resolve().parents[2]
SHOTS = ROOT / "runs" / "browser"
CHOSEN = os.environ.get("NOTEBOOKS", "")
NAMES = sorted(p.stem for p in (ROOT / "notebooks").glob("*.ipynb") if CHOSEN in p.stem)
PATIENCE = 60  # seconds that a caption may take on a busy machine; the time it took is printed
IDLE = "window.jupyterapp?.shell.currentWidget?.sessionContext?.session?.kernel?.status === 'idle'"
RUN_ALL = "window.jupyterapp.commands.execute('notebook:run-all-cells')"
# All that an explorer shows: its text, which words are chosen, and the pixels of its canvases.
SHOWN = """host => {
  const root = host.shadowRoot;
  const chosen = [...root.querySelectorAll('[aria-pressed="true"], tr.chosen')].map((node) => node.textContent);
  const pixels = [...root.querySelectorAll('canvas')].map((node) => node.toDataURL());
  const drawn = [...root.querySelectorAll('svg')].map((node) => node.outerHTML);
  return JSON.stringify([root.textContent, chosen, pixels, drawn]);
}"""
WIDTHS = "img => [img.clientWidth, +img.getAttribute('width') || img.naturalWidth]"
VARIED = """host => [...host.shadowRoot.querySelectorAll('canvas')].map((node) => {
  const seen = new Set(node.getContext('2d').getImageData(0, 0, node.width, node.height).data);
  return seen.size;
})"""


def play(page, shot):
    """Every explorer of the page answers to keys, boxes, lists, mouse and finger, and draws more than one colour."""
    hosts = page.locator(".gitdistill-explorer")
    assert hosts.count() > 0
    for k in range(hosts.count()):
        host = hosts.nth(k)
        host.scroll_into_view_if_needed()
        page.wait_for_timeout(300)
        assert host.evaluate("host => !!host.shadowRoot"), f"explorer {k + 1} did not start"
        assert min(host.evaluate(VARIED), default=9) > 8, f"explorer {k + 1} has an empty canvas"
        seen = [host.evaluate(SHOWN)]
        for key in ("ArrowLeft", "ArrowLeft", "ArrowRight"):
            start = time.monotonic()
            host.locator(".explorer").focus()
            page.keyboard.press(key)
            seen.append(host.evaluate(SHOWN))
            print(f"{shot}, explorer {k + 1}: {1000 * (time.monotonic() - start):.0f} ms")
        assert len(set(seen)) > 1, f"explorer {k + 1} does not answer to its keys"
        for box in host.locator("input[type=checkbox]").all():
            before = host.evaluate(SHOWN)
            box.check()
            assert host.evaluate(SHOWN) != before, f"a box of explorer {k + 1} changes nothing"
            box.uncheck()
        for choice in host.locator("select").all():
            before, last = host.evaluate(SHOWN), choice.evaluate("list => list.options.length - 1")
            choice.select_option(index=last)
            assert last == 0 or host.evaluate(SHOWN) != before, f"a list of explorer {k + 1} changes nothing"
        assert point(host) >= 2, f"explorer {k + 1} has nothing to point at"
        host.screenshot(path=SHOTS / f"{shot}_explorer_{k + 1}.png")


def point(host):
    """Words, cells, candidates and sliders answer to the mouse, then to a finger. Returns how often one was asked."""
    acts = []
    for kind in ("button.word", "section .frames canvas", ".node"):
        if host.locator(kind).count() > 1:
            acts += [host.locator(kind).first.hover, host.locator(kind).last.tap]
    for slider in host.locator("input[type=range]").all():
        width, height = (slider.bounding_box()[side] for side in ("width", "height"))
        middle, left = ({"x": x, "y": height / 2} for x in (width / 2, 3))
        acts += [partial(slider.click, position=middle), partial(slider.tap, position=left)]
    for act in acts:
        before = host.evaluate(SHOWN)
        act()
        assert host.evaluate(SHOWN) != before, f"{act} changes nothing"
    return len(acts)


def drag_toy(page, maker, shot):
    """Drag the first toy until it is drawn and captioned anew."""
    picture, toy = maker.locator(".stage img"), maker.locator(".toy").first
    before, place = picture.get_attribute("src"), toy.bounding_box()
    x, y = place["x"] + 22, place["y"] + 22
    page.mouse.move(x, y)
    page.mouse.down()
    start = time.monotonic()
    page.mouse.move(x + 30, y + 20)
    while picture.get_attribute("src") == before:
        assert time.monotonic() - start < PATIENCE, "a dragged toy was not drawn anew"
        page.wait_for_timeout(5)
    print(f"{shot}: a dragged toy is captioned after {1000 * (time.monotonic() - start):.0f} ms")
    page.mouse.up()


def drag_toys(page, shot):
    """A toy of each clip maker is dragged: within `PATIENCE` the clip is drawn and captioned anew."""
    makers = page.locator("[aria-label='clip maker']")
    for k in range(makers.count()):
        maker = makers.nth(k)
        maker.scroll_into_view_if_needed()
        drag_toy(page, maker, shot)
        maker.get_by_text("keep this clip").click()
        maker.get_by_text("Of 1 clips right").wait_for()
        maker.screenshot(path=SHOTS / f"{shot}_clip_maker_{k + 1}.png")


@pytest.mark.parametrize("name", NAMES)
def test_exported_page_without_a_network(page, name, tmp_path):
    """The committed notebook as a page on disk: nothing is fetched, and all explorers work."""
    SHOTS.mkdir(parents=True, exist_ok=True)
    notebook = nbformat.read(ROOT / "notebooks" / f"{name}.ipynb", as_version=4)
    path, asked, errors = tmp_path / f"{name}.html", [], []
    path.write_text(run_notebooks.render(notebook, ROOT / "notebooks", name), encoding="utf-8")

    def note(error):
        errors.append(str(error))

    def answer(route):
        asked.append(route.request.url)
        route.abort()

    page.route(lambda url: url.startswith("http"), answer)
    page.on("pageerror", note)
    try:
        page.goto(path.as_uri())
        page.wait_for_timeout(500)
        play(page, f"{name}_page")
    finally:
        page.unroute_all()
        page.remove_listener("pageerror", note)
    assert not errors and not asked, (errors, asked)


@pytest.mark.parametrize("name", NAMES)
def test_saved_notebook(lab, page, name):
    """The committed notebook in JupyterLab, trusted and not run: all explorers work without what a kernel knows."""
    SHOTS.mkdir(parents=True, exist_ok=True)
    page.goto(lab.format(name))
    page.wait_for_selector(".jp-CodeCell")
    page.wait_for_function(IDLE)
    play(page, f"{name}_saved")


@pytest.mark.parametrize("name", NAMES)
def test_notebook(lab, page, name):
    SHOTS.mkdir(parents=True, exist_ok=True)
    page.goto(lab.format(name))
    page.wait_for_selector(".jp-CodeCell")
    page.wait_for_function(IDLE)
    assert page.evaluate(RUN_ALL), f"a cell of {name} failed: {first_error(page)}"
    page.wait_for_timeout(1000)
    assert first_error(page) is None
    figures = page.locator(".jp-RenderedImage img")
    assert figures.count() > 0
    for k in range(figures.count()):
        figures.nth(k).scroll_into_view_if_needed()
        shown, real = figures.nth(k).evaluate(WIDTHS)
        assert shown >= 0.95 * real > 0, f"figure {k + 1} of {name} is squeezed: its letters get too small"
        page.screenshot(path=SHOTS / f"{name}_figure_{k + 1}.png")
    play(page, name)
    drag_toys(page, name)


def first_error(page):
    """The first error or warning that a cell shows, or None."""
    warning = '.jp-OutputArea-output[data-mime-type="application/vnd.jupyter.stderr"]'
    found = page.locator(f"{warning}, .jp-mod-error").all()
    return found[0].inner_text()[:500] if found else None


CLIPS = 200  # that the page must draw and caption exactly as Python does
RUNTIME = ROOT / "runs" / command.RUNTIME
SHOWN_THERE = {"student": "student", "same student without a teacher": "baseline", "teacher": "teacher"}
BOTH = """async ([toys, ground, count]) => {
  const frames = window.clips.draw(toys, ground), said = [];
  for (let k = 0; k < count; k += 1) {
    const start = performance.now(), { tokens, words } = await window.clips.decode(k, frames);
    said.push([tokens, performance.now() - start, words.map(({ maps }) => Array.from(maps))]);
  }
  const pixels = Array.from(frames, (value) => String.fromCharCode(value)).join("");
  return [btoa(pixels), said];
}"""


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """The page of the networks of the repository."""
    if not RUNTIME.is_file():
        RUNTIME.parent.mkdir(exist_ok=True)
        subprocess.run(["npm", "pack", f"onnxruntime-web@{command.VERSION}"], cwd=RUNTIME.parent, check=True)
    folder = tmp_path_factory.mktemp("page")
    for name in SHOWN_THERE.values():
        onnx_export.main([str(ROOT / "data" / name), str(folder / name)])
    others = [f"--network={name}={folder / path}" for name, path in SHOWN_THERE.items() if name != "student"]
    command.main([str(folder / "student"), *others, "--runtime", str(RUNTIME)])
    return folder / "student" / "index.html"


def test_a_page_draws_and_captions_as_python_does(page, written):
    SHOTS.mkdir(parents=True, exist_ok=True)
    networks = [
        load_teacher("toybox") if name == "teacher" else load_student(ROOT / "data" / name)
        for name in SHOWN_THERE.values()
    ]
    asked, took, clips = [], [], Clips("test", CLIPS)
    page = page.context.browser.new_page(offline=True)
    page.on("request", lambda request: asked.append(request.url))
    page.goto(written.as_uri())
    maker = page.locator("[aria-label='clip maker']")
    maker.locator(".toy").first.wait_for()
    drag_toy(page, maker, "page")
    word = maker.locator("button.word").nth(1)
    word.hover()
    assert word.get_attribute("aria-pressed") == "true"
    page.screenshot(path=SHOTS / "page.png")
    for k in range(CLIPS):
        toys = [toy._replace(mirrored=False) for toy in clips.scene(k).toys]
        ground = clips.scene(k).ground[0]
        frames = draw(Scene(toys, ground, arrangement="free"))
        listed = [{**toy._asdict(), "colour": toy.colour or ""} for toy in toys]
        pixels, said = page.evaluate(BOTH, [listed, ground, len(networks)])
        assert np.array_equal(np.frombuffer(base64.b64decode(pixels), np.uint8), frames.ravel()), toys
        for of, (tokens, _, maps) in zip(networks, said, strict=True):
            ours = greedy(of.model, torch.from_numpy(frames)[None], **of.decoding).tokens[0, 0]
            assert tokens == ours[ours != of.model.pad_token_id].tolist(), toys
            if k < 10:
                heads = told(of.model, of.tokenizer, frames)["heads"].mean((0, 1)).flatten(2)
                maps = torch.tensor(maps).unflatten(
                    1, (len(frames), -1)
                )  # of a teacher with its class tokens
                torch.testing.assert_close(maps[:, :, -heads.shape[2] :], heads, rtol=1e-3, atol=1e-5)
        took.append([time for _, time, _ in said])
    times = ", ".join(f"{name} {ms:.0f} ms" for name, ms in zip(SHOWN_THERE, np.median(took, 0)))
    print(f"page of {written.stat().st_size / 1e6:.1f} MB: {CLIPS} clips, median time of a caption: {times}")
    inside = ("file:", "data:", "blob:")
    assert all(address.startswith(inside) for address in asked), asked
