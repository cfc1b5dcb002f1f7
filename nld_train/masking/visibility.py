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
        stream_index: int, its index in its stream, 0..L-1.
        block: int, its block, growing through the sample.
        document: int, its document.
    """

    noisy: Tensor
    stream_index: Tensor
    block: Tensor
    document: Tensor

    def expand(self, dim: int) -> Coordinates:
        """All four tensors with a new dimension at `dim`, to pair queries with keys by broadcasting."""
        return Coordinates(*(field.unsqueeze(dim) for field in self))

    def at(self, indices: Tensor) -> Coordinates:
        """The coordinates of selected tokens: from `[b, S]` and int `[n]` to `[b, n]`."""
        return Coordinates(*(field[:, indices] for field in self))


def visible(query: Coordinates, key: Coordinates, causal_blocks: bool = False) -> Tensor:
    """Whether `query` may attend to `key`: a bool tensor of the broadcast shape.

    Inside one document: noisy tokens see the noisy tokens of their block in both directions (causally with
    `causal_blocks`, for the verification of drafts), and the clean tokens of strictly earlier blocks; clean tokens see
    clean tokens causally and never noisy ones. So the clean stream is an ordinary AR forward.
    """
    noisy_to_noisy = query.noisy & key.noisy & (query.block == key.block)
    if causal_blocks:
        noisy_to_noisy = noisy_to_noisy & (key.stream_index <= query.stream_index)
    noisy_to_clean = query.noisy & ~key.noisy & (key.block < query.block)
    clean_to_clean = ~query.noisy & ~key.noisy & (key.stream_index <= query.stream_index)
    return (query.document == key.document) & (noisy_to_noisy | noisy_to_clean | clean_to_clean)


def coordinates(layout: StreamLayout) -> Coordinates:
    """Coordinates of every token of a micro-batch: four tensors `[b, total_length]`, the noisy stream first."""
    batch, length = layout.documents.shape
    streams, device = 2 if layout.two_streams else 1, layout.documents.device
    noisy = torch.zeros(batch, streams * length, dtype=torch.bool, device=device)
    if layout.two_streams:
        noisy[:, :length] = True
    return Coordinates(
        noisy=noisy,
        stream_index=torch.arange(length, device=device).repeat(streams).expand(batch, -1),
        block=layout.blocks.repeat(1, streams),
        document=layout.documents.repeat(1, streams),
    )


def dense_mask(layout: StreamLayout, queries: Tensor | None = None) -> Tensor:
    """The whole attention mask: bool `[b, 1, S, S]` with S = total_length, True where attention is allowed.

    With `queries`, int `[n]`, only the rows of those queries: `[b, 1, n, S]`.

    Quadratic in memory: for tests and small inputs.
    """
    tokens = coordinates(layout)
    query_tokens = tokens if queries is None else tokens.at(queries)
    return visible(query_tokens.expand(2), tokens.expand(1), layout.causal_blocks).unsqueeze(1)
