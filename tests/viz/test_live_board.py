"""The live board: what it collects, when it draws, and that it shows one picture and replaces it."""

import sys
from types import SimpleNamespace

import pytest
import pytorch_lightning as pl
import tiny
import torch

from gitdistill.viz.live_board import LiveBoard


class Toy(pl.LightningModule):
    """A line that is fitted; its captions count its steps."""

    def __init__(self):
        super().__init__()
        self.line = torch.nn.Linear(1, 1)
        self.model = SimpleNamespace(
            caption=lambda frames, tokenizer: [f"step {self.global_step}"] * len(frames),
            state_dict=self.line.state_dict,
        )

    def training_step(self, batch, index):
        loss = (self.line(batch) - 3 * batch).square().mean()
        self.log_dict({"train/loss": loss.detach(), "train/half": loss.detach() / 2})
        return loss

    def validation_step(self, batch, index):
        self.log("val/score", float(self.global_step))

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.125)


def fit(board, steps=20):
    torch.manual_seed(0)
    data = torch.utils.data.DataLoader(torch.randn(32, 1), batch_size=4)
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    quiet |= {"enable_checkpointing": False, "accelerator": "cpu"}
    trainer = pl.Trainer(max_steps=steps, callbacks=[board], num_sanity_val_steps=1, **quiet)
    trainer.fit(Toy(), data, data)
    return board


PANELS = {
    "losses": {"total": "train/loss", "half": "train/half"},
    "score": {"student": "val/score"},
    "rates": {"learning rate": "learning rate", "gradient": "gradient norm"},
}


def test_it_collects_what_was_logged_and_what_was_said():
    board = fit(LiveBoard(PANELS, frames=torch.zeros(2, 1), every=5, snapshots=3))
    curves = board.curves()
    steps, values = curves["losses"]["total"]
    assert steps == [5, 10, 15, 20] and values[-1] < values[0] / 2
    assert curves["losses"]["half"][1] == pytest.approx([value / 2 for value in values])
    assert curves["score"]["student"] == ([8, 16], [8.0, 16.0])  # not the check before the training
    assert curves["rates"]["learning rate"][1] == [0.125] * 4
    assert (
        all(value > 0 for value in curves["rates"]["gradient"][1])
        and len(curves["rates"]["gradient"][1]) == 4
    )
    assert board.captions == {step: [f"step {step}"] * 2 for step in (0, 10, 20)}
    shown = board.picture(step=10)
    assert "After 20 steps" in shown.alt and len(shown.axes) == 3 + 2


def test_it_keeps_the_weights_of_those_moments_if_asked_to():
    board = fit(LiveBoard(PANELS, frames=torch.zeros(2, 1), snapshots=3, keep_weights=True))
    slopes = [float(state["weight"]) for state in board.weights.values()]
    assert list(board.weights) == [0, 10, 20]
    assert abs(slopes[0] - 3) > abs(slopes[1] - 3) > abs(slopes[2] - 3)  # three states, not one three times
    assert not fit(LiveBoard(PANELS, frames=torch.zeros(2, 1))).weights


def test_one_picture_is_shown_and_replaced(monkeypatch):
    calls = []
    handle = SimpleNamespace(update=lambda data, **options: calls.append(("update", data, options)))

    def display(data, **options):
        calls.append(("display", data, options))
        return handle

    monkeypatch.setattr("IPython.display.display", display)
    monkeypatch.setattr("IPython.get_ipython", lambda: object())
    fit(LiveBoard({"losses": {"total": "train/loss"}}, every=5, seconds=0.0), steps=10)
    assert [kind for kind, *_ in calls] == ["display", "update", "update", "update"]
    assert calls[0][2]["display_id"] and all(options["raw"] for *_, options in calls)
    pictures = [data["image/png"] for _, data, _ in calls]
    assert all(picture.startswith(b"\x89PNG") for picture in pictures) and pictures[0] != pictures[1]
    assert "Training: After 10 steps" in calls[-1][2]["metadata"]["image/png"]["alt"]
    calls.clear()
    fit(LiveBoard({"losses": {"total": "train/loss"}}, every=5, seconds=1e9), steps=10)
    assert len(calls) == 2  # the first one and the last


def test_outside_a_notebook_nothing_is_shown(capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "IPython", SimpleNamespace(get_ipython=lambda: None))
    monkeypatch.setitem(
        sys.modules, "IPython.display", SimpleNamespace(display=lambda *a, **k: pytest.fail("shown"))
    )
    fit(LiveBoard({"losses": {"total": "train/loss"}}), steps=10)
    assert capsys.readouterr().out == ""


def test_a_distillation_can_be_watched():
    """The names that the trainer logs are the names that the board reads."""
    from gitdistill import DistillationTrainer

    teacher, student = tiny.teacher(), tiny.student()
    clips = torch.randint(0, 256, (2, tiny.FRAMES, 3, tiny.SIDE, tiny.SIDE), dtype=torch.uint8)
    batch = {"frames": clips, "tokens": torch.tensor([[2, 40, 50, 3], [2, 50, 3, 0]])}
    panels = {
        "losses": {"CE": "train/unweighted/cross_entropy", "KL": "train/unweighted/kl", "all": "train/loss"}
    }
    board = LiveBoard(panels, frames=clips, tokenizer=teacher.tokenizer, every=1)
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    trainer = pl.Trainer(
        max_steps=2, callbacks=[board], enable_checkpointing=False, accelerator="cpu", **quiet
    )
    loader = torch.utils.data.DataLoader([batch, batch], batch_size=None)
    trainer.fit(DistillationTrainer(teacher, student, cross_entropy=1, kl=1), loader)
    assert all(steps == [1, 2] for steps, _ in board.history.values())
    assert set(board.captions) == {0, 1, 2} and student.training
