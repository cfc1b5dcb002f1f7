"""Observers of a decoding: several as one, finished sequences in the order of their prompts, and a count of tokens."""

from __future__ import annotations

import time
from collections.abc import Callable

from nld_train.decoding.algorithms.outputs import Observer, Progress
from nld_train.progress import Advance


class Observers:
    """Several observers as one.

    Attributes:
        seconds: time spent in the observers, which does not count as decoding.
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
    """Passes on each finished sequence once, as soon as all sequences before it have been.

    Args:
        take: called with the final state of the sequence.
    """

    def __init__(self, take: Callable[[Progress], None]) -> None:
        self._take = take
        self._next = 0
        self._finished: dict[int, Progress] = {}

    def __call__(self, progress: Progress) -> None:
        """See `outputs.Observer`."""
        if progress.finish is None:
            return
        self._finished[progress.sequence] = progress
        while (ended := self._finished.pop(self._next, None)) is not None:
            self._next += 1
            self._take(ended)


class TokenCounter:
    """Counts new tokens as work done; a sequence that ends early has then done all of its work.

    Args:
        advance: of a progress bar over the prompts' largest numbers of new tokens.
        max_new_tokens: of every sequence.
    """

    def __init__(self, advance: Advance, max_new_tokens: int) -> None:
        self._advance, self._max_new_tokens = advance, max_new_tokens
        self._counted: dict[int, int] = {}

    def __call__(self, progress: Progress) -> None:
        """See `outputs.Observer`."""
        done = len(progress.tokens) if progress.finish is None else self._max_new_tokens
        self._advance(done - self._counted.get(progress.sequence, 0))
        self._counted[progress.sequence] = done
