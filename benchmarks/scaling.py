"""Strong scaling on a CPU over gloo: a fixed amount of work on more processes.

    python -m benchmarks.scaling                               1, 2 and 4 data-parallel processes, quickstart shapes
    python -m benchmarks.scaling --processes 2,4 parallel.tensor=2

Every number of processes runs the same joint steps on the same samples, one thread per process. Prints the median time
of a step, its limit (the time with the fewest processes, divided by the additional cores that are used), and their
ratio. A missing corpus is prepared in a temporary folder.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.corpus import with_corpus
from benchmarks.record import RESULTS, write_result
from nld_train.errors import UserError, exit_status

# The first steps of a process fill caches and buffers.
_WARMUP = 2


def main(arguments: list[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("overrides", nargs="*", help="settings of the run, as for nld-train")
    parser.add_argument("--processes", default="1,2,4", help="numbers of processes (default: 1,2,4)")
    parser.add_argument("--steps", type=int, default=8, help="timed steps of each (default: 8)")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder for the JSON")
    options = parser.parse_args(arguments)
    worlds = [int(number) for number in options.processes.split(",")]
    with with_corpus(options.overrides) as overrides:
        figures = measure(worlds, options.steps, overrides)
    show(figures)
    print(write_result("scaling", figures, options.results))


def measure(worlds: list[int], steps: int, overrides: list[str]) -> dict[str, Any]:
    """Seconds per step by number of processes, each from a separate run of `nld-train`."""
    cores = len(os.sched_getaffinity(0))
    seconds = {world: _run(world, steps, overrides) for world in worlds}
    first = worlds[0]
    rows = {}
    for world, values in seconds.items():
        limit = median(seconds[first]) * min(first, cores) / min(world, cores)
        rows[str(world)] = {
            "seconds": median(values),
            "seconds_all": values,
            "limit": limit,
            "of_limit": median(values) / limit,
        }
    return {"cores": cores, "processes": rows}


def _run(world: int, steps: int, overrides: list[str]) -> list[float]:
    """Seconds of each timed step, from the run's metrics."""
    with tempfile.TemporaryDirectory(prefix="nld-scaling-") as scratch:
        settings = [
            "run.stages=[joint]",
            f"run.max_steps={steps + _WARMUP}",
            "execution.device=cpu",
            # The largest size with which four processes still have one micro-batch each.
            "batch.micro_size=2",
            "validation.every=0",
            "evaluation.every=0",
            "checkpoint.every=1000000",
            "logging.wandb.mode=disabled",
            f"run.dir={scratch}",
        ]
        launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={world}"]
        done = subprocess.run(
            [sys.executable, *launcher, "-m", "nld_train.train", *settings, *overrides],
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
            timeout=1200,
            check=False,
        )
        if done.returncode != 0:
            lines = done.stderr.splitlines()
            errors = [line for line in lines if line.startswith("error: ")] or lines[-20:]
            raise UserError(f"{world} processes: " + "\n".join(errors))
        lines = (Path(scratch) / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line)["seconds"] for line in lines[_WARMUP:]]


def show(figures: dict[str, Any]) -> None:
    """Prints the figures as a table."""
    table = Table("processes", "seconds per step", "limit", "of limit", title=f"on {figures['cores']} cores")
    for world, row in figures["processes"].items():
        table.add_row(world, f"{row['seconds']:.3f}", f"{row['limit']:.3f}", f"{row['of_limit']:.2f}")
    Console(width=110, highlight=False).print(table)


if __name__ == "__main__":
    sys.exit(exit_status(main))
