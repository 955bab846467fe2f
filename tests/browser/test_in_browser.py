"""The notebooks in a real browser: JupyterLab on loopback, Chromium driven by Playwright.

    make test-browser
    make test-browser NOTEBOOKS=02      only the notebooks whose name contains it

Runs all cells of each notebook. No figure may be squeezed, and every slider must change its picture when it is moved.
Screenshots go to runs/browser/. Not part of `make test`: it needs a Chromium and takes as long as the notebooks.
"""

import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest

pytestmark = pytest.mark.browser

ROOT = Path(__file__).resolve().parents[2]
SHOTS = ROOT / "runs" / "browser"
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
CHOSEN = os.environ.get("NOTEBOOKS", "")
NAMES = sorted(p.stem for p in (ROOT / "notebooks").glob("*.ipynb") if CHOSEN in p.stem)
TOKEN = "browser-test"
PATIENCE = 120  # seconds that a slider may take on a busy machine; the time it took is printed
SETTINGS = {
    "@jupyterlab/apputils-extension:notification": {"fetchNews": "false"},
    "@jupyterlab/notebook-extension:tracker": {"windowingMode": "none"},  # all cells are in the page
}


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    """The address of a JupyterLab that shows copies of the notebooks; ended with its kernels afterwards."""
    folder = tmp_path_factory.mktemp("lab")
    shutil.copytree(ROOT / "notebooks", folder / "notebooks")
    (ROOT / "runs").mkdir(exist_ok=True)
    for name in ("runs", "data"):
        (folder / name).symlink_to(ROOT / name)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    own = {f"JUPYTER_{name}_DIR": str(folder / "jupyter" / name) for name in ("CONFIG", "DATA", "RUNTIME")}
    options = [
        "--allow-root",
        "--no-browser",
        "--ip=127.0.0.1",
        f"--port={port}",
        "--ServerApp.port_retries=0",
    ]
    options += [f"--IdentityProvider.token={TOKEN}", f"--ServerApp.root_dir={folder}"]
    command = [sys.executable, "-m", "jupyterlab", *options, "--LabApp.expose_app_in_browser=True"]
    log = folder / "lab.log"
    with log.open("wb") as file:
        server = subprocess.Popen(command, env={**os.environ, **own}, stdout=file, stderr=file)
    address = f"http://127.0.0.1:{port}"
    try:
        wait_for(address, server, log)
        for plugin, values in SETTINGS.items():
            body = json.dumps({"raw": json.dumps(values)}).encode()
            request(f"{address}/lab/api/settings/{plugin}", "PUT", body)
        yield address
    finally:
        server.terminate()
        server.wait(30)


def request(address, method="GET", body=None):
    headers = {"Authorization": f"token {TOKEN}"}
    urllib.request.urlopen(urllib.request.Request(address, body, headers, method=method), timeout=30).close()


def wait_for(address, server, log):
    while server.poll() is None:
        try:
            return request(f"{address}/api/status")
        except OSError:  # it is not ready yet
            time.sleep(0.2)
    raise RuntimeError(f"JupyterLab did not start:\n{log.read_text()[-2000:]}")


@pytest.fixture(scope="module")
def page():
    assert CHROMIUM, "no Chromium found; on Debian: apt-get install chromium"
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        flags = [
            "--no-sandbox",
            "--disable-gpu",
            "--disable-dev-shm-usage",
            "--disable-background-networking",
        ]
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=flags)
        page = browser.new_page(viewport={"width": 1400, "height": 1000})
        page.set_default_timeout(600_000)  # milliseconds
        yield page
        browser.close()


IDLE = "window.jupyterapp?.shell.currentWidget?.sessionContext?.session?.kernel?.status === 'idle'"
RUN_ALL = "window.jupyterapp.commands.execute('notebook:run-all-cells')"
# The picture of a slider is the image in the same box of widgets.
PICTURE = "handle => handle.closest('.widget-vbox').querySelector('img').src"
AT_ITS_END = "handle => handle.getAttribute('aria-valuenow') === handle.getAttribute('aria-valuemax')"


def move(page, handle):
    """Press an arrow key; the milliseconds until the slider shows another picture, or None if it never does."""
    before, start = handle.evaluate(PICTURE), time.monotonic()
    handle.focus()
    page.keyboard.press("ArrowLeft" if handle.evaluate(AT_ITS_END) else "ArrowRight")
    while time.monotonic() - start < PATIENCE:
        if handle.evaluate(PICTURE) != before:
            return 1000 * (time.monotonic() - start)
        page.wait_for_timeout(10)
    return None


@pytest.mark.parametrize("name", NAMES)
def test_notebook(lab, page, name):
    SHOTS.mkdir(parents=True, exist_ok=True)
    page.goto(f"{lab}/lab/tree/notebooks/{name}.ipynb?token={TOKEN}&reset")
    page.wait_for_selector(".jp-CodeCell")
    page.wait_for_function(IDLE)
    assert page.evaluate(RUN_ALL), f"a cell of {name} failed: {first_error(page)}"
    page.wait_for_timeout(1000)
    assert first_error(page) is None
    figures = page.locator(".jp-RenderedImage img")
    assert figures.count() > 0
    for k in range(figures.count()):
        figures.nth(k).scroll_into_view_if_needed()
        shown, real = figures.nth(k).evaluate("img => [img.clientWidth, img.naturalWidth]")
        assert shown >= 0.95 * real > 0, f"figure {k + 1} of {name} is squeezed: its letters get too small"
        page.screenshot(path=SHOTS / f"{name}_figure_{k + 1}.png")
    sliders = page.locator(".widget-vbox .noUi-handle")
    for k in range(sliders.count()):
        handle = sliders.nth(k)
        handle.scroll_into_view_if_needed()
        milliseconds = move(page, handle)
        assert milliseconds, f"slider {k + 1} of {name} moved, but its picture stayed"
        print(f"{name}, slider {k + 1}: a new picture after {milliseconds:.0f} ms")
        page.screenshot(path=SHOTS / f"{name}_slider_{k + 1}.png")


def first_error(page):
    """The first error or warning that a cell shows, or None."""
    warning = '.jp-OutputArea-output[data-mime-type="application/vnd.jupyter.stderr"]'
    found = page.locator(f"{warning}, .jp-mod-error").all()
    return found[0].inner_text()[:500] if found else None
