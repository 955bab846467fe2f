"""`python -m gitdistill caption PATH... --student FOLDER`: captions of pictures, videos and folders of them."""

import argparse
import io
import json
import os
import sys
import time
from collections import Counter, deque
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from jsonargparse.typing import PositiveFloat, PositiveInt
from torch import Tensor
from tqdm import tqdm

from gitdistill.data.items import walk
from gitdistill.data.video import IMAGES, VIDEOS, BrokenFile, play
from gitdistill.escape import one_line
from gitdistill.models.precision import NAMES
from gitdistill.models.storage import output_folder, write_whole
from gitdistill.use.captioner import load_student, load_teacher, of_one_size
from gitdistill.use.device import VARIABLE, choose_device, free_cores, usable_cores

SEARCH = ("beams", "max_length", "repetition_penalty", "no_repeat_ngram")
LONGEST = 240  # bytes of a picture's name, without its number and suffix


def main(arguments: list[str]) -> int:
    """Print captions; 1 if a file could not be read, 0 otherwise. ValueError or OSError for wrong arguments."""
    options = parser().parse_args(arguments)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # names of files need not be UTF-8
    if options.watch_words and options.live:
        raise ValueError("--watch-words draws files, not a sliding window: leave --live out")
    if options.watch_words is not None:
        output_folder(options.watch_words)
    if not (options.student or options.teacher):
        raise ValueError("--student and --teacher need a folder or a repository, not an empty name")
    if options.student is not None and options.dtype:
        raise ValueError("--dtype is of a teacher in torch: leave it out with --student")
    asked = options.threads
    torch.set_num_threads(min(asked, usable_cores()) if asked else min(torch.get_num_threads(), free_cores()))
    device = choose_device(options.device)
    if options.student is not None:
        captioner = load_student(options.student).to(device)
    else:
        captioner = load_teacher(options.teacher, device, options.dtype or "float32")
    captioner.whole &= not (options.fit or options.watch_words)  # maps of attention are of squares
    rule = {"num_frames": options.frames, "fit": options.fit}
    captioner.use_frame_rule(replace(captioner.rule, **{name: rule[name] for name in rule if rule[name]}))
    decoding = {name: getattr(options, name) for name in SEARCH if getattr(options, name)}
    return (print_live if options.live else print_files)(captioner, options, decoding)


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("gitdistill caption", description=__doc__)
    add = parser.add_argument
    add("paths", nargs="+", metavar="PATH", help="a file, a folder, or - for a list on stdin")
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument("--student", help="a student's folder, or a repository of the hub")
    which.add_argument("--teacher", help='a GIT checkpoint: a folder, a hub id, or "toybox"')
    add("--batch", type=PositiveInt, default=8, help="files at once (default: 8)")
    add("--beams", type=PositiveInt, help="beam search with so many beams")
    add("--max-length", type=PositiveInt, help="most tokens of a caption, the start token included")
    add("--repetition-penalty", type=PositiveFloat, help="above 1: words that were said become less likely")
    add("--no-repeat-ngram", type=PositiveInt, metavar="N", help="no N tokens come again in the same order")
    add("--frames", type=PositiveInt, help="frames of a video to read")
    add("--fit", choices=("crop", "pad"), help="the centre of pictures, or all of them between bars")
    add("--json", action="store_true", help="one JSON object a line, with the mean probability of a token")
    cores = "default: as many cores as other work leaves; never more than it may use"
    add("--threads", type=PositiveInt, help=cores)
    add("--watch-words", metavar="FOLDER", help="draw the attention of each word, a picture for each file")
    add("--quiet", action="store_true", help="no progress bar")
    add("--dtype", choices=NAMES, help="of a teacher, by default float32; auto: fastest that says the same")
    add("--device", help=f"cpu, cuda, cuda:1 or mps; also by {VARIABLE}")
    seconds = {"type": PositiveFloat, "metavar": "SECONDS"}
    add("--live", **seconds, help="caption the last seconds of one video or camera, again and again")
    add("--every", **seconds, default=1.0, help="between two live captions (default: 1)")
    return parser


def print_files(captioner, options, decoding: dict) -> int:
    """A line for each file; 1 if one could not be read, 0 otherwise."""
    paths, drawn, failed = list(find_files(options.paths)), Counter(), 0
    progress = tqdm(total=len(paths), unit="file", disable=True if options.quiet else None)
    for result in caption_files(captioner, paths, options.batch, decoding):
        progress.update()
        if result.error:
            failed += 1
            tqdm.write(f"left out: {one_line(result.error)}", file=sys.stderr)
            continue
        row = {"file": result.path, **described(captioner, result.caption, result.score, decoding)}
        if options.watch_words:
            name = Path(result.path).name
            while len(os.fsencode(name)) > LONGEST:
                name = name[:-1]
            drawn[name] += 1
            name += ".png" if drawn[name] == 1 else f"-{drawn[name]}.png"
            row["picture"] = draw_words(captioner, result, Path(options.watch_words), name)
        with progress.external_write_mode():
            print_row(row, (result.path, result.caption, f"{result.score:.3f}"), options)
    progress.close()
    if failed:
        print(f"{failed} of {len(paths)} files could not be read", file=sys.stderr)
    return int(failed > 0)


def described(captioner, caption: str, score: float, decoding: dict) -> dict:
    """What a row of JSON says of a caption."""
    confidence = captioner.confidence(score, **decoding)
    rounded = None if confidence is None else round(confidence, 4)
    return {"caption": caption, "score": round(score, 4), "confidence": rounded}


def print_row(row: dict, columns: tuple, options) -> None:
    """A result as JSON or as columns, in one line whatever is in it."""
    texts = [json.dumps(row, ensure_ascii=False)] if options.json else columns
    print("\t".join(map(one_line, texts)), flush=True)


def find_files(paths, listed: bool = False):
    """The files that arguments mean: themselves, what lies in folders, what stdin lists for "-".

    FileNotFoundError when there is none. Paths that are `listed` are not checked here, but when they are read.
    """
    for path in paths:
        if path == "-":
            yield from find_files((line.rstrip("\r\n") for line in sys.stdin if line.strip()), listed=True)
        elif Path(path).is_dir():
            shown = (name for name in walk(Path(path)) if Path(name).suffix.lower() in IMAGES | VIDEOS)
            found = sorted(str(Path(path, name)) for name in shown)
            if not found:
                raise FileNotFoundError(f"there are no pictures or videos in {path}")
            yield from found
        elif listed or Path(path).exists():
            yield str(path)
        else:
            raise FileNotFoundError(one_line(f"there is no file or folder {path}"))


@dataclass
class FileCaption:
    """A file's caption and score, its clip [F, 3, H, W] and the caption's tokens [T]; or the `error` of reading it."""

    path: str
    caption: str | None = None
    score: float | None = None
    clip: Tensor | None = None
    tokens: Tensor | None = None
    error: str | None = None


def caption_files(captioner, paths, batch: int, decoding: dict):
    """Yields a `FileCaption` for each file, in order. Never more than `batch` clips are in memory."""
    paths = iter(paths)
    while chunk := list(islice(paths, batch)):
        yield from caption_batch(captioner, chunk, decoding)


def caption_batch(captioner, paths: list, decoding: dict) -> list[FileCaption]:
    results = [FileCaption(path) for path in paths]
    for result in results:
        try:
            result.clip = captioner.read(result.path)
        except BrokenFile as error:
            result.error = str(error)
    readable = [result for result in results if result.error is None]
    for numbers in of_one_size([result.clip for result in readable]):
        same = [readable[number] for number in numbers]
        found = captioner.decode(torch.stack([result.clip for result in same]), **decoding)
        for i, caption in enumerate(captioner.to_text(found)):
            same[i].caption, same[i].score = caption, found.scores[i, 0].item()
            same[i].tokens = found.tokens[i, 0]
    return results


def draw_words(captioner, result: FileCaption, folder: Path, name: str) -> str | None:
    """Draw each word's attention, averaged over layers and heads, as `name` in `folder`; None without words."""
    from gitdistill.inspection import attention_maps
    from gitdistill.viz import plots

    tokens, end = result.tokens.tolist(), captioner.model.eos_token_id
    length = tokens.index(end) if end in tokens else len(tokens)
    if length < 2:
        return None
    seen = attention_maps(captioner.model, result.clip.to(captioner.device), result.tokens[:length])
    words = captioner.tokenizer.convert_ids_to_tokens(tokens[1:length])
    maps, probabilities = {"attention": seen.by_word().cpu()}, seen.log_probs.exp().cpu()
    picture = plots.png(plots.gaze(result.clip, words, maps, probabilities, title=result.caption))
    write_whole(folder, {name: lambda path: path.write_bytes(picture)})
    return str(folder / name)


def print_live(captioner, options, decoding: dict) -> int:
    """A line for each window, and at the end how fast they came."""
    if len(options.paths) != 1:
        raise ValueError(f"--live is for one video at a time, not {len(options.paths)}")
    (path,), started, count, moment = options.paths, time.perf_counter(), 0, 0.0
    try:
        for moment, caption, score, took in live(captioner, path, options.live, options.every, decoding):
            count += 1
            row = {"time": round(moment, 3), **described(captioner, caption, score, decoding)}
            row["seconds"] = round(took, 4)
            print_row(row, (f"{moment:8.2f} s", caption, f"{score:.3f}"), options)
    except KeyboardInterrupt:  # a camera has no other end
        print(file=sys.stderr)
    passed = time.perf_counter() - started
    speed = f"{count / passed:.2f} a second; the video {moment / passed:.1f} times as fast as it plays"
    print(f"{count} captions, {speed}", file=sys.stderr)
    return 0


def live(captioner, path, window: float, every: float, decoding: dict | None = None):
    """Yields (seconds into the video, caption, score, seconds that it took) each `every` seconds of a video.

    A caption is of the last `window` seconds, from frames that the captioner's rule chooses among them. A video gets
    one at its end, too. Memory is bounded by the window, so a video may be endless: "/dev/video0" is a camera on Linux.
    """
    rule = captioner.rule
    # A rule that goes by time needs no more than twice the frames of a clip; "every" counts all frames.
    spacing = 0 if rule.sampling == "every" else window / (2 * rule.num_frames)
    kept, due, moment, told = deque(), every, 0.0, None

    def caption_window():
        started = time.perf_counter()
        chosen = rule.choose(np.array([seen for seen, _ in kept]), moment)
        clip = torch.stack([kept[number][1] for number in chosen])
        (caption,), (score,) = captioner.caption(clip[None], **(decoding or {}))
        return moment, caption, score, time.perf_counter() - started

    for moment, picture in play(path):
        if not kept or moment - kept[-1][0] >= spacing:
            kept.append((moment, captioner.framed(picture()[None])[0]))
        while kept[0][0] < moment - window:
            kept.popleft()
        if moment >= due:
            due, told = due + every * (1 + (moment - due) // every), moment
            yield caption_window()
    if told != moment:
        yield caption_window()
