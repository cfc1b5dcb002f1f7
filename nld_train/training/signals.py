"""Signals that ask a run to save and leave, and the exit codes that say so.

| signal            | what happens                                      | exit code |
|-------------------|---------------------------------------------------|-----------|
| SIGTERM, SIGUSR1  | the step ends, its state is saved, the run leaves | 75        |
| SIGINT            | the same; a second one leaves at once             | 130       |

75 is `EX_TEMPFAIL` of sysexits.h: the same command, started again, goes on. A launcher may requeue on it.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

REQUEUE_STATUS = 75
INTERRUPT_STATUS = 130
_REQUEUE_SIGNALS = (signal.SIGTERM, signal.SIGUSR1)


class StopRequest:
    """Whether this process was asked to stop.

    Attributes:
        status: the exit code asked for; 0 while nobody asked.
    """

    def __init__(self) -> None:
        self.status = 0

    def handle(self, number: int, _frame: FrameType | None) -> None:
        """The signal handler: only takes a note."""
        if number != signal.SIGINT:
            self.status = REQUEUE_STATUS
        elif self.status == INTERRUPT_STATUS:
            os._exit(INTERRUPT_STATUS)
        else:
            self.status = INTERRUPT_STATUS


@contextmanager
def stop_requests() -> Iterator[StopRequest]:
    """Notes signals while it is open; afterwards they do what they did before."""
    request = StopRequest()
    numbers = (*_REQUEUE_SIGNALS, signal.SIGINT)
    before = {number: signal.signal(number, request.handle) for number in numbers}
    try:
        yield request
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
