"""The files of `run.dir` beside the checkpoints: failures to write them end the run on every rank, with one line."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from nld_train.errors import UserError
from nld_train.training.checkpoint.collective_errors import RankFailedError, on_first_rank
from nld_train.training.metrics.run_log import RunLog
from nld_train.training.run_lock import RunLock


class LogFailedError(UserError):
    """The record of a step could not be written; the last checkpoint is unchanged."""

    def __init__(self, directory: str, reason: str) -> None:
        super().__init__(
            f"run.dir: {directory} cannot be written ({reason}); free space or repair it, and start again: the last "
            "checkpoint is unchanged"
        )


@contextmanager
def file_errors(directory: str) -> Iterator[None]:
    """Turns a failed file operation in `run.dir` into a `LogFailedError`, on every rank."""
    try:
        yield
    except RankFailedError as error:
        raise LogFailedError(directory, error.reason) from error


def prepare_to_save(directory: str, lock: RunLock | None, log: RunLog) -> None:
    """Before a checkpoint: checks that `run.dir` still is this run's, and flushes the metrics of all steps to the disk.

    A checkpoint whose metrics a loss of power took would leave a gap that no later start fills. Called by all ranks
    together.

    Args:
        directory: `run.dir`.
        lock: of that directory, on rank 0.
        log: of the run.

    Raises:
        LogFailedError: on every rank, if either fails.
    """

    def prepare() -> None:
        assert lock is not None, "rank 0 has the lock"
        lock.require()
        log.synchronise()

    with file_errors(directory):
        on_first_rank(prepare)
