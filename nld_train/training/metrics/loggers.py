"""Where a run writes what it measures: the console, `metrics.jsonl`, and Weights & Biases."""

from __future__ import annotations

import os
from pathlib import Path

from nld_train.config.schema import Config
from nld_train.training.metrics.console import ConsoleLog
from nld_train.training.metrics.jsonl import MetricsFile, Record
from nld_train.training.metrics.wandb_log import WandbLog


class Metrics:
    """All the places where a step is written; only rank 0 has any.

    Args:
        config: the run.
        rank: of this process.
        total_steps: of the whole run.
        last_step: the step from which the run goes on.
    """

    def __init__(self, config: Config, rank: int, total_steps: int, last_step: int) -> None:
        self._console = ConsoleLog(total_steps, config.logging.every) if rank == 0 else None
        self._file = MetricsFile(Path(config.run.dir) / "metrics.jsonl", last_step) if rank == 0 else None
        self._wandb = WandbLog(config) if rank == 0 else None

    def write(self, record: Record) -> None:
        """Writes a step everywhere."""
        for place in (self._file, self._console, self._wandb):
            if place is not None:
                place.write(record)

    def say(self, text: str) -> None:
        """Prints a line on rank 0's terminal."""
        if self._console is not None:
            self._console.say(text)

    def close(self, summary: Record | None = None, image: Path | None = None) -> None:
        """Closes the file and ends the Weights & Biases run."""
        if self._file is not None:
            self._file.close()
        if self._wandb is not None:
            self._wandb.finish(summary, image)


def require_writable(directory: Path) -> None:
    """Makes the run's directory.

    Raises:
        OSError: it cannot be made or written to.
    """
    directory.mkdir(parents=True, exist_ok=True)
    probe = directory / f".writable-{os.getpid()}"
    probe.touch()
    probe.unlink()
