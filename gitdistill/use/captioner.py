"""A student with all it takes to use it: weights, preprocessing, frame rule, tokenizer, decoding and scores.

student = load_student("runs/mine")  # or a repository of the hub
student.caption_files(["cat.jpg", "clip.mp4"])
student.push_to_hub("me/my-student")
"""

import json
from dataclasses import asdict
from pathlib import Path

import torch
from huggingface_hub import ModelHubMixin, snapshot_download
from torch import Tensor

from gitdistill.data.files import center_crop
from gitdistill.data.video import FrameRule, read_clip
from gitdistill.decoding import Decoded, beam, greedy
from gitdistill.models import checkpoints, storage
from gitdistill.models import tokenizer as text
from gitdistill.models.student import StudentCandidateV1
from gitdistill.models.teacher import GenerativeImageTextTeacher
from gitdistill.use.onnx import ENCODER, OnnxStudent
from gitdistill.world.module import glyph_tokenizer

DECODING = {"max_length": 20}


class Captioner:
    """A network that captions files.

    Args:
        model: a student, also one as ONNX, or a `GenerativeImageTextTeacher`.
        tokenizer: turns its token ids into text; ValueError unless the two share a vocabulary.
        rule: which frames of a video it looks at; pictures are still videos. Default: as many as the model reads.
        decoding: options of `greedy`, or with "beams" of `beam`.
    """

    def __init__(self, model, tokenizer, rule: FrameRule | None = None, decoding: dict | None = None):
        text.check_vocabulary(model, tokenizer)
        self.model, self.tokenizer = model, tokenizer
        config = getattr(model, "config", None)
        if isinstance(model, GenerativeImageTextTeacher):
            self.size, self.most = config.vision_config.image_size, config.num_image_with_embedding or 1
        else:
            self.size, self.most = getattr(model, "backbone", model).image_size, model.num_frames
        self.look(rule or FrameRule(self.most))
        self.decoding = DECODING | (decoding or {})
        self.decoding["max_length"] = min(self.decoding["max_length"], model.max_positions)

    def look(self, rule: FrameRule) -> None:
        """Look at other frames from now on; ValueError when these are more than the network reads."""
        if rule.num_frames > self.most:
            raise ValueError(f"{rule.num_frames} frames a clip, but this network reads at most {self.most}")
        self.rule = rule

    @property
    def device(self) -> torch.device:
        return next((p.device for p in getattr(self.model, "parameters", tuple)()), torch.device("cpu"))

    def read(self, path) -> Tensor:
        """A picture or video as the network's frames, uint8 [F, 3, H, W]; `BrokenFile` when it cannot be read."""
        return center_crop(read_clip(path, self.rule), self.size)

    def caption(self, frames: Tensor, **decoding) -> tuple[list[str], list[float]]:
        """Captions of clips [B, F, 3, H, W] and their scores, the mean log-probability of a token.

        (With beams and a length penalty: what the search went by.)"""
        return self.told(self.decode(frames, **decoding))

    def decode(self, frames: Tensor, **decoding) -> Decoded:
        """What the search finds: greedy, or by beams when there are several."""
        options = self.decoding | decoding
        search = beam if options.get("beams", 1) > 1 else greedy
        if search is greedy:
            options = {name: value for name, value in options.items() if name != "beams"}
        return search(self.model, frames.to(self.device), **options)

    def told(self, found: Decoded) -> tuple[list[str], list[float]]:
        """The best captions as text, and their scores."""
        return text.to_text(found.tokens[:, 0], self.tokenizer), found.scores[:, 0].tolist()

    def caption_files(self, paths, **decoding) -> list[str]:
        """One caption a file, in one batch."""
        return self.caption(torch.stack([self.read(path) for path in paths]), **decoding)[0]

    def to(self, device):
        self.model.to(device)
        return self


class Student(Captioner, ModelHubMixin, tags=["image-to-text", "gitdistill"]):
    """A student's folder, in memory; `save_pretrained`, `from_pretrained` and `push_to_hub` are the hub's mixin's.

    Args: as for `Captioner`; scores: what was measured of it, by name.
    """

    FILE = "gitdistill.json"

    def __init__(self, model: StudentCandidateV1, tokenizer, rule=None, decoding=None, scores=None):
        super().__init__(model, tokenizer, rule, decoding)
        self.scores = dict(scores or {})

    def save(self, folder, dtype: torch.dtype | None = None) -> None:
        """Write everything to `folder`, weights stored as `dtype`; each file is whole or not there."""
        if isinstance(self.model, OnnxStudent):
            raise ValueError("a student that was read as ONNX has no weights to save: copy its folder")
        folder = Path(folder)
        self.model.save_pretrained(folder, dtype)
        self.tokenizer.save_pretrained(folder)
        storage.write_whole(
            folder,
            {
                self.FILE: self.write_facts,
                "README.md": lambda path: path.write_text(self.card(), encoding="utf-8"),
            },
        )

    _save_pretrained = save

    def write_facts(self, path: Path) -> None:
        """What the folder says of itself beside the network and the tokenizer."""
        facts = {"frames": asdict(self.rule), "decoding": self.decoding, "scores": self.scores}
        path.write_text(json.dumps(facts, indent=1) + "\n")

    def card(self) -> str:
        """The model card."""
        parameters = sum(p.numel() for p in self.model.parameters()) / 1e6
        rows = "\n".join(f"| {name} | {value:.4g} |" for name, value in self.scores.items())
        table = f"| measured | |\n|---|---|\n{rows}\n" if rows else "No scores were measured.\n"
        return f"""---
library_name: gitdistill
pipeline_tag: image-to-text
tags: [gitdistill, image-captioning]
---
# A student of GIT

Captions pictures and videos: {parameters:.1f} million parameters, {self.model.backbone.config["name"]} at
{self.size} pixels, {self.rule.num_frames} frame(s) a clip ({self.rule.sampling}), {len(self.tokenizer):,} words.

```python
from gitdistill import load_student

load_student("this folder or repository").caption_files(["picture.jpg"])
```

{table}"""

    @classmethod
    def _from_pretrained(
        cls,
        *,
        model_id,
        revision=None,
        cache_dir=None,
        force_download=False,
        local_files_only=False,
        token=None,
    ) -> "Student":
        folder = Path(model_id)
        if not folder.is_dir():
            folder = Path(
                snapshot_download(
                    model_id,
                    revision=revision,
                    cache_dir=cache_dir,
                    force_download=force_download,
                    local_files_only=local_files_only,
                    token=token,
                )
            )
        return read_student(folder)


def load_student(source) -> Student:
    """The student of a folder or of a repository of the hub, in eval mode.

    A folder that only `StudentCandidateV1.save_pretrained` wrote will do: it reads as many frames as it can. So will
    one that `python -m gitdistill onnx` wrote, for captions alone.
    Raises FileNotFoundError or ValueError in one line.
    """
    folder = Path(source).expanduser()
    if not folder.is_dir():
        if not checkpoints.is_repository(str(source)):
            raise FileNotFoundError(f"no folder {source}")
        folder = checkpoints.download(str(source), ["*.json", "*.txt", "*.safetensors", "*.onnx"])
    return read_student(folder)


def read_student(folder: Path) -> Student:
    """See `load_student`."""
    as_onnx = (folder / ENCODER).is_file()
    model = OnnxStudent(folder) if as_onnx else StudentCandidateV1.from_pretrained(folder)
    path = folder / Student.FILE
    known = any((folder / name).is_file() for name in ("tokenizer.json", "vocab.txt"))
    embedded = not known and model.vocab_size == len(glyph_tokenizer())
    tokenizer = glyph_tokenizer() if embedded else text.load_tokenizer(folder)
    if not path.is_file():
        return Student(model, tokenizer)
    try:
        facts = json.loads(path.read_text())
        rule = dict(facts["frames"])
        if "frames" in rule:  # as version 0.1 wrote it
            rule["num_frames"] = rule.pop("frames")
        return Student(model, tokenizer, FrameRule(**rule), facts["decoding"], facts["scores"])
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{path} is not what a student's folder says of itself: {storage.first_line(error)}"
        ) from None


def load_captioner(student=None, teacher=None) -> Captioner:
    """A student from its folder, or else a teacher (see `GenerativeImageTextTeacher.from_pretrained`)."""
    if student:
        return load_student(student)
    teacher = GenerativeImageTextTeacher.from_pretrained(teacher)
    return Captioner(teacher, teacher.tokenizer)
