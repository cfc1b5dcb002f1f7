"""One row of `benchmarks.gpu`: a command in its own process group, which is ended completely."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
# Seconds between SIGTERM and SIGKILL.
GRACE = 5.0
_POLL = 0.1
_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
# pytest exits with 0 if all tests are skipped; a row of tests succeeds only if a test passed (--small: was collected).
_SOME_TESTS = re.compile(r"\b[1-9]\d*(/\d+)? (passed|tests? collected)")


@dataclass
class Stop:
    """The signal that ends the run, if one has arrived."""

    number: int | None = field(default=None)

    def __call__(self, number: int, frame: FrameType | None) -> None:
        """The handler only stores the number: `_wait` reads it and ends the row first."""
        self.number = number


@contextmanager
def stoppable() -> Iterator[Stop]:
    """Inside, signals that would end the process are only stored in `Stop`."""
    stop = Stop()
    before = {number: signal.signal(number, stop) for number in _SIGNALS}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def run_row(words: list[str], log: Path, limit: float, stop: Stop) -> dict[str, Any]:
    """Runs `python -m words` until it ends, its limit is reached or a signal arrives.

    Args:
        words: arguments of `python -m`.
        log: file of its output; removed if the row succeeds.
        limit: seconds.
        stop: set by a signal.

    Returns:
        The outcome and the seconds; the end of the output if the row did not succeed.
    """
    begin = time.monotonic()
    with log.open("w") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", *words],
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        outcome = _wait(process, begin + limit, stop)
    text = log.read_text(errors="replace")
    if outcome == "done" and words[0] == "pytest" and not _SOME_TESTS.search(text):
        outcome = "nothing ran"
    found: dict[str, Any] = {"outcome": outcome, "seconds": time.monotonic() - begin, "words": words}
    if outcome == "done":
        log.unlink()
        return found
    return {**found, "output": text[-2000:]}


def _wait(process: subprocess.Popen[bytes], end: float, stop: Stop) -> str:
    """Waits until the process ends or has to be ended, and ends its whole group; returns the outcome."""
    outcome = None
    try:
        while process.poll() is None and outcome is None:
            if stop.number is not None:
                outcome = f"stopped by {signal.Signals(stop.number).name}"
            elif time.monotonic() > end:
                outcome = "cut off"
            else:
                time.sleep(_POLL)
    finally:
        end_groups([process], GRACE)
    if outcome is not None:
        return outcome
    # pytest's status 5: no tests were collected.
    return {0: "done", 5: "nothing ran"}.get(process.returncode, f"failed with status {process.returncode}")


def end_groups(processes: Sequence[subprocess.Popen[bytes]], grace: float) -> None:
    """Sends SIGTERM, and after at most `grace` seconds for all of them SIGKILL, to the processes' groups."""
    for process in processes:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGTERM)
    end = time.monotonic() + grace
    for process in processes:
        with suppress(subprocess.TimeoutExpired):
            process.wait(max(0.1, end - time.monotonic()))
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
