"""Positions and blocks of packed tokens inside their documents, in one stream or in two."""

from __future__ import annotations

from dataclasses import dataclass, replace

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


def document_borders(documents: Tensor) -> Tensor:
    """int32 `[documents + 1]`, the first index of each document of int `[b, L]`, rows concatenated, and the end.

    Adjacent equal values of a row are one document. Kernels for sequences of several lengths take them in this form.
    """
    begins = torch.ones(documents.shape, dtype=torch.bool)
    begins[:, 1:] = documents.diff(dim=1) != 0
    starts = begins.flatten().nonzero().flatten()
    return torch.cat([starts, torch.tensor([documents.numel()])]).to(torch.int32)


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


def clean_block_ends(
    documents: NDArray[np.int64],
    block_size: int,
    answers: NDArray[np.bool_] | None = None,
) -> NDArray[np.int64]:
    """The index after the block of each clean token, for a clean stream whose tokens see their whole block.

    Blocks are those in which decoding writes text into the KV cache: counted from the start of each document, and anew
    from the start of each answer, where the blocks of an answer begin. The last block of a document, and the one before
    an answer, may be shorter.

    Args:
        documents: int `[L]`, document of each token.
        block_size: tokens per block.
        answers: bool `[L]`, whether a token belongs to an answer from whose start blocks are counted; None for text, or
            where they are counted from the start of the conversation.

    Returns:
        int `[L]`.
    """
    index = np.arange(len(documents))
    starts = positions_in_document(documents) == 0
    if answers is not None:
        starts |= answers & ~np.concatenate([[False], answers[:-1]])
    origin = np.maximum.accumulate(np.where(starts, index, 0))
    block_starts = (index - origin) % block_size == 0
    borders = np.append(np.flatnonzero(block_starts), len(index))
    return borders[np.cumsum(block_starts)]


@dataclass(frozen=True)
class NoisyLayout:
    """The noisy tokens of one micro-batch; see `masking.noisy_stream`.

    Attributes:
        blocks: int64 `[b, N]`, block of each token, from 0, growing by one from block to block.
        begins: int64 `[b, N]`, index in the clean stream at which the token's block begins.
        positions: int64 `[b, N]`, RoPE position: that of the clean token at `begins`, counted on inside the block.
    """

    blocks: Tensor
    begins: Tensor
    positions: Tensor

    @classmethod
    def of(cls, blocks: Tensor, begins: Tensor, clean_positions: Tensor) -> NoisyLayout:
        """From blocks and begins, both int64 `[b, N]`, and positions of the clean stream, int64 `[b, L]`."""
        index = torch.arange(blocks.shape[1], device=blocks.device).expand_as(blocks)
        starts = torch.ones_like(blocks, dtype=torch.bool)
        starts[:, 1:] = blocks.diff(dim=1) != 0
        in_block = index - torch.where(starts, index, 0).cummax(dim=1).values
        return cls(blocks, begins, clean_positions.gather(1, begins) + in_block)


@dataclass(frozen=True)
class StreamLayout:
    """Documents, positions and blocks of the tokens of one micro-batch. `of` creates the tensors on the CPU.

    Attributes:
        documents: int64 `[b, L]`, document of each clean token.
        positions: int64 `[b, L]`, RoPE position of each clean token inside its document.
        noisy: the noisy stream of `[noisy | clean]`, of length N + L; None for the clean stream alone.
        causal_blocks: noisy tokens see the noisy tokens of their block causally instead of in both directions (the
            verification of self-speculation).
        clean_ends: int64 `[b, L]`, the index in the clean stream after the block of each clean token, which sees its
            whole block (`clean_block_ends`); None where the clean stream is causal.
    """

    documents: Tensor
    positions: Tensor
    noisy: NoisyLayout | None
    causal_blocks: bool = False
    clean_ends: Tensor | None = None

    @classmethod
    def of(
        cls, documents: Tensor, block_size: int, two_streams: bool, offsets: NDArray[np.int64] | int = 0
    ) -> StreamLayout:
        """The layout of packed samples, with a noisy stream that repeats the clean one or with none.

        Args:
            documents: int `[b, L]`.
            block_size: tokens per block.
            two_streams: whether there is a noisy stream.
            offsets: as for `block_indices`.
        """
        clean = cls.of_clean(documents)
        if not two_streams:
            return clean
        blocks = block_indices(clean.documents.numpy(), block_size, offsets)
        index = np.broadcast_to(np.arange(blocks.shape[1]), blocks.shape)
        begins = np.maximum.accumulate(np.where(np.diff(blocks, axis=1, prepend=-1) != 0, index, 0), axis=1)
        return clean.with_noisy(torch.from_numpy(blocks), torch.from_numpy(begins))

    @classmethod
    def of_clean(cls, documents: Tensor) -> StreamLayout:
        """The layout of the clean stream of packed samples: `documents` is int `[b, L]`."""
        on_cpu = np.ascontiguousarray(documents.cpu().numpy())
        positions = np.ascontiguousarray(positions_in_document(on_cpu))
        return cls(documents=torch.from_numpy(on_cpu), positions=torch.from_numpy(positions), noisy=None)

    def with_noisy(self, blocks: Tensor, begins: Tensor) -> StreamLayout:
        """The same clean stream with a noisy one before it; blocks and begins int64 `[b, N]`, see `NoisyLayout`."""
        return replace(self, noisy=NoisyLayout.of(blocks.cpu(), begins.cpu(), self.positions))

    def with_clean_ends(self, ends: Tensor | None) -> StreamLayout:
        """The same streams with clean tokens that see their whole block; int64 `[b, L]`, see `clean_ends`."""
        return replace(self, clean_ends=None if ends is None else ends.cpu())

    @property
    def two_streams(self) -> bool:
        """Whether there is a noisy stream."""
        return self.noisy is not None

    @property
    def only_causal(self) -> bool:
        """Whether this is an ordinary AR forward: a causal clean stream and no other."""
        return self.noisy is None and self.clean_ends is None

    @property
    def length(self) -> int:
        """L, the tokens of the clean stream."""
        return self.documents.shape[1]

    @property
    def noisy_length(self) -> int:
        """N, the tokens of the noisy stream; 0 without one."""
        return 0 if self.noisy is None else self.noisy.blocks.shape[1]

    @property
    def total_length(self) -> int:
        """Length of the sequence that the model reads: N + L."""
        return self.noisy_length + self.length

    def stacked_positions(self) -> Tensor:
        """int64 `[b, total_length]`: positions of each stream, inside documents: never 0..N+L-1."""
        return self.positions if self.noisy is None else torch.cat([self.noisy.positions, self.positions], dim=1)
