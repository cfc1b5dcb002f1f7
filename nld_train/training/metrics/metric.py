"""The interface of metrics: an object that defines how one key of `metrics.jsonl` is shown.

The defaults suit a number, and numbers under names at any depth: such a value only needs to be recorded. A
metric of another form is a subclass. Neither this module nor those of subclasses import torch: `nld-status` uses them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean
from typing import Any

from nld_train.training.metrics.jsonl import Record

# Indentation of lines that belong to the step above them.
INDENT = " " * 7
# The summary of a stage has means over this many steps at its beginning and at its end.
_ENDS = 10


@dataclass(frozen=True)
class Curve:
    """One curve of the report.

    Attributes:
        label: in the legend; empty for none.
        points: pairs of x and y.
        style: keyword arguments of matplotlib's `plot`.
        noisy: whether it differs from step to step by chance: its running mean is then drawn over it.
    """

    label: str
    points: list[tuple[float, float]]
    style: Mapping[str, Any] = field(default_factory=dict)
    noisy: bool = False


@dataclass(frozen=True)
class Panel:
    """One pair of axes in the report.

    Attributes:
        y_label: what the curves show. Without a title it is the title.
        curves: drawn over `x_label`.
        x_label: `tokens`, over which borders of stages are marked, or another quantity.
        right: another panel's curves over the same x, with an axis of their own on the right.
        title: above the axes; `y_label` then is the quantity and its unit.
    """

    y_label: str
    curves: list[Curve]
    x_label: str = "tokens"
    right: Panel | None = None
    title: str = ""


@dataclass(frozen=True)
class HeatMap:
    """Values by position over the tokens of a run, for the page of `nld-report`.

    Attributes:
        title: above the axes.
        y_label: what a position counts.
        z_label: what the colours show.
        columns: for each measurement the tokens of the run, and the values by position.
    """

    title: str
    y_label: str
    z_label: str
    columns: Sequence[tuple[float, Mapping[int, float]]]


class Metric:
    """How one key of `metrics.jsonl` is shown.

    Args:
        name: the key.

    Attributes:
        importance: of its part of a step's line, which has room for the most important ones.
    """

    importance = 0

    def __init__(self, name: str) -> None:
        self.name = name

    def step_text(self, value: Any) -> str | None:
        """Its part of the console line of a step, where the step itself measures it; None for none."""
        return "  ".join(f"{name} {number:.4g}" for name, number in numbers(self.name, value).items()) or None

    def lines(self, value: Any) -> list[str]:
        """Its lines on the console, where it is measured between two steps."""
        text = self.step_text(value)
        return [] if text is None else [f"{INDENT}{text}"]

    def panels(self, records: Sequence[Record]) -> list[Panel]:
        """Its panels in the report.

        Args:
            records: of a run, in order: those that have the metric, at least one.
        """
        found = [(record["tokens"], numbers(self.name, record[self.name])) for record in records]
        names = dict.fromkeys(name for _, values in found for name in values)
        curves = [
            Curve(
                name if len(names) > 1 else "",
                [(tokens, values[name]) for tokens, values in found if name in values],
                {"marker": "."},
            )
            for name in names
        ]
        return [Panel(self.name, curves)] if curves else []

    def heat_maps(self, records: Sequence[Record]) -> list[HeatMap]:
        """Its values that have a position besides the step, in the page of `nld-report`.

        Args:
            records: as for `panels`.
        """
        del records
        return []

    def summary(self, records: Sequence[Record]) -> Record:
        """Its keys in the summary of a stage: means over the first and the last records.

        Args:
            records: of the stage, in order: those that have the metric. May be empty for a registered one.
        """
        found = [numbers(self.name, record[self.name]) for record in records]
        names = dict.fromkeys(name for values in found for name in values)
        ends = {"first": found[:_ENDS], "last": found[-_ENDS:]}
        return {f"{end}_{name}": mean_of(values, name) for name in names for end, values in ends.items()}

    def progress(self, stage: Record) -> list[str]:
        """Lines about a stage that are printed at the end of a run, without the name of the stage.

        Args:
            stage: the stage's entry of `summary.json`.
        """
        del stage
        return []

    def wandb_values(self, value: Any) -> Record:
        """What Weights & Biases logs: numbers, or its own tables and plots."""
        return flat({self.name: value})

    def status(self, record: Record) -> Record:
        """The newest measurement in `nld-status --json`: its step, and the value.

        Args:
            record: of the step.
        """
        value = record[self.name]
        return {"step": record["step"], **(value if isinstance(value, dict) else {"value": value})}

    def can_show(self, record: Record) -> bool:
        """Whether a record that was read from a file has the metric in the form that the other methods expect.

        Args:
            record: of a step; has the metric.
        """
        try:
            self.panels([record])
            self.summary([record])
            self.status_text(self.status(record))
        except (LookupError, TypeError, ValueError, AttributeError):
            return False
        return True

    def status_text(self, status: Record) -> tuple[str, str]:
        """Title and text of its row in the table of `nld-status`, without the step.

        Args:
            status: a value that `status` returned.
        """
        shown = numbers("", {name: value for name, value in status.items() if name != "step"})
        return self.name, ", ".join(f"{name} {number:.4g}" for name, number in shown.items())


def mean_of(records: Sequence[Record], name: str) -> float | None:
    """Mean of a number over the records in which it is not None; None if it is in none."""
    values = [record[name] for record in records if record.get(name) is not None]
    return fmean(values) if values else None


def flat(record: Mapping[str, Any], prefix: str = "") -> Record:
    """Nested dicts as one, with slashes between their keys; None is left out."""
    result: Record = {}
    for key, value in record.items():
        if isinstance(value, Mapping):
            result |= flat(value, f"{prefix}{key}/")
        elif value is not None:
            result[f"{prefix}{key}"] = value
    return result


def numbers(name: str, value: Any) -> dict[str, float]:
    """The numbers of a value under their names with slashes; `name` alone for a value that is one itself."""
    found = flat({name: value}) if name else flat(value)
    return {key: item for key, item in found.items() if isinstance(item, int | float)}


def human(number: float) -> str:
    """A count in three digits: 1.05M."""
    for unit in ("", "k", "M", "G"):
        if number < 1000:
            return f"{number:.3g}{unit}"
        number /= 1000
    return f"{number:.3g}T"


def cost_text(value: Record, name: str) -> str:
    """What a measurement costs, from the `seconds` and `share` that `TimeShare` gave it."""
    return f"({value['seconds']:.1f} s, {name} is {value['share']:.1%} of the time so far)"
