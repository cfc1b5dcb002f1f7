"""Processes that share out requests: rank 0 runs the harness, every copy of the model answers its share."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch.distributed as dist

from nld_train.training.loop.parallel import world_size

# Metrics of rank 0 can take long, and torchrun ends the others where it fails.
_PATIENCE = timedelta(days=7)

Answer = Callable[[str, Sequence[Any]], list[Any]]


class Ranks:
    """The processes of one evaluation. Those that share a copy of the model answer the same requests.

    Args:
        answer: answers requests of a kind on this rank, in order.
        group: of all processes, or None for this one alone.
    """

    def __init__(self, answer: Answer, group: dist.ProcessGroup | None) -> None:
        self._answer, self._group = answer, group
        self.rank = dist.get_rank() if group is not None else 0
        self._copy, self._copies = _copy_of_model(self.rank, dist.get_world_size() if group is not None else 1)

    def ask(self, kind: str, requests: Sequence[Any]) -> list[Any]:
        """On rank 0: answers from all copies, in the order of the requests."""
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
        """This copy's share, and all shares put together."""
        own = self._answer(kind, requests[self._copy :: self._copies])
        if self._group is None:
            return own
        shares: list[Any] = [None] * dist.get_world_size(self._group)
        dist.all_gather_object(shares, (self._copy, own), group=self._group)
        joined: list[Any] = [None] * len(requests)
        for copy, share in shares:
            joined[copy :: self._copies] = share
        return joined


def _copy_of_model(rank: int, size: int) -> tuple[int, int]:
    """Which copy of the model this process has a part of, and how many there are; an export has one in each process."""
    from megatron.core import parallel_state

    if not parallel_state.is_initialized():
        return rank, size
    return parallel_state.get_data_parallel_rank(), parallel_state.get_data_parallel_world_size()


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
