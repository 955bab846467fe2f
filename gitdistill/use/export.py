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

from gitdistill.distillation.caption_trainer import CaptionTrainer
from gitdistill.models.storage import write_whole
from gitdistill.models.student import StudentCandidateV1
from gitdistill.use.captioner import Student, tokenizer_files


@torch.no_grad()
def as_stored(module: nn.Module) -> None:
    """Round all weights to float16, in which `export_run` stores them."""
    for tensor in module.state_dict().values():
        if tensor.is_floating_point():
            tensor.copy_(tensor.half())


def trained_network(module: pl.LightningModule) -> nn.Module:
    """What a training exports of its module."""
    return getattr(module, "model", getattr(module, "encoder", module))


def export_run(module: pl.LightningModule, trainer: pl.Trainer, scores: dict, folder: str) -> None:
    """Write a trained network to `folder` in float16, with its tokenizer, log.csv and scores.json.

    `gitdistill.load_student` reads a student's folder. log.csv is the training's log, if it had a CSV logger;
    scores.json holds `scores` and the number of steps and the seed.
    """
    folder = Path(folder)
    network = trained_network(module)
    metadata = {"steps": trainer.global_step, "seed": int(os.environ.get("PL_GLOBAL_SEED", 0))}
    writers = {"scores.json": partial(Path.write_text, data=json.dumps(metadata | scores, indent=1) + "\n")}
    if isinstance(network, StudentCandidateV1):
        data = getattr(trainer, "datamodule", None)  # its fixed rule is that of validation and test
        rule = getattr(data, "fixed_rule", None) or getattr(data, "rule", None)
        student = Student(network, module.tokenizer, rule, {"max_length": module.max_length}, scores)
        student.save(folder, torch.float16)
    else:
        network.save_pretrained(folder, torch.float16)
        writers |= tokenizer_files(module.tokenizer) if isinstance(module, CaptionTrainer) else {}
    write_whole(folder, writers)  # first, so that a log that cannot be read costs no scores
    for logger in trainer.loggers:
        if isinstance(logger, CSVLogger):
            log = training_log(Path(logger.root_dir), trainer.log_every_n_steps)
            write_whole(folder, {"log.csv": partial(write_table, rows=log)})


def training_log(folder: Path, every: int) -> list[dict[str, str]]:
    """The rows of a CSV logger's last training, logged `every` so many steps; a continued one counts as one.

    Each start of a training makes a folder version_N. Those of one training go back to the latest that began with
    its first step. Where a continued training repeated steps, the rows of the later folder count.
    """
    versions = sorted(folder.glob("version_*/metrics.csv"), key=lambda path: int(path.parent.name[8:]))
    rows = []
    for path in reversed(versions):
        with path.open(newline="") as file:
            part = list(csv.DictReader(file))
        if not any(row.get("train/loss") for row in part):  # of `test` or `validate`
            continue
        rows = [row for row in part if not rows or int(row["step"]) < int(rows[0]["step"])] + rows
        if rows and int(rows[0]["step"]) < every:
            break
    return rows


def write_table(path: Path, rows: list[dict[str, str]]) -> None:
    """Rows as CSV, with the columns of all of them."""
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(dict.fromkeys(column for row in rows for column in row)))
        writer.writeheader()
        writer.writerows(rows)
