"""The error of a command that is refused, and what it leaves behind."""

from __future__ import annotations

from pathlib import Path

import pytest

from checkpoint_convert.cli import main


def refused(capsys: pytest.CaptureFixture[str], arguments: list[str], destination: Path) -> str:
    """The one line that a command prints; it must leave nothing behind."""
    before = {path.name for path in destination.parent.iterdir()}
    assert main(arguments) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith("error: ")
    assert printed.err.count("\n") == 1
    assert {path.name for path in destination.parent.iterdir()} == before
    return printed.err
