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
import threading
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
        self.status = INTERRUPT_STATUS if number == signal.SIGINT else REQUEUE_STATUS


@contextmanager
def stop_requests() -> Iterator[StopRequest]:
    """Notes signals while it is open; afterwards they do what they did before."""
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
    """Ends the process at the second SIGINT while it is open, whatever the main thread does.

    A handler in Python runs when the main thread comes back to Python, and that may be waiting inside gloo or NCCL for
    a process that is gone. What the C handler writes into the wakeup descriptor, a thread reads at once.
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
