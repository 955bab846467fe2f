"""How fast files are captioned, and whether memory stays flat: 200 pictures, a video of two minutes, a sliding window.

    python benchmarks/use.py --student data/student     a student and the embedded teacher

It makes the files first: pictures of 640 x 480 pixels (JPEG) and a video of 320 x 240 at 25 frames a second (MPEG-4).
It prints the rates, the memory of the process after a quarter of the work, the most memory after that, and the load of
the machine at the start.
"""

import argparse
import os
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from gitdistill.use.caption import caption_files, live
from gitdistill.use.captioner import Captioner, load_student, load_teacher

PICTURES, SECONDS, RATE = 200, 120, 25


def scenery(random: np.random.Generator, width: int, height: int) -> np.ndarray:
    """Smooth blobs of colour, uint8 [H, W, 3]; their files are about as large as a photograph's."""
    small = random.integers(0, 256, (height // 16, width // 16, 3), dtype=np.uint8)
    return np.asarray(Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC))


def make_pictures(folder: Path, count: int) -> list[Path]:
    random = np.random.default_rng(0)
    paths = [folder / f"{number:03d}.jpg" for number in range(count)]
    for path in paths:
        Image.fromarray(scenery(random, 640, 480)).save(path, quality=90)
    return paths


def make_video(path: Path, seconds: int) -> Path:
    """A view that moves over one large picture."""
    import av

    view = scenery(np.random.default_rng(1), 1600, 1200)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=RATE)
        stream.width, stream.height, stream.pix_fmt = 320, 240, "yuv420p"
        for number in range(seconds * RATE):
            left, top = number % 1280, number * 7 // 10 % 960
            frame = np.ascontiguousarray(view[top : top + 240, left : left + 320])
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())
    return path


def resident() -> float:
    """Megabytes of this process; NaN on systems other than Linux."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return float("nan")
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("VmRSS"))


def measure(what: str, results, count: int) -> str:
    """A table's line of how fast `results` come, at least `count` of them, and of the memory meanwhile."""
    start, sizes = time.perf_counter(), []
    for _ in results:
        sizes.append(resident())
    seconds = time.perf_counter() - start
    if len(sizes) < count:
        raise RuntimeError(f"{what}: {len(sizes)} results instead of {count}")
    early, late = sizes[len(sizes) // 4], max(sizes[len(sizes) // 4 :])
    return f"| {what} | {len(sizes) / seconds:.2f} | {seconds:.1f} | {early:.0f} | {late:.0f} |"


def report(captioners: dict[str, Captioner], pictures: list[Path], video: Path, seconds: int, batch: int):
    """Yields the table's lines, one for each network and task when it is done."""
    yield "| | a second | seconds | MB after a quarter | MB at most from there |"
    yield "|---|---|---|---|---|"
    for name, captioner in captioners.items():
        results = caption_files(captioner, pictures, batch, {})
        yield measure(f"{name}: {len(pictures)} pictures, {batch} at once", results, len(pictures))
        results = caption_files(captioner, [video], batch, {})
        yield measure(f"{name}: a video of {seconds} s as one clip", results, 1)
        yield measure(f"{name}: captions of 2 s, one a second", live(captioner, video, 2, 1), seconds - 2)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--student", help="a student's folder; without one the teacher alone")
    parser.add_argument("--teacher", default="toybox", help='a checkpoint, by default "toybox"')
    parser.add_argument("--batch", type=int, default=8, help="pictures at once")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="of torch")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    captioners = {"student": load_student(options.student)} if options.student else {}
    captioners["teacher"] = load_teacher(options.teacher)
    print(f"{options.threads} threads of {os.cpu_count()}, load {os.getloadavg()[0]:.1f} before this began")
    with tempfile.TemporaryDirectory() as folder:
        pictures, video = make_pictures(Path(folder), PICTURES), make_video(Path(folder) / "two.mp4", SECONDS)
        for line in report(captioners, pictures, video, SECONDS, options.batch):
            print(line, flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
