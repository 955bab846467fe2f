"""Explorers: what lies in their output is what was given, and a hostile word stays text."""

import base64
import json

import numpy as np
import pytest
from plot_inputs import VOCABULARY, black, trace

from gitdistill.viz import explorers, plots
from gitdistill.viz.plots import style

F, T, L, H = 3, 4, 2, 4
WORDS = ["a", "red", "cup", "moves"]
FRAMES = np.random.RandomState(0).randint(0, 90, (F, 3, 96, 96), dtype=np.uint8)
MAPS = np.random.RandomState(1).rand(L, H, T, F, 3, 2)
STILL = plots.gaze(FRAMES, WORDS, {"teacher": MAPS.mean((0, 1))}, title="Where it looks")
STEPS = {"losses": {"KL": ([1, 5], [3.0, 1.0]), "empty": ([], [])}}


def data(explorer) -> dict:
    """The data in an output."""
    _, _, end = explorer.html.rpartition("explore(host, ")
    return json.loads(end.partition("); })()</script>")[0])


def decoded(text: str, *shape) -> np.ndarray:
    return np.frombuffer(base64.b64decode(text), np.uint8).reshape(shape) / 255


def network(**options) -> dict:
    return {"words": WORDS, "heads": MAPS} | options


def everything() -> dict:
    """Each explorer, small."""
    images = {"stage": np.random.RandomState(2).randn(F, 9, 4, 4), "deep": np.ones((F, 2, 40, 40))}
    captions = {1: ["a cup"], 5: ["a red cup"]}
    return {
        "words": explorers.words(FRAMES, {"teacher": network()}, STILL),
        "tree": explorers.tree({"4 beams": trace()}, VOCABULARY, plots.beam_tree(trace(), VOCABULARY)),
        "training": explorers.training(STEPS, captions, plots.board(STEPS, captions)),
        "modules": explorers.modules(FRAMES, images, STILL),
    }


def test_maps_of_words_are_the_given_ones():
    rollout = np.random.RandomState(3).rand(T, F, 3, 2)
    given = network(maps={"rollout": rollout}, probabilities=[0.5, 0.25, 1, 0])
    [found] = data(explorers.words(FRAMES, {"teacher": given}, STILL))["networks"]
    assert found["words"] == WORDS and found["probabilities"] == [0.5, 0.25, 1, 0] and found["grid"] == [3, 2]
    maps = {entry["name"]: entry for entry in found["maps"]}
    assert list(maps)[:3] == ["mean of all heads", "rollout", "layer 1, head 1"] and len(maps) == 2 + L * H
    expected = {"mean of all heads": MAPS.mean((0, 1)), "rollout": rollout, "layer 2, head 3": MAPS[1, 2]}
    for name, values in expected.items():
        shown = decoded(maps[name]["values"], T, F, 3, 2) * np.reshape(maps[name]["tops"], (T, 1, 1, 1))
        np.testing.assert_allclose(shown, values, atol=0.003)
    assert maps["layer 2, head 3"]["head"] == [1, 2] and maps["rollout"]["head"] is None


def test_a_tree_tells_what_each_candidate_says():
    explorer = everything()["tree"]
    [search] = data(explorer)["searches"]
    for step, nodes in enumerate(search["steps"]):
        for node in nodes:
            assert node["text"].split(" ")[step] == node["text"].split(" ")[-1]
            if step:
                before = search["steps"][step - 1][node["parent"]]
                assert node["text"].startswith(before["text"] + " ") and before["state"] == "kept"
    step, rank = search["best"][0]
    finals = [node["final"] for nodes in search["steps"] for node in nodes if node["state"] == "finished"]
    assert search["steps"][step][rank]["final"] == max(finals)


def test_a_training_has_a_moment_for_each_step():
    maps = {"CKA": ({5: [[0.5, 1.0]]}, ["row"], ["x", "y"])}
    captions = {1: ["a cup"], 5: ["a red cup"]}
    options = {"log": ("losses",), "levels": {"losses": {"best": 1}}, "maps": maps}
    found = data(explorers.training(STEPS, captions, STILL, **options))
    assert [moment["step"] for moment in found["moments"]] == [1, 5]
    shown = [{"name": "CKA", "values": [[0.5, 1.0]]}]
    assert found["moments"][1] == {"step": 5, "captions": ["a red cup"], "maps": shown}
    line = {"name": "KL", "place": 0, "steps": [1, 5], "values": [3.0, 1.0]}
    levels = [{"name": "best", "value": 1.0}]
    assert found["panels"] == [{"name": "losses", "log": True, "lines": [line], "levels": levels}]


def test_networks_look_as_in_the_pictures():
    panels = {"score": {"distilled": ([1], [1.0]), "captions only": ([1], [0.5])}}
    [panel] = data(explorers.training(panels, {1: ["a cup"]}, STILL))["panels"]
    assert {line["name"]: line["place"] for line in panel["lines"]} == style.slots(panels["score"])


def test_modules_show_their_strongest_channels():
    images = {"stage": np.zeros((F, 3, 4, 4)), "fine": np.random.RandomState(0).randn(F, 2, 40, 40)}
    images["stage"][:, 1, 2, 3], images["stage"][:, 2] = -4.0, 0.5
    stage, fine = data(explorers.modules(FRAMES, images, STILL, {"stage": 1.5}))["modules"]
    assert stage["channels"] == [[1, 2, 0]] * F and stage["cells"][0] == f"{F} x 3 x 4 x 4"
    assert stage["cells"][-1] == "1.5" and fine["cells"][-1] == "nan"
    shown = decoded(stage["values"], F, 3, 4, 4)
    assert shown[0, 0, 2, 3] == 0 and shown[0, 1, 0, 0] > 0.5 > shown[0, 0, 2, 3]
    assert shown[0, 2, 0, 0] == pytest.approx(0.5, abs=0.003)  # a channel of zeros
    assert fine["shape"] == [2, 13, 13]  # three by three cells averaged
    norms = decoded(fine["norms"], F, 13, 13)
    expected = np.linalg.norm(images["fine"], axis=1)[:, :39, :39].reshape(F, 13, 3, 13, 3).mean((2, 4))
    np.testing.assert_allclose(norms, expected / expected.max((1, 2), keepdims=True), atol=0.003)


@pytest.mark.parametrize("name", ["words", "tree", "training", "modules"])
def test_an_output_stands_alone(name):
    """The picture for readers without scripts, nothing from elsewhere, and no more than 400 kB."""
    explorer = everything()[name]
    html = explorer.html
    assert explorer._repr_mimebundle_()["text/html"] == html and len(html) < 400_000
    assert f'<img alt="{explorer.alt}" width="400" src="data:image/png;base64,iVBOR' in html
    outside = html.replace("http://www.w3.org/2000/svg", "")
    assert "http:" not in outside and "https:" not in outside and 'src="//' not in outside


def test_a_hostile_word_stays_text():
    evil = "</script><img src=x onerror=alert(1)>\u2028"
    explorer = explorers.words(FRAMES, {evil: network() | {"words": [evil] * T}}, STILL)
    assert explorer.html.count("</script>") == 1 and explorer.html.endswith("</script>")
    assert data(explorer)["networks"][0]["words"] == [evil] * T
    still = plots.gaze(FRAMES, WORDS, {"a": MAPS.mean((0, 1))}, title='"><b>')
    assert '"><b>' not in explorers.words(FRAMES, {"a": network()}, still).html


def test_what_does_not_fit_is_named():
    for networks, message in (
        ({}, "networks is empty"),
        ({"teacher": {"words": WORDS}}, "heads and maps of teacher is empty"),
        ({"teacher": network(heads=MAPS[:, :, :2])}, r"heads of teacher must be \[L, H, 4, 3, h, w\]"),
    ):
        with pytest.raises(ValueError, match=message):
            explorers.words(FRAMES, networks, STILL)
    with pytest.raises(ValueError, match="captions and maps is empty"):
        explorers.training(STEPS, {}, STILL)


def test_frames_are_no_finer_than_a_screen_shows():
    small = explorers.words(black(2), {"a": network() | {"heads": MAPS[:, :, :, :2]}}, STILL)
    large = np.random.RandomState(0).randint(0, 255, (2, 3, 600, 300), dtype=np.uint8)
    found = data(explorers.words(large, {"a": network() | {"heads": MAPS[:, :, :, :2]}}, STILL))
    assert found["size"] == [118, 59] and len(found["frames"][0]) < 300_000
    assert data(small)["names"] == ["frame 1", "frame 2"]
