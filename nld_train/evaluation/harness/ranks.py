"""Processes that share out requests: rank 0 runs the harness, every rank answers its share."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch.distributed as dist

from nld_train.training.parallel import world_size

# Metrics of rank 0 can take long, and torchrun ends the others where it fails.
_PATIENCE = timedelta(days=7)

Answer = Callable[[str, Sequence[Any]], list[Any]]


class Ranks:
    """The processes of one evaluation, each with a model of its own.

    Args:
        answer: answers requests of a kind on this rank, in order.
        group: of all processes, or None for this one alone.
    """

    def __init__(self, answer: Answer, group: dist.ProcessGroup | None) -> None:
        self._answer, self._group = answer, group
        self.rank = dist.get_rank() if group is not None else 0
        self.size = dist.get_world_size() if group is not None else 1

    def ask(self, kind: str, requests: Sequence[Any]) -> list[Any]:
        """On rank 0: answers from all ranks, in the order of the requests."""
        self._tell((kind, list(requests)))
        return self._join(kind, requests)

    def serve(self) -> None:
        """On the other ranks: answers until `dismiss`."""
        while (told := self._tell(None)) is not None:
            self._join(*told)

    def dismiss(self) -> None:
        """On rank 0: lets the others go."""
        self._tell(None)

    def _tell(self, message: tuple[str, list[Any]] | None) -> tuple[str, list[Any]] | None:
        """What rank 0 says."""
        box = [message]
        if self._group is not None:
            dist.broadcast_object_list(box, src=0, group=self._group)
        return box[0]

    def _join(self, kind: str, requests: Sequence[Any]) -> list[Any]:
        """This rank's share, and all shares put together."""
        own = self._answer(kind, requests[self.rank :: self.size])
        if self._group is None:
            return own
        shares: list[list[Any]] = [[] for _ in range(self.size)]
        dist.all_gather_object(shares, own, group=self._group)
        joined: list[Any] = [None] * len(requests)
        for rank, share in enumerate(shares):
            joined[rank :: self.size] = share
        return joined


@contextmanager
def all_processes() -> Iterator[dist.ProcessGroup | None]:
    """A group, on the CPU, of all processes that torchrun has started; None without it."""
    if world_size() == 1:
        yield None
        return
    joined_here = not dist.is_initialized()
    if joined_here:
        dist.init_process_group("gloo", timeout=_PATIENCE)
    try:
        yield dist.new_group(backend="gloo", timeout=_PATIENCE)
    finally:
        if joined_here:
            dist.destroy_process_group()
