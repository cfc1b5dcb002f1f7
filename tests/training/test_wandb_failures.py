"""Weights & Biases that cannot be reached never ends a run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tiny_runs import composed

from nld_train.training.metrics.wandb_log import WandbLog

RECORD = {"step": 1, "loss": 2.0}


@pytest.fixture
def alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """An account without a key, and a server that nobody reaches; the library reads both again."""
    import wandb

    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("WANDB_API_KEY", "")
    wandb.teardown()


@pytest.mark.parametrize(
    ("key", "reason"), [("", "No API key configured"), ("0" * 40, "connection refused")], ids=["key", "network"]
)
@pytest.mark.usefixtures("alone")
def test_online_without_a_key_or_a_network_is_logged_offline(
    data: tuple[str, ...],
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    key: str,
    reason: str,
) -> None:
    monkeypatch.setenv("WANDB_API_KEY", key)
    log = WandbLog(composed(*data, f"run.dir={tmp_path}", "logging.wandb.mode=online"), start_seconds=1)
    log.write(RECORD)
    log.finish()
    (line,) = [line for line in capfd.readouterr().err.splitlines() if not line.startswith("wandb: ")]
    assert line.startswith("warning: logging.wandb.mode=online fails (")
    assert reason in line
    assert line.endswith("; logged offline, to be sent by `wandb sync`")
    assert len(list(tmp_path.glob("wandb/offline-run-*/run-*.wandb"))) == 1


class LostRun:
    """A run of the library whose service has gone."""

    def log(self, *_: Any, **__: Any) -> None:
        raise ConnectionResetError("the service has gone")


def test_a_service_that_goes_during_the_run_is_one_warning(
    data: tuple[str, ...], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    log = WandbLog(composed(*data, f"run.dir={tmp_path}", "logging.wandb.mode=disabled"))
    log._run = LostRun()
    log.write(RECORD)
    log.write(RECORD)
    log.finish({}, tmp_path / "report.png")
    assert capfd.readouterr().err == (
        "warning: Weights & Biases fails (the service has gone); the run continues without it\n"
    )
