"""Every figure that needs a GPU, in one run of at most ten minutes on one H100.

    python -m benchmarks.gpu                                       everything, for `benchmarks/results`
    python -m benchmarks.gpu --minutes 5 --only attention head     some rows, in less time
    python -m benchmarks.gpu --small --results /tmp/results        the same commands on small shapes, on a CPU too

The most important figures come first. Every row runs in its own process group with a time limit, and writes each part
of its result at once, so that results before an interruption or a failed row are not lost. The outcome of each row is
in `gpu.json`, written before the first row and before and after each; a row whose package is not installed is skipped.
SIGTERM, SIGINT and SIGHUP end the running row and free the GPU. `python -m benchmarks.tables` then writes the figures
into docs/performance.md, where the first table says which targets are met.
"""

from __future__ import annotations

import argparse
import sys
import time
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from rich.console import Console

from benchmarks.mfu import FP8, LOCAL
from benchmarks.record import RESULTS, write_result
from benchmarks.row_process import GRACE, Stop, run_row, stoppable

_TINY = ("model=tiny", "execution.device=cpu", "batch.global_size=2", "batch.micro_size=2", "batch.sequence_length=32")
# With --small speed does not matter: the limits are multiplied by this, for busy machines.
_SMALL_PATIENCE = 3
_SKIPPED = "skipped"
_GPU_TESTS = (
    "tests/model/test_attention_backends.py",
    "tests/model/test_weight_gradients.py",
    "tests/model/test_rotary_and_norm.py",
    "tests/benchmarks/test_memory_on_gpu.py",
)


@dataclass(frozen=True)
class Row:
    """One command of the run.

    Attributes:
        name: of the row.
        words: arguments of `python -m`.
        small: the same on small shapes.
        seconds: time limit.
        package: what it needs on a GPU, by the name of the import; None for nothing more than the others.
    """

    name: str
    words: tuple[str, ...]
    small: tuple[str, ...]
    seconds: float
    package: str | None = None


def rows(checkpoint: Path | None) -> list[Row]:
    """All rows, the most important first, since time may run out. Limits and grace periods sum to ten minutes."""
    small = ("--device", "cpu", "--length", "32", "--repeats", "1")
    short = ("--repeats", "1", "--new-tokens", "8", "--prompt-tokens", "8")
    mfu = ("benchmarks.mfu", "--steps")
    tests = ("pytest", "-m", "gpu", "-q", *_GPU_TESTS)
    found = [
        _step("8b", 90),
        Row("baseline", ("benchmarks.baseline",), ("benchmarks.baseline", "--steps", "1", *_TINY), 75),
        Row("attention", ("benchmarks.attention",), ("benchmarks.attention", *small), 75),
        Row("forwards", ("benchmarks.forwards",), ("benchmarks.forwards", "--shape", "none", *short, *_TINY), 70),
        # Layers of one kind are those of the row step_8b already.
        Row(
            "mfu",
            (*mfu, "5", "--kinds", FP8, LOCAL),
            (*mfu, "1", "--kinds", LOCAL, "--layers", "1", "--peak-tflops", "1", *_TINY),
            80,
            package="transformer_engine",
        ),
        _step("3b", 45),
        _step("14b", 45),
        Row("head", ("benchmarks.head",), ("benchmarks.head", *small, "--vocabulary", "512"), 40),
        Row("tests", tests, (*tests, "--collect-only"), 35),
    ]
    return found if checkpoint is None else [*found, *_of_checkpoint(checkpoint, short)]


def _of_checkpoint(checkpoint: Path, short: tuple[str, ...]) -> list[Row]:
    """Not counted in the ten minutes: they run in the time that is left."""
    forwards = ("benchmarks.forwards", "--checkpoint", str(checkpoint))
    decode = ("benchmarks.decode", str(checkpoint))
    return [
        Row("forwards_checkpoint", forwards, (*forwards, *short), 60),
        Row(
            "decode",
            (*decode, "--repeats", "3", "--prompts-per-slot", "2"),
            (*decode, "--batch-sizes", "1", *short),
            90,
        ),
    ]


def _step(shape: str, seconds: float) -> Row:
    words = ("benchmarks.step", "--shape", shape)
    return Row(f"step_{shape}", words, (*words, "--steps", "1", "--warmup", "0", *_TINY), seconds)


def main(arguments: list[str] | None = None) -> int:
    """The command line; returns 1 if a row failed, and 128 plus the signal's number if a signal ended the run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=10.0, help="time limit of all rows (default: 10)")
    parser.add_argument("--only", nargs="+", metavar="ROW", help="rows to run (default: all)")
    parser.add_argument("--checkpoint", type=Path, help="a run or checkpoint to decode with (default: no decoding)")
    parser.add_argument("--small", action="store_true", help="small shapes on a CPU, to check that the commands work")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder for the JSON")
    options = parser.parse_args(arguments)
    known = rows(options.checkpoint)
    if unknown := set(options.only or ()) - {row.name for row in known}:
        parser.error(f"--only: no row {sorted(unknown)}; rows: {', '.join(row.name for row in known)}")
    if options.small and options.results == RESULTS:
        parser.error("--small: its figures mean nothing; name a folder for them with --results")
    with stoppable() as stop:
        outcomes = run(known, options, stop)
    if stop.number is not None:
        return 128 + stop.number
    good = ("done", "not selected", _SKIPPED)
    return int(any(found["outcome"] not in good for found in outcomes.values()))


def run(known: list[Row], options: argparse.Namespace, stop: Stop) -> dict[str, dict[str, Any]]:
    """Runs the rows until the time is over or a signal arrives; returns and writes the outcome of each."""
    console, end = Console(highlight=False, width=140), time.monotonic() + 60 * options.minutes
    selected = [row for row in known if not options.only or row.name in options.only]
    outcomes: dict[str, dict[str, Any]] = {
        row.name: {"outcome": "not reached" if row in selected else "not selected"} for row in known
    }
    write_result("gpu", outcomes, options.results)
    for row in selected:
        if row.package is not None and not options.small and find_spec(row.package) is None:
            outcomes[row.name] = {"outcome": _SKIPPED, "reason": f"{row.package} is not installed"}
            write_result("gpu", outcomes, options.results)
            console.print(f"{row.name}: skipped, {row.package} is not installed")
            continue
        left = end - time.monotonic()
        if stop.number is not None or left <= GRACE:
            break
        limit = min(row.seconds * (_SMALL_PATIENCE if options.small else 1), left - GRACE)
        console.print(f"{row.name}: at most {limit:.0f} s of {left:.0f} s left")
        outcomes[row.name] = {"outcome": "running"}
        write_result("gpu", outcomes, options.results)
        outcomes[row.name] = _run(row, limit, options, stop)
        console.print(f"{row.name}: {outcomes[row.name]['outcome']} after {outcomes[row.name]['seconds']:.0f} s")
        write_result("gpu", outcomes, options.results)
    return outcomes


def _run(row: Row, limit: float, options: argparse.Namespace, stop: Stop) -> dict[str, Any]:
    words = list(row.small if options.small else row.words)
    words += ["--results", str(options.results.resolve())] if words[0] != "pytest" else []
    return run_row(words, options.results / f"{row.name}.log", limit, stop)


if __name__ == "__main__":
    sys.exit(main())
