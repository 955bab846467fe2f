"""Command line: `python -m gitdistill fit|validate|test --config configs/….yaml` (Lightning's own CLI),
`python -m gitdistill caption PATH... --student FOLDER`, `pack SOURCE FOLDER`, `onnx STUDENT FOLDER`,
`plan --config configs/….yaml` and `check`.

A fit ends with a test of the checkpoint that validation chose, or of the last one. With `--export FOLDER` the
network goes there, with its training log (log.csv) and its scores (scores.json). Weights are stored as float16,
and it is the stored weights that are tested. `--ckpt_path last` continues an interrupted fit.
"""

import re
import sys
from importlib import import_module

from pytorch_lightning import LightningDataModule, LightningModule
from pytorch_lightning.cli import LightningCLI

from gitdistill.export import as_stored, export_run
from gitdistill.resume import ExactResume, read_checkpoint

COMMANDS = {  # the others are Lightning's
    "caption": "gitdistill.caption",
    "check": "gitdistill.check",
    "onnx": "gitdistill.onnx",
    "pack": "gitdistill.data.shards",
    "plan": "gitdistill.plan",
}


class GitdistillCLI(LightningCLI):
    def add_arguments_to_parser(self, parser):
        parser.add_argument("--export", type=str | None, default=None, help="folder to write the result to")

    def after_fit(self):
        best = self.trainer.checkpoint_callback.best_model_path
        if best:
            saved = read_checkpoint(best, self.model.device, weights_only=True)
            self.model.load_state_dict(saved["state_dict"])
        if not self.config.fit.export:
            self.trainer.test(self.model, self.datamodule)
            return
        as_stored(self.model)
        scores = {}
        for result in self.trainer.test(self.model, self.datamodule):
            scores |= result
        if self.trainer.is_global_zero:
            export_run(self.model, self.trainer, scores, self.config.fit.export)


def main() -> None:
    try:
        if sys.argv[1:2] and sys.argv[1] in COMMANDS:
            sys.exit(import_module(COMMANDS[sys.argv[1]]).main(sys.argv[2:]))
        GitdistillCLI(
            LightningModule,
            LightningDataModule,
            subclass_mode_model=True,
            subclass_mode_data=True,
            save_config_kwargs={"overwrite": True},
            trainer_defaults={
                "callbacks": ExactResume(),
                "plugins": {"class_path": "gitdistill.resume.WholeCheckpoints"},
            },
        )
    except (ValueError, KeyError, OSError) as error:
        sys.exit(f"gitdistill: {reason(error)}")


def reason(error: BaseException) -> str:
    """What went wrong, in one line: of jsonargparse's lists of what it tried, the entry that tells."""
    text = str(error.args[0] if error.args else error)
    tried = [
        line for line in re.findall(r"^ *- (.+)$", text, re.MULTILINE) if not line.startswith("Expected ")
    ]
    return tried[0] if tried else text.splitlines()[0]


if __name__ == "__main__":
    main()
