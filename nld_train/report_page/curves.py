"""The panels of a run as figures of plotly: every curve raw, and where steps are noisy its running mean over it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from math import isfinite
from typing import Any

from nld_train.printable import printable
from nld_train.training.metrics.jsonl import Record
from nld_train.training.metrics.metric import Curve, HeatMap, Panel
from nld_train.training.metrics.registry import MetricTable
from nld_train.training.metrics.report import report_panels, smoothed

# Of a curve with more, the lowest and the highest point of each interval are drawn, so that no spike is lost.
MOST_POINTS = 2000
# matplotlib's and plotly's first colours, in the same order.
_COLOURS = (
    *("#1f77b4", "#ff7f0e", "#2ca02c", "#d62728", "#9467bd"),
    *("#8c564b", "#e377c2", "#7f7f7f", "#bcbd22", "#17becf"),
)
_HEIGHT = 380
_OVER_TOKENS = "tokens"


def figures_of(records: Sequence[Record], metrics: MetricTable) -> list[dict[str, Any]]:
    """Every panel and heat map of the run's metrics, in the order of `report.png`, as plotly's JSON objects.

    Curves over tokens have the optimizer step of each point as `customdata`, and `layout.meta.borders` has the last
    tokens and step of each stage but the last: the page draws the same figures over steps.

    Raises:
        ImportError: plotly is not installed.
    """
    import plotly.graph_objects as plot

    steps = {float(record["tokens"]): record["step"] for record in records}
    borders = [_border(before) for before, after in pairwise(records) if before["stage"] != after["stage"]]
    drawn = [_figure(plot, panel, steps, borders) for panel in report_panels(records, metrics)]
    for metric in metrics.of(records):
        if having := [record for record in records if metric.name in record]:
            drawn += [_heat_map(plot, found, steps, borders) for found in metric.heat_maps(having)]
    return [figure.to_plotly_json() for figure in drawn]


def _border(last: Record) -> dict[str, Any]:
    return {"tokens": last["tokens"], "step": last["step"], "stage": printable(last["stage"])}


def _figure(plot: Any, panel: Panel, steps: Mapping[float, int], borders: Sequence[Mapping[str, Any]]) -> Any:
    figure = plot.Figure()
    over_tokens = panel.x_label == _OVER_TOKENS
    known, own_borders = (steps, [border["tokens"] for border in borders]) if over_tokens else ({}, [])
    count = 0
    for part, axis in ((panel, "y"), (panel.right, "y2")):
        for curve in part.curves if part is not None else ():
            figure.add_traces(_traces(plot, curve, axis, count, known, own_borders))
            count += 1
    _lay_out(figure, panel.title or panel.y_label, panel.x_label, panel.y_label, borders if over_tokens else None)
    if panel.right is not None:
        figure.update_layout(yaxis2={"title": {"text": panel.right.y_label}, "overlaying": "y", "side": "right"})
    return figure


def _lay_out(figure: Any, title: str, x_label: str, y_label: str, borders: Sequence[Mapping[str, Any]] | None) -> None:
    """Titles and margins; `borders` of stages are given for a figure over tokens."""
    figure.update_layout(
        title={"text": printable(title)},
        xaxis={"title": {"text": x_label}},
        yaxis={"title": {"text": y_label}},
        height=_HEIGHT,
        margin={"l": 60, "r": 60, "t": 50, "b": 45},
        legend={"orientation": "h", "y": -0.2},
        template="plotly_white",
        meta={"overTokens": borders is not None, "borders": list(borders or ())},
    )


def _traces(
    plot: Any, curve: Curve, axis: str, number: int, steps: Mapping[float, int], borders: Sequence[float]
) -> list[Any]:
    """The points of a curve, and over those of a noisy one their running mean; a click on the legend hides both."""
    colour, name = _colour(curve, number), printable(curve.label)
    means = smoothed(curve.points, borders) if curve.noisy else []
    common = {"yaxis": axis, "legendgroup": str(number), "line": {"color": colour}}
    raw = _trace(plot, thinned(curve.points), steps, common)
    raw.update(name=f"{name}, each step".lstrip(", ") if means else name, showlegend=bool(name) and not means)
    if "marker" in curve.style:
        raw.update(mode="lines+markers", marker={"color": colour, "size": 5})
    if not means:
        return [raw]
    raw.update(opacity=0.3, line={"color": colour, "width": 1})
    xs = (x for x, _ in curve.points)
    mean = _trace(plot, thinned(list(zip(xs, means, strict=True))), steps, common)
    mean.update(name=name or "running mean", showlegend=bool(name))
    return [raw, mean]


def _trace(plot: Any, points: Sequence[tuple[float, float]], steps: Mapping[float, int], common: Any) -> Any:
    shown = {"x": [x for x, _ in points], "y": [y if isfinite(y) else None for _, y in points]}
    trace = plot.Scatter(**shown, **common, mode="lines")
    if steps:
        trace.update(customdata=[steps[x] for x, _ in points])
        trace.update(hovertemplate="%{y:.5g}<br>%{x:,} tokens, step %{customdata:,}")
    return trace


def _colour(curve: Curve, number: int) -> str:
    """That of the curve's style in `report.png`, or the next one."""
    from matplotlib.colors import to_hex

    return str(to_hex(curve.style["color"])) if "color" in curve.style else _COLOURS[number % len(_COLOURS)]


def thinned(points: Sequence[tuple[float, float]], most: int = MOST_POINTS) -> list[tuple[float, float]]:
    """At most about `most` points of a curve: of each interval the lowest and the highest, and both ends.

    Args:
        points: pairs of x and y, in the order of x.
        most: how many points are kept as they are.
    """
    if len(points) <= most:
        return list(points)
    width = -(-2 * len(points) // most)
    kept = {0, len(points) - 1}
    for start in range(0, len(points), width):
        interval = range(start, min(start + width, len(points)))
        kept |= {min(interval, key=lambda index: points[index][1]), max(interval, key=lambda index: points[index][1])}
    return [points[index] for index in sorted(kept)]


def _heat_map(plot: Any, found: HeatMap, steps: Mapping[float, int], borders: Sequence[Mapping[str, Any]]) -> Any:
    positions = sorted({position for _, values in found.columns for position in values})
    trace = plot.Heatmap(
        x=[tokens for tokens, _ in found.columns],
        y=positions,
        z=[[values.get(position) for _, values in found.columns] for position in positions],
        customdata=[[steps[tokens] for tokens, _ in found.columns] for _ in positions],
        zmin=0,
        zmax=1,
        colorscale="Viridis",
        colorbar={"title": {"text": found.z_label, "side": "right"}},
        hovertemplate="position %{y}: %{z:.1%}<br>%{x:,} tokens, step %{customdata:,}<extra></extra>",
    )
    figure = plot.Figure(trace)
    _lay_out(figure, found.title, _OVER_TOKENS, found.y_label, borders)
    return figure
