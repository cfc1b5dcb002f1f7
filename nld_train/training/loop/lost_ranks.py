"""Names the ranks that do not answer when communication has failed. Each of the others only knows that it waited."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch.distributed as dist

from nld_train.errors import UserError

# The other ranks notice a failure at about the same time.
_ANSWER_SECONDS = 5.0
_POLL_SECONDS = 0.1


@contextmanager
def naming_lost_ranks(timeout_minutes: float) -> Iterator[None]:
    """Turns failed communication into one line that names the ranks that have ended, hang or were stopped.

    Args:
        timeout_minutes: `execution.timeout_minutes`.

    Raises:
        UserError: in place of the error of gloo or NCCL, if some rank does not answer.
    """
    try:
        yield
    except RuntimeError as error:
        if not _is_of_communication(error):
            raise
        lost = _lost_ranks()
        if not lost:
            raise
        raise UserError(
            f"{lost}: ended, stopped or not reachable (the others wait at most execution.timeout_minutes="
            f"{timeout_minutes:g}); the same command continues from the last checkpoint"
        ) from error


def _is_of_communication(error: RuntimeError) -> bool:
    return isinstance(error, dist.DistError) or "gloo" in str(error)


def _lost_ranks() -> str:
    """The ranks that do not answer in the store, where every rank comes whose communication has failed."""
    store = dist.distributed_c10d._get_default_store()
    waiting = set(range(dist.get_world_size()))
    # A store whose host was stopped blocks its clients for ever.
    asking = threading.Thread(target=_wait_for_answers, args=(store, dist.get_rank(), waiting), daemon=True)
    asking.start()
    asking.join(2 * _ANSWER_SECONDS)
    if dist.get_rank() in waiting:
        return "the process that hosts the store of all ranks (rank 0, or torchrun's agent) does not answer"
    if not waiting:
        return ""
    numbers = ", ".join(map(str, sorted(waiting)))
    return f"rank {numbers} does not answer" if len(waiting) == 1 else f"ranks {numbers} do not answer"


def _wait_for_answers(store: dist.Store, own: int, waiting: set[int]) -> None:
    """Removes the ranks that answer, this one included."""
    deadline = time.monotonic() + _ANSWER_SECONDS
    try:
        store.set(f"answer_{own}", "")
        while waiting and time.monotonic() < deadline:
            waiting -= {rank for rank in waiting if store.check([f"answer_{rank}"])}
            time.sleep(_POLL_SECONDS)
    except RuntimeError:  # its host has ended
        return
