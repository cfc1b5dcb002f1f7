"""The output of a run, on the console and in `run.log`: steps, what is measured between them, and messages."""

from __future__ import annotations

import os
import socket
import textwrap
import time
from collections.abc import Collection, Sequence
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import Any

from nld_train.console import plain_console
from nld_train.printable import one_line, printable
from nld_train.training.metrics.jsonl import Record
from nld_train.training.metrics.metric import INDENT
from nld_train.training.metrics.registry import MetricTable

LOG_FILE = "run.log"
# No line of a step or a measurement is longer.
WIDTH = 80
_BAR = 12
_REFRESH_SECONDS = 0.1
# Stages in the order of a run; neighbours differ.
_STAGE_COLOURS = ("cyan", "green", "magenta", "yellow", "blue")


class ConsoleLog:
    """The lines of rank 0, on its standard output and in `run.log`.

    On a terminal the current step is a live line; elsewhere every n-th step is a line, as in `run.log`.

    Args:
        directory: `run.dir`; `run.log` there is continued.
        total_steps: of the whole run.
        every: steps between two lines.
        metrics: of the run.
        stages: names of all stages, in order.
    """

    def __init__(
        self, directory: Path, total_steps: int, every: int, metrics: MetricTable, stages: Sequence[str]
    ) -> None:
        self._console = plain_console(soft_wrap=True)
        self._file = (directory / LOG_FILE).open("a", encoding="utf-8")
        self._live = LiveLine(self._console, total_steps, stages) if self._console.is_terminal else None
        self._total_steps, self._every, self._metrics = total_steps, every, metrics
        self._note(f"{datetime.now():%Y-%m-%d %H:%M:%S} process {os.getpid()} on {socket.gethostname()}")

    def write(self, record: Record, between: Collection[str] = ()) -> None:
        """Writes a step where it is due, and always what was measured after it.

        Args:
            record: of the step.
            between: the keys of it that were measured between this step and the next.
        """
        step = {name: value for name, value in record.items() if name not in between}
        if self._live is not None:
            self._live.update(step, self._parts(step))
        if record["step"] % self._every == 0 or record["step"] == self._total_steps:
            line = self._line(step)
            self._note(line)
            # The last one stays when the live line is removed.
            if self._live is None or record["step"] == self._total_steps:
                self._console.print(line)
        for name in between:
            for line in self._metrics[name].lines(record[name]):
                for part in folded(line):
                    self._note(part)
                    self._console.print(part, style="cyan")

    def print(self, text: str) -> None:
        """Writes a line that belongs to no step."""
        self._note(text)
        self._console.print(text)

    def note_error(self, error: BaseException) -> None:
        """Writes to `run.log` why the run ends, unless it is a full disk; it is printed by the command."""
        with suppress(OSError):
            self._note(f"ended by {type(error).__name__}: {one_line(str(error))}")

    def close(self) -> None:
        """Removes the live line and closes the file."""
        if self._live is not None:
            self._live.stop()
        with suppress(OSError):  # what could not be written has been reported
            self._file.close()

    def _note(self, line: str) -> None:
        self._file.write(printable(line) + "\n")
        self._file.flush()

    def _parts(self, step: Record) -> dict[str, str]:
        """What each metric of a step adds to its line, the most important one first."""
        found = {name: self._metrics[name].step_text(value) for name, value in step.items()}
        ordered = sorted(found, key=lambda name: -self._metrics[name].importance)
        return {name: text for name in ordered if (text := found[name]) is not None}

    def _line(self, step: Record) -> str:
        """Stage and step, and what of the metrics fits, in the order of the record."""
        head = f"{step['stage']:<6} {_step_text(step, self._total_steps)}"
        fitting = _fitting(self._parts(step), WIDTH - len(head))
        return "  ".join([head, *(fitting[name] for name in step if name in fitting)])


def folded(line: str) -> list[str]:
    """A line as several of at most `WIDTH` characters, those after the first indented more.

    It is broken between its parts, which two spaces separate, and in a part that is too long itself.
    """
    indent = line[: len(line) - len(line.lstrip())]
    lines: list[str] = []
    for part in line.strip().split("  "):
        if lines and len(lines[-1]) + 2 + len(part) <= WIDTH:
            lines[-1] += f"  {part}"
            continue
        start = f"{INDENT}  " if lines else indent
        lines += textwrap.wrap(f"{start}{part}", WIDTH, subsequent_indent=f"{INDENT}  ", break_on_hyphens=False)
    return lines


def _step_text(step: Record, total: int) -> str:
    return f"step {step['step']:>{len(str(total))}}/{total}"


def _fitting(parts: dict[str, str], width: int) -> dict[str, str]:
    """The first parts, as many as fit into a width with two spaces in front of each."""
    chosen = {}
    for name, text in parts.items():
        width -= len(text) + 2
        if width < 0:
            break
        chosen[name] = text
    return chosen


class LiveLine:
    """The current step at the bottom of a terminal: stage, bar, time left, losses.

    Args:
        console: a terminal.
        total_steps: of the whole run.
        stages: names of all stages, in order.
    """

    def __init__(self, console: Any, total_steps: int, stages: Sequence[str]) -> None:
        from rich.live import Live

        self._console, self._total_steps = console, total_steps
        self._colours = {name: _STAGE_COLOURS[i % len(_STAGE_COLOURS)] for i, name in enumerate(stages)}
        self._live = Live(console=console, auto_refresh=False, transient=True)
        self._shown = 0.0

    def update(self, step: Record, parts: dict[str, str]) -> None:
        """Shows a step, at most ten times a second.

        Args:
            step: its record.
            parts: what the metrics add, the most important one first.
        """
        now = time.monotonic()
        if now - self._shown < _REFRESH_SECONDS and step["step"] < self._total_steps:
            return
        self._shown = now
        if not self._live.is_started:
            self._live.start()
        self._live.update(self._row(step, parts), refresh=True)

    def _row(self, step: Record, parts: dict[str, str]) -> Any:
        from rich.progress_bar import ProgressBar
        from rich.table import Column, Table
        from rich.text import Text

        colour = self._colours.get(step["stage"], _STAGE_COLOURS[0])
        head = f"{step['step']}/{self._total_steps}"
        fitting = _fitting(parts, self._console.width - len(step["stage"]) - _BAR - len(head) - 3)
        text = "  ".join([head, *(fitting[name] for name in step if name in fitting)])
        row = Table.grid(Column(no_wrap=True), Column(width=_BAR), Column(no_wrap=True), padding=(0, 1, 0, 0))
        bar = ProgressBar(self._total_steps, step["step"], width=_BAR, complete_style=colour, finished_style=colour)
        row.add_row(Text(step["stage"], colour), bar, Text(text, overflow="ellipsis"))
        return row

    def stop(self) -> None:
        """Removes the line."""
        self._live.stop()
