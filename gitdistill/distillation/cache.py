"""Disk cache of teacher outputs for a fixed training set.

A folder holds cache.json and shards, one safetensors file for every few hundred clips. Distributions are stored as
their k likeliest words and the remaining mass, activations as int8 with one scale per token. TinyViT stores its
teacher's logits likewise (Wu et al. 2022, https://arxiv.org/abs/2207.10666).
"""

import shutil
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn import functional as F

from gitdistill.distillation import distributed, losses, targets
from gitdistill.distillation.captions import CaptionFilter, join_captions, pseudo_captions
from gitdistill.distillation.targets import TargetSpec
from gitdistill.models import storage
from gitdistill.models.precision import chosen_dtype

FORMAT = 2
KEPT_WORDS = 8  # likeliest words stored per token
METADATA = dict.fromkeys(("format", "pseudo_captions", "k", "max_tokens", "clips", "captions", "pad"), int)
METADATA |= {"clip_bytes": int, "shard_clips": int, "fingerprint": dict, "names": list[str]}
METADATA |= dict.fromkeys(("dtype", "feature_dtype", "teacher_dtype"), str)
BY_CLIP = ("image_features/", "visual_features")  # all else is stored by caption
SHARD_CLIPS = 256  # clips per shard, rounded up to whole batches


class TeacherCache:
    """Teacher targets on a training set, memory-mapped from a folder that `build` filled.

    Raises FileNotFoundError if there is no cache, ValueError if it is unfinished, of another format or damaged
    (`verify` reads all of it once and compares checksums).
    """

    def __init__(self, folder, verify: bool = True):
        self.folder = Path(folder).expanduser()
        self.metadata = read_metadata(self.folder)
        paths = shard_paths(self.folder, self.metadata)
        if missing := sum(not path.is_file() for path in paths.values()):
            raise ValueError(f"the cache in {folder} lacks {missing} of {len(paths)} shards: build it again")
        captions = self.metadata["captions"]
        self._shards = [read_shard(path, verify, len(clips) * captions) for clips, path in paths.items()]
        self.names = self.metadata["names"]  # keys of the stored targets, see `TargetSpec.names`
        self.nbytes = self.metadata["clips"] * self.metadata["clip_bytes"]  # of all tensors

    @property
    def mass_kept(self) -> float:
        """Probability of the k stored words, averaged over all tokens of all captions."""
        real = [shard["tokens"][:, 1:] != self.metadata["pad"] for shard in self._shards]
        rest = [np.exp(shard["logits/log_rest"][mask]) for shard, mask in zip(self._shards, real)]
        return float(1 - np.concatenate(rest).mean(dtype=float))

    @classmethod
    def build(
        cls,
        folder,
        teacher,
        data,
        spec: TargetSpec,
        k: int = KEPT_WORDS,
        dtype: str = "float16",
        feature_dtype: str = "int8",
        teacher_dtype: str = "float32",
        say=print,
    ) -> "TeacherCache":
        """Run `teacher` on every clip of `data` with all its captions; shards that exist are kept.

        Rank 0 allocates the cache, all ranks fill it; any number of them makes the same files. `k` words per
        token are stored, log-probabilities as `dtype`, activations as `feature_dtype` (int8, float16 or float32).
        `teacher_dtype` is what the teacher computes in. `say` gets the size, before anything is written, and progress.
        Raises ValueError naming what differs if the folder holds another cache, OSError if the disk is too small.
        """
        settings = {"names": spec.names(), "pseudo_captions": spec.pseudo_captions, "k": k, "dtype": dtype}
        folder = storage.output_folder(folder)
        if teacher_dtype == "auto" and (folder / "cache.json").is_file():
            teacher_dtype = read_metadata(folder)["teacher_dtype"]
        teacher_dtype = chosen_dtype(teacher_dtype, teacher)
        settings |= {"feature_dtype": feature_dtype, "teacher_dtype": teacher_dtype}
        rank, _ = distributed.rank_and_world()
        with ExitStack() as held:
            with distributed.together():
                plan = allocate(folder, teacher, data, spec, settings, say, held) if rank == 0 else None
            cls._fill(teacher, data, spec, distributed.gather(plan)[0], say)
        with distributed.together():
            return cls(folder, verify=rank == 0)

    @staticmethod
    def _fill(teacher, data, spec: TargetSpec, plan: tuple, say) -> None:
        rank, world = distributed.rank_and_world()
        metadata, missing = plan
        for done in range(0, len(missing), world):
            with distributed.together():  # each process makes one shard, then all learn of errors
                for clips, path in missing[done : done + world][rank : rank + 1]:
                    batches = data.pool_dataloader(clips.start, clips.stop)
                    parts = [stored_targets(teacher, batch, spec, metadata) for batch in batches]
                    tensors = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
                    known = {storage.CHECKSUM: storage.checksum(tensors)}
                    write = partial(save_file, tensors, metadata=known)
                    storage.write_whole(path.parent, {path.name: write})
            if rank == 0:
                say(f"{min(done + world, len(missing)):,} of {len(missing):,} shards made")

    @classmethod
    def open(cls, cache, teacher, data, spec: TargetSpec, teacher_dtype: str) -> "TeacherCache":
        """A cache, or that of a folder, which is filled if it is not finished; ValueError unless it fits."""
        if data is not None and not hasattr(data, "pool_dataloader"):
            kind = type(data).__name__
            raise ValueError(f"a cache needs clips with numbers: use ToyboxData or FileData, not {kind}")
        if not isinstance(cache, cls):
            if data is not None and not is_finished(Path(cache).expanduser()):
                cache = cls.build(cache, teacher, data, spec, teacher_dtype=teacher_dtype)
            else:
                cache = cls(cache)
                if teacher_dtype != "auto":
                    check_match(cache.folder, cache.metadata, {"teacher_dtype": teacher_dtype})
        cache.check(teacher, data)
        lacking = [name for name in spec.names() if name not in cache.names]
        if spec.pseudo_captions > cache.metadata["pseudo_captions"]:
            lacking.append(f"{spec.pseudo_captions} pseudo-captions a clip")
        if lacking:
            raise ValueError(f"the cache in {cache.folder} lacks {', '.join(lacking)}: build another")
        return cache

    def check(self, teacher, data=None) -> None:
        """A ValueError naming what differs, unless this is `teacher`'s cache of the training set of `data`."""
        check_match(self.folder, self.metadata["fingerprint"], fingerprint(teacher, data))

    def pseudo_captions(self, clips: Tensor, count: int, caption_filter: CaptionFilter):
        """The teacher's `count` best captions of clips [B], filtered: tokens [B, count, T], numbers [B, count]."""
        total, pad, device = self.metadata["captions"], self.metadata["pad"], clips.device
        first, clips = total - self.metadata["pseudo_captions"], clips.cpu()  # after the clip's own captions
        numbers = torch.arange(first, first + count).expand(len(clips), count)
        tokens = self._rows("tokens", clips[:, None] * total + numbers, device).unflatten(0, numbers.shape)
        tokens = caption_filter.apply(tokens, self._rows("quality", clips, device)[:, :count], pad)
        return tokens[..., : int((tokens != pad).sum(-1).max())], numbers.to(device)

    def words(self) -> list[int]:
        """Sorted ids of the tokens that occur in any caption, pseudo-captions included."""
        return sorted(set().union(*(np.unique(shard["tokens"]).tolist() for shard in self._shards)))

    def read(self, clips: Tensor, captions: Tensor, tokens: Tensor, spec: TargetSpec) -> dict:
        """The targets of a batch as `targets.teacher_targets` gives them, but "logits" is a `losses.TopK`.

        clips: long [B], their numbers in the training set. captions: long [B*K], their numbers among their clip's.
        tokens: long [B*K, T], these captions; ValueError if the cache holds others.
        """
        device, length, found = tokens.device, tokens.shape[1], {}
        clips, captions, total = clips.cpu(), captions.cpu(), self.metadata["captions"]
        # A missing caption has the number -1: only its start token is read, which all captions of the clip share.
        rows = clips.repeat_interleave(len(captions) // len(clips)) * total + captions.clamp(min=0)
        present = (tokens[:, 1:] != self.metadata["pad"]).any(1)
        beyond = int(rows.max()) >= self.metadata["clips"] * total
        if beyond or not torch.equal(self._rows("tokens", rows, device, length)[present], tokens[present]):
            raise ValueError(f"{self.folder} lacks captions of this batch: set fresh_captions=False")
        for name in spec.names():
            if name == "logits":
                parts = ("logits/log_p", "logits/words", "logits/log_rest")
                found[name] = losses.TopK(*(self._rows(part, rows, device, length - 1) for part in parts))
            elif name.startswith(BY_CLIP):
                found[name] = self._rows(name, clips, device).flatten(0, 1)
            else:
                found[name] = self._rows(name, rows, device, length)
        if "attention" in found:  # its sums have been rounded
            found["attention"] /= found["attention"].sum(-1, keepdim=True).clamp(min=1e-12)
        return found

    def _rows(self, name: str, numbers: Tensor, device, length: int | None = None) -> Tensor:
        """Rows of a stored tensor on `device`, long or float32, the first `length` tokens of each."""
        places = (divmod(number, len(self._shards[0][name])) for number in numbers.flatten().tolist())
        rows = [self._shards[shard][name][row : row + 1, :length] for shard, row in places]
        rows = torch.from_numpy(np.concatenate(rows))
        if f"{name}.scale" in self._shards[0]:
            return rows.to(device).float() * self._rows(f"{name}.scale", numbers, device, length)[..., None]
        return rows.to(device).float() if rows.is_floating_point() else rows.long().to(device)


def allocate(folder: Path, teacher, data, spec, settings: dict, say, held: ExitStack) -> tuple[dict, list]:
    """Metadata, on disk from here on, and (clips, path) of the shards that are missing; `held` gets a lock on them."""
    settings, identity = settings | {"max_tokens": data.max_tokens}, fingerprint(teacher, data)
    if known := (folder / "cache.json").is_file():
        metadata = read_metadata(folder)
        check_match(folder, metadata | metadata["fingerprint"], settings | identity)
    else:
        sample = stored_targets(teacher, next(iter(data.pool_dataloader(0, 1))), spec, settings)
        metadata = {"format": FORMAT, "fingerprint": identity, **settings, "clips": data.pool_size}
        metadata |= {"captions": len(sample["tokens"]), "pad": teacher.pad_token_id}
        metadata["clip_bytes"] = sum(value.nbytes for value in sample.values())
        metadata["shard_clips"] = -(-SHARD_CLIPS // data.batch_size) * data.batch_size
    missing = [(clips, path) for clips, path in shard_paths(folder, metadata).items() if not path.is_file()]
    size = metadata["clip_bytes"] * sum(len(clips) for clips, _ in missing)
    if missing:
        say(f"{len(missing):,} shards to make, {size / 1e6:,.1f} MB in {folder}")
    folder.mkdir(parents=True, exist_ok=True)
    if not held.enter_context(storage.lock(folder)) or known != (folder / "cache.json").is_file():
        raise ValueError(f"another process fills the cache in {folder}: wait for it, then start again")
    if size > (free := shutil.disk_usage(folder).free):
        raise OSError(f"that is more than the {free / 1e6:,.0f} MB free on the disk of {folder}")
    storage.write_whole(folder, {"cache.json": lambda path: path.write_text(storage.metadata_text(metadata))})
    return metadata, missing


@torch.no_grad()
def stored_targets(teacher, batch: dict, spec: TargetSpec, settings: dict) -> dict[str, Tensor]:
    """What is stored of a batch of whole clips: by clip "quality" and `BY_CLIP`, by caption all else."""
    device, dtype = next(teacher.parameters()).device, getattr(torch, settings["teacher_dtype"])
    frames, tokens = batch["frames"].to(device), batch["tokens"].to(device)
    pad, clips, stored, features = teacher.pad_token_id, len(frames), {}, None
    if count := spec.pseudo_captions:
        # Its image encoder runs once for captions and targets, unless layers within it are targets.
        if all("image_encoder" not in path for path in spec.image_features):
            with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
                features = teacher.model.encode(frames)
        longest = min(settings["max_tokens"], teacher.max_positions)
        extra, stored["quality"] = pseudo_captions(teacher, frames, count, longest, dtype, features)
        tokens = join_captions(tokens.unflatten(0, (clips, -1)), extra, pad).flatten(0, 1)
    found = targets.teacher_targets(teacher, frames, tokens, spec, dtype, features) | {"tokens": tokens}
    if "logits" in found:
        top = losses.top_k(found.pop("logits"), settings["k"])
        found |= {"logits/log_p": top.log_p, "logits/words": top.words, "logits/log_rest": top.log_rest}
    for name, value in found.items():
        if name.startswith(BY_CLIP):
            value = value.unflatten(0, (clips, -1))
        else:
            missing = 0, settings["max_tokens"] - tokens.shape[1]
            value = F.pad(value, (0, 0) * (value.dim() - 2) + missing, value=pad if name == "tokens" else 0)
        if not value.is_floating_point():  # the smallest type that holds all words
            value = value.to(getattr(torch, str(np.min_scalar_type(teacher.vocab_size - 1))))
        elif name.startswith("logits/"):
            value = value.to(getattr(torch, settings["dtype"]))
        elif settings["feature_dtype"] == "int8":
            scale = (value.abs().amax(-1) / 127).clamp(min=torch.finfo(torch.float32).tiny)
            stored[f"{name}.scale"], value = scale, (value / scale[..., None]).round().to(torch.int8)
        else:
            value = value.to(getattr(torch, settings["feature_dtype"]))
        stored[name] = value
    return {name: value.cpu() for name, value in stored.items()}


def read_shard(path: Path, verify: bool, captions: int) -> dict[str, np.ndarray]:
    """A shard's tensors, memory-mapped; a ValueError says what to do if it is damaged or lacks captions."""
    try:
        tensors = storage.read_weights(path) if verify else load_file(path)
        if (found := len(tensors.get("tokens", ()))) != captions:
            raise ValueError(f"it has {found} captions, not {captions}")
    except (ValueError, SafetensorError) as error:
        raise ValueError(f"{path} is damaged, delete it and build the cache again: {error}") from None
    return {name: value.numpy() for name, value in tensors.items()}


def shard_paths(folder: Path, metadata: dict) -> dict[range, Path]:
    """The clips of each shard, and its file: named by its first and last clip and by the cache it belongs to."""
    size, clips, cache = metadata["shard_clips"], metadata["clips"], storage.metadata_checksum(metadata)
    ranges = [range(first, min(first + size, clips)) for first in range(0, clips, size)]
    return {part: folder / f"{part[0]:08d}-{part[-1]:08d}-{cache}.safetensors" for part in ranges}


def is_finished(folder: Path) -> bool:
    """Does the folder hold a cache with all its shards?"""
    known = (folder / "cache.json").is_file()
    return known and all(path.is_file() for path in shard_paths(folder, read_metadata(folder)).values())


def read_metadata(folder: Path) -> dict:
    """A cache's cache.json; FileNotFoundError or ValueError in one line."""
    path = folder / "cache.json"
    if not path.is_file():
        raise FileNotFoundError(f"there is no {path}")
    metadata = storage.read_json(path)
    if (found := metadata.get("format")) != FORMAT:
        raise ValueError(f"{path} is of format {found}, not {FORMAT}: delete the folder and build it again")
    storage.check_fields(metadata, METADATA, path)
    if not metadata["shard_clips"] > 0 or not 0 < metadata["clips"] < 10**9:
        raise ValueError(f"{path}: {metadata['clips']} clips in shards of {metadata['shard_clips']}")
    return metadata


def fingerprint(teacher, data=None) -> dict:
    """What a teacher's targets depend on, by name; of the data, what `data.fingerprint` tells."""
    config = teacher.config.to_dict()
    config.pop("transformers_version", None)
    weights = {name: value.detach().cpu() for name, value in teacher.state_dict().items()}
    known = {"teacher's weights": storage.checksum(weights)}
    known["teacher's configuration"] = storage.metadata_checksum(config)
    return known | (data.fingerprint() if data is not None else {})


def check_match(folder: Path, known: dict, found: dict) -> None:
    """A ValueError naming the first difference. Settings come before checksums, so that the message names the cause."""
    for key, value in found.items():
        if value != known.get(key):
            both = f"{key} is {known.get(key)} in the cache and {value} now"
            raise ValueError(f"the cache in {folder} does not match: {both}. Use another folder or delete it")
