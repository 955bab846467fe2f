"""Every picture of the notebooks, of a checkpoint in the geometry of GIT-base and of a photograph."""

import io

import numpy as np
import pytest
import torch
from pictures import photo
from PIL import Image
from tiny_git import random_port, tokenizer

from gitdistill import GenerativeImageTextTeacher, StudentCandidateV1, TinyVIT, inspection
from gitdistill.decoding import beam
from gitdistill.hooks import paths
from gitdistill.viz import plots, widgets

WORDS = ["a", "b", "c", "d"]
LAYERS = ["model.image_encoder.layers.?", "model.layers.0"]


@pytest.fixture(scope="module")
def scene(tmp_path_factory):
    """A teacher as transformers saves one, 14 x 14 patches of 224-pixel images; a student of it; a photograph."""
    folder = tmp_path_factory.mktemp("git")
    random_port(vision_image_size=224, vision_patch_size=16, max_position_embeddings=20).save_pretrained(
        folder
    )
    tokenizer().save_pretrained(folder)
    teacher = GenerativeImageTextTeacher.from_pretrained(folder)
    torch.manual_seed(0)
    eyes = TinyVIT(image_size=224, embed_dims=[8, 16, 16, 32], depths=[1, 1, 1, 1], num_heads=[1, 1, 2, 2])
    student = StudentCandidateV1.like(teacher, backbone=eyes, embed_dim=32, heads=2).eval()
    frames = torch.from_numpy(np.array(photo(320, 240))).movedim(-1, 0)[None]  # [1, 3, 240, 320]
    tokens = torch.tensor(teacher.tokenizer(" ".join(WORDS))["input_ids"])
    return {"teacher": teacher, "student": student}, frames, tokens


def drawn(picture):
    """A figure's, widget's or card's pixels; more than one colour."""
    if hasattr(picture, "picture"):
        picture = bytes(picture.picture.value)
    image = Image.open(io.BytesIO(picture if isinstance(picture, bytes) else plots.png(picture)))
    pixels = np.asarray(image.convert("RGB"), dtype=float)
    assert pixels.std() > 5 and max(image.size) < 2400
    return pixels


def test_words_heads_and_frames(scene):
    networks, frames, tokens = scene
    looks = {name: inspection.attention_maps(network, frames, tokens) for name, network in networks.items()}
    words = networks["teacher"].tokenizer.convert_ids_to_tokens(tokens[1:])
    maps = {name: look.by_word() for name, look in looks.items()}
    assert maps["teacher"].shape == (len(words), 1, 14, 14)
    drawn(plots.gaze(frames, words, {"teacher": maps["teacher"]}))
    drawn(widgets.gaze(frames, words, maps, difference=False))
    drawn(plots.frame_word_map(maps["teacher"], words, frames))
    drawn(widgets.frame_words(frames, words, maps["teacher"]))
    for look in looks.values():
        drawn(plots.heads(look.maps[:, :, 0, 0], frames[0]))
        drawn(widgets.heads(frames, words, look.maps))


def test_explanations(scene):
    networks, frames, tokens = scene
    rows = {
        name: {method: values[0] for method, values in inspection.explain(network, frames, tokens).items()}
        for name, network in networks.items()
    }
    drawn(plots.explanations(frames[0], rows))


def test_layers(scene):
    networks, frames, _ = scene
    crops = torch.stack([frames[0, :, k : k + 200, 3 * k : 3 * k + 200] for k in range(0, 40, 2)])[:, None]
    theirs = inspection.features(networks["teacher"], LAYERS, crops)
    stages = paths(networks["student"], "backbone.net.stages_?")
    ours = inspection.features(networks["student"], stages, crops)
    pooled = [[x.mean((1, 2)) for x in side.values()] for side in (theirs, ours)]
    drawn(plots.similarity(inspection.cka_map(*pooled), list(theirs), list(ours), ("teacher", "student")))

    drawn(plots.feature_maps(frames[0], {path: x[0].movedim(-1, 0) for path, x in ours.items()}))
    drawn(widgets.modules(crops[:2, 0], {path: x[:2].movedim(-1, 1) for path, x in ours.items()}))

    deep = next(path for path, x in ours.items() if x.shape[1:3] == (14, 14))
    both = {"teacher": theirs["model.layers.0"], "student": ours[deep]}
    colours, explained = inspection.joint_pca({name: x.flatten(0, 2) for name, x in both.items()}, both)
    drawn(plots.components(crops[:5, 0], {name: x[:5] for name, x in colours.items()}, explained))


def test_beam_tree(scene):
    networks, frames, _ = scene
    found = beam(networks["teacher"], frames[None], beams=3, max_length=7, trace=True)
    drawn(plots.beam_tree(found.trace, networks["teacher"].tokenizer.convert_ids_to_tokens))
