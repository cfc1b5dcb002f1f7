"""What a joint step costs beside an AR step on the same data tokens, and beside its arithmetic.

    python -m benchmarks.step                              the shapes of the quickstart
    python -m benchmarks.step model=8b model.num_hidden_layers=2 batch.sequence_length=4096 ...

Prints time and peak memory of both steps, their ratio, the ratio of their arithmetic counted for these shapes and this
data (body twice, attention by visible pairs, head for supervised rows), and the first over the second.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from statistics import median
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from benchmarks.record import RESULTS, keep
from nld_train.config.compose import compose_config
from nld_train.config.counts import training_flops
from nld_train.config.schema import Config
from nld_train.training.parallel import parallel_groups


def main(arguments: list[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("overrides", nargs="*", help="settings of the run, as for nld-train")
    parser.add_argument("--steps", type=int, default=7, help="timed steps of each kind (default: 7)")
    parser.add_argument("--warmup", type=int, default=2, help="steps of each kind before (default: 2)")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder for the JSON")
    options = parser.parse_args(arguments)
    config = compose_config(options.overrides)
    figures = measure(config, options.steps, options.warmup)
    show(figures)
    print(keep("step", figures, options.results))


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
                stepper.reset_peak_memory()
                begin = time.perf_counter()
                stepper.step(kind)
                seconds[kind].append(time.perf_counter() - begin)
                memory[kind] = max(memory[kind], stepper.peak_memory())
        return _figures(config, stepper, seconds, memory, kinds)


def _figures(
    config: Config, stepper: Any, seconds: dict[str, list[float]], memory: dict[str, int], kinds: dict[str, Any]
) -> dict[str, Any]:
    operations = {kind: arithmetic(config, samples, kind == "joint") for kind, samples in kinds.items()}
    time_ratio = median(seconds["joint"]) / median(seconds["ar"])
    limit = operations["joint"] / operations["ar"]
    return {
        "device": str(stepper.device),
        "parameters": stepper.parameters,
        "tokens": config.batch.global_size * config.batch.sequence_length,
        "seconds": {kind: median(values) for kind, values in seconds.items()},
        "seconds_all": seconds,
        "peak_bytes": memory,
        "operations": operations,
        "time_ratio": time_ratio,
        "limit": limit,
        "of_limit": time_ratio / limit,
    }


def arithmetic(config: Config, micro_batches: list[dict[str, torch.Tensor]], joint: bool) -> float:
    """Operations of a step, counted from the rows and the visible pairs of its own samples."""
    from nld_train.masking.layout import StreamLayout
    from nld_train.masking.visibility import dense_mask

    total = 0.0
    for batch in micro_batches:
        layout = StreamLayout.of(batch["documents"][:, :-1], config.diffusion.block_size, joint)
        for row in range(len(batch["tokens"])):
            alone = StreamLayout(layout.documents[row : row + 1], layout.positions, layout.blocks[row : row + 1], joint)
            rows = int(batch["supervised"][row].sum()) + (int(batch["masked"][row].sum()) if joint else 0)
            pairs = int(dense_mask(alone).sum())
            total += training_flops(config.model, layout.length, config.diffusion.block_size, joint, rows, pairs)
    return total


def show(figures: dict[str, Any]) -> None:
    """Prints the figures as a table and a line."""
    table = Table("step", "seconds", "tokens/s", "peak memory (GiB)", "operations", title=f"on {figures['device']}")
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
        f"{figures['of_limit']:.2f} of limit"
    )


if __name__ == "__main__":
    main()
