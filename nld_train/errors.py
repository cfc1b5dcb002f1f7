"""What a user can cause, and how a process says it."""

import sys
import time

from nld_train.processes import rank

USER_ERROR_STATUS = 2
SECONDS_FOR_FIRST_RANK = 3


class UserError(ValueError):
    """A mistake in what was asked for or provided, not in this program.

    The message is one line that names the key, file or tensor and says what would be right. The commands print it
    without a traceback and exit with a non-zero status.
    """


def report_mistake(message: str, *, every_rank: bool = True) -> int:
    """Prints one line and returns the exit status of a mistake.

    Args:
        message: of the `UserError`, in one line.
        every_rank: False for what all processes find alike, which the first one prints alone.
    """
    if rank() == 0:
        print(f"error: {message}", file=sys.stderr)
        return USER_ERROR_STATUS
    if every_rank:
        print(f"error: rank {rank()}: {message}", file=sys.stderr)
    # torchrun ends all processes as soon as one has failed: let the first one speak before.
    time.sleep(SECONDS_FOR_FIRST_RANK)
    return USER_ERROR_STATUS
