"""Compiles FlexAttention with each of our masks for an H100, on any machine with Triton, and says what it uses of one.

    python -m benchmarks.kernels                          heads of the 8B model, one context length, every mask
    python -m benchmarks.kernels --masks joint split
    python -m benchmarks.kernels --heads 8 2 128          those of a rank of four

For each kernel: its tile sizes, registers of a thread, bytes of the thread's registers that are spilled to memory, and
shared memory of a block. Nothing is run, so nothing is timed, and no GPU is needed; ptxas comes with Triton.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from benchmarks.cross_compile import Compiled, compile_for_hopper, shapes_of_masks
from benchmarks.record import RESULTS, write_result
from benchmarks.tables_of_steps import KERNEL_COLUMNS, kernel_rows
from nld_train.errors import exit_status
from nld_train.masking.context_parallel import ContextShard
from nld_train.masking.layout import StreamLayout
from nld_train.masking.noisy_stream import answer_stream, fit
from nld_train.model.attention import decomposed, flex, split
from nld_train.model.attention.gather import Exchange
from nld_train.model.streams import Attend, StreamContext

# Shared memory that a block of threads may have on an H100 (CUDA C++ Programming Guide, "Compute Capability 9.0").
SHARED_BYTES = 227 << 10
# What a thread of a backward kernel may store of its registers to memory: 888 bytes at lengths beside tiles, else up to
# 368, by Triton 3.6. A forward kernel may store none.
SPILLED_BYTES = 1024
_CPU = torch.device("cpu")
# A stream of a length that is no multiple of 128, which a configuration may have, has kernels that check bounds.
_BESIDE_TILES = 64


def main(arguments: list[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--length", type=int, default=4096, help="tokens of a sample (default: 4096)")
    parser.add_argument("--heads", type=int, nargs=3, default=[32, 8, 128], help="query heads, key heads, width")
    parser.add_argument("--block-size", type=int, default=32, help="tokens per block (default: 32)")
    parser.add_argument("--masks", nargs="+", choices=MASKS, default=[*MASKS], help="(default: all)", metavar="MASK")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder for the JSON")
    options = parser.parse_args(arguments)
    for figures in measure(options):
        path = write_result("kernels", figures, options.results)
    show(figures)
    print(path)


def measure(options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Compiles the kernels of each mask; yields all figures so far after each.

    Raises:
        UserError: Triton is not installed.
    """
    shape = {name: getattr(options, name) for name in ("length", "heads", "block_size")}
    figures: dict[str, Any] = {"device": "cpu", "target": "sm_90", "shared_limit": SHARED_BYTES, **shape, "masks": {}}
    for name in options.masks:
        figures["masks"][name] = [vars(kernel) for kernel in kernels_of(name, options)]
        yield figures


def kernels_of(name: str, options: argparse.Namespace) -> list[Compiled]:
    """FlexAttention of one of `MASKS`, forward and backward, compiled from what a run passes to it."""
    with shapes_of_masks():
        case = MASKS[name](options.length, options.block_size)
    heads, groups, width = options.heads

    def attention() -> Tensor:
        query = _heads(case.queries, heads, width)
        key, value = (_heads(case.keys, groups, width) for _ in range(2))
        return case.attend(query, key, value, case.context)

    return [kernel for kernel in compile_for_hopper(attention) if kernel.tiles]


def _heads(count: int, heads: int, width: int) -> Tensor:
    """`[1, heads, count, width]` as attention gets it: in Megatron's layout, tokens first."""
    megatron = torch.empty(count, 1, heads, width, dtype=torch.bfloat16, requires_grad=True)
    return megatron.permute(1, 2, 0, 3)


@dataclass(frozen=True)
class Case:
    """Attention of a micro-batch of one sample.

    Attributes:
        attend: the function that calls FlexAttention.
        context: with the block mask.
        queries: tokens that it gets queries of.
        keys: tokens that it gets keys of.
    """

    attend: Callable[[Tensor, Tensor, Tensor, StreamContext], Any]
    context: StreamContext
    queries: int
    keys: int


def _documents(length: int) -> Tensor:
    """int64 `[1, length]`: three packed documents, whose borders lie inside of a kernel's tiles."""
    return (torch.arange(length) * 3 // length)[None]


def _joint(length: int, block_size: int) -> StreamLayout:
    return StreamLayout.of(_documents(length), block_size, two_streams=True)


def _answers(length: int, block_size: int, more: int = 0) -> StreamLayout:
    """A noisy stream of the answers alone, of half as many tokens and some more."""
    count = length // 2 + more
    answers = np.arange(length) % (length // 3) >= length // 6
    whole = answer_stream(_documents(length)[0].numpy(), answers, block_size)
    stream = fit(whole, count, block_size, np.linspace(0, 1, length))
    blocks, begins = (torch.from_numpy(each)[None] for each in (stream.blocks, stream.begins))
    return StreamLayout.of_clean(_documents(length)).with_noisy(blocks, begins)


def _case(attend: Attend, layout: StreamLayout, make_masks: Any = flex.make_masks) -> Case:
    context = _context(layout)
    make_masks(context, _CPU)
    return Case(attend, context, layout.total_length, layout.total_length)


def _context(layout: StreamLayout, shard: ContextShard | None = None) -> StreamContext:
    """Without what attention does not read."""
    unread = torch.empty(0)
    exchange = None if shard is None else Exchange.of(shard, layout, _CPU)
    return StreamContext(layout, unread, unread, None, shard=shard, exchange=exchange)


def _decomposed(layout: StreamLayout) -> Case:
    """The product of noisy queries with the clean keys of earlier blocks, whose normalisers have gradients."""
    context = _context(layout)
    decomposed.make_earlier_mask(context, _CPU)
    return Case(decomposed.in_one_kernel, context, layout.noisy_length, layout.length)


def _sharded(layout: StreamLayout) -> Case:
    """The first of two ranks that share a sample."""
    context = _context(layout, ContextShard(0, 2, layout.length, layout.noisy_length))
    flex.make_masks(context, _CPU)
    keys = layout.total_length if context.keys is None else len(context.keys)
    return Case(flex.attend, context, layout.total_length // 2, keys)


# By the names of the table: the kinds of masks of all stages and backends.
MASKS: dict[str, Callable[[int, int], Case]] = {
    "joint": lambda *sizes: _case(flex.attend, _joint(*sizes)),
    "joint, split": lambda *sizes: _case(split.attend, _joint(*sizes), split.make_masks),
    "joint, decomposed": lambda *sizes: _decomposed(_joint(*sizes)),
    "joint, two context ranks": lambda *sizes: _sharded(_joint(*sizes)),
    "documents, two context ranks": lambda length, _: _sharded(StreamLayout.of_clean(_documents(length))),
    "sft": lambda *sizes: _case(flex.attend, _answers(*sizes)),
    "sft, split": lambda *sizes: _case(split.attend, _answers(*sizes), split.make_masks),
    "sft, odd length": lambda length, block_size: _case(flex.attend, _answers(length, block_size, _BESIDE_TILES)),
    "drafter, verification": lambda *sizes: _case(flex.attend, replace(_answers(*sizes), causal_blocks=True)),
}


def show(figures: dict[str, Any]) -> None:
    """Prints the figures as a table."""
    table = Table(title=f"FlexAttention compiled for {figures['target']}", title_justify="left")
    for column in KERNEL_COLUMNS:
        table.add_column(column)
    for row in kernel_rows(figures):
        table.add_row(*row)
    Console(width=max(120, Console().width)).print(table)


if __name__ == "__main__":
    sys.exit(exit_status(main))
