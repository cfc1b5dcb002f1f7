"""Streams and visibility of a batch in the conventions of `transformers`: padding masks and position ids.

Streams and the visibility rule are those of training; only padding is added here.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from checkpoint_convert.hf_package.attention import Rule
from nld_train.masking.layout import NoisyLayout, StreamLayout, clean_block_ends
from nld_train.masking.noisy_stream import FILL, INERT, NoisyStream, answer_stream, noisy_stream
from nld_train.masking.visibility import Coordinates, coordinates, visible

Blocks = Literal["answer", "document"]


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

    def with_whole_blocks(self, block_size: int, answers: Tensor | None = None) -> PaddedText:
        """The same with clean tokens that see their whole block (`StreamLayout.clean_ends`).

        Args:
            block_size: tokens per block.
            answers: bool `[b, L]`, tokens of answers from whose starts blocks are counted; None for none.
        """
        marked = torch.zeros_like(self.counted) if answers is None else answers
        rows = [_clean_ends(block_size, *row) for row in _on_cpu(self.counted, self.layout.documents, marked)]
        ends = torch.from_numpy(np.stack(rows)).to(self.real.device)
        return replace(self, layout=replace(self.layout, clean_ends=ends))

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
        tokens = coordinates(self.layout)
        sees = torch.where(in_block, begin, torch.minimum(tokens.sees, begin))
        return self._rule(tokens._replace(noisy=in_block, sees=sees))

    def _rule(self, tokens: Coordinates) -> Rule:
        """`visible`, with padding that is visible only to itself, which keeps its softmax finite."""
        real = self.real

        def rule(row: Tensor, query: Tensor, key: Tensor) -> Tensor:
            of_query, of_key = (Coordinates(*(field[row, index] for field in tokens)) for index in (query, key))
            return (visible(of_query, of_key) & real[row, key]) | (query == key)

        return rule


@dataclass(frozen=True)
class AnswerBlocks:
    """How the noisy stream of conversations is made.

    Attributes:
        size: tokens per block.
        blocks: from where blocks are counted: the start of each `answer`, or of the `document`.
        fill: whether the last block of an answer is filled up with end tokens.
        clean_blocks: whether clean tokens see their whole block.
    """

    size: int
    blocks: Blocks = "answer"
    fill: bool = True
    clean_blocks: bool = False


@dataclass(frozen=True)
class NoisyText:
    """The noisy streams of a batch of padded or packed texts. Tensors are on the model's device.

    Attributes:
        sources: int64 `[b, N]`, index in the row of the token that is hidden; `FILL`, or `INERT` for padding.
        maskable: bool `[b, N]`, False for padding, and for what stays visible in a block of an answer.
        text: both streams.
    """

    sources: Tensor
    maskable: Tensor
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
        if ended is not None:
            return cls._stacked(text, rows)
        length = text.real.shape[1]
        repeated = cls._stacked(text, [_repeated(stream, length) for stream in rows])
        noisy = repeated.text.layout.noisy
        assert noisy is not None
        layout = replace(text.layout, noisy=replace(noisy, positions=text.layout.positions))
        return replace(repeated, text=replace(repeated.text, layout=layout))

    @classmethod
    def of_answers(cls, text: PaddedText, answers: Tensor, ends: Tensor, settings: AnswerBlocks) -> NoisyText:
        """The noisy streams of conversations: the blocks of their answers alone.

        Args:
            text: the clean stream.
            answers: bool `[b, L]`, tokens of answers; one answer is a run of them without a gap.
            ends: bool `[b, L]`, end tokens.
            settings: of the blocks. An answer that its row cuts is not filled: it neither has an end token nor is
                anything after it in its document.
        """
        rows = _on_cpu(text.counted, text.real, text.layout.documents, answers, ends)
        return cls._stacked(text, [_answers(settings, *row) for row in rows])

    @classmethod
    def _stacked(cls, text: PaddedText, rows: list[NoisyStream]) -> NoisyText:
        """The streams of the rows as one batch, with inert tokens at the end of those that are shorter."""
        length = max(1, *(len(row.sources) for row in rows))

        def stacked(name: str, value: int) -> Tensor:
            padded = np.stack([_padded(getattr(row, name), length, value) for row in rows])
            return torch.from_numpy(padded).to(text.real.device)

        sources, blocks, begins = stacked("sources", INERT), stacked("blocks", INERT), stacked("begins", 0)
        noisy = NoisyLayout.of(blocks, begins, text.layout.positions)
        real = torch.cat([sources != INERT, text.real], dim=1)
        streams = replace(text, real=real, layout=replace(text.layout, noisy=noisy))
        return cls(sources, stacked("maskable", False), streams)

    def tokens(self, values: Tensor, end: int) -> Tensor:
        """The hidden tokens int64 `[b, N]` of a batch `[b, L]`, and `end` for fill."""
        return torch.where(self.sources == FILL, end, values.gather(1, self.sources.clamp(min=0)))

    def last_values(self, values: Tensor) -> Tensor:
        """`values` `[b, L]` of the hidden tokens, `[b, N]`; fill has the value of the last token of its document."""
        index = torch.where(self.sources >= 0, self.sources, 0).cummax(dim=1).values
        return values.gather(1, index)


def _on_cpu(*tensors: Tensor) -> Iterator[tuple[NDArray[Any], ...]]:
    """The rows of tensors of a batch."""
    return zip(*(tensor.cpu().numpy() for tensor in tensors), strict=True)


def _clean_ends(
    block_size: int, counted: NDArray[Any], documents: NDArray[Any], answers: NDArray[Any]
) -> NDArray[np.int64]:
    """`clean_block_ends` of a row with padding that does not count, which sees itself alone. Arrays are `[L]`."""
    (index,) = counted.nonzero()
    ends = np.arange(1, len(counted) + 1)
    if len(index):
        ends[index] = index[clean_block_ends(documents[index], block_size, answers[index]) - 1] + 1
    return ends


def _filled(
    block_size: int, counted: NDArray[Any], real: NDArray[Any], documents: NDArray[Any], ended: NDArray[Any]
) -> NoisyStream:
    """The counted tokens of a row, with fill; padding is inert. Arrays are `[L]`."""
    (index,) = counted.nonzero()
    stream = noisy_stream(documents[index], ended[index], block_size)
    sources = index[np.maximum(stream.sources, 0)]
    sources = np.where(real[sources], sources, INERT)
    sources[stream.sources == FILL] = FILL
    return NoisyStream(sources, stream.blocks, index[stream.begins], maskable=sources != INERT)


def _answers(
    settings: AnswerBlocks,
    counted: NDArray[Any],
    real: NDArray[Any],
    documents: NDArray[Any],
    answers: NDArray[Any],
    ends: NDArray[Any],
) -> NoisyStream:
    """The blocks of the answers of a row, padding left out. Arrays are `[L]`."""
    (index,) = (counted & real).nonzero()
    documents, answers = documents[index], answers[index]
    stream = answer_stream(documents, answers, settings.size, settings.blocks, settings.fill)
    kept = (stream.sources != FILL) | _complete(documents, answers, ends[index])[_last_source(stream)]
    return NoisyStream(
        sources=np.where(stream.sources < 0, stream.sources, index[stream.sources.clip(min=0)])[kept],
        blocks=stream.blocks[kept],
        begins=index[stream.begins[kept]],
        maskable=stream.maskable[kept],
    )


def _last_source(stream: NoisyStream) -> NDArray[Any]:
    """Int `[N]`, the source of each token of a stream; of fill the source of the token before it."""
    at = np.where(stream.sources != FILL, np.arange(len(stream.sources)), 0)
    return stream.sources[np.maximum.accumulate(at)]


def _complete(documents: NDArray[Any], answers: NDArray[Any], ends: NDArray[Any]) -> NDArray[Any]:
    """Bool `[L]`, for last tokens of answers: whether the answer has an end token, or its document goes on after it."""
    index, same = np.arange(len(answers)), documents[1:] == documents[:-1]
    continued = np.append(False, answers[:-1] & same)[: len(index)]
    first = np.maximum.accumulate(np.where(continued, 0, index))
    ends_so_far = np.cumsum(ends)
    has_end = ends_so_far - ends_so_far[first] + ends[first] > 0
    return has_end | np.append(same, False)[: len(index)]


def _repeated(stream: NoisyStream, length: int) -> NoisyStream:
    """A stream without fill with each of its tokens at the index of its source, in a row of `length`."""
    sources, blocks, begins = (np.full(length, value) for value in (INERT, INERT, 0))
    kept = stream.sources != INERT
    at = stream.sources[kept]
    sources[at], blocks[at], begins[at] = at, stream.blocks[kept], stream.begins[kept]
    return NoisyStream(sources, blocks, begins, maskable=sources != INERT)


def _padded(values: NDArray[Any], length: int, value: int) -> NDArray[Any]:
    return np.concatenate([values, np.full(length - len(values), value)])
