"""Benchmarks of start-up and scaling, on small shapes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tiny_runs import TINY_MODEL, data_overrides, write_token_set

from benchmarks import scaling, start


@pytest.mark.parametrize("commands", [("nld-train --help", "nld-status"), pytest.param((), marks=pytest.mark.long)])
def test_start(
    commands: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Of two commands, one of which ends with an error, and of all."""
    if commands:
        monkeypatch.setattr(start, "COMMANDS", {name: start.COMMANDS[name] for name in commands})
    start.main(["--starts", "1", "--results", str(tmp_path)])
    result = json.loads((tmp_path / "start.json").read_text())
    assert set(result["figures"]) == set(start.COMMANDS)
    for row in result["figures"].values():
        assert row["of_limit"] == pytest.approx(row["seconds"] / row["limit"])
    assert "nld-train --help" in capfd.readouterr().out


@pytest.mark.long
def test_scaling(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    prefix = write_token_set(tmp_path / "tokens", seed=1)
    overrides = [*TINY_MODEL, *data_overrides(prefix), "batch.micro_size=4"]
    scaling.main([*overrides, "--processes", "1,2", "--steps", "2", "--results", str(tmp_path)])
    rows = json.loads((tmp_path / "scaling.json").read_text())["figures"]["processes"]
    assert set(rows) == {"1", "2"}
    assert all(len(row["seconds_all"]) == 2 for row in rows.values())
    assert rows["1"]["of_limit"] == 1
    assert "seconds per step" in capfd.readouterr().out
