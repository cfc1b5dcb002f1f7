"""The end of a run: `summary.json`, from `metrics.jsonl` alone, and the lines that it prints."""

from __future__ import annotations

import json
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from statistics import median

from nld_train.files import write_atomically
from nld_train.revision import git_revision
from nld_train.training.metrics.jsonl import Record
from nld_train.training.metrics.registry import MetricTable

_PACKAGES = ("nld-train", "torch", "megatron-core", "transformers", "transformer-engine", "numpy")


def write_summary(directory: Path, metrics: MetricTable | None = None) -> Record:
    """Writes and returns `<directory>/summary.json`.

    Args:
        directory: `run.dir`.
        metrics: of the run; None for the registered ones.
    """
    metrics = metrics or MetricTable()
    content = metrics.read(directory / "metrics.jsonl")
    records = content.records
    names = dict.fromkeys(record["stage"] for record in records)
    stages = {name: _stage_summary([r for r in records if r["stage"] == name], metrics) for name in names}
    summary = {"stages": stages, "versions": _versions(), "git_revision": git_revision()}
    if content.problems:
        summary["problems"] = [f"metrics.jsonl: {problem}" for problem in content.problems]
    write_atomically(directory / "summary.json", json.dumps(summary, indent=1) + "\n")
    return summary


def _stage_summary(records: Sequence[Record], metrics: MetricTable) -> Record:
    """The entry of one stage: its sums, and the keys of each metric."""
    summary: Record = {
        "steps": len(records),
        "tokens": sum(record["step_tokens"] for record in records),
        "seconds": sum(record["seconds"] for record in records),
        "tokens_per_second": median(record["tokens_per_second"] for record in records),
    }
    for metric in metrics.of(records):
        summary |= metric.summary([record for record in records if metric.name in record])
    return summary


def progress_lines(summary: Record, metrics: MetricTable | None = None) -> list[str]:
    """The lines about the results of each stage that its metrics have (`Metric.progress`), after what is missing.

    Args:
        summary: the content of `summary.json`.
        metrics: of the run; None for the registered ones.
    """
    metrics = metrics or MetricTable()
    missing = [f"warning: {problem}, and in no figure of the summary" for problem in summary.get("problems", ())]
    return missing + [
        f"{name}, {line}"
        for name, stage in summary["stages"].items()
        for metric in metrics.values()
        for line in metric.progress(stage)
    ]


def _versions() -> dict[str, str | None]:
    found: dict[str, str | None] = {}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = None
    return found
