"""What a joint step costs beside an AR step on the same data tokens, and beside its arithmetic.

    python -m benchmarks.step                              the quickstart's shapes and corpus
    python -m benchmarks.step --shape 8b                   layers of the 8B model, as many as fit, over random tokens
    python -m benchmarks.step model=8b model.num_hidden_layers=2 batch.sequence_length=4096 ...

Prints time and peak memory of both steps, their ratio, the ratio of their arithmetic counted for these shapes and this
data (body twice, attention by visible pairs, head for supervised rows), and the first over the second.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from benchmarks.record import RESULTS, keep
from benchmarks.shapes import SHAPES, layers_that_fit, random_run, with_layers
from benchmarks.timing import peak_memory, reset_peak_memory
from nld_train.config.compose import compose_config
from nld_train.config.counts import causal_visible_pairs, joint_visible_pairs, training_flops
from nld_train.config.schema import Config
from nld_train.training.parallel import parallel_groups

# A joint step on an H100 should stay within this share of its arithmetic.
TARGET = 1.10


def main(arguments: list[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("overrides", nargs="*", help="settings of the run, as for nld-train")
    parser.add_argument("--shape", choices=SHAPES, help="a released shape, over random tokens (default: none)")
    parser.add_argument("--layers", type=int, help="of a shape (default: as many as fit the GPU; 1 on a CPU)")
    parser.add_argument("--random-tokens", action="store_true", help="without a corpus; always so with --shape")
    parser.add_argument("--steps", type=int, default=7, help="timed steps of each kind (default: 7)")
    parser.add_argument("--warmup", type=int, default=2, help="steps of each kind before (default: 2)")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder for the JSON")
    options = parser.parse_args(arguments)
    with _settings(options) as config:
        figures = measure(config, options.steps, options.warmup)
    show(figures)
    print(keep(f"step_{options.shape}" if options.shape else "step", figures, options.results))


@contextmanager
def _settings(options: argparse.Namespace) -> Iterator[Config]:
    if options.shape is None and not options.random_tokens:
        yield compose_config(options.overrides)
        return
    with random_run(options.shape, options.overrides) as config:
        layers = options.layers or (_layers(config) if options.shape else config.model.num_hidden_layers)
        yield with_layers(config, layers)


def _layers(config: Config) -> int:
    """As many as fit the GPU; on a CPU a single one, which shows that it runs."""
    if not torch.cuda.is_available() or config.execution.device == "cpu":
        return 1
    return layers_that_fit(config, torch.cuda.mem_get_info()[0])


def measure(config: Config, steps: int, warmup: int) -> dict[str, Any]:
    """Times AR and joint steps in turn, so that a drifting machine slows both alike.

    Returns:
        Seconds, bytes and operations per kind, and the ratios.
    """
    with parallel_groups(config) as device:
        from benchmarks.stepper import Stepper

        stepper = Stepper(config, device)
        kinds = {name: stepper.prepare(name) for name in ("ar", "joint")}
        for _ in range(warmup):
            for kind in kinds:
                stepper.step(kind)
        seconds: dict[str, list[float]] = {kind: [] for kind in kinds}
        memory = dict.fromkeys(kinds, 0)
        for _ in range(steps):
            for kind in kinds:
                reset_peak_memory(device)
                begin = time.perf_counter()
                stepper.step(kind)
                seconds[kind].append(time.perf_counter() - begin)
                memory[kind] = max(memory[kind], peak_memory(device))
        return _figures(config, stepper, seconds, memory, kinds)


def _figures(
    config: Config, stepper: Any, seconds: dict[str, list[float]], memory: dict[str, int], kinds: dict[str, Any]
) -> dict[str, Any]:
    operations = {kind: arithmetic(config, samples, kind == "joint") for kind, samples in kinds.items()}
    time_ratio = median(seconds["joint"]) / median(seconds["ar"])
    limit = operations["joint"] / operations["ar"]
    return {
        "device": str(stepper.device),
        "model": config.model.name,
        "layers": config.model.num_hidden_layers,
        "kernels": stepper.kernels,
        "parameters": stepper.parameters,
        "sequence_length": config.batch.sequence_length,
        "tokens": config.batch.global_size * config.batch.sequence_length,
        "seconds": {kind: median(values) for kind, values in seconds.items()},
        "seconds_all": seconds,
        "peak_bytes": memory,
        "operations": operations,
        "time_ratio": time_ratio,
        "limit": limit,
        "of_limit": time_ratio / limit,
        "target": TARGET,
    }


def arithmetic(config: Config, micro_batches: list[dict[str, Tensor]], joint: bool) -> float:
    """Operations of a step, counted from the rows and the visible pairs of its own samples."""
    total = 0.0
    for batch in micro_batches:
        for row in range(len(batch["tokens"])):
            rows = int(batch["supervised"][row].sum()) + (int(batch["masked"][row].sum()) if joint else 0)
            documents = batch["documents"][row, :-1]
            pairs = visible_pairs(documents, config.diffusion.block_size, joint)
            total += training_flops(config.model, len(documents), config.diffusion.block_size, joint, rows, pairs)
    return total


def visible_pairs(documents: Tensor, block_size: int, joint: bool) -> int:
    """Pairs of query and key in one sample, whose documents are int `[L]`; each is a sample of its own."""
    lengths = torch.unique_consecutive(documents, return_counts=True)[1].tolist()
    return sum(joint_visible_pairs(each, block_size) if joint else causal_visible_pairs(each) for each in lengths)


def show(figures: dict[str, Any]) -> None:
    """Prints the figures as a table and a line."""
    title = f"{figures['model']}, {figures['layers']} layers, {figures['kernels']}, on {figures['device']}"
    table = Table("step", "seconds", "tokens/s", "peak memory (GiB)", "operations", title=title)
    for kind in ("ar", "joint"):
        seconds = figures["seconds"][kind]
        table.add_row(
            kind,
            f"{seconds:.3f}",
            f"{figures['tokens'] / seconds:,.0f}",
            f"{figures['peak_bytes'][kind] / 2**30:.2f}",
            f"{figures['operations'][kind]:.3e}",
        )
    console = Console(width=110, highlight=False)
    console.print(table)
    console.print(
        f"joint over AR: {figures['time_ratio']:.2f} in time, {figures['limit']:.2f} in arithmetic: "
        f"{figures['of_limit']:.2f} of limit (target on an H100: {TARGET})"
    )


if __name__ == "__main__":
    main()
