"""The teacher, asked once: what it makes of a pool of clips and their captions, kept in memory-mapped files.

    cache = TeacherCache.build("runs/cache", teacher, data, TargetSpec(logits=True))
    DistillationTrainer(teacher, student, cache=cache)

`gitdistill.distillation.targets.ask` is what a distillation wants to know of a batch, answered by the teacher itself;
`TeacherCache.read` gives the same answer from disk. Distributions are kept as their likeliest words and the
mass of the rest, activations as int8 with one scale a token. TinyViT stores its teacher's logits likewise
(Wu et al. 2022, https://arxiv.org/abs/2207.10666).
"""

import hashlib
import json
import math
import os
import shutil
import time
import zlib
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from gitdistill.distillation import losses
from gitdistill.distillation.distributed import rank_and_world, wait_for_all
from gitdistill.distillation.pseudo_captions import CaptionFilter, join_captions, pseudo_captions
from gitdistill.distillation.targets import TargetSpec, parse_dtype, teacher_targets
from gitdistill.models.preprocessing import CLIP_MEAN, CLIP_STD
from gitdistill.models.storage import metadata_text, parse_metadata, write_whole

FORMAT = 1
TELL_EVERY = 10.0  # seconds
DONE = "done.npy"  # a checksum of each clip's numbers, 0 for one that is still to do
KEPT_WORDS = 8  # a token's likeliest ones
CHUNK = 256  # clips that are read at once


class TeacherCache:
    """A teacher's answers on a pool of clips, in a folder that `build` filled.

    Raises FileNotFoundError when there is none, ValueError when it is unfinished, of another format, or a file
    is damaged (`verify` reads all of it once).
    """

    def __init__(self, folder, verify: bool = True):
        self.folder = Path(folder)
        self.facts = read_facts(self.folder)
        if not self.facts["finished"]:
            done = open_files(self.folder, {DONE: self.facts["layout"][DONE]}, "r")[DONE]
            raise ValueError(
                f"the cache in {folder} holds {np.count_nonzero(done)} of {self.facts['clips']} clips: "
                "build it again with the same settings to finish it"
            )
        for name, known in self.facts["checksums"].items() if verify else ():
            path = self.folder / name
            if not path.is_file() or checksum(path) != known:
                raise ValueError(f"{path} is damaged or missing: delete the folder and build the cache again")
        self.files = open_files(self.folder, self.facts["layout"], "r")

    @property
    def names(self) -> list[str]:
        """The parts of an answer that are held; see `TargetSpec`."""
        return self.facts["names"]

    @property
    def mass_kept(self) -> float:
        """Probability of the k kept words, averaged over all tokens of all captions."""
        mass, tokens = self.facts["mass"]
        return mass / max(1, tokens)

    @property
    def nbytes(self) -> int:
        """Size on disk."""
        return sum(array_bytes(spec) for spec in self.facts["layout"].values())

    @classmethod
    def build(
        cls,
        folder,
        teacher,
        data,
        wants: TargetSpec,
        k: int = KEPT_WORDS,
        dtype: str = "float16",
        feature_dtype: str = "int8",
        teacher_dtype: str = "float32",
        say=print,
    ) -> "TeacherCache":
        """Ask `teacher` about every clip of `data` with all its captions; goes on where a killed run stopped.

        Several processes (all call this, with one folder that all can write to) share the batches, and leave the
        same bytes as one would; another number of them may go on after a kill.

        Args:
            folder: where to; a cache that is finished and fits is opened as it is.
            teacher: a `GenerativeImageTextTeacher`.
            data: has `pool_size`, `batch_size`, `pool_dataloader(start, stop)`, `max_tokens` and `fingerprint()`,
                as `GlyphData` with a number of `train_clips`. Every caption takes the room of `max_tokens` tokens.
            wants: what to keep.
            k: likeliest words kept a token.
            dtype: of their log-probabilities, float16 or float32.
            feature_dtype: of activations, int8 (with a scale for each token), float16 or float32.
            teacher_dtype: what the teacher computes in, float32 or bfloat16.
            say: is told the size before anything is written, and how the work goes on (by the first process).

        Raises ValueError naming what differs when the folder holds something else, OSError when the disk is too
        small.
        """
        parse_dtype(teacher_dtype)
        folder = Path(folder)
        settings = {"names": wants.names(), "k": k, "dtype": dtype, "feature_dtype": feature_dtype}
        settings |= {
            "teacher_dtype": teacher_dtype,
            "said": wants.pseudo_captions,
            "max_tokens": data.max_tokens,
        }
        found = fingerprint(teacher, data)
        facts = {"format": FORMAT, "fingerprint": found, **settings, "clips": data.pool_size}
        facts |= {"own": 0, "captions": 0, "layout": {}, "mass": [0.0, 0], "finished": False}
        if (folder / "cache.json").is_file():
            facts = read_facts(folder)
            refuse(folder, facts["fingerprint"], found)
            refuse(folder, {key: facts[key] for key in settings}, settings)
            if facts["finished"]:
                return cls(folder)
        _Builder(folder, facts, teacher, wants, data, say).build()
        return cls(folder, verify=False)

    @classmethod
    def open(cls, cache, teacher, data, spec: TargetSpec, teacher_dtype: str) -> "TeacherCache":
        """The cache, or that of a folder, which is filled if it is not finished; ValueError unless it fits."""
        if data is not None and not hasattr(data, "pool_dataloader"):
            raise ValueError(
                f"a cache needs clips with numbers: use GlyphData or FileData, not {type(data).__name__}"
            )
        if not isinstance(cache, cls):
            if data is not None and not is_finished(Path(cache)):
                cache = cls.build(cache, teacher, data, spec, teacher_dtype=teacher_dtype)
            else:
                cache = cls(cache)
                if (made := cache.facts["teacher_dtype"]) != teacher_dtype:
                    raise ValueError(
                        f"the cache in {cache.folder} was made with teacher_dtype {made}, not {teacher_dtype}: "
                        "set the same, or another folder"
                    )
        cache.check(teacher, data)
        if lacking := cache.lacks(spec):
            raise ValueError(f"the cache in {cache.folder} lacks {', '.join(lacking)}: build another")
        return cache

    def check(self, teacher, data=None) -> None:
        """A ValueError naming what differs, unless this is what `teacher` would say about `data`'s pool."""
        found = fingerprint(teacher, data)
        refuse(self.folder, {key: self.facts["fingerprint"].get(key) for key in found}, found)

    def lacks(self, wants: TargetSpec) -> list[str]:
        """What of `wants` is not in here."""
        lacking = [name for name in wants.names() if name not in self.names]
        if wants.pseudo_captions > self.facts["said"]:
            lacking.append(f"{wants.pseudo_captions} captions of the teacher's own a clip")
        return lacking

    def pseudo_captions(self, clips: Tensor, count: int, keep: CaptionFilter) -> tuple[Tensor, Tensor]:
        """The teacher's own `count` best captions of clips [B]: tokens [B, count, T], their numbers [B, count].

        Those that `keep` does not let pass are a start token and padding.
        """
        clip, first = clips.cpu().numpy(), self.facts["own"]
        tokens = self._fetch("tokens", clip)[:, first : first + count].long()
        tokens = keep.apply(tokens, self._fetch("judged", clip)[:, :count].float(), self.facts["pad"])
        length = int((tokens != self.facts["pad"]).sum(-1).max())
        numbers = torch.arange(first, first + count).expand(len(clip), count)
        return tokens[..., :length].to(clips.device), numbers.to(clips.device)

    def words(self) -> list[int]:
        """The words that the pool's captions use, the teacher's own captions included."""
        return np.unique(self.files["tokens.npy"]).tolist()

    def read(self, clips: Tensor, captions: Tensor, tokens: Tensor, wants: TargetSpec) -> dict:
        """The answer on a batch as `ask` gives it, but "logits" is a `losses.TopK`.

        Args:
            clips: long [B], the clips' numbers in the pool.
            captions: long [B*K], each caption's number among its clip's own.
            tokens: long [B*K, T], these captions; ValueError when the teacher was given other ones.
            wants: which parts.
        """
        clip, caption = clips.cpu().numpy(), captions.cpu().numpy()
        place = clip.repeat(len(caption) // len(clip)), caption
        length = tokens.shape[1]
        self._check_captions(place, tokens)
        answer = {}
        for name in wants.names():
            if name == "logits":
                top = [
                    self._fetch(f"top_{part}", place, length - 1) for part in ("log_p", "words", "log_rest")
                ]
                answer[name] = losses.TopK(top[0].float(), top[1].long(), top[2].float())
            elif name.startswith("image_features/"):
                answer[name] = self._feature(name, clip).flatten(0, 1)
            else:
                answer[name] = self._feature(name, place, length)
        return to_device(answer, tokens.device)

    def _fetch(self, name: str, place, length: int | None = None) -> Tensor:
        array = self.files[f"{name}.npy"][place]
        return torch.from_numpy(array if length is None else array[:, :length])

    def _feature(self, name: str, place, length: int | None = None) -> Tensor:
        name = name.replace("/", "-")
        value = self._fetch(name, place, length).float()
        if self.facts["feature_dtype"] != "int8":
            return value
        return value * self._fetch(f"{name}.scale", place, length).float()[..., None]

    def _check_captions(self, place, tokens: Tensor) -> None:
        """Rows without a word to predict pass: nothing is read off them."""
        pad, words = self.facts["pad"], tokens.cpu()
        spoken = (words[:, 1:] != pad).any(1)
        if place[0].max() >= self.facts["clips"]:
            raise ValueError(f"clip {place[0].max()} is not among the {self.facts['clips']} of {self.folder}")
        known = self._fetch("tokens", place, tokens.shape[1]).long()
        if known.shape != words.shape or not torch.equal(known[spoken], words[spoken]):
            raise ValueError(
                f"the batch has captions that are not in {self.folder}: draw them from the clips' own, "
                "GlyphData(fresh_captions=False), of the same pool"
            )


class _Builder:
    """Fills a cache's files. The first process makes them and closes the account, all fill their share."""

    def __init__(self, folder: Path, facts: dict, teacher, wants: TargetSpec, data, say):
        self.folder, self.facts, self.teacher, self.wants = folder, facts, teacher, wants
        self.data, self.longest, self.say = data, data.max_tokens, say
        self.rank, self.world = rank_and_world()

    def build(self) -> None:
        if self.rank == 0:
            self.check() if self.facts["layout"] else self.start()
        wait_for_all()
        self.facts = read_facts(self.folder)
        todo = np.flatnonzero(self.files("r")[DONE] == 0)
        wait_for_all()  # nobody fills in anything before all know what there is to do
        self.fill(todo)
        wait_for_all()
        if self.rank == 0:
            self.finish()
        wait_for_all()

    def files(self, mode: str) -> dict[str, np.memmap]:
        return open_files(self.folder, self.facts["layout"], mode)

    def start(self) -> None:
        """Make the files, empty; one batch shows what shapes they have."""
        self.allocate(self.arrays(next(iter(self.data.pool_dataloader(0, self.data.batch_size)))))
        self.save()

    def check(self) -> None:
        """After a kill: what is done and damaged is to be done again."""
        files, damaged = self.files("r+"), 0
        done = files.pop(DONE)
        for first in range(0, len(done), CHUNK):
            known = done[first : first + CHUNK]
            found = clip_checksums({name: array[first : first + CHUNK] for name, array in files.items()})
            wrong = (known != 0) & (known != found)
            known[wrong] = 0
            damaged += int(wrong.sum())
        done.flush()
        damage = f", {damaged:,} of them damaged" if damaged else ""
        self.say(
            f"going on in {self.folder}: {np.count_nonzero(done == 0):,} of {len(done):,} clips to do{damage}"
        )

    def fill(self, todo: np.ndarray) -> None:
        """Ask about this process's share of the clips to do, in the batches of a cache made at one go.

        By plain writes, which several machines can do beside each other in a file on a network's disk.
        """
        size, started, count = self.data.batch_size, time.monotonic(), 0
        told, of = started, f" of the first of {self.world} processes" if self.world > 1 else ""
        mine = np.array_split(np.unique(todo // size), self.world)[self.rank]
        starts = {name: array.offset for name, array in self.files("r").items()}
        with ExitStack() as stack:
            streams = {
                name: stack.enter_context((self.folder / name).open("r+b", buffering=0)) for name in starts
            }
            for first, batch in self.batches(mine):
                parts = self.arrays(batch)
                parts[DONE] = clip_checksums(parts)
                for name, value in parts.items():
                    streams[name].seek(starts[name] + first * value[0].nbytes)
                    write_all(streams[name], value.tobytes())
                count += len(batch["frames"])
                if self.rank == 0 and time.monotonic() - told > TELL_EVERY:
                    told = time.monotonic()
                    share, rate = np.isin(todo // size, mine).sum(), count / (told - started)
                    self.say(f"{count:,} of {share:,} clips{of}, {rate:.1f} a second")
            for stream in streams.values():
                os.fsync(stream.fileno())

    def batches(self, numbers: np.ndarray):
        """(its first clip, batch) of each of these batches of the pool."""
        size = self.data.batch_size
        for run in np.split(numbers, np.flatnonzero(np.diff(numbers) > 1) + 1) if len(numbers) else ():
            first = int(run[0]) * size
            for batch in self.data.pool_dataloader(first, (int(run[-1]) + 1) * size):
                yield first, batch
                first += len(batch["frames"])

    def finish(self) -> None:
        facts, files = self.facts, self.files("r")
        if "top_log_rest.npy" in files:
            facts["mass"] = mass_kept(files["top_log_rest.npy"], files["tokens.npy"], facts["pad"])
        facts["checksums"] = {name: checksum(self.folder / name) for name in facts["layout"]}
        facts["finished"] = True
        self.save()

    def arrays(self, batch: dict) -> dict[str, np.ndarray]:
        """The teacher's answer on a batch of whole clips, as it goes to disk, by file name; [B, ...] each."""
        facts, teacher = self.facts, self.teacher
        device = next(teacher.parameters()).device
        frames, tokens = batch["frames"].to(device), batch["tokens"].to(device)
        dtype = parse_dtype(facts["teacher_dtype"])
        clips, vocabulary, parts = len(frames), teacher.vocab_size, {}
        facts["own"], facts["pad"] = len(tokens) // clips, teacher.pad_token_id
        facts["captions"] = facts["own"] + self.wants.pseudo_captions
        if self.wants.pseudo_captions:
            said, judged = pseudo_captions(
                teacher, frames, self.wants.pseudo_captions, min(self.longest, teacher.max_positions), dtype
            )
            tokens = join_captions(tokens.unflatten(0, (clips, -1)), said, teacher.pad_token_id).flatten(0, 1)
            parts["judged"] = as_floats(judged, "float32")
        missing = self.longest - tokens.shape[1]
        answer = teacher_targets(teacher, frames, tokens, self.wants, dtype)
        parts["tokens"] = as_words(lengthen(tokens, missing, teacher.pad_token_id), vocabulary)
        if "logits" in answer:
            top = losses.top_k(answer.pop("logits"), facts["k"])
            parts["top_words"] = as_words(lengthen(top.words, missing), vocabulary)
            parts["top_log_p"] = as_floats(lengthen(top.log_p, missing), facts["dtype"])
            parts["top_log_rest"] = as_floats(lengthen(top.log_rest, missing), facts["dtype"])
        for name, value in answer.items():
            value = (
                value.unflatten(0, (clips, -1))
                if name.startswith("image_features/")
                else lengthen(value, missing)
            )
            name = name.replace("/", "-")
            if facts["feature_dtype"] == "int8":
                value, scale = to_int8(value)
                parts[f"{name}.scale"] = as_floats(scale, "float16")
                parts[name] = value.cpu().numpy()
            else:
                parts[name] = as_floats(value, facts["feature_dtype"])
        return {  # what lies by caption goes to [B, K, ...]; the rest lies by clip already
            f"{name}.npy": value
            if name.startswith(("cells-", "judged"))
            else value.reshape(clips, -1, *value.shape[1:])
            for name, value in parts.items()
        }

    def allocate(self, parts: dict[str, np.ndarray]) -> None:
        """Make the files, empty, after telling their size and finding that the disk has room."""
        facts = self.facts
        facts["layout"] = {
            name: [[facts["clips"], *value.shape[1:]], str(value.dtype)] for name, value in parts.items()
        }
        facts["layout"][DONE] = [[facts["clips"]], "uint32"]
        sizes = {name: array_bytes(spec) for name, spec in facts["layout"].items()}
        text = sum(
            size for name, size in sizes.items() if name.startswith(("tokens", "top_", "judged", DONE))
        )
        features = (sum(sizes.values()) - text) / facts["clips"]
        self.say(
            f"{facts['clips']:,} clips take {sum(sizes.values()) / 1e6:,.1f} MB in {self.folder}: "
            f"{text / facts['clips'] / facts['captions']:,.0f} B for each of {facts['captions']} captions a clip"
            + (f" and {features:,.0f} B a clip for features" if features else "")
        )
        self.folder.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(self.folder).free
        if sum(sizes.values()) > free:
            raise OSError(f"that is more than the {free / 1e6:,.0f} MB free on the disk of {self.folder}")
        for name, (shape, kind) in facts["layout"].items():
            np.lib.format.open_memmap(self.folder / name, "w+", np.dtype(kind), tuple(shape))

    def save(self) -> None:
        text = metadata_text(self.facts)
        write_whole(self.folder, {"cache.json": lambda path: path.write_text(text)})


def fingerprint(teacher, data=None) -> dict:
    """What a teacher's answers depend on, by name; about the data only what `data` tells of itself."""
    weights = hashlib.sha256()
    for name, value in sorted(teacher.state_dict().items()):
        weights.update(f"{name} {list(value.shape)} {value.dtype}".encode())
        weights.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    config = teacher.config.to_dict()
    config.pop("transformers_version", None)
    found = {
        "teacher's weights": weights.hexdigest()[:16],
        "teacher's configuration": short_hash(json.dumps(config, sort_keys=True, default=str)),
        "teacher's preprocessing": f"{teacher.config.vision_config.image_size} px {CLIP_MEAN} {CLIP_STD}",
    }
    return found | (data.fingerprint() if data is not None else {})


def refuse(folder, known: dict, found: dict) -> None:
    """A ValueError naming what differs; a checksum of contents only when nothing else explains it."""
    differ = [key for key in found if found[key] != known.get(key)]
    differ = [key for key in differ if key != "content"] or differ
    if differ:
        what = "; ".join(f"{key} is {found[key]} here and {known.get(key)} there" for key in differ)
        raise ValueError(f"the cache in {folder} is another one, build one elsewhere or delete it: {what}")


def read_facts(folder: Path) -> dict:
    """A cache's cache.json; FileNotFoundError or ValueError in one line."""
    path = folder / "cache.json"
    if not path.is_file():
        raise FileNotFoundError(f"{folder} holds no cache: it has no cache.json")
    facts = parse_metadata(path.read_bytes(), path)
    if facts.get("format") != FORMAT:
        raise ValueError(
            f"{path} is of format {facts.get('format')}, this is format {FORMAT}: build it again"
        )
    return facts


def is_finished(folder: Path) -> bool:
    """Is there a cache, filled to the end?"""
    return (folder / "cache.json").is_file() and read_facts(folder)["finished"]


def open_files(folder: Path, layout: dict, mode: str) -> dict[str, np.memmap]:
    """The arrays of a cache, memory-mapped; ValueError when one is missing or of another shape."""
    files = {}
    for name, (shape, kind) in layout.items():
        try:
            files[name] = np.load(folder / name, mmap_mode=mode)
        except Exception as error:  # numpy has many for a header that has changed
            raise ValueError(f"{folder / name} cannot be read: delete the folder and build again") from error
        if list(files[name].shape) != shape or str(files[name].dtype) != kind:
            raise ValueError(f"{folder / name} has another shape: delete the folder and build again")
    return files


def write_all(stream, content: bytes) -> None:
    """A plain write, which a full disk may cut short without an error of its own: then an OSError."""
    written = stream.write(content)
    if written != len(content):
        raise OSError(
            f"{written} of {len(content)} bytes could be written to {stream.name}: is the disk full?"
        )


def clip_checksums(parts: dict[str, np.ndarray]) -> np.ndarray:
    """A checksum [B] over all of each clip's numbers, never 0."""
    found = []
    for i in range(len(next(iter(parts.values())))):
        value = 0
        for name in sorted(parts):
            value = zlib.crc32(np.ascontiguousarray(parts[name][i]), value)
        found.append(max(1, value))
    return np.array(found, dtype=np.uint32)


def mass_kept(log_rest: np.ndarray, tokens: np.ndarray, pad: int) -> list:
    """[probability of the kept words, summed over the tokens that are predicted; how many these are]"""
    mass, count = 0.0, 0
    for first in range(0, len(tokens), CHUNK):
        real = tokens[first : first + CHUNK, :, 1:] != pad
        mass += (1 - np.exp(log_rest[first : first + CHUNK][real].astype(np.float64))).sum()
        count += int(real.sum())
    return [float(mass), count]


def checksum(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(1 << 22):
            digest.update(chunk)
    return digest.hexdigest()


def short_hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def array_bytes(spec) -> int:
    shape, kind = spec
    return math.prod(shape) * np.dtype(kind).itemsize


def lengthen(x: Tensor, missing: int, value: int = 0) -> Tensor:
    """[R, T, ...] with `missing` more entries along T; ValueError if that is below 0."""
    if missing < 0:
        raise ValueError(f"a caption is {-missing} tokens longer than the data's max_tokens")
    return F.pad(x, (*[0] * (2 * x.dim() - 4), 0, missing), value=value)


def as_words(tokens: Tensor, vocabulary: int) -> np.ndarray:
    """Word numbers in the smallest integers that hold them."""
    return tokens.cpu().numpy().astype(np.min_scalar_type(vocabulary - 1))


def as_floats(x: Tensor, dtype: str) -> np.ndarray:
    return x.cpu().numpy().astype(dtype)


def to_int8(x: Tensor) -> tuple[Tensor, Tensor]:
    """x [..., D] as int8 and one scale [...] for each of its vectors, x = int8 * scale."""
    scale = (x.abs().amax(-1) / 127).clamp(min=1e-4).half().float()
    return (x / scale[..., None]).round().clamp(-127, 127).to(torch.int8), scale


def to_device(answer: dict, device) -> dict:
    """All tensors of an answer on `device`."""
    return {
        name: losses.TopK(*(part.to(device) for part in (value.log_p, value.words, value.log_rest)))
        if isinstance(value, losses.TopK)
        else value.to(device)
        for name, value in answer.items()
    }
