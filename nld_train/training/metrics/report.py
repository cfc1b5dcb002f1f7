"""The curves of a run in `report.png`, from `metrics.jsonl` alone."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

from nld_train.training.metrics.jsonl import Record, read_records


def write_report(directory: Path) -> Path:
    """Draws `<directory>/report.png`: losses, held-out losses, learning rate, gradient norm and speed over tokens.

    Where held-out prompts were decoded, four panels about the modes stand beside them: tokens per forward, tokens per
    second and agreement with AR over tokens, and the last acceptance by position in the block.
    """
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    records = read_records(directory / "metrics.jsonl")
    decoded = [record for record in records if "decoding" in record]
    columns = 4 if decoded else 2
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
        _draw_decoding(axes[0, 3], decoded, "tokens_per_second", "decoded tokens per second")
        _draw_acceptance(axes[1, 3], decoded)
    for axis in axes.flat:
        axis.grid(alpha=0.3)
        if not axis.get_xlabel():
            axis.set_xlabel("tokens")
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


def _draw_acceptance(axis: Any, decoded: list[Record]) -> None:
    """The last acceptance of each mode that drafts; its positions are those in the block, from 1."""
    axis.set_xlabel("position in the block")
    axis.set_ylabel("share of drafts accepted, at last")
    last = {mode: figures for record in decoded for mode, figures in record["decoding"]["modes"].items()}
    drafting = {mode: figures["acceptance"] for mode, figures in last.items() if figures.get("acceptance")}
    for mode, shares in drafting.items():
        axis.plot([int(position) for position in shares], list(shares.values()), ".-", label=mode)
    if drafting:
        axis.legend()


def _mark_stages(axis: Any, records: list[Record]) -> None:
    for before, after in pairwise(records):
        if before["stage"] != after["stage"]:
            axis.axvline(before["tokens"], color="gray", linestyle=":")
