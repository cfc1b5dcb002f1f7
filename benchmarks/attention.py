"""The cost of attention over both streams relative to a causal pass over one, forward and backward.

    python -m benchmarks.attention                                 heads of the 8B model at length 4096 on a GPU
    python -m benchmarks.attention --length 256 --backends chunked dense

For every backend: seconds of a forward and backward pass, their ratio to those of the fastest causal kernel, the limit
of that ratio, which is the ratio of visible pairs, and the ratio over its limit. Measured for samples of one document
and for packed ones; each result is written as soon as it is measured. The time to make a block mask, which is needed
once per micro-batch if documents are isolated, is a separate row.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from statistics import median
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from benchmarks.causal_kernels import NAMES, candidates
from benchmarks.record import RESULTS, result_name, write_result
from benchmarks.timing import ContextFactory, Work, extra_memory, interleaved_seconds
from nld_train.config.compose import compose_config
from nld_train.errors import exit_status
from nld_train.masking.layout import StreamLayout
from nld_train.masking.visibility import visible_pairs
from nld_train.model.attention import causal, flex
from nld_train.model.attention.core import backend
from nld_train.model.rotary import RotaryEmbedding
from nld_train.model.streams import StreamContext
from nld_train.training.loop.parallel import resolve_device

BACKENDS = {"cuda": ["flex", "split", "decomposed"], "cpu": ["chunked", "decomposed", "dense"]}
# Joint attention on an H100 should stay within this multiple of the ratio of visible pairs.
TARGET = 1.15
# Rounds that compile and choose kernels.
_WARMUP = 2


def main(arguments: list[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--device", default="auto", choices=["auto", "cuda", "cpu"], help="device to measure on (default: auto)"
    )
    parser.add_argument("--length", type=int, help="tokens of a sample (default: 4096, on a CPU 1024)")
    parser.add_argument("--batch", type=int, help="samples of a batch (default: 2, on a CPU 1)")
    parser.add_argument("--heads", type=int, nargs=3, help="query heads, key heads, width (32 8 128; on a CPU 8 2 64)")
    parser.add_argument("--block-size", type=int, default=64, help="tokens per block (default: 64)")
    parser.add_argument(
        "--document-tokens", type=int, help="tokens of a packed document (default: a fifth of a sample)"
    )
    parser.add_argument("--backends", nargs="+", help="attention backends (default: those of the device)")
    parser.add_argument("--repeats", type=int, default=10, help="timed passes (default: 10)")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder for the JSON")
    options = parser.parse_args(arguments)
    device = resolve_device(options.device)
    on_cpu = device.type == "cpu"
    options.length = options.length or (1024 if on_cpu else 4096)
    options.batch = options.batch or (1 if on_cpu else 2)
    options.heads = options.heads or ([8, 2, 64] if on_cpu else [32, 8, 128])
    options.backends = options.backends or BACKENDS[device.type]
    for figures in measure(options, device):
        path = write_result(result_name("attention", device), figures, options.results)
    show(figures)
    print(path)


def measure(options: argparse.Namespace, device: torch.device) -> Iterator[dict[str, Any]]:
    """Measures whole and packed samples; yields all figures so far after each."""
    piece = options.document_tokens or -(-options.length // 5)
    indices = torch.arange(options.length)
    shape = {name: getattr(options, name) for name in ("length", "batch", "heads", "block_size")}
    figures: dict[str, Any] = {"device": str(device), **shape, "target": TARGET, "cases": {}}
    for name, documents in {"whole": indices * 0, "packed": indices // piece}.items():
        figures["cases"][name] = _case(documents, options, device)
        yield figures


def _case(documents: Tensor, options: argparse.Namespace, device: torch.device) -> dict[str, Any]:
    """Seconds of every causal kernel and backend, and their ratios to the fastest causal kernel."""
    kernels, missing = candidates(device, packed=bool(documents.any()))
    contexts: dict[str, ContextFactory] = {name: kernel.chosen for name, kernel in kernels.items()}
    causal_pass = _pass(None, documents, options, device)
    works = dict.fromkeys(kernels, causal_pass)
    works |= {name: _pass(name, documents, options, device) for name in options.backends}
    memory: dict[str, int] = {}
    for name, work in works.items():
        try:
            with contexts.get(name, nullcontext)():
                memory[name] = _first_pass(work, device)
        except (RuntimeError, ImportError) as error:
            missing[name] = f"failed: {str(error).strip().splitlines()[0][:120]}"
    supported = {name: works[name] for name in memory}
    seconds = interleaved_seconds(supported, device, options.repeats, _WARMUP, contexts)
    clean, both = (StreamLayout.of(documents[None], options.block_size, two) for two in (False, True))
    limit = float(visible_pairs(both) / visible_pairs(clean))
    return {
        "limit": limit,
        **_ratios(seconds, memory, limit),
        "missing": missing,
        "mask_seconds": _mask_seconds(documents, options, device),
    }


def _first_pass(work: Work, device: torch.device) -> int:
    """Compiles (on CUDA only), and returns the extra bytes of a pass."""
    if device.type == "cuda":
        work()
    return extra_memory(work, device)


def _ratios(seconds: dict[str, list[float]], memory: dict[str, int], limit: float) -> dict[str, Any]:
    fastest = min((name for name in seconds if name in NAMES), key=lambda name: median(seconds[name]))
    rows: dict[str, Any] = {}
    for name, values in seconds.items():
        ratio = median(a / b for a, b in zip(values, seconds[fastest], strict=True))
        rows[name] = {"seconds": median(values), "extra_bytes": memory[name], "ratio": ratio}
        if name not in NAMES:
            rows[name]["of_limit"] = ratio / limit
    return {"fastest_causal": fastest, "rows": rows}


def _mask_seconds(documents: Tensor, options: argparse.Namespace, device: torch.device) -> float:
    """Seconds to make the block mask of a micro-batch whose rows have different document borders, if any."""
    rows = torch.stack([documents.roll(row) for row in range(options.batch)])
    layout = StreamLayout.of(rows, options.block_size, two_streams=True)
    works = {"mask": lambda: flex.make_mask(layout, device)}
    return median(interleaved_seconds(works, device, options.repeats)["mask"])


def _pass(name: str | None, documents: Tensor, options: argparse.Namespace, device: torch.device) -> Work:
    """A forward and backward pass of a backend, or of the causal kernel over one stream."""
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    layout = StreamLayout.of(documents.expand(options.batch, -1), options.block_size, name is not None)
    context = StreamContext.of(layout, RotaryEmbedding(compose_config().model, device), dtype)
    heads, groups, width = options.heads
    generator = torch.Generator().manual_seed(1)
    shapes = [(options.batch, count, layout.total_length, width) for count in (heads, groups, groups)]
    inputs = [torch.randn(shape, generator=generator).to(device, dtype).requires_grad_() for shape in shapes]
    attend: Any = causal.attend if name is None else backend(name)
    gradient = torch.ones(shapes[0], device=device, dtype=dtype)

    def both_passes() -> None:
        torch.autograd.grad(attend(*inputs, context), inputs, gradient)

    return both_passes


def show(figures: dict[str, Any]) -> None:
    """Prints the figures as a table for each case."""
    for case, found in figures["cases"].items():
        title = f"{case} samples of {figures['length']} on {figures['device']}, limit {found['limit']:.2f}"
        columns = ("attention", "milliseconds", "over fastest causal", "of limit", "extra memory (MiB)")
        table = Table(*columns, title=f"{title}, target {TARGET} of it")
        for name, row in found["rows"].items():
            of_limit = f"{row['of_limit']:.2f}" if "of_limit" in row else ""
            cells = (f"{1e3 * row['seconds']:.2f}", f"{row['ratio']:.2f}", of_limit)
            table.add_row(name, *cells, f"{row['extra_bytes'] / 2**20:.0f}")
        for name, reason in found["missing"].items():
            table.add_row(name, reason, "", "", "")
        table.add_row("making the block mask", f"{1e3 * found['mask_seconds']:.2f}", "", "", "")
        Console(width=110, highlight=False).print(table)


if __name__ == "__main__":
    sys.exit(exit_status(main))
