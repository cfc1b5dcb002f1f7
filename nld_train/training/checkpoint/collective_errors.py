"""Collective error propagation: file operations of one rank whose errors are raised on every rank.

A full disk or a lost mount can fail one rank only. Were the error raised there alone, the other ranks would wait for
that rank in their next collective until it times out.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar, cast

import torch.distributed as dist
from safetensors import SafetensorError

from nld_train.errors import system_error

# A disk that is full: torch's writer of zip files reports that as a RuntimeError, safetensors as an error of its own.
_DISK_ERRORS = (OSError, RuntimeError, SafetensorError)

Result = TypeVar("Result")


class RankFailedError(Exception):
    """A file operation failed on some rank.

    Attributes:
        rank: the first one on which it failed.
        reason: in one line.
    """

    def __init__(self, rank: int, reason: str) -> None:
        super().__init__(rank, reason)
        self.rank = rank
        self.reason = reason


def on_every_rank(operation: Callable[[], Result]) -> list[Result]:
    """Runs a file operation on every rank; called by all together.

    Args:
        operation: must not communicate. What it returns is gathered, and so must be picklable.

    Returns:
        What it returned on each rank, in their order.

    Raises:
        RankFailedError: on every rank, if it failed on one.
    """
    own: Result | RankFailedError
    try:
        own = operation()
    except _DISK_ERRORS as error:
        own = RankFailedError(dist.get_rank(), _first_line(error))
    gathered: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(gathered, own)
    for result in gathered:
        if isinstance(result, RankFailedError):
            raise result
    return gathered


def on_first_rank(operation: Callable[[], Result]) -> Result:
    """Runs a file operation on rank 0 while the others wait; returns its result on all ranks.

    Raises:
        RankFailedError: on every rank, if it failed.
    """
    first: Any = on_every_rank(lambda: operation() if dist.get_rank() == 0 else None)[0]
    return cast(Result, first)


def _first_line(error: Exception) -> str:
    """The error's message, without the stack frames that torch's C++ errors append to it."""
    if isinstance(error, OSError):
        return system_error(error)
    return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"
