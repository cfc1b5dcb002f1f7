"""Prints the results of a run: `python launch/show_summary.py RUN_DIRECTORY`."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from rich.table import Table

from nld_train.console import plain_console
from nld_train.training.metrics.summary import progress_lines


def main() -> None:
    """Show `summary.json` of the run directory that is named on the command line."""
    directory = Path(sys.argv[1])
    summary: dict[str, Any] = json.loads((directory / "summary.json").read_text())
    table = Table("stage", "steps", "tokens", "minutes", "tokens/s", "AR loss", "diffusion loss", "held-out AR loss")
    for name, stage in summary["stages"].items():
        validation = stage["validation"]
        table.add_row(
            name,
            f"{stage['steps']:,}",
            f"{stage['tokens']:,}",
            f"{stage['seconds'] / 60:.1f}",
            f"{stage['tokens_per_second']:,.0f}",
            change(stage, "ar_loss"),
            change(stage, "diffusion_loss"),
            f"{validation['ar_loss']:.3f}" if validation else "",
        )
    console = plain_console(width=120)
    console.print(table)
    for line in progress_lines(summary):
        console.print(line)
    for file in ("summary.json", "report.png", "metrics.jsonl"):
        console.print(directory / file)


def change(stage: dict[str, Any], loss: str) -> str:
    """`first -> last`, both means over ten steps, in nats; empty where the stage has no such loss."""
    first, last = stage[f"first_{loss}"], stage[f"last_{loss}"]
    return "" if first is None else f"{first:.3f} -> {last:.3f}"


if __name__ == "__main__":
    main()
