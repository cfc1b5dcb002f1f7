"""The start-up time of commands that should respond quickly.

    python -m benchmarks.start                 medians of five starts, against their limits

Prints seconds, limit and ratio for `nld-train --help`, a plan of a run, `nld-plan` and `nld-status` without a run.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from pathlib import Path
from statistics import median
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.record import RESULTS, write_result

# By command: arguments of Python, limit in seconds, and expected exit status.
COMMANDS: dict[str, tuple[tuple[str, ...], float, int]] = {
    "nld-train --help": (("-m", "nld_train.train", "--help"), 1.5, 0),
    "nld-train experiment=paper_8b run.dry=true": (
        ("-m", "nld_train.train", "experiment=paper_8b", "run.dry=true"),
        5.0,
        0,
    ),
    "nld-plan model=8b gpus=256": (("-m", "nld_train.commands.plan", "model=8b", "gpus=256"), 5.0, 0),
    "nld-status": (("-m", "nld_train.commands.status", "/nowhere"), 1.0, 2),
}


def main(arguments: list[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--starts", type=int, default=5, help="timed starts of each command (default: 5)")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder for the JSON")
    options = parser.parse_args(arguments)
    figures = measure(options.starts)
    show(figures)
    print(write_result("start", figures, options.results))


def measure(starts: int) -> dict[str, Any]:
    """Seconds of each command, after one start that compiles and fills the file cache."""
    return {name: _measure(*command, starts) for name, command in COMMANDS.items()}


def _measure(words: tuple[str, ...], limit: float, status: int, starts: int) -> dict[str, Any]:
    seconds = [_seconds(words, status) for _ in range(starts + 1)][1:]
    return {"seconds": median(seconds), "seconds_all": seconds, "limit": limit, "of_limit": median(seconds) / limit}


def _seconds(words: tuple[str, ...], status: int) -> float:
    begin = time.perf_counter()
    done = subprocess.run([sys.executable, *words], capture_output=True, text=True, timeout=120, check=False)
    elapsed = time.perf_counter() - begin
    assert done.returncode == status, done.stderr
    return elapsed


def show(figures: dict[str, Any]) -> None:
    """Prints the figures as a table."""
    table = Table("command", "seconds", "limit", "of limit")
    for name, row in figures.items():
        table.add_row(name, f"{row['seconds']:.2f}", f"{row['limit']:.1f}", f"{row['of_limit']:.2f}")
    Console(width=110, highlight=False).print(table)


if __name__ == "__main__":
    main()
