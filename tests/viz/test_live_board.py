"""The live board: what it collects, when it draws, and that it shows one picture and replaces it."""

from types import SimpleNamespace

import pytorch_lightning as pl
import tiny
import torch
from fits import QUIET

from gitdistill import DistillationTrainer
from gitdistill.viz.live_board import LiveBoard

LOSS = {"losses": {"total": "train/loss"}}


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
        self.log("train/loss", loss.detach())
        return loss

    def validation_step(self, batch, index):
        self.log("val/score", float(self.global_step))

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.125)


def fit(board, module, *loaders, steps):
    options = QUIET | {"enable_checkpointing": False, "num_sanity_val_steps": 1}
    pl.Trainer(max_steps=steps, callbacks=[board], **options).fit(module, *loaders)
    return board


def fit_toy(board, steps=20):
    torch.manual_seed(0)
    data = torch.utils.data.DataLoader(torch.randn(32, 1), batch_size=4)
    return fit(board, Toy(), data, data, steps=steps)


def test_it_collects_metrics_captions_and_weights():
    rates = {"learning rate": "learning rate", "gradient": "gradient norm"}
    panels = LOSS | {"score": {"student": "val/score"}, "rates": rates}
    board = fit_toy(LiveBoard(panels, frames=torch.zeros(2, 1), every=5, snapshots=3, keep_weights=True))
    curves = board.curves()
    steps, values = curves["losses"]["total"]
    assert steps == [5, 10, 15, 20] and values[-1] < values[0] / 2
    assert curves["score"]["student"] == ([8, 16], [8.0, 16.0])  # not the check before the training
    assert curves["rates"]["learning rate"] == (steps, [0.125] * 4)
    assert curves["rates"]["gradient"][0] == steps and min(curves["rates"]["gradient"][1]) > 0
    assert board.captions == {step: [f"step {step}"] * 2 for step in (0, 10, 20)}
    slopes = [abs(float(state["weight"]) - 3) for state in board.weights.values()]
    assert list(board.weights) == [0, 10, 20]
    assert slopes[0] > slopes[1] > slopes[2]  # not one state three times
    shown = board.picture(step=10)
    assert "After 20 steps" in shown.alt and len(shown.axes) == 3 + 2


def test_one_picture_is_shown_and_replaced(monkeypatch):
    calls = []
    handle = SimpleNamespace(update=lambda data, **options: calls.append(("update", data, options)))

    def display(data, **options):
        calls.append(("display", data, options))
        return handle

    monkeypatch.setattr("IPython.display.display", display)
    fit_toy(LiveBoard(LOSS), steps=2)
    assert not calls  # outside a notebook
    monkeypatch.setattr("IPython.get_ipython", lambda: object())
    fit_toy(LiveBoard(LOSS, every=5, seconds=0.0), steps=10)
    assert [kind for kind, *_ in calls] == ["display", "update", "update", "update"]
    assert calls[0][2]["display_id"] and all(options["raw"] for *_, options in calls)
    pictures = [data["image/png"] for _, data, _ in calls]
    assert all(picture.startswith(b"\x89PNG") for picture in pictures) and pictures[0] != pictures[1]
    assert "Training: After 10 steps" in calls[-1][2]["metadata"]["image/png"]["alt"]
    calls.clear()
    fit_toy(LiveBoard(LOSS, every=5, seconds=1e9), steps=10)
    assert len(calls) == 2  # the first one and the last


def test_a_distillation_can_be_watched():
    """The names that the trainer logs are the names that the board reads."""
    teacher, student = tiny.teacher(), tiny.student()
    clips = tiny.clips(2)
    batch = {"frames": clips, "tokens": torch.tensor([[2, 40, 50, 3], [2, 50, 3, 0]])}
    names = ("train/unweighted/cross_entropy", "train/unweighted/kl", "train/loss")
    board = LiveBoard({"losses": {name: name for name in names}}, clips, teacher.tokenizer, every=1)
    loader = torch.utils.data.DataLoader([batch, batch], batch_size=None)
    fit(board, DistillationTrainer(teacher, student, cross_entropy=1, kl=1), loader, steps=2)
    assert all(steps == [1, 2] for steps, _ in board.history.values())
    assert set(board.captions) == {0, 1, 2} and student.training
