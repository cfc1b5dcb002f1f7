"""Progress bars on standard error."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

# Called with the amount of work done since the last call.
Advance = Callable[[int], None]


@contextmanager
def progress_bar(description: str, total: int, in_bytes: bool = False, shown: bool = True) -> Iterator[Advance]:
    """Shows a bar where standard error is a terminal; it stays there when it is full.

    Args:
        description: in front of the bar.
        total: amount of work, in bytes or in items.
        in_bytes: shows sizes and the transfer rate instead of counts and the time elapsed.
        shown: False for a process that must show no bar.
    """
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

    from nld_train.console import plain_console
    from nld_train.printable import printable

    console = plain_console(stderr=True)
    amounts = (DownloadColumn(), TransferSpeedColumn()) if in_bytes else (MofNCompleteColumn(), TimeElapsedColumn())
    columns = (TextColumn("{task.description}", markup=False), BarColumn(), *amounts, TimeRemainingColumn())
    with Progress(*columns, console=console, disable=not (shown and console.is_terminal)) as progress:
        task = progress.add_task(printable(description), total=total)
        yield lambda count: progress.advance(task, count)
