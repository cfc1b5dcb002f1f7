"""What Megatron takes as `timers` of its configurations: named ranges of a profile, and the time of this rank's passes.

Megatron starts and stops a timer by name around each forward and backward pass of a micro-batch, around messages of the
pipeline, and around the reduction of gradients. Only `pass_seconds` waits for a GPU.
"""

from __future__ import annotations

import time
from contextlib import AbstractContextManager
from typing import Any

import torch

from nld_train.profiling import profiled

_PASSES = ("forward-compute", "backward-compute")
# Megatron's names in profiles. Those that are not here stay.
_NAMES = {
    "forward-compute": "forward",
    "backward-compute": "backward",
    "all-grads-sync": "all-reduce of gradients",
    "params-all-gather": "all-gather of parameters",
}


class Timers:
    """The timers of a process.

    Args:
        device: of this process.
    """

    def __init__(self, device: torch.device) -> None:
        self._timers: dict[str, _Timer] = {}
        self._on_gpu = device.type == "cuda"
        self._passes: list[tuple[Any, Any]] | None = None

    def __call__(self, name: str, log_level: int | None = None) -> _Timer:
        """The timer of a name; as of Megatron's timers."""
        del log_level
        if name not in self._timers:
            self._timers[name] = _Timer(self, name)
        return self._timers[name]

    def watch_passes(self, watched: bool) -> None:
        """Begins to add up the time of passes from 0, or leaves it alone, which costs nothing."""
        self._passes = [] if watched else None

    @property
    def watches_passes(self) -> bool:
        """Whether passes are timed."""
        return self._passes is not None

    def now(self) -> Any:
        """A time: on a GPU an event in its stream, else seconds."""
        if not self._on_gpu:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def add_pass(self, begin: Any, end: Any) -> None:
        """Counts a pass of a micro-batch between two times."""
        assert self._passes is not None
        self._passes.append((begin, end))

    def pass_seconds(self) -> float:
        """Seconds of all passes that were watched; waits for the end of the last one."""
        assert self._passes is not None
        if self._on_gpu:
            for _, end in self._passes[-1:]:
                end.synchronize()
            return sum(begin.elapsed_time(end) for begin, end in self._passes) / 1000
        return float(sum(end - begin for begin, end in self._passes))


class _Timer:
    """A timer of one name, which may be started again only after it was stopped."""

    def __init__(self, timers: Timers, name: str) -> None:
        self._timers, self._name = timers, _NAMES.get(name, name)
        self._is_pass = name in _PASSES
        self._range: AbstractContextManager[Any] | None = None
        self._begin: Any = None

    def start(self, barrier: bool = False) -> None:
        """As of Megatron's timers, without their barrier."""
        del barrier
        self._range = profiled(self._name)
        self._range.__enter__()
        if self._is_pass and self._timers.watches_passes:
            self._begin = self._timers.now()

    def stop(self, barrier: bool = False) -> None:
        """As of Megatron's timers, without their barrier."""
        del barrier
        if self._begin is not None:
            self._timers.add_pass(self._begin, self._timers.now())
            self._begin = None
        assert self._range is not None, f"{self._name}: stopped before it was started"
        self._range.__exit__(None, None, None)
        self._range = None
