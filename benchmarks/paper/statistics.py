"""The test: differences paired by seed, their mean and standard error, and the verdict."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import sqrt
from statistics import fmean, stdev
from typing import Literal

from benchmarks.paper.design import DECIDED

Verdict = Literal["same", "opposite", "undecided"]


@dataclass(frozen=True)
class Estimate:
    """A mean over seeds.

    Attributes:
        values: one for each seed.
    """

    values: tuple[float, ...]

    @property
    def mean(self) -> float | None:
        """None without values."""
        return fmean(self.values) if self.values else None

    @property
    def standard_error(self) -> float | None:
        """Of the mean; None with fewer than two values."""
        return stdev(self.values) / sqrt(len(self.values)) if len(self.values) > 1 else None


def verdict(differences: Sequence[float]) -> Verdict:
    """Whether differences, positive in the paper's direction, are on its side by more than two standard errors."""
    estimate = Estimate(tuple(differences))
    if estimate.mean is None or estimate.standard_error is None:
        return "undecided"
    margin = DECIDED * estimate.standard_error
    if estimate.mean > margin:
        return "same"
    return "opposite" if estimate.mean < -margin else "undecided"
