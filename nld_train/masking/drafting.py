"""The blocks and the random numbers of drafter training: a pure function of seed, stage and sample index, like all
noise."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from nld_train.masking.answer_blocks import answer_bounds
from nld_train.masking.noise import RandomStream, uniform
from nld_train.masking.noisy_stream import NoisyStream, answer_stream, fit, last_tokens, noisy_stream


@dataclass(frozen=True)
class DraftDraws:
    """The random numbers with which one sample is drafted.

    Attributes:
        prefixes: float64 `[n]` in [0, 1), by index of the answer: the fraction of its first tokens after which its
            first block begins; the first number decides for all documents of a text.
        greedy: bool `[n]`, by index of the block: whether its drafts are the most likely tokens, not sampled ones.
        uniform: float64 `[n]` in [0, 1), by index in the noisy stream: the number from which a sampled draft is drawn.
        left_out: float64 `[n]` in [0, 1), by index of the block: which blocks are left out where not all fit.
    """

    prefixes: NDArray[np.float64]
    greedy: NDArray[np.bool_]
    uniform: NDArray[np.float64]
    left_out: NDArray[np.float64]


def draw_drafts(seed: int, stage: str, sample_index: int, length: int, greedy_share: float) -> DraftDraws:
    """Draws the random numbers of one sample.

    Args:
        seed: of the run.
        stage: name of the stage.
        sample_index: index of the sample in the stage's training order.
        length: n, tokens of the longer one of the sample's streams.
        greedy_share: probability that a block is drafted greedily.
    """
    return DraftDraws(
        prefixes=uniform(seed, stage, sample_index, RandomStream.BLOCK_OFFSET, length),
        greedy=uniform(seed, stage, sample_index, RandomStream.GREEDY, length) < greedy_share,
        uniform=uniform(seed, stage, sample_index, RandomStream.DRAFTS, length),
        left_out=uniform(seed, stage, sample_index, RandomStream.LEFT_OUT, length),
    )


def draft_stream(
    documents: NDArray[np.int64],
    answers: NDArray[np.bool_] | None,
    draws: DraftDraws,
    block_size: int,
    capacity: int,
) -> NoisyStream:
    """The blocks of one sample that are drafted, each after a random prefix: in all of a text, in answers alone.

    Blocks in which a document or an answer ends are filled up, as in decoding. What does not fit is left out.

    Args:
        documents: int64 `[L+1]`, documents of the tokens and of the next one.
        answers: bool `[L+1]`, whether they belong to an answer; None for text.
        draws: of the sample.
        block_size: B.
        capacity: N, tokens of the stream.
    """
    if answers is None:
        # From 1 to B, so that each block has at least one token of real text before it.
        offset = 1 + int(draws.prefixes[0] * block_size)
        whole = noisy_stream(documents[:-1], last_tokens(documents), block_size, offset)
    else:
        drafted = without_prefixes(documents[:-1], answers[:-1], draws.prefixes, block_size)
        whole = answer_stream(documents[:-1], drafted, block_size)
    return fit(whole, capacity, block_size, draws.left_out)


def without_prefixes(
    documents: NDArray[np.int64], answers: NDArray[np.bool_], prefixes: NDArray[np.float64], block_size: int
) -> NDArray[np.bool_]:
    """The tokens of answers that are in blocks: all from the start of its first block on, one of its first B tokens.

    An answer begins after a generation prompt, from which its first token is predicted. One that begins its
    conversation has none, so its first token is in no block. Nor does a block begin with the last token of an answer:
    with its prediction for a seed, decoding has ended.

    Args:
        documents: int64 `[L]`, conversation of each token.
        answers: bool `[L]`, whether it belongs to an answer.
        prefixes: see `DraftDraws`.
        block_size: B.
    """
    conversations = np.flatnonzero(np.diff(documents, prepend=-1))
    starts, ends = answer_bounds(answers, conversations)
    starts = starts + np.isin(starts, conversations)
    choices = np.clip(ends - starts - 1, 0, block_size)
    starts = starts + (prefixes[: len(starts)] * choices).astype(np.int64)
    ends = ends - ((ends - starts) % block_size == 1)
    changes = np.zeros(len(answers) + 1, dtype=np.int64)
    np.add.at(changes, starts, 1)
    np.add.at(changes, ends, -1)
    return np.cumsum(changes[:-1]) > 0
