"""Progress on standard error: a bar on a terminal, now and then a line in a file or a pipe."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console

# Called with the amount of work done since the last call.
Advance = Callable[[int], None]

# Seconds until the first line, and between two lines: more with each of them, up to a minute.
_FIRST_LINE = 5.0
_LONGEST_PAUSE = 60.0


@contextmanager
def progress_bar(
    description: str, total: int, in_bytes: bool = False, shown: bool = True, stays: bool = True
) -> Iterator[Advance]:
    """Shows how far the work is and how long it still takes.

    On a terminal that is a bar. Elsewhere it is a line after five seconds and then
    at growing intervals, so that short work prints nothing and the log of a long one shows that it goes on.

    Args:
        description: in front of the bar.
        total: amount of work, in bytes or in items.
        in_bytes: shows sizes and the transfer rate instead of counts and the time elapsed.
        shown: False for a process that must show nothing.
        stays: whether the bar stays on the terminal when the work is done.
    """
    if not shown:
        yield lambda count: None
        return
    from nld_train.console import plain_console
    from nld_train.printable import printable

    description = printable(description)
    console = plain_console(stderr=True)
    if not console.is_terminal:
        yield ProgressLines(description, total, in_bytes)
        return
    with _bar(console, description, total, in_bytes, stays) as advance:
        yield advance


@contextmanager
def _bar(console: Console, description: str, total: int, in_bytes: bool, stays: bool) -> Iterator[Advance]:
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
        TransferSpeedColumn,
    )

    amounts = (DownloadColumn(), TransferSpeedColumn()) if in_bytes else (MofNCompleteColumn(), TimeElapsedColumn())
    columns = (TextColumn("{task.description}", markup=False), BarColumn(), *amounts, TimeRemainingColumn())
    with Progress(*columns, console=console, transient=not stays) as progress:
        task = progress.add_task(description, total=total)
        yield lambda count: progress.advance(task, count)


class ProgressLines:
    """Prints lines about the progress of some work on standard error.

    Args:
        description: of the work.
        total: amount of work, in bytes or in items.
        in_bytes: whether amounts are sizes.
        clock: seconds since some moment.
    """

    def __init__(
        self, description: str, total: int, in_bytes: bool, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._description, self._total, self._in_bytes, self._clock = description, total, in_bytes, clock
        self._done = 0
        self._begin = clock()
        self._pause = _FIRST_LINE
        self._due = self._begin + self._pause

    def __call__(self, count: int) -> None:
        """Counts work; prints a line where one is due."""
        self._done += count
        if (now := self._clock()) < self._due or self._done >= self._total:
            return
        print(self._line(now - self._begin), file=sys.stderr, flush=True)
        self._pause = min(2 * self._pause, _LONGEST_PAUSE)
        self._due = now + self._pause

    def _line(self, seconds: float) -> str:
        left = seconds / self._done * (self._total - self._done) if self._done else None
        amounts = f"{self._amount(self._done)} of {self._amount(self._total)}"
        percent = f"{self._done / self._total:.0%}"
        return f"{self._description}: {percent} ({amounts}), {'?' if left is None else duration(left)} left"

    def _amount(self, number: int) -> str:
        return f"{number / 1e9:.2f} GB" if self._in_bytes else f"{number:,}"


def duration(seconds: float) -> str:
    """A time in its two largest units: `41s`, `6m 12s`, `3h 05m`, `12d 04h`."""
    minutes, whole_seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    if days:
        return f"{days}d {hours:02d}h"
    if hours:
        return f"{hours}h {minutes:02d}m"
    return f"{minutes}m {whole_seconds:02d}s" if minutes else f"{whole_seconds}s"
