"""Pictures and videos from files: which frames, which way up, and what becomes of broken ones."""

import sys

import av
import numpy as np
import pytest
import torch
from pictures import grey, photo, shades, video
from PIL import Image

from gitdistill.data.video import BrokenFile, FrameRule, read_clip, read_image, read_video


def numbers(clip) -> list[int]:
    """Which of `shades` the frames are."""
    return [round(frame.float().mean().item() / 10) for frame in clip]


@pytest.mark.parametrize(
    "rule, chosen",
    [
        (FrameRule(4), [2, 7, 12, 17]),
        (FrameRule(20), list(range(20))),
        (FrameRule(1), [10]),
        (FrameRule(4, "every", 3), [0, 3, 6, 9]),
        (FrameRule(4, "every", 8), [0, 8, 16, 19]),
    ],
)
def test_which_frames(tmp_path, rule, chosen):
    for name, codec in (
        ("a.mp4", "libx264"),
        ("b.webm", "libvpx-vp9"),
        ("c.avi", "mpeg4"),
        ("d.mkv", "libx264"),
    ):
        clip = read_video(video(tmp_path / name, shades(20), codec=codec), rule)
        assert clip.dtype == torch.uint8 and clip.shape == (rule.num_frames, 3, 48, 64)
        assert numbers(clip) == chosen, name


def test_a_video_shorter_than_a_clip(tmp_path):
    path = video(tmp_path / "a.mp4", shades(3))
    assert numbers(read_video(path, FrameRule(6))) == [0, 0, 1, 1, 2, 2]
    assert numbers(read_video(path, FrameRule(5, "every"))) == [0, 1, 2, 2, 2]
    assert numbers(read_video(video(tmp_path / "b.mp4", shades(1)), FrameRule(2))) == [0, 0]


@pytest.mark.parametrize(
    "name, options",
    [
        ("a.avi", {}),  # packets give the time of decoding as that of showing
        ("a.mts", {}),  # a jump lands too late
        ("a.flv", {}),  # starts after zero, the last frame has no duration
        ("a.mpg", {"codec": "mpeg2video", "rate": 25, "units": 25}),  # no jumps at all
        ("a.wmv", {"codec": "wmv2", "units": 10}),
        ("late.mkv", {"times": [30 + i / 10 for i in range(20)]}),  # counts its duration from zero
    ],
)
def test_containers_that_tell_less(tmp_path, name, options):
    path = video(tmp_path / name, shades(20), gap=7, **options)
    for rule, chosen in (
        (FrameRule(20, "every"), list(range(20))),
        (FrameRule(2), [5, 15]),
        (FrameRule(2, "every", 15), [0, 15]),
        (FrameRule(1), [10]),
    ):
        assert numbers(read_video(path, rule)) == chosen, rule


def test_frames_that_are_not_to_be_shown(tmp_path):
    """Half a second before zero, which the file has but says to leave out."""
    times = [i / 10 - 0.5 for i in range(20)]
    path = video(tmp_path / "a.mp4", shades(20), times=times, use_editlist="1")
    assert numbers(read_video(path, FrameRule(15))) == list(range(5, 20))
    assert numbers(read_video(path, FrameRule(3))) == [7, 12, 17]


def test_a_video_that_changes_its_size(tmp_path):
    tall = [grey(200, 32, 64)] * 4
    parts = [video(tmp_path / "a.mpg", frames, codec="mpeg1video", rate=25, units=25).read_bytes()
             for frames in (shades(4), tall)]  # fmt: skip
    (tmp_path / "a.mpg").write_bytes(b"".join(parts))
    clip = read_video(tmp_path / "a.mpg", FrameRule(8))
    assert clip.shape == (8, 3, 48, 64) and numbers(clip)[:2] == [0, 1] and numbers(clip)[4:] == [20] * 4


@pytest.mark.parametrize("name, codec, pixels", [
    ("a.webm", "libvpx-vp9", "yuva420p"), ("c.mov", "qtrle", "argb"),
])  # fmt: skip
def test_a_video_that_is_partly_clear(tmp_path, name, codec, pixels):
    frames = [np.dstack([grey(60), np.full((48, 64), 255, np.uint8)]) for _ in range(8)]
    for frame in frames:
        frame[:24, :, 3] = 0
    clip = read_video(video(tmp_path / name, frames, codec=codec, pixels=pixels), FrameRule(3)).float()
    assert (clip[:, :, :20] > 250).all() and (clip[:, :, 28:] - 60).abs().max() < 10


def test_random_frames_come_from_their_own_parts(tmp_path):
    path, rule = video(tmp_path / "a.mp4", shades(20)), FrameRule(4, "random")
    seen = [numbers(read_video(path, rule, np.random.RandomState(seed))) for seed in range(30)]
    assert len(set(map(tuple, seen))) > 20
    for part in range(4):
        assert {clip[part] for clip in seen} == set(range(5 * part, 5 * part + 5))
    assert numbers(read_video(path, rule, np.random.RandomState(3))) == seen[3]


def test_a_variable_frame_rate_is_read_by_time(tmp_path):
    """Frames 0 to 9 within the first second, frames 10 and 11 in the second and third."""
    times = [i / 10 for i in range(10)] + [1.0, 2.0]
    path = video(tmp_path / "a.mkv", shades(12), times=times)
    assert numbers(read_video(path, FrameRule(2))) == [5, 10]


@pytest.mark.parametrize("rotation", [90, 180, 270])
def test_a_turned_video_comes_upright(tmp_path, rotation):
    picture = grey(0)
    picture[:16, :16] = 255  # the upper left corner
    turned = np.rot90(picture, -rotation // 90)
    clip = read_video(video(tmp_path / "a.mp4", [turned] * 4, rotation=rotation), FrameRule(1))
    assert clip.shape == (1, 3, 48, 64)
    assert clip[0, :, :16, :16].float().mean() > 200 and clip[0, :, 16:].float().mean() < 20


def test_a_photograph_as_it_is(tmp_path):
    photo().save(tmp_path / "a.png")
    assert np.array_equal(read_image(tmp_path / "a.png").permute(1, 2, 0), np.asarray(photo()))
    clip = read_clip(tmp_path / "a.png", FrameRule(3))
    assert clip.shape == (3, 3, 48, 64) and torch.equal(clip[0], clip[2])


def test_pictures_of_other_kinds(tmp_path):
    expected = np.asarray(photo().convert("L"))
    photo().convert("L").save(tmp_path / "grey.png")
    wide = Image.fromarray(expected.astype(np.uint16) * 257)
    wide.save(tmp_path / "sixteen.png")
    wide.save(tmp_path / "sixteen.tiff")
    photo().convert("P", palette=Image.Palette.ADAPTIVE).save(tmp_path / "palette.png")
    for name in ("grey.png", "sixteen.png", "sixteen.tiff"):
        image = read_image(tmp_path / name)
        assert image.dtype == torch.uint8 and all(np.array_equal(part, expected) for part in image), name
    assert read_image(tmp_path / "palette.png").shape == (3, 48, 64)
    for number, path in ((-1, "low.tiff"), (70000, "high.tiff")):
        Image.fromarray(np.full((4, 4), number, np.int32)).save(tmp_path / path)
        with pytest.raises(BrokenFile, match=f"{path} .* more than 16 bits, without a scale"):
            read_image(tmp_path / path)
    clear = photo().convert("RGBA")
    clear.putalpha(0)
    clear.save(tmp_path / "clear.png")
    assert (read_image(tmp_path / "clear.png") == 255).all()


def close(image, expected):
    """A picture that was compressed with loss is like another one."""
    return (image.float() - torch.tensor(np.array(expected)).permute(2, 0, 1)).abs().mean() < 8


def test_pictures_for_print_and_with_a_clear_colour(tmp_path):
    photo().convert("CMYK").save(tmp_path / "cmyk.jpg", quality=95)
    assert close(read_image(tmp_path / "cmyk.jpg"), photo())
    palette = photo().quantize(16)
    palette.save(tmp_path / "palette.png", transparency=palette.getpixel((0, 0)))
    image = read_image(tmp_path / "palette.png")
    shown = np.array(palette.convert("RGB"))
    shown[np.array(palette) == palette.getpixel((0, 0))] = 255
    assert np.array_equal(image.permute(1, 2, 0), shown)
    for mode in ("1", "LA", "RGBA", "I;16", "L"):
        Image.new(mode, (5, 4)).save(tmp_path / f"{mode[:2]}.png")
        assert read_image(tmp_path / f"{mode[:2]}.png").shape == (3, 4, 5), mode


def test_moving_pictures(tmp_path):
    """An animated GIF is a video, what is clear in it white; of an animated WebP or PNG the first picture counts."""
    frames = [Image.fromarray(frame) for frame in shades(6)]
    for name in ("a.gif", "a.webp", "a.png"):
        options = {"save_all": True, "append_images": frames[1:], "duration": 100, "lossless": True}
        frames[0].save(tmp_path / name, **options)
    assert numbers(read_clip(tmp_path / "a.gif", FrameRule(3))) == [1, 3, 5]
    for name in ("a.webp", "a.png"):
        assert numbers(read_clip(tmp_path / name, FrameRule(3))) == [0, 0, 0]
    frames[3].save(tmp_path / "one.GIF")
    assert numbers(read_clip(tmp_path / "one.GIF", FrameRule(2))) == [3, 3]
    clear = photo().quantize(16)
    clear.save(tmp_path / "clear.gif", transparency=clear.getpixel((0, 0)))
    assert (read_clip(tmp_path / "clear.gif", FrameRule(1))[0, :, 0, 0] == 255).all()


def test_sound_without_pictures(tmp_path):
    with av.open(str(tmp_path / "a.mp4"), "w") as container:
        stream = container.add_stream("aac", rate=16000)
        for start in range(0, 8192, 1024):
            sound = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), "fltp", "mono")
            sound.sample_rate, sound.pts = 16000, start
            container.mux(stream.encode(sound))
        container.mux(stream.encode())
    with pytest.raises(BrokenFile, match="a.mp4 is no readable video: it has no video stream"):
        read_video(tmp_path / "a.mp4", FrameRule(2))


def test_a_song_with_a_cover(tmp_path):
    cover = av.stream.Disposition.attached_pic
    with av.open(str(tmp_path / "a.mp4"), "w") as container:
        stream = container.add_stream("mjpeg", rate=1)
        stream.width, stream.height, stream.pix_fmt, stream.disposition = 64, 48, "yuvj420p", cover
        container.mux(stream.encode(av.VideoFrame.from_ndarray(grey(50), format="rgb24")))
        container.mux(stream.encode())
    with pytest.raises(BrokenFile, match="a.mp4 is no readable video: it has no video stream"):
        read_video(tmp_path / "a.mp4", FrameRule(2))


def test_names_of_all_kinds(tmp_path):
    path = video(tmp_path / "\u661f #1 100%.MP4", shades(4))
    assert numbers(read_clip(path, FrameRule(2))) == [1, 3]
    photo().save(tmp_path / "B.JPG", quality=95)
    assert close(read_clip(tmp_path / "B.JPG", FrameRule(1))[0], photo())


def test_exif_orientation(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned clockwise by a quarter
    photo().save(tmp_path / "a.png", exif=exif)
    turned = np.rot90(np.asarray(photo()), -1)
    assert np.array_equal(read_image(tmp_path / "a.png").permute(1, 2, 0), turned)


@pytest.mark.parametrize("keep", [0, 10, 400, 0.5, 0.85])
def test_a_video_cut_off(tmp_path, keep):
    noise = [np.random.RandomState(i).randint(0, 256, (48, 64, 3), dtype=np.uint8) for i in range(20)]
    for name in ("a.mp4", "a.mkv"):
        whole = video(tmp_path / name, noise).read_bytes()
        (tmp_path / name).write_bytes(whole[: int(keep * len(whole)) if isinstance(keep, float) else keep])
        with pytest.raises(BrokenFile, match=f"{name} is no readable video: .+"):
            read_video(tmp_path / name, FrameRule(4))


def test_damage_to_what_chosen_frames_are_made_from(tmp_path):
    """Decoders paint over it and pass it on to later frames; here it is an error."""
    frames = [np.asarray(photo().rotate(3 * i)) for i in range(20)]
    whole = video(tmp_path / "a.mp4", frames, gap=40, codec="mpeg4").read_bytes()
    found = []
    for place in range(len(whole) // 5, len(whole) // 2, 100):
        content = whole[:place] + bytes(range(40)) + whole[place + 40 :]
        try:
            read_video("a.mp4", FrameRule(1, "every"), content=content)  # the first frame is whole
            read_video("a.mp4", FrameRule(1), content=content)
        except BrokenFile as error:
            found.append(str(error))
    assert len(found) > 8 and all(line.startswith("a.mp4 is no readable video: ") for line in found)


@pytest.mark.parametrize("count", [1, 4])
def test_a_gif_cut_off(tmp_path, count):
    frames = [photo().rotate(20 * i).quantize(32) for i in range(count)]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:], comment=b"; a comment ;")
    whole = (tmp_path / "a.gif").read_bytes()
    assert read_clip(tmp_path / "a.gif", FrameRule(2)).shape == (2, 3, 48, 64)
    for keep in (20, 0.3, 0.6, 0.97, -1):
        keep = int(keep * len(whole)) if isinstance(keep, float) else keep
        (tmp_path / "a.gif").write_bytes(whole[:keep])
        with pytest.raises(BrokenFile, match="a.gif is no readable video: .+"):
            read_clip(tmp_path / "a.gif", FrameRule(2))


def test_videos_without_the_package_that_reads_them(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(ImportError, match="videos need PyAV: pip install -e '..real.'"):
        read_clip(tmp_path / "a.mp4", FrameRule(2))


def test_no_video_at_all(tmp_path):
    (tmp_path / "a.mp4").write_text("hello " * 100)
    with pytest.raises(BrokenFile, match="a.mp4 is no readable video"):
        read_clip(tmp_path / "a.mp4", FrameRule(4))
    with pytest.raises(BrokenFile, match="b.mp4"):
        read_clip(tmp_path / "b.mp4", FrameRule(4))


@pytest.mark.parametrize("keep", [0, 20, 1000])
def test_a_broken_picture(tmp_path, keep):
    photo(200, 200).save(tmp_path / "a.jpg")
    (tmp_path / "a.jpg").write_bytes((tmp_path / "a.jpg").read_bytes()[:keep])
    with pytest.raises(BrokenFile, match="a.jpg is no readable picture: .+"):
        read_image(tmp_path / "a.jpg")


def test_wrong_rules():
    with pytest.raises(ValueError, match="unknown sampling 'middle': use one of uniform, random, every"):
        FrameRule(4, "middle")
    with pytest.raises(ValueError, match="at least 1, not 0 and 1"):
        FrameRule(0)
