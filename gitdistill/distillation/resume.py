"""What makes a fit that was killed end as one that was not: whole checkpoints, and the random numbers in them."""

import os
from pathlib import Path

import torch
from pytorch_lightning import Callback
from pytorch_lightning.plugins.io import TorchCheckpointIO

from gitdistill.distillation.distributed import gather, rank_and_world
from gitdistill.models.storage import load_torch


class ExactResume(Callback):
    """Lets a fit that is continued by as many processes end with the weights of one that was never interrupted:
    keeps torch's random numbers, of each process its own, in checkpoints, and begins epochs where they begin.

    Exactly so on the CPU. On CUDA sums may round otherwise from run to run, and MPS's random numbers are not kept."""

    _kept = None

    def state_dict(self) -> dict:
        cuda = torch.cuda.get_rng_state() if torch.cuda.is_initialized() else None
        return {"processes": gather({"cpu": torch.get_rng_state(), "cuda": cuda})}

    def load_state_dict(self, state: dict) -> None:
        self._kept = state.get("processes", [])

    def on_train_start(self, trainer, module) -> None:
        loop, epochs = trainer.fit_loop, trainer.fit_loop.epoch_progress.total
        if loop.restarted_mid_epoch and epochs.completed == epochs.ready:
            # Saved after an epoch's last batch: Lightning (2.6) closes that epoch, but believes to be in it still,
            # and the next checkpoint at the end of an epoch would repeat that one.
            loop.reset_restart_stage()
        rank, world = rank_and_world()
        if self._kept and len(self._kept) == world:
            mine = self._kept[rank]
            torch.set_rng_state(mine["cpu"].cpu())
            if mine["cuda"] is not None and torch.cuda.is_initialized():
                torch.cuda.set_rng_state(mine["cuda"].cpu())
        self._kept = None


class WholeCheckpoints(TorchCheckpointIO):
    """Lightning's checkpoints, but on a local disk written beside their place and then renamed (Lightning's own
    come from the system's temporary folder, which may be another disk), and checked before they are read."""

    def save_checkpoint(self, checkpoint, path, storage_options=None) -> None:
        if "://" in str(path):
            super().save_checkpoint(checkpoint, path, storage_options)
            return
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}.tmp")
        with temporary.open("wb") as file:
            torch.save(checkpoint, file)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)

    def load_checkpoint(self, path, map_location="cpu", weights_only=None) -> dict:
        if "://" in str(path):
            return super().load_checkpoint(path, map_location, weights_only)
        return read_checkpoint(path, weights_only)


def read_checkpoint(path, weights_only: bool | None = None) -> dict:
    """A checkpoint, on the CPU; FileNotFoundError or ValueError, naming it, if it is gone, cut off or changed."""
    try:
        return load_torch(path, weights_only)
    except ValueError as error:
        raise ValueError(f"the checkpoint {error}; continue from another one") from None
