"""Blocks of a stream laid side by side, short ones filled up to the size of the longest."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Blocks:
    """Where the tokens of each block of a micro-batch lie: n blocks per row, `size` slots per block.

    Where all blocks are of one size, laying them side by side is only another view of the stream.

    Attributes:
        count: n, of the row that has most.
        size: of the longest block.
        places: int64 `[b, n * size]`, the place in the stream that a slot is filled from; None for a view.
        slots: int64 `[b, L]`, the slot of each place; None for a view.
        filled: bool `[b, n, size]`, whether the slot holds a token of its block.
    """

    count: int
    size: int
    places: Tensor | None
    slots: Tensor | None
    filled: Tensor

    @classmethod
    def of(cls, blocks: Tensor, device: torch.device) -> Blocks:
        """From int `[b, L]` on the CPU, the block of each token, counted from 0 in every row."""
        batch, length = blocks.shape
        sizes = torch.zeros(batch, int(blocks.max()) + 1, dtype=torch.int64)
        sizes.scatter_add_(1, blocks, torch.ones_like(blocks))
        count, size = sizes.shape[1], int(sizes.max())
        filled = torch.arange(size) < sizes.unsqueeze(-1)
        if bool(filled.all()):
            return cls(count, size, None, None, filled.to(device))
        begins = sizes.cumsum(1) - sizes
        slots = blocks * size + torch.arange(length) - begins.gather(1, blocks)
        places = torch.zeros(batch, count * size, dtype=torch.int64)
        places.scatter_(1, slots, torch.arange(length).expand(batch, -1))
        return cls(count, size, places.to(device), slots.to(device), filled.to(device))

    def gather(self, heads: Tensor) -> Tensor:
        """From `[b, heads, L, width]` to `[b, heads, n, size, width]`; empty slots hold some token."""
        return _take(heads, self.places).unflatten(2, (self.count, self.size))

    def scatter(self, blocks: Tensor) -> Tensor:
        """Back from `[b, heads, n, size, width]` to `[b, heads, L, width]`."""
        return _take(blocks.flatten(2, 3), self.slots)

    def seen(self, causal: bool) -> Tensor | None:
        """Bool `[b, 1, n, size, size]`, which slots of its block a slot sees: all tokens, or those up to itself.

        A slot sees at least one, the first, even in an empty block, so that a softmax is a number everywhere. None
        where each sees all.
        """
        if self.places is None and not causal:
            return None
        keys = self.filled.clone()
        keys[..., 0] = True
        seen = keys[:, None, :, None, :].expand(-1, -1, -1, self.size, -1)
        return seen.tril() if causal else seen


def _take(heads: Tensor, places: Tensor | None) -> Tensor:
    """The places int `[b, m]` of `[b, heads, L, width]`; all of them, in their order, for None."""
    if places is None:
        return heads
    return heads.gather(2, places[:, None, :, None].expand(-1, heads.shape[1], -1, heads.shape[-1]))
