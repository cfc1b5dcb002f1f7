"""What a claim and a table of the paper are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from benchmarks.paper.design import Design
from benchmarks.paper.measures import Measure
from benchmarks.paper.statistics import Estimate
from benchmarks.paper.steps import Step

Unit = Literal["points", "nats", "percent"]
# The formats of numbers in tables.
SHARE, LOSS, SPEED = ".1%", ".3f", ".2f"


@dataclass(frozen=True)
class Value:
    """A number of a row: a key of what a measurement reads."""

    row: str
    measure: Measure
    key: str

    def of(self, seed: int, design: Design, folder: Path) -> float | None:
        """Under a seed; None where it is not measured, or the measurement has no such number."""
        numbers = self.measure.numbers(self.row, seed, design, folder)
        return None if numbers is None else numbers.get(self.key)

    def estimate(self, seeds: Sequence[int], design: Design, folder: Path) -> Estimate:
        """Over the seeds that are measured."""
        values = [self.of(seed, design, folder) for seed in seeds]
        return Estimate(tuple(value for value in values if value is not None))


@dataclass(frozen=True)
class Claim:
    """`more` is larger than `less`.

    Attributes:
        name: `table/claim`.
        text: the claim in words.
        more: what is larger by the claim.
        less: what is smaller.
        unit: of the difference: `points` of a share in percent, `nats`, or `percent` of `less`.
        paper: the paper's difference in this unit; None where it gives none, or the claim is ours.
    """

    name: str
    text: str
    more: Value
    less: Value
    unit: Unit
    paper: float | None = None

    def differences(self, seeds: Sequence[int], design: Design, folder: Path) -> tuple[float, ...]:
        """One for each seed of which both are measured: positive in the direction of the claim."""
        pairs = [(self.more.of(seed, design, folder), self.less.of(seed, design, folder)) for seed in seeds]
        return tuple(self._difference(more, less) for more, less in pairs if more is not None and less is not None)

    def _difference(self, more: float, less: float) -> float:
        if self.unit == "percent":
            return 100 * (more / less - 1)
        return (more - less) * (100 if self.unit == "points" else 1)


@dataclass(frozen=True)
class Column:
    """Title and format of the numbers in a column."""

    title: str
    form: str


@dataclass(frozen=True)
class Line:
    """A line of a table: its label, and a number for each column."""

    label: str
    values: tuple[Value, ...]


@dataclass(frozen=True)
class PaperTable:
    """A table or figure of the paper, or one of our own.

    Attributes:
        name: of the table.
        title: of its section.
        text: what is compared.
        columns: of its lines.
        lines: the numbers that it shows.
        claims: that it tests.
        seeds: how many of the design's seeds it takes; None for all.
        curves: rows whose held-out losses over tokens are plotted.
    """

    name: str
    title: str
    text: str
    columns: tuple[Column, ...]
    lines: tuple[Line, ...]
    claims: tuple[Claim, ...]
    seeds: int | None = None
    curves: tuple[str, ...] = ()

    def seeds_of(self, design: Design) -> tuple[int, ...]:
        """The seeds of this table."""
        return design.seeds[: self.seeds]

    def values(self) -> list[Value]:
        """All numbers that it shows or compares."""
        shown = [value for line in self.lines for value in line.values]
        return [*shown, *(value for claim in self.claims for value in (claim.less, claim.more))]

    def steps(self, design: Design) -> list[Step]:
        """What has to be run for it, seed by seed."""
        wanted = list(dict.fromkeys((value.row, value.measure) for value in self.values()))
        return [measure.step(row, seed, design) for seed in self.seeds_of(design) for row, measure in wanted]


# A column of a table whose lines are rows: title, measurement, key and format.
RowColumn = tuple[str, Measure, str, str]


def columns_of(columns: Sequence[RowColumn]) -> tuple[Column, ...]:
    """The columns of a table whose lines are rows."""
    return tuple(Column(title, form) for title, _, _, form in columns)


def lines_of(rows: Sequence[str], columns: Sequence[RowColumn]) -> tuple[Line, ...]:
    """A line for each row."""
    return tuple(Line(row, tuple(Value(row, measure, key) for _, measure, key, _ in columns)) for row in rows)
