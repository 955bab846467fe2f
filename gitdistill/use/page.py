"""`python -m gitdistill page FOLDER`: a page in which a student captions clips, without a server or a network.

FOLDER is what `python -m gitdistill onnx` wrote. FOLDER/index.html holds everything: the toys of the embedded world,
the networks, and onnxruntime-web, which runs them. The repository does not hold that one: `npm pack` fetches it once.
"""

import argparse
import base64
import gzip
import hashlib
import tarfile
from functools import partial
from html import escape
from pathlib import Path

import numpy as np

from gitdistill.models import storage
from gitdistill.use.captioner import Captioner, read_student
from gitdistill.use.onnx import ENCODER, GIT, NAMES, SETTINGS, STEP, STUDENT, WEIGHTS
from gitdistill.viz.clip_maker import offered, placed
from gitdistill.viz.explorers import asset, in_script
from gitdistill.world import Scene, Toy, drawing, layout, lexicon, sprites

VERSION = "1.30.0"
RUNTIME = f"onnxruntime-web-{VERSION}.tgz"  # 33 MB, of which the page holds 4
SHA256 = "d2228df7e4616bc3348bf504ee888f3bec43789a273f0a63f3e68d203ce3bf71"
PARTS = {"runtime.mjs": "ort.wasm.bundle.min.mjs", "runtime.wasm": "ort-wasm-simd-threaded.wasm"}
SCRIPTS = "explorer.js", "clip_maker.js", "world.js", "page.js"
NOTHING_ELSE = "default-src 'none'; img-src data:; connect-src data:; style-src 'unsafe-inline'; "
NOTHING_ELSE += "script-src 'unsafe-inline' 'wasm-unsafe-eval' blob:"


def main(arguments: list[str]) -> None:
    """Write the page and print its size. ValueError or OSError in one line."""
    parser = argparse.ArgumentParser("gitdistill page", description=__doc__.partition("\n")[0])
    add = parser.add_argument
    add("folder", help="what the command onnx wrote; index.html is put there")
    add("--network", action="append", default=[], metavar="NAME=FOLDER", help="another one to show beside it")
    add("--runtime", type=Path, default=RUNTIME, help=f"where {RUNTIME} is")
    options = parser.parse_args(arguments)
    others = [text.partition("=")[::2] for text in options.network]
    if not all(folder for _, folder in others):
        raise ValueError("give every --network as NAME=FOLDER")
    place = storage.output_folder(options.folder)
    first = captioner(place)
    name = NAMES[first.model.architecture]
    networks = {name: (place, first)}
    for name, folder in others:
        if name in networks:
            raise ValueError(f"two networks are called {name}")
        networks[name] = Path(folder), captioner(Path(folder))
    text = page(networks, runtime(options.runtime))
    storage.write_whole(place, {"index.html": partial(Path.write_text, data=text, encoding="utf-8")})
    print(f"{place / 'index.html'}: {len(text) / 1e6:.1f} MB")


def captioner(folder: Path) -> Captioner:
    """The network of a folder in ONNX; FileNotFoundError or ValueError in one line."""
    if not (folder / ENCODER).is_file():
        raise FileNotFoundError(f"{folder} holds no {ENCODER}: write it by python -m gitdistill onnx")
    return read_student(folder, STUDENT, GIT)


def runtime(path: Path) -> dict[str, bytes]:
    """The parts of onnxruntime-web; FileNotFoundError when it is not there, ValueError when it is another one."""
    if not path.is_file():
        raise FileNotFoundError(f"there is no {path}: run npm pack onnxruntime-web@{VERSION}")
    if hashlib.sha256(path.read_bytes()).hexdigest() != SHA256:
        raise ValueError(f"{path} is not {RUNTIME}: its checksum differs")
    with tarfile.open(path) as archive:
        return {name: archive.extractfile(f"package/dist/{part}").read() for name, part in PARTS.items()}


def page(networks: dict, runtime: dict[str, bytes]) -> str:
    """The page of networks, name -> (folder, captioner); ValueError unless all read the same frames."""
    sizes = {name: (of.rule.num_frames, of.size) for name, (_, of) in networks.items()}
    if len(set(sizes.values())) > 1:
        raise ValueError(f"networks that read different (frames, pixels) do not fit in a page: {sizes}")
    (count, pixels), told, parts = next(iter(sizes.values())), [], dict(runtime)
    for k, (name, (folder, of)) in enumerate(networks.items()):
        words = of.tokenizer.convert_ids_to_tokens(list(range(len(of.tokenizer))))
        config = {part: getattr(of.model, part) for part in SETTINGS}
        config["max_length"] = of.decoding["max_length"]
        told.append({"name": name, "words": words, "config": config})
        parts |= {f"{file} {k}": (folder / file).read_bytes() for file in (ENCODER, STEP, WEIGHTS)}
    places, looks = toys()
    grounds = [drawing.draw_ground(kind, Scene([Toy("cat")]).ground[1], pixels) for kind in drawing.GROUNDS]
    parts |= {"looks": looks, "grounds": np.stack(grounds).astype(np.uint8).tobytes()}
    data = {"networks": told, "state": {"toys": placed(), "ground": "meadow"}}
    data |= {"choices": offered() | {"greedy": True}, "css": asset("explorer.css")}
    data["world"] = {"looks": places, "frames": count, "pixels": pixels} | tables()
    return html(data, parts)


def toys() -> tuple[dict, bytes]:
    """Every toy in every colour as RGBA: where it begins, its height and width; and all bytes."""
    places, found, end = {}, [], 0
    for name, kind in lexicon.OBJECTS.items():
        for colour in ("", *kind.colours):
            picture = sprites.look(name, colour or None)
            opacity = picture[..., 3:] // 255
            plain = np.concatenate([picture[..., :3] // np.maximum(opacity, 1), opacity], -1)
            places[f"{name} {colour}"] = [end, *picture.shape[:2]]
            found.append(plain.astype(np.uint8).tobytes())
            end += len(found[-1])
    return places, b"".join(found)


def tables() -> dict:
    """The numbers of the world, and what the seed of a scene of one, two and three toys decides."""
    scenes = []
    for count in (1, 2, 3):
        toy = Toy("cat", motion="right", x=-1000, y=0)  # so far out that no way is cut short
        far = Scene([toy] * count, arrangement="free")
        scenes.append({"ways": [path[2] - path[0] for path in far.paths], "turns": far.turns})
    found = {"scenes": scenes, "sines": sprites.SINES, "margin": sprites.MARGIN, "shadow": sprites.SHADOW}
    found |= {"side": drawing.WORLD, "sizes": drawing.SIZES, "growth": drawing.GROWTH, "spin": drawing.SPIN}
    found |= {"sway": drawing.SWAY, "jump": drawing.JUMP, "grounds": drawing.GROUNDS}
    return found | {"steps": layout.STEPS, "border": layout.MARGIN}


def html(data: dict, parts: dict[str, bytes]) -> str:
    """One page of everything; the browser itself refuses all other addresses."""
    held = "\n".join(
        f'<script type="text/plain" id="{name}">{base64.b64encode(gzip.compress(part, mtime=0)).decode()}</script>'
        for name, part in parts.items()
    )
    text = in_script(data)
    script = "".join(map(asset, SCRIPTS))
    licence = escape((lexicon.FOLDER / "LICENSE").read_text("utf-8"))
    return f"""<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><title>A student captions clips</title>
<meta http-equiv="Content-Security-Policy" content="{NOTHING_ELSE}"></head>
<body><p>Drag the toys. Hover over a word to see where each network looked when it predicted that word.</p>
<main id="clip_maker">The networks are being unpacked.</main>
<details><summary>Licences</summary><p>onnxruntime-web, Copyright (c) Microsoft Corporation, is under the same
licence.</p><pre>{licence}</pre></details>
{held}
<script type="module">{script}
const place = document.getElementById("clip_maker");
page(place, {text}).then((found) => (window.clips = found), (error) => (place.textContent = error));
</script></body></html>
"""
