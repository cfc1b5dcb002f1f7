"""How far this process has come with its requests, on a terminal."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

# Told how many requests more have their answer.
Answered = Callable[[int], None]


@contextmanager
def progress_bar(description: str, total: int, wanted: bool) -> Iterator[Answered]:
    """Shows a bar on standard error, if that is a terminal and a bar is wanted; it stays there when it is full."""
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    hidden = not (wanted and console.is_terminal)
    with Progress(*columns, TimeRemainingColumn(), console=console, disable=hidden) as progress:
        task = progress.add_task(description, total=total)
        yield lambda count: progress.advance(task, count)
