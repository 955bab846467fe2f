"""Cached teacher targets equal the teacher's own; a cache of something else is refused; a killed build is finished."""

import json
import multiprocessing
import os
import signal
import time
from dataclasses import replace

import pytest
import tiny
import torch
from fits import ALL, distillation, fit_quietly, forks, from_class
from safetensors.torch import load_file, save_file
from torch import distributed

from gitdistill import DistillationTrainer, GenerativeImageTextModel, GenerativeImageTextTeacher
from gitdistill.__main__ import main
from gitdistill.distillation import cache as caches
from gitdistill.distillation import losses
from gitdistill.distillation.cache import TeacherCache, is_finished
from gitdistill.distillation.captions import CaptionFilter, pseudo_captions
from gitdistill.distillation.targets import TargetSpec, teacher_targets
from gitdistill.world.module import ToyboxData, toybox_tokenizer
from gitdistill.world.pretrain import toybox_git_config

EXACT = {"k": 10_000, "dtype": "float32", "feature_dtype": "float32"}
SMALL = {"train_clips": 10, "val_clips": 2, "test_clips": 2, "unseen_clips": 2, "batch_size": 4, "singles": 3}
SMALL |= {"captions_per_clip": 2, "num_frames": tiny.FRAMES, "image_size": tiny.SIDE, "fresh_captions": False}
LAST = "model.layers.1"
EVERYTHING = TargetSpec(
    image_features=("model.layers.0", "model.image_encoder", f"{LAST}.attention.value"),
    text_features=(LAST, f"{LAST}.attention.query", f"{LAST}.attention.key", f"{LAST}.attention.value"),
    attention=True,
    pseudo_captions=1,
)
SHARED = TargetSpec(image_features=("model.layers.0",), pseudo_captions=1)


def world(**options):
    return ToyboxData(**{**SMALL, "max_tokens": 20, **options})


def build(folder, spec=EVERYTHING, teacher=None, data=None, **options):
    options = {"say": lambda _: None, **options}
    return TeacherCache.build(folder, teacher or tiny.teacher(), data or world(), spec, **options)


@pytest.fixture(scope="module", autouse=True)
def small_shards():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(caches, "SHARD_CLIPS", 1)  # a batch per shard: 13 clips are four of them
        yield


@pytest.fixture(scope="module")
def exact(tmp_path_factory, small_shards):
    return build(tmp_path_factory.mktemp("exact"), **EXACT)


@pytest.fixture
def batch():
    return next(iter(world(singles=2).train_dataloader()))  # clips of both kinds


def read(cache, batch, spec=EVERYTHING):
    return cache.read(batch["clip"], batch["caption"], batch["tokens"], spec)


def shards(folder):
    return [load_file(path) for path in sorted(folder.glob("*.safetensors"))]


def test_cached_targets_are_the_teachers_own(exact, batch):
    found = read(exact, batch)
    expected = teacher_targets(tiny.teacher(), batch["frames"], batch["tokens"], EVERYTHING)
    assert set(found) == set(expected) == set(EVERYTHING.names()) and len(found) == 9
    real, close = batch["tokens"] != 0, {"atol": 1e-4, "rtol": 1e-4}
    top = losses.top_k(expected.pop("logits"), 10_000)
    torch.testing.assert_close(found["logits"].log_p[real[:, 1:]], top.log_p[real[:, 1:]], **close)
    for name, value in expected.items():
        mask = slice(None) if name.startswith("image") else real
        torch.testing.assert_close(found[name][mask], value[mask], **close, msg=name)
    torch.testing.assert_close(found["attention"][real].sum(-1), torch.ones(int(real.sum())))


def test_training_from_a_cache_ends_where_training_without_does_and_never_runs_the_teacher(exact):
    ends = []
    for cache in (None, exact):
        torch.manual_seed(0)
        module = distillation(**ALL, temperature=2.0, max_length=20, cache=cache).train()
        # Adam would amplify gradients that are only rounding errors, such as those of the keys' biases.
        module.configure_optimizers = lambda module=module: torch.optim.SGD(module.parameters(), 0.05)
        if cache:
            module.teacher.forward = None
        fit_quietly(module, world(), max_epochs=2)
        ends.append(module.state_dict())
    torch.testing.assert_close(ends[1], ends[0], atol=1e-5, rtol=1e-4)
    assert not torch.allclose(ends[0]["model.spatial"], tiny.student().spatial, atol=1e-3)


def test_a_missing_caption_has_its_own_clips_start_token(exact):
    clips, start = torch.tensor([0, 1]), torch.full((2, 1), 2)
    spec = TargetSpec(logits=False, text_features=(LAST,))
    found = exact.read(clips, torch.tensor([-1, -1]), start, spec)
    frames = torch.stack([world().pool.whole(number).frames for number in (0, 1)])
    expected = teacher_targets(tiny.teacher(), frames, start, spec)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_the_image_encoder_runs_once_for_captions_and_targets(tmp_path):
    teacher, calls, spec = tiny.teacher(), [], replace(SHARED, visual_features=True)
    cache = build(tmp_path / "kept", spec, teacher, **EXACT)
    teacher.model.image_encoder.register_forward_hook(lambda *_: calls.append(1))
    build(tmp_path / "count", SHARED, teacher, **EXACT)
    assert len(calls) == 1 + 4  # a clip to learn the sizes, then four batches
    frames = world().pool.whole(3).frames[None]
    tokens, _ = pseudo_captions(teacher, frames, 1, 20)
    kept, numbers = cache.pseudo_captions(torch.tensor([3]), 1, CaptionFilter())
    assert torch.equal(kept[0, 0, : tokens.shape[2]], tokens[0, 0])
    kept = kept.flatten(0, 1)[:, : tokens.shape[2]]
    found = cache.read(torch.tensor([3]), numbers.flatten(), kept, spec)
    expected = teacher_targets(teacher, frames, kept, spec)
    for name in ("image_features/model.layers.0", "visual_features"):
        torch.testing.assert_close(found[name], expected[name], rtol=1e-5, atol=1e-5)


def test_the_usual_cache_is_close_and_small(tmp_path, batch):
    cache = build(tmp_path, data=world(max_tokens=None))
    text = build(tmp_path / "text", TargetSpec(pseudo_captions=1), data=world(max_tokens=None))
    assert text.nbytes <= 1200 * 13 * 6  # five captions of each clip's own and one of the teacher's
    found = read(cache, batch)
    expected = teacher_targets(tiny.teacher(), batch["frames"], batch["tokens"], EVERYTHING)
    real = batch["tokens"] != 0
    for name in ("image_features/model.layers.0", f"text_features/{LAST}", "attention"):
        mask = slice(None) if name.startswith("image") else real
        error = (found[name][mask] - expected[name][mask]).norm() / expected[name][mask].norm()
        assert error < 0.01, name
    top = losses.top_k(expected["logits"], 8)
    assert torch.equal(found["logits"].words[real[:, 1:]], top.words[real[:, 1:]])
    kept = found["logits"].log_p.exp().sum(-1) + found["logits"].log_rest.exp()
    torch.testing.assert_close(kept[real[:, 1:]], torch.ones(int(real[:, 1:].sum())), atol=5e-3, rtol=0)


def test_int8_is_precise_for_attention_over_many_image_tokens(tmp_path):
    """Each of 1,536 shares is about 0.0007; the rows must not be rounded to a handful of levels."""
    git = GenerativeImageTextModel(toybox_git_config(6, tiny.SIDE, 2, 32, 2, 2)).eval()
    teacher = GenerativeImageTextTeacher(git, toybox_tokenizer())
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
    kept = []
    for batch in data.pool_dataloader():
        p = teacher(batch["frames"], batch["tokens"]).logits.softmax(-1)[:, :-1]
        kept.append(p.topk(3).values.sum(-1)[batch["tokens"][:, 1:] != 0])
    assert cache.mass_kept == pytest.approx(torch.cat(kept).mean().item(), rel=1e-3)


def test_pseudo_captions_are_kept(exact, batch):
    expected, quality = pseudo_captions(tiny.teacher(), batch["frames"], 1, 20)
    tokens, numbers = exact.pseudo_captions(batch["clip"], 1, CaptionFilter())
    length = min(tokens.shape[-1], expected.shape[-1])
    assert torch.equal(tokens[..., :length], expected[..., :length]) and numbers.tolist() == [[5]] * 4
    median = quality[..., 0].median().item()
    passing = exact.pseudo_captions(batch["clip"], 1, CaptionFilter(confidence=median))[0][..., 1:].any(-1)
    assert passing.tolist() == (quality[..., 0] >= median).tolist()
    used = {word for shard in shards(exact.folder) for word in shard["tokens"].flatten().tolist()}
    assert exact.words() == sorted(used)


def test_bfloat16_is_close(tmp_path, exact, batch):
    cache = build(tmp_path, teacher_dtype="bfloat16", **EXACT)
    real = (batch["tokens"] != 0)[:, 1:]
    a, b = (read(c, batch)["logits"].log_p[real] for c in (cache, exact))
    assert 0 < (a - b).abs().max() < 0.2


def test_the_size_is_told_and_compared_with_the_disk_before_anything_is_written(tmp_path, monkeypatch):
    told = []
    cache = build(tmp_path / "new", say=lambda line: told.append((line, (tmp_path / "new").exists())))
    assert f"{cache.nbytes / 1e6:,.1f} MB" in told[0][0] and not told[0][1] and len(told) == 1 + 4
    assert cache.nbytes == sum(x.nbytes for shard in shards(cache.folder) for x in shard.values())
    monkeypatch.setattr(caches.shutil, "disk_usage", lambda _: type("Usage", (), {"free": 10}))
    with pytest.raises(OSError, match="more than the 0 MB free"):
        build(tmp_path / "other")
    assert not any((tmp_path / "other").iterdir())


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
    with pytest.raises(ValueError, match="lacks 2 of 4 shards"):
        TeacherCache(tmp_path)
    first = min(tmp_path.glob("*.safetensors"))
    flip(first, -1)
    with pytest.raises(ValueError, match=f"{first} is damaged, delete it"):
        build(tmp_path, teacher=teacher, **EXACT)
    assert calls[4:] == [4, 1]
    first.unlink()
    for _ in range(2):  # the second time everything is there
        build(tmp_path, teacher=teacher, **EXACT)
        assert calls[6:] == [4]
    assert is_finished(tmp_path) and contents(tmp_path) == contents(exact.folder)


def flip(path, place):
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(content)


def contents(folder):
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def work(rank, world_size, folder, fault):
    """Builds the exact cache; fails in its first write if a `fault` is due. Writes an error down, then stays."""
    torch.set_num_threads(1)
    where = {"init_method": f"file://{folder}.{world_size}", "rank": rank, "world_size": world_size}
    distributed.init_process_group("gloo", **where)
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
    fork = multiprocessing.get_context("fork").Process
    processes = [fork(target=work, args=(rank, world_size, folder, fault)) for rank in range(world_size)]
    for process in processes:
        process.start()
    return processes


def codes(processes):
    return [process.join() or process.exitcode for process in processes]


@forks
def test_any_number_of_processes_makes_the_same_files_also_after_a_kill(tmp_path):
    alone, two, killed = tmp_path / "alone", tmp_path / "two", tmp_path / "killed"
    assert codes(start(alone, 1)) == [0]
    assert codes(start(two, 2)) == [0, 0]
    assert contents(two) == contents(alone)
    survivor, victim = codes(start(killed, 2, "kill"))
    assert victim == -signal.SIGKILL and survivor != 0  # it does not wait for the other one
    assert not is_finished(killed) and len(shards(killed)) == 1
    assert codes(start(killed, 3)) == [0, 0, 0]
    assert contents(killed) == contents(alone)


@forks
def test_a_full_disk_of_one_process_ends_all(tmp_path):
    processes, errors = start(tmp_path / "cache", 2, "full disk"), []
    until = time.monotonic() + 20
    while len(errors) < 2 and time.monotonic() < until:
        time.sleep(0.05)
        errors = list(filter(None, (path.read_text() for path in tmp_path.glob("cache.error-*"))))
    for process in processes:
        process.kill()
    assert len(errors) == 2 and all("No space left" in error for error in errors)


@pytest.mark.parametrize(
    "changed, named",
    [
        ({"teacher": tiny.teacher(seed=1)}, "teacher's weights is"),
        ({"data": world(seed=1)}, "seed is 0 in the cache and 1 now"),
        ({"k": 4}, "k is 10000 in the cache and 4 now"),
        ({"data": world(max_tokens=21)}, "max_tokens is 20 in the cache and 21 now"),
        ({"spec": TargetSpec()}, "names is"),
    ],
)
def test_another_teachers_or_datas_cache_is_refused(exact, changed, named):
    with pytest.raises(ValueError, match=named):
        build(exact.folder, **{**EXACT, **changed})


def test_other_pictures_under_the_same_settings_are_noticed(exact):
    data = world()
    data.pool.clips.seed = 5
    with pytest.raises(ValueError, match="content is"):
        exact.check(tiny.teacher(), data)


def test_a_trainer_refuses_what_does_not_fit(exact, tmp_path):
    def run(teacher=None, data=None, cache=exact, **options):
        module = DistillationTrainer(teacher or tiny.teacher(), tiny.student(), cache=cache, **options)
        fit_quietly(module, data or world(), max_steps=1)

    with pytest.raises(ValueError, match="teacher's weights"):
        run(teacher=tiny.teacher(seed=3))
    with pytest.raises(ValueError, match="lacks image_features/model.image_encoder.layers.0: build another"):
        run(feature_pairs={"memory_norm": "model.image_encoder.layers.0"})
    with pytest.raises(ValueError, match="lacks captions of this batch: set fresh_captions=False"):
        run(data=world(fresh_captions=True))
    with pytest.raises(ValueError, match="^a stream of clips has no end: give train_clips a number$"):
        run(data=world(train_clips=None), cache=tmp_path / "new")


def test_a_trainer_fills_a_folder_and_finds_it_again(tmp_path, capsys):
    folder = tmp_path / "cache"
    for _ in range(2):
        fit_quietly(distillation(cache=str(folder)), world(), max_steps=1)
    assert capsys.readouterr().out.count(" MB in ") == 1
    assert TeacherCache(folder).names == ["logits", "image_features/model.layers.0"]
    with pytest.raises(ValueError, match="teacher_dtype is float32 in the cache and bfloat16 now"):
        fit_quietly(distillation(cache=str(folder), teacher_dtype="bfloat16"), world(), max_steps=1)


def test_the_command_line_takes_a_folder_and_a_filter(tmp_path, monkeypatch):
    tiny.git().save_pretrained(tmp_path / "teacher")
    tiny.teacher().tokenizer.save_pretrained(tmp_path / "teacher")
    tiny.student().save_pretrained(tmp_path / "student")
    monkeypatch.chdir(tmp_path)
    model = {
        "teacher": "teacher",
        "student": from_class("StudentCandidateV1.from_pretrained", folder="student"),
    }
    model |= {"cache": "cache", "teacher_dtype": "bfloat16"}
    model |= {"sequence": 1, "freeze": 1, "caption_filter": {"confidence": -9}}
    config = {
        "trainer": {"max_steps": 2, "logger": False, "accelerator": "cpu"},
        "model": from_class("DistillationTrainer", **model),
        "data": from_class("world.ToyboxData", **SMALL, labelled=2),
    }
    (tmp_path / "config.yaml").write_text(json.dumps(config))  # JSON is YAML
    monkeypatch.setattr("sys.argv", ["gitdistill", "fit", "--config", "config.yaml"])
    with pytest.raises(SystemExit) as end:
        main()
    assert not end.value.code
    cache = TeacherCache(tmp_path / "cache")
    assert cache.metadata["pseudo_captions"] == 1 and "logits" in cache.names


def test_what_is_no_cache(tmp_path):
    with pytest.raises(FileNotFoundError, match="cache.json"):
        TeacherCache(tmp_path)
    (tmp_path / "cache.json").write_text(json.dumps({"format": 1, "layout": {}}))  # as of version 0.1
    for refused in (TeacherCache, is_finished, build):
        with pytest.raises(ValueError, match="format 1, not 2: delete the folder and build it again"):
            refused(tmp_path)


def test_one_process_at_a_time_fills_a_cache(tmp_path):
    """The second one is refused while the first one works, whoever comes when, and all clips are there in the end."""
    refused = []

    def second(line):
        if "shards made" in line:
            with pytest.raises(ValueError, match=f"another process fills the cache in {tmp_path}: wait"):
                build(tmp_path, **EXACT)
            refused.append(line)

    cache = build(tmp_path, say=second, **EXACT)
    assert len(refused) == 4 and len(shards(tmp_path)) == 4
    assert build(tmp_path, **EXACT).words() == cache.words()  # and it is free again


def test_a_shard_that_lacks_clips_is_no_cache(tmp_path):
    build(tmp_path, TargetSpec())
    first = min(tmp_path.glob("*.safetensors"))
    save_file({name: value[:-1] for name, value in load_file(first).items()}, first)
    for verify in (True, False):
        with pytest.raises(ValueError, match=f"{first} is damaged, delete it .*19 captions, not 20"):
            TeacherCache(tmp_path, verify)


@pytest.mark.parametrize(
    "change",
    [{"clips": "x"}, {"clips": 10**12}, {"shard_clips": 0}, {"names": None}, {"fingerprint": 5}, {"odd": 1}],
)
def test_values_of_another_kind_are_named(exact, tmp_path, change):
    metadata = json.loads((exact.folder / "cache.json").read_text())
    del metadata["crc32"]
    (tmp_path / "cache.json").write_text(json.dumps(metadata | change))
    for refused in (TeacherCache, is_finished, build):
        with pytest.raises(ValueError, match=rf"^{tmp_path}/cache.json[^\n]*$"):
            refused(tmp_path)
