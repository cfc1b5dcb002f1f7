"""One plot per table, as SVG: rows with standard errors, or held-out losses over tokens."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from benchmarks.paper.claim import PaperTable
from benchmarks.paper.claims import TABLES


def draw_all(result: dict[str, Any], folder: Path) -> list[Path]:
    """Draws every table of which anything is measured; returns the files."""
    import matplotlib

    matplotlib.use("Agg")
    # The same figures give the same file.
    matplotlib.rcParams.update({"svg.hashsalt": "paper", "svg.fonttype": "none", "font.size": 9})
    folder.mkdir(parents=True, exist_ok=True)
    drawn = []
    for table in TABLES:
        cells = result["figures"]["tables"][table.name]
        if any(cell["values"] for row in cells.values() for cell in row.values()):
            drawn.append(folder / f"{table.name}.svg")
            _draw(table, cells, result["figures"]["curves"].get(table.name), drawn[-1])
    return drawn


def _draw(table: PaperTable, cells: dict[str, Any], curves: dict[str, Any] | None, path: Path) -> None:
    import matplotlib.pyplot as plt

    panels = len(table.columns) + (2 if curves else 0)
    figure, axes = plt.subplots(1, panels, figsize=(3.2 * panels, 3.2), layout="constrained", squeeze=False)
    for axis, column in zip(axes[0], table.columns, strict=False):
        _bars(axis, column.title, column.form, {label: found[column.title] for label, found in cells.items()})
    if curves:
        for axis, key in zip(axes[0][len(table.columns) :], ("diffusion", "ar"), strict=True):
            for row, points in curves.items():
                if points:
                    tokens = [point["tokens"] for point in points]
                    axis.plot(tokens, [point[key] for point in points], marker="o", markersize=3, label=row)
            axis.set(xlabel="tokens", ylabel="nats per token", title=f"held-out {key} loss")
            axis.legend()
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)


def _bars(axis: Any, title: str, kind: str, found: dict[str, Any]) -> None:
    """Means with two standard errors, and the seeds as points."""
    for index, cell in enumerate(found.values()):
        if cell["mean"] is None:
            continue
        axis.plot([index] * len(cell["values"]), cell["values"], ".", color="lightgrey")
        error = 2 * (cell["standard_error"] or 0.0)
        axis.errorbar([index], [cell["mean"]], [error], fmt="o", color="C0", capsize=4)
    axis.set_xticks(range(len(found)), [label.replace("_", "\n").replace(", ", "\n") for label in found], fontsize=7)
    axis.set_title(title)
    if kind.endswith("%"):
        axis.yaxis.set_major_formatter(lambda value, _: f"{100 * value:.0f} %")
