"""The curves of a run in `report.png`, from `metrics.jsonl` alone."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from nld_train.files import replaced_atomically
from nld_train.training.metrics.jsonl import Record, read_metrics
from nld_train.training.metrics.metric import Panel
from nld_train.training.metrics.registry import MetricTable

_ROWS = 2
_SMALLEST_COLUMNS = 2


def report_panels(records: Sequence[Record], metrics: MetricTable) -> list[Panel]:
    """The panels of every metric that some record has."""
    panels = []
    for metric in metrics.of(records):
        if having := [record for record in records if metric.name in record]:
            panels += metric.panels(having)
    return panels


def write_report(directory: Path, metrics: MetricTable | None = None) -> Path:
    """Draws `<directory>/report.png`: every metric of the run, most of them over tokens.

    Args:
        directory: `run.dir`.
        metrics: of the run; None for the registered ones.
    """
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    content = read_metrics(directory / "metrics.jsonl")
    records = content.records
    panels = report_panels(records, metrics or MetricTable())
    columns = max(_SMALLEST_COLUMNS, -(-len(panels) // _ROWS))
    figure, axes = plt.subplots(_ROWS, columns, figsize=(6 * columns, 8), constrained_layout=True)
    # Column by column, so that more panels make the picture wider and move none.
    columnwise = list(axes.T.flat)
    for axis, panel in zip(columnwise, panels, strict=False):
        _draw(axis, panel, records)
    for axis in columnwise[len(panels) :]:
        axis.set_axis_off()
    if content.problems:
        figure.supxlabel("; ".join(f"metrics.jsonl: {problem}" for problem in content.problems), color="tab:red")
    path = directory / "report.png"
    with replaced_atomically(path) as temporary:
        figure.savefig(temporary, dpi=110, format="png")
    plt.close(figure)
    return path


def _draw(axis: Any, panel: Panel, records: Sequence[Record]) -> None:
    axis.grid(alpha=0.3)
    axis.set_xlabel(panel.x_label)
    _draw_curves(axis, panel)
    if panel.right is not None:
        _draw_curves(axis.twinx(), panel.right)
    if panel.x_label == "tokens":
        _mark_stages(axis, records)


def _draw_curves(axis: Any, panel: Panel) -> None:
    axis.set_ylabel(panel.y_label)
    for curve in panel.curves:
        axis.plot([x for x, _ in curve.points], [y for _, y in curve.points], label=curve.label or None, **curve.style)
    if any(curve.label for curve in panel.curves):
        axis.legend()


def _mark_stages(axis: Any, records: Sequence[Record]) -> None:
    for before, after in pairwise(records):
        if before["stage"] != after["stage"]:
            axis.axvline(before["tokens"], color="gray", linestyle=":")
