"""The trainers: what trains, what does not, what a run leaves behind."""

import json
import math
from contextlib import nullcontext

import pytest
import pytorch_lightning as pl
import tiny
import torch

from gitdistill.decoding import beam
from gitdistill.distillation import distributed, losses
from gitdistill.distillation.cache import TeacherCache
from gitdistill.distillation.targets import CaptionFilter, TargetSpec, as_feature_grid
from gitdistill.distillation.trainer import Anneal, CaptionTrainer, DistillationTrainer
from gitdistill.models.student import StudentCandidateV1
from gitdistill.use.export import as_stored, export_run, training_log
from gitdistill.world.module import GlyphData

TERMS = ("cross_entropy", "kl", "features", "hidden", "visual", "attention", "relations", "sequence")
ALL = dict.fromkeys(TERMS, 1.0)
NONE = dict.fromkeys(TERMS, 0.0)
QUIET = dict.fromkeys(
    ("logger", "enable_progress_bar", "enable_model_summary", "enable_checkpointing"), False
)


@pytest.fixture
def data():
    sizes = {"train_clips": 8, "val_clips": 4, "test_clips": 4, "unseen_clips": 4, "batch_size": 4}
    return GlyphData(**sizes, captions_per_clip=2, num_frames=tiny.FRAMES, image_size=tiny.SIDE)


@pytest.fixture
def batch(data):
    return next(iter(data.train_dataloader()))


def fit(module, data, folder, **options):
    trainer = pl.Trainer(
        accelerator="cpu",
        default_root_dir=folder,
        logger=pl.loggers.CSVLogger(folder),
        callbacks=[pl.callbacks.ModelCheckpoint(folder / "checkpoints", save_last=True)],
        enable_progress_bar=False,
        enable_model_summary=False,
        log_every_n_steps=1,
        num_sanity_val_steps=0,
        **options,
    )
    trainer.fit(module, data)
    return trainer


def silent(module):
    """The module with logging switched off, for calls outside a Trainer."""
    module.log = module.log_dict = lambda *_, **__: None
    return module


def test_every_loss_reaches_all_of_the_student_and_nothing_of_the_teacher(batch):
    teacher, student = tiny.teacher(), tiny.student()
    module = silent(DistillationTrainer(teacher, student, **ALL, max_length=8))
    module.train()
    terms = module.losses(batch)
    assert set(terms) == set(ALL)
    sum(terms.values()).backward()
    # A key's bias shifts all scores of a row alike, which the softmax takes back: no gradient, by construction.
    idle = [
        name
        for name, parameter in module.named_parameters()
        if not name.endswith("key.bias") and (parameter.grad is None or not parameter.grad.any())
    ]
    assert idle == []
    assert all(parameter.grad is None for parameter in teacher.parameters())


@pytest.mark.parametrize("term", TERMS)
def test_each_loss_of_the_teacher_trains_the_backbone(batch, term):
    module = silent(DistillationTrainer(tiny.teacher(), tiny.student(), **{**NONE, term: 1.0}, max_length=8))
    values = module.losses(batch)
    assert list(values) == [term] and values[term] > 0
    module.check_gradients(batch)
    values[term].backward()
    assert all(p.grad is not None and p.grad.any() for p in module.student.backbone.net.stages_2.parameters())


def test_terms_are_the_losses_times_their_weights(batch):
    teacher, student = tiny.teacher(), tiny.student()
    module = silent(
        DistillationTrainer(teacher, student, cross_entropy=0.5, kl=2.0, features=0.0, temperature=3.0)
    )
    module.eval()
    terms, tokens = module.losses(batch), batch["tokens"]
    ours, theirs = (m(batch["frames"], tokens).logits for m in (student, teacher))
    assert set(terms) == {"cross_entropy", "kl"}
    torch.testing.assert_close(terms["cross_entropy"], 0.5 * losses.cross_entropy(ours, tokens, 0))
    torch.testing.assert_close(terms["kl"], 2 * losses.kl(ours, theirs, tokens, 0, 3.0))


def test_the_teacher_is_in_no_state_and_never_trains():
    teacher = tiny.teacher()
    module = DistillationTrainer(teacher, tiny.student(), **ALL)
    module.train()
    assert not any(m.training for m in teacher.modules())
    own = {id(p) for p in module.parameters()}
    assert not own & {id(p) for p in teacher.parameters()}
    names = {name.split(".")[0] for name in module.state_dict()}
    assert names == {"model", "projectors"}


@pytest.mark.parametrize("places", [("meta", "meta"), ("meta", "cpu"), ("cpu", "meta")])
def test_networks_on_any_device_can_be_paired(places, monkeypatch):
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: nullcontext())  # which "meta" has none of
    teacher, student = (net.to(place) for net, place in zip((tiny.teacher(), tiny.student()), places))
    module = DistillationTrainer(teacher, student, **ALL)
    assert {p.device.type for p in module.projectors.parameters()} == {places[1]}
    assert next(teacher.parameters()).device.type == places[0]
    if "cpu" not in places:
        batch = {"frames": torch.zeros(2, 1, 3, 32, 32, dtype=torch.uint8, device="meta")}
        module._ask(batch | {"tokens": torch.zeros(4, 6, dtype=torch.long, device="meta")})


def test_the_teacher_goes_back_to_where_it_was(data):
    class Elsewhere(pl.Callback):
        def on_train_batch_end(self, trainer, module, *_):
            module.teacher.to = lambda device: moves.append(device)

    moves, module = [], DistillationTrainer(tiny.teacher(), tiny.student())
    trainer = pl.Trainer(
        accelerator="cpu", max_steps=1, callbacks=[Elsewhere()], limit_val_batches=0, **QUIET
    )
    trainer.fit(module, data)
    assert moves == [torch.device("cpu")]


def test_another_vocabulary_is_refused():
    student = StudentCandidateV1(7, tiny.backbone(), embed_dim=32, heads=2)
    with pytest.raises(ValueError, match="vocabulary has 7 words and the teacher's"):
        DistillationTrainer(tiny.teacher(), student)


@pytest.mark.parametrize("term", ["cross_entropy", "kl", "hidden", "attention", "relations", "sequence"])
def test_padding_changes_no_loss(batch, term):
    weights = {**NONE, term: 1.0, "teacher_captions": 1}
    module = silent(DistillationTrainer(tiny.teacher(), tiny.student(), **weights, max_length=8).eval())
    before = module.losses(batch)[term]
    longer = {**batch, "tokens": torch.nn.functional.pad(batch["tokens"], (0, 4))}
    torch.testing.assert_close(module.losses(longer)[term], before)


@pytest.mark.parametrize("term", ["features", "hidden", "visual", "attention", "relations"])
def test_a_detached_activation_is_found_before_training(batch, data, tmp_path, monkeypatch, term):
    from gitdistill.distillation import trainer as module_under_test

    def detached(model, names, detach):
        return record(model, names)

    record = module_under_test.record
    module = DistillationTrainer(tiny.teacher(), tiny.student(), **{**NONE, "cross_entropy": 1.0, term: 1.0})
    monkeypatch.setattr(module_under_test, "record", detached)
    with pytest.raises(ValueError, match=f"^the loss {term} reaches no parameter of the student"):
        fit(module, data, tmp_path, max_steps=1)


def test_a_loss_that_misses_the_backbone_is_named(batch):
    student = tiny.student()
    memory = student.encode
    student.encode = lambda frames: (lambda maps, x: (maps, x.detach()))(*memory(frames))
    module = silent(DistillationTrainer(tiny.teacher(), student, features=0))
    with pytest.raises(ValueError, match="the loss cross_entropy reaches .*words.*, but not its backbone$"):
        module.check_gradients(batch)


def test_looking_at_gradients_leaves_no_trace(batch):
    module = silent(
        DistillationTrainer(tiny.teacher(), tiny.student(dropout=0.5), **ALL, max_length=8)
    ).train()
    module.model.backbone.requires_grad_(False).eval()
    before = {name: value.clone() for name, value in module.state_dict().items()}
    random = torch.get_rng_state()
    module.check_gradients(batch)
    assert torch.equal(random, torch.get_rng_state())
    assert all(p.grad is None for p in module.parameters()) and not module.teacher.training
    assert not any(p.requires_grad for p in module.model.backbone.parameters())
    assert not module.model.backbone.training and module.model.mixer.training
    torch.testing.assert_close(module.state_dict(), before)


class Times(CaptionTrainer):
    """Multiplies the loss of step 1."""

    factor = float("nan")

    def losses(self, batch):
        terms = super().losses(batch)
        return {**terms, "odd": terms["cross_entropy"] * (self.factor if self.global_step == 1 else 0)}


def test_a_loss_that_is_not_finite_stops_with_the_batch_named(data, tmp_path):
    with pytest.raises(
        ValueError, match=r"^the loss is nan \(.*odd nan\) in step 1, .*1, clips \[\d+,.*lower lr"
    ) as error:
        fit(Times(tiny.student()), data, tmp_path, max_steps=3)
    assert "\n" not in str(error.value)


def test_a_loss_that_is_not_finite_elsewhere_stops_all_processes(batch, monkeypatch):
    module = CaptionTrainer(tiny.student())
    monkeypatch.setattr(distributed, "rank_and_world", lambda: (0, 2))
    for there in (0.0, 1.0):
        monkeypatch.setattr(
            distributed.distributed, "all_reduce", lambda x, op, there=there: x.clamp_(min=there)
        )
        if there:
            with pytest.raises(ValueError, match="^the loss of another process is not finite in step 0,"):
                module.check_loss({}, 1.0, batch, 0)
        else:
            module.check_loss({}, 1.0, batch, 0)


def test_a_large_loss_does_not_stop(data, tmp_path):
    """A weight may grow: `Anneal`."""
    module = Times(tiny.student())
    module.factor = 1000.0
    assert fit(module, data, tmp_path, max_steps=3).global_step == 3


def test_a_gpu_is_waited_for_only_in_steps_that_are_logged(batch, monkeypatch):
    module, checked = silent(CaptionTrainer(tiny.student())), []
    module.trainer = pl.Trainer(accelerator="cpu", log_every_n_steps=4, **QUIET)
    monkeypatch.setattr(module, "losses", lambda batch: {"some": torch.zeros((), device="meta")})
    monkeypatch.setattr(torch.Tensor, "item", lambda self: 0.0)
    monkeypatch.setattr(module, "check_loss", lambda *arguments: checked.append(arguments[-1]))
    for index in range(9):
        module.training_step(batch, index)
    assert checked == [0, 4, 8]


def test_the_teachers_own_captions_join_the_batch(batch):
    module = silent(
        DistillationTrainer(tiny.teacher(), tiny.student(), features=0, sequence=0.5, max_length=8)
    )
    module.eval()
    own = {**batch, "tokens": batch["tokens"].clone()}
    joined, count = module._with_teacher_captions(batch)
    assert count == 2 and len(joined["tokens"]) == 4 * 3 and torch.equal(batch["tokens"], own["tokens"])
    said = joined["tokens"].unflatten(0, (4, 3))[:, 2]
    expected = beam(module.teacher, batch["frames"], beams=4, max_length=8).tokens[:, 0]
    assert torch.equal(said[:, : expected.shape[1]], expected) and not said[:, expected.shape[1] :].any()
    values = module.losses(batch)
    logits = module.student(batch["frames"], expected).logits
    torch.testing.assert_close(values["sequence"], 0.5 * losses.cross_entropy(logits, expected, 0))
    alone = silent(DistillationTrainer(tiny.teacher(), module.student, features=0).eval()).losses(batch)
    torch.testing.assert_close(values["cross_entropy"], alone["cross_entropy"])
    ours, theirs = (m(batch["frames"], joined["tokens"]).logits for m in (module.student, module.teacher))
    torch.testing.assert_close(values["kl"], losses.kl(ours, theirs, joined["tokens"], 0))


def test_clips_without_captions_learn_from_the_teacher_alone():
    sizes = {"train_clips": 4, "batch_size": 4, "captions_per_clip": 2, "num_frames": tiny.FRAMES}
    data = GlyphData(**sizes, image_size=tiny.SIDE, labelled=1)
    (batch,) = data.train_dataloader()
    options = {"features": 0, "sequence": 1.0, "max_length": 8}
    module = silent(DistillationTrainer(tiny.teacher(), tiny.student(), **options).eval())
    labelled = batch["clip"] == 0
    one = {"frames": batch["frames"][labelled], "tokens": batch["tokens"].unflatten(0, (4, 2))[labelled][0]}
    plain = silent(DistillationTrainer(tiny.teacher(), module.student, kl=0, features=0).eval())
    found = module.losses(batch)
    torch.testing.assert_close(found["cross_entropy"], plain.losses(one)["cross_entropy"] / 4)
    nothing = {**batch, "tokens": torch.full((8, 1), 2)}
    found = module.losses(nothing)
    assert found["cross_entropy"] == 0 and found["sequence"] > 0 and found["kl"] > 0
    module.check_gradients(nothing)
    # the filter: captions that do not pass cost nothing
    strict = CaptionFilter(confidence=1.0)
    module = silent(DistillationTrainer(tiny.teacher(), module.student, **options, caption_filter=strict))
    assert sum(module.losses(nothing).values()) == 0


def test_a_student_of_fewer_words_learns_and_speaks_in_the_tokenizers_numbers(batch, data, tmp_path):
    keep = batch["tokens"].unique().tolist()
    student = tiny.student(vocab_subset=keep)
    assert len(student.words.weight) < student.vocab_size
    module = silent(DistillationTrainer(tiny.teacher(), student, features=0, label_smoothing=0.1).eval())
    found, tokens = module.losses(batch), batch["tokens"]
    own, pad = student.subset_index[tokens], student.subset_pad_token_id
    logits = student(batch["frames"], tokens).subset_logits
    torch.testing.assert_close(found["cross_entropy"], losses.cross_entropy(logits, own, pad, 0.1))
    p = module.teacher(batch["frames"], tokens).logits.softmax(-1)
    q = p[..., student.vocab_subset]
    q[..., student.subset_unk_token_id] += 1 - q.sum(-1)
    torch.testing.assert_close(found["kl"], losses.kl(logits, q.log(), own, pad), rtol=1e-4, atol=1e-5)
    module.check_gradients(batch)
    del module.log, module.log_dict  # the class's own again
    fit(module, data, tmp_path, max_steps=1)


def test_weights_are_annealed_in_a_straight_line(data, tmp_path):
    module, seen = (
        DistillationTrainer(tiny.teacher(), tiny.student(), **NONE | {"kl": 2.0, "features": 8.0}),
        [],
    )
    module.training_step = lambda *_: seen.append(dict(module.weights))  # and learns nothing
    trainer = pl.Trainer(max_steps=8, max_epochs=4, accelerator="cpu", logger=False, enable_checkpointing=False,
                         enable_progress_bar=False, limit_val_batches=0,
                         callbacks=[Anneal({"features": 0.0}, start=0.25, end=0.75)])  # fmt: skip
    trainer.fit(module, data)
    assert [weights["features"] for weights in seen] == [8, 8, 8, 6, 4, 2, 0, 0]
    assert {weights["kl"] for weights in seen} == {2.0}


@pytest.mark.parametrize("part", ["cosine", "Anneal"])
def test_a_fit_without_an_end_is_refused(data, part):
    module = DistillationTrainer(tiny.teacher(), tiny.student())
    if part == "Anneal":
        module.configure_optimizers = lambda: torch.optim.SGD(module.parameters(), 0.1)
    options = {"max_epochs": -1, "max_time": "00:00:01:00", "callbacks": [Anneal({"kl": 0.0})], **QUIET}
    with pytest.raises(ValueError, match="give the trainer max_steps or max_epochs"):
        pl.Trainer(accelerator="cpu", **options).fit(module, data)


def test_annealing_a_loss_that_is_off_is_refused(data):
    module = DistillationTrainer(tiny.teacher(), tiny.student(), **NONE | {"kl": 1.0})
    trainer = pl.Trainer(accelerator="cpu", logger=False, callbacks=[Anneal({"hidden": 1.0})])
    with pytest.raises(ValueError, match="no loss to anneal: hidden; on are kl"):
        trainer.fit(module, data)
    with pytest.raises(ValueError, match="shares of the fit"):
        Anneal({"kl": 0.0}, start=0.5, end=0.5)


def test_sequence_needs_captions_of_the_teacher():
    with pytest.raises(ValueError, match="teacher_captions must be at least 1$"):
        DistillationTrainer(tiny.teacher(), tiny.student(), sequence=1.0, teacher_captions=0)


def test_an_unknown_feature_path_is_named():
    with pytest.raises(KeyError, match="memory_nrom; did you mean memory_norm"):
        DistillationTrainer(tiny.teacher(), tiny.student(), feature_pairs={"memory_nrom": "model.layers.0"})


def test_features_of_the_image_encoders_can_be_paired(batch):
    pairs = {"backbone.net.stages_2": "model.image_encoder", "mixer.0": "model.layers.0"}
    module = silent(DistillationTrainer(tiny.teacher(), tiny.student(), feature_pairs=pairs))
    assert module.losses(batch)["features"].item() > 0
    assert set(module.projectors) == {"backbone/net/stages_2", "mixer/0"}


def test_stages_are_paired_by_depth_and_grid(batch):
    module = silent(DistillationTrainer(tiny.teacher(), tiny.student(), feature_pairs="stages"))
    assert module.feature_pairs == {  # the first stage's 8 x 8 is too fine for 2 x 2 patches
        "backbone.net.stages_1": "model.image_encoder.layers.0",
        "backbone.net.stages_2": "model.image_encoder.layers.1",
    }
    module.check_gradients(batch)
    with pytest.raises(
        ValueError, match="^feature_pairs is a dict of module paths or \"stages\", not 'all'$"
    ):
        DistillationTrainer(tiny.teacher(), tiny.student(), feature_pairs="all")


def test_features_can_be_compared_by_their_cosine(batch):
    torch.manual_seed(0)
    module = silent(DistillationTrainer(tiny.teacher(), tiny.student(), **{**NONE, "features": 1.0}).eval())
    squares = module.losses(batch)["features"]
    module.feature_kind = "cosine"
    assert abs(module.losses(batch)["features"] - squares) > 1e-3


def test_cells_of_maps_frames_and_clips():
    maps = torch.arange(2 * 3 * 2 * 2.0).reshape(2, 3, 2, 2)  # two frames, three channels
    tokens = maps.flatten(2).transpose(1, 2)
    expected = maps.permute(0, 2, 3, 1)
    with_class = torch.cat([torch.full((2, 1, 3), -1.0), tokens], dim=1)
    for activation in (maps, tokens, with_class, with_class.reshape(1, 10, 3)):
        torch.testing.assert_close(as_feature_grid(activation, count=2), expected)
    with pytest.raises(ValueError, match="no square grid"):
        as_feature_grid(torch.zeros(1, 6, 3), count=1)


def test_a_run_scores_captions_and_ships_the_student_alone(data, tmp_path):
    module = DistillationTrainer(tiny.teacher(), tiny.student(), **ALL, warmup=1, max_length=8)
    trainer = fit(module, data, tmp_path, max_epochs=1)
    scores = {}
    for result in trainer.test(module, data, verbose=False):
        scores |= result
    for split in ("test", "unseen"):
        assert {f"{split}/{name}" for name in ("cider", "bleu4", "rouge_l", "all_right")} <= set(scores)
    checkpoint = torch.load(tmp_path / "checkpoints" / "last.ckpt", weights_only=True)
    assert not any("teacher" in name or "image_encoder" in name for name in checkpoint["state_dict"])

    export_run(module, trainer, scores, tmp_path / "student")
    shipped = StudentCandidateV1.from_pretrained(tmp_path / "student")
    frames = batch_frames(data)
    as_stored(module)
    module.student.eval()
    tokens = torch.tensor([[2, 5, 6]] * len(frames))
    torch.testing.assert_close(shipped(frames, tokens).logits, module.student(frames, tokens).logits)
    log = (tmp_path / "student" / "log.csv").read_text().splitlines()
    assert {"train/kl", "train/loss", "val/cider"} <= set(log[0].split(","))
    stored = json.loads((tmp_path / "student" / "scores.json").read_text())
    assert stored["steps"] == 2 and stored["test/cider"] == scores["test/cider"]


def test_scores_are_kept_when_the_log_cannot_be_read(tmp_path, monkeypatch):
    trainer = pl.Trainer(logger=pl.loggers.CSVLogger(tmp_path), accelerator="cpu")
    monkeypatch.setattr("gitdistill.use.export.training_log", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        export_run(CaptionTrainer(tiny.student()), trainer, {"test/cider": 1.5}, tmp_path / "end")
    assert json.loads((tmp_path / "end" / "scores.json").read_text())["test/cider"] == 1.5


def test_processes_score_clips_without_numbers_and_one_may_have_none(data, monkeypatch):
    batch = next(iter(data.val_dataloader()))
    del batch["clip"]
    parts, logged = [], {}
    for rank, batches in enumerate((2, 1, 0)):
        monkeypatch.setattr("gitdistill.distillation.trainer.rank_and_world", lambda rank=rank: (rank, 3))
        module = CaptionTrainer(tiny.student().eval(), max_length=8)
        for _ in range(batches):
            module.score_batch("val", batch)
        parts.append(module._heard)
    monkeypatch.setattr(
        "gitdistill.distillation.trainer.gather", lambda mine: parts
    )  # as the last one's, who heard nothing
    counts = []
    monkeypatch.setattr(
        "gitdistill.metrics.caption_scores", lambda said, _: counts.append(len(said)) or {"cider": 0}
    )
    module.log = lambda name, value, **_: logged.update({name: value})
    module.log_dict = lambda *_, **__: None
    module.log_scores()
    assert counts == [12] and "val/cross_entropy" in logged


def batch_frames(data):
    return next(iter(data.val_dataloader()))["frames"]


def test_a_resumed_run_ends_where_an_uninterrupted_one_does(data, tmp_path):
    def end(folder, **stops):
        module = CaptionTrainer(tiny.student(), warmup=2)
        for options in stops["runs"]:
            trainer = pl.Trainer(
                accelerator="cpu",
                default_root_dir=folder,
                logger=False,
                enable_progress_bar=False,
                enable_model_summary=False,
                limit_val_batches=0,
                max_epochs=2,
                enable_checkpointing=False,
                **options["trainer"],
            )
            trainer.fit(module, data, ckpt_path=options.get("resume"))
            if "save" in options:
                trainer.save_checkpoint(options["save"])
                module = CaptionTrainer(tiny.student(seed=9), warmup=2)
        return module.state_dict()

    class StopAfterOne(pl.Callback):
        def on_train_epoch_end(self, trainer, module):
            trainer.should_stop = True

    saved = tmp_path / "half.ckpt"
    straight = end(tmp_path, runs=[{"trainer": {}}])
    halves = [
        {"trainer": {"callbacks": [StopAfterOne()]}, "save": saved},
        {"trainer": {}, "resume": saved},
    ]
    for name, value in end(tmp_path, runs=halves).items():
        torch.testing.assert_close(value, straight[name], msg=name)


@pytest.mark.parametrize("options", [{"precision": "bf16-mixed"}, {"accumulate_grad_batches": 2}])
def test_mixed_precision_and_accumulated_gradients_train(data, tmp_path, options):
    torch.manual_seed(0)
    module = DistillationTrainer(tiny.teacher(), tiny.student(), **ALL, warmup=1, max_length=8)
    before, rates = tiny.student().state_dict(), []
    module.lr_scheduler_step = lambda schedule, _: (schedule.step(), rates.append(schedule.last_epoch))
    trainer = fit(module, data, tmp_path, max_epochs=2 if "precision" not in options else 1, **options)
    assert trainer.global_step == 2 and rates == [1, 2]
    for name, value in module.student.state_dict().items():
        assert value.dtype == before[name].dtype and torch.isfinite(value).all(), name
    assert not torch.equal(before["spatial"], module.student.spatial)


def test_a_frozen_backbone_stays_as_it_came_for_so_many_steps(data, tmp_path):
    start = tiny.student().state_dict()

    def moved(steps):
        torch.manual_seed(0)
        module = DistillationTrainer(tiny.teacher(), tiny.student(), **ALL, warmup=1, freeze=2)
        fit(module, data, tmp_path / str(steps), max_steps=steps, limit_val_batches=0)
        assert all(p.requires_grad for p in module.parameters())
        now = module.student.state_dict()
        return {name.split(".")[0] for name in start if not torch.equal(start[name], now[name])}

    assert "backbone" not in moved(2) and "mixer" in moved(2)
    assert "backbone" in moved(3)


@pytest.mark.parametrize("steps", [1, 3])
def test_what_was_frozen_before_stays_frozen(data, tmp_path, steps):
    student = tiny.student()
    mine = student.backbone.net.stages_1.requires_grad_(False)
    before = {name: value.clone() for name, value in mine.named_parameters()}
    fit(CaptionTrainer(student, warmup=1, freeze=2), data, tmp_path, max_steps=steps, limit_val_batches=0)
    assert not any(p.requires_grad for p in mine.parameters())
    assert all(p.requires_grad for p in student.backbone.net.stages_2.parameters())
    torch.testing.assert_close(dict(mine.named_parameters()), before, rtol=0, atol=0)


def test_the_teacher_can_answer_in_bfloat16(batch):
    terms = [
        silent(
            DistillationTrainer(tiny.teacher(), tiny.student().eval(), features=0, teacher_dtype=dtype)
        ).losses(batch)
        for dtype in ("float32", "bfloat16")
    ]
    torch.testing.assert_close(terms[1]["cross_entropy"], terms[0]["cross_entropy"])
    assert terms[1]["kl"] != terms[0]["kl"] and terms[1]["kl"].dtype == torch.float32
    torch.testing.assert_close(terms[1]["kl"], terms[0]["kl"], rtol=0.05, atol=0.01)


def test_an_unknown_precision_of_the_teacher_is_refused_at_once(tmp_path):
    with pytest.raises(ValueError, match="^teacher_dtype must be float32, bfloat16 or float16, not 'bf16'$"):
        DistillationTrainer(tiny.teacher(), tiny.student(), teacher_dtype="bf16")
    with pytest.raises(ValueError, match="^teacher_dtype must be"):
        TeacherCache.build(tmp_path / "new", None, None, TargetSpec(), teacher_dtype="bf16")


def test_the_optimiser_gives_matrices_to_muon_and_the_rest_to_adamw():
    from gitdistill.distillation.optim import split_parameters

    student = tiny.student()
    matrices, others = split_parameters(student)
    assert all(p.ndim == 2 for p in matrices)
    outside = {id(p) for p in others}
    for parameter in (student.words.weight, student.spatial, student.projection[0].bias):
        assert id(parameter) in outside
    assert len(matrices) + len(others) == len(list(student.parameters()))


def test_the_learning_rate_warms_up_and_follows_a_cosine():
    from gitdistill.distillation.optim import warmup_cosine

    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    schedule = warmup_cosine(optimizer, warmup=2, steps=6)
    rates = []
    for _ in range(7):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    cosine = [0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * k / 4)) for k in range(5)]
    assert rates == pytest.approx([0.5, 1.0, *cosine])


def test_the_log_of_a_continued_training_is_one(tmp_path):
    def version(number, *steps):
        folder = tmp_path / f"version_{number}"
        folder.mkdir()
        lines = [f"{step},{number}" for step in steps]
        (folder / "metrics.csv").write_text("\n".join(["step,version", *lines]) + "\n")

    version(8, 9, 19, 29)  # another training
    version(9, 9, 19, 29)  # interrupted after its checkpoint at step 20
    version(10, 29, 39)  # continued from there
    rows = [(int(row["step"]), int(row["version"])) for row in training_log(tmp_path, every=10)]
    assert rows == [(9, 9), (19, 9), (29, 10), (39, 10)]
