"""The speed of data preparation, and the cost of the data loader in a step.

    python -m benchmarks.data                                      16 MB of text, a BPE of 4096
    python -m benchmarks.data --megabytes 1 --vocabulary 512

`nld-data prepare` and `datasets.map` with the same tokenizer: both in one process, from the same JSONL to tokens on
disk; tokens per second of processor time and of the clock. Then the loader: seconds to make the samples of a joint step
in the training process, as a fraction of that step. With `data.workers` above 0 they are made in the background.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.record import RESULTS, write_result
from benchmarks.shapes import random_run
from nld_train.config.schema import Config
from nld_train.training.loop.parallel import parallel_groups

OURS, THEIRS = "nld-data prepare", "datasets.map"
LOADER_TARGET = 0.01


def main(arguments: list[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("overrides", nargs="*", help="settings of the run whose step is timed, as for nld-train")
    parser.add_argument("--megabytes", type=float, default=16.0, help="megabytes of text (default: 16)")
    parser.add_argument("--vocabulary", type=int, default=4096, help="vocabulary of the tokenizer (default: 4096)")
    parser.add_argument("--repeats", type=int, default=3, help="timed preparations of each (default: 3)")
    parser.add_argument("--steps", type=int, default=3, help="timed steps and loads (default: 3)")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder for the JSON")
    options = parser.parse_args(arguments)
    figures = {"preparation": preparation(options), "loader": loader(options.overrides, options.steps)}
    show(figures)
    print(write_result("data", figures, options.results))


def standard_library(megabytes: float) -> Iterator[str]:
    """Python's own sources, repeated and cut to the given size."""
    paths = sorted(Path(os.__file__).parent.glob("*.py"))
    left = int(megabytes * 1e6)
    while left > 0:
        for path in paths:
            text = path.read_text(encoding="utf-8", errors="replace")[:left]
            left -= len(text)
            if text:
                yield text


def preparation(options: argparse.Namespace) -> dict[str, Any]:
    """Tokens per second of both implementations, timed inside their processes."""
    with tempfile.TemporaryDirectory(prefix="nld-data-") as scratch:
        folder = Path(scratch)
        with (folder / "text.jsonl").open("w") as lines:
            lines.writelines(json.dumps({"text": text}) + "\n" for text in standard_library(options.megabytes))
        tokenizer = _train_tokenizer(folder, options.vocabulary)
        runs: dict[str, list[dict[str, float]]] = {OURS: [], THEIRS: []}
        for repeat in range(options.repeats):
            for name in runs:
                runs[name].append(_run(name, folder, tokenizer, repeat))
    rows = {
        name: {
            "tokens": found[0]["tokens"],
            **{f"tokens_per_second_{clock}": median(run["tokens"] / run[clock] for run in found) for clock in _CLOCKS},
        }
        for name, found in runs.items()
    }
    ratios = {
        clock: median(ours["tokens"] / ours[clock] * theirs[clock] / theirs["tokens"] for ours, theirs in _pairs(runs))
        for clock in _CLOCKS
    }
    return {"megabytes": options.megabytes, "vocabulary": options.vocabulary, "rows": rows, "ratios": ratios}


_CLOCKS = ("wall", "processor")


def _pairs(runs: dict[str, list[dict[str, float]]]) -> list[tuple[dict[str, float], dict[str, float]]]:
    return list(zip(runs[OURS], runs[THEIRS], strict=True))


def _train_tokenizer(folder: Path, vocabulary: int) -> Path:
    words = ["prepare", str(folder / "text.jsonl"), "--out", str(folder / "first"), "--workers", "1"]
    call = "import sys; from nld_train.commands.data import main; sys.exit(main())"
    _python("-c", call, *words, "--tokenizer", f"train-bpe:{vocabulary}")
    return folder / "first" / "tokenizer"


def _run(name: str, folder: Path, tokenizer: Path, repeat: int) -> dict[str, float]:
    """Seconds and tokens of one preparation, without the start of the interpreter and imports."""
    out = folder / f"{name.replace(' ', '-')}-{repeat}"
    words = ("-m", "benchmarks.preparing", name, str(folder / "text.jsonl"), str(tokenizer), str(out))
    found: dict[str, float] = json.loads(_python(*words).splitlines()[-1])
    return found


def _python(*words: str) -> str:
    environment = {**os.environ, "TOKENIZERS_PARALLELISM": "false", "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, *words]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=1200, check=False)
    if done.returncode != 0:
        raise SystemExit(f"{' '.join(command)}: {done.stderr[-2000:]}")
    return done.stdout


def loader(overrides: list[str], steps: int) -> dict[str, Any]:
    """Seconds of a joint step and of making its samples."""
    with random_run(None, overrides) as config, parallel_groups(config) as device:
        from benchmarks.stepper import Stepper

        stepper = Stepper(config, device)
        stepper.prepare("joint")
        stepper.step("joint")
        step_seconds, load_seconds = [], _load_seconds(config, steps)
        for _ in range(steps):
            begin = time.perf_counter()
            stepper.step("joint")
            step_seconds.append(time.perf_counter() - begin)
        share = median(load_seconds) / median(step_seconds)
        return {
            "device": str(device),
            "model": config.model.name,
            "tokens": config.batch.global_size * config.batch.sequence_length,
            "step_seconds": median(step_seconds),
            "load_seconds": median(load_seconds),
            "share": share,
            "target": LOADER_TARGET,
        }


def _load_seconds(config: Config, steps: int) -> list[float]:
    """Seconds to load the samples of each step, after a first one that opens the files."""
    from nld_train.config.plan import stage_plans
    from nld_train.data.batches import batches
    from nld_train.data.order import stage_orders
    from nld_train.data.samples import training_samples

    order = stage_orders(config, stage_plans(config))["joint"]
    waiting = batches(
        training_samples(config, "joint", order),
        first_step=0,
        last_step=1 + steps,
        global_size=config.batch.global_size,
        micro_size=config.batch.micro_size,
    )
    iterator, seconds = iter(waiting), []
    for _ in range(1 + steps):
        begin = time.perf_counter()
        next(iterator)
        seconds.append(time.perf_counter() - begin)
    return seconds[1:]


def show(figures: dict[str, Any]) -> None:
    """Prints the figures as a table and two lines."""
    table = Table("preparation, one process", "tokens", "tokens/s", "tokens/s of processor time")
    for name, row in figures["preparation"]["rows"].items():
        speeds = (f"{row[f'tokens_per_second_{clock}']:,.0f}" for clock in _CLOCKS)
        table.add_row(name, f"{row['tokens']:,.0f}", *speeds)
    console, ratios, found = Console(width=110, highlight=False), figures["preparation"]["ratios"], figures["loader"]
    console.print(table)
    ratios_text = f"{ratios['wall']:.2f} by wall clock, {ratios['processor']:.2f} by processor time"
    console.print(f"{OURS} over {THEIRS}: {ratios_text}")
    console.print(
        f"loader: {1e3 * found['load_seconds']:.2f} ms of a step of {found['step_seconds']:.3f} s, "
        f"{found['share']:.2%} (target: below {LOADER_TARGET:.0%})"
    )


if __name__ == "__main__":
    main()
