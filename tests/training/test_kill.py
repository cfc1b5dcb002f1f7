"""The real command, killed without warning, goes on as if nothing had happened."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from tiny_runs import newest_checkpoint, records_of, saved_tensors, train_here, two_stages

LONG = (*two_stages(40, 40), "checkpoint.every=3")
LOSSES = ("step", "loss", "ar_loss", "diffusion_loss", "grad_norm", "learning_rate")


@pytest.mark.long
@pytest.mark.parametrize("steps", [8, 47])
def test_a_killed_run_goes_on(settings: tuple[str, ...], tmp_path: Path, steps: int) -> None:
    """Killed between two checkpoints, or while one is being written, in either stage."""
    whole = train_here(tmp_path / "whole", *settings, *LONG)
    killed = tmp_path / "killed"
    command = [sys.executable, "-m", "nld_train.train", *settings, *LONG, f"run.dir={killed}"]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as process:
        _wait_for_steps(killed / "metrics.jsonl", steps, process)
        process.kill()
    assert len((killed / "metrics.jsonl").read_text().splitlines()) < 80
    train_here(killed, *settings, *LONG)
    tensors, others = (saved_tensors(newest_checkpoint(directory)) for directory in (killed, whole))
    assert tensors.keys() == others.keys()
    for name, tensor in tensors.items():
        assert torch.equal(tensor, others[name]), name
    found, expected = ([[r[name] for name in LOSSES] for r in records_of(path)] for path in (killed, whole))
    assert found == expected
    assert list((killed / "checkpoints").glob("*.tmp")) == []


def _wait_for_steps(metrics: Path, steps: int, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 240
    while not (metrics.exists() and metrics.read_bytes().count(b"\n") >= steps):
        assert process.poll() is None, "the run ended by itself"
        assert time.monotonic() < deadline
        time.sleep(0.02)
