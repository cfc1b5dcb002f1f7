"""Benchmarks of start-up and scaling, on small shapes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tiny_runs import TINY_MODEL, data_overrides, write_token_set

from benchmarks import scaling, start


def test_start(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
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
