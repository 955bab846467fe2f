"""Every picture of the notebooks, of a checkpoint in the geometry of GIT-base and of a photograph."""

import numpy as np
import pytest
import torch
from pictures import photo
from plot_inputs import pixels
from tiny_git import random_port, tokenizer

from gitdistill import GenerativeImageTextTeacher, StudentCandidateV1, TinyVIT, inspection
from gitdistill.decoding import beam
from gitdistill.hooks import paths
from gitdistill.viz import explorers, plots

LAYERS = ["model.image_encoder.layers.?", "model.layers.0"]


@pytest.fixture(scope="module")
def scene(tmp_path_factory):
    """A teacher as transformers saves one, with 14 x 14 patches; a student of it; a photograph; a caption."""
    folder = tmp_path_factory.mktemp("git")
    git = random_port(vision_image_size=112, vision_patch_size=8, max_position_embeddings=20)
    git.save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    teacher = GenerativeImageTextTeacher.from_pretrained(folder)
    torch.manual_seed(0)
    sizes = {"embed_dims": [8, 16, 16, 32], "depths": [1, 1, 1, 1], "num_heads": [1, 1, 2, 2]}
    backbone = TinyVIT(image_size=112, **sizes)
    student = StudentCandidateV1.like(teacher, backbone=backbone, embed_dim=32, heads=2).eval()
    frames = torch.from_numpy(np.array(photo(320, 240))).movedim(-1, 0)[None]  # [1, 3, 240, 320]
    tokens = torch.tensor(teacher.tokenizer("a b c d")["input_ids"])
    return {"teacher": teacher, "student": student}, frames, tokens


def check(*pictures):
    """Something is drawn, and it fits a page."""
    for picture in pictures:
        image = pixels(picture)
        assert image.std() > 5 and max(image.shape) < 2400


def test_words_heads_and_frames(scene):
    networks, frames, tokens = scene
    seen = {name: inspection.attention_maps(network, frames, tokens) for name, network in networks.items()}
    words = networks["teacher"].tokenizer.convert_ids_to_tokens(tokens[1:])
    maps = {name: found.by_word() for name, found in seen.items()}
    assert maps["teacher"].shape == (len(words), 1, 14, 14)
    still = plots.gaze(frames, words, {"teacher": maps["teacher"]})
    columns = {name: {"words": words, "heads": found.maps} for name, found in seen.items()}
    check(still)
    assert len(explorers.words(frames, columns, still).html) < 400_000
    check(plots.frame_word_map(maps["teacher"], words, frames))
    for found in seen.values():
        check(plots.heads(found.maps[:, :, 0, 0], frames[0]))


def test_explanations(scene):
    networks, frames, tokens = scene
    rows = {name: inspection.explain(network, frames, tokens) for name, network in networks.items()}
    rows = {name: {method: maps[0] for method, maps in found.items()} for name, found in rows.items()}
    check(plots.explanations(frames[0], rows))


def test_layers(scene):
    networks, frames, _ = scene
    crops = torch.stack([frames[0, :, k : k + 200, 3 * k : 3 * k + 200] for k in range(0, 40, 5)])[:, None]
    theirs = inspection.features(networks["teacher"], LAYERS, crops)
    stages = paths(networks["student"], "backbone.net.stages_?")
    ours = inspection.features(networks["student"], stages, crops)
    pooled = [[x.mean((1, 2)) for x in side.values()] for side in (theirs, ours)]
    check(plots.similarity(inspection.cka_map(*pooled), list(theirs), list(ours), ("teacher", "student")))
    still = plots.feature_maps(frames[0], {path: x[0].movedim(-1, 0) for path, x in ours.items()})
    check(still)
    images = {path: x[:2].movedim(-1, 1) for path, x in ours.items()}
    assert len(explorers.modules(crops[:2, 0], images, still).html) < 400_000
    same_grid = next(path for path, x in ours.items() if x.shape[1:3] == (14, 14))
    both = {"teacher": theirs["model.layers.0"], "student": ours[same_grid]}
    colours, explained = inspection.joint_pca({name: x.flatten(0, 2) for name, x in both.items()}, both)
    check(plots.components(crops[:5, 0], {name: x[:5] for name, x in colours.items()}, explained))


def test_beam_tree(scene):
    networks, frames, _ = scene
    found = beam(networks["teacher"], frames[None], beams=3, max_length=7, trace=True)
    check(plots.beam_tree(found.trace, networks["teacher"].tokenizer.convert_ids_to_tokens))
