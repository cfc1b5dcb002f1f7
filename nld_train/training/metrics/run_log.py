"""Writes the metrics of a run on rank 0: `metrics.jsonl`, the console, `run.log`, and services."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from nld_train.config.load import config_to_yaml
from nld_train.config.schema import Config
from nld_train.files import set_aside, write_atomically
from nld_train.training.checkpoint.paths import CONFIG_FILE
from nld_train.training.metrics.console import LOG_FILE, ConsoleLog
from nld_train.training.metrics.jsonl import MetricsFile
from nld_train.training.metrics.records import StepRecord
from nld_train.training.metrics.registry import MetricTable
from nld_train.training.metrics.report import write_report
from nld_train.training.metrics.service_log import open_services
from nld_train.training.metrics.summary import progress_lines, write_summary


class RunLog:
    """Everything that a step is written to. On other ranks than 0 it writes nothing.

    Args:
        config: the run.
        rank: of this process.
        total_steps: of the whole run.
        last_step: the step after which the run continues.
        metrics: of the run.

    Attributes:
        failure: why a step could not be written to `metrics.jsonl` or `run.log`; None as long as all could.

    Raises:
        OSError: a file cannot be written.
    """

    def __init__(self, config: Config, rank: int, total_steps: int, last_step: int, metrics: MetricTable) -> None:
        self._directory = Path(config.run.dir)
        self._metrics = metrics
        self._first_rank = rank == 0
        self.failure: OSError | None = None
        if self._first_rank:
            _set_aside_folders(self._directory)
            write_atomically(self._directory / CONFIG_FILE, config_to_yaml(config))
            every, stages = config.logging.every, config.run.stages
            self._console = ConsoleLog(self._directory, total_steps, every, metrics, stages)
            self._file = MetricsFile(self._directory / "metrics.jsonl", last_step)
            self._services = open_services(config, metrics)

    def write(self, record: StepRecord) -> None:
        """Writes a step everywhere; a file that cannot be written is noted in `failure`, for all ranks to stop at."""
        if self._first_rank:
            try:
                self._file.write(record.values)
                self._console.write(record.values, record.between)
            except OSError as error:
                self.failure = error
            for service in self._services:
                service.write(record.values)

    def synchronise(self) -> None:
        """Returns when the metrics of all steps so far are on the disk, so that a checkpoint of them may follow.

        Raises:
            OSError: they cannot be written to the disk.
        """
        if self._first_rank:
            self._file.synchronise()

    def print(self, text: str) -> None:
        """Writes a line on the console and into `run.log`."""
        if self._first_rank:
            self._console.print(text)

    def __enter__(self) -> RunLog:
        return self

    def __exit__(self, _: object, error: BaseException | None, __: object) -> None:
        """Closes the console and `run.log`, and writes there what has ended the run, if anything has."""
        if not self._first_rank:
            return
        if error is not None:
            self._console.note_error(error)
        self._console.close()

    def close(self, last_line: str) -> None:
        """Writes the summary and the report of all steps so far, their lines and a last one, and closes the files."""
        if not self._first_rank:
            return
        summary, image = write_summary(self._directory, self._metrics), write_report(self._directory, self._metrics)
        for line in [*progress_lines(summary, self._metrics), last_line]:
            self._console.print(line)
        self._file.close()
        for service in self._services:
            service.finish(summary, image)


def _set_aside_folders(directory: Path) -> None:
    """Renames what is no file and has the name of one that a run writes, so that the run need not end for it."""
    for name in (CONFIG_FILE, LOG_FILE, "summary.json", "report.png"):
        path = directory / name
        if os.path.lexists(path) and not path.is_file():
            print(f"warning: {path} is not a file and is renamed to {set_aside(path).name}", file=sys.stderr)
