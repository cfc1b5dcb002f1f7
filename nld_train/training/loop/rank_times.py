"""Which rank is slow: how long each one waits for data and computes, measured on all of them at some steps.

The seconds of a whole step say little: every rank waits for the slowest in the collectives of each step. What a rank
spends in the passes of its micro-batches contains collectives of its tensor- and context-parallel group only, which
is on one node.
"""

from __future__ import annotations

import socket
from typing import Any

import torch
import torch.distributed as dist

from nld_train.collectives import all_gather
from nld_train.training.loop.timers import Timers
from nld_train.training.metrics.jsonl import Record
from nld_train.training.metrics.ranks_metric import percentiles

# What is measured on each rank, in seconds of one step.
_MEASURED = ("passes", "data", "step")


class RankTimes:
    """Measures every rank at steps that are a multiple of `every`, if there are several ranks.

    Args:
        every: `logging.every`.
        timers: of this process.
        device: of this process.
    """

    def __init__(self, every: int, timers: Timers, device: torch.device) -> None:
        self._every = every if dist.get_world_size() > 1 else None
        self._timers, self._device = timers, device
        self._nodes: list[Any] = [None] * dist.get_world_size()
        if self._every is not None:
            dist.all_gather_object(self._nodes, socket.gethostname())

    def begin(self, step: int) -> None:
        """Called on every rank before a step."""
        self._timers.watch_passes(self._due(step))

    def end(self, step: int, data_seconds: float, step_seconds: float) -> Record | None:
        """Called on every rank after a step; the same on all of them.

        Args:
            step: its number.
            data_seconds: for which this rank has waited for data.
            step_seconds: of the whole step on this rank.

        Returns:
            The metric `ranks`, or None at steps that are not measured. A measured step has one more all-gather.
        """
        if not self._due(step):
            return None
        own = [self._timers.pass_seconds(), data_seconds, step_seconds]
        measured = torch.tensor(own, dtype=torch.float64, device=self._device)
        columns = torch.stack(all_gather(measured)).T.tolist()
        return {name: percentiles(seconds, self._nodes) for name, seconds in zip(_MEASURED, columns, strict=True)}

    def _due(self, step: int) -> bool:
        return self._every is not None and step % self._every == 0
