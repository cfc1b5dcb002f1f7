"""Context parallelism: how a sample is sharded over the ranks of its context-parallel group."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache, cached_property
from typing import Literal

import torch
from torch import Tensor


@dataclass(frozen=True)
class ContextShard:
    """The shard of samples on one of `size` context-parallel ranks.

    Each stream is split into 2 * size chunks of equal length; rank r owns chunks r and 2 * size - 1 - r of both streams
    (the zigzag split of Megatron). A late query sees more keys than an early one, so a chunk from the front and its
    counterpart from the back give every rank the same number of query-key pairs.

    Attributes:
        rank: 0 .. size - 1.
        size: ranks of the context-parallel group.
        length: L, the tokens of the clean stream; a multiple of 2 * size.
        noisy_length: N, the tokens of the noisy stream before it; a multiple of 2 * size, 0 without one.
    """

    rank: int
    size: int
    length: int
    noisy_length: int

    def chunks(self, length: int) -> tuple[tuple[int, int], tuple[int, int]]:
        """Begin and end of the rank's two chunks in a stream of `length` tokens."""
        chunk, mirrored = length // (2 * self.size), 2 * self.size - 1 - self.rank
        return (self.rank * chunk, (self.rank + 1) * chunk), (mirrored * chunk, (mirrored + 1) * chunk)

    @cached_property
    def indices(self) -> Tensor:
        """int64 `[S / size]`: the rank's indices in the stacked streams of total length S, in the rank's order."""
        noisy = [torch.arange(*chunk) for chunk in self.chunks(self.noisy_length)]
        clean = [torch.arange(*chunk) + self.noisy_length for chunk in self.chunks(self.length)]
        return torch.cat(noisy + clean)

    @cached_property
    def order(self) -> Tensor:
        """int64 `[S]`: permutes the concatenated shards of all ranks into the order of the streams."""
        ranks = (replace(self, rank=rank) for rank in range(self.size))
        return torch.cat([shard.indices for shard in ranks]).argsort()

    def cuts(self, blocks: Tensor) -> bool:
        """Whether some block of the noisy stream lies on two ranks; `blocks` is int64 `[b, N]`."""
        chunk = torch.arange(self.noisy_length) * 2 * self.size // self.noisy_length
        owner = torch.minimum(chunk, 2 * self.size - 1 - chunk)
        return not bool(blocks.diff(dim=1)[:, owner.diff() != 0].all())

    def find(self, rows: Tensor, batch: int) -> tuple[Tensor, Tensor]:
        """Finds which rows of the whole micro-batch are on this rank, and where.

        Args:
            rows: int64 `[n]`, indices into flattened `[S * batch]` hidden states.
            batch: samples of the micro-batch.

        Returns:
            Bool `[n]`, which of them are on this rank, and their indices into the rank's `[S / size * batch]`.
        """
        local_index = torch.full_like(self.order, -1)
        local_index[self.indices] = torch.arange(len(self.indices))
        local_rows = local_index[rows // batch]
        on_rank = local_rows >= 0
        return on_rank, (local_rows * batch + rows % batch)[on_rank]


@cache
def shard_tensor(shard: ContextShard, name: Literal["indices", "order"], device: torch.device) -> Tensor:
    """An index tensor of a shard on a device; it is copied there once in a run, and shared."""
    tensor: Tensor = getattr(shard, name)
    return tensor.to(device)
