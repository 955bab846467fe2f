"""The teacher's answers on disk: the same as its own, refused when they are another's, finished after a kill."""

import json
import multiprocessing
import os
import signal
import socket
import time

import pytest
import pytorch_lightning as pl
import tiny
import torch
from torch import distributed

from gitdistill.distillation import cache as caches
from gitdistill.distillation import losses, targets
from gitdistill.distillation.cache import TeacherCache
from gitdistill.distillation.targets import TargetSpec, teacher_targets
from gitdistill.distillation.trainer import DistillationTrainer
from gitdistill.world.module import GlyphData

TERMS = ("cross_entropy", "kl", "features", "hidden", "visual", "attention", "relations", "sequence")
ALL = {**dict.fromkeys(TERMS, 1.0), "max_length": 20}
EXACT = {"k": 10_000, "dtype": "float32", "feature_dtype": "float32"}
CELLS, ROWS = "model.layers.0", "model.layers.1"
EVERYTHING = DistillationTrainer(tiny.teacher(), tiny.student(), **ALL).wants


def world(**options):
    sizes = {"train_clips": 10, "val_clips": 2, "test_clips": 2, "unseen_clips": 2, "batch_size": 4}
    looks = {"captions_per_clip": 2, "num_frames": tiny.FRAMES, "image_size": tiny.SIDE, "max_tokens": 20}
    return GlyphData(**{**sizes, **looks, "fresh_captions": False, "singles": 3, **options})


def build(folder, wants=EVERYTHING, teacher=None, data=None, **options):
    options = {"say": lambda _: None, **options}
    return TeacherCache.build(folder, teacher or tiny.teacher(), data or world(), wants, **options)


@pytest.fixture(scope="module")
def exact(tmp_path_factory):
    return build(tmp_path_factory.mktemp("exact"), **EXACT)


@pytest.fixture
def batch():
    loader = world(singles=2).train_dataloader()  # clips of both kinds
    return next(iter(loader))


def read(cache, batch, wants=EVERYTHING):
    return cache.read(batch["clip"], batch["caption"], batch["tokens"], wants)


def silent(module):
    module.log = module.log_dict = lambda *_, **__: None
    return module


def test_a_kept_answer_is_the_teachers_own(exact, batch):
    found = read(exact, batch)
    expected = teacher_targets(tiny.teacher(), batch["frames"], batch["tokens"], EVERYTHING)
    assert set(found) == set(expected) == set(EVERYTHING.names())
    assert {"logits", f"image_features/{CELLS}", f"text_features/{ROWS}", "attention"} < set(found) and len(
        found
    ) == 9
    real = (batch["tokens"] != 0)[:, 1:]
    top = losses.top_k(expected.pop("logits"), 10_000)
    torch.testing.assert_close(found["logits"].log_p[real], top.log_p[real], atol=1e-4, rtol=1e-4)
    for name, value in expected.items():
        mask = slice(None) if name.startswith("cells") else batch["tokens"] != 0
        torch.testing.assert_close(found[name][mask], value[mask], atol=1e-4, rtol=1e-4, msg=name)


def test_attention_is_a_distribution_over_cells(exact, batch):
    attention = read(exact, batch)["attention"]
    assert attention.shape[-1] == tiny.FRAMES * 4
    real = batch["tokens"] != 0
    torch.testing.assert_close(attention[real].sum(-1), torch.ones(int(real.sum())))


def test_the_text_looks_at_cells_in_their_order():
    """Two clips of two frames with a class token and 2 x 2 cells each, one caption of two tokens."""
    columns = torch.arange(1.0, 1 + 2 * 2 * 12).reshape(2, 2, 12)  # 10 image tokens, 2 of text
    found = targets.attention_over_image(columns, torch.zeros(2, 2), frames=4, image_tokens=10)
    kept = columns[..., [1, 2, 3, 4, 6, 7, 8, 9]]
    torch.testing.assert_close(found, kept / kept.sum(-1, keepdim=True))


def test_losses_and_gradients_from_a_cache_are_those_without(exact, batch):
    terms, gradients = [], []
    for cache in (None, exact):
        torch.manual_seed(0)
        module = silent(
            DistillationTrainer(tiny.teacher(), tiny.student(), **ALL, temperature=2.0, cache=cache)
        )
        terms.append(module.losses(batch))
        sum(terms[-1].values()).backward()
        gradients.append([p.grad for p in module.parameters()])
    for name, value in terms[0].items():
        torch.testing.assert_close(terms[1][name], value, atol=1e-5, rtol=1e-5, msg=name)
    torch.testing.assert_close(gradients[1], gradients[0], atol=1e-5, rtol=1e-4)


def fit(module, data, folder, **options):
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    options = {"max_epochs": 2, "limit_val_batches": 0, "enable_checkpointing": False, **options}
    pl.Trainer(accelerator="cpu", default_root_dir=folder, **quiet, **options).fit(module, data)


def test_training_with_a_cache_ends_where_training_without_does_and_never_asks_the_teacher(exact, tmp_path):
    ends = []
    for cache in (None, exact):
        torch.manual_seed(0)
        teacher = tiny.teacher()
        module = DistillationTrainer(teacher, tiny.student(), **ALL, cache=cache)
        # Adam would blow up the rounding of gradients that are nothing but rounding, such as of keys' biases.
        module.configure_optimizers = lambda module=module: torch.optim.SGD(module.parameters(), 0.05)
        if cache:
            teacher.forward = None
        fit(module, world(), tmp_path)
        ends.append(module.state_dict())
    torch.testing.assert_close(ends[1], ends[0], atol=1e-5, rtol=1e-4)
    start = tiny.student().state_dict()
    assert not torch.allclose(ends[0]["model.spatial"], start["spatial"], atol=1e-3)


def test_the_usual_cache_is_close_and_small(tmp_path, batch):
    cache = build(tmp_path, data=world(max_tokens=None))
    captions = 13 * 6  # five of each clip's own and one of the teacher's
    bytes_of = {n: caches.array_bytes(spec) / captions for n, spec in cache.facts["layout"].items()}
    assert sum(size for name, size in bytes_of.items() if name.startswith(("tokens", "top_"))) <= 1000
    found = read(cache, batch)
    expected = teacher_targets(tiny.teacher(), batch["frames"], batch["tokens"], EVERYTHING)
    real = batch["tokens"] != 0
    for name in (f"image_features/{CELLS}", f"text_features/{ROWS}", "attention"):
        mask = slice(None) if name.startswith("cells") else real
        error = (found[name][mask] - expected[name][mask]).norm() / expected[name][mask].norm()
        assert error < 0.01, name
    top = losses.top_k(expected["logits"], 8)
    assert torch.equal(found["logits"].words[real[:, 1:]], top.words[real[:, 1:]])
    kept = found["logits"].log_p.exp().sum(-1) + found["logits"].log_rest.exp()
    torch.testing.assert_close(kept[real[:, 1:]], torch.ones(int(real[:, 1:].sum())), atol=5e-3, rtol=0)


def test_the_mass_kept_is_measured(tmp_path):
    teacher, data = tiny.teacher(), world()
    cache = build(tmp_path, TargetSpec(), teacher, data, k=3)
    total = count = 0
    for batch in data.pool_dataloader():
        p = teacher(batch["frames"], batch["tokens"]).logits.softmax(-1)[:, :-1]
        best = p.sort(-1).values[..., -3:].sum(-1)[batch["tokens"][:, 1:] != 0]
        total, count = total + best.sum().item(), count + len(best)
    assert cache.mass_kept == pytest.approx(total / count, rel=1e-4)


def test_the_teachers_own_captions_are_kept(exact, tmp_path, batch):
    teacher = tiny.teacher()
    said, judged = targets.pseudo_captions(teacher, batch["frames"], 1, 20)
    everything = targets.CaptionFilter()
    tokens, numbers = exact.said(batch["clip"], 1, everything)
    length = min(tokens.shape[-1], said.shape[-1])
    assert torch.equal(tokens[..., :length], said[..., :length]) and numbers.tolist() == [[5]] * 4
    median = judged[..., 0].median().item()
    keep = targets.CaptionFilter(confidence=median)
    kept = exact.said(batch["clip"], 1, keep)[0][..., 1:].any(-1)
    assert kept.tolist() == (judged[..., 0] >= median).tolist()
    used = {word for clip in exact.files["tokens.npy"].tolist() for row in clip for word in row}
    assert set(exact.words()) == used


def test_clips_without_captions_train_from_a_cache(exact, tmp_path):
    module = DistillationTrainer(tiny.teacher(), tiny.student(), **ALL, cache=exact)
    module.teacher.forward = None
    fit(module, world(labelled=1), tmp_path, max_epochs=1)


def test_bfloat16_is_close(tmp_path, exact, batch):
    cache = build(tmp_path, teacher_dtype="bfloat16", **EXACT)
    real = (batch["tokens"] != 0)[:, 1:]
    a, b = (read(c, batch)["logits"].log_p[real] for c in (cache, exact))
    assert 0 < (a - b).abs().max() < 0.2


def test_the_size_is_told_before_anything_is_written(tmp_path):
    told = []
    cache = build(tmp_path / "new", say=lambda line: told.append((line, (tmp_path / "new").exists())))
    line, existed = told[0]
    assert not existed and f"{cache.nbytes / 1e6:,.1f} MB" in line and "6 captions a clip" in line


def test_a_disk_too_small_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(caches.shutil, "disk_usage", lambda _: type("Usage", (), {"free": 10}))
    with pytest.raises(OSError, match="more than the 0 MB free"):
        build(tmp_path)


def test_a_write_that_is_cut_short_is_an_error():
    class Full:
        name, write = "tokens.npy", lambda self, content: len(content) - 1

    with pytest.raises(OSError, match="^3 of 4 bytes could be written to tokens.npy: is the disk full?"):
        caches.write_all(Full(), b"1234")


class Killed(Exception):
    pass


def test_a_killed_build_goes_on_where_it_stopped(tmp_path, exact):
    teacher, asked = tiny.teacher(), []
    forward = teacher.forward

    def stop_at_third(frames, tokens):
        asked.append(len(frames))
        if len(asked) == 4:  # the first time for the shapes
            raise Killed
        return forward(frames, tokens)

    teacher.forward = stop_at_third
    with pytest.raises(Killed):
        build(tmp_path, teacher=teacher, **EXACT)
    with pytest.raises(ValueError, match="holds 8 of 13 clips: build it again"):
        TeacherCache(tmp_path)
    flip(tmp_path / "tokens.npy", -1 - 10 * 6 * 20)  # in clip 3's last caption, no longer what was written
    said = []
    build(tmp_path, teacher=teacher, say=said.append, **EXACT)
    assert said == [f"going on in {tmp_path}: 6 of 13 clips to do, 1 of them damaged"]
    assert sum(asked[4:]) == 9
    assert contents(tmp_path) == contents(exact.folder)
    build(tmp_path, teacher=teacher, **EXACT)  # finished: nothing is asked again
    assert sum(asked[4:]) == 9


def flip(path, place):
    """Change one bit of a file."""
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(content)


def contents(folder):
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def build_together(rank, world, folder, kill, port):
    """One of several processes that build the exact cache; with `kill` the last one kills them all, in its second
    batch."""
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=world)
    teacher, forward, asked = tiny.teacher(), caches.ask, []

    def noted(*arguments):
        asked.append(rank)
        if kill and rank == world - 1 and len(asked) == 2:
            time.sleep(1)  # the other one gets on
            os.killpg(0, signal.SIGKILL)
        return forward(*arguments)

    caches.ask = noted
    build(folder, teacher=teacher, **EXACT)
    (folder.parent / f"asked-{rank}").write_text(str(len(asked)))


def start_together(folder, world=2, kill=False):
    """Exit code of a process that starts `world` others, in a group of its own."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["gitdistill.distillation.trainer", "gitdistill.world.pretrain", "pytest"])
    ready = context.Process(target=lead, args=(folder, world, kill, port))
    ready.start()
    ready.join()
    return ready.exitcode


def lead(folder, world, kill, port):
    os.setpgid(0, 0)
    children = [
        multiprocessing.get_context("fork").Process(
            target=build_together, args=(r, world, folder, kill, port)
        )
        for r in range(world)
    ]
    for child in children:
        child.start()
    for child in children:
        child.join()
    assert not any(child.exitcode for child in children)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="forks")
def test_two_processes_build_what_one_does(tmp_path):
    assert start_together(tmp_path / "one", world=1) == 0
    assert start_together(tmp_path / "two") == 0
    assert [(tmp_path / f"asked-{rank}").read_text() for rank in (0, 1)] == ["3", "2"]
    assert contents(tmp_path / "two") == contents(tmp_path / "one")


@pytest.mark.skipif(not hasattr(os, "fork"), reason="forks")
@pytest.mark.parametrize("then", [1, 3])
def test_two_killed_processes_are_continued_by_any_number(tmp_path, then):
    folder, alone = tmp_path / "cache", tmp_path / "alone"
    assert start_together(alone, world=1) == 0  # with as many threads as the others
    assert start_together(folder, kill=True) == -signal.SIGKILL
    with pytest.raises(ValueError, match=r"holds \d+ of 13 clips: build it again"):
        TeacherCache(folder)
    assert start_together(folder, world=then) == 0
    assert contents(folder) == contents(alone)


@pytest.mark.parametrize(
    "changed, named",
    [
        ({"teacher": tiny.teacher(seed=1)}, "teacher's weights is"),
        ({"data": world(seed=1)}, "seed is 1 here and 0 there$"),
        ({"data": world(train_clips=11)}, "train_clips is 11 here and 10 there$"),
        ({"data": world(image_size=64)}, "image_size is 64 here and 32 there$"),
        ({"k": 4}, "k is 4 here and 10000 there$"),
        ({"data": world(max_tokens=21)}, "max_tokens is 21 here and 20 there$"),
        ({"wants": TargetSpec()}, "names is"),
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
    def start(teacher=None, data=None, cache=exact, **weights):
        module = DistillationTrainer(teacher or tiny.teacher(), tiny.student(), cache=cache, **weights)
        fit(module, data or world(), tmp_path, max_steps=1)

    with pytest.raises(ValueError, match="teacher's weights"):
        start(teacher=tiny.teacher(seed=3))
    with pytest.raises(ValueError, match="seed is 1"):
        start(data=world(seed=1))
    with pytest.raises(ValueError, match=r"lacks image_features/model.layers.1: build another"):
        start(feature_pairs={"memory_norm": "model.layers.1"})
    with pytest.raises(ValueError, match=r"captions that are not in .*fresh_captions=False"):
        start(data=world(fresh_captions=True))
    with pytest.raises(ValueError, match="^a stream of clips has no end: give train_clips a number$"):
        start(data=world(train_clips=None), cache=tmp_path / "new")


def test_a_trainer_fills_a_folder_and_finds_it_again(tmp_path, capsys):
    folder = tmp_path / "cache"
    for _ in range(2):
        module = DistillationTrainer(tiny.teacher(), tiny.student(), cache=str(folder))
        fit(module, world(), tmp_path, max_steps=1)
    assert capsys.readouterr().out.count(" MB in ") == 1
    assert TeacherCache(folder).names == ["logits", "image_features/model.layers.0"]
    coarse = DistillationTrainer(tiny.teacher(), tiny.student(), cache=str(folder), teacher_dtype="bfloat16")
    with pytest.raises(ValueError, match="was made with teacher_dtype float32, not bfloat16: set the same"):
        fit(coarse, world(), tmp_path, max_steps=1)


def test_the_command_line_takes_a_folder_and_a_filter(tmp_path, monkeypatch):
    from gitdistill.__main__ import main

    tiny.git().save_pretrained(tmp_path / "teacher")
    tiny.teacher().tokenizer.save_pretrained(tmp_path / "teacher")
    tiny.student().save_pretrained(tmp_path / "student")
    monkeypatch.chdir(tmp_path)
    student = "gitdistill.StudentCandidateV1.from_pretrained"
    model = [
        "--model=gitdistill.DistillationTrainer",
        "--model.teacher=teacher",
        f"--model.student={student}",
    ]
    model += [
        "--model.student.folder=student",
        "--model.cache=cache",
        "--model.sequence=1",
        "--model.freeze=1",
    ]
    model += ["--model.caption_filter.confidence=-9", "--model.teacher_dtype=bfloat16"]
    sizes = {
        "train_clips": 4,
        "val_clips": 2,
        "test_clips": 2,
        "unseen_clips": 2,
        "batch_size": 2,
        "labelled": 2,
    }
    sizes |= {"num_frames": tiny.FRAMES, "image_size": tiny.SIDE, "fresh_captions": "false"}
    data = ["--data=gitdistill.world.GlyphData", *(f"--data.{key}={value}" for key, value in sizes.items())]
    trainer = ["--trainer.max_steps=2", "--trainer.logger=false", "--trainer.accelerator=cpu"]
    monkeypatch.setattr("sys.argv", ["gitdistill", "fit", *trainer, *model, *data])
    main()
    assert (
        TeacherCache(tmp_path / "cache").lacks(TargetSpec(image_features=("model.layers.0",), captions=1))
        == []
    )


def test_a_damaged_file_is_noticed(tmp_path):
    build(tmp_path, EVERYTHING)
    for path in sorted(tmp_path.iterdir()):
        whole = path.read_bytes()
        for place in (20, len(whole) // 2, -4):
            flip(path, place)
            with pytest.raises(ValueError, match=f"{path} is (damaged|not valid JSON)") as caught:
                TeacherCache(tmp_path)
            assert "\n" not in str(caught.value)
            path.write_bytes(whole)
    TeacherCache(tmp_path)
    path = tmp_path / "top_words.npy"
    path.unlink()
    with pytest.raises(ValueError, match="top_words.npy is damaged or missing"):
        TeacherCache(tmp_path)


def test_a_changed_fact_is_noticed(tmp_path):
    """It is valid JSON still. A cache of before there was a checksum is read as it is."""
    build(tmp_path, TargetSpec())
    path = tmp_path / "cache.json"
    text = path.read_text()
    path.write_text(text.replace('"k": 8', '"k": 9'))
    with pytest.raises(ValueError, match=f"{path} is damaged, its facts have another checksum"):
        TeacherCache(tmp_path)
    facts = json.loads(text)
    del facts["crc32"]
    path.write_text(json.dumps(facts))
    assert TeacherCache(tmp_path).facts == facts


def test_a_damaged_header_is_named(tmp_path):
    build(tmp_path, TargetSpec())
    path = tmp_path / "tokens.npy"
    path.write_bytes(path.read_bytes().replace(b"}", b" ", 1))
    with pytest.raises(ValueError, match=f"{path} cannot be read: delete the folder and build again"):
        TeacherCache(tmp_path, verify=False)


def test_what_is_no_cache(tmp_path):
    with pytest.raises(FileNotFoundError, match="holds no cache"):
        TeacherCache(tmp_path)
    (tmp_path / "cache.json").write_text("{")
    with pytest.raises(ValueError, match="not valid JSON"):
        TeacherCache(tmp_path)
    (tmp_path / "cache.json").write_text(json.dumps({"format": 0}))
    with pytest.raises(ValueError, match="format 0"):
        TeacherCache(tmp_path)


def test_int8_keeps_a_scale_for_each_token():
    x = torch.tensor([[100.0, -50.0, 0.0], [0.001, 0.002, 0.0], [0.0, 0.0, 0.0]])
    numbers, scale = caches.to_int8(x)
    assert numbers.dtype == torch.int8
    torch.testing.assert_close(numbers * scale[:, None], x, atol=0.4, rtol=0)
    assert numbers[0].tolist() == [127, -63, 0] or numbers[0].tolist() == [127, -64, 0]
    assert numbers[2].tolist() == [0, 0, 0]
