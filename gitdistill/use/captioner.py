"""A student with all it takes to use it: weights, preprocessing, frame rule, tokenizer, decoding and scores.

student = load_student("runs/mine")  # or a repository of the hub
student.caption_files(["cat.jpg", "clip.mp4"])
student.push_to_hub("me/my-student")
"""

import math
import os
from collections.abc import Callable
from dataclasses import astuple
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from huggingface_hub import ModelHubMixin, snapshot_download
from torch import Tensor

from gitdistill.data.crops import to_square
from gitdistill.data.video import FrameRule, read_clip
from gitdistill.decoding import Decoded, decode
from gitdistill.decoding.search import PROCESSORS
from gitdistill.escape import markdown
from gitdistill.models import checkpoints, storage
from gitdistill.models.preprocessing import CLIP_MEAN, CLIP_STD, to_pixels
from gitdistill.models.student import StudentCandidateV1
from gitdistill.models.teacher import GenerativeImageTextTeacher
from gitdistill.models.tokenizer import check_same_vocabulary, load_tokenizer, to_prefix, to_text
from gitdistill.use.onnx import ENCODER, GIT, STUDENT, WEIGHTS, OnnxNetwork
from gitdistill.world.module import toybox_tokenizer

# A FrameRule's settings in the folder's JSON, in the order of its fields.
RULE = {"frames": int, "sampling": str, "step": int, "fit": str}
METADATA = {"frames": dict, "decoding": dict, "scores": dict[str, float], "files": dict[str, str]}
OPTIONS = dict.fromkeys(("max_length", "min_length", "num_return", "beams"), int)
OPTIONS |= dict.fromkeys(("top_k", "seed", "no_repeat_ngram"), int | None)
OPTIONS |= dict.fromkeys(("top_p", "repetition_penalty"), float | None)
OPTIONS |= {"temperature": float, "length_penalty": float, "penalty": str, "stop": str | None}


class Captioner:
    """A network that captions files.

    Args:
        model: a student, a `GenerativeImageTextTeacher`, or either as an `OnnxNetwork`.
        tokenizer: turns its token ids into text; ValueError unless the two share a vocabulary.
        rule: which frames of a video are used; pictures are still videos. Default: as many as the model reads.
            With `fit="crop"`, a GIT that does not crop gets whole clips; set `whole = False` for squares.
        decoding: default options of `gitdistill.decoding.decode`.
    """

    scores = {}  # what was measured of it, by name

    def __init__(self, model, tokenizer, rule: FrameRule | None = None, decoding: dict | None = None):
        check_same_vocabulary(tokenizer, model)
        self.model, self.tokenizer = model, tokenizer
        if isinstance(model, GenerativeImageTextTeacher):
            self.size = model.config.vision_config.image_size
            self.max_frames = model.config.num_image_with_embedding or 1
            self.longest = getattr(model.config, "test_respect_ratio_max", None)
        else:
            self.longest = getattr(model, "longest", None)
            self.size, self.max_frames = getattr(model, "backbone", model).image_size, model.num_frames
        self.whole = bool(self.longest)
        self.use_frame_rule(rule or FrameRule(self.max_frames))
        self.decoding = {"max_length": 20} | (decoding or {})
        self.decoding["max_length"] = min(self.decoding["max_length"], model.max_positions)

    def use_frame_rule(self, rule: FrameRule) -> None:
        """Choose frames by another rule from now on; ValueError when it gives more than the network reads."""
        count, most = rule.num_frames, self.max_frames
        if count > most:
            raise ValueError(f"{count} frames a clip, but this network reads at most {most}")
        self.rule = rule

    @property
    def device(self) -> torch.device:
        return next((p.device for p in getattr(self.model, "parameters", tuple)()), torch.device("cpu"))

    def read(self, path) -> Tensor:
        """A picture or video as `framed` gives it, [F, 3, H, W]; `BrokenFile` when it cannot be read."""
        return self.framed(read_clip(path, self.rule))

    def framed(self, frames: Tensor) -> Tensor:
        """Raw frames [F, 3, H, W] of any size as the network's: raw squares, or pixels if it reads them whole."""
        if self.whole and self.rule.fit == "crop":
            return to_pixels(frames[None], self.size, CLIP_MEAN, CLIP_STD, self.longest)[0]
        return to_square(frames, self.size, self.rule.fit)

    def decode(self, frames: Tensor, **decoding) -> Decoded:
        """Caption clips [B, F, 3, H, W]; `decoding` overrides the captioner's own options."""
        if "prefix" in decoding:
            decoding["prefix"] = to_prefix(decoding["prefix"], self.tokenizer)
        return decode(self.model, frames.to(self.device), self.decoding, **decoding)

    def caption(self, frames: Tensor, **decoding) -> tuple[list[str], list[float]]:
        """Captions of clips [B, F, 3, H, W] and their scores, the mean log-probability of a token.

        With beams and a length penalty the score is the one that the search maximised.
        """
        found = self.decode(frames, **decoding)
        return self.to_text(found), found.scores[:, 0].tolist()

    def confidence(self, score: float, **decoding) -> float | None:
        """The mean probability of a token (the geometric mean), of a caption decoded so with this score.

        It is not calibrated: `gitdistill.inspection.calibration` measures how often a caption is right at which
        confidence. None where beam search gives another score: after a length penalty, or with the penalties of
        repetition.
        """
        options = {"length_penalty": 1, "penalty": "transformers", "beams": 1} | self.decoding | decoding
        plain = options["length_penalty"] == 1 and options["penalty"] == "transformers"
        plain &= options["beams"] == 1 or not any(options.get(name) for name in PROCESSORS)
        return math.exp(score) if plain else None

    def to_text(self, found: Decoded) -> list[str]:
        """The best caption of each clip."""
        return to_text(found.tokens[:, 0], self.tokenizer)

    def caption_files(self, paths, **decoding) -> list[str]:
        """One caption a file, in one batch of each size."""
        clips, captions = [self.read(path) for path in paths], {}
        for same in of_one_size(clips):
            batch = torch.stack([clips[number] for number in same])
            captions |= zip(same, self.caption(batch, **decoding)[0])
        return [captions[number] for number in range(len(clips))]

    def to(self, device):
        self.model.to(device)
        return self

    def companions(self) -> dict[str, Callable]:
        """Writers, by file name, of what a folder holds beside the network: tokenizer, frame rule, decoding, scores.

        The last one writes the checksums of the others, too.
        """
        rule = dict(zip(RULE, astuple(self.rule)))
        metadata = {"frames": rule, "decoding": self.decoding, "scores": self.scores}
        return tokenizer_files(self.tokenizer) | {storage.MANIFEST: partial(storage.manifest, metadata)}


class Student(Captioner, ModelHubMixin, tags=["image-to-text", "gitdistill"]):
    """A student's folder, in memory; `save_pretrained`, `from_pretrained` and `push_to_hub` are the hub's mixin's.

    Args: as for `Captioner`; scores: what was measured of it, by name.
    """

    FILE = storage.MANIFEST

    def __init__(self, model: StudentCandidateV1, tokenizer, rule=None, decoding=None, scores=None):
        super().__init__(model, tokenizer, rule, decoding)
        self.scores = {name: float(value) for name, value in (scores or {}).items()}

    def save(self, folder, dtype: torch.dtype | None = None) -> None:
        """Write everything to `folder`, all or nothing, weights stored as `dtype`; other files in it stay."""
        if isinstance(self.model, OnnxNetwork):
            raise ValueError("a student that was read as ONNX has no weights to save: copy its folder")
        card = {storage.EDITED: partial(Path.write_text, data=self.card(), encoding="utf-8")}
        storage.write_whole(folder, self.model.files(dtype) | card | self.companions())

    def card(self) -> str:
        """The model card."""
        parameters = sum(p.numel() for p in self.model.parameters()) / 1e6
        rows = "\n".join(f"| {markdown(name)} | {value:.4g} |" for name, value in self.scores.items())
        table = f"| measured | |\n|---|---|\n{rows}\n" if rows else "No scores were measured.\n"
        return f"""---
library_name: gitdistill
pipeline_tag: image-to-text
tags: [gitdistill, image-captioning]
---
# A student of GIT

Captions pictures and videos: {parameters:.1f} million parameters, {markdown(self.model.backbone.config["name"])} at
{self.size} pixels, {self.rule.num_frames} frame(s) a clip ({self.rule.sampling}), {len(self.tokenizer):,} words.

```python
from gitdistill import load_student

load_student("this folder or repository").caption_files(["picture.jpg"])
```

{table}"""

    # The hub's documentation asks a subclass of its mixin to define the next two, underscores included.
    _save_pretrained = save

    @classmethod
    def _from_pretrained(cls, *, model_id, **options) -> "Student":
        folder = Path(model_id)
        return read_student(folder if folder.is_dir() else Path(snapshot_download(model_id, **options)))


def of_one_size(clips: list[Tensor]) -> list[list[int]]:
    """The numbers of the clips of each size; squares have one."""
    sizes = [clip.shape for clip in clips]
    return [[n for n, other in enumerate(sizes) if other == size] for size in dict.fromkeys(sizes)]


def tokenizer_files(tokenizer) -> dict[str, Callable]:
    """Writers of a tokenizer's files, by name, for `storage.write_whole`."""
    with TemporaryDirectory() as folder:
        tokenizer.save_pretrained(folder)
        return {p.name: partial(Path.write_bytes, data=p.read_bytes()) for p in Path(folder).iterdir()}


def load_student(source) -> Student:
    """The student of a folder or of a repository of the hub, in eval mode.

    A folder that `StudentCandidateV1.save_pretrained` or `python -m gitdistill onnx` wrote will do; the student of
    the latter only captions. Raises FileNotFoundError or ValueError in one line.
    """
    files = ["*.json", "*.txt", "*.safetensors", "*.onnx", WEIGHTS]
    return read_student(checkpoints.local(source) or checkpoints.download(str(source), files))


def read_student(folder: Path, *kinds: str) -> Student:
    """See `load_student`. What is exchanged while it is read is read again. kinds: which ONNX files may be in the
    folder, by default a student's."""
    for _ in range(5):
        with os.scandir(folder):  # while it is open, no other folder gets its number
            before = folder.stat()
            try:
                student, problem = _read_student(folder, kinds or (STUDENT,)), None
            except (OSError, ValueError) as error:
                problem = error
            after = folder.stat()
        if (after.st_ino, after.st_mtime_ns) == (before.st_ino, before.st_mtime_ns):
            if problem:
                raise problem
            return student
    raise ValueError(f"{folder} is being written: wait, then read it again")


def _read_student(folder: Path, kinds: tuple[str, ...]) -> Student:
    as_onnx = (folder / ENCODER).is_file()
    model = OnnxNetwork(folder, *kinds) if as_onnx else StudentCandidateV1.from_pretrained(folder)
    path = folder / Student.FILE
    has_tokenizer = any((folder / name).is_file() for name in ("tokenizer.json", "vocab.txt"))
    embedded = not has_tokenizer and model.vocab_size == len(toybox_tokenizer())
    tokenizer = toybox_tokenizer() if embedded else load_tokenizer(folder)
    if not path.is_file():
        return Student(model, tokenizer)
    metadata = storage.read_json(path)
    try:
        storage.check_fields(metadata, METADATA, path, optional=["files"])
        storage.check_fields(metadata["frames"], RULE, f"{path}: frames", optional=["fit"])
        storage.check_fields(metadata["decoding"], OPTIONS, f"{path}: decoding", optional=OPTIONS)
        rule = FrameRule(*(metadata["frames"][name] for name in RULE if name in metadata["frames"]))
        return Student(model, tokenizer, rule, metadata["decoding"], metadata["scores"])
    except ValueError as error:
        raise ValueError(f"{path} describes no student's folder: {storage.first_line(error)}") from None


def load_teacher(source, device=None, dtype="float32") -> Captioner:
    """A GIT, as `GenerativeImageTextTeacher.from_pretrained` loads it or as `python -m gitdistill onnx` wrote it.

    ONNX files compute on the CPU in float32.
    """
    folder = checkpoints.resolve(source)
    if (folder / ENCODER).is_file():
        if str(dtype) not in ("float32", "auto"):
            raise ValueError(f"{folder} holds ONNX files, which compute in float32, not {dtype}")
        return read_student(folder, GIT)
    teacher = GenerativeImageTextTeacher.from_pretrained(folder, device=device, dtype=dtype)
    return Captioner(teacher, teacher.tokenizer)
