"""The configuration files name what exists, and fit their teachers."""

from inspect import signature
from pathlib import Path

import pytest
import pytorch_lightning as pl
import torch
import yaml
from jsonargparse import ArgumentParser

from gitdistill.data import FileData
from gitdistill.models.git import GenerativeImageTextModel
from gitdistill.models.student import shared_options
from gitdistill.use.plan import teacher_config

CONFIGS = Path(__file__).parents[1] / "configs"


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.yaml")), ids=lambda path: path.name)
def test_configs_are_valid(path):
    """Every name in a config exists, and takes what it is given; nothing is built or fetched."""
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--seed_everything", type=int)
    parser.add_class_arguments(pl.Trainer, "trainer", fail_untyped=False)
    parser.add_subclass_arguments(pl.LightningModule, "model", fail_untyped=False)
    parser.add_subclass_arguments(pl.LightningDataModule, "data", fail_untyped=False)
    parser.add_argument("--export", type=str)
    content = yaml.safe_load(path.read_text())
    parser.parse_object(content)
    content["data"].setdefault("init_args", {})["batchsize"] = 3
    with pytest.raises(Exception, match="batchsize"):
        parser.parse_object(content)


def test_the_configs_of_real_data_fit_their_teachers():
    for name in ("coco", "msrvtt"):
        content = yaml.safe_load((CONFIGS / f"{name}.yaml").read_text())
        model, files = content["model"]["init_args"], content["data"]["init_args"]
        with torch.device("meta"):
            shared = shared_options(GenerativeImageTextModel(teacher_config(model["teacher"])))
        assert shared["num_frames"] == files["num_frames"] and shared["vocab_size"] == 30522
        assert not shared.keys() & model["student"]["init_args"].keys()  # nothing is said twice
        assert files["tokenizer"] == model["teacher"]
        parts = [part.__init__ for part in FileData.__mro__ if "__init__" in vars(part)]
        assert files.keys() <= {name for part in parts for name in signature(part).parameters}
