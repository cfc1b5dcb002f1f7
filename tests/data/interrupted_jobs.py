"""Interrupts jobs where a lock is held: in the middle of the wait for their results (run in a forked process)."""

from __future__ import annotations

import signal
import sys
import time
from concurrent.futures import ThreadPoolExecutor, _base
from types import FrameType
from typing import Any

from nld_train.data import workers


def work(job: int, advance: Any) -> int:
    """Takes as long as it takes to be waited for."""
    time.sleep(0.01)
    return job


class Interrupt:
    """A trace function that sends Ctrl-C as soon as `concurrent.futures.wait` has locked all futures."""

    sent = False

    def __call__(self, frame: FrameType, event: str, argument: Any) -> Any:
        if frame.f_code is not _base._AcquireFutures.__enter__.__code__:
            return None
        return self._in_enter

    def _in_enter(self, frame: FrameType, event: str, argument: Any) -> Any:
        if event == "return" and not self.sent:
            self.sent = True
            signal.raise_signal(signal.SIGINT)
        return self._in_enter


def main() -> None:
    """Says how the jobs ended, after the pool has ended; which it does not where a lock has stayed locked."""
    workers._work = work
    interrupt, done = Interrupt(), []
    with ThreadPoolExecutor(2) as pool:
        sys.settrace(interrupt)
        try:
            for result in workers._results(pool, range(1000), 8, lambda: None):
                done.append(result)
            said = "was not interrupted"
        except KeyboardInterrupt:
            said = "interrupted"
        finally:
            sys.settrace(None)
    print(f"{said} after {len(done)} of 1000 jobs, signal sent: {interrupt.sent}", flush=True)
