"""Cached teacher targets equal the teacher's own; a cache of something else is refused; a killed build is finished."""

import json
import multiprocessing
import os
import signal
import time
from dataclasses import replace

import pytest
import pytorch_lightning as pl
import tiny
import torch
from safetensors.torch import load_file
from torch import distributed

from gitdistill.distillation import cache as caches
from gitdistill.distillation import losses, pseudo_captions
from gitdistill.distillation.cache import TeacherCache, is_finished
from gitdistill.distillation.pseudo_captions import CaptionFilter
from gitdistill.distillation.targets import TargetSpec, teacher_targets
from gitdistill.distillation.trainer import DistillationTrainer
from gitdistill.models.git import GenerativeImageTextModel
from gitdistill.models.teacher import GenerativeImageTextTeacher
from gitdistill.world.module import GlyphData, glyph_tokenizer
from gitdistill.world.pretrain import glyph_git_config

TERMS = ("cross_entropy", "kl", "features", "hidden", "visual", "attention", "relations", "sequence")
EXACT = {"k": 10_000, "dtype": "float32", "feature_dtype": "float32"}
IMAGE, TEXT = "image_features/model.layers.0", "text_features/model.layers.1"
EVERYTHING = TargetSpec(
    image_features=("model.layers.0", "model.image_encoder", "model.layers.1.attention.value"),
    text_features=(
        "model.layers.1",
        *(f"model.layers.1.attention.{part}" for part in ("query", "key", "value")),
    ),
    attention=True,
    pseudo_captions=1,
)
forks = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork")


def world(**options):
    sizes = {"train_clips": 10, "val_clips": 2, "test_clips": 2, "unseen_clips": 2, "batch_size": 4}
    looks = {"captions_per_clip": 2, "num_frames": tiny.FRAMES, "image_size": tiny.SIDE, "max_tokens": 20}
    return GlyphData(**{**sizes, **looks, "fresh_captions": False, "singles": 3, **options})


def build(folder, spec=EVERYTHING, teacher=None, data=None, **options):
    options = {"say": lambda _: None, **options}
    return TeacherCache.build(folder, teacher or tiny.teacher(), data or world(), spec, **options)


@pytest.fixture(scope="module", autouse=True)
def small_shards():
    """A batch per shard: 13 clips are four of them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(caches, "SHARD_CLIPS", 1)
        yield


@pytest.fixture(scope="module")
def exact(tmp_path_factory, small_shards):
    return build(tmp_path_factory.mktemp("exact"), **EXACT)


@pytest.fixture
def batch():
    return next(iter(world(singles=2).train_dataloader()))  # clips of both kinds


def read(cache, batch, spec=EVERYTHING):
    return cache.read(batch["clip"], batch["caption"], batch["tokens"], spec)


def test_cached_targets_are_the_teachers_own(exact, batch):
    found = read(exact, batch)
    expected = teacher_targets(tiny.teacher(), batch["frames"], batch["tokens"], EVERYTHING)
    assert set(found) == set(expected) == set(EVERYTHING.names()) and len(found) == 9
    real = batch["tokens"] != 0
    top = losses.top_k(expected.pop("logits"), 10_000)
    torch.testing.assert_close(
        found["logits"].log_p[real[:, 1:]], top.log_p[real[:, 1:]], atol=1e-4, rtol=1e-4
    )
    for name, value in expected.items():
        mask = slice(None) if name.startswith("image") else real
        torch.testing.assert_close(found[name][mask], value[mask], atol=1e-4, rtol=1e-4, msg=name)
    torch.testing.assert_close(found["attention"][real].sum(-1), torch.ones(int(real.sum())))


def silent(module):
    module.log = module.log_dict = lambda *_, **__: None
    return module


def fit(module, data, folder, **options):
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    options = {"max_epochs": 2, "limit_val_batches": 0, "enable_checkpointing": False, **options}
    pl.Trainer(accelerator="cpu", default_root_dir=folder, **quiet, **options).fit(module, data)


def distillation(cache=None, teacher=None, **options):
    teacher = teacher or tiny.teacher()
    return DistillationTrainer(
        teacher, tiny.student(), **dict.fromkeys(TERMS, 1.0), max_length=20, cache=cache, **options
    )


def test_training_from_a_cache_ends_where_training_without_does_and_never_runs_the_teacher(exact, tmp_path):
    ends = []
    for cache in (None, exact):
        torch.manual_seed(0)
        teacher = tiny.teacher()
        module = distillation(cache, teacher, temperature=2.0)
        # Adam would amplify gradients that are only rounding errors, such as those of the keys' biases.
        module.configure_optimizers = lambda module=module: torch.optim.SGD(module.parameters(), 0.05)
        if cache:
            teacher.forward = None
        fit(module, world(), tmp_path)
        ends.append(module.state_dict())
    torch.testing.assert_close(ends[1], ends[0], atol=1e-5, rtol=1e-4)
    start = tiny.student().state_dict()
    assert not torch.allclose(ends[0]["model.spatial"], start["spatial"], atol=1e-3)


def test_clips_without_captions_train_from_a_cache(exact, tmp_path):
    module = distillation(exact)
    module.teacher.forward = None
    fit(module, world(labelled=1), tmp_path, max_epochs=1)


def test_the_usual_cache_is_close_and_small(tmp_path, batch):
    cache = build(tmp_path, data=world(max_tokens=None))
    captions = 13 * 6  # five of each clip's own and one of the teacher's
    text = [load_file(path) for path in tmp_path.glob("*.safetensors")]
    size = sum(
        value.nbytes
        for shard in text
        for name, value in shard.items()
        if name.startswith(("tokens", "logits"))
    )
    assert size / captions <= 1000
    found = read(cache, batch)
    expected = teacher_targets(tiny.teacher(), batch["frames"], batch["tokens"], EVERYTHING)
    real = batch["tokens"] != 0
    for name in (IMAGE, TEXT, "attention"):
        mask = slice(None) if name == IMAGE else real
        error = (found[name][mask] - expected[name][mask]).norm() / expected[name][mask].norm()
        assert error < 0.01, name
    top = losses.top_k(expected["logits"], 8)
    assert torch.equal(found["logits"].words[real[:, 1:]], top.words[real[:, 1:]])
    kept = found["logits"].log_p.exp().sum(-1) + found["logits"].log_rest.exp()
    torch.testing.assert_close(kept[real[:, 1:]], torch.ones(int(real[:, 1:].sum())), atol=5e-3, rtol=0)


def test_int8_is_precise_for_attention_over_many_image_tokens(tmp_path):
    """Each of 1,536 shares is about 0.0007; the rows must not be rounded to a handful of levels."""
    git = GenerativeImageTextModel(glyph_git_config(6, tiny.SIDE, 2, 32, 2, 2)).eval()
    teacher = GenerativeImageTextTeacher(git, glyph_tokenizer())
    spec, data = TargetSpec(logits=False, attention=True), world(num_frames=6, train_clips=2, singles=0)
    cache, batch = build(tmp_path, spec, teacher, data), next(iter(data.train_dataloader()))
    real = batch["tokens"] != 0
    found = read(cache, batch, spec)["attention"][real]
    expected = teacher_targets(teacher, batch["frames"], batch["tokens"], spec)["attention"][real]
    assert expected.shape[-1] == 1536
    assert (found - expected).norm() / expected.norm() < 0.005
    torch.testing.assert_close(found.sum(-1), torch.ones(len(found)))


def test_the_mass_kept_is_measured(tmp_path):
    teacher, data = tiny.teacher(), world()
    cache = build(tmp_path, TargetSpec(), teacher, data, k=3)
    total = count = 0
    for batch in data.pool_dataloader():
        p = teacher(batch["frames"], batch["tokens"]).logits.softmax(-1)[:, :-1]
        best = p.sort(-1).values[..., -3:].sum(-1)[batch["tokens"][:, 1:] != 0]
        total, count = total + best.sum().item(), count + len(best)
    assert cache.mass_kept == pytest.approx(total / count, rel=1e-4)


def test_pseudo_captions_are_kept(exact, batch):
    expected, quality = pseudo_captions.pseudo_captions(tiny.teacher(), batch["frames"], 1, 20)
    tokens, numbers = exact.pseudo_captions(batch["clip"], 1, CaptionFilter())
    length = min(tokens.shape[-1], expected.shape[-1])
    assert torch.equal(tokens[..., :length], expected[..., :length]) and numbers.tolist() == [[5]] * 4
    median = quality[..., 0].median().item()
    passing = exact.pseudo_captions(batch["clip"], 1, CaptionFilter(confidence=median))[0][..., 1:].any(-1)
    assert passing.tolist() == (quality[..., 0] >= median).tolist()
    used = {
        word
        for path in exact.folder.glob("*.safetensors")
        for word in load_file(path)["tokens"].flatten().tolist()
    }
    assert exact.words() == sorted(used)


def test_bfloat16_is_close(tmp_path, exact, batch):
    cache = build(tmp_path, teacher_dtype="bfloat16", **EXACT)
    real = (batch["tokens"] != 0)[:, 1:]
    a, b = (read(c, batch)["logits"].log_p[real] for c in (cache, exact))
    assert 0 < (a - b).abs().max() < 0.2


def test_the_size_is_told_before_anything_is_written(tmp_path):
    told = []
    cache = build(tmp_path / "new", say=lambda line: told.append((line, (tmp_path / "new").exists())))
    assert len(told) == 1 and f"{cache.nbytes / 1e6:,.1f} MB" in told[0][0] and not told[0][1]
    tensors = [load_file(path) for path in cache.folder.glob("*.safetensors")]
    assert cache.nbytes == sum(value.nbytes for shard in tensors for value in shard.values())


def test_a_disk_too_small_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(caches.shutil, "disk_usage", lambda _: type("Usage", (), {"free": 10}))
    with pytest.raises(OSError, match="more than the 0 MB free"):
        build(tmp_path)


def test_a_killed_build_makes_only_what_is_missing_or_was_deleted(tmp_path, exact):
    teacher, calls = tiny.teacher(), []
    forward = teacher.forward

    def stop_at_third(frames, tokens):
        calls.append(len(frames))
        if len(calls) == 4:  # the first one shows the sizes
            raise KeyboardInterrupt
        return forward(frames, tokens)

    teacher.forward = stop_at_third
    with pytest.raises(KeyboardInterrupt):
        build(tmp_path, teacher=teacher, **EXACT)
    assert not is_finished(tmp_path)
    with pytest.raises(ValueError, match="lacks 2 of 4 shards"):
        TeacherCache(tmp_path)
    first = min(tmp_path.glob("*.safetensors"))
    flip(first, -1)
    with pytest.raises(ValueError, match=f"{first} is damaged, delete it"):
        build(tmp_path, teacher=teacher, **EXACT)
    first.unlink()
    for _ in range(2):  # the second time everything is there
        build(tmp_path, teacher=teacher, **EXACT)
        assert calls[4:] == [4, 4, 1]
    assert is_finished(tmp_path) and contents(tmp_path) == contents(exact.folder)


def flip(path, place):
    """Change one bit of a file."""
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(content)


def contents(folder):
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def work(rank, world_size, folder, fault):
    """One of several processes that build the exact cache in `folder`. Rank 1 may be killed in its first write, rank
    0 may find the disk full; a process that ends with an error writes that down and stays."""
    torch.set_num_threads(1)
    meeting = f"file://{folder}.{world_size}"
    distributed.init_process_group("gloo", init_method=meeting, rank=rank, world_size=world_size)
    save_file = caches.save_file

    def save(*arguments, **options):
        if (fault, rank) == ("kill", 1):
            os.kill(os.getpid(), signal.SIGKILL)
        if (fault, rank) == ("full disk", 0):
            raise OSError("No space left on device")
        save_file(*arguments, **options)

    caches.save_file = save
    try:
        build(folder, **EXACT)
    except OSError as error:
        folder.with_suffix(f".error-{rank}").write_text(str(error))
        time.sleep(60)


def start(folder, world_size, fault=None):
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=work, args=(r, world_size, folder, fault)) for r in range(world_size)]
    for process in processes:
        process.start()
    return processes


def codes(processes):
    for process in processes:
        process.join()
    return [process.exitcode for process in processes]


@pytest.fixture(scope="module")
def alone(tmp_path_factory, small_shards):
    """What one process with one thread builds."""
    folder = tmp_path_factory.mktemp("alone") / "cache"
    assert codes(start(folder, 1)) == [0]
    return contents(folder)


@forks
def test_two_processes_build_what_one_does(tmp_path, alone):
    assert codes(start(tmp_path / "two", 2)) == [0, 0]
    assert contents(tmp_path / "two") == alone


@forks
def test_after_a_kill_any_number_of_processes_may_go_on(tmp_path, alone):
    folder = tmp_path / "cache"
    killed, other = codes(start(folder, 2, "kill"))[::-1]
    assert killed == -signal.SIGKILL and other != 0  # the other one does not wait for it
    assert not is_finished(folder) and len(list(folder.glob("*.safetensors"))) == 1
    assert codes(start(folder, 3)) == [0, 0, 0]
    assert contents(folder) == alone


@forks
def test_a_full_disk_of_one_process_ends_all(tmp_path):
    processes, errors = start(tmp_path / "cache", 2, "full disk"), []
    until = time.monotonic() + 20
    while len(errors) < 2 and time.monotonic() < until:
        time.sleep(0.05)
        errors = [path.read_text() for path in sorted(tmp_path.glob("cache.error-*"))]
    for process in processes:
        process.kill()
    assert len(errors) == 2 and all("No space left" in error for error in errors)


@pytest.mark.parametrize(
    "changed, named",
    [
        ({"teacher": tiny.teacher(seed=1)}, "teacher's weights is"),
        ({"data": world(seed=1)}, "seed is 1 here and 0 there$"),
        ({"data": world(train_clips=11)}, "train_clips is 11 here and 10 there$"),
        ({"data": world(image_size=64)}, "image_size is 64 here and 32 there$"),
        ({"k": 4}, "k is 4 here and 10000 there$"),
        ({"data": world(max_tokens=21)}, "max_tokens is 21 here and 20 there$"),
        ({"spec": TargetSpec()}, "names is"),
    ],
)
def test_another_teachers_or_datas_cache_is_refused(exact, changed, named):
    with pytest.raises(ValueError, match=named) as error:
        build(exact.folder, **{**EXACT, **changed})
    assert "\n" not in str(error.value)


def test_other_pictures_under_the_same_settings_are_noticed(exact, monkeypatch):
    data = world()
    monkeypatch.setattr(data.pool.clips, "seed", 5)
    with pytest.raises(ValueError, match="content is"):
        exact.check(tiny.teacher(), data)


def test_a_trainer_refuses_what_does_not_fit(exact, tmp_path):
    def run(teacher=None, data=None, cache=exact, **options):
        module = DistillationTrainer(teacher or tiny.teacher(), tiny.student(), cache=cache, **options)
        fit(module, data or world(), tmp_path, max_steps=1)

    with pytest.raises(ValueError, match="teacher's weights"):
        run(teacher=tiny.teacher(seed=3))
    with pytest.raises(ValueError, match="seed is 1"):
        run(data=world(seed=1))
    with pytest.raises(ValueError, match="lacks image_features/model.layers.1: build another"):
        run(feature_pairs={"memory_norm": "model.layers.1"})
    with pytest.raises(ValueError, match="lacks captions of this batch: set fresh_captions=False"):
        run(data=world(fresh_captions=True))
    with pytest.raises(ValueError, match="^a stream of clips has no end: give train_clips a number$"):
        run(data=world(train_clips=None), cache=tmp_path / "new")


def test_a_trainer_fills_a_folder_and_finds_it_again(tmp_path, capsys):
    folder = tmp_path / "cache"
    for _ in range(2):
        module = DistillationTrainer(tiny.teacher(), tiny.student(), cache=str(folder))
        fit(module, world(), tmp_path, max_steps=1)
    assert capsys.readouterr().out.count(" MB in ") == 1
    assert TeacherCache(folder).names == ["logits", IMAGE]
    coarse = DistillationTrainer(tiny.teacher(), tiny.student(), cache=str(folder), teacher_dtype="bfloat16")
    with pytest.raises(ValueError, match="teacher_dtype is bfloat16 here and float32 there"):
        fit(coarse, world(), tmp_path, max_steps=1)


def test_the_command_line_takes_a_folder_and_a_filter(tmp_path, monkeypatch):
    from gitdistill.__main__ import main

    tiny.git().save_pretrained(tmp_path / "teacher")
    tiny.teacher().tokenizer.save_pretrained(tmp_path / "teacher")
    tiny.student().save_pretrained(tmp_path / "student")
    monkeypatch.chdir(tmp_path)
    student = {"": "gitdistill.StudentCandidateV1.from_pretrained", ".folder": "student"}
    model = {"": "gitdistill.DistillationTrainer", ".teacher": "teacher", ".cache": "cache"}
    model |= {".sequence": 1, ".freeze": 1, ".caption_filter.confidence": -9, ".teacher_dtype": "bfloat16"}
    model |= {f".student{key}": value for key, value in student.items()}
    data = {".train_clips": 4, ".val_clips": 2, ".test_clips": 2, ".unseen_clips": 2, ".batch_size": 2}
    data |= {"": "gitdistill.world.GlyphData", ".labelled": 2, ".fresh_captions": "false"}
    data |= {".num_frames": tiny.FRAMES, ".image_size": tiny.SIDE}
    trainer = {".max_steps": 2, ".logger": "false", ".accelerator": "cpu"}
    parts = {"trainer": trainer, "model": model, "data": data}
    options = [
        f"--{part}{key}={value}" for part, values in parts.items() for key, value in sorted(values.items())
    ]
    monkeypatch.setattr("sys.argv", ["gitdistill", "fit", *options])
    main()
    assert TeacherCache(tmp_path / "cache").lacks(replace(TargetSpec(), pseudo_captions=1)) == []


def test_damaged_files_are_named(tmp_path):
    build(tmp_path, TargetSpec())
    for path in sorted(tmp_path.iterdir()):
        whole = path.read_bytes()
        for place in (20, len(whole) // 2, -4):
            flip(path, place)
            with pytest.raises(ValueError, match=f"{path} is (damaged|not valid JSON)") as caught:
                TeacherCache(tmp_path)
            assert "\n" not in str(caught.value)
        path.write_bytes(whole[:100])
        with pytest.raises(ValueError, match=f"{path} is (damaged|not valid JSON)"):
            TeacherCache(tmp_path, verify=False)
        path.write_bytes(whole)
    TeacherCache(tmp_path)


def test_what_is_no_cache(tmp_path):
    with pytest.raises(FileNotFoundError, match="cache.json"):
        TeacherCache(tmp_path)
    (tmp_path / "cache.json").write_text(json.dumps({"format": 1, "layout": {}}))  # as of version 0.1
    for refused in (TeacherCache, is_finished, build):
        with pytest.raises(ValueError, match="format 1, not 2: delete the folder and build it again"):
            refused(tmp_path)
