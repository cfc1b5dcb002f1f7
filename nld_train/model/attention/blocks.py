"""The blocks of a stream as a batch dimension, short ones padded to the size of the longest."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Blocks:
    """The blocks of a micro-batch, padded: n blocks per row, `size` elements per block.

    If all blocks have the same size, the padded form is a view of the stream.

    Attributes:
        count: n, blocks of the row that has most.
        size: tokens of the longest block.
        indices: int64 `[b, n * size]`, the index in the stream of each padded element; None for a view.
        inverse: int64 `[b, L]`, the padded element of each index in the stream; None for a view.
        filled: bool `[b, n, size]`, True for tokens, False for padding.
    """

    count: int
    size: int
    indices: Tensor | None
    inverse: Tensor | None
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
        inverse = blocks * size + torch.arange(length) - begins.gather(1, blocks)
        indices = torch.zeros(batch, count * size, dtype=torch.int64)
        indices.scatter_(1, inverse, torch.arange(length).expand(batch, -1))
        return cls(count, size, indices.to(device), inverse.to(device), filled.to(device))

    def gather(self, heads: Tensor) -> Tensor:
        """From `[b, heads, L, width]` to `[b, heads, n, size, width]`; padding has values of an arbitrary token."""
        return _take(heads, self.indices).unflatten(2, (self.count, self.size))

    def scatter(self, blocks: Tensor) -> Tensor:
        """Back from `[b, heads, n, size, width]` to `[b, heads, L, width]`."""
        return _take(blocks.flatten(2, 3), self.inverse)

    def mask(self, causal: bool) -> Tensor | None:
        """The attention mask inside blocks, bool `[b, 1, n, size, size]`; lower triangular if `causal`.

        Every element may attend to at least the first one, even in an empty block, so that its softmax is not NaN. None
        if nothing is masked.
        """
        if self.indices is None and not causal:
            return None
        keys = self.filled.clone()
        keys[..., 0] = True
        mask = keys[:, None, :, None, :].expand(-1, -1, -1, self.size, -1)
        return mask.tril() if causal else mask


def _take(heads: Tensor, indices: Tensor | None) -> Tensor:
    """The elements at int `[b, m]` of `[b, heads, L, width]`; all of them, in their order, for None."""
    if indices is None:
        return heads
    return heads.gather(2, indices[:, None, :, None].expand(-1, heads.shape[1], -1, heads.shape[-1]))
