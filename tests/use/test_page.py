"""The page of a network in ONNX, without a browser: `tests/browser` opens it."""

import base64
import gzip
import hashlib
import io
import re
import tarfile
from html.parser import HTMLParser
from types import SimpleNamespace

import numpy as np
import pytest

from gitdistill.data.video import FrameRule
from gitdistill.use import page
from gitdistill.use.onnx import SETTINGS, STUDENT
from gitdistill.viz.explorers import asset
from gitdistill.world import sprites
from gitdistill.world.module import toybox_tokenizer


class Reader(HTMLParser):
    """The attributes of all elements, and the text of those with an id."""

    def __init__(self, text):
        super().__init__()
        self.attributes, self.texts, self.inside = [], {}, None
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.attributes += attributes
        self.inside = dict(attributes).get("id")

    def handle_data(self, data):
        self.texts[self.inside] = self.texts.get(self.inside, "") + data

    def part(self, name):
        return gzip.decompress(base64.b64decode(self.texts[name]))


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A stand-in of a student of two frames in ONNX, since an export takes a minute."""

    def read(path, *kinds):
        model = SimpleNamespace(**dict.fromkeys(SETTINGS, 3), architecture=STUDENT)
        rest = {"rule": FrameRule(2), "decoding": {"max_length": 9}, "size": 48}
        return SimpleNamespace(model=model, tokenizer=toybox_tokenizer(), **rest)

    monkeypatch.setattr(page, "read_student", read)
    path = tmp_path / "there"
    path.mkdir()
    for name in ("encoder.onnx", "step.onnx", "weights.bin"):
        (path / name).write_bytes(1000 * name.encode())
    return path


@pytest.fixture
def runtime(tmp_path, monkeypatch):
    """A stand-in of onnxruntime-web's package."""
    path = tmp_path / "runtime.tgz"
    with tarfile.open(path, "w:gz") as archive:
        for part in page.PARTS.values():
            entry = tarfile.TarInfo(f"package/dist/{part}")
            entry.size = len(part)
            archive.addfile(entry, io.BytesIO(part.encode()))
    monkeypatch.setattr(page, "SHA256", hashlib.sha256(path.read_bytes()).hexdigest())
    return path


def test_a_page_holds_everything_and_fetches_nothing(folder, runtime, run):
    assert run("page", folder, "--network", f"same={folder}", "--runtime", runtime) == 0
    assert [path.name for path in folder.glob("*.html")] == ["index.html"]
    found = Reader((folder / "index.html").read_text(encoding="utf-8"))
    for k in range(2):
        for name in ("encoder.onnx", "step.onnx", "weights.bin"):
            assert found.part(f"{name} {k}") == (folder / name).read_bytes()
    for name, part in page.PARTS.items():
        assert found.part(name) == part.encode()
    names = {name for name, _ in found.attributes}
    assert not names & {"src", "href", "srcset", "data", "action"}
    [policy] = [value for name, value in found.attributes if name == "content"]
    assert "default-src 'none'" in policy and "http" not in policy and "*" not in policy


@pytest.mark.parametrize("name, colour", [("balloon", "red"), ("cat", None)])
def test_its_toys_lose_nothing(name, colour):
    places, looks = page.toys()
    start, height, width = places[f"{name} {colour or ''}"]
    plain = np.frombuffer(looks, np.uint8)[start : start + 4 * height * width].reshape(height, width, 4)
    opacity = plain[..., 3:].astype(int)
    back = np.concatenate([plain[..., :3] * opacity, 255 * opacity], -1)
    assert np.array_equal(back, sprites.look(name, colour))


def test_what_does_not_fit_is_told_in_one_line(folder, runtime, run, tmp_path):
    assert "holds no encoder.onnx" in run("page", tmp_path, "--runtime", runtime)
    assert "npm pack" in run("page", folder, "--runtime", tmp_path / "none.tgz")
    assert "NAME=FOLDER" in run("page", folder, "--runtime", runtime, "--network", "teacher")
    twice = "page", folder, "--runtime", runtime, "--network", f"student={folder}"
    assert "two networks" in run(*twice)
    runtime.write_bytes(b"other")
    assert "checksum" in run("page", folder, "--runtime", runtime)


def test_networks_that_read_other_frames_are_refused(folder):
    first, other = page.captioner(folder), page.captioner(folder)
    other.rule = FrameRule(1)
    with pytest.raises(ValueError, match="different"):
        page.page({"one": (folder, first), "other": (folder, other)}, {})


def test_its_scripts_share_one_scope_without_a_name_twice():
    """A browser refuses the whole page otherwise."""
    script = "".join(map(asset, page.SCRIPTS))
    names = re.findall(r"^(?:async )?(?:const|let|function) (\w+)", script, re.MULTILINE)
    assert len(names) > 40 and sorted(names) == sorted(set(names))
