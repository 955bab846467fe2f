"""Batches of pictures and videos from files, as the trainers take them."""

import pickle
import warnings
from types import SimpleNamespace

import numpy as np
import pytest
import tiny
import torch
from pictures import captioned, photo
from PIL import Image

from gitdistill.data.compact import Item, Items
from gitdistill.data.crops import center_crop, pad_to_square
from gitdistill.data.files import FileData, FilePool, loses_a_third, random_resized_crop
from gitdistill.data.video import BrokenFile, FrameRule, read_clip
from gitdistill.distillation.cache import TargetSpec, TeacherCache
from gitdistill.distillation.losses import top_k
from gitdistill.models.preprocessing import CLIP_MEAN, CLIP_STD, to_pixels
from gitdistill.world import toybox_tokenizer

TEXTS = ["a red star", "a blue star moves", "a green bell", "a red bell grows", "a star"]
PAD = {"fit": "pad"}
COUNTS = ("views", "limit", "batch_size", "captions_per_clip", "image_size", "num_frames", "step")


def small(train, **options):
    options = {"num_frames": 1, "image_size": tiny.SIDE, "batch_size": 2} | options
    return FileData(train, tokenizer=toybox_tokenizer(), **options)


@pytest.fixture
def folder(tmp_path):
    """Pictures with one caption, two captions, three, and so on."""
    return captioned(tmp_path / "pictures", [TEXTS[: number + 1] for number in range(5)])


def test_training_batches(folder):
    data = small(folder, captions_per_clip=2)
    loader = data.train_dataloader()
    epochs = [list(loader) for _ in range(8)]
    seen = set()
    for epoch in epochs:
        assert [len(batch["frames"]) for batch in epoch] == [2, 2, 1]
        assert sorted(torch.cat([batch["clip"] for batch in epoch]).tolist()) == list(range(5))
        for batch in epoch:
            assert batch["frames"].shape[1:] == (1, 3, 32, 32) and batch["frames"].dtype == torch.uint8
            clips = [clip for clip in batch["clip"].tolist() for _ in range(2)]
            captions = data.tokenizer.batch_decode(batch["tokens"], skip_special_tokens=True)
            for clip, number, text in zip(clips, batch["caption"].tolist(), captions):
                assert text == (TEXTS[number] if number >= 0 else "") and number <= clip
                seen.add((clip, number))
    assert seen == {(clip, number) for clip in range(5) for number in range(clip + 1)} | {(0, -1)}
    again = list(small(folder, captions_per_clip=2).train_dataloader())
    assert all(torch.equal(a["tokens"], b["tokens"]) for a, b in zip(epochs[0], again))


def test_worker_processes_get_the_clips_and_nothing_of_the_training(folder):
    """Where they are spawned, as on macOS, all that they get is pickled."""
    data = small(folder)
    data.trainer = SimpleNamespace(optimizer=lambda: None)  # cannot be pickled
    for loader in (data.train_dataloader(), data.pool_dataloader()):
        pickle.dumps((loader.dataset, loader.collate_fn))


def test_a_network_sees_what_it_would_make_of_the_picture_itself(folder):
    batch = next(iter(small(folder).pool_dataloader()))
    whole = torch.from_numpy(np.array(photo(64, 48))).permute(2, 0, 1)[None]
    expected = to_pixels(whole, tiny.SIDE, CLIP_MEAN, CLIP_STD)
    assert torch.equal(to_pixels(batch["frames"][:1], tiny.SIDE, CLIP_MEAN, CLIP_STD), expected)


def test_broken_files_are_named_counted_and_left_out(folder, tmp_path):
    broken, table = tmp_path / "pictures" / "1.png", tmp_path / "pictures" / "captions.jsonl"
    broken.write_bytes(b"hello")
    table.write_text(table.read_text() + '\n{"file": "gone.png", "caption": "a star"}')
    with pytest.warns(UserWarning, match="left out, 1 so far: gone.png, listed in .*is not there"):
        data = small(folder)
    with pytest.warns(UserWarning, match="left out, 2 so far: .*1.png is no readable picture"):
        batches = list(data.train_dataloader())
    assert [len(batch["frames"]) for batch in batches] == [2, 2, 1] and "broken" not in batches[0]
    assert set(torch.cat([batch["clip"] for batch in batches]).tolist()) == {0, 2, 3, 4}
    assert list(data.broken) == ["gone.png", str(broken)]
    pool = list(data.pool_dataloader())
    assert torch.cat([batch["clip"] for batch in pool]).tolist() == list(range(5))
    assert (pool[0]["frames"][1] == 0).all() and not pool[0]["references"][1]
    with pytest.raises(BrokenFile, match="gone.png"):
        small(folder, on_broken="error")
    table.unlink()
    with pytest.raises(BrokenFile, match="1.png is no readable picture"):
        list(small(folder, on_broken="error").train_dataloader())
    for number in range(5):
        (tmp_path / "pictures" / f"{number}.png").write_bytes(b"")
    with pytest.raises(BrokenFile, match="none of 5 files can be read"):
        list(small(folder).train_dataloader())


def test_many_missing_files_in_one_line(tmp_path):
    photo().save(tmp_path / "a.jpg")
    (tmp_path / "captions.csv").write_text("file\na.jpg\n" + "".join(f"{i}.jpg\n" for i in range(1500)))
    with pytest.warns(UserWarning, match="1500 so far: 0.jpg, listed in .*; also 1.jpg, 2.jpg") as warned:
        data = small(str(tmp_path))
    assert len(warned) == 1 and str(warned[0].message).endswith("1000.jpg and 499 more")
    assert len(data.broken) == 1500


@pytest.mark.parametrize("text", ["...", "\u2605\u2605", "\U0001f600", " "])
def test_clips_without_a_word_to_score_against_are_named_and_left_out(tmp_path, text):
    folder = captioned(tmp_path / "pictures", [TEXTS, [text, "?!"], ["!", "a bell"]])
    with pytest.warns(UserWarning, match="left out: .*1.png has no caption .*, 1 of val's 3 clips"):
        data = small(None, val=folder)
    (batch,) = data.val_dataloader()
    assert batch["references"][0] == TEXTS and len(batch["frames"]) == 2
    assert len(small(folder).source("train")) == 3


def test_wrong_options(folder, tmp_path):
    (tmp_path / "mute").mkdir()
    photo().save(tmp_path / "mute" / "a.png")
    for options, message in (
        ({"val": folder}, "knows no splits: train and val would be the same"),
        ({"val": f"{folder}/."}, "train and val would be the same"),
        ({"val": str(tmp_path / "mute")}, "has no caption to score against"),
        ({"views": -1}, "views must be at least 0"),
        ({"batch_size": 0}, "batch_size must be at least 1"),
        *(({name: 1.5}, f"^{name} must be at least [01], a whole number, not 1.5$") for name in COUNTS),
    ):
        with pytest.raises(ValueError, match=message):
            small(folder, **options)
    with pytest.raises(ValueError, match="there is no val data"):
        small(folder).val_dataloader()
    with pytest.raises(ValueError, match="frames that come again"):
        small(folder, sampling="random").pool_size  # noqa: B018


def test_a_cache_holds_what_the_teacher_makes_of_each_crop(folder, tmp_path):
    """Random crops come again after `views` epochs."""
    data, teacher = small(folder, views=2), tiny.teacher()
    loader = data.train_dataloader()
    cache = TeacherCache.build(tmp_path / "cache", teacher, data, TargetSpec(), say=lambda _: None)
    epochs = [{int(clip): frames for batch in loader for clip, frames in zip(batch["clip"], batch["frames"])}
              for _ in range(3)]  # fmt: skip
    assert [sorted(epoch) for epoch in epochs] == [[2 * n + v for n in range(5)] for v in (0, 1, 0)]
    assert all(torch.equal(epochs[0][clip], epochs[2][clip]) for clip in epochs[0])
    assert not any(torch.equal(epochs[0][clip], epochs[1][clip + 1]) for clip in epochs[0])
    for batch in loader:
        kept = cache.read(batch["clip"], batch["caption"], batch["tokens"], TargetSpec())["logits"]
        with torch.no_grad():
            logits = teacher(batch["frames"], batch["tokens"]).logits
        torch.testing.assert_close(kept.log_p, top_k(logits, 8).log_p, atol=2e-2, rtol=2e-2)
    with pytest.raises(ValueError, match="views is 2 .* in the cache and 3"):
        cache.check(teacher, small(folder, views=3))
    with pytest.raises(ValueError, match="image_size is 32 in the cache and 48"):
        cache.check(teacher, small(folder, views=2, image_size=48))


def test_a_crop_is_the_same_in_all_frames_and_large():
    ramp = torch.arange(60, dtype=torch.uint8).expand(2, 3, 40, 60)
    lefts = set()
    for seed in range(50):
        crop = random_resized_crop(ramp, 30, np.random.RandomState(seed))
        assert crop.shape == (2, 3, 30, 30) and torch.equal(crop[0], crop[1])
        left, right = int(crop[0, 0, 0, 0]), int(crop[0, 0, 0, -1])
        assert right - left > 25  # columns that are left of 60
        lefts.add(left)
    assert len(lefts) > 10
    x, y = torch.meshgrid(torch.arange(180), torch.arange(60), indexing="xy")
    wide = torch.stack([x, y, 0 * x]).to(torch.uint8)[None]
    for seed in range(50):  # the shape stays where half of the area has no room
        ends = random_resized_crop(wide, 60, np.random.RandomState(seed))[0, :2, [0, -1], [0, -1]].int()
        across, down = (ends[:, 1] - ends[:, 0]).tolist()
        assert 0.7 < across / down < 1.43


def test_fast_frames_are_nearly_the_exact_ones_and_another_cache(tmp_path):
    (tmp_path / "jpegs").mkdir()
    for number, size in enumerate([(640, 427), (100, 400), (500, 60), (20, 30)]):
        photo(*size).save(tmp_path / "jpegs" / f"{number}.jpg")
    exact, fast = (small(str(tmp_path / "jpegs"), **options) for options in ({}, {"resize": "fast"}))
    frames = [torch.cat([b["frames"] for b in data.pool_dataloader()]).float() for data in (exact, fast)]
    error = (frames[0] - frames[1]).abs().mean()
    assert 0 < error < 8 and frames[0].shape == frames[1].shape == (4, 1, 3, tiny.SIDE, tiny.SIDE)
    assert fast.pool_settings == exact.pool_settings | {"resize": "fast"}
    with pytest.raises(ValueError, match="without views"):
        small(str(tmp_path / "jpegs"), resize="fast", views=2)


def test_the_settings_of_a_cache_keep_their_values(tmp_path):
    """Caches that were built earlier know their data by them."""
    data = small(captioned(tmp_path / "pictures", [TEXTS[:2], TEXTS[1:]]))
    assert data.pool_settings["files and captions"] == "3604a540944ee899"


@pytest.mark.parametrize("size", [(64, 48), (48, 64), (32, 32), (33, 500), (500, 33), (127, 31), (20, 30)])
def test_stills_are_shrunk_to_the_same_bytes(tmp_path, size):
    """By `FileData`, which resizes what Pillow decoded, as by `center_crop` of the whole; turned by their EXIF."""
    for orientation in (1, 6):
        exif = Image.Exif()
        exif[0x112] = orientation
        photo(*size).save(path := tmp_path / "a.jpg", exif=exif)
        pool = FilePool(Items([Item(str(path))]), FrameRule(2), tiny.SIDE, True)
        assert torch.equal(pool.frames(0), center_crop(read_clip(path, FrameRule(2)), tiny.SIDE))
        pool.rule = rule = FrameRule(2, fit="pad")
        assert torch.equal(pool.frames(0), pad_to_square(read_clip(path, rule), tiny.SIDE))


def test_padded_frames_and_crops_of_them_are_another_cache(folder):
    crop, pad, views = (small(folder, **options) for options in ({}, PAD, PAD | {"views": 2}))
    bar = torch.tensor([123, 117, 104]).view(3, 1)  # CLIP's mean colour
    for data in (pad, small(None, val=folder, **PAD)):
        batch = next(iter(data.pool_dataloader() if data is pad else data.val_dataloader()))
        assert (batch["frames"][:, 0, :, 0] == bar).all() and not (batch["frames"][:, 0, :, 16] == bar).all()
    assert pad.pool_settings == crop.pool_settings | {"fit": "pad"}
    assert pad.fingerprint() != crop.fingerprint()
    first, second = (views.pool.frames(4, view) for view in (0, 1))
    assert first.shape == (1, 3, tiny.SIDE, tiny.SIDE) and not torch.equal(first, second)
    whole = small(folder, views=2).pool.frames(4, 0)  # a crop of the picture, without bars
    assert (first == bar[..., None]).all(1).any() and not torch.equal(first, whole)
    with pytest.raises(ValueError, match='^fit is "crop" or "pad", not \'cover\'$'):
        small(folder, fit="cover")


def test_the_crop_of_an_animation_is_not_counted(tmp_path):
    still, other = (Image.new("RGB", (90, 40), colour) for colour in ("red", "blue"))
    for name in ("a.gif", "a.webp"):
        still.save(tmp_path / name, save_all=True, append_images=[other])
    still.save(tmp_path / "a.png")
    assert [loses_a_third(tmp_path / name) for name in ("a.gif", "a.webp", "a.png")] == [None, None, True]


@pytest.mark.parametrize("sizes, options, lost", [
    ([(60, 40), (40, 60), (59, 40)], {}, "2 of 3 "),
    ([(64, 48), (48, 48)], {}, None),
    ([(90, 40)], PAD, None),
    ([(90, 40)], {"views": 2}, None),
    ([(90, 40)] * 2 + [(40, 40)] * 500, {}, "1 of 199 "),
])  # fmt: skip
def test_pictures_that_lose_a_third_to_the_crop_are_counted_once(tmp_path, sizes, options, lost):
    for number, size in enumerate(sizes):
        Image.new("RGB", size).save(tmp_path / f"{number:03}.png")
    (tmp_path / "z.mp4").write_bytes(b"no picture")
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        data = small(str(tmp_path), **options)
        next(iter(data.train_dataloader()))
    lines = [str(line.message) for line in told if "centre crop" in str(line.message)]
    assert len(lines) == bool(lost) and all(line.startswith(lost) for line in lines)
