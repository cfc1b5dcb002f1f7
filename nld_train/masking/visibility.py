"""Visibility: the rule from which every attention mask is made.

See docs/method.md, "Streams and visibility".
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from nld_train.masking.layout import StreamLayout


class Coordinates(NamedTuple):
    """The properties of tokens that decide visibility; tensors of any shapes that broadcast together.

    Attributes:
        noisy: bool, whether the token is in the noisy stream.
        stream_index: int, its index in its stream.
        block: int, the block of a noisy token; of no meaning for clean ones.
        sees: int, the index in the clean stream before which it sees the tokens of its document: of a noisy token that
            at which its block begins, of a clean one that after it, or after its block.
        document: int, its document; of a noisy token the one in which its block begins.
    """

    noisy: Tensor
    stream_index: Tensor
    block: Tensor
    sees: Tensor
    document: Tensor

    def expand(self, dim: int) -> Coordinates:
        """All tensors with a new dimension at `dim`, to pair queries with keys by broadcasting."""
        return Coordinates(*(field.unsqueeze(dim) for field in self))

    def at(self, indices: Tensor) -> Coordinates:
        """The coordinates of selected tokens: from `[b, S]` and int `[n]` to `[b, n]`."""
        return Coordinates(*(field[:, indices] for field in self))


def visible(query: Coordinates, key: Coordinates, causal_blocks: bool = False) -> Tensor:
    """Whether `query` may attend to `key`: a bool tensor of the broadcast shape.

    Noisy tokens see the noisy tokens of their block in both directions (causally with `causal_blocks`, for the
    verification of drafts), and the clean tokens of their document before the block. Clean tokens see the clean tokens
    of their document causally and never noisy ones, so that the clean stream is an ordinary AR forward; or, in an
    ablation (`diffusion.clean=block`), those up to the end of their own block.
    """
    noisy_to_noisy = query.noisy & key.noisy & (query.block == key.block)
    if causal_blocks:
        noisy_to_noisy = noisy_to_noisy & (key.stream_index <= query.stream_index)
    return noisy_to_noisy | (~key.noisy & (key.stream_index < query.sees) & (query.document == key.document))


def coordinates(layout: StreamLayout) -> Coordinates:
    """Coordinates of every token of a micro-batch: tensors `[b, total_length]`, the noisy stream first."""
    zeros = torch.zeros_like(layout.documents)
    index = _indices(zeros)
    sees = index + 1 if layout.clean_ends is None else layout.clean_ends
    clean = Coordinates(zeros.bool(), index, zeros, sees, layout.documents)
    if layout.noisy is None:
        return clean
    blocks, begins = layout.noisy.blocks, layout.noisy.begins
    noisy = Coordinates(
        noisy=torch.ones_like(blocks, dtype=torch.bool),
        stream_index=_indices(blocks),
        block=blocks,
        sees=begins,
        document=layout.documents.gather(1, begins),
    )
    return Coordinates(*(torch.cat(pair, dim=1) for pair in zip(noisy, clean, strict=True)))


def _indices(stream: Tensor) -> Tensor:
    """int64, the index of each token of a stream `[b, n]` in it."""
    return torch.arange(stream.shape[1], device=stream.device).expand_as(stream)


def dense_mask(layout: StreamLayout, queries: Tensor | None = None) -> Tensor:
    """The whole attention mask: bool `[b, 1, S, S]` with S = total_length, True where attention is allowed.

    With `queries`, int `[n]`, only the rows of those queries: `[b, 1, n, S]`.

    Quadratic in memory: for tests and small inputs.
    """
    tokens = coordinates(layout)
    query_tokens = tokens if queries is None else tokens.at(queries)
    return visible(query_tokens.expand(2), tokens.expand(1), layout.causal_blocks).unsqueeze(1)


def visible_pairs(layout: StreamLayout) -> Tensor:
    """How many pairs of query and key are visible in each sample, int64 `[b]`: the ones in its `dense_mask`.

    Counted without the mask, from the positions of the clean tokens and the sizes of the noisy blocks. Blocks of inert
    tokens count too: they are computed.
    """
    pairs = (layout.positions + 1).sum(dim=1)
    if layout.clean_ends is not None:
        pairs = pairs + (layout.clean_ends - 1 - _indices(layout.documents)).sum(dim=1)
    if layout.noisy is None:
        return pairs
    blocks = layout.noisy.blocks
    sizes = torch.zeros_like(blocks).scatter_add_(1, blocks, torch.ones_like(blocks))
    inside = sizes * (sizes + 1) // 2 if layout.causal_blocks else sizes.square()
    return pairs + inside.sum(dim=1) + layout.positions.gather(1, layout.noisy.begins).sum(dim=1)
