"""The toybox: deterministic, disjoint splits, and pictures that show what the scene says."""

import subprocess
import sys

import numpy as np
import pytest
import torch

from gitdistill.world import Clips, Scene, Toy, draw, draw_masks
from gitdistill.world.grammar import describe
from gitdistill.world.lexicon import MOTIONS, OBJECTS
from gitdistill.world.scenes import HELD_OUT, SPLITS, content_bucket

DIGEST = "1257fc9879b519f898c9b8683d563fa3985b16eadad934e2163759d2e2961c3d"

HASH = """
import hashlib, sys, torch
from gitdistill.world import Clips
torch.set_num_threads(int(sys.argv[1]) if sys.argv[1:2] in (["1"], ["2"]) else 1)
digest = hashlib.sha256()
for split in ("train", "val", "test", "unseen", "lookalike"):
    for frames, size in ((4, 128), (1, 128), (3, 64)):
        clips = Clips(split, 40, seed=3, frames=frames, image_size=size)
        for clip in (clips[i] for i in range(40)):
            digest.update(clip.frames.numpy().tobytes() + clip.masks.numpy().tobytes())
            digest.update(repr((clip.captions, clip.scene)).encode())
print(digest.hexdigest())
"""


def test_same_bytes_on_any_machine_in_another_process_and_with_more_threads(capsys):
    exec(HASH, {})
    found = [capsys.readouterr().out]
    for threads in ("1", "2"):
        command = [sys.executable, "-c", HASH, threads]
        found.append(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    assert {digest.strip() for digest in found} == {DIGEST}


def test_clips():
    """Shapes and types; another order of access changes nothing, another seed or salt everything."""
    clip = Clips(objects=2, frames=3, image_size=64)[5]
    assert clip.frames.shape == (3, 3, 64, 64) and clip.frames.dtype == torch.uint8
    assert clip.masks.shape == (2, 3, 64, 64) and clip.masks.dtype == torch.bool
    assert len(clip.captions) == 5
    assert Clips().clip(5, masks=False, captions=2).masks is None
    assert Clips(frames=1)[0].frames.shape == (1, 3, 128, 128)
    whole, third = Clips()[5], Clips().clip(5, only=2)
    assert torch.equal(third.frames, whole.frames[2:3]) and torch.equal(third.masks, whole.masks[:, 2:3])
    clips = Clips(size=20, seed=2)
    backwards = [clips[i] for i in reversed(range(20))][::-1]
    for i, clip in enumerate(backwards):
        assert torch.equal(clips[i].frames, clip.frames)
        assert clips[i].captions == clip.captions and clips.scene(i) == clip.scene
    one, two = Clips(size=50, seed=0), Clips(size=50, seed=1)
    assert all(one.scene(i) != two.scene(i) for i in range(50))
    assert one.captions(3, 5, salt=1) == one.captions(3, 5, salt=1)
    assert [one.captions(i, 5, salt=1) for i in range(9)] != [one.captions(i, 5, salt=2) for i in range(9)]


def held_out(toy):
    return (toy.name, toy.colour) in HELD_OUT or (toy.name, toy.motion) in HELD_OUT


def test_splits_are_disjoint_and_held_out_pairs_are_in_one_alone():
    seen = {}
    for split in SPLITS:
        clips = Clips(split, 1500)
        for i in range(1500):
            toys = clips.scene(i).toys
            key = tuple(sorted((toy.name, str(toy.colour), toy.size, toy.motion) for toy in toys))
            assert seen.setdefault(key, split) == split
            assert held_out(toys[0]) == (split == "unseen") and not any(map(held_out, toys[1:]))
            assert content_bucket(toys) == content_bucket(toys[::-1]) in SPLITS[split]
            if split == "lookalike":
                assert OBJECTS[toys[0].name].group == OBJECTS[toys[1].name].group
                assert toys[0].name != toys[1].name
    assert len(HELD_OUT) == 100 + 13 and {name for name, _ in HELD_OUT} == set(OBJECTS)
    missing = [value for _, value in HELD_OUT if value in MOTIONS]
    assert min(missing.count(motion) for motion in MOTIONS if motion != "still") >= 10


def test_every_kind_has_enough_mass():
    clips = Clips(size=4000)
    scenes = [clips.scene(i) for i in range(4000)]
    toys = [toy for scene in scenes for toy in scene.toys]
    names = [sum(toy.name == name for toy in toys) for name in OBJECTS]
    assert min(names) > 0.5 * len(toys) / len(OBJECTS)
    alone = [scene.toys[0].motion for scene in scenes if len(scene.toys) == 1]
    assert min(alone.count(motion) for motion in MOTIONS) > 0.7 * len(alone) / len(MOTIONS)
    assert 0.35 < len(alone) / len(scenes) < 0.46
    found = [relation for scene in scenes for _, relation, _ in scene.relations]
    assert all(found.count(relation) > 150 for relation in ("left", "right", "above", "below", "behind"))
    pairs = [scene for scene in scenes if len(scene.toys) == 2]
    assert 0.05 < np.mean([scene.toys[0].name == scene.toys[1].name for scene in pairs]) < 0.2
    still = [scene for scene in pairs if all(toy.motion == "still" for toy in scene.toys)]
    assert 0.2 < len(still) / len(pairs) < 0.4 and all(scene.relations for scene in still)


@pytest.mark.parametrize("image_size, frames", [(128, 4), (64, 4), (160, 7), (128, 1)])
def test_nothing_is_cut_off_and_all_is_seen(image_size, frames):
    clips = Clips("train", 300, image_size=image_size, frames=frames)
    for i in range(300):
        masks = clips[i].masks
        assert masks.flatten(2).any(-1).all()
        assert not (masks.sum(0) > 1).any()
        if image_size >= 128:
            assert not masks[..., [0, -1], :].any() and not masks[..., [0, -1]].any(), clips.scene(i)


def middles_and_sides(mask):
    """Of each frame's mask: the middle of its bounding box, (x, y), and that box's longest side."""
    middles, sides = [], []
    for frame in mask.numpy():
        rows, columns = np.flatnonzero(frame.any(1)), np.flatnonzero(frame.any(0))
        middles.append(((columns[0] + columns[-1]) / 2, (rows[0] + rows[-1]) / 2))
        sides.append(max(np.ptp(rows), np.ptp(columns)) + 1)
    return np.array(middles), np.array(sides)


def test_pictures_show_the_motion_that_is_told():
    clips = Clips(size=300, objects=1)
    seen = set()
    for clip in (clips[i] for i in range(300)):
        (toy,), (mask,) = clip.scene.toys, clip.masks
        middles, sides = middles_and_sides(mask)
        (dx, dy), least = middles[-1] - middles[0], 40
        steps, changes = np.diff(sides), [(a ^ b).sum() / a.sum() for a, b in zip(mask, mask[1:])]
        shown = {
            "left": dx < -least and abs(dy) < 2,
            "right": dx > least and abs(dy) < 2,
            "up": dy < -least and abs(dx) < 2,
            "down": dy > least and abs(dx) < 2,
            "grow": (steps > 5).all(),
            "shrink": (steps < -5).all(),
            "still": max(changes) == 0,
            "jump": dy == 0 and middles[0][1] - middles[1][1] > 20,
            "spin": not (clip.frames[0] == clip.frames[1]).all(),
            "wobble": (mask[0] == mask[2]).all() and min(changes) > 0.1,
        }
        assert shown[toy.motion], (toy, middles, sides)
        seen.add(toy.motion)
    assert seen == set(MOTIONS)


def test_pictures_show_the_relation():
    clips = Clips(size=400, objects=2)
    seen = set()
    for clip in (clips[i] for i in range(400)):
        for i, relation, j in clip.scene.relations:
            if relation == "behind":
                alone = [draw_masks(scene)[0] for scene in map(Scene, ([toy] for toy in clip.scene.toys))]
                assert alone[j].sum() == clip.masks[j].numpy().sum()
                assert clip.masks[i].numpy().sum() < alone[i].sum()
            else:
                dx, dy = (middles_and_sides(clip.masks[i])[0] - middles_and_sides(clip.masks[j])[0]).T
                side = {"left": -dx, "right": dx, "above": -dy, "below": dy}[relation]
                assert (side > 5).all()
            seen.add(relation)
    assert seen == {"left", "right", "above", "below", "behind"}


def test_a_scene_is_the_same_at_any_size_and_length_but_single_images_do_not_move():
    small, long = Clips(image_size=64), Clips(frames=8)
    for i in range(50):
        assert small.scene(i) == long.scene(i)
        assert small[i].captions == long[i].captions
    clips = Clips(size=200, frames=1)
    scenes = [clips.scene(i) for i in range(200)]
    assert not any(scene.moving for scene in scenes)
    assert {toy.motion for scene in scenes for toy in scene.toys} == {"still"}


def test_a_scene_made_by_hand():
    """Its places are drawn once; another motion, colour or ground of the same toys leaves all else as it is."""
    scene = Scene([Toy("cat", motion="jump"), Toy("balloon", "red", "small")], ground="beach", seed=1)
    assert draw(scene).shape == (4, 3, 128, 128)
    caption = describe(scene, np.random.RandomState(0))
    assert "cat" in caption or "kitty" in caption
    cat, balloon = scene.toys
    other = Scene([cat, balloon._replace(colour="blue")], ground="beach", seed=1)
    assert other.paths == scene.paths and not np.array_equal(draw(other), draw(scene))
    assert np.array_equal(draw_masks(other), draw_masks(scene))
    changed = (draw(other) != draw(scene)).any(1)
    assert changed.sum() > 50 and not (changed & ~draw_masks(scene)[1]).sum() > 0.5 * changed.sum()


@pytest.mark.parametrize("motion", ["spin", "wobble", "still"])
def test_mirrors_show_the_same_toy(motion):
    """What is seen in a mirror turns the other way."""
    plain = Scene([Toy("truck", motion=motion, x=64, y=64)], seed=1)
    mirror = Scene([Toy("truck", motion=motion, x=64, y=64, mirrored=True)], seed=1)
    mirror.turns = tuple(1 - turn for turn in plain.turns)
    for one, other in zip(draw_masks(plain)[0], draw_masks(mirror)[0, ..., ::-1], strict=True):
        found = [picture[:, picture.any(0)] for picture in (one, other)]
        assert np.array_equal(*found)
    assert not np.array_equal(draw_masks(plain)[0, 1], draw_masks(mirror)[0, 1])


def test_bad_arguments_give_one_line():
    for options in ({"split": "dev"}, {"frames": 0}, {"image_size": 8}, {"objects": 4}, {"seed": -1}):
        with pytest.raises(ValueError, match=next(iter(options))) as error:
            Clips(**options)
        assert "\n" not in str(error.value)
    with pytest.raises(IndexError, match="clip 3 of 3"):
        Clips(size=3)[3]
    assert len(list(Clips(size=3))) == 3
    for toys, ground, message in (
        ([], "meadow", "one to three toys, not 0"),
        ([Toy("unicorn")], "meadow", "unknown object 'unicorn'; one of rat, mouse"),
        ([Toy("cat", "red")], "meadow", "a cat has its own colours only"),
        ([Toy("car", "pink")], "meadow", "unknown colour of a car 'pink'; one of red"),
        ([Toy("cat", size="huge")], "meadow", "unknown size 'huge'"),
        ([Toy("cat", motion="fly")], "meadow", "unknown motion 'fly'"),
        ([Toy("cat")], "moon", "unknown ground 'moon'"),
        ([Toy("cat", size="large", motion="spin")] * 3, "meadow", "no room for cat, cat, cat"),
    ):
        with pytest.raises(ValueError, match=message):
            Scene(toys, ground)
