"""Signals that stop a run, and its exit codes.

| signal            | what happens                                           | exit code |
|-------------------|--------------------------------------------------------|-----------|
| SIGTERM, SIGUSR1  | the step ends, a checkpoint is saved, the process ends | 75        |
| SIGINT            | the same; a second one ends the process at once        | 130       |

Before a run handles them itself, each ends the process at once with the same exit code (`nld_train.startup`).
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from nld_train.startup import INTERRUPT_STATUS, REQUEUE_SIGNALS, STOP_SIGNALS, numbers_at_once, stop_status


class StopRequest:
    """Whether this process has received a signal to stop.

    Attributes:
        status: the exit code of the signal; 0 before any.
    """

    def __init__(self) -> None:
        self.status = 0

    def handle(self, number: int, _frame: FrameType | None) -> None:
        """The signal handler: only stores the exit code."""
        self.status = stop_status(number)


@contextmanager
def stop_requests() -> Iterator[StopRequest]:
    """Handles the signals while it is open, and restores the previous handlers afterwards, with two exceptions.

    After a signal has stopped the run, SIGTERM and SIGUSR1 are ignored: launchers signal again, and a second one must
    not turn the exit code of a saved run into that of a kill. SIGINT then ends the process without a word. After an
    error, SIGTERM and SIGUSR1 kill: there is nothing that a launcher should continue.
    """
    request = StopRequest()
    with numbers_at_once(_leave_at_second_interrupt()):
        after: dict[signal.Signals, Any] = {number: signal.signal(number, request.handle) for number in STOP_SIGNALS}
        try:
            yield request
        except BaseException:
            after |= dict.fromkeys(REQUEUE_SIGNALS, signal.SIG_DFL)
            raise
        finally:
            if request.status:
                after = {signal.SIGINT: signal.SIG_DFL, **dict.fromkeys(REQUEUE_SIGNALS, signal.SIG_IGN)}
            for number, handler in after.items():
                signal.signal(number, handler)


def _leave_at_second_interrupt() -> Callable[[bytes], None]:
    interrupts = 0

    def received(numbers: bytes) -> None:
        nonlocal interrupts
        interrupts += numbers.count(signal.SIGINT)
        if interrupts > 1:
            os._exit(INTERRUPT_STATUS)

    return received
