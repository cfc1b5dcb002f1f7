"""Signals that stop a run, and its exit codes.

| signal            | what happens                                           | exit code |
|-------------------|--------------------------------------------------------|-----------|
| SIGTERM, SIGUSR1  | the step ends, a checkpoint is saved, the process ends | 75        |
| SIGINT            | the same; a second one ends the process at once        | 130       |

75 is `EX_TEMPFAIL` of sysexits.h: the same command, started again, resumes the run. A launcher may requeue on it.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

REQUEUE_STATUS = 75
INTERRUPT_STATUS = 130
_REQUEUE_SIGNALS = (signal.SIGTERM, signal.SIGUSR1)


class StopRequest:
    """Whether this process has received a signal to stop.

    Attributes:
        status: the exit code of the signal; 0 before any.
    """

    def __init__(self) -> None:
        self.status = 0

    def handle(self, number: int, _frame: FrameType | None) -> None:
        """The signal handler: only stores the exit code."""
        self.status = INTERRUPT_STATUS if number == signal.SIGINT else REQUEUE_STATUS


@contextmanager
def stop_requests() -> Iterator[StopRequest]:
    """Handles the signals while it is open; restores the previous handlers afterwards."""
    request = StopRequest()
    numbers = (*_REQUEUE_SIGNALS, signal.SIGINT)
    with _leave_at_second_interrupt():
        before = {number: signal.signal(number, request.handle) for number in numbers}
        try:
            yield request
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


@contextmanager
def _leave_at_second_interrupt() -> Iterator[None]:
    """Ends the process at the second SIGINT while it is open, even if the main thread is blocked.

    A handler in Python runs only when the main thread returns to Python, and that may be blocked inside gloo or NCCL on
    a process that has ended. A thread reads at once what the C handler writes into the wakeup descriptor.
    """
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    before = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    threading.Thread(target=_count_interrupts, args=(reader,), name="interrupts", daemon=True).start()
    try:
        yield
    finally:
        signal.set_wakeup_fd(before)
        os.close(writer)


def _count_interrupts(reader: int) -> None:
    interrupts = 0
    while numbers := os.read(reader, 64):
        interrupts += numbers.count(signal.SIGINT)
        if interrupts > 1:
            os._exit(INTERRUPT_STATUS)
    os.close(reader)
