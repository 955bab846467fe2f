"""What a training leaves behind: the network as it was tested, its log and its scores, in one folder."""

import csv
import json
import os
from functools import partial
from pathlib import Path

import pytorch_lightning as pl
import torch
from pytorch_lightning.loggers import CSVLogger
from torch import nn

from gitdistill.distillation.trainer import CaptionTrainer
from gitdistill.models.storage import write_whole
from gitdistill.models.student import StudentCandidateV1
from gitdistill.use.captioner import Student


@torch.no_grad()
def as_stored(module: nn.Module) -> None:
    """Round all weights to what float16 can hold, which is what `export_run` stores."""
    for tensor in module.state_dict().values():
        if tensor.is_floating_point():
            tensor.copy_(tensor.half())


def export_run(module: pl.LightningModule, trainer: pl.Trainer, scores: dict, folder: str) -> None:
    """Write a trained network to `folder` in float16, its tokenizer, and beside it log.csv and scores.json.

    `gitdistill.load_student` reads a student's folder. log.csv is what a CSV logger, if there was one, kept of the
    training; scores.json holds `scores` and what they rest on: steps and seed.
    """
    folder = Path(folder)
    network = module.model if isinstance(module, CaptionTrainer) else module.encoder
    if isinstance(network, StudentCandidateV1):
        rule = getattr(getattr(trainer, "datamodule", None), "rule", None)
        Student(network, module.tokenizer, rule, {"max_length": module.max_length}, scores).save(
            folder, torch.float16
        )
    else:
        network.save_pretrained(folder, torch.float16)
        if isinstance(module, CaptionTrainer):
            module.tokenizer.save_pretrained(folder)
    facts = {"steps": trainer.global_step, "seed": int(os.environ.get("PL_GLOBAL_SEED", 0))}
    text = json.dumps(facts | scores, indent=1) + "\n"
    write_whole(folder, {"scores.json": lambda path: path.write_text(text)})  # whatever becomes of the log
    for logger in trainer.loggers:
        if isinstance(logger, CSVLogger):
            log = training_log(Path(logger.root_dir), trainer.log_every_n_steps)
            write_whole(folder, {"log.csv": partial(write_table, rows=log)})


def training_log(folder: Path, every: int) -> list[dict[str, str]]:
    """The rows of a CSV logger's last training, logged `every` so many steps; a continued one counts as one.

    Every start makes a folder version_N. Those of one training go back to the latest that began at its first
    step; what a continued run did again counts once.
    """
    versions = sorted(folder.glob("version_*/metrics.csv"), key=lambda path: int(path.parent.name[8:]))
    rows = []
    for path in reversed(versions):
        with path.open(newline="") as file:
            part = [
                row for row in csv.DictReader(file) if not rows or int(row["step"]) < int(rows[0]["step"])
            ]
        rows = part + rows
        if rows and int(rows[0]["step"]) < every:
            break
    return rows


def write_table(path: Path, rows: list[dict[str, str]]) -> None:
    """Rows as CSV, with the columns of all of them."""
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(dict.fromkeys(column for row in rows for column in row)))
        writer.writeheader()
        writer.writerows(rows)
