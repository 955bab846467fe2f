"""The benchmark of a large set, in small."""

import json
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))
import scale  # noqa: E402


@pytest.mark.skipif(sys.platform != "linux", reason="Linux alone tells what memory is a process's own")
def test_every_measure_is_taken(tmp_path, monkeypatch):
    monkeypatch.setattr(scale, "PICTURES", 5)
    result = scale.run(tmp_path, {"train": 40, "val": 3, "test": 2}, batches=1, rounds=1)
    assert result["construct"]["clips"] == {"train": 40, "val": 3, "test": 2}
    assert (
        len(result["workers"]) == scale.WORKERS and 0 < min(result["workers"]) < result["construct"]["peak"]
    )
    assert list(result["rates"]) == ["FileData", 'FileData, resize="fast"', "bare loop", "torchvision"]
    assert min(result["rates"].values()) > 0 and result["machine"]["cpu"]
    assert len(scale.table(result)) == 5 + len(result["rates"])
    json.dumps(result)


def test_the_bare_loop_reads_what_filedata_reads(tmp_path, monkeypatch):
    """Otherwise their rates could not be compared."""
    monkeypatch.setattr(scale, "PICTURES", 4)
    made = scale.data(scale.write(tmp_path, {"train": 4}), ["train"])
    (batch,) = made.pool_dataloader()
    assert batch["frames"][:, 0].equal(scale.bare([item.path for item in made.source("train")]))
