"""Every figure that needs a GPU, in one run of at most ten minutes on one H100.

    python -m benchmarks.gpu                                       everything, for `benchmarks/results`
    python -m benchmarks.gpu --minutes 5 --only attention head     some rows, in less time
    python -m benchmarks.gpu --small --results /tmp/results        the same commands in small, on a CPU too

The tests that need a GPU come first. Every row is a process of its own with a time limit, and keeps its result as soon
as it has one, so that a run that is cut off, or a row that fails, takes nothing else with it. What became of each row
is kept in `gpu.json`, which is written anew after every row.
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from benchmarks.record import RESULTS, keep

_ROOT = Path(__file__).resolve().parents[1]
# A process that is told to end may take so long to do so.
_GRACE = 5.0
_TINY = ("model=tiny", "execution.device=cpu", "batch.global_size=2", "batch.micro_size=2", "batch.sequence_length=32")


@dataclass(frozen=True)
class Row:
    """One command of the run.

    Attributes:
        name: of the row.
        words: behind `python -m`.
        small: the same in small.
        seconds: that it may take.
    """

    name: str
    words: tuple[str, ...]
    small: tuple[str, ...]
    seconds: float


def rows(checkpoint: Path | None) -> list[Row]:
    """What is run, the most wanted first: time may run out."""
    tests = ("pytest", "-m", "gpu", "-q", "tests/model/test_attention_backends.py")
    found = [Row("tests", tests, (*tests, "--collect-only"), 150)]
    for shape in ("8b", "3b", "14b"):
        step = ("benchmarks.step", "--shape", shape)
        found.append(Row(f"step_{shape}", step, (*step, "--steps", "1", "--warmup", "0", *_TINY), 90))
    small = ("--device", "cpu", "--length", "32", "--repeats", "1")
    found += [
        Row("attention", ("benchmarks.attention",), ("benchmarks.attention", *small), 90),
        Row("head", ("benchmarks.head",), ("benchmarks.head", *small, "--vocabulary", "512"), 60),
        Row("baseline", ("benchmarks.baseline",), ("benchmarks.baseline", "--steps", "1", *_TINY), 120),
        Row("mfu", ("benchmarks.mfu",), ("benchmarks.mfu", "--peak-tflops", "1", "--steps", "1", *_TINY), 150),
    ]
    if checkpoint is not None:
        decode = ("benchmarks.decode", str(checkpoint))
        short = ("--repeats", "1", "--batch-sizes", "1", "--new-tokens", "8", "--prompt-tokens", "8")
        found.append(Row("decode", decode, (*decode, *short), 90))
    return found


def main(arguments: list[str] | None = None) -> int:
    """The command line; returns 1 where a row failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=10.0, help="for everything (default: 10)")
    parser.add_argument("--only", nargs="+", metavar="ROW", help="these rows (default: all)")
    parser.add_argument("--checkpoint", type=Path, help="a run or checkpoint to decode with (default: row left out)")
    parser.add_argument("--small", action="store_true", help="on a CPU, to see that the commands work")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder for the JSON")
    options = parser.parse_args(arguments)
    wanted = rows(options.checkpoint)
    if unknown := set(options.only or ()) - {row.name for row in wanted}:
        parser.error(f"--only: no row {sorted(unknown)}; rows: {', '.join(row.name for row in wanted)}")
    if options.small and options.results == RESULTS:
        parser.error("--small: its figures mean nothing; name a folder for them with --results")
    return run(wanted, options)


def run(wanted: list[Row], options: argparse.Namespace) -> int:
    """Row after row, until the time is over."""
    console, end = Console(highlight=False, width=140), time.monotonic() + 60 * options.minutes
    outcomes: dict[str, dict[str, Any]] = {row.name: {"outcome": "not reached"} for row in wanted}
    for row in wanted:
        left = end - time.monotonic()
        if options.only and row.name not in options.only:
            outcomes[row.name] = {"outcome": "not asked for"}
        elif left > _GRACE:
            console.print(f"{row.name}: at most {min(row.seconds, left):.0f} s of {left:.0f} s left")
            outcomes[row.name] = _run(row, min(row.seconds, left - _GRACE), options)
            console.print(f"{row.name}: {outcomes[row.name]['outcome']} after {outcomes[row.name]['seconds']:.0f} s")
        keep("gpu", outcomes, options.results)
    return int(any(found["outcome"] not in ("done", "not asked for") for found in outcomes.values()))


def _run(row: Row, limit: float, options: argparse.Namespace) -> dict[str, Any]:
    """A row in a process group of its own, all of which ends with it."""
    words = list(row.small if options.small else row.words)
    words += ["--results", str(options.results.resolve())] if words[0] != "pytest" else []
    begin = time.monotonic()
    options.results.mkdir(parents=True, exist_ok=True)
    log = options.results / f"{row.name}.log"
    environment = {**os.environ, "PYTHONPATH": str(_ROOT)}
    with log.open("w") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", *words],
            cwd=_ROOT,
            env=environment,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        outcome = _wait(process, limit)
    found: dict[str, Any] = {"outcome": outcome, "seconds": time.monotonic() - begin, "words": words}
    if outcome == "done":
        log.unlink()
    else:
        found["output"] = log.read_text(errors="replace")[-2000:]
    return found


def _wait(process: subprocess.Popen[bytes], limit: float) -> str:
    try:
        status = process.wait(limit)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGTERM)
        try:
            process.wait(_GRACE)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        return "cut off"
    # pytest's 5: there was nothing to run.
    return "done" if status in (0, 5) else f"failed with status {status}"


if __name__ == "__main__":
    sys.exit(main())
