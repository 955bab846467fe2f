"""`python -m gitdistill fit|validate|test --config configs/….yaml`: Lightning's own command line.

A fit ends with a test of the checkpoint that validation chose, or of the last one. With `--export FOLDER` the
network goes there, with its training log (log.csv) and its scores (scores.json; none without test clips). Weights
are stored as float16, and it is the stored weights that are tested. `--ckpt_path last` continues an interrupted fit.
"""

import sys

from pytorch_lightning import LightningDataModule, LightningModule
from pytorch_lightning.cli import LightningCLI
from pytorch_lightning.utilities.exceptions import MisconfigurationException

from gitdistill.distillation.resume import ExactResume, read_checkpoint
from gitdistill.models.storage import output_folder, shorten
from gitdistill.use.export import as_stored, export_run, trained_network


class FitCLI(LightningCLI):
    def parse_arguments(self, parser, args):
        """As Lightning, which then would build what a checkpoint names before anybody has checked it: it sees none."""
        super().parse_arguments(parser, args)
        if command := self.config.get("subcommand"):  # `plan` has none
            self.ckpt_path, self.config[command].ckpt_path = self.config[command].ckpt_path, None
        if command and self.config[command].export is not None:
            output_folder(self.config[command].export)
        if command and self.ckpt_path not in (None, "best", "last", "hpc"):
            read_checkpoint(self.ckpt_path)

    def before_instantiate_classes(self):
        if command := self.config.get("subcommand"):
            self.config[command].ckpt_path, self.config[command].weights_only = self.ckpt_path, True

    def add_arguments_to_parser(self, parser):
        parser.add_argument("--export", type=str | None, default=None, help="folder to write the result to")

    def before_fit(self):
        network = trained_network(self.model)
        if self.config.fit.export and not hasattr(network, "save_pretrained"):
            raise ValueError(f"{type(network).__name__} cannot be exported: it has no save_pretrained")

    def after_fit(self):
        if best := best_checkpoint(self.trainer.checkpoint_callbacks):
            self.model.load_state_dict(read_checkpoint(best)["state_dict"])
        export = self.config.fit.export if not self.trainer.fast_dev_run else None  # a try leaves no result
        if export:
            as_stored(self.model)
        scores = {}
        has_test = type(self.datamodule).test_dataloader is not LightningDataModule.test_dataloader
        if has_test and "test" in getattr(self.datamodule, "sources", {"test"}):
            for result in self.trainer.test(self.model, self.datamodule):
                scores |= result
        else:
            print("not tested: the data have no test clips", file=sys.stderr)
        if export and self.trainer.is_global_zero:
            export_run(self.model, self.trainer, scores, export)


def best_checkpoint(callbacks) -> str | None:
    """The checkpoint that a score has chosen, or else the one that was kept last; None without any."""
    kept = [callback for callback in callbacks if callback.best_model_path]
    by_score = [callback for callback in kept if callback.monitor]
    return (by_score or kept)[0].best_model_path if kept else None


def run(cli: type[FitCLI] = FitCLI, **options) -> FitCLI:
    """Lightning's command line, set up for this package; `options` as for `LightningCLI`."""
    plugins = {"class_path": "gitdistill.distillation.resume.WholeCheckpoints"}
    return cli(
        LightningModule,
        LightningDataModule,
        subclass_mode_model=True,
        subclass_mode_data=True,
        save_config_kwargs={"overwrite": True},
        parser_kwargs={"exit_on_error": False},
        trainer_defaults={"callbacks": ExactResume(), "plugins": plugins, "default_root_dir": "runs"},
        **options,
    )


def main(_) -> None:
    """Run what `sys.argv` says, which Lightning reads itself. ArgumentError, ValueError or OSError for mistakes."""
    try:
        run()
    except MisconfigurationException as error:
        raise ValueError(str(error)) from error
    except RuntimeError as error:
        if "in loading state_dict" not in str(error):
            raise
        keys = [line.strip() for line in str(error).splitlines()[1:]]
        raise ValueError(f"the checkpoint is of another network: {shorten(keys, 2)}") from error
