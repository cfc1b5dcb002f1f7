"""Observers of a decoding: several as one, and one that hands on finished rows in the order of their prompts."""

from __future__ import annotations

import time
from collections.abc import Callable

from nld_train.decoding.algorithms.outputs import Observer, Progress


class Observers:
    """Several observers as one.

    Attributes:
        seconds: what they took; no time of the decoder's.
    """

    def __init__(self, *observers: Observer | None) -> None:
        self.seconds = 0.0
        self._observers = [observer for observer in observers if observer is not None]

    def __call__(self, progress: Progress) -> None:
        """See `outputs.Observer`."""
        begin = time.perf_counter()
        for observer in self._observers:
            observer(progress)
        self.seconds += time.perf_counter() - begin


class InOrder:
    """Hands on each finished row once, as soon as all rows before it have been.

    Args:
        take: gets the row as it ended.
    """

    def __init__(self, take: Callable[[Progress], None]) -> None:
        self._take = take
        self._next = 0
        self._held: dict[int, Progress] = {}

    def __call__(self, progress: Progress) -> None:
        """See `outputs.Observer`."""
        if progress.finish is None:
            return
        self._held[progress.sequence] = progress
        while (row := self._held.pop(self._next, None)) is not None:
            self._next += 1
            self._take(row)
