"""The trainers: what trains, what does not, what a run leaves behind."""

import json
from contextlib import nullcontext

import pytest
import pytorch_lightning as pl
import tiny
import torch

from gitdistill.decoding import beam
from gitdistill.distillation import checks, losses, scoring, targets, terms
from gitdistill.distillation.cache import TeacherCache
from gitdistill.distillation.caption_trainer import CaptionTrainer
from gitdistill.distillation.captions import CaptionFilter
from gitdistill.distillation.checks import LossWatch, check_finite, check_gradients
from gitdistill.distillation.targets import TargetSpec
from gitdistill.distillation.trainer import DistillationTrainer
from gitdistill.models import precision
from gitdistill.models.student import StudentCandidateV1
from gitdistill.models.teacher import GenerativeImageTextTeacher
from gitdistill.use.captioner import Student
from gitdistill.use.export import as_stored, export_run
from gitdistill.world.module import ToyboxData, toybox_tokenizer

TERMS = ("cross_entropy", "kl", "features", "hidden", "visual", "attention", "relations", "sequence")
ALL = dict.fromkeys(TERMS, 1.0)
NONE = dict.fromkeys(TERMS, 0.0)
QUIET = dict.fromkeys(
    ("logger", "enable_progress_bar", "enable_model_summary", "enable_checkpointing"), False
)


@pytest.fixture
def data():
    sizes = {"train_clips": 8, "val_clips": 4, "test_clips": 4, "unseen_clips": 4, "batch_size": 4}
    return ToyboxData(**sizes, captions_per_clip=2, num_frames=tiny.FRAMES, image_size=tiny.SIDE)


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
    terms = module.loss_terms(batch)
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
    values = module.loss_terms(batch)
    assert list(values) == [term] and values[term] > 0
    check_gradients(module, batch)
    values[term].backward()
    assert all(p.grad is not None and p.grad.any() for p in module.student.backbone.net.stages_2.parameters())


def test_terms_are_the_losses_times_their_weights(batch):
    teacher, student = tiny.teacher(), tiny.student()
    module = silent(
        DistillationTrainer(teacher, student, cross_entropy=0.5, kl=2.0, features=0.0, temperature=3.0)
    )
    module.eval()
    terms, tokens = module.loss_terms(batch), batch["tokens"]
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
    module = DistillationTrainer(teacher, student, **ALL | {"sequence": 0})
    assert {p.device.type for p in module.projectors.parameters()} == {places[1]}
    assert next(teacher.parameters()).device.type == places[0]
    if "cpu" not in places:
        batch = {"frames": torch.zeros(2, 1, 3, 32, 32, dtype=torch.uint8, device="meta")}
        module.outputs(batch | {"tokens": torch.zeros(4, 6, dtype=torch.long, device="meta")})


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
    with pytest.raises(ValueError, match="vocab_size is .* 7"):
        DistillationTrainer(tiny.teacher(), student)


def test_other_special_tokens_are_refused():
    """As of a teacher whose captions start with 101, and a student built with the default special tokens."""
    with pytest.raises(ValueError, match="bos_token_id is 2 .* 4"):
        DistillationTrainer(tiny.teacher(), tiny.student(bos_token_id=4))


def test_an_interrupt_while_the_encoder_is_frozen_thaws_it(data, tmp_path):
    class Interrupt(pl.Callback):
        def on_before_zero_grad(self, trainer, module, optimizer):
            if trainer.global_step == 1:
                raise KeyboardInterrupt

    student = tiny.student()
    module = CaptionTrainer(student, toybox_tokenizer(), freeze=3)
    trainer = pl.Trainer(
        accelerator="cpu", max_steps=4, callbacks=[Interrupt()], limit_val_batches=0, **QUIET
    )
    with pytest.raises((KeyboardInterrupt, SystemExit)):
        trainer.fit(module, data)
    assert all(p.requires_grad for p in student.parameters())


def test_a_teachers_path_and_a_loaded_student_will_do(tmp_path):
    tiny.teacher().model.save_pretrained(tmp_path)
    tiny.teacher().tokenizer.save_pretrained(tmp_path)
    loaded = Student(tiny.student(), toybox_tokenizer())
    module = DistillationTrainer(tmp_path, loaded)
    assert module.student is loaded.model and module.teacher.vocab_size == loaded.model.vocab_size


@pytest.mark.parametrize("term", ["cross_entropy", "kl", "hidden", "attention", "relations", "sequence"])
def test_padding_changes_no_loss(batch, term):
    weights = {**NONE, term: 1.0, "teacher_captions": 1}
    module = silent(DistillationTrainer(tiny.teacher(), tiny.student(), **weights, max_length=8).eval())
    before = module.loss_terms(batch)[term]
    longer = {**batch, "tokens": torch.nn.functional.pad(batch["tokens"], (0, 4))}
    torch.testing.assert_close(module.loss_terms(longer)[term], before)


@pytest.mark.parametrize("term", ["features", "hidden", "visual", "attention", "relations"])
def test_a_detached_activation_is_found_before_training(batch, data, tmp_path, monkeypatch, term):
    def detached(model, names, detach):
        return record(model, names)

    record = targets.record
    module = DistillationTrainer(tiny.teacher(), tiny.student(), **{**NONE, "cross_entropy": 1.0, term: 1.0})
    monkeypatch.setattr(targets, "record", detached)
    with pytest.raises(ValueError, match=f"^the loss {term} does not reach the student's backbone"):
        fit(module, data, tmp_path, max_steps=1)


def test_a_loss_that_misses_the_backbone_is_named(batch):
    student = tiny.student()
    memory = student.encode
    student.encode = lambda frames: (lambda maps, x: (maps, x.detach()))(*memory(frames))
    module = silent(DistillationTrainer(tiny.teacher(), student, features=0))
    with pytest.raises(ValueError, match="the loss cross_entropy does not reach the student's backbone"):
        check_gradients(module, batch)


def test_looking_at_gradients_leaves_no_trace(batch):
    module = silent(
        DistillationTrainer(tiny.teacher(), tiny.student(dropout=0.5), **ALL, max_length=8)
    ).train()
    module.model.backbone.requires_grad_(False).eval()
    before = {name: value.clone() for name, value in module.state_dict().items()}
    random = torch.get_rng_state()
    check_gradients(module, batch)
    assert torch.equal(random, torch.get_rng_state())
    assert all(p.grad is None for p in module.parameters()) and not module.teacher.training
    assert not any(p.requires_grad for p in module.model.backbone.parameters())
    assert not module.model.backbone.training and module.model.mixer.training
    torch.testing.assert_close(module.state_dict(), before)


class Times(CaptionTrainer):
    """Multiplies the loss of step 1."""

    factor = float("nan")

    def loss_terms(self, batch):
        terms = super().loss_terms(batch)
        return {**terms, "odd": terms["cross_entropy"] * (self.factor if self.global_step == 1 else 0)}


def test_a_loss_that_is_not_finite_stops_with_the_batch_named(data, tmp_path):
    with pytest.raises(
        ValueError, match=r"^the loss is not finite in step 1, .*clips \[\d+,.*odd nan\).*lower lr"
    ) as error:
        fit(Times(tiny.student(), toybox_tokenizer()), data, tmp_path, max_steps=3)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("finite", [True, False])
def test_a_loss_that_is_not_finite_elsewhere_stops_all_ranks(monkeypatch, finite):
    monkeypatch.setattr(checks, "gather", lambda value: [value, finite])
    with nullcontext() if finite else pytest.raises(ValueError, match="^the loss of another rank"):
        check_finite(torch.tensor(1.0), {}, "step 0", None)


def test_a_large_loss_does_not_stop(data, tmp_path):
    """A loss may grow, as long as it is finite."""
    module = Times(tiny.student(), toybox_tokenizer())
    module.factor = 1000.0
    assert fit(module, data, tmp_path, max_steps=3).global_step == 3


class Accelerator(LossWatch):
    """Pretends that the loss is on an accelerator, where no step waits for its own loss."""

    def check(self, loss, *step):
        class Far(torch.Tensor):
            device = torch.device("cuda")

        super().check(loss.as_subclass(Far), *step)


@pytest.mark.parametrize("steps, log_every_n_steps", [(2, 50), (3, 0)])
def test_an_accelerator_names_the_step_and_the_clips_one_step_later(data, tmp_path, steps, log_every_n_steps):
    seen = []

    class Watch(pl.Callback):
        def on_train_batch_start(self, trainer, module, batch, index):
            seen.append(batch["clip"].tolist())

    module = Times(tiny.student(), toybox_tokenizer())
    module.loss_watch = Accelerator()
    trainer = pl.Trainer(
        accelerator="cpu",
        max_steps=steps,
        callbacks=[Watch()],
        limit_val_batches=0,
        log_every_n_steps=log_every_n_steps,
        **QUIET,
    )
    with pytest.raises(ValueError) as error:
        trainer.fit(module, data)
    assert "in step 1," in str(error.value) and str(seen[1]) in str(error.value)
    assert len(seen) == steps  # at the end of the fit, or in the step after


def test_pseudo_captions_join_the_batch(batch):
    module = silent(
        DistillationTrainer(tiny.teacher(), tiny.student(), features=0, sequence=0.5, max_length=8)
    )
    module.eval()
    own = {**batch, "tokens": batch["tokens"].clone()}
    outputs = module.outputs(batch)
    assert outputs.num_captions == 2 and torch.equal(batch["tokens"], own["tokens"])
    joined, pseudo = {"tokens": outputs.tokens.flatten(0, 1)}, outputs.tokens[:, 2]
    expected = beam(module.teacher, batch["frames"], beams=4, max_length=8).tokens[:, 0]
    assert torch.equal(pseudo[:, : expected.shape[1]], expected) and not pseudo[:, expected.shape[1] :].any()
    values = module.loss_terms(batch)
    logits = module.student(batch["frames"], expected).logits
    torch.testing.assert_close(values["sequence"], 0.5 * losses.cross_entropy(logits, expected, 0))
    alone = silent(DistillationTrainer(tiny.teacher(), module.student, features=0).eval()).loss_terms(batch)
    torch.testing.assert_close(values["cross_entropy"], alone["cross_entropy"])
    ours, theirs = (m(batch["frames"], joined["tokens"]).logits for m in (module.student, module.teacher))
    torch.testing.assert_close(values["kl"], losses.kl(ours, theirs, joined["tokens"], 0))


def test_clips_without_captions_learn_from_the_teacher_alone():
    sizes = {"train_clips": 4, "batch_size": 4, "captions_per_clip": 2, "num_frames": tiny.FRAMES}
    data = ToyboxData(**sizes, image_size=tiny.SIDE, labelled=1)
    (batch,) = data.train_dataloader()
    options = {"features": 0, "sequence": 1.0, "max_length": 8}
    module = silent(DistillationTrainer(tiny.teacher(), tiny.student(), **options).eval())
    labelled = batch["clip"] == 0
    one = {"frames": batch["frames"][labelled], "tokens": batch["tokens"].unflatten(0, (4, 2))[labelled][0]}
    plain = silent(DistillationTrainer(tiny.teacher(), module.student, kl=0, features=0).eval())
    found = module.loss_terms(batch)
    torch.testing.assert_close(found["cross_entropy"], plain.loss_terms(one)["cross_entropy"] / 4)
    nothing = {**batch, "tokens": torch.full((8, 1), 2)}
    found = module.loss_terms(nothing)
    assert found["cross_entropy"] == 0 and found["sequence"] > 0 and found["kl"] > 0
    check_gradients(module, nothing)
    # the filter: captions that do not pass cost nothing
    strict = CaptionFilter(confidence=1.0)
    module = silent(DistillationTrainer(tiny.teacher(), module.student, **options, caption_filter=strict))
    assert sum(module.loss_terms(nothing).values()) == 0


def test_a_student_with_a_vocab_subset_learns_in_its_own_numbers_and_captions_in_the_tokenizers(
    batch, data, tmp_path
):
    keep = batch["tokens"].unique().tolist()
    student = tiny.student(vocab_subset=keep)
    assert len(student.words.weight) < student.vocab_size
    module = silent(DistillationTrainer(tiny.teacher(), student, features=0, label_smoothing=0.1).eval())
    found, tokens = module.loss_terms(batch), batch["tokens"]
    own, pad = student.subset_index[tokens], student.subset_pad_token_id
    logits = student(batch["frames"], tokens).subset_logits
    torch.testing.assert_close(found["cross_entropy"], losses.cross_entropy(logits, own, pad, 0.1))
    p = module.teacher(batch["frames"], tokens).logits.softmax(-1)
    q = p[..., student.vocab_subset]
    q[..., student.subset_unk_token_id] += 1 - q.sum(-1)
    torch.testing.assert_close(found["kl"], losses.kl(logits, q.log(), own, pad), rtol=1e-4, atol=1e-5)
    check_gradients(module, batch)
    del module.log, module.log_dict  # the class's own again
    fit(module, data, tmp_path, max_steps=1)


def test_a_fit_without_an_end_is_refused(data):
    module = DistillationTrainer(tiny.teacher(), tiny.student())
    with pytest.raises(ValueError, match="give the trainer max_steps or max_epochs"):
        pl.Trainer(accelerator="cpu", max_epochs=-1, max_time="00:00:01:00", **QUIET).fit(module, data)


def test_sequence_needs_captions_of_the_teacher():
    with pytest.raises(ValueError, match="teacher_captions must be at least 1$"):
        DistillationTrainer(tiny.teacher(), tiny.student(), sequence=1.0, teacher_captions=0)


def test_an_unknown_feature_path_is_named():
    with pytest.raises(KeyError, match="memory_nrom; did you mean memory_norm"):
        DistillationTrainer(tiny.teacher(), tiny.student(), feature_pairs={"memory_nrom": "model.layers.0"})


def test_features_of_the_image_encoders_can_be_paired(batch):
    pairs = {"backbone.net.stages_2": "model.image_encoder", "mixer.0": "model.layers.0"}
    module = silent(DistillationTrainer(tiny.teacher(), tiny.student(), feature_pairs=pairs))
    assert module.loss_terms(batch)["features"].item() > 0
    assert set(module.projectors) == {"backbone/net/stages_2", "mixer/0"}


def test_stages_are_paired_by_depth_and_grid(batch):
    module = silent(DistillationTrainer(tiny.teacher(), tiny.student(), feature_pairs="stages"))
    assert {
        pair.student: pair.teacher for pair in module.pairs
    } == {  # the first stage's 8 x 8 is too fine for 2 x 2 patches
        "backbone.net.stages_1": "model.image_encoder.layers.0",
        "backbone.net.stages_2": "model.image_encoder.layers.1",
    }
    check_gradients(module, batch)
    with pytest.raises(
        ValueError, match="^feature_pairs is a dict of module paths or \"stages\", not 'all'$"
    ):
        DistillationTrainer(tiny.teacher(), tiny.student(), feature_pairs="all")


def test_features_can_be_compared_by_their_cosine(batch):
    torch.manual_seed(0)
    module = silent(DistillationTrainer(tiny.teacher(), tiny.student(), **{**NONE, "features": 1.0}).eval())
    squares = module.loss_terms(batch)["features"]
    torch.manual_seed(0)
    options = {**NONE, "features": 1.0, "feature_kind": "cosine"}
    module = silent(DistillationTrainer(tiny.teacher(), tiny.student(), **options).eval())
    assert abs(module.loss_terms(batch)["features"] - squares) > 1e-3


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


def test_ranks_score_clips_without_numbers_and_one_may_have_none(data, monkeypatch):
    batch = next(iter(data.val_dataloader()))
    del batch["clip"]
    student, parts = tiny.student().eval(), []
    for rank, batches in enumerate((2, 1, 0)):
        monkeypatch.setattr(scoring, "rank_and_world", lambda rank=rank: (rank, 3))
        mine = scoring.Predictions()
        for _ in range(batches):
            mine.add("val", student, batch, toybox_tokenizer(), max_length=8)
        parts.append(mine.splits)
    monkeypatch.setattr(scoring, "gather", lambda mine: parts)  # as the last rank, which has none
    counts = []
    found = mine.scores(lambda captions, scenes: counts.append(len(captions)) or {"true": 1.0})
    assert counts == [12] and found["val"]["true"] == 1.0 and found["val"]["cross_entropy"] > 0


@pytest.mark.parametrize("subset", [False, True])
def test_a_batch_is_encoded_once_and_scored_as_by_the_loss(data, subset):
    batch = next(iter(data.val_dataloader()))
    student = tiny.student(vocab_subset=batch["tokens"].unique().tolist() if subset else None).eval()
    encoded = []
    student.backbone.register_forward_hook(lambda *_: encoded.append(1))
    mine = scoring.Predictions()
    with torch.no_grad():
        mine.add("val", student, batch, toybox_tokenizer(), max_length=8)
        assert len(encoded) == 1
        output = student(batch["frames"], batch["tokens"])
    tokens, pad = terms.to_vocab_subset(student, batch["tokens"])
    expected = losses.cross_entropy(output.subset_logits, tokens, pad).item()
    assert mine.scores()["val"]["cross_entropy"] == pytest.approx(expected, rel=1e-5)
    captions = student.caption(batch["frames"], toybox_tokenizer(), max_length=8)
    assert [caption for caption, *_ in mine.splits["val"].values()] == captions


class Loaders(pl.LightningDataModule):
    """More loaders than anybody has named."""

    def __init__(self, data):
        super().__init__()
        self.train_dataloader = data.train_dataloader
        self.val_dataloader = lambda: [data.val_dataloader(), data.val_dataloader()]
        self.test_dataloader = lambda: [*data.test_dataloader(), data.val_dataloader()]


def test_any_number_of_loaders_is_scored(data, tmp_path):
    module = CaptionTrainer(tiny.student(), toybox_tokenizer(), warmup=1, max_length=8)
    trainer = fit(module, Loaders(data), tmp_path, max_epochs=1)
    assert {"val/cider", "val_1/cider"} <= trainer.callback_metrics.keys()
    trainer.test(module, Loaders(data), verbose=False)
    assert {"test/cider", "test_1/cider", "test_2/cider"} <= trainer.callback_metrics.keys()


def batch_frames(data):
    return next(iter(data.val_dataloader()))["frames"]


def test_a_resumed_run_ends_where_an_uninterrupted_one_does(data, tmp_path):
    def end(folder, **stops):
        module = CaptionTrainer(tiny.student(), toybox_tokenizer(), warmup=2)
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
                module = CaptionTrainer(tiny.student(seed=9), toybox_tokenizer(), warmup=2)
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
    fit(
        CaptionTrainer(student, toybox_tokenizer(), warmup=1, freeze=2),
        data,
        tmp_path,
        max_steps=steps,
        limit_val_batches=0,
    )
    assert not any(p.requires_grad for p in mine.parameters())
    assert all(p.requires_grad for p in student.backbone.net.stages_2.parameters())
    torch.testing.assert_close(dict(mine.named_parameters()), before, rtol=0, atol=0)


def test_the_teacher_can_compute_in_bfloat16(batch):
    terms = [
        silent(
            DistillationTrainer(tiny.teacher(), tiny.student().eval(), features=0, teacher_dtype=dtype)
        ).loss_terms(batch)
        for dtype in ("float32", "bfloat16")
    ]
    torch.testing.assert_close(terms[1]["cross_entropy"], terms[0]["cross_entropy"])
    assert terms[1]["kl"] != terms[0]["kl"] and terms[1]["kl"].dtype == torch.float32
    torch.testing.assert_close(terms[1]["kl"], terms[0]["kl"], rtol=0.05, atol=0.01)


def test_an_unknown_precision_of_the_teacher_is_refused_at_once(tmp_path):
    with pytest.raises(ValueError, match="^dtype must be .* auto, not 'bf16'$"):
        DistillationTrainer(tiny.teacher(), tiny.student(), teacher_dtype="bf16")
    with pytest.raises(ValueError, match="^dtype must be"):
        TeacherCache.build(tmp_path / "new", None, None, TargetSpec(), teacher_dtype="bf16")


@pytest.mark.parametrize(
    ("level", "lead", "expected"),
    [(100, 0.2, torch.float32), (100, 1e-3, torch.bfloat16), (1, 0.2, torch.bfloat16)],
)
def test_auto_takes_the_faster_precision_only_where_the_teacher_says_the_same(
    monkeypatch, tmp_path, level, lead, expected
):
    """One word leads another; at a hundred bfloat16 rounds that away, which matters unless both are as likely."""
    monkeypatch.setattr(precision, "fast_dtype", lambda device: "bfloat16")
    teacher = tiny.teacher()
    for part in (teacher.model.head.weight, teacher.model.head.bias):
        part.data.zero_()
    teacher.model.head.bias.data[[5, 7]] = torch.tensor([level, level + lead])
    teacher.model.save_pretrained(tmp_path)
    kinds = {"auto": expected, "bfloat16": torch.bfloat16, "float32": torch.float32}
    for name, kind in kinds.items():
        loaded = GenerativeImageTextTeacher.from_pretrained(tmp_path, toybox_tokenizer(), dtype=name)
        assert {p.dtype for p in loaded.parameters()} == {kind}, name
        module = DistillationTrainer(teacher, tiny.student(), teacher_dtype=name)
        assert module._precision == kind, name


@pytest.mark.parametrize(("slow", "expected"), [("bfloat16", "float32"), ("float32", "bfloat16")])
def test_auto_takes_the_precision_that_multiplies_faster(monkeypatch, slow, expected, data, tmp_path):
    """With a clock that runs faster for one of them."""
    kinds = iter(["float32"] * 10 + ["bfloat16"] * 10)
    clock = [0.0]

    def tick():
        clock[0] += 2.0 if next(kinds) == slow else 1.0
        return clock[0]

    precision.fast_dtype.cache_clear()
    monkeypatch.setattr(precision, "perf_counter", tick)
    module = DistillationTrainer(tiny.teacher(), tiny.student(), teacher_dtype="auto", max_length=8)
    assert module._precision == getattr(torch, expected)
    pool = ToyboxData(
        train_clips=4, batch_size=4, num_frames=tiny.FRAMES, image_size=tiny.SIDE, fresh_captions=False
    )
    options = {"teacher_dtype": "auto", "say": lambda _: None}
    cache = TeacherCache.build(tmp_path / "cache", tiny.teacher(), pool, TargetSpec(), **options)
    assert cache.metadata["teacher_dtype"] == expected
    other = {"float32": "bfloat16", "bfloat16": "float32"}[expected]
    monkeypatch.setattr(precision, "fast_dtype", lambda device: other)  # another machine takes what is there
    TeacherCache.open(tmp_path / "cache", tiny.teacher(), pool, TargetSpec(), "auto")
    next((tmp_path / "cache").glob("*.safetensors")).unlink()  # unfinished
    cache = TeacherCache.build(tmp_path / "cache", tiny.teacher(), pool, TargetSpec(), **options)
    assert cache.metadata["teacher_dtype"] == expected
    with pytest.raises(ValueError, match="teacher_dtype is"):
        TeacherCache.open(tmp_path / "cache", tiny.teacher(), pool, TargetSpec(), other)
