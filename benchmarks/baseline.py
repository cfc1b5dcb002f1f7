"""This project's joint step compared with a straightforward design, on the same weights and samples.

    python -m benchmarks.baseline                                  layers of the 8B model, as many as fit a GPU
    python -m benchmarks.baseline --shape none --steps 2           the quickstart's shapes

The straightforward design (`benchmarks.naive_step`) repeats keys for every query head, makes a FlexAttention mask in
each layer, and has logits and cross-entropy of all 2L positions at once. On a CPU, where FlexAttention has no backward
pass, its masks are dense and this project's attention backend is `chunked`. Both compute the same loss. Prints tokens
per second, the peak memory of the step and of head and loss, and their ratios.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from statistics import median
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from benchmarks.record import RESULTS, result_name, write_result
from benchmarks.shapes import SHAPES, as_many_as_fit, layers_that_fit, random_run, with_layers
from benchmarks.timing import peak_memory, reset_peak_memory
from nld_train.config.schema import Config
from nld_train.errors import exit_status
from nld_train.training.loop.parallel import parallel_groups

OURS, NAIVE = "ours", "straightforward"
SPEED_TARGET, MEMORY_TARGET = 1.5, 0.5


def main(arguments: list[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("overrides", nargs="*", help="settings of the run, as for nld-train")
    parser.add_argument("--shape", choices=[*SHAPES, "none"], default="8b", help="shape of the layers (default: 8b)")
    parser.add_argument("--layers", type=int, help="number of layers (default: half of those that fit; 1 on a CPU)")
    parser.add_argument("--steps", type=int, default=5, help="timed steps of each design (default: 5)")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder for the JSON")
    options = parser.parse_args(arguments)
    shape = None if options.shape == "none" else options.shape
    with random_run(shape, options.overrides) as config, parallel_groups(config) as device:
        layers = options.layers or (_layers(config, device) if shape else config.model.num_hidden_layers)
        fewest = 1 if shape and not options.layers else layers

        def attempt(count: int) -> dict[str, Any]:
            return measure(with_layers(config, count), device, options.steps)

        figures, too_many = as_many_as_fit(layers, attempt, fewest)
        figures["layers_beyond_memory"] = too_many
    show(figures)
    print(write_result(result_name("baseline", device), figures, options.results))


def _layers(config: Config, device: torch.device) -> int:
    """The straightforward design needs more memory than the planner counts."""
    if device.type == "cpu":
        return 1
    return max(1, layers_that_fit(config, torch.cuda.mem_get_info()[0]) // 2)


def measure(config: Config, device: torch.device, steps: int) -> dict[str, Any]:
    """Times alternating joint steps of both designs."""
    from benchmarks.naive_step import head_memory, straightforward
    from benchmarks.stepper import Stepper

    stepper = Stepper(config, device)
    stepper.prepare("joint")
    seconds: dict[str, list[float]] = {OURS: [], NAIVE: []}
    memory, losses = dict.fromkeys(seconds, 0), dict.fromkeys(seconds, 0.0)
    for round_number in range(1 + steps):
        # Every update changes the weights a little, so losses of later rounds differ between the designs.
        for name in (OURS, NAIVE):
            with straightforward(stepper, on=name == NAIVE):
                reset_peak_memory(device)
                begin = time.perf_counter()
                losses[name] = stepper.step("joint", update=round_number > 0)
                if round_number > 0:
                    seconds[name].append(time.perf_counter() - begin)
                memory[name] = max(memory[name], peak_memory(device))
        if round_number == 0:
            first_losses = dict(losses)
    head = {name: head_memory(stepper, straightforward=name == NAIVE) for name in (OURS, NAIVE)}
    tokens = config.batch.global_size * config.batch.sequence_length
    speed = median(seconds[NAIVE]) / median(seconds[OURS])
    return {
        "device": str(device),
        "model": config.model.name,
        "layers": config.model.num_hidden_layers,
        "kernels": stepper.kernels,
        "tokens": tokens,
        "designs": {
            name: {
                "seconds": median(seconds[name]),
                "tokens_per_second": tokens / median(seconds[name]),
                "peak_bytes": memory[name],
                "head_bytes": head[name],
                "loss": first_losses[name],
            }
            for name in (OURS, NAIVE)
        },
        "speed_ratio": speed,
        "speed_target": SPEED_TARGET,
        "head_memory_ratio": head[OURS] / head[NAIVE],
        "head_memory_target": MEMORY_TARGET,
    }


def show(figures: dict[str, Any]) -> None:
    """Prints the figures as a table and a line."""
    title = f"{figures['model']}, {figures['layers']} layers, {figures['kernels']}, on {figures['device']}"
    table = Table("joint step", "seconds", "tokens/s", "peak (GiB)", "head and loss (GiB)", "loss", title=title)
    for name, row in figures["designs"].items():
        gibibytes = (f"{row[key] / 2**30:.3f}" for key in ("peak_bytes", "head_bytes"))
        speed = f"{row['tokens_per_second']:,.0f}"
        table.add_row(name, f"{row['seconds']:.3f}", speed, *gibibytes, f"{row['loss']:.5f}")
    console = Console(width=110, highlight=False)
    console.print(table)
    console.print(
        f"tokens/s: {figures['speed_ratio']:.2f} times (target {SPEED_TARGET}); head and loss: "
        f"{figures['head_memory_ratio']:.2f} of the memory (target {MEMORY_TARGET})"
    )


if __name__ == "__main__":
    sys.exit(exit_status(main))
