"""Attention of two streams from plain causal and rectangular products: no `2L x 2L` mask, exact, fast on a CPU.

A document's clean half is one causal product. A block of its noisy half attends to the clean tokens of all earlier
blocks and to all of its own noisy tokens, so it needs no mask: it is one rectangular product over the clean prefix and
the block. Only visible pairs are computed (except for the upper triangle inside the causal kernel, and inside the
blocks of a layout whose blocks are causal).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor

from nld_train.masking.layout import StreamLayout
from nld_train.model.streams import StreamContext


@dataclass(frozen=True)
class Span:
    """A document of a row: tokens `start..stop`, and the starts of its blocks, the first one at `start`."""

    start: int
    stop: int
    block_borders: tuple[int, ...]

    @property
    def borders(self) -> tuple[int, ...]:
        """The starts of its blocks, and the end of the last one."""
        return (*self.block_borders, self.stop)


@dataclass(frozen=True)
class Piece:
    """Queries `start..stop` of one stream, inside the block or whole document `begin..end`.

    `document` is the start of the document.
    """

    document: int
    begin: int
    end: int
    start: int
    stop: int


@dataclass(frozen=True)
class RowGroup:
    """Rows of the micro-batch with equal documents and blocks, which are computed together."""

    rows: tuple[int, ...]
    spans: tuple[Span, ...]


def attend(query: Tensor, key: Tensor, value: Tensor, context: StreamContext) -> Tensor:
    """Same arguments and result as `dense.attend`."""
    if "chunked" not in context.masks:
        context.masks["chunked"] = tuple(row_groups(context.layout))
    groups: tuple[RowGroup, ...] = context.masks["chunked"]
    ranges = ((0, context.layout.length),) if context.shard is None else context.shard.chunks
    if len(groups) == 1:
        return _attend_group(query, key, value, groups[0].spans, context.layout, ranges)
    parts = []
    for group in groups:
        rows = torch.tensor(group.rows)
        parts.append(_attend_group(query[rows], key[rows], value[rows], group.spans, context.layout, ranges))
    order = torch.tensor([row for group in groups for row in group.rows])
    return torch.cat(parts)[torch.argsort(order)]


def row_groups(layout: StreamLayout) -> Iterator[RowGroup]:
    """The rows of a micro-batch, grouped by equal documents."""
    rows_by_spans: dict[tuple[Span, ...], list[int]] = {}
    for row in range(len(layout.documents)):
        spans = tuple(_spans(layout.documents[row], layout.blocks[row]))
        rows_by_spans.setdefault(spans, []).append(row)
    for spans, rows in rows_by_spans.items():
        yield RowGroup(rows=tuple(rows), spans=spans)


def _spans(documents: Tensor, blocks: Tensor) -> Iterator[Span]:
    """The documents of one row: `documents` and `blocks` are int `[L]`."""
    documents_at = [0, *(torch.nonzero(documents.diff()).flatten() + 1).tolist(), len(documents)]
    blocks_at = [0, *(torch.nonzero(blocks.diff()).flatten() + 1).tolist()]
    for start, stop in pairwise(documents_at):
        yield Span(start, stop, tuple(border for border in blocks_at if start <= border < stop))


def _attend_group(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    spans: tuple[Span, ...],
    layout: StreamLayout,
    ranges: tuple[tuple[int, int], ...],
) -> Tensor:
    """Rows with equal documents and blocks; `ranges` are begin and end of the queries' indices in each stream."""
    blocks = [(span.start, *block) for span in spans for block in pairwise(span.borders)]
    noisy = _pieces(blocks, ranges) if layout.two_streams else []
    clean = _pieces([(span.start, span.start, span.stop) for span in spans], ranges)
    parts = iter(query.split([piece.stop - piece.start for piece in (*noisy, *clean)], dim=2))
    outputs = [_noisy_block(next(parts), key, value, layout, piece) for piece in noisy]
    offset = layout.length if layout.two_streams else 0
    outputs += [_causal(next(parts), key[:, :, offset:], value[:, :, offset:], piece) for piece in clean]
    return torch.cat(outputs, dim=2)


def _pieces(extents: list[tuple[int, int, int]], ranges: tuple[tuple[int, int], ...]) -> list[Piece]:
    """The parts of blocks or documents (start of the document, begin, end) inside the ranges, in the queries' order."""
    return [
        Piece(document, begin, end, max(begin, first), min(end, last))
        for first, last in ranges
        for document, begin, end in extents
        if max(begin, first) < min(end, last)
    ]


def _causal(query: Tensor, key: Tensor, value: Tensor, piece: Piece) -> Tensor:
    """One document of the clean stream, or a part of one: an ordinary causal product."""
    repeats = query.shape[1] // key.shape[1]
    visible = slice(piece.document, piece.stop)
    keys, values = (heads[:, :, visible].repeat_interleave(repeats, dim=1) for heads in (key, value))
    if piece.start == piece.document:
        return F.scaled_dot_product_attention(query, keys, values, is_causal=True)
    mask = torch.ones(query.shape[2], keys.shape[2], dtype=torch.bool, device=query.device)
    return F.scaled_dot_product_attention(query, keys, values, attn_mask=mask.tril(piece.start - piece.document))


def _noisy_block(query: Tensor, key: Tensor, value: Tensor, layout: StreamLayout, piece: Piece) -> Tensor:
    """Noisy tokens of one block over the clean tokens of its document before it and over the whole block.

    Query heads of a group share their keys, so they are folded into the rows of one product.
    """
    document, begin, end = piece.document, piece.begin, piece.end
    offset = layout.length
    keys, values = (
        torch.cat([heads[:, :, offset + document : offset + begin], heads[:, :, begin:end]], dim=2)
        for heads in (key, value)
    )
    batch, heads, count, width = query.shape
    folded = query.reshape(batch, key.shape[1], -1, width)
    mask = None
    if layout.causal_blocks:
        mask = torch.ones(count, end - document, dtype=torch.bool, device=query.device)
        mask = mask.tril(piece.start - document).repeat(heads // key.shape[1], 1)
    output = F.scaled_dot_product_attention(folded, keys, values, attn_mask=mask)
    return output.reshape(batch, heads, count, width)
