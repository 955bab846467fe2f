"""Command line: `python -m gitdistill fit|validate|test --config configs/….yaml` (Lightning's own CLI).

After a fit the checkpoint that validation chose is tested and, with `--export FOLDER`, written there: the
network, its training log (log.csv) and its scores (scores.json).
"""

import sys

from pytorch_lightning import LightningDataModule, LightningModule
from pytorch_lightning.cli import LightningCLI

from gitdistill.trainer import export_run


class GitdistillCLI(LightningCLI):
    def add_arguments_to_parser(self, parser):
        parser.add_argument("--export", type=str | None, default=None, help="folder to write the result to")

    def after_fit(self):
        best = self.trainer.checkpoint_callback.best_model_path or None
        scores = {}
        for result in self.trainer.test(self.model, self.datamodule, ckpt_path=best, weights_only=True):
            scores |= result
        folder = self.config.fit.export
        if folder:
            export_run(self.model, self.trainer, scores, folder)


def main() -> None:
    try:
        GitdistillCLI(
            LightningModule,
            LightningDataModule,
            subclass_mode_model=True,
            subclass_mode_data=True,
            save_config_kwargs={"overwrite": True},
        )
    except (ValueError, FileNotFoundError, OSError) as error:
        sys.exit(f"gitdistill: {error}")


if __name__ == "__main__":
    main()
