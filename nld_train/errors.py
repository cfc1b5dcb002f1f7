"""Errors that a user can cause, and how a command reports them: one line on standard error and an exit status."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable

from nld_train.printable import one_line
from nld_train.processes import rank

USER_ERROR_STATUS = 2
INTERRUPT_STATUS = 130
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
        print(f"error: {line}", file=sys.stderr)
        return status
    if every_rank:
        print(f"error: rank {rank()}: {line}", file=sys.stderr)
    time.sleep(RANK_ZERO_SECONDS)
    return status


def system_error(error: OSError) -> str:
    """The message of an error of the operating system, with its file."""
    return f"{error.strerror or error}" + (f": {error.filename}" if error.filename else "")


def exit_status(run: Callable[[], int | None], interrupted: str = "interrupted") -> int:
    """Runs a command; returns its exit status.

    Args:
        run: the command; returns its own exit status, or None for 0.
        interrupted: the message after Ctrl-C.

    Returns:
        2 after a `UserError` or an error of the operating system (a full disk, a missing permission), 130 after
        Ctrl-C, each with one line on standard error.
    """
    try:
        return run() or 0
    except UserError as error:
        return report_error(str(error))
    except OSError as error:
        return report_error(system_error(error))
    except KeyboardInterrupt:
        return report_error(interrupted, INTERRUPT_STATUS, every_rank=False)
