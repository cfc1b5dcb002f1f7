"""The processes of one evaluation: rank 0 runs lm_eval and broadcasts requests; every replica answers some."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch.distributed as dist

from nld_train.processes import world_size

# Rank 0 can take long to compute metrics. If it fails, torchrun ends the other processes.
_TIMEOUT = timedelta(days=7)

Answer = Callable[[str, Sequence[Any]], list[Any]]


class WorkerGroup:
    """The processes of one evaluation. Processes that share a replica of the model answer the same requests.

    Args:
        answer: answers requests of a kind on this rank, in order.
        group: of all processes, or None for this one alone.
    """

    def __init__(self, answer: Answer, group: dist.ProcessGroup | None) -> None:
        self._answer, self._group = answer, group
        self.rank = dist.get_rank() if group is not None else 0
        self._replica, self._replicas = _replica_of(self.rank, dist.get_world_size() if group is not None else 1)

    def broadcast_request(self, kind: str, requests: Sequence[Any]) -> list[Any]:
        """On rank 0: the answers of all replicas, in the order of the requests."""
        self._broadcast((kind, list(requests)))
        return self._answer_and_gather(kind, requests)

    def worker_loop(self) -> None:
        """On the other ranks: answers requests until `shut_down`."""
        while (received := self._broadcast(None)) is not None:
            self._answer_and_gather(*received)

    def shut_down(self) -> None:
        """On rank 0: ends the worker loops of the other ranks."""
        self._broadcast(None)

    def _broadcast(self, message: tuple[str, list[Any]] | None) -> tuple[str, list[Any]] | None:
        """The message of rank 0; that of other ranks is ignored."""
        box = [message]
        if self._group is not None:
            dist.broadcast_object_list(box, src=0, group=self._group)
        return box[0]

    def _answer_and_gather(self, kind: str, requests: Sequence[Any]) -> list[Any]:
        """Answers every n-th request, n being the number of replicas; returns the answers of all replicas in order."""
        own = self._answer(kind, requests[self._replica :: self._replicas])
        if self._group is None:
            return own
        gathered: list[Any] = [None] * dist.get_world_size(self._group)
        dist.all_gather_object(gathered, (self._replica, own), group=self._group)
        answers: list[Any] = [None] * len(requests)
        for replica, part in gathered:
            answers[replica :: self._replicas] = part
        return answers


def _replica_of(rank: int, size: int) -> tuple[int, int]:
    """This process's replica of the model, and the number of replicas; an export has one in each process."""
    from megatron.core import parallel_state

    if not parallel_state.is_initialized():
        return rank, size
    return parallel_state.get_data_parallel_rank(), parallel_state.get_data_parallel_world_size()


@contextmanager
def all_processes() -> Iterator[dist.ProcessGroup | None]:
    """A gloo group of all processes that torchrun has started; None without torchrun."""
    if world_size() == 1:
        yield None
        return
    joined_here = not dist.is_initialized()
    if joined_here:
        dist.init_process_group("gloo", timeout=_TIMEOUT)
    try:
        yield dist.new_group(backend="gloo", timeout=_TIMEOUT)
    finally:
        if joined_here:
            dist.destroy_process_group()
