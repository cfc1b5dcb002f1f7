"""The speed of data preparation, and the cost of the data loader in a step.

    python -m benchmarks.data                                      32 MB of text, a BPE of 131,072
    python -m benchmarks.data --megabytes 1 --vocabulary 512
    python -m benchmarks.data --tokenizer FOLDER                   a tokenizer that is there already

`nld-data prepare` and public paths with the same tokenizer, each in one process, from the same JSONL to tokens on disk:
tokens per second of processor time and of the clock. The paths are `tiktoken` (where it is installed; the fastest that
we know, on the same vocabulary), `datasets.map` in batches, and `encode_batch_fast` of `tokenizers`. Then the loader:
seconds to make the samples of a joint step in the training process, as a fraction of that step. With `data.workers`
above 0 they are made in the background.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Iterator
from hashlib import sha256
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.preparing import OURS
from benchmarks.record import RESULTS, write_result
from benchmarks.shapes import random_run
from nld_train.config.schema import Config
from nld_train.data.tokenizer import SPECIAL_TOKENS
from nld_train.training.loop.parallel import parallel_groups

# What is compared with ours, and the package that it needs.
PUBLIC = {"tiktoken": "tiktoken", "datasets.map": "datasets", "tokenizers": "tokenizers"}
PREPARATION_TARGET = 1.0
LOADER_TARGET = 0.01


def main(arguments: list[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("overrides", nargs="*", help="settings of the run whose step is timed, as for nld-train")
    parser.add_argument("--megabytes", type=float, default=32.0, help="megabytes of text (default: 32)")
    parser.add_argument("--vocabulary", type=int, default=131_072, help="of the tokenizer (default: 131072)")
    parser.add_argument("--tokenizer", type=Path, help="a byte-level BPE (default: trained on the text, in minutes)")
    parser.add_argument("--repeats", type=int, default=3, help="timed preparations of each (default: 3)")
    parser.add_argument("--steps", type=int, default=3, help="timed steps and loads (default: 3)")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder for the JSON")
    options = parser.parse_args(arguments)
    figures = {"preparation": preparation(options), "loader": loader(options.overrides, options.steps)}
    show(figures)
    print(write_result("data", figures, options.results))


def installed_sources(megabytes: float) -> Iterator[str]:
    """Python files and texts of this interpreter and its packages, in mixed order, up to the given size.

    None spells a special token, which the other implementations would read as one.
    """
    folders = {Path(os.__file__).parent, Path(sysconfig.get_paths()["purelib"]), Path(json.__file__).parents[1]}
    folders |= {Path(folder) for folder in sys.path if folder.endswith("site-packages")}
    found = {path for folder in folders for ending in _ENDINGS for path in folder.rglob(f"*{ending}")}
    paths = sorted(found, key=lambda path: sha256(str(path).encode()).digest())
    left = int(megabytes * 1e6)
    for path in paths:
        text = path.read_text(encoding="utf-8", errors="replace")[: min(left, _LONGEST_TEXT)]
        if any(token in text for token in SPECIAL_TOKENS):
            continue
        left -= len(text)
        if text:
            yield text
        if left <= 0:
            return


_ENDINGS = (".py", ".md", ".rst", ".txt")
_LONGEST_TEXT = 200_000


def preparation(options: argparse.Namespace) -> dict[str, Any]:
    """Tokens per second of all implementations, timed inside their processes, and ours over each of the others."""
    names = [OURS, *(name for name, package in PUBLIC.items() if find_spec(package) is not None)]
    with tempfile.TemporaryDirectory(prefix="nld-data-") as scratch:
        folder = Path(scratch)
        for name, megabytes in (("short", options.megabytes / 5), ("text", options.megabytes)):
            with (folder / f"{name}.jsonl").open("w") as lines:
                lines.writelines(json.dumps({"text": text}) + "\n" for text in installed_sources(megabytes))
        size = (folder / "text.jsonl").stat().st_size
        tokenizer = options.tokenizer or _train_tokenizer(folder, options.vocabulary)
        vocabulary = len(json.loads((tokenizer / "tokenizer.json").read_text())["model"]["vocab"])
        runs: dict[str, list[dict[str, float]]] = {name: [] for name in names}
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
    ratios = {name: _ratios(runs[OURS], found) for name, found in runs.items() if name != OURS}
    facts = {"megabytes": size / 1e6, "vocabulary": vocabulary, "target": PREPARATION_TARGET}
    return {**facts, "rows": rows, "ratios": ratios, "missing": sorted({OURS, *PUBLIC} - set(names))}


_CLOCKS = ("wall", "processor")


def _ratios(ours: list[dict[str, float]], theirs: list[dict[str, float]]) -> dict[str, float]:
    """Our tokens per second over theirs by each clock: the medians of the ratios of each repeat."""
    return {
        clock: median(
            our["tokens"] / our[clock] * their[clock] / their["tokens"] for our, their in zip(ours, theirs, strict=True)
        )
        for clock in _CLOCKS
    }


def _train_tokenizer(folder: Path, vocabulary: int) -> Path:
    words = ["prepare", str(folder / "text.jsonl"), "--out", str(folder / "first"), "--workers", "1"]
    call = "import sys; from nld_train.commands.data import main; sys.exit(main())"
    _python("-c", call, *words, "--tokenizer", f"train-bpe:{vocabulary}")
    return folder / "first" / "tokenizer"


def _run(name: str, folder: Path, tokenizer: Path, repeat: int) -> dict[str, float]:
    """Seconds and tokens by which a text takes longer than a fifth of it: without imports and loading."""
    out = folder / f"{name.replace(' ', '-')}-{repeat}"
    texts = (str(folder / "short.jsonl"), str(folder / "text.jsonl"))
    words = ("-m", "benchmarks.preparing", name, *texts, str(tokenizer), str(out))
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
    """Seconds of a joint step and of making its micro-batches."""
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
    """Seconds to make the micro-batches of each step, after a first one that opens the files."""
    from nld_train.config.plan import stage_plans
    from nld_train.data.batches import batches
    from nld_train.data.order import stage_orders
    from nld_train.data.samples import training_samples
    from nld_train.training.stages.objective_trainer import stream_collator

    order = stage_orders(config, stage_plans(config))["joint"]
    waiting = batches(
        training_samples(config, "joint", order),
        first_step=0,
        last_step=1 + steps,
        global_size=config.batch.global_size,
        micro_size=config.batch.micro_size,
        collate=stream_collator(config, config.stages["joint"]),
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
    console, found = Console(width=110, highlight=False), figures["loader"]
    console.print(table)
    for name, ratios in figures["preparation"]["ratios"].items():
        text = f"{ratios['wall']:.2f} by wall clock, {ratios['processor']:.2f} by processor time"
        console.print(f"{OURS} over {name}: {text} (target: at least {PREPARATION_TARGET})")
    console.print(
        f"loader: {1e3 * found['load_seconds']:.2f} ms of a step of {found['step_seconds']:.3f} s, "
        f"{found['share']:.2%} (target: below {LOADER_TARGET:.0%})"
    )


if __name__ == "__main__":
    main()
