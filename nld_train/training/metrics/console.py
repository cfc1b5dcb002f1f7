"""The terminal output of a run: a line per step, and lines for measurements between steps."""

from __future__ import annotations

from collections.abc import Collection

from rich.console import Console

from nld_train.training.metrics.jsonl import Record
from nld_train.training.metrics.registry import MetricTable


class ConsoleLog:
    """The lines of rank 0's terminal.

    Args:
        total_steps: of the whole run.
        every: steps between two printed ones.
        metrics: of the run.
    """

    def __init__(self, total_steps: int, every: int, metrics: MetricTable) -> None:
        self.console = Console(highlight=False, soft_wrap=True)
        self.total_steps = total_steps
        self.every = every
        self.metrics = metrics

    def write(self, record: Record, between: Collection[str] = ()) -> None:
        """Prints a step if it is due, and always what was measured after it.

        Args:
            record: of the step.
            between: the keys of it that were measured between this step and the next.
        """
        if record["step"] % self.every == 0 or record["step"] == self.total_steps:
            line = step_line({name: value for name, value in record.items() if name not in between}, self)
            self.console.print(line, markup=False)
        for name in between:
            for line in self.metrics[name].lines(record[name]):
                self.console.print(line, style="cyan", markup=False)

    def print(self, text: str) -> None:
        """Prints a line that belongs to no step."""
        self.console.print(text, markup=False)


def step_line(measured: Record, log: ConsoleLog) -> str:
    """Stage and step, and what each metric of the step adds to its line."""
    total = log.total_steps
    head = f"{measured['stage']:<6} step {measured['step']:>{len(str(total))}}/{total}"
    parts = (log.metrics[name].step_text(value) for name, value in measured.items())
    return "  ".join([head, *(part for part in parts if part is not None)])
