"""Attention of two streams from plain causal and rectangular products: no `2L x 2L` mask, exact, fast on a CPU.

A document's clean half is one causal product. A block of its noisy half sees the clean tokens of all earlier blocks and
its own noisy tokens, every one of them, so it needs no mask at all: it is one rectangular product over the clean prefix
and the block. Only visible pairs are ever computed (but for the upper triangle inside the causal kernel).
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
    """A document's part in some rows: tokens `start..stop`, and where its blocks begin, the first at `start`."""

    start: int
    stop: int
    block_borders: tuple[int, ...]


@dataclass(frozen=True)
class RowGroup:
    """Rows of the micro-batch whose documents lie alike, so that they are computed together."""

    rows: tuple[int, ...]
    spans: tuple[Span, ...]


def attend(query: Tensor, key: Tensor, value: Tensor, context: StreamContext) -> Tensor:
    """Same arguments and result as `dense.attend`."""
    if "chunked" not in context.masks:
        context.masks["chunked"] = tuple(row_groups(context.layout))
    groups: tuple[RowGroup, ...] = context.masks["chunked"]
    if len(groups) == 1:
        return _attend_alike(query, key, value, groups[0].spans, context.layout)
    parts = []
    for group in groups:
        rows = torch.tensor(group.rows)
        parts.append(_attend_alike(query[rows], key[rows], value[rows], group.spans, context.layout))
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


def _attend_alike(query: Tensor, key: Tensor, value: Tensor, spans: tuple[Span, ...], layout: StreamLayout) -> Tensor:
    """Rows whose documents lie alike."""
    offset = layout.length if layout.two_streams else 0
    clean = [_causal(query, key, value, offset + span.start, offset + span.stop) for span in spans]
    if not layout.two_streams:
        return torch.cat(clean, dim=2)
    noisy = [
        _noisy_block(query, key, value, offset, span.start, start, stop)
        for span in spans
        for start, stop in zip(span.block_borders, (*span.block_borders[1:], span.stop), strict=True)
    ]
    return torch.cat([*noisy, *clean], dim=2)


def _causal(query: Tensor, key: Tensor, value: Tensor, start: int, stop: int) -> Tensor:
    """One document of the clean stream: an ordinary causal product."""
    repeats = query.shape[1] // key.shape[1]
    keys, values = (heads[:, :, start:stop].repeat_interleave(repeats, dim=1) for heads in (key, value))
    return F.scaled_dot_product_attention(query[:, :, start:stop], keys, values, is_causal=True)


def _noisy_block(
    query: Tensor, key: Tensor, value: Tensor, offset: int, document: int, start: int, stop: int
) -> Tensor:
    """Noisy tokens `start..stop`, one block, over the clean tokens of its document before it and over itself.

    Query heads of a group share their keys, so they are laid out as more rows of the same product.
    """
    keys, values = (
        torch.cat([heads[:, :, offset + document : offset + start], heads[:, :, start:stop]], dim=2)
        for heads in (key, value)
    )
    batch, heads, _, width = query.shape
    folded = query[:, :, start:stop].reshape(batch, key.shape[1], -1, width)
    return F.scaled_dot_product_attention(folded, keys, values).reshape(batch, heads, stop - start, width)
