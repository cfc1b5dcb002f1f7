"""Attention of two streams from plain causal and rectangular products: no `2L x 2L` mask, exact, fast on a CPU.

A document's clean half is one causal product. A block of its noisy half attends to the clean tokens of all earlier
blocks and to all of its own noisy tokens, so it needs no mask: it is one rectangular product over the clean prefix and
the block. Where clean tokens see their whole block (`StreamLayout.clean_ends`), the clean half is a rectangular product
per block too. Only visible pairs are computed (except for the upper triangle inside the causal kernel, and inside the
blocks of a layout whose blocks are causal).

Each product takes time to start, however short it is. A micro-batch of short documents has many short ones: there the
work is cut into batches of tiles instead (`tiled`). Which of the two depends on the layout alone, so that a layout
always gives the same bits.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from operator import itemgetter
from typing import Any

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
        clean_blocks: of the clean stream, where its tokens see these whole: document, start and end; else empty.
    """

    rows: tuple[int, ...]
    documents: tuple[tuple[int, int], ...]
    blocks: tuple[Block, ...]
    clean_blocks: tuple[tuple[int, int, int], ...]


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
    products = sum(len(group.clean_blocks or group.documents) + len(group.blocks) for group in groups)
    return int(visible_pairs(layout).sum()) < _SHORT_PRODUCT * products


def row_groups(layout: StreamLayout) -> Iterator[RowGroup]:
    """The rows of a micro-batch, grouped by equal documents and blocks."""
    found: dict[Any, list[int]] = {}
    for row in range(len(layout.documents)):
        documents = tuple(_runs(layout.documents[row]))
        parts = tuple(_blocks(layout, row, documents)), tuple(_clean_blocks(layout, row, documents))
        found.setdefault((documents, *parts), []).append(row)
    for (documents, blocks, clean_blocks), rows in found.items():
        yield RowGroup(tuple(rows), documents, blocks, clean_blocks)


def _runs(values: Tensor) -> Iterator[tuple[int, int]]:
    """Start and end of each run of equal values, int `[n]`."""
    return pairwise([0, *(torch.nonzero(values.diff()).flatten() + 1).tolist(), len(values)])


def _blocks(layout: StreamLayout, row: int, documents: tuple[tuple[int, int], ...]) -> Iterator[Block]:
    if layout.noisy is None:
        return
    begins = layout.noisy.begins[row].tolist()
    for start, stop in _runs(layout.noisy.blocks[row]):
        yield Block(_document_of(begins[start], documents), begins[start], start, stop)


def _clean_blocks(
    layout: StreamLayout, row: int, documents: tuple[tuple[int, int], ...]
) -> Iterator[tuple[int, int, int]]:
    if layout.clean_ends is not None:
        for start, stop in _runs(layout.clean_ends[row]):
            yield _document_of(start, documents), start, stop


def _document_of(index: int, documents: tuple[tuple[int, int], ...]) -> int:
    """Where the document of a clean token begins."""
    return documents[bisect_right(documents, index, key=itemgetter(0)) - 1][0]


def _attend_group(query: Tensor, key: Tensor, value: Tensor, group: RowGroup, context: StreamContext) -> Tensor:
    """Rows with equal documents and blocks."""
    layout, offset = context.layout, context.layout.noisy_length
    # This rank's queries, as ranges in each stream.
    whole = ((0, offset),), ((0, layout.length),)
    shard = context.shard
    noisy_ranges, clean_ranges = whole if shard is None else (shard.chunks(offset), shard.chunks(layout.length))
    blocks = list(_pieces([(block.start, block.stop) for block in group.blocks], noisy_ranges))
    sizes = [stop - start for _, start, stop in blocks]
    parts = query.split([*sizes, query.shape[2] - sum(sizes)], dim=2)
    outputs = [
        _noisy_block(part, key, value, layout, group.blocks[number], start)
        for part, (number, start, _) in zip(parts, blocks, strict=False)
    ]
    outputs += _clean_parts(parts[-1], key[:, :, offset:], value[:, :, offset:], group, clean_ranges)
    return torch.cat(outputs, dim=2)


def _clean_parts(
    query: Tensor, key: Tensor, value: Tensor, group: RowGroup, ranges: Sequence[tuple[int, int]]
) -> list[Tensor]:
    """Clean queries in these ranges over the clean keys: a product per document, or per block that is seen whole."""
    whole = [(start, stop) for _, start, stop in group.clean_blocks]
    pieces = list(_pieces(whole or group.documents, ranges))
    parts = zip(query.split([stop - start for _, start, stop in pieces], dim=2), pieces, strict=True)
    if not whole:
        return [_causal(part, key, value, group.documents[number][0], *piece) for part, (number, *piece) in parts]
    seen = [slice(document, stop) for document, _, stop in group.clean_blocks]
    return [_rectangle(part, key[:, :, seen[number]], value[:, :, seen[number]]) for part, (number, *_) in parts]


def clean_blocks(query: Tensor, key: Tensor, value: Tensor, layout: StreamLayout) -> Tensor:
    """Attention of a clean stream alone, whose tokens see their whole block; shapes as of `causal.attend`."""
    parts: list[Tensor] = []
    order: list[int] = []
    for group in row_groups(replace(layout, noisy=None)):
        rows = torch.tensor(group.rows, device=query.device)
        outputs = _clean_parts(query[rows], key[rows], value[rows], group, ((0, layout.length),))
        parts.append(torch.cat(outputs, dim=2))
        order += group.rows
    return torch.cat(parts)[torch.argsort(torch.tensor(order, device=query.device))]


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
    """Noisy tokens of a block, from `start` on, over the clean tokens of its document before it and the whole block."""
    offset = layout.noisy_length
    keys, values = (
        torch.cat(
            [heads[:, :, offset + block.document : offset + block.begin], heads[:, :, block.start : block.stop]], dim=2
        )
        for heads in (key, value)
    )
    mask = None
    if layout.causal_blocks:
        mask = torch.ones(query.shape[2], keys.shape[2], dtype=torch.bool, device=query.device)
        mask = mask.tril(block.begin - block.document + start - block.start)
    return _rectangle(query, keys, values, mask)


def _rectangle(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None) -> Tensor:
    """Attention of all queries to all keys, or to those of a bool mask `[queries, keys]`.

    Query heads of a group share their keys, so they are folded into the rows of one product.
    """
    batch, heads, count, width = query.shape
    repeats = heads // key.shape[1]
    folded = query.reshape(batch, key.shape[1], -1, width)
    mask = None if mask is None else mask.repeat(repeats, 1)
    output = F.scaled_dot_product_attention(folded, key, value, attn_mask=mask)
    return output.reshape(batch, heads, count, width)
