"""Pictures and videos from files: which frames, which way up, and what becomes of broken ones."""

import os
import sys
import warnings
from fractions import Fraction
from itertools import product
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from pictures import grey, photo, shades, video
from PIL import Image

from gitdistill.data.pictures import BrokenFile
from gitdistill.data.video import FrameRule, Packet, placed, play, read_clip, read_video, timetable


def still(path):
    """A picture as [3, H, W]."""
    return read_clip(path, FrameRule(1))[0]


def numbers(clip) -> list[int]:
    """Which of `shades` the frames are."""
    return [round(frame.float().mean().item() / 10) for frame in clip]


@pytest.mark.parametrize("name, options", [
    ("a.mp4", {}), ("a.mkv", {}), ("a.webm", {"codec": "libvpx-vp9"}), ("b.avi", {"codec": "mpeg4"}),
    ("a.avi", {}),  # packets give the time of decoding as that of showing
    ("a.mts", {}),  # a jump lands too late
    ("a.flv", {}),  # starts after zero, the last frame has no duration
    ("a.mpg", {"codec": "mpeg2video", "rate": 25, "units": 25}),  # no jumps at all
    ("a.wmv", {"codec": "wmv2", "units": 10}),
    ("late.mkv", {"times": [30 + i / 10 for i in range(20)]}),  # counts its duration from zero
])  # fmt: skip
def test_which_frames(tmp_path, name, options):
    path = video(tmp_path / name, shades(20), gap=7, **options)
    for rule, chosen in (
        (FrameRule(1), [10]),
        (FrameRule(2), [5, 15]),
        (FrameRule(20, "every"), list(range(20))),
        (FrameRule(2, "every", 15), [0, 15]),
        (FrameRule(4, "every", 8), [0, 8, 16, 19]),
    ):
        clip = read_video(path, rule)
        assert clip.dtype == torch.uint8 and clip.shape == (rule.num_frames, 3, 48, 64)
        assert numbers(clip) == chosen, rule


def test_a_video_shorter_than_a_clip(tmp_path):
    path = video(tmp_path / "\u661f #1 100%.MP4", shades(3))
    assert numbers(read_clip(path, FrameRule(6))) == [0, 0, 1, 1, 2, 2]
    assert numbers(read_video(path, FrameRule(5, "every"))) == [0, 1, 2, 2, 2]
    assert numbers(read_video(video(tmp_path / "b.mp4", shades(1)), FrameRule(2))) == [0, 0]


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
    frame = np.dstack([grey(60), np.full((48, 64), 255, np.uint8)])
    frame[:24, :, 3] = 0
    clip = read_video(video(tmp_path / name, [frame] * 8, codec=codec, pixels=pixels), FrameRule(3)).float()
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
    assert np.array_equal(still(tmp_path / "a.png").permute(1, 2, 0), np.asarray(photo()))
    clip = read_clip(tmp_path / "a.png", FrameRule(3))
    assert clip.shape == (3, 3, 48, 64) and torch.equal(clip[0], clip[2])
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned clockwise by a quarter
    photo().save(tmp_path / "a.png", exif=exif)
    turned = np.rot90(np.asarray(photo()), -1)
    assert np.array_equal(still(tmp_path / "a.png").permute(1, 2, 0), turned)


def test_pictures_of_other_kinds(tmp_path):
    expected = np.asarray(photo().convert("L"))
    photo().convert("L").save(tmp_path / "grey.png")
    for name in ("sixteen.png", "sixteen.tiff"):
        Image.fromarray(expected.astype(np.uint16) * 257).save(tmp_path / name)
    for name in ("grey.png", "sixteen.png", "sixteen.tiff"):
        image = still(tmp_path / name)
        assert image.dtype == torch.uint8 and all(np.array_equal(part, expected) for part in image), name
    for number, path in ((-1, "low.tiff"), (70000, "high.tiff")):
        Image.fromarray(np.full((4, 4), number, np.int32)).save(tmp_path / path)
        with pytest.raises(BrokenFile, match=f"{path} .* more than 16 bits, without a scale"):
            still(tmp_path / path)
    clear = photo().convert("RGBA")
    clear.putalpha(0)
    clear.save(tmp_path / "clear.png")
    assert (still(tmp_path / "clear.png") == 255).all()


def test_pictures_for_print_and_with_a_clear_colour(tmp_path):
    photo().convert("CMYK").save(tmp_path / "cmyk.JPG", quality=95)
    image = read_clip(tmp_path / "cmyk.JPG", FrameRule(1))[0].permute(1, 2, 0)
    assert (image.float() - torch.tensor(np.array(photo()))).abs().mean() < 8
    palette = photo().quantize(16)
    palette.save(tmp_path / "palette.png", transparency=palette.getpixel((0, 0)))
    image = still(tmp_path / "palette.png")
    shown = np.array(palette.convert("RGB"))
    shown[np.array(palette) == palette.getpixel((0, 0))] = 255
    assert np.array_equal(image.permute(1, 2, 0), shown)
    for mode in ("1", "LA", "RGBA", "I;16", "L"):
        Image.new(mode, (5, 4)).save(tmp_path / f"{mode[:2]}.png")
        assert still(tmp_path / f"{mode[:2]}.png").shape == (3, 4, 5), mode


def test_moving_pictures(tmp_path):
    """An animated GIF, WebP or PNG is a video, whatever it is called; what is clear in it is white."""
    frames = [Image.fromarray(frame) for frame in shades(6)]
    for name in ("a.gif", "a.webp", "a.png"):
        options = {"save_all": True, "append_images": frames[1:], "duration": 100, "lossless": True}
        frames[0].save(tmp_path / name, **options)
    (tmp_path / "b.jpg").write_bytes((tmp_path / "a.gif").read_bytes())
    (tmp_path / "b.mp4").write_bytes((tmp_path / "a.png").read_bytes())
    for name in ("a.gif", "a.webp", "a.png", "b.jpg", "b.mp4"):
        assert numbers(read_clip(tmp_path / name, FrameRule(3))) == [1, 3, 5], name
    # a frame that lasts fills most of the time
    for name, long in product(("a.gif", "a.webp", "a.png"), (0, 5)):
        lasting = [5000 if k == long else 100 for k in range(6)]
        options = {"save_all": True, "append_images": frames[1:], "duration": lasting, "lossless": True}
        frames[0].save(tmp_path / name, **options)
        assert numbers(read_clip(tmp_path / name, FrameRule(3))) == [long] * 3, (name, long)
    frames[3].save(tmp_path / "one.GIF")
    assert numbers(read_clip(tmp_path / "one.GIF", FrameRule(2))) == [3, 3]
    clear = photo().quantize(16)
    clear.save(tmp_path / "clear.gif", transparency=clear.getpixel((0, 0)))
    assert (read_clip(tmp_path / "clear.gif", FrameRule(1))[0, :, 0, 0] == 255).all()


def test_sound_with_and_without_a_cover(tmp_path):
    with av.open(str(tmp_path / "a.mp4"), "w") as container:
        stream = container.add_stream("aac", rate=16000)
        for start in range(0, 8192, 1024):
            sound = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), "fltp", "mono")
            sound.sample_rate, sound.pts = 16000, start
            container.mux(stream.encode(sound))
        container.mux(stream.encode())
    cover = av.stream.Disposition.attached_pic
    with av.open(str(tmp_path / "b.mp4"), "w") as container:
        stream = container.add_stream("mjpeg", rate=1)
        stream.width, stream.height, stream.pix_fmt, stream.disposition = 64, 48, "yuvj420p", cover
        container.mux(stream.encode(av.VideoFrame.from_ndarray(grey(50), format="rgb24")))
        container.mux(stream.encode())
    for name in ("a.mp4", "b.mp4"):
        with pytest.raises(BrokenFile, match=f"{name} is no readable video: it has no video stream"):
            read_video(tmp_path / name, FrameRule(2))


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
    found = 0
    for place in range(len(whole) // 5, len(whole) // 2, 100):
        content = whole[:place] + bytes(range(40)) + whole[place + 40 :]
        try:
            read_video("a.mp4", FrameRule(1, "every"), content=content)  # the first frame is whole
            read_video("a.mp4", FrameRule(1), content=content)
        except BrokenFile:
            found += 1
    assert found > 8


@pytest.mark.parametrize("count", [1, 4])
def test_a_gif_cut_off(tmp_path, count):
    frames = [photo().rotate(20 * i).quantize(32) for i in range(count)]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:], comment=b"; a comment ;")
    whole = (tmp_path / "a.gif").read_bytes()
    assert read_clip(tmp_path / "a.gif", FrameRule(2)).shape == (2, 3, 48, 64)
    for keep in (20, 0.3, 0.6, 0.97):
        keep = int(keep * len(whole)) if isinstance(keep, float) else keep
        (tmp_path / "a.gif").write_bytes(whole[:keep])
        with pytest.raises(BrokenFile, match="a.gif is no readable video: .+"):
            read_clip(tmp_path / "a.gif", FrameRule(2))


def test_videos_without_the_package_that_reads_them(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "av", None)
    (tmp_path / "a.mp4").write_text("hello")
    with pytest.raises(ImportError, match="videos need PyAV: pip install -e '..real.'"):
        read_clip(tmp_path / "a.mp4", FrameRule(2))


def test_no_picture_and_no_video_at_all(tmp_path):
    (tmp_path / "a.mp4").write_text("hello " * 100)
    for name in ("a.mp4", "gone.mp4"):
        with pytest.raises(BrokenFile, match=f"{name} is no readable video: .+"):
            read_clip(tmp_path / name, FrameRule(4))
    photo(200, 200).save(tmp_path / "a.jpg")
    for keep in (1000, 20, 0):
        (tmp_path / "a.jpg").write_bytes((tmp_path / "a.jpg").read_bytes()[:keep])
        with pytest.raises(BrokenFile, match="a.jpg is no readable picture: .+"):
            still(tmp_path / "a.jpg")


@pytest.mark.parametrize("name, content", [
    ("a.mp4", b"v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\nm=video 5004 RTP/AVP 96\n"),
    ("a.mp4", b"#EXTM3U\n#EXT-X-TARGETDURATION:5\n#EXTINF:5,\nwhole.mp4\n#EXT-X-ENDLIST\n"),
    ("a.mkv", b"ffconcat version 1.0\nfile whole.mp4\n"),
    ("a.png", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\nshowpage\n"),
    ("a.webm", b"<MPD xmlns='urn:mpeg:dash:schema:mpd:2011'><BaseURL>whole.mp4</BaseURL></MPD>"),
])  # fmt: skip
def test_a_text_that_names_other_files_or_a_program_is_no_media(tmp_path, monkeypatch, name, content):
    monkeypatch.chdir(tmp_path)
    video("whole.mp4", shades(3))
    Path(name).write_bytes(content)
    with pytest.raises(BrokenFile, match=f"{name} is no readable (picture|video): .+"):
        read_clip(name, FrameRule(2))


@pytest.mark.parametrize("name", ["talk:part1.mp4", "concat:x.mp4", "http:a.mp4", "-.mp4", "a%03d.png"])
def test_no_name_is_an_address_or_a_pattern(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    Path(video(tmp_path / "a.mp4", shades(6))).rename(name)
    assert numbers(read_clip(name, FrameRule(3))) == [1, 3, 5]
    assert [round(float(seconds), 1) for seconds, _ in play(name)] == [0, 0.1, 0.2, 0.3, 0.4, 0.5]


def test_pipes_and_devices_are_not_opened(tmp_path):
    os.mkfifo(tmp_path / "a.png")
    os.mkfifo(tmp_path / "a.mp4")
    (tmp_path / "b.mp4").symlink_to("/dev/zero")
    (tmp_path / "c.png").symlink_to("/dev/zero")
    for name in ("a.png", "a.mp4", "b.mp4", "c.png"):
        with pytest.raises(BrokenFile, match=f"{name} is no readable .*: it is no regular file"):
            read_clip(tmp_path / name, FrameRule(2))
    with pytest.raises(BrokenFile, match="no regular file"):
        next(play(tmp_path / "a.mp4"))


def test_what_claims_to_be_huge_is_refused_at_once(tmp_path):
    header = b"GIF89a" + (16_000).to_bytes(2, "little") * 2 + bytes(3)
    picture = b"," + bytes(4) + (16_000).to_bytes(2, "little") * 2 + bytes(1) + b"\x02\x02L\x01\x00;"
    (tmp_path / "a.gif").write_bytes(header + picture)
    Image.new("1", (13_300, 13_300)).save(tmp_path / "a.png")
    Image.new("1", (10_001, 10_000)).save(tmp_path / "b.png")
    reasons = {"a.gif": "256000000", "a.png": "13300 x 13300 pixels; 1 to 100", "b.png": "10001 x"}
    for name, why in reasons.items():
        with pytest.raises(BrokenFile, match=f"{name} is no readable .*: .*{why}"), warnings.catch_warnings():
            warnings.simplefilter("error")
            read_clip(tmp_path / name, FrameRule(2))


@pytest.mark.parametrize("suffix", ["png", "jpg"])
def test_a_large_picture_is_reduced_first(tmp_path, suffix):
    """Its parts stay where they are."""
    picture = Image.new("RGB", (6000, 4000))
    picture.paste((255, 255, 255), (3000, 0, 6000, 2000))
    picture.save(tmp_path / f"a.{suffix}")
    clip = still(tmp_path / f"a.{suffix}")
    height, width = clip.shape[1:]
    assert height * width <= 16_000_000 and width / height == 1.5
    assert clip[:, : height // 2 - 9, width // 2 + 9 :].min() > 250 and clip[:, height // 2 + 9 :].max() < 5


def test_a_gif_without_its_end_and_with_padding(tmp_path):
    frames = [Image.fromarray(frame) for frame in shades(6)]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:], duration=100)
    whole = (tmp_path / "a.gif").read_bytes()
    for content in (whole[:-1], whole[:-1] + bytes(3) + b";"):
        (tmp_path / "a.gif").write_bytes(content)
        assert numbers(read_clip(tmp_path / "a.gif", FrameRule(3))) == [1, 3, 5]


@pytest.mark.parametrize("turns", range(4))
@pytest.mark.parametrize("mirrored", [False, True])
def test_a_display_matrix_places_every_corner(turns, mirrored):
    """Each pixel lands where the matrix takes it, but for a shift."""
    pixels = np.arange(6).reshape(2, 3, 1).repeat(3, 2)
    quarter = np.array([[0, 1], [-1, 0]])
    matrix = np.linalg.matrix_power(quarter, turns) @ np.diag([-1 if mirrored else 1, 1])
    shown = placed(pixels, matrix * 65536)
    places = np.array([(x, y) for y in range(2) for x in range(3)]) @ matrix
    places -= places.min(0)
    assert [shown[y, x, 0] for x, y in places] == list(range(6))


def test_pixels_that_are_no_squares(tmp_path):
    path = video(tmp_path / "a.mp4", shades(4), aspect=Fraction(4, 3))
    assert read_video(path, FrameRule(2)).shape == (2, 3, 48, round(64 * 4 / 3))


def test_packets_are_kept_without_what_they_hold(tmp_path):
    with av.open(video(tmp_path / "a.mp4", shades(20))) as container:
        packet = next(container.demux())
        kept = Packet.of(packet)
        assert kept.pts == packet.pts and kept.is_keyframe and kept.stream == 0
        assert not any(isinstance(value, av.Packet) for value in kept)
        times, keys, _ = timetable(container, container.streams.video[0])
    assert len(times) == len(keys) > 10


def test_wrong_rules():
    with pytest.raises(ValueError, match="unknown sampling 'middle'"):
        FrameRule(4, "middle")
    with pytest.raises(ValueError, match="num_frames must be at least 1"):
        FrameRule(0)
