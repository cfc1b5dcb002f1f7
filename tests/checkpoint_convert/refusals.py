"""What a refused command says and leaves behind."""

from __future__ import annotations

from pathlib import Path

import pytest

from checkpoint_convert.cli import main


def refused(capsys: pytest.CaptureFixture[str], arguments: list[str], destination: Path) -> str:
    """The one line that a command says; it must leave nothing behind."""
    before = {path.name for path in destination.parent.iterdir()}
    assert main(arguments) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.startswith("error: ")
    assert said.err.count("\n") == 1
    assert {path.name for path in destination.parent.iterdir()} == before
    return said.err
