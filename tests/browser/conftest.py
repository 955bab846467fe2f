"""JupyterLab on loopback, and Chromium driven by Playwright."""

import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import nbformat
import pytest
from nbformat.sign import NotebookNotary

ROOT = Path(__file__).resolve().parents[2]
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
TOKEN = "browser-test"
SETTINGS = {
    "@jupyterlab/apputils-extension:notification": {"fetchNews": "false"},
    "@jupyterlab/notebook-extension:tracker": {"windowingMode": "none"},  # all cells are in the page
}


@pytest.fixture(scope="session")
def lab(tmp_path_factory):
    """The address of a notebook, `{}`, in a JupyterLab that has trusted copies of all; ended with its kernels."""
    folder = tmp_path_factory.mktemp("lab")
    shutil.copytree(ROOT / "notebooks", folder / "notebooks")
    (ROOT / "runs").mkdir(exist_ok=True)
    for name in ("runs", "data"):
        (folder / name).symlink_to(ROOT / name)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    own = {f"JUPYTER_{name}_DIR": str(folder / "jupyter" / name) for name in ("CONFIG", "DATA", "RUNTIME")}
    Path(own["JUPYTER_DATA_DIR"]).mkdir(parents=True)
    notary = NotebookNotary(data_dir=own["JUPYTER_DATA_DIR"])
    for path in (folder / "notebooks").glob("*.ipynb"):
        notary.sign(nbformat.read(path, as_version=4))
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
        yield f"{address}/lab/tree/notebooks/{{}}.ipynb?token={TOKEN}&reset"
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


@pytest.fixture(scope="session")
def page():
    assert CHROMIUM, "no Chromium found; on Debian: apt-get install chromium"
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        names = "no-sandbox", "disable-gpu", "disable-dev-shm-usage", "disable-background-networking"
        flags = [f"--{name}" for name in names]
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=flags)
        page = browser.new_page(viewport={"width": 1400, "height": 1000}, has_touch=True)
        page.set_default_timeout(600_000)  # milliseconds
        yield page
        browser.close()
