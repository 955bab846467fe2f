"""Settings shared by the unit tests and the notebooks."""

import os

import pytest

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # no test fetches anything

# As tests the notebooks train for fewer steps and score fewer clips, in a folder of their own: `make run` has the full
# sizes, and what it wrote to runs/ stays.
SMALLER = {
    "03_distillation_training": {
        "STEPS = 3000, 32, 2, 450": "STEPS = 1000, 32, 2, 150",
        'RUNS, LOG = "../runs"': 'RUNS, LOG = "../runs/test"',
    },
    "04_decoding_comparison": {
        'Path("../runs")': 'Path("../runs/test")',
        "GlyphData(batch_size=100).test": "GlyphData(batch_size=100, test_clips=100, unseen_clips=100).test",
    },
}


def pytest_configure(config):
    """Let pytest start in any folder: nbval reads the path of its settings against the current one."""
    path = config.getoption("nbval_sanitize_with", None)
    if path:
        config.option.nbval_sanitize_with = str(config.rootpath / path)


def pytest_collection_modifyitems(items):
    """Make the notebooks smaller; an error if a notebook no longer has the text that is replaced."""
    for name, changes in SMALLER.items():
        cells = [item.cell for item in items if hasattr(item, "cell") and item.path.stem == name]
        for old, new in changes.items():
            if cells and sum(old in cell.source for cell in cells) != 1:
                raise pytest.UsageError(f"conftest.py: not one cell of {name} has {old!r}")
            for cell in cells:
                cell.source = cell.source.replace(old, new)
