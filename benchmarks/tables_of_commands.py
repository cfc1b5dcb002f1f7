"""Tables of `docs/performance.md`: processes, data, commands, conversion, decoding, and the list of all results."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.preparing import OURS
from benchmarks.results_table import (
    NOT_MEASURED,
    Cells,
    Result,
    blank,
    device_of,
    gpu_and_cpu,
    load,
    markdown,
    outcome,
)

_SHORT_REVISION = 12
_DIRTY = "-dirty"
# The engines of `benchmarks.decode`, in the order of their columns.
_ENGINES = ("in tree", "export", "transformers")


def scaling(results: Path) -> str:
    """Strong scaling over processes on a CPU."""
    columns = ("processes", "seconds per step", "limit", "of limit")
    result = load(results, "scaling")
    rows = [blank("1, 2, 4", len(columns))]
    if result is not None:
        found = result["figures"]["processes"].items()
        rows = [(n, f"{r['seconds']:.3f}", f"{r['limit']:.3f}", f"{r['of_limit']:.2f}") for n, r in found]
    return markdown(columns, rows)


def data(results: Path) -> str:
    """Data preparation and loading."""
    columns = ("figure", "measured", "beside", "ratio", "target")
    result = load(results, "data")
    if result is None:
        return markdown(columns, [blank(each, len(columns)) for each in ("preparation", "loader")])
    prepared, loader = result["figures"]["preparation"], result["figures"]["loader"]
    speeds = {name: f"{row['tokens_per_second_processor']:,.0f}" for name, row in prepared["rows"].items()}
    rows: list[Cells] = [
        (
            f"`{OURS}`, tokens/s per core",
            speeds[OURS],
            f"`{name}` {speeds[name]}",
            f"{ratios['processor']:.2f}",
            f"at least {prepared['target']}",
        )
        for name, ratios in prepared["ratios"].items()
    ]
    milliseconds = (f"{1e3 * loader['load_seconds']:.1f} ms", f"step of {1e3 * loader['step_seconds']:.0f} ms")
    rows.append(("samples of a joint step", *milliseconds, f"{loader['share']:.2%}", "below 1 %"))
    return markdown(columns, rows)


def many_documents(results: Path) -> str:
    """Writing and reading the index of many documents."""
    columns = ("command", "seconds", "cores used", "bytes of memory per document", "target")
    result = load(results, "many_documents")
    if result is None:
        return markdown(columns, [blank("all", len(columns))])
    rows = []
    for name, row in result["figures"]["rows"].items():
        target = "at most 32" if name == "write .bin and .idx" else ""
        rows.append((name, f"{row['seconds']:.2f}", f"{row['cores']:.2f}", f"{row['bytes_per_document']:.1f}", target))
    return markdown(columns, rows)


def start(results: Path) -> str:
    """Start-up times."""
    columns = ("command", "seconds", "limit", "of limit")
    result = load(results, "start")
    rows = [blank("all", len(columns))]
    if result is not None:
        found = result["figures"].items()
        rows = [(f"`{n}`", f"{r['seconds']:.2f}", f"{r['limit']:.1f}", f"{r['of_limit']:.2f}") for n, r in found]
    return markdown(columns, rows)


def convert(results: Path) -> str:
    """Conversion compared with a copy of the same bytes."""
    columns = ("direction", "MB/s", "copy, MB/s", "of the copy's speed", "target", "")
    result = load(results, "convert")
    if result is None:
        return markdown(columns, [blank(each, len(columns)) for each in ("import", "export")])
    found, rows = result["figures"], []
    for name in ("import", "export"):
        speeds = (f"{found['bytes'] / median(found[name]['seconds'][act]) / 1e6:,.0f}" for act in ("convert", "copy"))
        ratio, target = found[name]["ratio"], found["target_ratio"]
        rows.append((name, *speeds, f"{ratio:.2f}", f"at least {target}", outcome(ratio >= target)))
    return markdown(columns, rows)


def decode(results: Path) -> str:
    """Tokens per second by mode, batch and engine, by the clock."""
    engines = (f"{engine}, tokens/s" for engine in _ENGINES)
    columns = ("on", "mode", "batch", *engines, "tokens per forward", "active sequences")
    return gpu_and_cpu(results, "decode", _decoded, columns)


def _decoded(result: Result) -> Iterable[Cells]:
    found = {(row["mode"], row["batch_size"], row["engine"]): row for row in result["figures"]["rows"]}
    rows: list[Cells] = []
    for mode, batch in dict.fromkeys(key[:2] for key in sorted(found, key=lambda key: key[1]) if key[2] != _ENGINES[2]):
        of_engines = [found.get((mode, batch, engine)) for engine in _ENGINES]
        speeds = ("" if row is None else f"{row['tokens_per_second_wall']:,.0f}" for row in of_engines)
        counted = next((row for row in of_engines if row and "tokens_per_forward" in row), None)
        counts = (f"{counted['tokens_per_forward']:.2f}", f"{_active_sequences(counted):.0%}") if counted else ("", "")
        rows.append((device_of(result), mode, str(batch), *speeds, *counts))
    return sorted(rows, key=lambda row: row[1])


def _active_sequences(row: dict[str, Any]) -> float:
    """The mean fraction of active slots; results of earlier revisions have it under another key."""
    return float(row["active_sequences"] if "active_sequences" in row else row["rows_at_work"])


def decode_targets(results: Path) -> str:
    """The ratios of decoding that have a target; met or missed by the clock."""
    columns = ("on", "ratio of tokens/s", "target", "measured", "of processor time", "")

    def rows_of(result: Result) -> Iterable[Cells]:
        for target in result["figures"]["targets"]:
            cells = (f"at least {target['limit']:.2f}", f"{target['wall']:.2f}", f"{target['processor']:.2f}")
            yield device_of(result), target["name"], *cells, outcome(target["wall"] >= target["limit"])

    return gpu_and_cpu(results, "decode", rows_of, columns)


def forwards(results: Path) -> str:
    """The time of a decode forward in each mode at one sequence."""
    columns = ("on", "weights", "mode", "milliseconds per forward", "tokens per forward", "tokens/s", "in CUDA graphs")
    rows: list[Cells] = []
    for name in ("forwards", "forwards_checkpoint"):
        result = load(results, name, on_gpu=True)
        if result is None:
            rows.append(("GPU", "random" if name == "forwards" else "trained", NOT_MEASURED, *[""] * 4))
            continue
        for mode, row in result["figures"]["rows"].items():
            cells = (f"{row['milliseconds_per_forward']:.2f}", f"{row['tokens_per_forward']:.2f}")
            speed = f"{row['tokens_per_second']:,.0f}"
            rows.append(
                (device_of(result), result["figures"]["weights"], mode, *cells, speed, f"{row['graph_share']:.0%}")
            )
    return markdown(columns, rows)


def runs(results: Path) -> str:
    """All results with their revision and machine."""
    columns = ("result", "on", "revision", "command")
    rows = []
    for path in sorted(results.glob("*.json")):
        result: Result = json.loads(path.read_text())
        rows.append((f"`{path.name}`", device_of(result), _revision(result), f"`{result['command']}`"))
    return markdown(columns, rows)


def _revision(result: Result) -> str:
    """Short, with a mark if the code had uncommitted changes."""
    revision = str(result.get("git_revision"))
    changed = revision.endswith(_DIRTY)
    return revision.removesuffix(_DIRTY)[:_SHORT_REVISION] + (_DIRTY if changed else "")
