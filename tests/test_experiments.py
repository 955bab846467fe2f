"""The experiments: stored maps equal computed ones, runs are comparable, interrupted tables continue."""

import dataclasses
import math
from pathlib import Path
from types import SimpleNamespace

import calibration
import causal
import lookalikes
import pytest
import real_size
import report
import run
import tiny
import torch
from tiny_git import git_config

from gitdistill import DistillationTrainer
from gitdistill.world import Clips, Scene, Toy, ToyboxData, toybox_tokenizer
from gitdistill.world.features import CachedBackbone, FeatureClips, FeatureData

NUMBERS = "100", "300", "1,000", "5,000"  # of captioned clips


@pytest.fixture(scope="module")
def bench(tmp_path_factory):
    sizes = {"clips": 12, "steps": 2, "scored": 4, "batch": 4, "student": {"embed_dim": 32, "heads": 2}}
    sizes["image"] = {"num_frames": tiny.FRAMES, "image_size": tiny.SIDE}
    networks = {"teacher": tiny.teacher(), "backbone": tiny.backbone()}
    return run.Bench(tmp_path_factory.mktemp("pool"), **networks, **sizes)


@pytest.fixture
def variants(bench):
    return {name: list(make(bench.clips)) for name, make in run.EXPERIMENTS.items()}


def test_a_kept_map_is_what_the_backbone_sees(bench):
    kept = FeatureData(bench.folder, bench.backbone, **bench.sizes).test_maps
    plain = ToyboxData(**bench.sizes).test_set
    clip, same = kept.clip(3), plain.clip(3)
    with torch.no_grad():
        expected = bench.backbone.eval()(same.frames[None])[-1][0]
    torch.testing.assert_close(clip.frames, expected.half(), atol=2e-3, rtol=2e-3)
    assert clip.captions == same.captions and clip.scene == same.scene
    clip.captions.clear()
    assert kept.clip(3).captions == same.captions


def test_maps_are_made_once_and_only_for_one_backbone(bench, tmp_path):
    clips, lines = ToyboxData(**bench.sizes).test_set, []
    for _ in range(2):
        FeatureClips(clips, bench.backbone, tmp_path, lines.append)
    assert len(lines) == 1 and len(list(tmp_path.iterdir())) == 1
    FeatureClips(clips, CachedBackbone.copy_of(tiny.backbone(1)), tmp_path, lines.append)
    assert len(lines) == 2 and len(list(tmp_path.iterdir())) == 2


def test_a_step_on_maps_is_a_step_on_pixels(bench, variants):
    """Same batch, same losses, same gradients of all that is not frozen."""
    variant = variants["losses"][-1]
    maps = next(iter(bench.data(variant, 5).train_dataloader()))
    pixels = ToyboxData(**bench.sizes, captions_per_clip=2, seed=0, fresh_captions=False, max_tokens=24)
    pixels = torch.stack([pixels.pool.clip(n).frames for n in maps["clip"].tolist()])
    weights = dict.fromkeys(run.WEIGHTS, 1.0)
    student = bench.new_student({})
    module = DistillationTrainer(bench.teacher, student, **weights, cache=bench.cache, max_length=24)
    module.log_dict = lambda values: None  # there is no Trainer to log to
    student.backbone.eval().requires_grad_(False)
    found = []
    for frames in (maps["frames"], pixels):
        module.zero_grad()
        terms = module.loss_terms({**maps, "frames": frames})
        sum(terms.values()).backward()
        found.append((terms, [p.grad for p in student.parameters() if p.grad is not None]))
    assert set(found[0][0]) == set(run.WEIGHTS) and len(found[0][1]) > 20
    torch.testing.assert_close(found[0][0], found[1][0], atol=2e-3, rtol=2e-3)  # maps are float16
    torch.testing.assert_close(found[0][1], found[1][1], atol=0.05, rtol=0.05)


def numbers(data) -> list[int]:
    """The clips of an epoch, in order."""
    return [number for batch in data.train_dataloader() for number in batch["clip"].tolist()]


def test_few_labels(bench):
    few = FeatureData(bench.folder, bench.backbone, **bench.sizes, labelled=5)
    assert sorted(numbers(few)) == list(range(12))
    for batch in few.train_dataloader():
        captioned = (batch["tokens"][:, 1:] != 0).any(1)
        assert captioned.tolist() == (batch["clip"] < 5).tolist()
    only = FeatureData(bench.folder, bench.backbone, only=5, **bench.sizes, labelled=5)
    assert sorted(numbers(only)) == list(range(5))


def test_a_seed_changes_the_order_and_not_the_pool(bench):
    data = [FeatureData(bench.folder, bench.backbone, order=seed, **bench.sizes) for seed in (0, 0, 1)]
    same, again, other = data
    assert numbers(same) == numbers(again) != numbers(other)
    assert same.fingerprint() == other.fingerprint()


def test_variants_differ_and_are_compared_with_one_of_them(variants):
    for experiment, found in variants.items():
        names = [variant.name for variant in found]
        assert len(set(names)) == len(names) > 1
        assert {variant.against for variant in found} <= set(names), experiment
        settings = [dataclasses.replace(v, name="", against="") for v in found]
        assert all(a != b for i, a in enumerate(settings) for b in settings[:i]), experiment
    groups = [variant.name.partition(" ")[0] for variant in run.labels(5000)]
    assert groups == ["100"] * 2 + ["300"] * 4 + ["1,000"] * 2 + ["5,000"] * 2


def test_the_recipe_leaves_the_backbone_alone_and_repeats(bench, variants):
    recipe = next(v for v in variants["losses"] if v.name.startswith("recipe: "))
    rows = [run.train(bench, recipe, seed) for seed in (0, 0, 1)]
    for row in rows:
        row.pop("seconds")
    assert str(rows[0]) == str(rows[1]) != str(rows[2])  # text: nan is not equal to itself
    assert {"test/cider", "unseen/cider", "test/motion_precision", "unseen/relation_recall"} <= set(rows[0])
    torch.testing.assert_close(bench.known, dict(bench.backbone.state_dict()), atol=0, rtol=0)


@pytest.mark.parametrize("experiment", run.EXPERIMENTS)
def test_an_experiment_continues_where_it_stopped(bench, tmp_path, monkeypatch, experiment):
    """With a stand-in for the training."""
    trained = []

    def train(bench, variant, seed, timed):
        trained.append((variant.name, seed))
        if len(trained) == 4:
            raise KeyboardInterrupt
        row = {"name": variant.name, "against": variant.against, "seed": seed, **bench.settings()}
        return row | dict.fromkeys(report.SCORES, float(seed)) | {"seconds": 1.0}

    monkeypatch.setattr(run, "train", train)
    with pytest.raises(KeyboardInterrupt):
        run.run(bench, experiment, [0, 1], tmp_path, say=lambda _: None)
    assert len(report.read_rows(tmp_path / f"{experiment}.csv")) == 1 + 3
    rows = run.run(bench, experiment, [0, 1], tmp_path, say=lambda _: None)
    variants = list(run.EXPERIMENTS[experiment](bench.clips))
    assert len(rows) == 1 + 2 * len(variants) and len(trained) == 1 + 2 * len(variants)
    in_order = [(variant.name, seed) for variant in variants for seed in (0, 1)]
    assert [(row["name"], row["seed"]) for row in rows] == [("teacher", 0), *in_order]
    again = run.run(bench, experiment, [0, 1], tmp_path)
    assert len(again) == len(rows) and len(trained) == 1 + 2 * len(variants)
    text = report.table(tmp_path, experiment)
    assert text.count("\n") == 2 + len(variants)
    report.draw(tmp_path, experiment)
    assert (tmp_path / f"{experiment}.png").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(ValueError, match="'steps': 2.* not .*'steps': 3"):
        run.run(dataclasses.replace(bench, steps=3), experiment, [0], tmp_path)


def test_controls_take_from_the_teacher_what_they_say(bench, variants):
    _, recipe, untrained, mixed_up = variants["controls"]
    batches = [next(iter(bench.data(v, 0).train_dataloader())) for v in (recipe, mixed_up)]
    maps = bench.data(recipe, 0).train_maps.maps
    for batch, back in zip(batches, (0, 1)):
        expected = maps[(batch["clip"].numpy() - back) % bench.clips]
        torch.testing.assert_close(batch["frames"], torch.from_numpy(expected))
    torch.testing.assert_close(batches[0]["tokens"], batches[1]["tokens"], atol=0, rtol=0)

    batch, found = batches[0], []
    for cache in (bench.cache, bench.untrained_cache):
        module = DistillationTrainer(bench.teacher, bench.new_student({}), **recipe.weights, cache=cache)
        numbers = (batch["clip"], batch["caption"], batch["tokens"])
        found.append(cache.read(*numbers, module.spec))
    assert found[0].keys() == found[1].keys() and untrained.untrained
    for name in found[0]:
        same = str(found[0][name]) == str(found[1][name])
        assert same != name.startswith("image_features/"), name


def test_every_kind_of_variant_can_be_trained(bench, variants):
    """Of those that differ in numbers alone, one."""
    every = [variant for found in variants.values() for variant in found]
    own = [bool(v.options.get("own_captions")) for v in every]
    flags = [(bool(v.labelled), v.only, v.untrained, v.mixed_up) for v in every]
    kinds = {(*v.weights, *v.options, *v.student, *flag, o): v for v, flag, o in zip(every, flags, own)}
    for variant in kinds.values():
        student = {name: min(value, 2) for name, value in variant.student.items() if name != "embed_dim"}
        row = run.train(bench, dataclasses.replace(variant, student=student, share=0.5), 0)
        assert math.isfinite(row["test/cider"]), variant.name


def test_latency_is_measured_for_both(bench):
    found = run.latency(bench, bench.new_student({}), clips=2)
    assert set(found) == {"ms", "teacher_ms", "batch_ms", "teacher_batch_ms"} and min(found.values()) > 0


def test_differences_are_paired_and_have_an_interval():
    def row(name, seed, score):
        return {"name": name, "against": "b", "seed": seed, report.FACTS: score}

    rows = [row("b", 0, 1.0), row("b", 1, 3.0), row("b", 2, 2.0)]
    rows += [row("a", 1, 3.5), row("a", 0, 2.0), row("a", 2, 2.6), row("a", 3, 9.0)]
    gained = report.differences(rows)
    assert gained["a"] == pytest.approx([0.5, 1.0, 0.6]) and gained["b"] == []
    # By hand: mean 0.7, deviation sqrt((0.04 + 0.09 + 0.01) / 2), over sqrt(3), times 4.303.
    assert report.interval(gained["a"]) == pytest.approx((0.7 - 0.65729, 0.7 + 0.65729), abs=1e-4)
    assert all(map(math.isnan, report.interval([1.0])))


def test_runs_without_a_score_are_left_out_of_the_picture():
    """A student that states no motion has no precision of motions."""
    row = {"against": "a", "seed": 0, "steps": 9, report.FACTS: 1.0, "test/cider": math.nan}
    rows = [row | {"name": name} for name in "ab"]
    rows.append(rows[0] | {"seed": 1, "test/cider": 0.5})
    assert report.by_name(rows, "test/cider") == {"a": {1: 0.5}}
    figure = report.figure(rows, "losses")
    panels = [axes.get_title() for axes in figure.axes]
    assert panels == ["facts right", "CIDEr", "points of facts right gained"]
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == ["a (2)", "b"]  # runs of each


def test_the_title_names_a_gain_only_where_its_interval_is_above_zero():
    def row(name, seed, score):
        return {"name": name, "against": "a", "seed": seed, "steps": 450, report.FACTS: score}

    rows = [row("a", 0, 0.1), row("a", 1, 0.11), row("b", 0, 0.15), row("b", 1, 0.162), row("c", 0, 0.9)]
    title = report.finding(rows)
    assert "\u201cb\u201d gains +5.1 (+3.8 to +6.4) points of facts right" in title and "(5 runs)" in title
    assert report.finding(rows[:3]).startswith("No gain is surely larger")


def test_look_alikes_are_counted_by_hand():
    """A network that gives the same to every word but two: twice as much to a twin's, nothing to the end token."""
    tokenizer = toybox_tokenizer()
    clip = Clips("test", 1, frames=1, image_size=32)[0]
    clip.scene = Scene([Toy("ram"), Toy("violin", x=100, y=30)])
    clip.captions = ["a ram with a violin"]
    logits = torch.zeros(1, 7, len(tokenizer))
    logits[..., tokenizer.convert_tokens_to_ids("goat")] = math.log(2)
    network = lambda frames, tokens: SimpleNamespace(logits=logits)  # noqa: E731
    rows = lookalikes.shares(network, tokenizer, [clip])
    words = lookalikes.nouns(tokenizer)
    wrong = sum(len(ids) for name, ids in words.items() if name not in ("ram", "violin")) + 1
    twins = [["goat", "sheep"], ["guitar", "banjo"]]
    for row, names, more in zip(rows, twins, (1, 0)):
        assert row["wrong"] == pytest.approx(wrong / (len(tokenizer) + 1))
        assert row["alike"] == pytest.approx((sum(len(words[name]) for name in names) + more) / wrong)
        assert row["chance"] == 2 / (len(words) - 2)
    assert len(rows) == 2 and "police car" not in words
    (found,) = lookalikes.run({"a": network}, tokenizer, [clip])
    assert found["words"] == 2 and found["alike"] == pytest.approx((rows[0]["alike"] + rows[1]["alike"]) / 2)
    assert len(lookalikes.table([found])) == 3


def test_what_would_be_said_instead():
    """Two networks that read only "a": one takes a ram for a sheep and a violin for a guitar, one does nothing."""
    tokenizer = toybox_tokenizer()
    shown = ["ram", "violin", "sheep", "guitar", "owl"]  # "a owl" cannot be said
    scenes = [Scene([Toy(name)]) for name in shown]
    clips = [SimpleNamespace(frames=torch.tensor([k]), scene=scene) for k, scene in enumerate(scenes)]
    twins = {"ram": "lamb", "violin": "guitar", "sheep": "ram", "guitar": "fiddle", "owl": "parrot"}

    def network(frames, tokens, more=1.0986):
        assert tokenizer.convert_ids_to_tokens(tokens[0]) == ["[CLS]", "a"] and not torch.is_grad_enabled()
        logits = torch.zeros(len(frames), 2, len(tokenizer))
        for row, k in enumerate(frames[:, 0]):
            logits[row, -1, tokenizer.convert_tokens_to_ids(twins[shown[k]])] = more
        return SimpleNamespace(logits=logits)

    table, right, names = lookalikes.wrong_shares(network, tokenizer, clips)
    assert sorted(names) == sorted(shown[:4]) and [names[k] for k in right] == shown[:4]
    ram, sheep, violin, guitar = map(names.index, ("ram", "sheep", "violin", "guitar"))
    shares = table.exp()
    assert shares[0, ram].isnan() and shares[0].nansum() == pytest.approx(1)
    assert shares[0, sheep] == pytest.approx(4 / 7, abs=1e-4)  # lamb 3, sheep 1; violin, fiddle; guitar
    found = lookalikes.similarities(table, right)
    assert found.diagonal().isnan().all() and torch.equal(found.nan_to_num(), found.nan_to_num().T)
    assert min(found[ram, sheep], found[violin, guitar]) > 0.5 > 0 > found[ram, violin]
    assert lookalikes.agreement(table, table, right) == pytest.approx(1)
    even, *_ = lookalikes.wrong_shares(lambda *given: network(*given, more=0.0), tokenizer, clips)
    alike = lookalikes.similarities(even, right).nan_to_num()
    assert alike.abs().max() < 0.3  # of words alone: nothing is alike
    assert lookalikes.agreement(table, -table, right) == pytest.approx(-1)


def test_what_a_teacher_is_worth():
    def row(name, seed, score):
        return {"name": name, "against": name, "seed": seed, report.FACTS: score}

    alone = {"100": 0.2, "1,000": 0.4, "10,000": 0.8}
    rows = [row(f"{count} captioned: captions alone", 0, score) for count, score in alone.items()]
    assert report.headline(rows) == ""
    for seed, score in enumerate((0.5, 0.6, 0.7)):
        rows.append(row("300 captioned: teacher", seed, score))
    # 0.6 lies half-way between 0.4 and 0.8, so at half-way between 3 and 4 in the exponent of ten.
    assert report.worth(rows) == pytest.approx([10**3.5, 10**3.25, 10**3.75])
    assert "worth 3,200 captioned ones (1,800 to 5,600 by seed)" in report.headline(rows)
    rows.append(row("300 captioned: teacher", 3, 0.9))
    assert math.isnan(report.worth(rows)[2])


def test_what_is_written_about_the_stored_runs_is_so():
    """experiments/README.md and notebook 03: the gain falls with captions, and both controls gain nothing."""
    gained = report.differences(report.load(Path(__file__).parents[1] / "data" / "experiments", "labels"))
    means = [sum(gained[f"{n} captioned: teacher"]) / len(gained[f"{n} captioned: teacher"]) for n in NUMBERS]
    assert means == sorted(means, reverse=True) and means[0] > 0.4 and means[-1] < 0.01
    assert report.interval(gained["300 captioned: teacher"])[0] > 0.2
    for control in ("teacher, these clips", "self-training"):
        assert report.interval(gained[f"300 captioned: {control}"])[1] < 0.01


def test_a_run_that_ended_early_keeps_its_best():
    def row(kind, seed, **facts):
        found = {f"val/facts_precision@{step[1:]}": value for step, value in facts.items()}
        return {"name": f"100 captioned: {kind}", "against": "", "seed": seed, **found}

    first = row("captions alone", 0, _10=0.5, _20=0.3, _30=0.6)
    assert report.best_so_far(first) == {10: 0.5, 20: 0.5, 30: 0.6}
    rows = [{"name": "teacher", "against": "", "seed": 0, report.FACTS: 0.9}, first]
    rows += [row("captions alone", 1, _10=0.1), row("teacher", 0, _10=0.7)]
    (axes,) = report.by_steps(rows).axes
    alone = axes.get_lines()[0].get_xydata()
    assert alone.flatten() == pytest.approx([10, 0.3, 20, 0.3, 30, 0.35])


def test_real_size_measures_small_networks_alike(monkeypatch):
    monkeypatch.setattr(real_size, "memory", lambda *_: 1.0)  # the benchmarks' tests measure it
    config = git_config(max_position_embeddings=24)
    student = {"embed_dim": 32, "heads": 2, "layers": 1, "unk_token_id": 1}
    models = real_size.networks(config, 10, tiny.backbone(), **student)
    result = real_size.run(models, [1, 2], 1, 32)
    assert [(row["batch"], row["beams"]) for row in result["rows"]] == [(1, 1), (1, 4), (2, 1), (2, 4)]
    assert result["weights"]["student"]["megabytes"] > 0
    for row in result["rows"]:
        speed = row["images_per_second"]
        assert row["faster"] == pytest.approx(speed["student"] / speed["teacher"])
    lines = real_size.table(result).splitlines()
    assert lines[2].startswith("| parameters, millions |") and len(lines) == 4 + 2 * 4
    for model in models.values():  # as long as they may be, so that both do the same work
        found = real_size.caption(model, torch.randn(2, 3, 32, 32), 1)
        assert found.shape[-1] == 21 and not (found == config.eos_token_id).any()


def test_a_table_keeps_its_numbers(tmp_path):
    rows = [{"name": "a, b", "against": "", "seed": 0, "x": 0.123456789}]
    rows.append({"name": "c", "against": "a, b", "y": math.nan})
    report.write_rows(tmp_path / "t.csv", rows)
    read = report.read_rows(tmp_path / "t.csv")
    assert read[0] == {"name": "a, b", "against": "", "seed": 0, "x": 0.123457}
    assert read[1]["name"] == "c" and math.isnan(read[1]["y"]) and "x" not in read[1]
    with pytest.raises(FileNotFoundError, match="no table"):
        report.table(tmp_path, "losses")


def test_the_student_of_a_run_has_the_pretrained_backbone(bench):
    with torch.no_grad():
        next(bench.backbone.parameters()).add_(1)
    weights = bench.new_student({}).backbone.state_dict()
    torch.testing.assert_close(bench.known, dict(weights), atol=0, rtol=0)


def test_calibration_of_words_and_captions(tmp_path):
    teacher = tiny.teacher()
    pool = Clips("test", 4, frames=tiny.FRAMES, image_size=tiny.SIDE)
    clips = [pool.clip(number, masks=False) for number in range(4)]
    rows, seen = calibration.run({"teacher": teacher}, teacher.tokenizer, clips, clips)
    tokens = sum(len(teacher.tokenizer(clip.captions[0])["input_ids"]) - 1 for clip in clips)
    assert [(row["kind"][:18], row["number"]) for row in rows] == [
        ("words", tokens),
        ("words, temperature", tokens),
        ("captions", 4),
    ]
    assert all(row["error_low"] <= row["error"] <= row["error_high"] for row in rows)
    assert len(calibration.table(rows)) == 2 + len(rows)
    calibration.draw(rows, seen, tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"calibration.png", "coverage.png"}
    assert calibration.risk_at([0.9, 0.8, 0.7, 0.6, 0.5], [1, 1, 0, 1, 0]) == 0.25


def test_the_fitted_temperature_is_that_of_the_words():
    words = torch.distributions.Categorical(torch.tensor([0.7, 0.2, 0.1])).sample((3000,))
    logits = 2 * torch.tensor([0.7, 0.2, 0.1]).log().expand(1, 3001, 3)  # twice as sure as it may be
    clip = SimpleNamespace(frames=torch.zeros(1), captions=[""])
    found = calibration.best_temperature(
        lambda *_: SimpleNamespace(logits=logits), lambda _: {"input_ids": [0, *words.tolist()]}, [clip]
    )
    assert found == pytest.approx(2, abs=0.15)


def test_words_are_about_the_thing_that_they_name_or_that_moves():
    scene = SimpleNamespace(toys=[SimpleNamespace(names={"object": ("cat",), "colour": ("red",)})])
    found = causal.named(["a", "red", "cat", "jumps"], scene)
    assert found == {1: ("colour", 0), 2: ("object", 0), 3: ("motion", 0)}


def test_cuts_are_apart_and_of_one_size():
    pool = Clips("test", 30, frames=tiny.FRAMES, objects=2)
    clip = next(pool.clip(number) for number in range(30))
    cuts = causal.cuts_of(clip, (8, 8), torch.Generator().manual_seed(0))
    for k in range(2):
        own, other, rest = (cuts.get((cut, k)) for cut in causal.CUTS)
        assert own.any() and not (own & rest).any() and own.sum() == rest.sum()
        assert other is None or not (own & other).any()


def test_what_words_depend_on(tmp_path):
    networks = {"teacher": tiny.git().eval(), "student": tiny.student().eval()}
    pool = Clips("test", 4, frames=tiny.FRAMES, image_size=tiny.SIDE, objects=2)
    clips = [pool.clip(number) for number in range(4)]
    cuts, heads, deleted = causal.run(networks, toybox_tokenizer(), clips, explained=1)
    assert {row["network"] for row in cuts} == set(networks) and {"object"} <= {row["kind"] for row in cuts}
    assert len(causal.table(cuts)) == 2 + len({(row["network"], row["kind"]) for row in cuts})
    assert len(causal.table(deleted, "explanation", ("network",))) == 4
    assert causal.head_map(heads, "teacher").alt.startswith("Effects: Teacher")
