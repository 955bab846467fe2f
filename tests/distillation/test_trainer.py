"""The trainers: what trains, what does not, what a run leaves behind."""

import json
from contextlib import nullcontext

import pytest
import pytorch_lightning as pl
import tiny
import torch
from fits import ALL, NONE, TERMS, distillation, fit_quietly

from gitdistill.decoding import beam
from gitdistill.distillation import distributed, losses, targets
from gitdistill.distillation.caption_trainer import CaptionTrainer
from gitdistill.distillation.captions import CaptionFilter
from gitdistill.distillation.checks import LossWatch, check_finite, check_gradients
from gitdistill.distillation.trainer import DistillationTrainer
from gitdistill.models.student import StudentCandidateV1
from gitdistill.use.captioner import Student
from gitdistill.use.export import as_stored, export_run
from gitdistill.world.module import toybox_tokenizer


def fit(module, data, folder, **options):
    """A fit that logs and validates."""
    options |= {"default_root_dir": folder, "logger": pl.loggers.CSVLogger(folder), "log_every_n_steps": 1}
    return fit_quietly(module, data, limit_val_batches=None, **options)


def test_every_loss_reaches_all_of_the_student_and_nothing_of_the_teacher(batch):
    module = distillation(**ALL).train()
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
    assert all(parameter.grad is None for parameter in module.teacher.parameters())


@pytest.mark.parametrize("term", TERMS)
def test_each_loss_of_the_teacher_trains_the_backbone(batch, term):
    module = distillation(**NONE | {term: 1.0})
    values = module.loss_terms(batch)
    assert list(values) == [term] and values[term] > 0
    check_gradients(module, batch)
    values[term].backward()
    assert all(p.grad is not None and p.grad.any() for p in module.student.backbone.net.stages_2.parameters())


def test_terms_are_the_losses_times_their_weights(batch):
    module = distillation(cross_entropy=0.5, kl=2.0, features=0.0, temperature=3.0)
    terms, tokens = module.loss_terms(batch), batch["tokens"]
    ours, theirs = (m(batch["frames"], tokens).logits for m in (module.student, module.teacher))
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
    fit_quietly(module, data, max_steps=1, callbacks=[Elsewhere()])
    assert moves == [torch.device("cpu")]


def test_another_vocabulary_and_other_special_tokens_are_refused():
    fewer = StudentCandidateV1(7, tiny.backbone(), embed_dim=32, heads=2)
    other = tiny.student(bos_token_id=4)
    for student, message in (fewer, "vocab_size is .* 7"), (other, "bos_token_id is 2 .* 4"):
        with pytest.raises(ValueError, match=message):
            DistillationTrainer(tiny.teacher(), student)


def test_an_interrupt_while_the_encoder_is_frozen_thaws_it(data, tmp_path):
    class Interrupt(pl.Callback):
        def on_before_zero_grad(self, trainer, module, optimizer):
            if trainer.global_step == 1:
                raise KeyboardInterrupt

    student = tiny.student()
    module = CaptionTrainer(student, toybox_tokenizer(), freeze=3)
    with pytest.raises((KeyboardInterrupt, SystemExit)):
        fit_quietly(module, data, max_steps=4, callbacks=[Interrupt()])
    assert all(p.requires_grad for p in student.parameters())


def test_a_teachers_path_and_a_loaded_student_will_do(tmp_path):
    tiny.teacher().model.save_pretrained(tmp_path)
    tiny.teacher().tokenizer.save_pretrained(tmp_path)
    loaded = Student(tiny.student(), toybox_tokenizer())
    module = DistillationTrainer(tmp_path, loaded)
    assert module.student is loaded.model and module.teacher.vocab_size == loaded.model.vocab_size


@pytest.mark.parametrize("term", ["cross_entropy", "kl", "hidden", "attention", "relations", "sequence"])
def test_padding_changes_no_loss(batch, term):
    module = distillation(**NONE | {term: 1.0}, teacher_captions=1)
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


def test_looking_at_gradients_leaves_no_trace(batch):
    module = distillation(tiny.student(dropout=0.5), **ALL).train()
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
    message = r"^the loss is not finite in step 1, [^\n]*clips \[\d+,[^\n]*odd nan\)[^\n]*lower lr[^\n]*$"
    with pytest.raises(ValueError, match=message):
        fit(Times(tiny.student(), toybox_tokenizer()), data, tmp_path, max_steps=3)


@pytest.mark.parametrize("there", [0.0, 1.0])
def test_a_loss_that_is_not_finite_elsewhere_stops_all_ranks(monkeypatch, there):
    monkeypatch.setattr(distributed, "rank_and_world", lambda: (0, 2))
    monkeypatch.setattr(distributed.distributed, "all_reduce", lambda x, op: x.clamp_(min=there))
    with pytest.raises(ValueError, match="^the loss of another rank") if there else nullcontext():
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
    with pytest.raises(ValueError) as error:
        fit_quietly(module, data, max_steps=steps, callbacks=[Watch()], log_every_n_steps=log_every_n_steps)
    assert "in step 1," in str(error.value) and str(seen[1]) in str(error.value)
    assert len(seen) == steps  # at the end of the fit, or in the step after


def test_pseudo_captions_join_the_batch(batch):
    module = distillation(features=0, sequence=0.5)
    own = {**batch, "tokens": batch["tokens"].clone()}
    outputs = module.outputs(batch)
    assert outputs.num_captions == 2 and torch.equal(batch["tokens"], own["tokens"])
    joined, pseudo = {"tokens": outputs.tokens.flatten(0, 1)}, outputs.tokens[:, 2]
    expected = beam(module.teacher, batch["frames"], beams=4, max_length=8).tokens[:, 0]
    assert torch.equal(pseudo[:, : expected.shape[1]], expected) and not pseudo[:, expected.shape[1] :].any()
    values = module.loss_terms(batch)
    logits = module.student(batch["frames"], expected).logits
    torch.testing.assert_close(values["sequence"], 0.5 * losses.cross_entropy(logits, expected, 0))
    alone = distillation(module.student, features=0).loss_terms(batch)
    torch.testing.assert_close(values["cross_entropy"], alone["cross_entropy"])
    ours, theirs = (m(batch["frames"], joined["tokens"]).logits for m in (module.student, module.teacher))
    torch.testing.assert_close(values["kl"], losses.kl(ours, theirs, joined["tokens"], 0))


def test_clips_without_captions_learn_from_the_teacher_alone():
    (batch,) = tiny.data(train_clips=4, labelled=1).train_dataloader()
    module = distillation(features=0, sequence=1.0)
    labelled = batch["clip"] == 0
    one = {"frames": batch["frames"][labelled], "tokens": batch["tokens"].unflatten(0, (4, 2))[labelled][0]}
    plain = distillation(module.student, kl=0, features=0)
    found = module.loss_terms(batch)
    torch.testing.assert_close(found["cross_entropy"], plain.loss_terms(one)["cross_entropy"] / 4)
    nothing = {**batch, "tokens": torch.full((8, 1), 2)}
    found = module.loss_terms(nothing)
    assert found["cross_entropy"] == 0 and found["sequence"] > 0 and found["kl"] > 0
    check_gradients(module, nothing)
    # the filter: captions that do not pass cost nothing
    strict = CaptionFilter(confidence=1.0)
    module = distillation(module.student, features=0, sequence=1.0, caption_filter=strict)
    assert sum(module.loss_terms(nothing).values()) == 0


def test_a_student_with_a_vocab_subset_learns_in_its_own_numbers_and_captions_in_the_tokenizers(
    batch, data, tmp_path
):
    keep = batch["tokens"].unique().tolist()
    student = tiny.student(vocab_subset=keep)
    assert len(student.words.weight) < student.vocab_size
    module = distillation(student, features=0, label_smoothing=0.1)
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
        fit_quietly(module, data, max_epochs=-1, max_time="00:00:01:00")


@pytest.mark.parametrize(
    "options, error, message",
    [
        ({"sequence": 1.0, "teacher_captions": 0}, ValueError, "teacher_captions must be at least 1$"),
        ({"own_captions": 1.1}, ValueError, "own_captions must be between 0 and 1"),
        ({"own_captions": -1}, ValueError, "own_captions must be between 0 and 1"),
        ({"own_captions": 0.5, "kl": 0}, ValueError, "own_captions must be between 0 and 1"),
        (
            {"feature_pairs": {"memory_nrom": "model.layers.0"}},
            KeyError,
            "memory_nrom; did you mean memory_norm",
        ),
        ({"feature_pairs": "all"}, ValueError, "^feature_pairs is a dict of module paths, not 'all'$"),
    ],
)
def test_options_that_make_no_sense(options, error, message):
    with pytest.raises(error, match=message):
        distillation(**options)


def test_features_of_the_image_encoders_can_be_paired(batch):
    pairs = {"backbone.net.stages_2": "model.image_encoder", "mixer.0": "model.layers.0"}
    module = distillation(feature_pairs=pairs)
    assert module.loss_terms(batch)["features"].item() > 0
    assert set(module.projectors) == {"backbone/net/stages_2", "mixer/0"}


def test_features_can_be_compared_by_their_cosine(batch):
    values = []
    for kind in ("mse", "cosine"):
        torch.manual_seed(0)
        module = distillation(**NONE | {"features": 1.0}, feature_kind=kind)
        values.append(module.loss_terms(batch)["features"])
    assert abs(values[0] - values[1]) > 1e-3


def test_a_run_scores_captions_and_ships_the_student_alone(data, tmp_path):
    module = DistillationTrainer(tiny.teacher(), tiny.student(), **ALL, warmup=1, max_length=8)
    trainer = fit(module, data, tmp_path, max_epochs=1)
    scores = {}
    for result in trainer.test(module, data, verbose=False):
        scores |= result
    for split in ("test", "unseen"):
        assert {f"{split}/{name}" for name in ("cider", "bleu4", "rouge_l", "all_right")} <= set(scores)
    export_run(module, trainer, scores, tmp_path / "student")
    shipped = StudentCandidateV1.from_pretrained(tmp_path / "student")
    frames = next(iter(data.val_dataloader()))["frames"]
    as_stored(module)
    module.student.eval()
    tokens = torch.tensor([[2, 5, 6]] * len(frames))
    torch.testing.assert_close(shipped(frames, tokens).logits, module.student(frames, tokens).logits)
    log = (tmp_path / "student" / "log.csv").read_text().splitlines()
    assert {"train/kl", "train/loss", "val/cider"} <= set(log[0].split(","))
    stored = json.loads((tmp_path / "student" / "scores.json").read_text())
    assert stored["steps"] == 2 and stored["test/cider"] == scores["test/cider"]


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


def test_a_frozen_backbone_stays_as_it_came_for_so_many_steps(data):
    start = tiny.student().state_dict()

    def moved(steps):
        torch.manual_seed(0)
        module = DistillationTrainer(tiny.teacher(), tiny.student(), **ALL, warmup=1, freeze=2)
        fit_quietly(module, data, max_steps=steps)
        assert all(p.requires_grad for p in module.parameters())
        now = module.student.state_dict()
        return {name.split(".")[0] for name in start if not torch.equal(start[name], now[name])}

    assert "backbone" not in moved(2) and "mixer" in moved(2)
    assert "backbone" in moved(3)


@pytest.mark.parametrize("steps", [1, 3])
def test_what_was_frozen_before_stays_frozen(data, steps):
    student = tiny.student()
    mine = student.backbone.net.stages_1.requires_grad_(False)
    before = {name: value.clone() for name, value in mine.named_parameters()}
    fit_quietly(CaptionTrainer(student, toybox_tokenizer(), warmup=1, freeze=2), data, max_steps=steps)
    assert not any(p.requires_grad for p in mine.parameters())
    assert all(p.requires_grad for p in student.backbone.net.stages_2.parameters())
    torch.testing.assert_close(dict(mine.named_parameters()), before, rtol=0, atol=0)


@pytest.mark.parametrize("options, message", [
    (NONE, "no loss is left"),
    ({"label_smoothing": 2.0}, "label_smoothing must be"),
    ({"terms": {"mine": print}}, "mine lacks a weight"),
])  # fmt: skip
def test_settings_without_sense(options, message):
    with pytest.raises(ValueError, match=message):
        DistillationTrainer(tiny.teacher(), tiny.student(), **options)
