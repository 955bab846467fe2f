"""The command line, for all rooms."""

import sys

import pytest


@pytest.fixture
def run(monkeypatch, tmp_path):
    """Call `python -m gitdistill` with these arguments in an empty folder; its exit code or last line."""
    from gitdistill.__main__ import main

    monkeypatch.chdir(tmp_path)

    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["gitdistill", *map(str, arguments)])
        with pytest.raises(SystemExit) as stopped:
            main()
        return stopped.value.code or 0

    return call
