"""A board that draws itself anew while Lightning trains."""

import time

import pytorch_lightning as pl
import torch

from gitdistill.viz import plots


class LiveBoard(pl.Callback):
    """Curves, and what the student says of a few clips, in one picture that is replaced as the training goes on.

    In a notebook the picture stays in the cell; without one (a script, a test) nothing is shown, and `picture()`
    still draws it.

    Args:
        panels: panel -> (label -> name of a logged metric), e.g. ``{"losses": {"KL": "train/kl"}}``. Two more
            names can be had: "learning rate" and "gradient norm".
        frames: [C, F, 3, H, W], clips to caption on the way; tokenizer: what turns them into words.
        every: steps from one reading of the metrics to the next.
        seconds: least time from one drawing to the next; a drawing takes about a third of a second.
        snapshots: how often captions are asked for, from the first step to the last.
        keep_weights: whether `weights` keeps what the student was at those moments (step -> state dict on the CPU).
        log, levels: as for `plots.board`.
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
    ):
        self.panels, self.frames, self.tokenizer = panels, frames, tokenizer
        self.every, self.seconds, self.snapshots = every, seconds, snapshots
        self.options = {"log": log, "levels": levels}
        self.history = {name: ([], []) for lines in panels.values() for name in lines.values()}
        self.keep_weights, self.weights = keep_weights, {}
        self.captions, self.drawn, self.handle, self.norm = {}, 0.0, None, None

    def curves(self):
        """panel -> (label -> (steps, values)), as `plots.board` takes them."""
        return {
            panel: {label: self.history[name] for label, name in lines.items()}
            for panel, lines in self.panels.items()
        }

    def picture(self, step=None):
        """The board as it stands."""
        last = max((steps[-1] for steps, _ in self.history.values() if steps), default=0)
        return plots.board(self.curves(), self.captions, step, title=f"After {last:,} steps", **self.options)

    def on_train_start(self, trainer, module):
        self._say(trainer, module)
        self._show(now=True)

    def on_before_optimizer_step(self, trainer, module, optimizer):
        if "gradient norm" in self.history and self._due(trainer.global_step + 1):
            gradients = [p.grad for p in module.parameters() if p.grad is not None]
            self.norm = float(torch.nn.utils.get_total_norm(gradients))

    def on_train_batch_end(self, trainer, module, outputs, batch, index):
        step = trainer.global_step
        if not self._due(step):
            return
        found = {name: float(value) for name, value in trainer.callback_metrics.items() if "val" not in name}
        found["learning rate"] = trainer.optimizers[0].param_groups[0]["lr"]
        if self.norm is not None:
            found["gradient norm"] = self.norm
        self._note(step, found)
        total = trainer.estimated_stepping_batches
        if self.frames is not None and step * (self.snapshots - 1) >= len(self.captions) * total:
            self._say(trainer, module)
        self._show()

    def on_validation_end(self, trainer, module):
        if not trainer.sanity_checking:
            found = {name: float(value) for name, value in trainer.callback_metrics.items() if "val" in name}
            self._note(trainer.global_step, found)

    def on_train_end(self, trainer, module):
        if trainer.global_step not in self.captions:
            self._say(trainer, module)
        self._show(now=True)

    def _due(self, step):
        return step % self.every == 0

    def _note(self, step, found):
        for name, (steps, values) in self.history.items():
            if name in found and (not steps or steps[-1] < step):
                steps.append(step)
                values.append(found[name])

    def _say(self, trainer, module):
        if self.frames is not None:
            frames = self.frames.to(module.device)
            self.captions[trainer.global_step] = module.model.caption(frames, self.tokenizer)
            if self.keep_weights:
                state = module.model.state_dict()
                self.weights[trainer.global_step] = {name: w.cpu().clone() for name, w in state.items()}

    def _show(self, now=False):
        if not (now or time.monotonic() - self.drawn >= self.seconds):
            return
        from IPython import get_ipython
        from IPython.display import display

        if get_ipython() is None:
            return
        picture = self.picture()
        data = {"image/png": plots.png(picture), "text/plain": repr(picture)}
        shown = {"metadata": {"image/png": {"alt": picture.alt}}, "raw": True}
        if self.handle is None:
            self.handle = display(data, display_id=True, **shown)
        else:
            self.handle.update(data, **shown)
        self.drawn = time.monotonic()
