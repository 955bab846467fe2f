"""Settings shared by the unit tests and the notebooks."""

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # no test fetches anything


def pytest_configure(config):
    """Let pytest start in any folder: nbval reads the path of its settings against the current one."""
    path = config.getoption("nbval_sanitize_with", None)
    if path:
        config.option.nbval_sanitize_with = str(config.rootpath / path)
