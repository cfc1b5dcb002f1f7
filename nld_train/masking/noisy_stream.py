"""The noisy stream of a sample: which clean token each of its tokens hides, and in which block.

The noisy stream need not repeat the clean one. It is a list of tokens, each with a source in the clean stream, a block,
and the index at which the block begins in the clean stream; a noisy token sees its block, and the clean tokens of its
document before that index (docs/method.md, "Streams and visibility").

Two kinds of noisy tokens have no source. *Fill* are end tokens after the end of a document, up to whole blocks: in
decoding all blocks are full, so a model that saw the last block of each document cut after the end token would never
predict that token inside of a full block (docs/method.md, "Endings"). *Inert* tokens pad the stream to its capacity.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from nld_train.masking.layout import block_indices, positions_in_document

# Sources of noisy tokens that hide no token of the clean stream.
FILL, INERT = -1, -2


@dataclass(frozen=True)
class NoisyStream:
    """The noisy stream of one sample, of N tokens. Tokens of a block are adjacent.

    Attributes:
        sources: int64 `[N]`, index in the clean stream of the token that is hidden; `FILL` or `INERT`.
        blocks: int64 `[N]`, block of each token, from 0, growing by one from block to block.
        begins: int64 `[N]`, index in the clean stream at which the token's block begins; 0 for inert tokens, which see
            nothing of it.
    """

    sources: NDArray[np.int64]
    blocks: NDArray[np.int64]
    begins: NDArray[np.int64]

    @property
    def maskable(self) -> NDArray[np.bool_]:
        """Bool `[N]`: all but inert tokens."""
        return self.sources != INERT

    def tokens(self, clean: NDArray[np.int64], end: int, inert: int) -> NDArray[np.int64]:
        """The tokens that are hidden, int64 `[N]`: of the clean stream `[L]`, `end` for fill, `inert` for the rest."""
        tokens = clean[np.maximum(self.sources, 0)]
        tokens[self.sources == FILL] = end
        tokens[self.sources == INERT] = inert
        return tokens


def last_tokens(documents: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Which tokens of a sample are the last ones of their documents.

    Args:
        documents: int `[L+1]`, document of each token and of the one after them.

    Returns:
        Bool `[L]`. A document that the end of the sample cuts has no last token there.
    """
    return documents[1:] != documents[:-1]


def noisy_stream(
    documents: NDArray[np.int64], last: NDArray[np.bool_], block_size: int, offset: int = 0
) -> NoisyStream:
    """All tokens of the clean stream, with fill after the last token of each document.

    Args:
        documents: int `[L]`, document of each token.
        last: bool `[L]`, from `last_tokens`; without any there is no fill.
        block_size: B, tokens per block.
        offset: where the first whole block of each document begins, see `block_indices`; the shorter block before it
            is not filled.
    """
    blocks = block_indices(documents, block_size, offset)
    block_starts = np.flatnonzero(np.diff(blocks, prepend=-1))
    size_so_far = np.arange(len(blocks)) - block_starts[blocks] + 1
    fill = np.where(last & (positions_in_document(documents) >= offset), block_size - size_so_far, 0)
    clean_index = np.repeat(np.arange(len(blocks)), 1 + fill)
    is_fill = np.diff(clean_index, prepend=-1) == 0
    return NoisyStream(
        sources=np.where(is_fill, FILL, clean_index),
        blocks=blocks[clean_index],
        begins=block_starts[blocks[clean_index]],
    )


def fit(stream: NoisyStream, capacity: int, block_size: int, order: NDArray[np.float64]) -> NoisyStream:
    """The stream with exactly `capacity` tokens, so that shapes are static.

    Whole blocks are left out where it is longer, inert blocks are appended where it is shorter. A block is left out
    whatever it contains, so that the expected loss is the mean over all blocks.

    Args:
        stream: the whole noisy stream.
        capacity: N.
        block_size: tokens of an inert block, at most.
        order: random numbers, at least one per block: blocks with the smallest ones are left out first.
    """
    sizes = np.bincount(stream.blocks)
    by_order = np.argsort(order[: len(sizes)], kind="stable")
    lengths = len(stream.blocks) - np.concatenate([[0], np.cumsum(sizes[by_order])])
    left_out = by_order[: int(np.argmax(lengths <= capacity))]
    kept = ~np.isin(stream.blocks, left_out)
    renumbered = np.cumsum(~np.isin(np.arange(len(sizes)), left_out)) - 1
    blocks, rest = renumbered[stream.blocks[kept]], capacity - int(kept.sum())
    first_inert = int(blocks[-1]) + 1 if len(blocks) else 0
    return NoisyStream(
        sources=np.concatenate([stream.sources[kept], np.full(rest, INERT)]),
        blocks=np.concatenate([blocks, first_inert + np.arange(rest) // block_size]),
        begins=np.concatenate([stream.begins[kept], np.zeros(rest, dtype=np.int64)]),
    )
