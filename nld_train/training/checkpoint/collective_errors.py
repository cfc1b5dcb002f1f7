"""What a disk may refuse to one rank only: done so that all ranks know, and none waits for one that has left."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar, cast

import torch.distributed as dist
from safetensors import SafetensorError

# A disk that is full: torch's writer of zip files reports that as a RuntimeError, safetensors as an error of its own.
_DISK_ERRORS = (OSError, RuntimeError, SafetensorError)

Result = TypeVar("Result")


class RefusedError(Exception):
    """A rank could not do what it was to do.

    Attributes:
        rank: the first one that could not.
        reason: in one line.
    """

    def __init__(self, rank: int, reason: str) -> None:
        super().__init__(rank, reason)
        self.rank = rank
        self.reason = reason


def on_every_rank(act: Callable[[], Result]) -> list[Result]:
    """Does something with files on every rank; called by all together.

    Args:
        act: must not communicate. What it returns is sent to the other ranks.

    Returns:
        What it returned on each rank, in their order.

    Raises:
        RefusedError: on every rank, if the disk refused it to one.
    """
    mine: Result | RefusedError
    try:
        mine = act()
    except _DISK_ERRORS as error:
        mine = RefusedError(dist.get_rank(), _in_one_line(error))
    parts: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(parts, mine)
    for part in parts:
        if isinstance(part, RefusedError):
            raise part
    return parts


def on_first_rank(act: Callable[[], Result]) -> Result:
    """Does something with files on rank 0 while the others wait; returns on all ranks what it returned there.

    Raises:
        RefusedError: on every rank, if the disk refused it.
    """
    first: Any = on_every_rank(lambda: act() if dist.get_rank() == 0 else None)[0]
    return cast(Result, first)


def _in_one_line(error: Exception) -> str:
    """What the error says, without the frames that torch's C++ errors have below."""
    said = (str(error).splitlines() or [""])[0]
    return said if isinstance(error, OSError) else f"{type(error).__name__}: {said}"
