"""The embedded world: deterministic, disjoint splits, and pictures that show what the scene says."""

import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from gitdistill.world import drawing
from gitdistill.world.drawing import draw, draw_masks
from gitdistill.world.grammar import COLOURS, MOTIONS, SYMBOLS
from gitdistill.world.scenes import HELD_OUT, SPLITS, GlyphClips, content_bucket

DIGEST = "79c625fdfbb9dc718a817b481c1991ce30b193dfd96c843b18b9507edd28eca7"

HASH = """
import hashlib
from gitdistill.world.scenes import GlyphClips
digest = hashlib.sha256()
for split in ("train", "val", "test", "unseen"):
    for frames, size in ((4, 96), (1, 96), (3, 64)):
        clips = GlyphClips(split, 12, seed=3, num_frames=frames, image_size=size)
        for clip in (clips[i] for i in range(12)):
            digest.update(clip.frames.numpy().tobytes() + clip.masks.numpy().tobytes())
            digest.update(repr((clip.captions, clip.scene)).encode())
print(digest.hexdigest())
"""


@pytest.fixture(scope="module")
def digest(tmp_path_factory):
    """The digest of some clips, computed in a process of its own."""
    run = subprocess.run([sys.executable, "-c", HASH], capture_output=True, text=True, check=True)
    return run.stdout.strip()


def test_same_bytes_in_two_processes(digest, capsys):
    exec(HASH, {})
    assert capsys.readouterr().out.strip() == digest


def test_same_bytes_on_any_machine(digest):
    assert digest == DIGEST


def test_clip_shapes_and_types():
    clip = GlyphClips(objects=2, num_frames=3, image_size=64)[5]
    assert clip.frames.shape == (3, 3, 64, 64) and clip.frames.dtype == torch.uint8
    assert clip.masks.shape == (2, 3, 64, 64) and clip.masks.dtype == torch.bool
    assert len(clip.captions) == 5
    assert GlyphClips().clip(5, masks=False, captions=2).masks is None
    assert GlyphClips(num_frames=1)[0].frames.shape == (1, 3, 96, 96)


def test_order_of_access_does_not_matter():
    clips = GlyphClips(size=20, seed=2)
    backwards = [clips[i] for i in reversed(range(20))][::-1]
    for i, clip in enumerate(backwards):
        assert torch.equal(clips[i].frames, clip.frames)
        assert clips[i].captions == clip.captions and clips.scene(i) == clip.scene


def test_seeds_and_salts_differ():
    one, two = GlyphClips(size=50, seed=0), GlyphClips(size=50, seed=1)
    assert all(one.scene(i) != two.scene(i) for i in range(50))
    assert one.captions(3, 5, salt=1) == one.captions(3, 5, salt=1)
    assert [one.captions(i, 5, salt=1) for i in range(9)] != [one.captions(i, 5, salt=2) for i in range(9)]


def test_splits_are_disjoint():
    seen = {}
    for split in ("train", "val", "test", "unseen"):
        clips = GlyphClips(split, 1500)
        for i in range(1500):
            things = clips.scene(i).things
            key = tuple(sorted(map(repr, things)))
            assert seen.setdefault(key, split) == split
            held_out = [(thing.colour, thing.symbol) in HELD_OUT for thing in things]
            assert held_out[0] == (split == "unseen") and not any(held_out[1:])
            assert content_bucket(things) == content_bucket(things[::-1]) in SPLITS[split]


def test_held_out_pairs_are_balanced():
    colours, symbols = zip(*HELD_OUT)
    assert len(HELD_OUT) == 32 and sorted(symbols) == sorted(SYMBOLS)
    assert all(colours.count(colour) == 4 for colour in COLOURS)


def test_every_kind_has_enough_mass():
    clips = GlyphClips(size=3000)
    scenes = [clips.scene(i) for i in range(3000)]
    things = [thing for scene in scenes for thing in scene.things]
    for attribute, values in (("motion", MOTIONS), ("colour", COLOURS), ("symbol", SYMBOLS)):
        counts = [sum(getattr(thing, attribute) == value for thing in things) for value in values]
        assert min(counts) > 0.6 * len(things) / len(values), attribute
    assert 0.37 < np.mean([len(scene.things) == 1 for scene in scenes]) < 0.43
    pairs = [scene for scene in scenes if len(scene.things) == 2]
    still = [scene for scene in pairs if all(thing.motion == "still" for thing in scene.things)]
    assert 0.22 < len(still) / len(pairs) < 0.28
    assert all(scene.relation for scene in still)


@pytest.mark.parametrize("image_size, frames", [(96, 4), (64, 4), (160, 7), (96, 1)])
def test_things_never_touch_and_stay_inside(image_size, frames):
    clips = GlyphClips("train", 400, image_size=image_size, num_frames=frames)
    for i in range(400):
        masks = clips[i].masks
        assert masks.flatten(2).any(-1).all()
        if len(masks) == 2:
            assert not (masks[0] & masks[1]).any()
        if image_size >= 96:  # the ink ends one pixel before the border
            assert not masks[..., [0, -1], :].any() and not masks[..., [0, -1]].any()


def centres_and_areas(mask):
    """Of each frame's mask: the middle of its bounding box, (x, y), and that box's longest side."""
    middles, sides = [], []
    for frame in mask.numpy():
        rows, columns = np.flatnonzero(frame.any(1)), np.flatnonzero(frame.any(0))
        middles.append(((columns[0] + columns[-1]) / 2, (rows[0] + rows[-1]) / 2))
        sides.append(max(np.ptp(rows), np.ptp(columns)) + 1)
    return np.array(middles), np.array(sides)


def test_pictures_show_the_motion_that_is_told():
    clips = GlyphClips(size=400)
    seen = set()
    for clip in (clips[i] for i in range(400)):
        for thing, mask in zip(clip.scene.things, clip.masks):
            middles, sides = centres_and_areas(mask)
            (dx, dy), least = middles[-1] - middles[0], 31
            steps = np.diff(sides)
            shown = {
                "left": dx < -least and abs(dy) < 2,
                "right": dx > least and abs(dy) < 2,
                "up": dy < -least and abs(dx) < 2,
                "down": dy > least and abs(dx) < 2,
                "grow": (steps > 3).all() and sides[-1] > 2 * sides[0],
                "shrink": (steps < -3).all() and sides[0] > 2 * sides[-1],
                "still": (mask == mask[0]).all(),
                "spin": all((a ^ b).sum() > 0.35 * a.sum() for a, b in zip(mask, mask[1:])),
            }
            assert shown[thing.motion], (thing, middles, sides)
            seen.add(thing.motion)
    assert seen == set(MOTIONS)


def test_pictures_show_the_colour_and_the_relation():
    clips = GlyphClips(size=300)
    for clip in (clips[i] for i in range(300)):
        middles = []
        empty = torch.from_numpy(draw(clip.scene._replace(things=()), only=0)).float()
        for thing, mask in zip(clip.scene.things, clip.masks):
            ink = clip.frames[0][:, mask[0]].T.float()
            purest = ink[
                (ink - empty[:, mask[0]].T).abs().sum(-1).argmax()
            ]  # thin strokes are half background
            distances = {name: (purest - torch.tensor(rgb)).abs().sum() for name, rgb in COLOURS.items()}
            assert min(distances, key=distances.get) == thing.colour
            middles.append(centres_and_areas(mask)[0])
        if clip.scene.relation:
            dx, dy = (middles[0] - middles[1]).T
            holds = {
                "left": dx < -abs(dy),
                "right": dx > abs(dy),
                "above": dy < -abs(dx),
                "below": dy > abs(dx),
            }
            assert holds[clip.scene.relation].all()


def test_one_frame_alone_equals_that_frame_of_the_clip():
    clips = GlyphClips(size=30)
    for i in range(30):
        clip = clips[i]
        for f in range(4):
            picture, masks, scene = clips.frame(i, f)
            assert torch.equal(picture, clip.frames[f]) and torch.equal(masks, clip.masks[:, f])
            assert scene == clip.scene


def test_scene_is_independent_of_size_and_frames():
    small, long = GlyphClips(image_size=64), GlyphClips(num_frames=8)
    for i in range(50):
        assert small.scene(i) == long.scene(i)
        assert small[i].captions == long[i].captions


def test_single_images_do_not_move():
    clips = GlyphClips(size=200, num_frames=1)
    scenes = [clips.scene(i) for i in range(200)]
    assert not any(scene.moving for scene in scenes)
    assert {thing.motion for scene in scenes for thing in scene.things} == {"still"}


def test_the_font_has_every_symbol():
    from matplotlib import get_data_path
    from matplotlib.ft2font import FT2Font

    known = FT2Font(f"{get_data_path()}/fonts/ttf/DejaVuSans.ttf").get_charmap()
    assert all(ord(symbol.char) in known for symbol in SYMBOLS.values())


def test_holes_are_holes():
    alpha, _, _ = drawing.sprite("wheel", 64)
    inside = Image.fromarray((alpha < 128).astype(np.uint8))
    assert np.asarray(inside)[8:-8, 8:-8].mean() > 0.3
    alpha, _, _ = drawing.sprite("heart", 64)
    assert (alpha[16:40, 16:-16] == 255).all()


def overlap(symbol, eighths):
    """Intersection over union of a glyph and itself turned, seen through a blur of four pixels at 42 pixels."""
    pictures = []
    for turn in (0, eighths):
        alpha, x, y = drawing.sprite(symbol, 42, turn)
        canvas = np.zeros((64, 64), np.uint8)
        canvas[32 + y : 32 + y + alpha.shape[0], 32 + x : 32 + x + alpha.shape[1]] = alpha
        pictures.append(np.asarray(Image.fromarray(canvas).reduce(4), float))
    return np.minimum(*pictures).sum() / np.maximum(*pictures).sum()


@pytest.mark.parametrize("symbol", SYMBOLS)
def test_only_symbols_whose_turn_shows_may_spin(symbol):
    assert (max(overlap(symbol, 1), overlap(symbol, 3)) < 0.51) == SYMBOLS[symbol].spins


def test_symbols_differ_from_each_other():
    pictures = {}
    for symbol in SYMBOLS:
        alpha, x, y = drawing.sprite(symbol, 22)
        canvas = np.zeros((32, 32))
        canvas[16 + y : 16 + y + alpha.shape[0], 16 + x : 16 + x + alpha.shape[1]] = alpha / 255
        pictures[symbol] = canvas
    for one, a in pictures.items():
        for other, b in pictures.items():
            assert one == other or np.minimum(a, b).sum() / np.maximum(a, b).sum() < 0.8, (one, other)


def test_draw_equals_masks_where_nothing_else_is():
    scene = GlyphClips(size=10, objects=1).scene(3)
    pictures, masks = draw(scene), draw_masks(scene)
    empty = draw(scene._replace(things=()))
    changed = (pictures != empty).any(1)
    assert (changed | ~masks[0]).all()
    assert changed.sum() < 2 * masks.sum() + 200


@pytest.mark.parametrize(
    "options, message",
    [
        ({"split": "dev"}, "unknown split 'dev'"),
        ({"num_frames": 0}, "num_frames"),
        ({"image_size": 8}, "image_size"),
        ({"objects": 3}, "objects"),
        ({"seed": -1}, "seed"),
    ],
)
def test_bad_arguments_give_one_line(options, message):
    with pytest.raises(ValueError, match=message) as error:
        GlyphClips(**options)
    assert "\n" not in str(error.value)


def test_index_beyond_the_end():
    with pytest.raises(IndexError, match="clip 3 of 3"):
        GlyphClips(size=3)[3]
    with pytest.raises(IndexError, match="frame 4"):
        GlyphClips().frame(0, 4)
    assert len(list(GlyphClips(size=3))) == 3
