"""Streams and visibility of a batch in the conventions of `transformers`: padding masks and position ids.

Streams and the visibility rule are those of training; only padding is added here.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from checkpoint_convert.hf_package.attention import Rule
from nld_train.masking.layout import NoisyLayout, StreamLayout
from nld_train.masking.noisy_stream import FILL, INERT, NoisyStream, noisy_stream
from nld_train.masking.visibility import Coordinates, coordinates, visible


@dataclass(frozen=True)
class PaddedText:
    """A batch of padded or packed texts, as a clean stream or as `[noisy | clean]`. Tensors are on the model's device.

    Attributes:
        real: bool `[b, S]`, False for padding, the noisy stream first.
        counted: bool `[b, L]`, tokens that count for where blocks begin.
        layout: documents and positions of the clean stream, and the noisy stream.
    """

    real: Tensor
    counted: Tensor
    layout: StreamLayout

    @classmethod
    def of(cls, attention_mask: Tensor | None, position_ids: Tensor | None, tokens: Tensor) -> PaddedText:
        """The clean stream, from the arguments of `forward`.

        Args:
            attention_mask: `[b, L]`, 0 at padding; None for no padding.
            position_ids: int64 `[b, L]` or `[1, L]`; a new document begins where they do not grow by one, so that
                several can be packed in a row; padding inside a document counts for its blocks. None counts the real
                tokens of each row, which is then one document.
            tokens: `[b, L]`.
        """
        real = torch.ones_like(tokens, dtype=torch.bool) if attention_mask is None else attention_mask.bool()
        if position_ids is None:
            positions = (real.long().cumsum(1) - 1).clamp(min=0)
            return cls(real, real, StreamLayout(torch.zeros_like(positions), positions, noisy=None))
        positions = position_ids.expand_as(tokens)
        starts = F.pad(positions[:, 1:] != positions[:, :-1] + 1, (1, 0), value=True)
        return cls(real, torch.ones_like(real), StreamLayout(starts.long().cumsum(1) - 1, positions, noisy=None))

    @property
    def plain(self) -> bool:
        """No padding and no document borders."""
        return bool(self.real.all()) and not bool(self.layout.documents.any())

    def rule(self) -> Rule:
        """Visibility in training: of a causal stream, or of the noisy and the clean stream."""
        return self._rule(coordinates(self.layout))

    def last_block_rule(self, block_length: int) -> Rule:
        """Visibility in decoding: the last `block_length` real tokens of each row are one noisy block."""
        in_block = self.real.long().flip(1).cumsum(1).flip(1) <= block_length
        begin = in_block.long().argmax(dim=1, keepdim=True).expand_as(in_block)
        return self._rule(coordinates(self.layout)._replace(noisy=in_block, begin=begin))

    def _rule(self, tokens: Coordinates) -> Rule:
        """`visible`, with padding that is visible only to itself, which keeps its softmax finite."""
        real = self.real

        def rule(row: Tensor, query: Tensor, key: Tensor) -> Tensor:
            of_query, of_key = (Coordinates(*(field[row, index] for field in tokens)) for index in (query, key))
            return (visible(of_query, of_key) & real[row, key]) | (query == key)

        return rule


@dataclass(frozen=True)
class NoisyText:
    """The noisy streams of a batch of padded or packed texts. Tensors are on the model's device.

    Attributes:
        sources: int64 `[b, N]`, index in the row of the token that is hidden; `FILL`, or `INERT` for padding.
        text: both streams.
    """

    sources: Tensor
    text: PaddedText

    @classmethod
    def of(cls, text: PaddedText, block_size: int, ended: Tensor | None = None) -> NoisyText:
        """The noisy streams of texts, whose blocks are counted from each document's start.

        Args:
            text: the clean stream.
            block_size: tokens per block.
            ended: bool `[b, L]`, last tokens of documents; documents that end there are filled up to whole blocks
                (docs/method.md, "Endings"). None for noisy streams that repeat the clean ones, padding included.
        """
        ends = torch.zeros_like(text.counted) if ended is None else ended
        rows = [_filled(block_size, *row) for row in _on_cpu(text.counted, text.real, text.layout.documents, ends)]
        if ended is None:
            rows = [_repeated(stream, text.real.shape[1]) for stream in rows]
        length = max(len(row.sources) for row in rows)
        sources, blocks, begins = (
            torch.from_numpy(np.stack([_padded(getattr(row, name), length, value) for row in rows])).to(
                text.real.device
            )
            for name, value in (("sources", INERT), ("blocks", INERT), ("begins", 0))
        )
        noisy = NoisyLayout.of(blocks, begins, text.layout.positions)
        if ended is None:
            noisy = replace(noisy, positions=text.layout.positions)
        real = torch.cat([sources != INERT, text.real], dim=1)
        return cls(sources, replace(text, real=real, layout=replace(text.layout, noisy=noisy)))

    def last_values(self, values: Tensor) -> Tensor:
        """`values` `[b, L]` of the hidden tokens, `[b, N]`; fill has the value of the last token of its document."""
        index = torch.where(self.sources >= 0, self.sources, 0).cummax(dim=1).values
        return values.gather(1, index)


def _on_cpu(*tensors: Tensor) -> Iterator[tuple[NDArray[Any], ...]]:
    """The rows of tensors of a batch."""
    return zip(*(tensor.cpu().numpy() for tensor in tensors), strict=True)


def _filled(
    block_size: int, counted: NDArray[Any], real: NDArray[Any], documents: NDArray[Any], ended: NDArray[Any]
) -> NoisyStream:
    """The counted tokens of a row, with fill; padding is inert. Arrays are `[L]`."""
    (index,) = counted.nonzero()
    stream = noisy_stream(documents[index], ended[index], block_size)
    sources = index[np.maximum(stream.sources, 0)]
    sources = np.where(real[sources], sources, INERT)
    sources[stream.sources == FILL] = FILL
    return NoisyStream(sources, stream.blocks, index[stream.begins])


def _repeated(stream: NoisyStream, length: int) -> NoisyStream:
    """A stream without fill with each of its tokens at the index of its source, in a row of `length`."""
    sources, blocks, begins = (np.full(length, value) for value in (INERT, INERT, 0))
    kept = stream.sources != INERT
    at = stream.sources[kept]
    sources[at], blocks[at], begins[at] = at, stream.blocks[kept], stream.begins[kept]
    return NoisyStream(sources, blocks, begins)


def _padded(values: NDArray[Any], length: int, value: int) -> NDArray[Any]:
    return np.concatenate([values, np.full(length - len(values), value)])
