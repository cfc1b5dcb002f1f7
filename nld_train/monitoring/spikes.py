"""Steps that stand out: a loss or a gradient norm far above what it was just before."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from statistics import median

from nld_train.training.metrics.jsonl import Record

# A value is compared with this many values before it, once there are enough of them.
_WINDOW, _ENOUGH = 64, 16
# It stands out if it is this many standard deviations above their median. The deviation is estimated robustly: under a
# normal distribution it is 1.48 times the median distance from the median.
_DEVIATIONS = 8.0
_PER_MEDIAN_DISTANCE = 1.4826
# Values that hardly differ are no spikes.
_SMALLEST_RISE = 0.1
_QUANTITIES = ("loss", "grad_norm")


@dataclass(frozen=True)
class Spike:
    """A step whose value stood out.

    Attributes:
        step: of the run.
        quantity: `loss` or `grad_norm`.
        value: of the step.
        usual: median of the steps before it.
    """

    step: int
    quantity: str
    value: float
    usual: float


def find_spikes(records: Sequence[Record]) -> list[Spike]:
    """All of them, in order of their steps; a stage is compared with itself only."""
    stages = dict.fromkeys(record["stage"] for record in records)
    parts = [[record for record in records if record["stage"] == stage] for stage in stages]
    found = [spike for part in parts for quantity in _QUANTITIES for spike in _spikes_of(part, quantity)]
    return sorted(found, key=lambda spike: spike.step)


def _spikes_of(records: Sequence[Record], quantity: str) -> Iterator[Spike]:
    window: deque[float] = deque(maxlen=_WINDOW)
    for record in records:
        value = record[quantity]
        if len(window) >= _ENOUGH and value > (usual := median(window)) * (1 + _SMALLEST_RISE):
            distance = median(abs(other - usual) for other in window)
            if value > usual + _DEVIATIONS * _PER_MEDIAN_DISTANCE * distance:
                yield Spike(record["step"], quantity, value, usual)
        window.append(value)
