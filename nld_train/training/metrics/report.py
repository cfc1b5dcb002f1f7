"""The curves of a run in `report.png`, from `metrics.jsonl` alone."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate, groupby, pairwise
from math import isfinite, nan
from pathlib import Path
from typing import Any

from nld_train.files import replaced_atomically
from nld_train.printable import printable
from nld_train.training.metrics.jsonl import Record
from nld_train.training.metrics.metric import Curve, Panel, human
from nld_train.training.metrics.registry import MetricTable

_ROWS = 2
_SMALLEST_COLUMNS = 2
_LEGEND_CHARACTERS = 60
# A running mean reaches over this part of a curve.
_WINDOWS = 20
# A curve with fewer points has none.
_FEWEST = 20


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

    metrics = metrics or MetricTable()
    content = metrics.read(directory / "metrics.jsonl")
    records = content.records
    # Names of runs and metrics are no formulas.
    with matplotlib.rc_context({"text.parse_math": False}):
        figure = draw_report(report_panels(records, metrics), records)
        figure.suptitle(printable(_title(directory, records)))
        if content.problems:
            figure.supxlabel("; ".join(f"metrics.jsonl: {problem}" for problem in content.problems), color="tab:red")
    path = directory / "report.png"
    with replaced_atomically(path) as temporary:
        figure.savefig(temporary, dpi=110, format="png")
    plt.close(figure)
    return path


def draw_report(panels: Sequence[Panel], records: Sequence[Record]) -> Any:
    """The panels as a figure of matplotlib.

    Args:
        panels: to draw.
        records: of the run, from which the borders of the stages are taken.
    """
    import matplotlib.pyplot as plt

    columns = max(_SMALLEST_COLUMNS, -(-len(panels) // _ROWS))
    figure, axes = plt.subplots(_ROWS, columns, figsize=(6 * columns, 9), constrained_layout=True)
    borders = [before["tokens"] for before, after in pairwise(records) if before["stage"] != after["stage"]]
    # Column by column, so that more panels make the picture wider and move none.
    columnwise = list(axes.T.flat)
    for axis, panel in zip(columnwise, panels, strict=False):
        _draw(axis, panel, borders)
    for axis in columnwise[len(panels) :]:
        axis.set_axis_off()
    return figure


def _title(directory: Path, records: Sequence[Record]) -> str:
    if not records:
        return directory.name
    stages = ", ".join(dict.fromkeys(record["stage"] for record in records))
    return f"{directory.name}: {records[-1]['step']:,} steps, {human(records[-1]['tokens'])} tokens, stages {stages}"


def _draw(axis: Any, panel: Panel, borders: Sequence[float]) -> None:
    axis.grid(alpha=0.3)
    axis.set_title(panel.title or panel.y_label)
    axis.set_xlabel(panel.x_label)
    if panel.title:
        axis.set_ylabel(panel.y_label)
    over_tokens = panel.x_label == "tokens"
    _draw_curves(axis, panel, borders if over_tokens else [])
    handles, labels = axis.get_legend_handles_labels()
    if panel.right is not None:
        right = axis.twinx()
        right.set_ylabel(panel.right.y_label)
        _draw_curves(right, panel.right, borders)
        more = right.get_legend_handles_labels()
        handles, labels = handles + more[0], labels + more[1]
    if over_tokens:
        for border in borders:
            axis.axvline(border, color="gray", linestyle=":")
    if handles:
        # Below the axes, where it hides no curve, and no wider than they are.
        columns = max(1, _LEGEND_CHARACTERS // (4 + max(map(len, labels))))
        place = {"loc": "upper center", "bbox_to_anchor": (0.5, -0.13), "ncols": columns}
        axis.legend(handles, labels, **place, frameon=False, fontsize="small")


def _draw_curves(axis: Any, panel: Panel, borders: Sequence[float]) -> None:
    for curve in panel.curves:
        _draw_curve(axis, curve, borders)


def _draw_curve(axis: Any, curve: Curve, borders: Sequence[float]) -> None:
    """The points, and over those of a noisy curve their running mean, which has the label."""
    label, style = curve.label or None, dict(curve.style)
    xs = [x for x, _ in curve.points]
    smooth = smoothed(curve.points, borders) if curve.noisy else []
    if not smooth:
        axis.plot(xs, [y for _, y in curve.points], label=label, **style)
        return
    (raw,) = axis.plot(xs, [y for _, y in curve.points], **{**style, "linewidth": 0.7, "alpha": 0.3})
    axis.plot(xs, smooth, label=label, **{**style, "color": raw.get_color()})


def smoothed(points: Sequence[tuple[float, float]], borders: Sequence[float]) -> list[float]:
    """The centred running mean of a curve over a twentieth of its points, which does not reach over a border of stages.

    Args:
        points: pairs of x and y.
        borders: the last x of each stage but the last.

    Returns:
        A value for each point; empty where there are few points.
    """
    if len(points) < _FEWEST:
        return []
    half = max(1, len(points) // _WINDOWS // 2)
    by_stage = groupby(points, key=lambda point: sum(point[0] > border for border in borders))
    return [mean for _, group in by_stage for mean in _running_means([y for _, y in group], half)]


def _running_means(values: Sequence[float], half: int) -> list[float]:
    """The mean of the finite values up to `half` before and after each, as far to one side as to the other."""
    sums = [0.0, *accumulate(value if isfinite(value) else 0.0 for value in values)]
    counts = [0, *accumulate(map(isfinite, values))]
    means = []
    for index in range(len(values)):
        reach = min(half, index, len(values) - 1 - index)
        first, last = index - reach, index + reach + 1
        count = counts[last] - counts[first]
        means.append((sums[last] - sums[first]) / count if count else nan)
    return means
