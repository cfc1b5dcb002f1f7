"""The end of a run: `summary.json`, from `metrics.jsonl` alone, and what it says of the modes."""

from __future__ import annotations

import json
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from statistics import fmean, median

from nld_train.files import write_atomically
from nld_train.revision import git_revision
from nld_train.training.metrics.jsonl import Record, read_records

_PACKAGES = ("nld-train", "torch", "megatron-core", "transformers", "transformer-engine", "numpy")
_LOSSES = ("ar_loss", "diffusion_loss")


def write_summary(directory: Path) -> Record:
    """Writes and returns `<directory>/summary.json`."""
    records = read_records(directory / "metrics.jsonl")
    stages = {name: _stage_summary([r for r in records if r["stage"] == name]) for name in _stages(records)}
    summary = {"stages": stages, "versions": _versions(), "git_revision": git_revision()}
    write_atomically(directory / "summary.json", json.dumps(summary, indent=1) + "\n")
    return summary


def _stages(records: list[Record]) -> list[str]:
    return list(dict.fromkeys(record["stage"] for record in records))


def _stage_summary(records: list[Record]) -> Record:
    """Of one stage; first and last losses are means over (up to) 10 steps."""
    validated = [record["validation"] | {"step": record["step"]} for record in records if "validation" in record]
    return {
        "steps": len(records),
        "tokens": sum(record["step_tokens"] for record in records),
        "seconds": sum(record["seconds"] for record in records),
        "tokens_per_second": median(record["tokens_per_second"] for record in records),
        **{f"{where}_{name}": _mean(records, where, name) for name in _LOSSES for where in ("first", "last")},
        "validation": validated[-1] if validated else None,
        "validations": validated,
        "decoding": _first_and_last([record for record in records if "decoding" in record]) or None,
        "drafter": _drafter_summary([record["drafter"] for record in records if "drafter" in record]),
    }


def _first_and_last(decoded: list[Record]) -> Record:
    """By mode, the figures of its first and of its last decoding, each with its step."""
    ends: Record = {}
    for record in decoded:
        for mode, figures in record["decoding"]["modes"].items():
            figures = {"step": record["step"], **figures}
            ends.setdefault(mode, {"first": figures})["last"] = figures
    return ends


def _drafter_summary(figures: list[Record]) -> Record | None:
    """Means over (up to) the last 10 steps of a stage that trains a drafter adapter."""
    last = figures[-10:]
    names = [name for name in last[-1] if name != "blocks"] if last else []
    means = {name: [figure[name] for figure in last if figure[name] is not None] for name in names}
    return {name: fmean(values) if values else None for name, values in means.items()} or None


def _mean(records: list[Record], where: str, name: str) -> float | None:
    chosen = records[:10] if where == "first" else records[-10:]
    values = [record[name] for record in chosen if record[name] is not None]
    return fmean(values) if values else None


def _versions() -> dict[str, str | None]:
    found: dict[str, str | None] = {}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = None
    return found


def progress_lines(summary: Record) -> list[str]:
    """Whether the modes are getting better: of each stage that decoded, a line per mode from its first to its last.

    Of AR, whose tokens per forward never change, the held-out loss is told where there is one.
    """
    return [
        f"{name}, {mode}: {_progress(mode, ends, stage['validations'])}"
        for name, stage in summary["stages"].items()
        for mode, ends in (stage["decoding"] or {}).items()
    ]


def _progress(mode: str, ends: Record, validations: list[Record]) -> str:
    speed = f"{_change(ends, 'tokens_per_forward', '.2f')} tokens per forward"
    if mode != "ar":
        return f"{speed}, agreement {_change(ends, 'agreement', '.2f')}"
    losses = {"first": validations[0], "last": validations[-1]} if validations else None
    return f"{speed}, held-out loss {_change(losses, 'ar_loss', '.4f')}" if losses else speed


def _change(ends: Record, name: str, form: str) -> str:
    """`first -> last`; one figure where there was one measurement."""
    first, last = ends["first"], ends["last"]
    before = "" if first["step"] == last["step"] else f"{first[name]:{form}} -> "
    return f"{before}{last[name]:{form}}"
