"""The noisy stream of a sample: which clean token each of its tokens hides, and in which block.

The noisy stream need not repeat the clean one. It is a list of tokens, each with a source in the clean stream, a block,
and the index at which the block begins in the clean stream; a noisy token sees its block, and the clean tokens of its
document before that index (docs/method.md, "Streams and visibility").

Pretraining lists all tokens (`noisy_stream`), fine-tuning the blocks of the answers alone (`answer_stream`).

Two kinds of noisy tokens have no source. *Fill* are end tokens after the end of a document or an answer, up to whole
blocks: in decoding all blocks are full, so a model that saw the last block of each document cut after the end token
would never predict that token inside of a full block (docs/method.md, "Endings"). *Inert* tokens pad the stream to its
capacity.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from nld_train.masking.answer_blocks import BlockOrigin, answer_bounds, block_bounds
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
        maskable: bool `[N]`, all but inert tokens and tokens of prompts.
    """

    sources: NDArray[np.int64]
    blocks: NDArray[np.int64]
    begins: NDArray[np.int64]
    maskable: NDArray[np.bool_]

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
        maskable=np.ones(len(clean_index), dtype=bool),
    )


def answer_stream(
    documents: NDArray[np.int64],
    answers: NDArray[np.bool_],
    block_size: int,
    blocks: BlockOrigin = "answer",
    fill: bool = True,
) -> NoisyStream:
    """The blocks of the answers in the clean stream and nothing else: P prompt and R answer tokens cost P + 2R.

    Args:
        documents: int `[L]`, conversation of each token.
        answers: bool `[L]`, whether it belongs to an answer; a run of them in a conversation is one answer.
        block_size: B, tokens per block.
        blocks: whether blocks are counted from the start of each answer, as in decoding, or of the conversation. The
            latter can begin with tokens of the prompt, which are visible and not maskable. No block has a token after
            the end of its answer, so an answer that ends and another that begins in one block are blocks of their own.
        fill: whether the last block of each answer is filled up to B tokens, else it is shorter.
    """
    conversations = np.flatnonzero(np.diff(documents, prepend=-1))
    starts, ends = answer_bounds(answers, conversations)
    origins = conversations[np.searchsorted(conversations, starts, "right") - 1]
    first, lengths = block_bounds(starts, ends, origins, block_size, blocks, fill)
    in_answer = np.arange(int(lengths.sum())) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    clean_index = np.repeat(first, lengths) + in_answer
    in_block = in_answer % block_size
    return NoisyStream(
        sources=np.where(clean_index < np.repeat(ends, lengths), clean_index, FILL),
        blocks=np.cumsum(in_block == 0) - 1,
        begins=clean_index - in_block,
        maskable=clean_index >= np.repeat(starts, lengths),
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
        maskable=np.concatenate([stream.maskable[kept], np.zeros(rest, dtype=bool)]),
    )
