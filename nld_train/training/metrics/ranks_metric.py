"""The metric `ranks`: seconds of one step over all ranks, and where they are longest."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median

from nld_train.processes import world_size
from nld_train.training.metrics.jsonl import Record
from nld_train.training.metrics.metric import INDENT, Curve, Metric, Panel, numbers

# The slowest rank is named on the console where it takes longer than the median by this share of a step.
_SLOW = 0.2
# Of fewer ranks none is slow: there is no majority that is faster.
_FEWEST_RANKS = 4


def percentiles(seconds: Sequence[float], nodes: Sequence[str]) -> Record:
    """How seconds are distributed over ranks.

    Args:
        seconds: of each rank.
        nodes: host name of each rank.

    Returns:
        `min`, `median`, `p90` (the smallest that nine of ten ranks do not exceed) and `max`; the `rank` with the most,
        and its `node`.
    """
    ordered = sorted(seconds)
    slowest = max(range(len(seconds)), key=seconds.__getitem__)
    return {
        "min": ordered[0],
        "median": median(ordered),
        "p90": ordered[-(-9 * len(ordered) // 10) - 1],
        "max": ordered[-1],
        "rank": slowest,
        "node": nodes[slowest],
    }


class RanksMetric(Metric):
    """Seconds of `passes`, `data` and `step` over the ranks."""

    def lines(self, value: Record) -> list[str]:
        """See `Metric.lines`: a line about the slowest rank, where it keeps the others waiting."""
        if world_size() < _FEWEST_RANKS:
            return []
        longest = _SLOW * value["step"]["median"]
        slow = [
            f"{name} of rank {times['rank']} on {times['node']} {times['max']:.2f} s, median {times['median']:.2f} s"
            for name, times in value.items()
            # All ranks end a step together.
            if name != "step" and times["max"] - times["median"] > longest
        ]
        return [f"{INDENT}slow  {'  '.join(slow)}"] if slow else []

    def panels(self, records: Sequence[Record]) -> list[Panel]:
        """See `Metric.panels`: the passes and the waits for data, each with its median and its largest value."""
        curves = [
            Curve(f"{name}, {what}", [(record["tokens"], record[self.name][name][what]) for record in records])
            for name in ("passes", "data")
            for what in ("median", "max")
        ]
        return [Panel("seconds", curves, title="Ranks: seconds of a step")]

    def wandb_values(self, value: Record) -> Record:
        """See `Metric.wandb_values`: the numbers."""
        return numbers(self.name, value)

    def status_text(self, status: Record) -> tuple[str, str]:
        """See `Metric.status_text`: the slowest passes."""
        passes = status["passes"]
        text = (
            f"passes {passes['median']:.3g} s, at most {passes['max']:.3g} s: rank {passes['rank']} on {passes['node']}"
        )
        return self.name, text
