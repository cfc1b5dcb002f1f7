"""The cost of a joint step relative to an AR step on the same data tokens, compared with the ratio of operations.

    python -m benchmarks.step                              the quickstart's shapes and corpus
    python -m benchmarks.step --document-tokens 30         the same shapes over random tokens in short documents
    python -m benchmarks.step --shape 8b                   layers of the 8B model, as many as fit, over random tokens
    python -m benchmarks.step model=8b model.num_hidden_layers=2 batch.sequence_length=4096 ...

Prints time and peak memory of both steps, the ratio of the times, its limit (the ratio of operations, counted for these
shapes and samples: layers for 2L positions, attention by visible pairs, head for supervised rows), and the ratio over
its limit; on a GPU also the planner's count of memory, and its ratio to the peak. A missing corpus is prepared in a
temporary folder.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any, Literal

import torch
from rich.console import Console
from rich.table import Table

from benchmarks.arithmetic import arithmetic
from benchmarks.corpus import with_corpus
from benchmarks.record import RESULTS, result_name, write_result
from benchmarks.shapes import SHAPES, as_many_as_fit, layers_that_fit, random_run, with_layers
from benchmarks.timing import peak_memory, reset_peak_memory
from nld_train.config.compose import compose_config
from nld_train.config.schema import Config
from nld_train.config.stage_kinds import stage_kind
from nld_train.errors import exit_status
from nld_train.planner.memory import rank_memory
from nld_train.training.loop.hardware import peak_flops
from nld_train.training.loop.parallel import parallel_groups

# The ratio of the times should stay within this multiple of its limit, by type of device.
TARGETS = {"cuda": 1.10, "cpu": 1.25}
KINDS = ("ar", "joint")


def main(arguments: list[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("overrides", nargs="*", help="settings of the run, as for nld-train")
    parser.add_argument("--shape", choices=SHAPES, help="a released shape, over random tokens (default: none)")
    parser.add_argument("--layers", type=int, help="layers of --shape (default: as many as fit the GPU; 1 on a CPU)")
    parser.add_argument("--random-tokens", action="store_true", help="random tokens, no corpus; implied by --shape")
    parser.add_argument(
        "--document-tokens", type=int, help="mean length of a document of random tokens; implies --random-tokens"
    )
    parser.add_argument("--steps", type=int, default=7, help="timed steps of each kind (default: 7)")
    parser.add_argument("--warmup", type=int, default=2, help="steps of each kind before (default: 2)")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder for the JSON")
    options = parser.parse_args(arguments)
    with _settings(options) as config, parallel_groups(config) as device:
        layers = options.layers or (_layers(config, device) if options.shape else config.model.num_hidden_layers)
        fewest = 1 if options.shape and not options.layers else layers

        def attempt(count: int) -> dict[str, Any]:
            return measure(with_layers(config, count), device, options.steps, options.warmup)

        figures, too_many = as_many_as_fit(layers, attempt, fewest)
        figures["layers_beyond_memory"] = too_many
    show(figures)
    name = "_".join(["step", *(str(each) for each in (options.shape, options.document_tokens) if each)])
    print(write_result(result_name(name, device), figures, options.results))


@contextmanager
def _settings(options: argparse.Namespace) -> Iterator[Config]:
    if options.shape is None and options.document_tokens is None and not options.random_tokens:
        with with_corpus(options.overrides) as overrides:
            yield compose_config(overrides)
        return
    with random_run(options.shape, options.overrides, options.document_tokens or 1024) as config:
        yield config


def _layers(config: Config, device: torch.device) -> int:
    """The number of layers that fit the GPU by the planner's count; on a CPU one."""
    return layers_that_fit(config, torch.cuda.mem_get_info()[0]) if device.type == "cuda" else 1


def measure(config: Config, device: torch.device, steps: int, warmup: int) -> dict[str, Any]:
    """Times alternating AR and joint steps, so that a change in the machine's speed affects both alike.

    Returns:
        Seconds, bytes and operations per kind, and the ratios.
    """
    from benchmarks.stepper import Stepper

    stepper = Stepper(config, device)
    for kind in KINDS:
        stepper.prepare(kind)
    seconds: dict[str, list[float]] = {kind: [] for kind in KINDS}
    memory = dict.fromkeys(KINDS, 0)
    for round_number in range(warmup + steps):
        for kind in KINDS:
            reset_peak_memory(device)
            begin = time.perf_counter()
            stepper.step(kind)
            if round_number >= warmup:
                seconds[kind].append(time.perf_counter() - begin)
                memory[kind] = max(memory[kind], peak_memory(device))
    return {**_facts(config, stepper), **_ratios(config, stepper, seconds), **_memory(config, device, memory)}


def _facts(config: Config, stepper: Any) -> dict[str, Any]:
    peak = peak_flops(stepper.device, config.logging.peak_tflops)
    return {
        "device": str(stepper.device),
        "peak_tflops": None if peak is None else peak / 1e12,
        "model": config.model.name,
        "layers": config.model.num_hidden_layers,
        "kernels": stepper.kernels,
        "parameters": stepper.parameters,
        "sequence_length": config.batch.sequence_length,
        "tokens": config.batch.global_size * config.batch.sequence_length,
    }


def _ratios(config: Config, stepper: Any, seconds: dict[str, list[float]]) -> dict[str, Any]:
    operations = {kind: arithmetic(config, stepper.samples[kind], stage_kind(kind).noisy_stream) for kind in KINDS}
    time_ratio = median(seconds["joint"]) / median(seconds["ar"])
    limit = operations["joint"] / operations["ar"]
    return {
        "seconds": {kind: median(values) for kind, values in seconds.items()},
        "seconds_all": seconds,
        "update_seconds": stepper.update_seconds(),
        "operations": operations,
        "time_ratio": time_ratio,
        "limit": limit,
        "of_limit": time_ratio / limit,
        "target": TARGETS[stepper.device.type],
    }


def _memory(config: Config, device: torch.device, memory: dict[str, int]) -> dict[str, Any]:
    """Peaks and the planner's counts, and on a GPU their ratio; on a CPU the peak is that of the whole process."""
    kind_of_device: Literal["cuda", "cpu"] = "cuda" if device.type == "cuda" else "cpu"
    on = replace(config, execution=replace(config.execution, device=kind_of_device))
    planned = {kind: rank_memory(on, 1, 0, stage_kind(kind)).total for kind in KINDS}
    ratios = {kind: planned[kind] / memory[kind] for kind in KINDS} if device.type == "cuda" else None
    return {"peak_bytes": memory, "planned_bytes": planned, "planned_over_peak": ratios}


def show(figures: dict[str, Any]) -> None:
    """Prints the figures as a table and a line."""
    title = f"{figures['model']}, {figures['layers']} layers, {figures['kernels']}, on {figures['device']}"
    columns = ("step", "seconds", "tokens/s", "peak (GiB)", "planned (GiB)", "planned over peak", "operations")
    table, ratios = Table(*columns, title=title), figures["planned_over_peak"]
    for kind in KINDS:
        seconds = figures["seconds"][kind]
        table.add_row(
            kind,
            f"{seconds:.3f}",
            f"{figures['tokens'] / seconds:,.0f}",
            *(f"{figures[key][kind] / 2**30:.2f}" for key in ("peak_bytes", "planned_bytes")),
            f"{ratios[kind]:.2f}" if ratios else "",
            f"{figures['operations'][kind]:.3e}",
        )
    console = Console(width=110, highlight=False)
    console.print(table)
    console.print(
        f"joint over AR: {figures['time_ratio']:.2f} in time, {figures['limit']:.2f} in arithmetic: "
        f"{figures['of_limit']:.2f} of limit (target: {figures['target']:.2f})"
    )


if __name__ == "__main__":
    sys.exit(exit_status(main))
