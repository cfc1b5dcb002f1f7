"""How the measures of a drafter stage are shown."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean

from nld_train.training.metrics.jsonl import Record
from nld_train.training.metrics.metric import Curve, Metric, Panel

# The summary has means over this many last steps.
_LAST = 10


class DrafterMetric(Metric):
    """Means over the blocks of a step: the parts of the loss, and accepted lengths."""

    def step_text(self, value: Record) -> str:
        """See `Metric.step_text`: the accepted length."""
        return f"accepted length {value['accepted_length']:.3f}"

    def panels(self, records: Sequence[Record]) -> list[Panel]:
        """See `Metric.panels`: the accepted length."""
        points = [(record["tokens"], record[self.name]["accepted_length"]) for record in records]
        curve = Curve("", points, {"color": "tab:green"}, noisy=True)
        return [Panel("tokens per verification", [curve], title="Accepted length of drafts")]

    def summary(self, records: Sequence[Record]) -> Record:
        """See `Metric.summary`: means over the last steps; None in a stage that trains no drafter adapter."""
        last = [record[self.name] for record in records[-_LAST:]]
        names = [name for name in last[-1] if name != "blocks"] if last else []
        known = {name: [value[name] for value in last if value[name] is not None] for name in names}
        return {self.name: {name: fmean(values) if values else None for name, values in known.items()} or None}

    def status_text(self, status: Record) -> tuple[str, str]:
        """See `Metric.status_text`."""
        return self.name, self.step_text(status)
