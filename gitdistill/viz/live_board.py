"""A picture of the training that is drawn anew while Lightning trains."""

import time

import pytorch_lightning as pl
import torch

from gitdistill.viz import plots


class LiveBoard(pl.Callback):
    """Curves, and the captions that the student gives a few clips, in one picture that is replaced during training.

    Outside a notebook nothing is shown, and `picture()` still draws it. The LightningModule must have a `model` with
    a method `caption(frames, tokenizer)`.

    Args:
        panels: panel -> (label -> name of a logged metric), e.g. ``{"losses": {"KL": "train/kl"}}``. There are two
            more names: "learning rate" and "gradient norm".
        frames: [B, F, 3, H, W], clips to caption on the way; tokenizer: what turns them into words.
        every: steps from one reading of the metrics to the next.
        seconds: least time from one drawing to the next; a drawing takes about a third of a second.
        snapshots: how many times the clips are captioned, from the first step to the last.
        keep_weights: whether `weights` keeps the student's weights at those times (step -> state dict on the CPU).
        log, levels: as for `plots.board`. name: of what is trained, for the title.
    """

    def __init__(
        self,
        panels,
        frames=None,
        tokenizer=None,
        every=10,
        seconds=5.0,
        snapshots=6,
        keep_weights=False,
        log=(),
        levels=None,
        name="",
    ):
        self.panels, self.frames, self.tokenizer, self.name = panels, frames, tokenizer, name
        self.every, self.seconds, self.snapshots = every, seconds, snapshots
        self.options = {"log": log, "levels": levels}
        self.history = {name: ([], []) for lines in panels.values() for name in lines.values()}
        self.keep_weights, self.weights = keep_weights, {}
        self.captions, self.drawn, self.handle = {}, 0.0, None

    def curves(self):
        """panel -> (label -> (steps, values)), as `plots.board` takes them."""
        return {
            panel: {label: self.history[name] for label, name in lines.items()}
            for panel, lines in self.panels.items()
        }

    def picture(self, step=None):
        """The board up to the last step."""
        last = max((steps[-1] for steps, _ in self.history.values() if steps), default=0)
        title = f"{self.name}: after {last:,} steps" if self.name else f"After {last:,} steps"
        return plots.board(self.curves(), self.captions, step, title=title, **self.options)

    def on_train_start(self, trainer, module):
        self._snapshot(trainer.global_step, module)
        self._show()

    def on_before_optimizer_step(self, trainer, module, optimizer):
        step = trainer.global_step + 1
        if "gradient norm" in self.history and step % self.every == 0:
            gradients = [p.grad for p in module.parameters() if p.grad is not None]
            self._note(step, {"gradient norm": torch.nn.utils.get_total_norm(gradients)})

    def on_train_batch_end(self, trainer, module, outputs, batch, index):
        step = trainer.global_step
        if step % self.every:
            return
        found = {name: value for name, value in trainer.callback_metrics.items() if "val" not in name}
        self._note(step, found | {"learning rate": trainer.optimizers[0].param_groups[0]["lr"]})
        total = trainer.estimated_stepping_batches
        if self.frames is not None and step * (self.snapshots - 1) >= len(self.captions) * total:
            self._snapshot(step, module)
        if time.monotonic() - self.drawn >= self.seconds:
            self._show()

    def on_validation_end(self, trainer, module):
        if not trainer.sanity_checking:
            found = {name: value for name, value in trainer.callback_metrics.items() if "val" in name}
            self._note(trainer.global_step, found)

    def on_train_end(self, trainer, module):
        self._snapshot(trainer.global_step, module)
        self._show(scale=2)

    def _note(self, step, found):
        for name, value in found.items():
            steps, values = self.history.get(name, ([], []))
            if not steps or steps[-1] < step:
                steps.append(step)
                values.append(float(value))

    def _snapshot(self, step, module):
        if self.frames is None or step in self.captions:
            return
        self.captions[step] = module.model.caption(self.frames.to(module.device), self.tokenizer)
        if self.keep_weights:
            state = module.model.state_dict()
            self.weights[step] = {name: weight.cpu().clone() for name, weight in state.items()}

    def _show(self, scale=1):  # a coarse picture takes half the time
        from IPython import get_ipython
        from IPython.display import display

        if get_ipython() is None:
            return
        picture = self.picture()
        data = {"image/png": plots.png(picture, scale), "text/plain": repr(picture)}
        options = {"metadata": picture.shown_as, "raw": True}
        if self.handle is None:
            self.handle = display(data, display_id=True, **options)
        else:
            self.handle.update(data, **options)
        self.drawn = time.monotonic()
