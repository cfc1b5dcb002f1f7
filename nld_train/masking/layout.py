"""Positions and blocks of packed tokens inside their documents, in one stream or in two."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


def positions_in_document(documents: NDArray[np.int64]) -> NDArray[np.int64]:
    """Position of each token counted from the start of its document's part in the sample.

    Args:
        documents: int `[..., L]`, document of each token; equal values are adjacent.

    Returns:
        int `[..., L]`.
    """
    index = np.broadcast_to(np.arange(documents.shape[-1]), documents.shape)
    starts = np.ones(documents.shape, dtype=bool)
    starts[..., 1:] = documents[..., 1:] != documents[..., :-1]
    return index - np.maximum.accumulate(np.where(starts, index, 0), axis=-1)


def block_indices(
    documents: NDArray[np.int64], block_size: int, offsets: NDArray[np.int64] | int = 0
) -> NDArray[np.int64]:
    """Block of each token. Blocks are counted from each document's start, so none straddles two documents.

    Args:
        documents: int `[..., L]`, document of each token.
        block_size: tokens per block; the last block of a document may be shorter.
        offsets: int, broadcast to `[..., L]`: where the first whole block of a document begins, 0 to `block_size`; the
            tokens before it are a block too.

    Returns:
        int `[..., L]`, from 0, growing through the sample; without document borders `i // block_size` (docs/method.md,
        "Streams and visibility").
    """
    positions = positions_in_document(documents)
    starts = (positions == 0) | ((positions >= offsets) & ((positions - offsets) % block_size == 0))
    return np.cumsum(starts, axis=-1) - 1


@dataclass(frozen=True)
class StreamLayout:
    """Documents, positions and blocks of the tokens of one micro-batch. `of` creates the tensors on the CPU.

    Attributes:
        documents: int64 `[b, L]`, document of each token.
        positions: int64 `[b, L]`, RoPE position inside its document; both streams use the same (docs/method.md,
            "Streams and visibility").
        blocks: int64 `[b, L]`, block index over the sample.
        two_streams: True for `[noisy | clean]` of length 2L, False for the clean stream alone.
        causal_blocks: noisy tokens see the noisy tokens of their block causally instead of in both directions (the
            verification of self-speculation).
    """

    documents: Tensor
    positions: Tensor
    blocks: Tensor
    two_streams: bool
    causal_blocks: bool = False

    @classmethod
    def of(
        cls, documents: Tensor, block_size: int, two_streams: bool, offsets: NDArray[np.int64] | int = 0
    ) -> StreamLayout:
        """The layout of packed samples: `documents` is int `[b, L]`; `offsets` as for `block_indices`."""
        on_cpu = documents.cpu().numpy()
        return cls(
            documents=torch.from_numpy(np.ascontiguousarray(on_cpu)),
            positions=torch.from_numpy(np.ascontiguousarray(positions_in_document(on_cpu))),
            blocks=torch.from_numpy(block_indices(on_cpu, block_size, offsets)),
            two_streams=two_streams,
        )

    @property
    def length(self) -> int:
        """L, the tokens of one stream."""
        return self.documents.shape[1]

    @property
    def total_length(self) -> int:
        """Length of the sequence that the model reads: 2L with a noisy stream, else L."""
        return self.length * (2 if self.two_streams else 1)

    def stacked_positions(self) -> Tensor:
        """int64 `[b, total_length]`: positions 0..L-1 once per stream, never 0..2L-1."""
        return torch.cat([self.positions, self.positions], dim=1) if self.two_streams else self.positions
