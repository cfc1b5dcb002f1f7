"""What attention over both streams costs beside a causal pass over one, forward and backward.

    python -m benchmarks.attention                                 heads of the 8B model at length 4096 on a GPU
    python -m benchmarks.attention --length 256 --backends chunked dense

For every backend: seconds of a forward and backward pass, their ratio to the causal kernel's, the limit, which is the
ratio of visible pairs, and the first over the second. Once for samples of one document and once for packed ones.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from statistics import median
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from benchmarks.record import RESULTS, keep, on_device
from benchmarks.step import visible_pairs
from benchmarks.timing import extra_memory, seconds_in_turn
from nld_train.config.compose import compose_config
from nld_train.masking.layout import StreamLayout
from nld_train.model.attention import causal
from nld_train.model.attention.core import backend
from nld_train.model.rotary import RotaryEmbedding
from nld_train.model.streams import StreamContext
from nld_train.training.parallel import resolve_device

BACKENDS = {"cuda": ["flex", "split", "decomposed"], "cpu": ["chunked", "decomposed", "dense"]}
# Joint attention on an H100 should stay within this share of the ratio of visible pairs.
TARGET = 1.15
CAUSAL = "causal"


def main(arguments: list[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="auto", choices=["auto", "cuda", "cpu"], help="where (default: auto)")
    parser.add_argument("--length", type=int, help="tokens of a sample (default: 4096, on a CPU 1024)")
    parser.add_argument("--batch", type=int, help="samples together (default: 2, on a CPU 1)")
    parser.add_argument("--heads", type=int, nargs=3, help="query heads, key heads, width (32 8 128; on a CPU 8 2 64)")
    parser.add_argument("--block-size", type=int, default=64, help="tokens per block (default: 64)")
    parser.add_argument("--document-tokens", type=int, help="of a packed document (default: a fifth of a sample)")
    parser.add_argument("--backends", nargs="+", help="which (default: those of the device)")
    parser.add_argument("--repeats", type=int, default=10, help="timed passes (default: 10)")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder for the JSON")
    options = parser.parse_args(arguments)
    device = resolve_device(options.device)
    on_cpu = device.type == "cpu"
    options.length = options.length or (1024 if on_cpu else 4096)
    options.batch = options.batch or (1 if on_cpu else 2)
    options.heads = options.heads or ([8, 2, 64] if on_cpu else [32, 8, 128])
    figures = measure(options, device)
    show(figures)
    print(keep(on_device("attention", device), figures, options.results))


def measure(options: argparse.Namespace, device: torch.device) -> dict[str, Any]:
    """Both cases, whole and packed."""
    piece = options.document_tokens or -(-options.length // 5)
    places = torch.arange(options.length)
    cases = {"whole": places * 0, "packed": places // piece}
    backends = options.backends or BACKENDS[device.type]
    shape = {name: getattr(options, name) for name in ("length", "batch", "heads", "block_size")}
    return {
        "device": str(device),
        **shape,
        "target": TARGET,
        "cases": {name: _case(documents, options, backends, device) for name, documents in cases.items()},
    }


def _case(documents: Tensor, options: argparse.Namespace, backends: list[str], device: torch.device) -> dict[str, Any]:
    works = {CAUSAL: _pass(CAUSAL, documents, options, device)}
    works |= {name: _pass(name, documents, options, device) for name in backends}
    seconds = seconds_in_turn(works, device, options.repeats, warmup=2)
    limit = visible_pairs(documents, options.block_size, True) / visible_pairs(documents, options.block_size, False)
    rows = {}
    for name, values in seconds.items():
        ratio = median(a / b for a, b in zip(values, seconds[CAUSAL], strict=True))
        rows[name] = {"seconds": median(values), "ratio": ratio, "of_limit": ratio / limit}
        rows[name]["extra_bytes"] = extra_memory(works[name], device)
    return {"limit": limit, "rows": rows}


def _pass(name: str, documents: Tensor, options: argparse.Namespace, device: torch.device) -> Any:
    """A forward and backward pass of a backend, or of the causal kernel over one stream."""
    joint = name != CAUSAL
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    layout = StreamLayout.of(documents.expand(options.batch, -1), options.block_size, joint)
    context = StreamContext.of(layout, RotaryEmbedding(compose_config().model, device), dtype)
    heads, groups, width = options.heads
    generator = torch.Generator().manual_seed(1)
    shapes = [(options.batch, count, layout.total_length, width) for count in (heads, groups, groups)]
    inputs = [torch.randn(shape, generator=generator).to(device, dtype).requires_grad_() for shape in shapes]
    attend: Any = backend(name) if joint else causal.attend
    gradient = torch.ones(shapes[0], device=device, dtype=dtype)

    def both_passes() -> None:
        torch.autograd.grad(attend(*inputs, context), inputs, gradient)

    return both_passes


def show(figures: dict[str, Any]) -> None:
    """Prints the figures as a table."""
    for case, found in figures["cases"].items():
        title = f"{case} samples of {figures['length']} on {figures['device']}, limit {found['limit']:.2f}"
        table = Table("attention", "milliseconds", "over causal", "of limit", "extra memory (MiB)", title=title)
        for name, row in found["rows"].items():
            ratios = ("", "") if name == CAUSAL else (f"{row['ratio']:.2f}", f"{row['of_limit']:.2f}")
            table.add_row(name, f"{1e3 * row['seconds']:.2f}", *ratios, f"{row['extra_bytes'] / 2**20:.0f}")
        Console(width=110, highlight=False).print(table)


if __name__ == "__main__":
    main()
