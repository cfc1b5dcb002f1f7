"""Errors that a user can cause, and how a command reports them: one line on standard error and an exit status."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from nld_train.output import OutputError, flush_output, watch_output, write_error
from nld_train.printable import one_line
from nld_train.processes import rank
from nld_train.startup import INTERRUPT_STATUS

USER_ERROR_STATUS = 2
# 128 + SIGPIPE, as where a process is ended by that signal.
NO_READER_STATUS = 141
# How long the other ranks wait before they exit: torchrun ends all processes as soon as one has failed.
RANK_ZERO_SECONDS = 3
# Names in files from elsewhere can be of any length.
_LINE_CHARACTERS = 2000


class UserError(ValueError):
    """A mistake in the arguments, the configuration or the files that a user provided, not in this program.

    The message is one line that names the key, file or tensor and says what would be right. The commands print it
    without a traceback and exit with status 2.
    """


def report_error(message: str, status: int = USER_ERROR_STATUS, *, every_rank: bool = True) -> int:
    """Prints one line, `error: ...`, on standard error; returns the exit status.

    Args:
        message: of a `UserError`.
        status: the exit status.
        every_rank: False for an error that all processes find alike, which only rank 0 prints.
    """
    line = one_line(message)
    if len(line) > _LINE_CHARACTERS:
        line = f"{line[:_LINE_CHARACTERS]}..."
    if rank() == 0:
        write_error(f"error: {line}")
        return status
    if every_rank:
        write_error(f"error: rank {rank()}: {line}")
    time.sleep(RANK_ZERO_SECONDS)
    return status


def system_error(error: OSError) -> str:
    """The message of an error of the operating system, with its file."""
    return f"{error.strerror or error}" + (f": {error.filename}" if error.filename else "")


def first_line(error: Exception) -> str:
    """What an exception of a library says, in one line: the first of its message, or its kind where it has none."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def exit_status(run: Callable[[], int | None], interrupted: str = "interrupted", *, every_rank: bool = True) -> int:
    """Runs a command; returns its exit status.

    Args:
        run: the command; returns its own exit status, or None for 0.
        interrupted: the message after Ctrl-C.
        every_rank: of its `UserError`s, see `report_error`.

    Returns:
        2 after a `UserError` or an error of the operating system (a full disk, a missing permission), 130 after
        Ctrl-C, each with one line on standard error; 141, silently, where the reader of standard output has gone.
    """
    watch_output()
    status = _status(run, interrupted, every_rank)
    try:
        flush_output()
    except OutputError as error:
        status = status or _report(error, every_rank)
    return status


def _status(run: Callable[[], int | None], interrupted: str, every_rank: bool) -> int:
    with _noted_interrupts() as interrupts:
        try:
            return run() or 0
        except SystemExit as end:  # argparse's, after --help
            if not isinstance(end.code, int | None):
                raise
            return end.code or 0
        except KeyboardInterrupt:
            return report_error(interrupted, INTERRUPT_STATUS, every_rank=False)
        except Exception as error:
            if interrupts:
                return report_error(interrupted, INTERRUPT_STATUS, every_rank=False)
            if not isinstance(error, UserError | OSError):
                raise
            return _report(error, every_rank)


def _report(error: UserError | OSError, every_rank: bool) -> int:
    if isinstance(error, OutputError):
        return NO_READER_STATUS if error.silent else report_error(f"standard output: {error.strerror}")
    if isinstance(error, UserError):
        return report_error(str(error), every_rank=every_rank)
    return report_error(system_error(error))


@contextmanager
def _noted_interrupts() -> Iterator[list[int]]:
    """The interrupts while it is open. During an import, a library in C++ makes an `ImportError` of one."""
    noted: list[int] = []
    in_main_thread = threading.current_thread() is threading.main_thread()
    if not in_main_thread or signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield noted
        return

    def note(number: int, frame: object) -> None:
        noted.append(number)
        raise KeyboardInterrupt

    signal.signal(signal.SIGINT, note)
    try:
        yield noted
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)
