"""Continuing a fit gives the result of an uninterrupted one: whole checkpoints that hold the random states."""

import errno
import os
import re
from pathlib import Path

import torch
from pytorch_lightning import Callback
from pytorch_lightning.plugins.io import TorchCheckpointIO
from pytorch_lightning.utilities import rank_zero_warn

from gitdistill.distillation.distributed import gather, rank_and_world
from gitdistill.models.storage import load_torch, write_whole


class ExactResume(Callback):
    """Lets a continued fit end with the weights of one that was never interrupted.

    It stores torch's random state of every rank in checkpoints, and begins epochs where they begin. The number of
    ranks must stay the same. Exact on the CPU; on CUDA sums may be rounded in another order, and MPS's random state
    is not stored.
    """

    def __init__(self):
        self._states = None

    def state_dict(self) -> dict:
        cuda = torch.cuda.get_rng_state() if torch.cuda.is_initialized() else None
        return {"processes": gather({"cpu": torch.get_rng_state(), "cuda": cuda})}

    def load_state_dict(self, state: dict) -> None:
        self._states = state.get("processes", [])

    def on_train_start(self, trainer, module) -> None:
        loop, epochs = trainer.fit_loop, trainer.fit_loop.epoch_progress.total
        if loop.restarted_mid_epoch and epochs.completed == epochs.ready:
            # Saved after an epoch's last batch: Lightning (2.6) closes that epoch, but believes that it is still in
            # it, and the next checkpoint at the end of an epoch would repeat it.
            loop.reset_restart_stage()
        interval, count = trainer.val_check_interval, trainer.accumulate_grad_batches
        if isinstance(interval, int) and interval % count:
            both = f"val_check_interval {interval} is no multiple of accumulate_grad_batches {count}"
            rank_zero_warn(f"{both}: checkpoints of validations lack the gradients of a step that has begun")
        rank, world = rank_and_world()
        if self._states and len(self._states) == world:
            state = self._states[rank]
            torch.set_rng_state(state["cpu"].cpu())
            if state["cuda"] is not None and torch.cuda.is_initialized():
                torch.cuda.set_rng_state(state["cuda"].cpu())
        self._states = None


class WholeCheckpoints(TorchCheckpointIO):
    """Lightning's checkpoints, on a local disk written beside their place and then renamed, and checked on reading.

    Lightning itself writes them to the system's temporary folder first, which may be on another disk.
    """

    def save_checkpoint(self, checkpoint, path, storage_options=None) -> None:
        if "://" in str(path):
            super().save_checkpoint(checkpoint, path, storage_options)
            return

        def write(temporary: Path) -> None:
            with temporary.open("wb") as file:
                try:
                    torch.save(checkpoint, file)
                except RuntimeError as error:  # PyTorch's, where the system refused to write
                    if "inline_container" not in str(error):
                        raise
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)) from error
                file.flush()
                os.fsync(file.fileno())

        write_whole(Path(path).parent, {Path(path).name: write})

    def load_checkpoint(self, path, map_location="cpu", weights_only=None) -> dict:
        return read_checkpoint(path, whole=False)  # Lightning also keeps bare weights, between processes


def read_checkpoint(path, whole: bool = True) -> dict:
    """A training's checkpoint of a local disk, on the CPU, tensors and plain values alone.

    FileNotFoundError or ValueError in one line if it is missing, damaged, holds other objects, or is not `whole`.
    """
    if re.match(r"[\w+.-]+:", str(path)) and not Path(path).exists():
        raise ValueError(f"{path} is an address: download the checkpoint first")
    if not Path(path).is_file():
        raise FileNotFoundError(f"there is no checkpoint {path}")
    checkpoint = load_torch(path)
    state = checkpoint.get("state_dict") if isinstance(checkpoint, dict) else None
    if whole and not (isinstance(state, dict) and "pytorch-lightning_version" in checkpoint):
        raise ValueError(f"{path} is no checkpoint of a training")
    return checkpoint
