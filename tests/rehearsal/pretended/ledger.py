"""What the host and the device did to each other: synchronisations, copies, and where in our code."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

ROOT = Path(__file__).parents[3]
OURS = tuple(f"{ROOT / package}/" for package in ("nld_train", "checkpoint_convert", "benchmarks"))

# Kinds of events. The host waits for the device in every one but the last three.
SYNC = "host synchronisation"
TO_HOST = "blocking copy to the host"
BLOCKING = "blocking copy to the device"
FROM_INDICES = "indices copied to the device"  # a CPU tensor of indices into a tensor of the device
NON_BLOCKING = "non-blocking copy to the device"
PAGEABLE = "non-blocking copy from pageable memory"  # staged by the host: as slow for it as a blocking one
NON_BLOCKING_TO_HOST = "non-blocking copy to the host"

WAITS = (SYNC, TO_HOST)
COPIES = (BLOCKING, FROM_INDICES, NON_BLOCKING, PAGEABLE)
SLOW_COPIES = (BLOCKING, FROM_INDICES, PAGEABLE)


@dataclass(frozen=True)
class Event:
    """One kind of event at one place: `file:line function`, in our code."""

    kind: str
    what: str
    caller: str


@dataclass
class Report:
    """The events of a stretch of work.

    Attributes:
        events: how often each was seen.
        operations: dispatches of each operation on the device.
    """

    events: Counter[Event] = field(default_factory=Counter)
    operations: Counter[str] = field(default_factory=Counter)

    def of(self, *kinds: str) -> int:
        """Events of these kinds."""
        return sum(times for event, times in self.events.items() if event.kind in kinds)

    @property
    def syncs(self) -> int:
        """Times that the host waited for the device, other than to copy something to it."""
        return self.of(*WAITS)

    @property
    def copies(self) -> int:
        """Copies from the host to the device."""
        return self.of(*COPIES)

    @property
    def slow_copies(self) -> int:
        """Those of them that are not non-blocking from pinned memory."""
        return self.of(*SLOW_COPIES)

    def figures(self) -> dict[str, int]:
        """What a budget limits."""
        return {"syncs": self.syncs, "copies": self.copies, "slow_copies": self.slow_copies}

    def lines(self) -> list[str]:
        """One line per kind and caller, with what is most frequent there; the most frequent first within a kind."""
        grouped: dict[tuple[str, str], Counter[str]] = {}
        for event, times in self.events.items():
            grouped.setdefault((event.kind, event.caller), Counter())[event.what] += times
        ordered = sorted(grouped.items(), key=lambda item: (item[0][0], -item[1].total()))
        return [
            f"{found.total():5d} x {kind}: {found.most_common(1)[0][0]}{' and others' * (len(found) > 1)}, {where}"
            for (kind, where), found in ordered
        ]


@dataclass
class _Copy:
    """A non-blocking copy that the host has not waited for."""

    source: Tensor
    values: Tensor  # of the source, when the copy was asked for
    destination: Tensor | None  # on the host; None for a copy to the device
    caller: str


class Ledger:
    """Collects events until they are taken; completes the pending copies when the host waits."""

    def __init__(self) -> None:
        self.report = Report()
        self.recording = True
        self.capturing = False  # a CUDA graph, in which the host must not wait
        self._pending: list[_Copy] = []

    def take(self) -> Report:
        """The events since the last call."""
        taken, self.report = self.report, Report()
        return taken

    @contextmanager
    def paused(self) -> Iterator[None]:
        """What happens inside is not noted."""
        before, self.recording = self.recording, False
        try:
            yield
        finally:
            self.recording = before

    def note(self, kind: str, what: str) -> None:
        """Notes an event; those for which the host waits complete the pending copies."""
        self._add(kind, what)
        if kind in (*WAITS, BLOCKING, FROM_INDICES):
            self.complete()

    def wait(self, number: int, what: str) -> None:
        """Notes that the host waits for the first `number` pending copies."""
        self._add(SYNC, what)
        self.complete(number)

    def _add(self, kind: str, what: str) -> None:
        if self.capturing and kind in (*WAITS, BLOCKING, FROM_INDICES):
            raise RuntimeError(f"CUDA error: operation not permitted when stream is capturing ({kind}: {what})")
        if self.recording:
            self.report.events[Event(kind, what, caller())] += 1

    def operation(self, name: str) -> None:
        """Notes the dispatch of an operation."""
        if self.recording:
            self.report.operations[name] += 1

    def begin_copy(self, source: Tensor, destination: Tensor | None) -> None:
        """A non-blocking copy: `source` must not change before the host waits, nor `destination` be read."""
        self._pending.append(_Copy(source, source.clone(), destination, caller()))
        if destination is not None:
            spoil(destination)

    @property
    def position(self) -> int:
        """Pending copies so far: what an event that is recorded now waits for."""
        return len(self._pending)

    def complete(self, number: int | None = None) -> None:
        """Completes the first `number` pending copies, or all.

        Raises:
            RuntimeError: the source of one has changed meanwhile: the device would have got either values.
        """
        done = self._pending[:number]
        del self._pending[:number]
        for copy in done:
            if copy.destination is not None:
                copy.destination.copy_(copy.values)
            elif not torch.equal(copy.source.nan_to_num(), copy.values.nan_to_num()):
                raise RuntimeError(f"pinned memory was written while a non-blocking copy read it ({copy.caller})")


def spoil(tensor: Tensor) -> None:
    """Values that nobody takes for results, where a copy has not arrived."""
    tensor.fill_(torch.nan if tensor.is_floating_point() else (tensor.dtype != torch.bool and -77) or 0)


def caller() -> str:
    """`file:line function` of the innermost frame in our packages, or of the innermost outside torch and the tests."""
    frame: Any = sys._getframe(1)
    other = ""
    while frame is not None:
        path = frame.f_code.co_filename
        if path.startswith(OURS):
            return f"{path[len(str(ROOT)) + 1 :]}:{frame.f_lineno} {frame.f_code.co_name}{other}"
        if not other and "/megatron/" in path:
            other = f" (megatron {path.rpartition('/')[2]}:{frame.f_lineno})"
        frame = frame.f_back
    return other.strip() or "?"


LEDGER = Ledger()
