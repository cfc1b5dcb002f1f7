"""Context parallelism: which places of a sample each of the ranks holds that share it."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor


@dataclass(frozen=True)
class SequenceShare:
    """What one of `size` context-parallel ranks holds of samples of `length` tokens.

    Each stream is cut into 2 * size chunks of equal length, of which rank r holds numbers r and 2 * size - 1 - r, the
    same in both streams. A late query sees more keys than an early one, so a chunk from the front and its counterpart
    from the back give every rank equally much to attend to.

    Attributes:
        rank: 0 .. size - 1.
        size: ranks that share a sample.
        length: L, the tokens of one stream; a multiple of 2 * size.
        two_streams: whether there is a noisy stream before the clean one.
    """

    rank: int
    size: int
    length: int
    two_streams: bool

    @property
    def runs(self) -> tuple[tuple[int, int], tuple[int, int]]:
        """First place and end of the rank's two chunks in each stream."""
        chunk, mirrored = self.length // (2 * self.size), 2 * self.size - 1 - self.rank
        return (self.rank * chunk, (self.rank + 1) * chunk), (mirrored * chunk, (mirrored + 1) * chunk)

    @cached_property
    def places(self) -> Tensor:
        """int64 `[S / size]`: what the rank holds of the stacked streams of total length S, in its own order."""
        one_stream = torch.cat([torch.arange(*run) for run in self.runs])
        return torch.cat([one_stream, one_stream + self.length]) if self.two_streams else one_stream

    @cached_property
    def order(self) -> Tensor:
        """int64 `[S]`: indices that put the shares of all ranks, one after another, into the order of the streams."""
        ranks = (SequenceShare(rank, self.size, self.length, self.two_streams) for rank in range(self.size))
        return torch.cat([share.places for share in ranks]).argsort()

    def find(self, rows: Tensor, batch: int) -> tuple[Tensor, Tensor]:
        """Finds rows of the whole micro-batch among those of this rank.

        Args:
            rows: int64 `[n]`, indices into flattened `[S * batch]` hidden states.
            batch: samples of the micro-batch.

        Returns:
            Bool `[n]`, which of them the rank holds, and of these the indices into its own `[S / size * batch]`.
        """
        own = torch.full_like(self.order, -1)
        own[self.places] = torch.arange(len(self.places))
        found = own[rows // batch]
        held = found >= 0
        return held, (found * batch + rows % batch)[held]
