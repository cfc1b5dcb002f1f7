"""The registry of metrics that are not plain numbers, and the table of all metrics by name."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from nld_train.registry import resolve
from nld_train.training.metrics.jsonl import Content, Record, listed, read_metrics
from nld_train.training.metrics.metric import Metric
from nld_train.training.metrics.step_numbers import STEP_NUMBERS

# Key of `metrics.jsonl` -> class of its metric, beside the code that records it. A number needs no entry.
METRICS: dict[str, str] = {
    "validation": "nld_train.training.hooks.validation_metric:ValidationMetric",
    "decoding": "nld_train.evaluation.decoding_metric:DecodingMetric",
    "ranks": "nld_train.training.metrics.ranks_metric:RanksMetric",
    "drafter": "nld_train.training.stages.drafter_metric:DrafterMetric",
}


class MetricTable(Mapping[str, Metric]):
    """Metrics by name. Every name has one: a name that is not registered has the default one, for numbers.

    Args:
        added: metrics besides the registered ones, such as those of hooks.

    Attributes:
        measured: the metrics besides the numbers of every step.
    """

    def __init__(self, added: Iterable[Metric] = ()) -> None:
        self.measured: dict[str, Metric] = {name: resolve(entry)(name) for name, entry in METRICS.items()}
        self.measured |= {metric.name: metric for metric in added}
        self._known: dict[str, Metric] = {metric.name: metric for metric in STEP_NUMBERS} | self.measured

    def __getitem__(self, name: str) -> Metric:
        return self._known.get(name) or Metric(name)

    def __iter__(self) -> Iterator[str]:
        return iter(self._known)

    def __len__(self) -> int:
        return len(self._known)

    def read(self, path: Path, most_bytes: int | None = None, reached: int = 0) -> Content:
        """The steps in a `metrics.jsonl`, without values of a form that their metric does not have; see `read_metrics`.

        Raises:
            OSError: it cannot be read.
        """
        content = read_metrics(path, most_bytes, reached)
        damaged: dict[str, list[int]] = {}
        for record in content.records:
            for name, metric in self.measured.items():
                if name in record and not metric.can_show(record):
                    del record[name]
                    damaged.setdefault(name, []).append(record["step"])
        found = [f"{name} of {listed('step', steps, len(steps))} damaged" for name, steps in damaged.items()]
        return Content(content.records, [*content.problems, *found])

    def of(self, records: Sequence[Record]) -> list[Metric]:
        """The known metrics, and after them those of other names in some records, in the order of their names there."""
        names = dict.fromkeys(name for record in records for name in record)
        return [self[name] for name in dict.fromkeys([*self._known, *names])]
