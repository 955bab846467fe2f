"""`python -m gitdistill caption PATH... --student FOLDER`: captions of pictures, videos and folders of them."""

import argparse
import io
import json
import sys
import time
from collections import Counter, deque
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from gitdistill.data.files import center_crop, walk
from gitdistill.data.video import IMAGES, VIDEOS, BrokenFile, play, upright
from gitdistill.models.storage import write_whole
from gitdistill.use.captioner import load_captioner
from gitdistill.use.device import VARIABLE, choose_device


def main(arguments: list[str]) -> int:
    """Print captions; 1 if a file could not be read, 0 otherwise. ValueError or OSError for wrong arguments."""
    options = parser().parse_args(arguments)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # names of files need not be UTF-8
    captioner = load_captioner(options.student, options.teacher).to(choose_device(options.device))
    if options.frames:
        captioner.look(replace(captioner.rule, frames=options.frames))
    decoding = {"beams": options.beams, "max_length": options.max_length}
    decoding = {name: value for name, value in decoding.items() if value is not None}
    if options.live:
        return watch(captioner, options, decoding)
    if options.watch_words:
        check_watchable(captioner)
    paths, drawn = list(find_files(options.paths)), Counter()
    failed = 0
    progress = tqdm(total=len(paths), unit="file", disable=None if not options.quiet else True)
    for said in caption_files(captioner, paths, options.batch, decoding):
        progress.update()
        if said.wrong:
            failed += 1
            tqdm.write(f"left out: {said.wrong}", file=sys.stderr)
            continue
        facts = {"file": said.path, "caption": said.caption, "score": round(said.score, 4)}
        if options.watch_words:
            name = Path(said.path).name
            drawn[name] += 1
            name += ".png" if drawn[name] == 1 else f"-{drawn[name]}.png"
            facts["picture"] = draw_words(captioner, said, Path(options.watch_words), name)
        with progress.external_write_mode():
            print(as_json(**facts) if options.json else f"{said.path}\t{said.caption}\t{said.score:.3f}",
                  flush=True)  # fmt: skip
    progress.close()
    if failed:
        print(f"{failed} of {len(paths)} files could not be read", file=sys.stderr)
    return int(failed > 0)


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("gitdistill caption", description=__doc__)
    parser.add_argument("paths", nargs="+", metavar="PATH", help="a file, a folder, or - for a list on stdin")
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument("--student", help="a student's folder, or a repository of the hub")
    which.add_argument("--teacher", help='a GIT checkpoint: a folder, a hub id, or "glyphs"')
    parser.add_argument("--batch", type=positive(int), default=8, help="files at once (default: 8)")
    parser.add_argument("--beams", type=positive(int), help="beam search with so many beams")
    parser.add_argument("--max-length", type=positive(int), help="tokens at most, the start token included")
    parser.add_argument("--frames", type=positive(int), help="frames of a video to look at")
    parser.add_argument("--json", action="store_true", help="one JSON object a line")
    parser.add_argument("--watch-words", metavar="FOLDER",
                        help="a picture for each file: where the network looked for each word")  # fmt: skip
    parser.add_argument("--quiet", action="store_true", help="no progress bar")
    parser.add_argument("--device", help=f"cpu, cuda, cuda:1 or mps; also by {VARIABLE}")
    parser.add_argument("--live", type=positive(float), metavar="SECONDS",
                        help="captions of a sliding window of this length over one video or camera")  # fmt: skip
    parser.add_argument("--every", type=positive(float), default=1.0, metavar="SECONDS",
                        help="a caption each so many seconds of the video, with --live (default: 1)")  # fmt: skip
    return parser


def positive(kind):
    """An argument's type: an int or float above 0."""

    def convert(text: str):
        value = kind(text)
        if not value > 0:
            raise argparse.ArgumentTypeError(f"{text} is not above 0")
        return value

    convert.__name__ = kind.__name__  # argparse names it
    return convert


def as_json(**fields) -> str:
    return json.dumps(fields, ensure_ascii=False)


def find_files(paths, listed: bool = False):
    """The files that arguments mean: themselves, what lies in folders, what stdin lists for "-".

    FileNotFoundError when there is none; but what is `listed` is given as it is, and found missing when it is read.
    """
    for path in paths:
        if path == "-":
            yield from find_files((line.rstrip("\r\n") for line in sys.stdin if line.strip()), listed=True)
        elif Path(path).is_dir():
            found = sorted(str(file) for file in walk(Path(path)) if file.suffix.lower() in IMAGES | VIDEOS)
            if not found:
                raise FileNotFoundError(f"there are no pictures or videos in {path}")
            yield from found
        elif listed or Path(path).exists():
            yield str(path)
        else:
            raise FileNotFoundError(f"there is no file or folder {path}")


@dataclass
class Said:
    """A file's caption and its score, with the clip [F, 3, H, W] and the tokens [T] it was; or what is `wrong`."""

    path: str
    caption: str | None = None
    score: float | None = None
    clip: Tensor | None = None
    tokens: Tensor | None = None
    wrong: str | None = None


def caption_files(captioner, paths, batch: int, decoding: dict):
    """Yields what was `Said` of each file, in order. Never more than `batch` clips are in memory."""
    paths = iter(paths)
    while chunk := list(islice(paths, batch)):
        yield from caption_chunk(captioner, chunk, decoding)


def caption_chunk(captioner, paths: list, decoding: dict) -> list[Said]:
    """What is `Said` of files that are captioned together."""
    said = [Said(path) for path in paths]
    for entry in said:
        try:
            entry.clip = captioner.read(entry.path)
        except BrokenFile as error:
            entry.wrong = str(error)
    fine = [entry for entry in said if entry.clip is not None]
    if fine:
        found = captioner.decode(torch.stack([entry.clip for entry in fine]), **decoding)
        for entry, caption, score, tokens in zip(fine, *captioner.told(found), found.tokens[:, 0]):
            entry.caption, entry.score, entry.tokens = caption, score, tokens
    return said


def check_watchable(captioner) -> None:
    """A ValueError unless the network's attention can be watched."""
    if not isinstance(captioner.model, torch.nn.Module):
        raise ValueError(
            "--watch-words needs PyTorch: give the student that was exported, not its ONNX files"
        )


def draw_words(captioner, said: Said, folder: Path, name: str) -> str | None:
    """Write a picture of where the network looked for each word: its attention, all layers and heads averaged.

    Returns the file, or None when the caption has no words.
    """
    from gitdistill.inspection import attention_maps
    from gitdistill.viz import plots

    tokens = said.tokens.tolist()
    end = captioner.model.eos_token_id
    length = tokens.index(end) if end in tokens else len(tokens)
    if length < 2:
        return None
    seen = attention_maps(captioner.model, said.clip.to(captioner.device), said.tokens[:length])
    words = captioner.tokenizer.convert_ids_to_tokens(tokens[1:length])
    figure = plots.gaze(
        said.clip, words, {"attention": seen.by_word().cpu()}, seen.log_probs.exp().cpu(), title=said.caption
    )
    picture = plots.png(figure)
    write_whole(folder, {name: lambda path: path.write_bytes(picture)})
    return str(folder / name)


def watch(captioner, options, decoding: dict) -> int:
    """Print captions of a sliding window, and at the end how fast they came."""
    if options.watch_words:
        raise ValueError("--watch-words draws files, not a sliding window: leave --live out")
    if len(options.paths) != 1:
        raise ValueError(f"--live is for one video at a time, not {len(options.paths)}")
    started, count, moment = time.perf_counter(), 0, 0.0
    try:
        for moment, caption, score, seconds in live(
            captioner, options.paths[0], options.live, options.every, decoding
        ):
            count += 1
            print(as_json(time=round(moment, 3), caption=caption, score=round(score, 4), seconds=round(seconds, 4))
                  if options.json else f"{moment:8.2f} s\t{caption}\t{score:.3f}", flush=True)  # fmt: skip
    except KeyboardInterrupt:  # how one leaves a camera
        print(file=sys.stderr)
    took = time.perf_counter() - started
    print(f"{count} captions, {count / took:.2f} a second; the video {moment / took:.1f} times as fast as it plays",
          file=sys.stderr)  # fmt: skip
    return 0


def live(captioner, path, window: float, every: float, decoding: dict | None = None):
    """Yields (seconds into the video, caption, score, seconds that it took) each `every` seconds of a video.

    The caption is of the last `window` seconds, the frames in it chosen by the captioner's rule; a video that is
    over before the first one is due has one at its end. No more than twice the frames of a clip are kept, so a
    video may be endless: "/dev/video0" is a camera on Linux.
    """
    rule = captioner.rule
    kept, due, moment = deque(), every, 0.0

    def say():
        started = time.perf_counter()
        chosen = rule.choose(np.array([seen for seen, _ in kept]), moment)
        clip = torch.stack([kept[number][1] for number in chosen])
        (caption,), (score,) = captioner.caption(clip[None], **(decoding or {}))
        return moment, caption, score, time.perf_counter() - started

    for moment, frame in play(path):
        if not kept or moment - kept[-1][0] >= window / (2 * rule.frames):
            kept.append((moment, center_crop(upright(frame)[None], captioner.size)[0]))
        while kept[0][0] < moment - window:
            kept.popleft()
        if moment >= due:
            due += every * (1 + (moment - due) // every)
            yield say()
    if due == every:
        yield say()
