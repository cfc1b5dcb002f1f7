"""Signals before a run handles them: while it imports, reads its settings, or waits for other processes.

Python's own reaction would be a death without a word at SIGTERM and SIGUSR1, and a traceback at SIGINT. Only the
standard library is imported here, as little of it as possible.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

INTERRUPT_STATUS = 130
# EX_TEMPFAIL of sysexits.h: the same command, started again, continues. A launcher may requeue on it.
REQUEUE_STATUS = 75
REQUEUE_SIGNALS = (signal.SIGTERM, signal.SIGUSR1)
STOP_SIGNALS = (*REQUEUE_SIGNALS, signal.SIGINT)


def stop_status(number: int) -> int:
    """The exit status after a signal of `STOP_SIGNALS`."""
    return INTERRUPT_STATUS if number == signal.SIGINT else REQUEUE_STATUS


@contextmanager
def nothing_to_save_yet() -> Iterator[None]:
    """Ends the process at the first signal of `STOP_SIGNALS`, with a line on rank 0, while no run handles it.

    Outside of the main thread, where no signals can be handled, it does nothing.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    with numbers_at_once(_leave):
        before = {number: signal.signal(number, _ignore) for number in STOP_SIGNALS}
        try:
            yield
        finally:
            for number, handler in before.items():
                # A run that was stopped ignores further ones to its end (`training.loop.signals`).
                if signal.getsignal(number) is _ignore:
                    signal.signal(number, handler)


def _ignore(_number: int, _frame: object) -> None:
    """The handler: `_leave` does the work, in its thread."""


def _leave(numbers: bytes) -> None:
    number = next((number for number in numbers if number in STOP_SIGNALS), None)
    if number is None or signal.getsignal(number) is not _ignore:
        return
    status = stop_status(number)
    if os.environ.get("RANK", "0") == "0":
        name = signal.Signals(number).name
        message = f"stopped by {name}: nothing to save yet (exit code {status}); the same command starts it again\n"
        os.write(2, message.encode())
    os._exit(status)


@contextmanager
def numbers_at_once(received: Callable[[bytes], None]) -> Iterator[None]:
    """Calls a function in a thread with the numbers of signals, at once, even if the main thread is blocked.

    A handler in Python runs only when the main thread returns to Python, and that may be blocked inside gloo or NCCL on
    a process that has ended. A thread reads at once what the C handler writes into the wakeup descriptor.
    """
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    before = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    threading.Thread(target=_read, args=(reader, received), name="signals", daemon=True).start()
    try:
        yield
    finally:
        signal.set_wakeup_fd(before)
        os.close(writer)


def _read(reader: int, received: Callable[[bytes], None]) -> None:
    while numbers := os.read(reader, 64):
        received(numbers)
    os.close(reader)
