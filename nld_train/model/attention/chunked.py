"""Attention of two streams from plain causal and rectangular products: no `2L x 2L` mask, exact, fast on a CPU.

A document's clean half is one causal product. A block of its noisy half attends to the clean tokens of all earlier
blocks and to all of its own noisy tokens, so it needs no mask: it is one rectangular product over the clean prefix and
the block. Only visible pairs are computed (except for the upper triangle inside the causal kernel, and inside the
blocks of a layout whose blocks are causal).

Each product takes time to start, however short it is. A micro-batch of short documents has many short ones: there the
work is cut into batches of tiles instead (`tiled`). Which of the two depends on the layout alone, so that a layout
always gives the same bits.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor

from nld_train.masking.layout import StreamLayout
from nld_train.masking.visibility import visible_pairs
from nld_train.model.attention import tiled
from nld_train.model.streams import StreamContext

# Pairs of query and key for which a product takes as long as its start, on one core and with the heads of the model
# `tiny`. Documents of 200 tokens in blocks of 16 have so many in the mean product, if no two rows are equal.
_SHORT_PRODUCT = 3072


@dataclass(frozen=True)
class Block:
    """A block of the noisy stream: tokens `start..stop` of it, which see the clean tokens `document..begin`."""

    document: int
    begin: int
    start: int
    stop: int


@dataclass(frozen=True)
class RowGroup:
    """Rows of the micro-batch with equal documents and blocks, which are computed together.

    Attributes:
        rows: their indices.
        documents: start and end of each document in the clean stream.
        blocks: of the noisy stream, in its order; empty without one.
    """

    rows: tuple[int, ...]
    documents: tuple[tuple[int, int], ...]
    blocks: tuple[Block, ...]


def attend(query: Tensor, key: Tensor, value: Tensor, context: StreamContext) -> Tensor:
    """Same arguments and result as `dense.attend`."""
    if "chunked" not in context.masks:
        context.masks["chunked"] = tuple(row_groups(context.layout))
        context.masks["short"] = _are_short(context.masks["chunked"], context.layout)
    groups: tuple[RowGroup, ...] = context.masks["chunked"]
    if context.masks["short"]:
        return tiled.attend(query, key, value, context)
    if len(groups) == 1:
        return _attend_group(query, key, value, groups[0], context)
    parts = []
    for group in groups:
        rows = torch.tensor(group.rows)
        parts.append(_attend_group(query[rows], key[rows], value[rows], group, context))
    order = torch.tensor([row for group in groups for row in group.rows])
    return torch.cat(parts)[torch.argsort(order)]


def _are_short(groups: Sequence[RowGroup], layout: StreamLayout) -> bool:
    """Whether the products over single blocks and documents are so short that starting them takes most of the time."""
    products = sum(len(group.documents) + len(group.blocks) for group in groups)
    return int(visible_pairs(layout).sum()) < _SHORT_PRODUCT * products


def row_groups(layout: StreamLayout) -> Iterator[RowGroup]:
    """The rows of a micro-batch, grouped by equal documents and blocks."""
    found: dict[tuple[tuple[tuple[int, int], ...], tuple[Block, ...]], list[int]] = {}
    for row in range(len(layout.documents)):
        documents = tuple(_runs(layout.documents[row]))
        found.setdefault((documents, tuple(_blocks(layout, row, documents))), []).append(row)
    for (documents, blocks), rows in found.items():
        yield RowGroup(tuple(rows), documents, blocks)


def _runs(values: Tensor) -> Iterator[tuple[int, int]]:
    """Start and end of each run of equal values, int `[n]`."""
    return pairwise([0, *(torch.nonzero(values.diff()).flatten() + 1).tolist(), len(values)])


def _blocks(layout: StreamLayout, row: int, documents: tuple[tuple[int, int], ...]) -> Iterator[Block]:
    if layout.noisy is None:
        return
    document_starts = [start for start, _ in documents]
    begins = layout.noisy.begins[row].tolist()
    for start, stop in _runs(layout.noisy.blocks[row]):
        yield Block(document_starts[bisect_right(document_starts, begins[start]) - 1], begins[start], start, stop)


def _attend_group(query: Tensor, key: Tensor, value: Tensor, group: RowGroup, context: StreamContext) -> Tensor:
    """Rows with equal documents and blocks."""
    layout, offset = context.layout, context.layout.noisy_length
    # This rank's queries, as ranges in each stream.
    whole = ((0, offset),), ((0, layout.length),)
    shard = context.shard
    noisy_ranges, clean_ranges = whole if shard is None else (shard.chunks(offset), shard.chunks(layout.length))
    blocks = list(_pieces([(block.start, block.stop) for block in group.blocks], noisy_ranges))
    documents = list(_pieces(group.documents, clean_ranges))
    parts = iter(query.split([stop - start for _, start, stop in (*blocks, *documents)], dim=2))
    outputs = [
        _noisy_block(next(parts), key, value, layout, group.blocks[number], start) for number, start, _ in blocks
    ]
    outputs += [
        _causal(next(parts), key[:, :, offset:], value[:, :, offset:], group.documents[number][0], start, stop)
        for number, start, stop in documents
    ]
    return torch.cat(outputs, dim=2)


def _pieces(extents: Sequence[tuple[int, int]], ranges: Sequence[tuple[int, int]]) -> Iterator[tuple[int, int, int]]:
    """The parts of blocks or documents inside the ranges, in the queries' order: number, start and end of each."""
    for first, last in ranges:
        for number, (begin, end) in enumerate(extents):
            if max(begin, first) < min(end, last):
                yield number, max(begin, first), min(end, last)


def _causal(query: Tensor, key: Tensor, value: Tensor, document: int, start: int, stop: int) -> Tensor:
    """Clean tokens `start..stop` of the document that begins at `document`: an ordinary causal product."""
    repeats = query.shape[1] // key.shape[1]
    keys, values = (heads[:, :, document:stop].repeat_interleave(repeats, dim=1) for heads in (key, value))
    if start == document:
        return F.scaled_dot_product_attention(query, keys, values, is_causal=True)
    mask = torch.ones(query.shape[2], keys.shape[2], dtype=torch.bool, device=query.device)
    return F.scaled_dot_product_attention(query, keys, values, attn_mask=mask.tril(start - document))


def _noisy_block(query: Tensor, key: Tensor, value: Tensor, layout: StreamLayout, block: Block, start: int) -> Tensor:
    """Noisy tokens of one block, from `start` on, over the clean tokens of its document before it and the whole block.

    Query heads of a group share their keys, so they are folded into the rows of one product.
    """
    offset = layout.noisy_length
    keys, values = (
        torch.cat(
            [heads[:, :, offset + block.document : offset + block.begin], heads[:, :, block.start : block.stop]], dim=2
        )
        for heads in (key, value)
    )
    batch, heads, count, width = query.shape
    folded = query.reshape(batch, key.shape[1], -1, width)
    mask = None
    if layout.causal_blocks:
        mask = torch.ones(count, keys.shape[2], dtype=torch.bool, device=query.device)
        mask = mask.tril(block.begin - block.document + start - block.start).repeat(heads // key.shape[1], 1)
    output = F.scaled_dot_product_attention(folded, keys, values, attn_mask=mask)
    return output.reshape(batch, heads, count, width)
