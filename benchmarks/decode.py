"""Tokens per second of each decode mode and engine, compared with `generate` of `transformers`.

    python -m benchmarks.decode [CHECKPOINT] [--batch-sizes 1 4 16] [--prompts-per-slot 4] [--repeats 3]

Greedy decoding of the same prompts with the same weights by the Megatron model in tree, by the exported package, and by
the stock Ministral3 of `transformers` with its static cache. Every repeat runs all of them, so that a change in the
machine's speed affects all alike. Figures are medians; ratios are medians of the ratios inside a repeat. Processor time
is measured as well as wall clock, since it varies less on a shared machine. There are several prompts for each slot of
a batch. This project's engines use continuous batching (a waiting prompt is admitted when a slot is freed); `generate`
runs batch after batch.

The figures and three ratios with their targets are printed and written as JSON: AR in tree over `generate`; linear over
AR, as a fraction of the speed-up that its accepted tokens allow; a batch over a single sequence.
"""

from __future__ import annotations

import argparse
import os
import time
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any, get_args

import torch
from rich.console import Console
from rich.table import Table

from benchmarks.decoders import IN_TREE, STOCK, EngineMode, Workload, engine_modes, stdlib_prompts
from benchmarks.record import RESULTS, result_name, write_result
from nld_train.decoding import DecodeResult, Mode
from nld_train.decoding.algorithms.statistics import accepted_length, agreement, graph_share, tokens_per_forward
from nld_train.decoding.load import find_source
from nld_train.training.loop.parallel import resolve_device

CLOCKS = ("wall", "processor")
# Targets: AR in tree over generate, linear over its fraction of AR, a batch of 16 over a batch of 1.
AR_LIMIT, LINEAR_FRACTION, BATCH_LIMIT, BATCH_SIZE = 1.0, 0.85, 6.0, 16

Key = tuple[str, str, int]


@dataclass
class Timing:
    """The times of one engine and mode at one batch size, one per repeat."""

    wall: list[float] = field(default_factory=list)
    processor: list[float] = field(default_factory=list)
    token_ids: list[list[int]] = field(default_factory=list)
    result: DecodeResult | None = None

    def seconds(self, clock: str) -> list[float]:
        """Seconds of each repeat by one of `CLOCKS`."""
        return self.wall if clock == "wall" else self.processor


def measure(found: list[EngineMode], batch_sizes: list[int], repeats: int) -> dict[Key, Timing]:
    """Times every engine and mode at every batch size, round by round, after one warm-up round."""
    timings: dict[Key, Timing] = {(each.engine, each.mode, rows): Timing() for each in found for rows in batch_sizes}
    for repeat in range(repeats + 1):
        for rows in batch_sizes:
            for each in found:
                timing = timings[each.engine, each.mode, rows]
                wall, processor = time.perf_counter(), time.process_time()
                timing.token_ids, timing.result = each.run(rows)
                if torch.cuda.is_available():
                    torch.cuda.synchronize()
                if repeat > 0:
                    timing.wall.append(time.perf_counter() - wall)
                    timing.processor.append(time.process_time() - processor)
    return timings


def figures_of(timings: dict[Key, Timing], work: Workload) -> list[dict[str, Any]]:
    """One record per engine, mode and batch size."""
    rows = []
    for (engine, mode, batch), timing in timings.items():
        reference = timings[STOCK, "ar", batch].token_ids
        record: dict[str, Any] = {"engine": engine, "mode": mode, "batch_size": batch}
        for clock in CLOCKS:
            record[f"tokens_per_second_{clock}"] = (
                batch * work.per_slot * work.new_tokens / median(timing.seconds(clock))
            )
            record[f"seconds_{clock}"] = timing.seconds(clock)
        if timing.result is not None:
            record["tokens_per_forward"] = tokens_per_forward(timing.result)
            # Below 1 at the end, when no prompt is waiting and only the longest sequences are still active.
            record["active_sequences"] = sum(timing.result.sequence_forwards) / max(1, batch * timing.result.forwards)
            record["graph_share"] = graph_share(timing.result)
            record["accepted_length"] = accepted_length(timing.result)
            forwards = timing.result.forwards + timing.result.prefill
            record["milliseconds_per_forward"] = 1e3 * median(timing.wall) / forwards
        record["agreement"] = agreement(timing.token_ids, reference)
        rows.append(record)
    return rows


def targets_of(timings: dict[Key, Timing]) -> list[dict[str, Any]]:
    """The three ratios with their limits, as far as both sides were measured."""
    targets = []
    for engine, mode, batch in timings:
        key = (engine, mode, batch)
        if engine == IN_TREE and mode == "ar":
            targets.append(
                _target(f"AR in tree over generate, {batch} rows", AR_LIMIT, timings, key, (STOCK, "ar", batch))
            )
        result = timings[key].result
        if engine != STOCK and mode == "linear" and result is not None and (engine, "ar", batch) in timings:
            limit = LINEAR_FRACTION * (accepted_length(result) or 0.0) / 2
            name = f"linear over AR, {engine}, {batch} rows"
            targets.append(_target(name, limit, timings, key, (engine, "ar", batch)))
        if engine != STOCK and batch == BATCH_SIZE and (engine, mode, 1) in timings:
            name = f"{batch} rows over one, {engine}, {mode}"
            targets.append(_target(name, BATCH_LIMIT, timings, key, (engine, mode, 1)))
    return targets


def _target(name: str, limit: float, timings: dict[Key, Timing], key: Key, other: Key) -> dict[str, Any]:
    """Tokens per second of `key` over those of `other`; the batch sizes count in the numbers of tokens."""
    target: dict[str, Any] = {"name": name, "limit": limit}
    for clock in CLOCKS:
        pairs = zip(timings[key].seconds(clock), timings[other].seconds(clock), strict=True)
        target[clock] = median(key[2] / seconds * other_seconds / other[2] for seconds, other_seconds in pairs)
    return target


def show(figures: dict[str, Any]) -> None:
    """Prints figures and targets."""
    console = Console(width=130, highlight=False)
    table = Table(
        "engine",
        "mode",
        "batch",
        "tokens/s",
        "tokens/s of processor time",
        "tokens/forward",
        "in graphs",
        "as generate",
    )
    for row in figures["rows"]:
        speeds = (f"{row[f'tokens_per_second_{clock}']:,.0f}" for clock in CLOCKS)
        forward = f"{row['tokens_per_forward']:.2f}" if "tokens_per_forward" in row else ""
        graphs = f"{row['graph_share']:.0%}" if "graph_share" in row else ""
        same = f"{row['agreement']:.1%}"
        table.add_row(row["engine"], row["mode"], str(row["batch_size"]), *speeds, forward, graphs, same)
    console.print(table)
    table = Table("ratio of tokens/s", "limit", "wall clock", "of limit", "processor time", "of limit")
    for target in figures["targets"]:
        cells = [cell for clock in CLOCKS for cell in _of_limit(target[clock], target["limit"])]
        table.add_row(target["name"], f"{target['limit']:.2f}", *cells)
    console.print(table)
    console.print(f"load of the machine: {figures['load_before']} before, {figures['load_after']} after")


def _of_limit(ratio: float, limit: float) -> tuple[str, str]:
    return f"{ratio:.2f}", f"{ratio / limit:.2f}" if limit else ""


def run(options: argparse.Namespace) -> dict[str, Any]:
    """The whole measurement."""
    load_before = os.getloadavg()
    torch.set_num_threads(options.threads)
    tokenizer = find_source(options.checkpoint, options.tokenizer).tokenizer
    work = Workload(
        prompts=stdlib_prompts(tokenizer, max(options.batch_sizes) * options.prompts_per_slot, options.prompt_tokens),
        per_slot=options.prompts_per_slot,
        new_tokens=options.new_tokens,
        block_length=options.block_length,
        threshold=options.threshold,
    )
    with engine_modes(options.checkpoint, options.tokenizer, options.modes, work) as found:
        timings = measure(found, options.batch_sizes, options.repeats)
    kept = {name: str(value) if isinstance(value, Path) else value for name, value in vars(options).items()}
    return {
        "device": str(resolve_device("auto")),
        "settings": kept,
        "load_before": load_before,
        "load_after": os.getloadavg(),
        "rows": figures_of(timings, work),
        "targets": targets_of(timings),
    }


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", nargs="?", type=Path, default=Path("runs/quickstart"), help="a run or checkpoint")
    parser.add_argument("--tokenizer", help="use this tokenizer (default: the checkpoint's)")
    parser.add_argument("--modes", nargs="+", choices=get_args(Mode), default=list(get_args(Mode)), help="which modes")
    parser.add_argument(
        "--batch-sizes", nargs="+", type=int, default=[1, 4, 16], help="sequences decoded together (default: 1 4 16)"
    )
    parser.add_argument("--prompts-per-slot", type=int, default=4, help="prompts for each slot of a batch (default: 4)")
    parser.add_argument("--prompt-tokens", type=int, default=64, help="tokens of a prompt (default: 64)")
    parser.add_argument("--new-tokens", type=int, default=96, help="new tokens of a sequence (default: 96)")
    parser.add_argument("--block-length", type=int, default=8, help="tokens per block (default: 8)")
    parser.add_argument("--threshold", type=float, default=0.9, help="of diffusion (default: 0.9)")
    parser.add_argument("--repeats", type=int, default=3, help="timed repeats (default: 3)")
    parser.add_argument("--threads", type=int, default=1, help="threads of torch on the CPU (default: 1)")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder for the JSON")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> None:
    """Measures, prints and writes the result."""
    options = parse(arguments)
    figures = run(options)
    show(figures)
    print(write_result(result_name("decode", figures["device"]), figures, options.results))


if __name__ == "__main__":
    main()
