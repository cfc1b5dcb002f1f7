"""Tiles: a few neighbouring queries with the keys that they see, so that attention is a batch of small products."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from nld_train.masking.layout import StreamLayout
from nld_train.masking.visibility import coordinates

# Queries of a tile, at most; but a block of the noisy stream is never cut.
_QUERIES = 64
# Sizes are rounded up to whole vectors of a CPU.
_MULTIPLE = 8
# How many of its pairs of query and key may pad a batch: as many as take the time of one more batch, or this share.
_PADDING_PAIRS, _PADDING_SHARE = 4096, 0.2

Indices = NDArray[np.int64]


@dataclass(frozen=True)
class Tiles:
    """Tiles of a micro-batch, int64 `[tiles]` each. Every query is in one tile, with all keys that it sees.

    The queries of a tile are neighbours in one stream and one document; its keys are a range of the clean stream and
    one of the noisy stream.

    Attributes:
        row: sample.
        query: index of the first query in the list of queries.
        queries: number of queries.
        clean: index of the first key in the clean stream.
        clean_keys: number of keys in the clean stream.
        noisy: index of the first key in the noisy stream.
        noisy_keys: number of keys in the noisy stream.
    """

    row: Indices
    query: Indices
    queries: Indices
    clean: Indices
    clean_keys: Indices
    noisy: Indices
    noisy_keys: Indices

    @classmethod
    def of(cls, layout: StreamLayout, listed: Tensor) -> Tiles:
        """The tiles of a layout.

        Args:
            layout: of a micro-batch.
            listed: int64 `[n]`, indices in the stacked streams of the queries, the same in every sample.
        """
        rows, count = len(layout.documents), len(listed)
        row, number = np.repeat(np.arange(rows), count), np.arange(rows * count)
        noisy, index, block, sees, document = (field.numpy().ravel() for field in coordinates(layout).at(listed))
        new_group = _changes(row, noisy, document, index - number)
        new_unit = new_group | ~noisy | _changes(block)
        in_group = (number - _first(new_group))[_first(new_unit)]
        starts = np.flatnonzero(new_group | _changes(in_group // _QUERIES))
        origin = np.where(noisy, sees, index)
        clean = (origin - layout.positions.numpy()[row, origin])[starts]
        first, stop = np.zeros_like(index), np.zeros_like(index)
        if layout.noisy is not None:
            for extent, of_blocks in zip((first, stop), _block_extents(layout.noisy.blocks.numpy()), strict=True):
                extent[noisy] = of_blocks[row[noisy], index[noisy]]
        return cls(
            row=row[starts],
            query=starts % count,
            queries=np.diff(starts, append=len(number)),
            clean=clean,
            clean_keys=np.maximum.reduceat(sees, starts) - clean,
            noisy=first[starts],
            noisy_keys=np.maximum.reduceat(stop, starts) - first[starts],
        )

    def batches(self) -> Iterator[tuple[Tiles, int, int]]:
        """Tiles of similar size, and the numbers of queries and keys to which they are padded."""
        queries, keys = (
            _MULTIPLE * -(-each // _MULTIPLE) for each in (self.queries, self.clean_keys + self.noisy_keys)
        )
        order = np.lexsort((queries, keys))[::-1]
        shapes = np.stack([queries[order], keys[order]])
        borders = np.flatnonzero(_changes(*shapes))
        first, most_queries, most_keys, pairs = 0, 0, 0, 0
        for start, stop in pairwise([*borders.tolist(), len(order)]):
            wide, long = (int(each) for each in shapes[:, start])
            padded = (stop - first) * max(most_queries, wide) * max(most_keys, long)
            more = pairs + (stop - start) * wide * long
            if start > first and padded - more > max(_PADDING_PAIRS, _PADDING_SHARE * more):
                yield self._at(order[first:start]), most_queries, most_keys
                first, most_queries, most_keys, more = start, 0, 0, more - pairs
            most_queries, most_keys, pairs = max(most_queries, wide), max(most_keys, long), more
        yield self._at(order[first:]), most_queries, most_keys

    def _at(self, chosen: Indices) -> Tiles:
        return Tiles(**{name: field[chosen] for name, field in vars(self).items()})


def _changes(*fields: NDArray[Any]) -> NDArray[np.bool_]:
    """Where a new run begins: elements that differ from the one before in one of the fields, and the first one."""
    changed = np.ones(len(fields[0]), dtype=bool)
    changed[1:] = np.logical_or.reduce([field[1:] != field[:-1] for field in fields])
    return changed


def _first(changes: NDArray[np.bool_]) -> Indices:
    """Index of the first element of the run of each element."""
    return np.maximum.accumulate(np.where(changes, np.arange(len(changes)), 0))


def _block_extents(blocks: Indices) -> tuple[Indices, Indices]:
    """First index and end of the block of each token of a noisy stream `[b, N]`."""
    rows, length = blocks.shape
    row = np.repeat(np.arange(rows), length)
    new = _changes(row, blocks.ravel())
    starts, run = np.flatnonzero(new), np.cumsum(new) - 1
    ends = np.append(starts[1:], rows * length)
    first, stop = ((each[run] - row * length).reshape(blocks.shape) for each in (starts, ends))
    return first, stop
