"""Reads results, and formats them as Markdown tables."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

NOT_MEASURED = "not measured"
# A result, as `record.write_result` wrote it.
Result = dict[str, Any]
Cells = tuple[str, ...]


def load(results: Path, name: str, on_gpu: bool = False) -> Result | None:
    """A result, or None if there is none. With `on_gpu` the one named by `record.result_name`, if a GPU made it."""
    try:
        result: Result = json.loads((results / f"{name}{'_gpu' if on_gpu else ''}.json").read_text())
    except FileNotFoundError:
        return None
    return None if on_gpu and "gpu" not in result["machine"] else result


def markdown(head: Cells, rows: Iterable[Cells]) -> str:
    """A Markdown table."""
    lines = [head, tuple("---" for _ in head), *rows]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)


def device_of(result: Result) -> str:
    """The device of a result; a result of a CPU may come from a machine with a GPU."""
    machine = result["machine"]
    cores = f"{machine['cores']} CPU cores"
    return cores if result["figures"].get("device") == "cpu" else str(machine.get("gpu", cores))


def blank(first: str, columns: int) -> Cells:
    """The row of a missing result."""
    return (first, NOT_MEASURED, *[""] * (columns - 2))


def gpu_and_cpu(results: Path, name: str, rows_of: Callable[[Result], Iterable[Cells]], head: Cells) -> str:
    """A table of a benchmark with a result on a GPU and one of small shapes on a CPU."""
    rows: list[Cells] = []
    for title, result in (("GPU", load(results, name, on_gpu=True)), ("CPU", load(results, name))):
        rows += [blank(title, len(head))] if result is None else rows_of(result)
    return markdown(head, rows)


def outcome(met: bool) -> str:
    """Whether a target is met."""
    return "met" if met else "missed"
