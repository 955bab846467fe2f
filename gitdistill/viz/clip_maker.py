"""The clip maker: put toys on a ground, and watch each network caption the clip while you drag them.

It needs a kernel, since the networks run in it. The captions and their maps are shown by the script of `explorers`.
"""

import csv
from pathlib import Path

import anywidget
import traitlets

from gitdistill.viz import explorers
from gitdistill.viz.explorers import asset
from gitdistill.world import Scene, Toy, draw, facts_scores
from gitdistill.world.drawing import GROUNDS, SIZES, WORLD
from gitdistill.world.lexicon import MOTIONS, OBJECTS

START = (Toy("cat", motion="jump"), Toy("balloon", "red"))


def offered() -> dict:
    """What its lists offer."""
    objects = {name: list(kind.colours) for name, kind in OBJECTS.items()}
    found = {"objects": objects, "sizes": list(SIZES), "motions": list(MOTIONS)}
    return found | {"grounds": list(GROUNDS), "world": WORLD}


def placed(toys=START, ground: str = "meadow") -> list[dict]:
    """Toys as its script holds them, each with a place."""
    return [{**toy._asdict(), "colour": toy.colour or ""} for toy in Scene(toys, ground).toys]


def _shown(told: dict) -> dict:
    """Of what a network told: the words and their mean map; every head would make the page long."""
    shown = {name: told[name] for name in ("words", "probabilities", "candidates")}
    return shown | {"maps": {"mean of all heads": told["heads"].mean((0, 1))}}


class ClipMaker(anywidget.AnyWidget):
    """A stage with up to three toys, the captions of all networks, and a tally of the clips that were kept.

    networks: label -> function of (frames [F, 3, H, W], temperature), which gives a dict with the caption's `text` and
        what `explorers.words` shows of a network (`inspection.told` is one). Temperature 0 is greedy decoding.
    toys, ground: what is on the stage at first. `rows` are the kept clips; `save(path)` writes them as CSV.
    """

    _esm = traitlets.Unicode(asset("explorer.js") + asset("clip_maker.js")).tag(sync=True)
    _css = ""
    style = traitlets.Unicode(asset("explorer.css")).tag(sync=True)
    choices = traitlets.Dict().tag(sync=True)
    toys = traitlets.List().tag(sync=True)
    ground = traitlets.Unicode("meadow").tag(sync=True)
    temperature = traitlets.Float(0.0).tag(sync=True)
    kept = traitlets.Int(0).tag(sync=True)
    result = traitlets.Dict().tag(sync=True)
    tally = traitlets.Dict().tag(sync=True)

    def __init__(self, networks, toys=START, ground="meadow"):
        super().__init__(toys=placed(toys, ground), ground=ground, choices=offered())
        self.networks, self.rows, self.told = networks, [], {}
        self.observe(self._caption, names=["toys", "ground", "temperature"])
        self.observe(self._keep, names="kept")
        self._caption()

    def scene(self) -> Scene:
        """What is on the stage. ValueError for toys that are not in the toybox."""
        toys = [Toy(**{**toy, "colour": toy["colour"] or None}) for toy in self.toys]
        return Scene(toys, self.ground, arrangement="free")

    def _caption(self, _=None) -> None:
        try:
            scene = self.scene()
        except ValueError as error:
            self.result = {**self.result, "error": str(error)}
            return
        frames = draw(scene)
        self.told = {name: network(frames, self.temperature) for name, network in self.networks.items()}
        shown = {name: _shown(told) for name, told in self.told.items()}
        words = explorers.words_data(frames, shown)
        self.result = {"error": "", "view": "words", "alt": "the captions", **words}

    def _keep(self, _=None) -> None:
        scene = self.scene()
        texts = {name: told["text"] for name, told in self.told.items()}
        right = {name: facts_scores([text], [scene])["all_right"] == 1 for name, text in texts.items()}
        shown = ", ".join(" ".join(filter(None, (t.size, t.colour, t.name, t.motion))) for t in scene.toys)
        row = {"toys": shown, "ground": self.ground}
        for name, text in texts.items():
            row |= {name: text, f"{name} is right": right[name]}
        self.rows.append(row)
        counts = {name: sum(row[f"{name} is right"] for row in self.rows) for name in right}
        self.tally = {"clips": len(self.rows), "right": counts, "last": right}

    def save(self, path) -> None:
        """Write the kept clips, a row each. ValueError while there are none."""
        if not self.rows:
            raise ValueError("no clip was kept: press the button first")
        beside = Path(path).with_name(Path(path).name + ".tmp")
        with beside.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, self.rows[0])
            writer.writeheader()
            writer.writerows(self.rows)
        beside.replace(path)
