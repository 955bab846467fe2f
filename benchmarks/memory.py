"""How much memory it takes to read pictures and videos as a network's frames, against the size of what was decoded.

    python benchmarks/memory.py               writes benchmarks/memory.json and prints the table
    python benchmarks/memory.py --out runs    writes elsewhere

What a process takes at its peak beyond what it had before is compared with the decoded picture, or with the frames of
the clip. The videos differ in length only. Linux alone tells these numbers.
"""

import argparse
import json
import sys
import tempfile
from pathlib import Path

import av
import numpy as np
from decoding import memory
from PIL import Image

from gitdistill.data.crops import center_crop
from gitdistill.data.video import FrameRule, read_clip
from gitdistill.models.storage import write_whole

SIZE, FRAMES = 224, 6
PICTURES = {"small.jpg": (64, 48), "8000 x 6000.jpg": (8000, 6000), "10000 x 10000.png": (10_000, 10_000)}
PICTURES |= {"1500 x 1.png": (1500, 1), "30,000,000 x 1.png": (30_000_000, 1)}
VIDEOS = {"small.mp4": 12, "1,000 frames.mp4": 1000, "10,000 frames.mp4": 10_000}  # of 64 x 48 pixels


def write(folder: Path) -> None:
    """The files, in `folder`."""
    for name, size in PICTURES.items():
        Image.effect_noise((64, 64), 50).resize(size).convert("RGB").save(folder / name)
    frame = av.VideoFrame.from_ndarray(np.zeros((48, 64, 3), np.uint8))
    for name, count in VIDEOS.items():
        with av.open(str(folder / name), "w") as container:
            stream = container.add_stream("libx264", rate=25)
            stream.width, stream.height = 64, 48
            for number in range(count):
                frame.pts = number
                container.mux(stream.encode(frame))
            container.mux(stream.encode())


def read(path: Path):
    """A file as a network gets it, uint8 [F, 3, H, W]."""
    return center_crop(read_clip(path, FrameRule(FRAMES)), SIZE).contiguous()


def run(folder: Path) -> list[dict]:
    """A row for each file: megabytes decoded and taken."""
    write(folder)
    rows = []
    for name in (*PICTURES, *VIDEOS):
        pixels = np.prod(PICTURES[name]) if name in PICTURES else FRAMES * 64 * 48
        taken = memory(read, folder / name)
        rows.append({"file": name, "decoded": float(3 * pixels / 2**20), "taken": taken})
    return rows


def table(rows: list[dict]) -> list[str]:
    """The README's table."""
    lines = ["| file | MB decoded | MB taken | ratio |", "|---|---|---|---|"]
    for row in rows:
        ratio = f"{row['taken'] / row['decoded']:.1f}" if row["decoded"] > 50 else ""
        lines.append(f"| {row['file']} | {row['decoded']:,.1f} | {row['taken']:,.0f} | {ratio} |")
    return lines


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=Path(__file__).parent)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        rows = run(Path(folder))
    text = json.dumps(rows, indent=1) + "\n"
    write_whole(options.out, {"memory.json": lambda path: path.write_text(text)})
    print("\n".join(table(rows)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
