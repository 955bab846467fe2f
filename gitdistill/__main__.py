"""Command line: `python -m gitdistill fit|validate|test --config configs/….yaml` (Lightning's own CLI),
`python -m gitdistill caption PATH... --student FOLDER`, `pack SOURCE FOLDER`, `onnx STUDENT FOLDER`,
`plan --config configs/….yaml` and `check`.

A fit ends with a test of the checkpoint that validation chose, or of the last one. With `--export FOLDER` the
network goes there, with its training log (log.csv) and its scores (scores.json; none without test clips). Weights
are stored as float16, and it is the stored weights that are tested. `--ckpt_path last` continues an interrupted fit.
"""

import os
import re
import sys
from argparse import ArgumentError
from importlib import import_module

from pytorch_lightning import LightningDataModule, LightningModule
from pytorch_lightning.cli import LightningCLI
from pytorch_lightning.utilities.exceptions import MisconfigurationException

from gitdistill.distillation.resume import ExactResume, read_checkpoint
from gitdistill.use.export import as_stored, export_run

COMMANDS = {  # the others are Lightning's
    "caption": "gitdistill.use.caption",
    "check": "gitdistill.use.check",
    "onnx": "gitdistill.use.onnx",
    "pack": "gitdistill.data.shards",
    "plan": "gitdistill.use.plan",
}
# What a user can do about it.
MISTAKES = (ValueError, KeyError, OSError, ImportError, ArgumentError, MisconfigurationException)
# Lines of jsonargparse's messages that only say how it looked.
SCAFFOLD = re.compile(
    r" *(Does not validate|Subtypes:|Errors:|Given value type:|Given value: NestedArg|- Expected a <class 'NoneType'>"
    r"|- (Does not validate|Expected a path))"
)


class GitdistillCLI(LightningCLI):
    def add_arguments_to_parser(self, parser):
        parser.add_argument("--export", type=str | None, default=None, help="folder to write the result to")

    def after_fit(self):
        best = getattr(self.trainer.checkpoint_callback, "best_model_path", None)
        if best:
            saved = read_checkpoint(best, weights_only=True)
            self.model.load_state_dict(saved["state_dict"])
        export = self.config.fit.export and not self.trainer.fast_dev_run  # which is no result
        if export:
            as_stored(self.model)
        scores = {}
        if "test" in getattr(self.datamodule, "sources", {"test"}):
            for result in self.trainer.test(self.model, self.datamodule):
                scores |= result
        else:
            print("not tested: the data have no test clips", file=sys.stderr)
        if export and self.trainer.is_global_zero:
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
            parser_kwargs={"exit_on_error": False},
            trainer_defaults={
                "callbacks": ExactResume(),
                "plugins": {"class_path": "gitdistill.distillation.resume.WholeCheckpoints"},
            },
        )
    except BrokenPipeError:  # whoever read the output, head for one, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except MISTAKES as error:
        if os.environ.get("GITDISTILL_DEBUG"):  # where it comes from
            raise
        sys.exit(f"gitdistill: {reason(error)}")


def reason(error: BaseException) -> str:
    """What went wrong, in one line: of jsonargparse's lists of what it tried, the entry that tells."""
    if isinstance(error, ArgumentError):
        lines = (line for line in error.message.splitlines() if line.strip() and not SCAFFOLD.match(line))
        return " ".join(line.strip(" -") for line in lines)
    text = str(error.args[0] if isinstance(error, KeyError) and error.args else error)
    if text.startswith("Caught ") and "Original Traceback" in text:  # in a loader's process
        return text.strip().splitlines()[-1].partition(": ")[2]
    tried = [
        line for line in re.findall(r"^ *- (.+)$", text, re.MULTILINE) if not line.startswith("Expected ")
    ]
    told = tried[0] if tried else text.splitlines()[0]
    if told.endswith(":"):  # the next line says what
        told += " " + text.partition(told)[2].strip().partition("\n")[0]
    return told


if __name__ == "__main__":
    main()
