"""Seconds, peak memory and errors of head and loss, for variants that store all logits, chunks of them, or none.

    python -m benchmarks.head                                      vocabulary 131072 and width 4096 on a GPU
    python -m benchmarks.head --vocabulary 8192 --length 256       on small shapes

A joint step has 2L positions, of which the clean ones and the masked noisy ones (here every second) are supervised.
Variants: all 2L rows of logits at once; the supervised rows at once; the same in chunks (as in a run, see
`nld_train/losses/cross_entropy.py`); Liger's fused kernel and cut-cross-entropy, by default and exact, where they are
installed (the extra `benchmark`), on CUDA. Every variant computes the mean over the supervised rows; loss and gradients
are compared with float64. Each result is written as soon as it is measured.

The limit of time is that of the three matrix products alone, timed alternately; the limit of memory is the size of the
gradients.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from benchmarks.head_variants import FOREIGN, Inputs, Variant, gradient_bytes, in_float64, products_alone, variants
from benchmarks.record import RESULTS, result_name, write_result
from benchmarks.timing import extra_memory, interleaved_seconds
from nld_train.config.compose import compose_config
from nld_train.errors import exit_status
from nld_train.training.loop.parallel import parallel_groups

_LIMIT = "the three products alone"


def main(arguments: list[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--device", default="auto", choices=["auto", "cuda", "cpu"], help="device to measure on (default: auto)"
    )
    parser.add_argument("--vocabulary", type=int, default=131072, help="vocabulary size (default: 131072)")
    parser.add_argument("--length", type=int, help="tokens of the sample (default: 4096, on a CPU 128)")
    parser.add_argument("--width", type=int, help="hidden size (default: 4096, on a CPU 256)")
    parser.add_argument("--chunk-rows", type=int, help="rows per chunk (default: a run's 2048, on a CPU 64)")
    parser.add_argument("--repeats", type=int, default=5, help="timed passes (default: 5)")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder for the JSON")
    options = parser.parse_args(arguments)
    with parallel_groups(compose_config([f"execution.device={options.device}"])) as device:
        on_cpu = device.type == "cpu"
        options.length = options.length or (128 if on_cpu else 4096)
        options.width = options.width or (256 if on_cpu else 4096)
        options.chunk_rows = options.chunk_rows or (64 if on_cpu else 2048)
        for figures in measure(options, device):
            path = write_result(result_name("head", device), figures, options.results)
    show(figures)
    print(path)


def measure(options: argparse.Namespace, device: torch.device) -> Iterator[dict[str, Any]]:
    """Measures seconds, bytes and errors of every variant; yields all figures so far after each."""
    inputs = Inputs(options, device)
    found, missing = variants(device)
    shape = {name: getattr(options, name) for name in ("vocabulary", "length", "width", "chunk_rows")}
    figures: dict[str, Any] = {"device": str(device), **shape, "supervised_rows": len(inputs.index)}
    figures |= {"limit_bytes": gradient_bytes(inputs), "rows": {}, "missing": missing}
    expected = _gradients(in_float64(inputs), inputs)
    for name, variant in found.items():
        try:
            figures["rows"][name] = _row(variant, inputs, expected, options.repeats, device)
        except Exception as error:
            # Kernels of other packages may not support this torch or device; all logits may not fit into memory.
            if name not in FOREIGN and not isinstance(error, torch.cuda.OutOfMemoryError):
                raise
            missing[name] = f"failed: {(str(error).strip().splitlines() or [type(error).__name__])[0][:120]}"
        yield figures


def _row(
    variant: Variant, inputs: Inputs, expected: tuple[Tensor, ...], repeats: int, device: torch.device
) -> dict[str, float | dict[str, float]]:
    """Figures of a variant, timed alternately with the products alone."""
    inputs.forget_gradients()
    errors = _errors(_gradients(variant(inputs), inputs), expected)
    both: dict[str, Callable[[], Any]] = {
        "variant": lambda: _gradients(variant(inputs), inputs),
        _LIMIT: lambda: products_alone(inputs),
    }
    seconds = interleaved_seconds(both, device, repeats)
    extra = extra_memory(both["variant"], device)
    return {
        "seconds": median(seconds["variant"]),
        "limit_seconds": median(seconds[_LIMIT]),
        "of_limit": median(mine / limit for mine, limit in zip(seconds["variant"], seconds[_LIMIT], strict=True)),
        "extra_bytes": extra,
        "bytes_of_limit": extra / gradient_bytes(inputs),
        "errors": errors,
    }


def _gradients(loss: Tensor, inputs: Inputs) -> tuple[Tensor, ...]:
    """The loss, and its gradients with respect to hidden states and head."""
    return (loss.detach(), *inputs.gradients(loss))


def _errors(found: tuple[Tensor, ...], expected: tuple[Tensor, ...]) -> dict[str, float]:
    """Relative error of the loss, and of each gradient as a norm."""
    names = ("loss", "hidden_gradient", "weight_gradient")
    return {
        name: float((got.float() - want.float()).norm() / want.float().norm())
        for name, got, want in zip(names, found, expected, strict=True)
    }


def show(figures: dict[str, Any]) -> None:
    """Prints the figures as a table."""
    title = f"V = {figures['vocabulary']}, {figures['supervised_rows']} rows, width {figures['width']}"
    columns = ("head and loss", "milliseconds", "limit", "of limit", "extra memory (GiB)", "limit", "of limit")
    table = Table(*columns, "error of loss, gradients", title=title)
    for name, row in figures["rows"].items():
        errors = ", ".join(f"{error:.0e}" for error in row["errors"].values())
        times = (f"{1e3 * row['seconds']:.1f}", f"{1e3 * row['limit_seconds']:.1f}", f"{row['of_limit']:.2f}")
        memory = (f"{row['extra_bytes'] / 2**30:.3f}", f"{figures['limit_bytes'] / 2**30:.3f}")
        table.add_row(name, *times, *memory, f"{row['bytes_of_limit']:.2f}", errors)
    for name, reason in figures["missing"].items():
        table.add_row(name, reason, *[""] * 6)
    Console(width=130, highlight=False).print(table)


if __name__ == "__main__":
    sys.exit(exit_status(main))
