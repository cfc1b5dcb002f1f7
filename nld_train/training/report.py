"""The end of a run: `summary.json` and the curves in `report.png`, both from `metrics.jsonl` alone."""

from __future__ import annotations

import json
from importlib.metadata import PackageNotFoundError, version
from itertools import pairwise
from pathlib import Path
from statistics import fmean, median
from typing import Any

from nld_train.files import write_atomically
from nld_train.revision import git_revision
from nld_train.training.metrics import Record, read_records

_PACKAGES = ("nld-train", "torch", "megatron-core", "transformers", "transformer-engine", "numpy")


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
    decoded = [record["decoding"]["modes"] for record in records if "decoding" in record]
    return {
        "steps": len(records),
        "tokens": sum(record["step_tokens"] for record in records),
        "seconds": sum(record["seconds"] for record in records),
        "tokens_per_second": median(record["tokens_per_second"] for record in records),
        **{f"{where}_{name}": _mean(records, where, name) for name in _LOSSES for where in ("first", "last")},
        "validation": validated[-1] if validated else None,
        "validations": validated,
        "decoding": decoded[-1] if decoded else None,
        "drafter": _drafter_summary([record["drafter"] for record in records if "drafter" in record]),
    }


def _drafter_summary(figures: list[Record]) -> Record | None:
    """Means over (up to) the last 10 steps of a stage that trains a drafter adapter."""
    last = figures[-10:]
    names = [name for name in last[-1] if name != "blocks"] if last else []
    means = {name: [figure[name] for figure in last if figure[name] is not None] for name in names}
    return {name: fmean(values) if values else None for name, values in means.items()} or None


_LOSSES = ("ar_loss", "diffusion_loss")


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


def write_report(directory: Path) -> Path:
    """Draws `<directory>/report.png`: losses, held-out losses, learning rate, gradient norm and speed over tokens.

    Where held-out prompts were decoded, tokens per forward and agreement with AR of each mode stand beside them.
    """
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    records = read_records(directory / "metrics.jsonl")
    decoded = [record for record in records if "decoding" in record]
    columns = 3 if decoded else 2
    figure, axes = plt.subplots(2, columns, figsize=(6 * columns, 8), constrained_layout=True)
    _draw_losses(axes[0, 0], records)
    _draw_accepted_length(axes[0, 0], [record for record in records if "drafter" in record])
    _draw_validation(axes[0, 1], records)
    _draw_line(axes[1, 0], records, "learning_rate", "learning rate")
    gradient = axes[1, 0].twinx()
    _draw_line(gradient, records, "grad_norm", "gradient norm", color="tab:red", alpha=0.5)
    _draw_line(axes[1, 1], records, "tokens_per_second", "tokens per second")
    if decoded:
        _draw_decoding(axes[0, 2], decoded, "tokens_per_forward", "decoded tokens per forward")
        _draw_decoding(axes[1, 2], decoded, "agreement", "share of tokens equal to AR's")
    for axis in axes.flat:
        axis.set_xlabel("tokens")
        axis.grid(alpha=0.3)
        _mark_stages(axis, records)
    path = directory / "report.png"
    figure.savefig(path, dpi=110)
    plt.close(figure)
    return path


def _series(records: list[Record], name: str) -> tuple[list[float], list[float]]:
    points = [(record["tokens"], record[name]) for record in records if record[name] is not None]
    return [point[0] for point in points], [point[1] for point in points]


def _draw_line(axis: Any, records: list[Record], name: str, label: str, **style: Any) -> None:
    axis.plot(*_series(records, name), linewidth=1, **style)
    axis.set_ylabel(label)


def _draw_losses(axis: Any, records: list[Record]) -> None:
    for name, label in (("ar_loss", "AR"), ("diffusion_loss", "diffusion"), ("loss", "total")):
        axis.plot(*_series(records, name), linewidth=1, label=label, alpha=0.8)
    axis.set_ylabel("training loss (nats)")
    axis.legend()


def _draw_accepted_length(losses: Any, drafted: list[Record]) -> None:
    """Beside the losses, where a drafter adapter was trained."""
    if drafted:
        axis = losses.twinx()
        lengths = [record["drafter"]["accepted_length"] for record in drafted]
        axis.plot([record["tokens"] for record in drafted], lengths, "tab:green", linewidth=1)
        axis.set_ylabel("accepted length of drafts", color="tab:green")


def _draw_validation(axis: Any, records: list[Record]) -> None:
    validated = [record for record in records if "validation" in record]
    axis.set_ylabel("held-out loss (nats per token)")
    if not validated:
        return
    tokens = [record["tokens"] for record in validated]
    axis.plot(tokens, [record["validation"]["ar_loss"] for record in validated], "k.-", label="AR")
    for level in dict.fromkeys(level for record in validated for level in record["validation"]["diffusion_loss"]):
        points = [
            (record["tokens"], record["validation"]["diffusion_loss"][level])
            for record in validated
            if level in record["validation"]["diffusion_loss"]
        ]
        axis.plot(*zip(*points, strict=True), ".-", label=f"diffusion, t = {level}")
    axis.legend()


def _draw_decoding(axis: Any, decoded: list[Record], name: str, label: str) -> None:
    """One figure of each mode over tokens; a continued run may have had other modes before."""
    for mode in dict.fromkeys(mode for record in decoded for mode in record["decoding"]["modes"]):
        points = [
            (record["tokens"], record["decoding"]["modes"][mode][name])
            for record in decoded
            if mode in record["decoding"]["modes"]
        ]
        axis.plot(*zip(*points, strict=True), ".-", label=mode)
    axis.set_ylabel(label)
    axis.legend()


def _mark_stages(axis: Any, records: list[Record]) -> None:
    for before, after in pairwise(records):
        if before["stage"] != after["stage"]:
            axis.axvline(before["tokens"], color="gray", linestyle=":")
